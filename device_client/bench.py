"""The work of `device-client bench`: how soon an answer begins over a link, sent as features and as image files.

    picture, changed for every question ─┬─ features ───────────────┐
                                         ├─ image file, equal answers┼─ sessions ══ relay ══ server
                                         ├─ WebP, quality 75 ────────┤
                                         └─ auto ────────────────────┘

Promises that the ways take turns in a random order, so that a busy machine slows all of them alike, that no picture is
known to the server, and that the medians leave out the first two rounds, in which links are opened and auto measures
both ways. Leaves the link to `relay` and showing the figures to `bench_command`.
"""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from device_client.auto_encoder import AutoEncoder
from device_client.encoder import Encoder, TowerEncoder
from device_client.energy import EnergyMeter, NotMeasurable
from device_client.image_encoder import ImageEncoder
from device_client.link import Link, Target
from device_client.link_shape import LinkShape
from device_client.picture import ImageForm, Picture, open_picture
from device_client.relay import Relay
from device_client.report import Report
from device_client.session import Session
from tofc.rpc.address import split_address

WEBP_75 = ImageForm(codec="webp", quality=75)
FEATURES, EQUAL, PLAIN, AUTO = "features", "image, equal answers", "image, WebP q75", "auto"
ON_DEVICE = ("views", "tower", "encode")  # stages
WARM_UP = 2  # rounds: links are opened and the tower is warm, auto measures both ways
TAG_PX = 8  # side of the square by which the pictures differ


@dataclass(kw_only=True)
class Way:
    """One way to send pictures, and what its questions took."""

    encoder: Encoder
    reports: list[Report] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)

    def median(self, stage: str) -> float:
        """Return the median of a stage in ms."""
        return statistics.median(report.timings[stage] for report in self.reports)

    def stages_ms(self) -> dict[str, float]:
        """Return where the time to the first token goes: medians of what device and server measured, and the rest."""
        device = statistics.median(sum(one.timings[name] for name in ON_DEVICE) for one in self.reports)
        server = statistics.median(one.timings["server_decode"] + one.timings["server_prefill"] for one in self.reports)
        rest = max(0.0, self.median("first_token") - device - server)
        return {"device": round(device, 1), "link and queue": round(rest, 1), "server": round(server, 1)}

    def to_json(self) -> dict[str, Any]:
        """Return medians and modes as a JSON object."""
        up, down = (_mean([getattr(one, name) for one in self.reports]) for name in ("bytes_up", "bytes_down"))
        found: dict[str, Any] = {
            "first_token_ms": round(self.median("first_token"), 1),
            "total_ms": round(self.median("total"), 1),
            "stages_ms": self.stages_ms(),
            "bytes_picture": round(statistics.mean(one.bytes_picture for one in self.reports)),
            "bytes_up": up,
            "bytes_down": down,
            "joules": round(statistics.median(self.joules), 3) if self.joules else None,
            "first_tokens_ms": [round(one.timings["first_token"], 1) for one in self.reports],
            "answers": dict(Counter(one.answer.strip() for one in self.reports)),
        }
        if any(report.auto for report in self.reports):
            found["chosen"] = dict(Counter(one.mode for one in self.reports))
            found["modes"] = [one.mode for one in self.reports]
            found["why"] = self.reports[-1].auto and self.reports[-1].auto["why"]
        return found


def ways_of(auto: AutoEncoder, tower: TowerEncoder, form: ImageForm | None, *, images: bool) -> dict[str, Way]:
    """Return the ways by name. `form`: the file of equal answers, if there is one; `images`: the server takes files."""
    encoders: dict[str, Encoder] = {FEATURES: tower}
    if images:
        forms = {EQUAL: form, PLAIN: WEBP_75}
        encoders |= {name: _files(tower, one) for name, one in forms.items() if one is not None}
    return {name: Way(encoder=encoder) for name, encoder in (encoders | {AUTO: auto}).items()}


def _files(tower: TowerEncoder, form: ImageForm) -> ImageEncoder:
    return ImageEncoder(model_id=tower.model_id, codec_id=tower.codec_id, rule=tower.rule, form=form)


def new_pictures(image: Image.Image, seed: int) -> Iterator[Image.Image]:
    """Yield copies that differ in a corner of 8 × 8 px: no server has seen any of them."""
    colours = random.Random(seed)
    plain = image.convert("RGB")
    while True:
        tagged = plain.copy()
        tagged.paste(tuple(colours.randbytes(3)), (0, 0, TAG_PX, TAG_PX))
        yield tagged


async def takes_images(target: Target, encoder: Encoder) -> bool:
    """Call the server without the link; return whether it takes image files. Raises as `Link.open`."""
    link = await Link.open(target, encoder.model_id, encoder.codec_id)
    await link.close()
    return bool(link.limits.image_pixels)


async def measure(
    target: Target,
    link: LinkShape | None,
    ways: Mapping[str, Way],
    pictures: Iterator[Image.Image],
    question: str,
    *,
    rounds: int,
    meter: EnergyMeter | NotMeasurable,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Ask with every way in turn, over a link (None: the real one), and add to the ways what that took."""
    async with AsyncExitStack() as stack:
        if link is not None:
            relay = await stack.enter_async_context(Relay(*split_address(target.address), link, seed=seed))
            target = replace(target, via=relay.address)
        sessions = {name: await stack.enter_async_context(Session(target, way.encoder)) for name, way in ways.items()}
        order, shuffled = list(ways), random.Random(seed)
        for number in range(-WARM_UP, rounds):
            shuffled.shuffle(order)  # what came before warms caches
            for name in order:
                picture = _opened(next(pictures), ways[name].encoder)
                before = _joules(meter)
                report = await sessions[name].ask([picture], question).result()
                after = _joules(meter)
                if number >= 0:
                    ways[name].reports.append(report)
                    ways[name].joules += [after - before] if after is not None and before is not None else []
            progress(max(0, number + 1))


def _opened(image: Image.Image, encoder: Encoder) -> Picture:
    return open_picture(image, encoder.rule, encoder.codec_id, encoder.setting, encoder.form)


def _joules(meter: EnergyMeter | NotMeasurable) -> float | None:
    return None if isinstance(meter, NotMeasurable) else meter.joules()


def _mean(values: list[int | None]) -> int | None:
    known = [one for one in values if one is not None]
    return round(statistics.mean(known)) if len(known) == len(values) else None


def auto_over_better(ways: Mapping[str, Way]) -> float | None:
    """Return auto's median first token over that of the better of features and equal image files."""
    others = [ways[name].median("first_token") for name in (FEATURES, EQUAL) if name in ways]
    return ways[AUTO].median("first_token") / min(others) if AUTO in ways else None
