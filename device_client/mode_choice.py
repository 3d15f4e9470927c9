"""Features or an image file? Takes what is predicted to give its first token sooner, and says why.

    new pictures ─┬─ the server takes no files, the model knows no equal ones, nothing is measured yet ─→ features
                  ├─ estimates: features ms, image file ms ─────────────────────────────────────────────→ the smaller
                  └─ the other way is close, and was last measured long ago ────────────────────────────→ the other one

Promises that a picture which was sent in one way stays so while the server takes it, and that a link is never tried
with a file that is predicted to be slower than features, unless a file was sent over it before and was close. Leaves
predicting to `estimates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from device_client.auto_encoder import AutoEncoder
from device_client.estimates import DeviceEstimates, LinkEstimates, Measured, ServerEstimates
from device_client.link import Link
from device_client.picture import Picture
from tofc.model.image_codec import decompress

MEASURE_AGAIN_AFTER = 8  # pictures that went the other way, at most
MEASURE_AGAIN_GROWTH = 2  # pictures for each time that a way was measured: one slow picture should not count for long
MEASURE_AGAIN_WITHIN = 1.5  # times the time of the better way


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How new pictures are sent; milliseconds to the first token as predicted, None where they were not."""

    mode: str
    why: str
    features_ms: float | None = None
    image_ms: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)


class ModeChoice:
    """Chooses for the questions of one session."""

    def __init__(self, encoder: AutoEncoder) -> None:
        self._encoder = encoder
        self._device = DeviceEstimates()
        self._servers: dict[str, ServerEstimates] = {}  # by address
        self._link: Link | None = None
        self._estimates: LinkEstimates | None = None
        self._since = {"features": 0, "image": 0}  # pictures since one was sent in this way
        self._measured = {"features": 0, "image": 0}  # pictures that were sent in this way

    def choose(self, pictures: Sequence[Picture], link: Link) -> tuple[list[Picture], Decision]:
        """Return the pictures as they are sent over `link`."""
        files = all(self._takes(link, picture) for picture in pictures)
        modes = [_known_mode(picture, files=files) for picture in pictures]
        new = [picture for picture, mode in zip(pictures, modes, strict=True) if mode is None]
        if new:
            decision = self._decide(new, link)
        else:
            mode = str(modes[0]) if len(set(modes)) == 1 else "mixed"
            decision = Decision(mode=mode, why="the pictures were encoded in this way for an earlier question")
        sent = [self._sent(picture, mode or decision.mode) for picture, mode in zip(pictures, modes, strict=True)]
        return sent, decision

    def learn(self, mode: str, seen: Measured, link: Link) -> None:
        """Take what a question about new pictures took."""
        estimates = self._on(link)
        self._measured[mode] += 1
        self._since[mode] = 0
        self._since["image" if mode == "features" else "features"] += 1
        (estimates.add_features if mode == "features" else estimates.add_file)(seen)

    def _decide(self, pictures: Sequence[Picture], link: Link) -> Decision:
        if not link.limits.image_pixels:
            why = "the server takes no image files (edge-server serve --take-images)"
            return Decision(mode="features", why=why)
        if any(self._encoder.files.form(picture.n_views) is None for picture in pictures):
            return Decision(mode="features", why=self._encoder.no_files)
        if not all(self._takes(link, picture) for picture in pictures):
            why = "as an image file the picture is too narrow, or has more pixels than the server takes"
            return Decision(mode="features", why=why)
        estimates = self._on(link)
        views = sum(picture.n_views for picture in pictures)
        megapixels = sum(picture.megapixels for picture in pictures)
        features_ms, image_ms = estimates.features_ms(views), estimates.file_ms(views, megapixels)
        if features_ms is None:
            return Decision(mode="features", why="nothing is measured yet")
        mode, other = ("image", "features") if image_ms < features_ms else ("features", "image")
        better_ms, other_ms = min(features_ms, image_ms), max(features_ms, image_ms)
        rate = f"{1 / estimates.ms_per_byte:.3g} kB/s" if estimates.ms_per_byte else "the speed of a fast link"
        why = f"predicted to be sooner, at {rate} and a round trip of {estimates.round_trip_ms:.0f} ms"
        close = other_ms <= MEASURE_AGAIN_WITHIN * better_ms and estimates.file_was_sent
        if close and self._since[other] >= min(MEASURE_AGAIN_AFTER, MEASURE_AGAIN_GROWTH * self._measured[other]):
            mode, why = other, f"measured again: it was close {self._since[other]} pictures ago"
        return Decision(mode=mode, why=why, features_ms=round(features_ms, 1), image_ms=round(image_ms, 1))

    def _on(self, link: Link) -> LinkEstimates:
        if self._estimates is None or link is not self._link:
            server = self._servers.setdefault(link.address, ServerEstimates())
            self._link, self._estimates = link, LinkEstimates(link.opening, self._device, server)
        return self._estimates

    def _takes(self, link: Link, picture: Picture) -> bool:
        as_file = picture.file or self._encoder.plan_file(picture)
        return as_file is not None and as_file.form_pixels <= link.limits.image_pixels

    def _sent(self, picture: Picture, mode: str) -> Picture:
        """Return what is sent of a picture. Its pixels are kept by one of picture and file."""
        picture.sent_as = picture.sent_as or mode  # not when it is encoded: the thread may still be busy with others
        if mode == "image":
            if picture.file is None:
                picture.file = self._encoder.plan_file(picture)
                picture.image = None
            assert picture.file is not None, "there is a form for it"
            return picture.file
        if picture.image is None and not picture.packets and picture.file is not None:  # now a server without files
            picture.image = picture.file.image or _decoded(picture.file, picture.size)
        return picture


def _known_mode(picture: Picture, *, files: bool) -> str | None:
    """Return how a picture was sent before; None for a new one. `files`: the server takes image files."""
    return "features" if picture.sent_as == "image" and not files else picture.sent_as


def _decoded(file: Picture, size: tuple[int, int]) -> Image.Image:
    assert file.form is not None, "it is an image file"
    image = decompress(file.packets[0].packet, file.form.codec, max_pixels=file.form_pixels)
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)
