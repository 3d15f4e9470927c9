"""Whether a checkpoint does here what it does elsewhere: each part beside an implementation that is not ours.

    views, picture tokens      transformers' Step3p7 processors (where torchvision is installed)
    prompt tokens              the prompt as one text, tokenised in one go
    tower                      ``reference_tower``, from the published rules, in float64
    logits, greedy answer      ``whole_model``, the same checkpoint in one process
    the same once more         vLLM's StepVL (where ``vllm_answer`` asked it)

Promises one line a check, as soon as it is known, and that one network at a time is in memory. Uncompressed and
without a codec: what packets cost in answers is `tofc-lab evaluate`'s business.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from edge_server.engine.base import Prompt, Sampling
from edge_server.engine.qwen3 import embedder, load_qwen3
from edge_server.engine.transformers import TransformersEngine
from lab import step3p7
from lab.whole_model import Reply, WholeModel
from shared import json_text
from shared.model.checkpoint import Checkpoint, CheckpointError
from shared.model.config import SplitConfig
from shared.model.open_image import open_image
from shared.model.projector import Projector
from shared.model.prompt import Layout, Turn, build, load_tokenizer
from shared.model.released_names import DECODER, VISION
from shared.model.room import need_memory
from shared.model.tower import Tower
from shared.model.views import View, ViewRule, plan, views

QUESTION = "What is in the picture?"
SIZES = 1000
TOKENS = 8  # of the greedy answer
KEPT = 16  # positions whose logits are compared
#: relative errors: of the tower's features, of logits. In half precision, rounding of the networks themselves.
LIMITS = {torch.float32: (1e-3, 1e-4), torch.bfloat16: (0.1, 0.1), torch.float16: (0.02, 0.02)}
NO_TORCHVISION = "torchvision is not installed; take the build that belongs to this torch, from where torch came from"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One line. ``figure`` may be at most ``limit``; ``skipped`` says why there is none."""

    name: str
    figure: float = 0.0
    limit: float = 0.0
    unit: str = ""
    skipped: str = ""

    @property
    def failed(self) -> bool:
        return not self.skipped and not self.figure <= self.limit  # not a number fails too

    def __str__(self) -> str:
        if self.skipped:
            return f"{self.name:<24} skipped: {self.skipped}"
        verdict = "FAILED" if self.failed else "ok"
        return f"{self.name:<24} {self.figure:<10.3g} at most {self.limit:<8.3g} {verdict:<6} {self.unit}"


def verify(
    model: Path,
    picture: Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    torchvision: bool,
    vllm: Path | None = None,
) -> Iterator[Outcome]:
    """All checks of a whole checkpoint, or of the folder with both its halves, the cheap ones first.

    ``torchvision`` is what ``step3p7.import_torchvision`` said, ``vllm`` a file of ``vllm_answer`` about ``picture``.
    Raises ``CheckpointError``, ``ImageError``, ``RoomError``, and ``ValueError`` for a file that is no such thing.
    """
    if vllm is not None and picture is None:
        raise ValueError("--vllm is about a picture; name it with --picture")
    served = None if vllm is None else Served.read(vllm)
    whole = Checkpoint.open(model) if (model / "config.json").exists() else None
    if whole is not None and whole.side is not None:
        raise CheckpointError(
            f"{model} is the {whole.side} half of a model; give the whole checkpoint, or the folder that holds device/ "
            "and server/"
        )
    device, server = whole or Checkpoint.open(model, "device"), whole or Checkpoint.open(model, "server")
    for checkpoint, prefix in ((device, VISION), (server, DECODER)):
        need_memory(
            int(1.1 * checkpoint.numbers(prefix) * dtype.itemsize),
            f"the largest part of {model} as {dtype}".replace("torch.", ""),
        )
    tokenizer = load_tokenizer(server)
    image = example(device.config.rule) if picture is None else open_image(picture)
    yield from _processors(server.config, tokenizer, torchvision)
    pair = _Pair(
        device=device, server=server, tokenizer=tokenizer, other=WholeModel(model, dtype), image=image, dtype=dtype
    )
    yield pair.prompt()
    yield from pair.tower()
    yield from pair.decoder()
    if served is not None:
        yield from pair.served(served)


