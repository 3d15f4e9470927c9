"""What a person reads in the terminal: one line that says where bytes and time went.

Promises that what could not be measured is said to be so. Leaves measuring to `report`.

>>> kilo(214), kilo(14_250), kilo(3_400_000)
('214 B', '14.2 kB', '3.40 MB')
"""

from __future__ import annotations

import math

from device_client.report import Comparison, Report


def kilo(size: float) -> str:
    """Bytes in the unit that a person can compare (1 kB = 1000 B)."""
    if size < 1000:
        return f"{size:.0f} B"
    return f"{size / 1e3:.1f} kB" if size < 1e6 else f"{size / 1e6:.2f} MB"


def truth(report: Report, comparison: Comparison | None) -> str:
    """The line under an answer."""
    parts = [*_unanswered(report), _sent(report)]
    if report.bytes_up is None:
        parts.append("bytes on the socket: not measurable here (needs Linux's TCP_INFO)")
    else:
        parts.append(f"{kilo(report.bytes_up)} up and {kilo(report.bytes_down or 0)} down on the socket, headers in")
    if comparison is not None and report.bytes_picture:
        as_file = "" if comparison.file_bytes is None else f", the file itself {kilo(comparison.file_bytes)}"
        parts.append(
            f"as JPEG {kilo(comparison.jpeg_bytes)}, WebP {kilo(comparison.webp_bytes)} "
            f"(quality {comparison.quality}, {comparison.width}×{comparison.height}){as_file}"
        )
    parts.append(_times(report.timings))
    if report.reconnects:
        parts.append(f"link lost {report.reconnects}×, repaired")
    if report.finish_reason == "length" and not report.unanswered:
        parts.append("answer cut at the most tokens")
    return " | ".join(parts)


def _unanswered(report: Report) -> list[str]:
    tokens = report.usage["new_tokens"]
    if not report.unanswered:
        return [] if report.answer.strip() else [f"the answer is empty: the model ended it after {tokens} tokens"]
    if report.finish_reason == "length":
        return [f"no answer: the model was still thinking after {tokens} tokens; raise --max-tokens"]
    return [f"no answer: the model ended while it was thinking, after {tokens} tokens; ask again or otherwise"]


def _sent(report: Report) -> str:
    if not report.views_sent:
        return "picture 0 B: the server has it"
    views = f"{report.views_sent} view{'s' * (report.views_sent > 1)}"
    if report.mode == "image":
        scaled = "" if report.image_scale == 1 else f", scale {report.image_scale:g}"
        views = f"as {report.image_codec}, quality {report.image_quality}{scaled}, {views}"
    return f"picture {kilo(report.bytes_picture)} ({views}, {report.features} features)"


def _times(ms: dict[str, float]) -> str:
    device = [("load", ms["load"]), ("views", ms["views"]), ("tower", ms["tower"]), ("encode", ms["encode"])]
    shown = [f"{stage} {value:.0f}" for stage, value in device if value]
    shown += [
        f"upload {ms['upload']:.0f}",
        f"server decode {_ms(ms['server_decode'])}",
        f"prefill {_ms(ms['server_prefill'])}",
        f"first token {ms['first_token']:.0f}",
        f"total {ms['total']:.0f} ms",
    ]
    return ", ".join(shown)


def _ms(value: float) -> str:
    return "?" if math.isnan(value) else f"{value:.0f}"
