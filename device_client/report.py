"""The cost of an answer: bytes on the socket, milliseconds of each stage, and the picture's size as JPEG and WebP.

Promises that every number was measured in this run, or is None. Leaves showing the numbers to `render`.
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, field
from typing import Any

from PIL import Image

from device_client.estimates import Measured
from device_client.meter import Traffic
from device_client.picture import Picture
from device_client.question import PendingQuestion
from tofc.errors import ImageCodecError, ImageError
from tofc.model.feature_codecs import DEFAULT
from tofc.model.views import ViewRule, plan
from tofc.v1 import tofc_pb2 as pb

QUALITY = 75  # Pillow's default for JPEG, and what most programs write
_FINISH = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_CANCELLED: "cancelled",
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """One answer and its cost."""

    question: str
    answer: str
    finish_reason: str  # stop, length or cancelled
    bytes_picture: int  # packets, or image files, sent for this question; 0 when the server had the pictures
    bytes_up: int | None  # on the socket, with headers, since the question before (the first one: since connecting)
    bytes_down: int | None
    views: int  # of the question's pictures
    views_sent: int
    features: int  # visual features of its pictures that the model saw
    reconnects: int  # how often the link was lost meanwhile
    refusals: int  # how often the server was busy, and was asked again
    timings: dict[str, float] = field(default_factory=dict)  # ms
    usage: dict[str, int] = field(default_factory=dict)
    feature_codec: str | None = DEFAULT  # its name in the model's checkpoint; None with mode image
    mode: str = "features"  # or image; then the next three are set. auto may send some as each: mixed
    image_codec: str | None = None
    image_quality: int | None = None
    image_scale: float | None = None
    auto: dict[str, Any] | None = None  # of --mode auto: mode, why, the times it predicted; None: it was not chosen
    unanswered: bool = False  # the answer ended while the model was still thinking
    thinking: str | None = None  # None: it was not requested
    votes: list[dict[str, Any]] | None = None  # of --vote: text and count of each different answer; None: no vote
    rollouts: list[dict[str, Any]] | None = None  # None: they were not requested

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object; `auto`, `thinking`, `votes` and `rollouts` only where they were requested."""
        optional = ("auto", "thinking", "votes", "rollouts")
        return {name: value for name, value in asdict(self).items() if name not in optional or value is not None}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The same pictures as files: re-encoded at the model's input size, and as they are on the disk."""

    width: int  # of the first picture as re-encoded
    height: int
    quality: int
    jpeg_bytes: int
    webp_bytes: int
    file_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)


def spent(before: Traffic | None, after: Traffic | None) -> tuple[int | None, int | None]:
    """Return the bytes (up, down) between two readings; None where one of them is missing."""
    if before is None or after is None:
        return None, None
    return (after - before).up, (after - before).down


def build_report(
    question: PendingQuestion,
    done: pb.Done,
    *,
    feature_codec: str | None,
    traffic: tuple[int | None, int | None],
    connect_ms: float,
    load_ms: float,
    total_ms: float,
) -> Report:
    """Return the report of a question that was answered. `traffic`: bytes (up, down)."""
    forms = [picture.form for picture in question.sent]
    form = next((one for one in forms if one is not None), None)
    encoded_now = [encoded for stats in question.upload_stats for encoded in stats.encoded_now]
    timings = {
        "connect": connect_ms,
        "load": load_ms,
        "views": sum(encoded.views_ms for encoded in encoded_now),
        "tower": sum(encoded.tower_ms for encoded in encoded_now),
        "encode": sum(encoded.encode_ms for encoded in encoded_now),
        "upload": sum(stats.upload_ms for stats in question.upload_stats),
        "server_decode": done.timing.decode_us / 1e3,
        "server_wait": done.timing.wait_us / 1e3,
        "server_prefill": done.timing.prefill_us / 1e3,
        "server_first_token": done.timing.first_token_us / 1e3,
        "server_total": done.timing.total_us / 1e3,
        "first_token": question.first_token_ms,
        "total": total_ms,
    }
    return Report(
        question=question.text,
        answer=question.transcript.answer.text,
        thinking=question.transcript.thinking.text.strip() if question.thinking else None,
        votes=[{"text": one.text, "count": one.count} for one in done.votes] if question.reasoning.vote else None,
        rollouts=[asdict(one) for one in question.samples.rollouts] if question.reasoning.rollouts else None,
        unanswered=done.unanswered,
        finish_reason=_FINISH.get(done.finish_reason, "unspecified"),
        bytes_picture=sum(stats.n_bytes for stats in question.upload_stats),
        bytes_up=traffic[0],
        bytes_down=traffic[1],
        views=sum(picture.n_views for picture in question.sent),
        views_sent=sum(stats.n_views for stats in question.upload_stats),
        features=done.usage.visual_tokens // max(done.usage.prompts, 1),
        reconnects=question.losses,
        refusals=question.refusals,
        timings={stage: round(ms, 2) for stage, ms in timings.items()},
        usage={
            "prompt_tokens": done.usage.prompt_tokens,
            "visual_tokens": done.usage.visual_tokens,
            "new_tokens": done.usage.new_tokens,
            "thinking_tokens": done.usage.thinking_tokens,
            **_of_samples(done.usage),
        },
        feature_codec=None if forms and all(forms) else feature_codec,
        mode="features" if form is None else "image" if all(forms) else "mixed",
        auto=None if question.decision is None else question.decision.to_json(),
        image_codec=form.codec if form else None,
        image_quality=form.quality if form else None,
        image_scale=form.scale if form else None,
    )