def example(rule: ViewRule) -> Image.Image:
    """A picture of two crops, the fewest: noise on a gradient, the same every time."""
    width, height = rule.global_size * 24 // 25, rule.global_size * 12 // 25
    ramp = np.linspace(0, 200, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None] * (1, 0.7, 0.4)
    return Image.fromarray((ramp + np.random.default_rng(0).integers(0, 55, ramp.shape)).astype(np.uint8))


def _processors(config: SplitConfig, tokenizer: PreTrainedTokenizerFast, torchvision: bool) -> Iterator[Outcome]:
    names = ("plans of views", "pixels of views", "picture tokens")
    if not torchvision:
        yield from (Outcome(name=name, skipped=NO_TORCHVISION) for name in names)
        return
    rule = config.rule
    tried = step3p7.sizes(rule, SIZES)
    yield Outcome(name=names[0], figure=len(step3p7.other_plans(rule, tried)), unit=f"of {len(tried)} sizes")
    side = rule.global_size
    some = [(side * a // 4, side * b // 4) for a, b in ((2, 3), (2, 4), (5, 4), (5, 7), (12, 2), (9, 1))]
    apart = max(step3p7.levels_apart(rule, step3p7.noise(size)) for size in some)
    yield Outcome(name=names[1], figure=apart, limit=step3p7.MOST_LEVELS, unit="levels of 255")
    other = step3p7.other_tokens(config, tokenizer, some)
    yield Outcome(name=names[2], figure=len(other), unit=f"of {len(some)} sizes")


@dataclass(frozen=True, kw_only=True)
class Served:
    """What ``vllm_answer`` wrote."""

    prompt: list[int]
    answer: list[int]
    likeliest: dict[int, float]  # the first token's words → natural logarithm of their probability

    @classmethod
    def read(cls, file: Path) -> Self:
        try:
            raw = json_text.read(file)
            likeliest = {int(key): float(value) for key, value in raw["log probabilities"].items()}
            return cls(prompt=raw["prompt"], answer=raw["answer"], likeliest=likeliest)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is not what `python -m lab.vllm_answer` writes ({error!r})") from None


@dataclass(kw_only=True)
class _Pair:
    """The split path and the whole model, about one picture."""

    device: Checkpoint
    server: Checkpoint
    tokenizer: PreTrainedTokenizerFast
    other: WholeModel
    image: Image.Image
    dtype: torch.dtype
    _published: dict[int, Tensor] = field(default_factory=dict)

    @cached_property
    def views(self) -> list[View]:
        return views(self.image, self.device.config.rule)

    @cached_property
    def ids(self) -> list[int]:
        config = self.server.config
        cut = plan(*self.image.size, config.rule)
        counts = [config.grid(view.pixels.shape[-1]) ** 2 for view in self.views]
        layout = Layout(rows=cut.rows, columns=cut.columns, crops=tuple(counts[:-1]), whole=counts[-1])
        return build(self.tokenizer, [Turn(role="user", text=QUESTION)], [layout]).ids

    def prompt(self) -> Outcome:
        config = self.server.config
        cut = plan(*self.image.size, config.rule)
        crop, whole = (config.grid(side) ** 2 for side in (config.crop_size, config.global_size))
        theirs = self.other.prompt_ids(QUESTION, cut.rows, cut.columns, crop, whole)
        return Outcome(name="prompt tokens", figure=unlike(self.ids, theirs), unit=f"of {len(theirs)}")

    @cached_property
    def features(self) -> list[NDArray[np.float32]]:
        tower = Tower(self.device, self.dtype)
        return [tower.encode(view.pixels[None])[0] for view in self.views]

    def published(self, index: int) -> Tensor:
        """Features [N, D] of a view by ``reference_tower``, computed once."""
        index %= len(self.views)
        if index not in self._published:
            self._published[index] = self.other.features(self.views[index].pixels)
        return self._published[index]

    def tower(self) -> Iterator[Outcome]:
        """The global view, and the first crop where there is one."""
        for index, name in ((-1, "tower, global view"), (0, "tower, a crop")):
            if self.views[index].kind in name:
                error = relative(self.features[index], self.published(index).numpy())
                yield Outcome(name=name, figure=error, limit=LIMITS[self.dtype][0], unit="relative error")

    def decoder(self) -> Iterator[Outcome]:
        with torch.inference_mode():
            ours = self.split
            gc.collect()
            visual = self.other.visual([self.published(index) for index in range(len(self.views))])
            gc.collect()
            theirs = self.other.reply(self.ids, visual, most=TOKENS, keep=KEPT)
        limit = LIMITS[self.dtype][1]
        yield Outcome(name="logits", figure=relative(ours.logits, theirs.logits), limit=limit, unit="relative error")
        yield answer(ours, theirs)

    def served(self, theirs: Served) -> Iterator[Outcome]:
        """Beside what vLLM said: as text, and the likeliest words of the first token."""
        unlikely = f"of {len(theirs.prompt)}"
        yield Outcome(name="vLLM, prompt tokens", figure=unlike(self.ids, theirs.prompt), unit=unlikely)
        ours = torch.log_softmax(torch.from_numpy(self.split.logits[-1]).double(), -1).numpy()
        words = np.array(list(theirs.likeliest))
        error = relative(ours[words], np.array(list(theirs.likeliest.values())))
        limit = LIMITS[self.dtype][1] * 10  # it rounds a probability, not a logit, and adds up in another order
        yield Outcome(name="vLLM, log probabilities", figure=error, limit=limit, unit="relative error")
        same = unlike(self.split.answer[: len(theirs.answer)], theirs.answer)
        yield Outcome(name="vLLM, greedy answer", figure=same, unit=f"of {len(theirs.answer)} tokens not alike")

    @cached_property
    def split(self) -> Reply:
        projector = Projector(self.server)
        rows = np.concatenate([projector.project(features) for features in self.features])  # [F, H]
        model = load_qwen3(self.server, dtype=self.dtype)
        embeds = embedder(model)(self.ids)  # [T, H]
        embeds[np.array(self.ids) == self.server.config.image_token_id] = rows
        ready = torch.from_numpy(embeds)[None].to(self.dtype)
        logits = model(inputs_embeds=ready, logits_to_keep=KEPT).logits[0].float().numpy()

        async def ask() -> list[int]:
            engine = TransformersEngine(model, [])
            try:
                return [one async for one in engine.submit(Prompt(embeds=embeds), Sampling(max_tokens=TOKENS))]
            finally:
                await engine.stop()

        return Reply(logits=logits, answer=asyncio.run(ask()), margins=[])


def answer(ours: Reply, theirs: Reply) -> Outcome:
    """Tokens alike, up to one that was chosen by less than the logits are apart: what follows is another answer."""
    noise = 2 * float(np.abs(ours.logits - theirs.logits).max())
    same = [a == b for a, b in zip(ours.answer, theirs.answer, strict=True)]
    first = same.index(False) if False in same else len(same)
    if first == len(same) or theirs.margins[first] > noise:
        return Outcome(name="greedy answer", figure=len(same) - first, unit=f"of {len(same)} tokens not alike")
    return Outcome(name="greedy answer", unit=f"{first} tokens alike, then two that are within rounding of each other")


def unlike(found: Sequence[int], expected: Sequence[int]) -> int:
    """How many tokens differ."""
    return sum(a != b for a, b in zip_longest(found, expected))


def relative(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Length of the difference over the length of what is expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def report(outcomes: Iterator[Outcome], tell: Callable[[str], None]) -> bool:
    """Tell each line when it is known; whether none failed."""
    fine = True
    for outcome in outcomes:
        tell(str(outcome))
        fine &= not outcome.failed
    return fine
