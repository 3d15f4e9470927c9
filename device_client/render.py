"""The cost of an answer as one line for a person: where bytes and time went.

Promises to say so if something could not be measured. Leaves measuring to `report`.

>>> format_bytes(214), format_bytes(14_250), format_bytes(3_400_000)
('214 B', '14.2 kB', '3.40 MB')
"""

from __future__ import annotations

from device_client.report import Comparison, Report
from tofc.model.feature_codecs import DEFAULT


def format_bytes(size_bytes: float) -> str:
    """Return a size in B, kB or MB (1 kB = 1000 B)."""
    if size_bytes < 1000:
        return f"{size_bytes:.0f} B"
    return f"{size_bytes / 1e3:.1f} kB" if size_bytes < 1e6 else f"{size_bytes / 1e6:.2f} MB"


def cost_line(report: Report, comparison: Comparison | None) -> str:
    """Return the line that is shown under an answer."""
    parts = [*_unanswered(report), _sent(report)]
    if report.auto is not None and report.views_sent:
        parts.append(f"auto: {report.auto['mode']}, {report.auto['why']}")
    if report.bytes_up is None:
        parts.append("bytes on the socket: not measurable here (needs Linux's TCP_INFO)")
    else:
        up, down = format_bytes(report.bytes_up), format_bytes(report.bytes_down or 0)
        parts.append(f"{up} up and {down} down on the socket, headers included")
    if comparison is not None and report.bytes_picture:
        as_file = "" if comparison.file_bytes is None else f", the file itself {format_bytes(comparison.file_bytes)}"
        parts.append(
            f"as JPEG {format_bytes(comparison.jpeg_bytes)}, WebP {format_bytes(comparison.webp_bytes)} "
            f"(quality {comparison.quality}, {comparison.width}×{comparison.height}){as_file}"
        )
    parts.append(_times(report.timings))
    if report.reconnects:
        parts.append(f"link lost {report.reconnects}×, repaired")
    if report.refusals:
        parts.append(f"server busy {report.refusals}×, asked again")
    if report.finish_reason == "length" and not report.unanswered:
        parts.append("the answer was cut at the token limit")
    return " | ".join(parts)


def _unanswered(report: Report) -> list[str]:
    tokens = report.usage["new_tokens"]
    if not report.unanswered:
        return [] if report.answer.strip() else [f"the answer is empty: the model stopped after {tokens} tokens"]
    if report.finish_reason == "length":
        return [f"no answer: the model was still thinking after {tokens} tokens; raise --max-tokens"]
    return [f"no answer: the model stopped while it was thinking, after {tokens} tokens; ask again or in other words"]


def _sent(report: Report) -> str:
    if not report.views_sent:
        return "picture 0 B: the server has it"
    views = f"{report.views_sent} view{'s' * (report.views_sent > 1)}"
    if report.mode != "features":
        scaled = "" if report.image_scale == 1 else f", scale {report.image_scale:g}"
        views = f"as {report.image_codec}, quality {report.image_quality}{scaled}, {views}"
    elif report.feature_codec != DEFAULT:
        views = f"codec {report.feature_codec}, {views}"
    return f"picture {format_bytes(report.bytes_picture)} ({views}, {report.features} features)"


def _times(ms: dict[str, float]) -> str:
    device = [("load", ms["load"]), ("views", ms["views"]), ("tower", ms["tower"]), ("encode", ms["encode"])]
    shown = [f"{stage} {value:.0f}" for stage, value in device if value]
    shown += [
        f"upload {ms['upload']:.0f}",
        f"server decode {ms['server_decode']:.0f}",
        f"prefill {ms['server_prefill']:.0f}",
        f"first token {ms['first_token']:.0f}",
        f"total {ms['total']:.0f} ms",
    ]
    return ", ".join(shown)