def measured(question: PendingQuestion, report: Report) -> Measured | None:
    """Return what a question tells about the speed of its mode; None if it was not all about new pictures."""
    stats, sent, ms = question.upload_stats, question.sent, report.timings
    one_try = question.attempts == 1 and len(stats) == len(sent)
    if report.mode == "mixed" or not one_try or not all(one.encoded_now and one.ended_s for one in stats):
        return None
    last = max(stats, key=lambda one: one.upload_ms)
    return Measured(
        views=report.views,
        last_packet_views=last.last_packet_views,
        megapixels=sum(picture.megapixels for picture in sent),
        device_ms=ms["views"] + ms["tower"] + ms["encode"],
        n_bytes=report.bytes_picture,
        upload_ms=last.upload_ms,
        server_ms=ms["server_decode"],
        first_token_ms=None if ms["connect"] or ms["load"] else ms["first_token"],
    )


def _of_samples(usage: pb.Usage) -> dict[str, int]:
    """Return what `usage` says of samples; nothing for a question that was answered once."""
    return {"samples": usage.samples, "samples_used": usage.samples_used} if usage.prompts else {}


def input_size(image: Image.Image, rule: ViewRule) -> tuple[int, int]:
    """Return the smallest (width, height) in px at which the model loses nothing: its canvas, or a smaller picture."""
    width, height = image.size
    layout = plan(width, height, rule)
    model = layout.resized if layout.crops else (rule.global_size, rule.global_size)
    return model if model[0] * model[1] < width * height else (width, height)


def compare(pictures: list[Picture], rule: ViewRule) -> Comparison | None:
    """Re-encode pictures with Pillow at `input_size`, quality 75. Sizes add up over the pictures.

    Return None for a picture that these formats cannot hold (WebP allows 16383 px a side) or the model's views cannot
    (a picture whose file is sent scaled down may be narrower than they allow), and where memory is short.
    """
    jpeg = webp = 0
    sizes = []
    for picture in pictures:
        assert picture.image is not None, "pixels are freed with the last view"
        try:
            size = input_size(picture.image, rule)
            same = size == picture.image.size
            image = picture.image if same else picture.image.resize(size, Image.Resampling.BILINEAR)
            jpeg += _file_bytes(image, "JPEG")
            webp += _file_bytes(image, "WEBP")
        except (ImageError, MemoryError):  # the answer is there: a comparison is not worth failing for
            return None
        sizes.append(size)
    files = [picture.file_bytes for picture in pictures]
    return Comparison(
        width=sizes[0][0],
        height=sizes[0][1],
        quality=QUALITY,
        jpeg_bytes=jpeg,
        webp_bytes=webp,
        file_bytes=None if None in files else sum(size for size in files if size is not None),
    )


def _file_bytes(image: Image.Image, kind: str) -> int:
    """Return the size of the picture as a file. Raises ImageCodecError for a picture that the format cannot hold."""
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, quality=QUALITY)
    except (OSError, ValueError) as error:  # Pillow's, for instance for a side that is too long
        raise ImageCodecError("IMAGE_INVALID", f"{kind} cannot hold this picture ({error})") from error
    return buffer.tell()
