"""Checks of a checkpoint: each part of device and server compared with an independent implementation.

    views, picture tokens      transformers' Step3p7 processors (where torchvision is installed)
    prompt tokens              the prompt as one text, tokenised at once
    tower, in torch and ONNX   `reference_tower` or `reference_lite`, from the published rules, in float64
    logits, greedy answer      `whole_model`, the same checkpoint in one process
    prompt, logits, answer     vLLM's StepVL (where a file of `vllm_answer` is given)

Promises one line for each check as soon as it is known, and only one network in memory at a time. Everything is
uncompressed and without a codec; what packets cost in answers is left to `tofc-lab evaluate`.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from edge_server.engine.base import Prompt
from edge_server.engine.qwen3 import load_qwen3
from edge_server.engine.sampling import SamplingParams
from edge_server.engine.transformers import TransformersEngine
from edge_server.token_embedding import TokenEmbedding
from tofc import json_text
from tofc.errors import CheckpointError, UsageError
from tofc.model.checkpoint import Checkpoint
from tofc.model.config import SplitConfig
from tofc.model.onnx_tower import OnnxTower
from tofc.model.open_image import open_image
from tofc.model.projector import Projector
from tofc.model.prompt import PictureLayout, Turn, build, load_tokenizer
from tofc.model.released_names import DECODER, VISION
from tofc.model.resources import require_memory
from tofc.model.tower import Tower
from tofc.model.views import View, ViewRule, plan, views
from tofc.model.vision_tower import SMALL_PARAMETERS
from tofc_lab.progress import Log
from tofc_lab.verify import step3p7
from tofc_lab.verify.whole_model import Reply, WholeModel

QUESTION = "What is in the picture?"
SIZES = 1000  # random picture sizes whose views are compared
TOKENS = 8  # of the greedy answer
KEPT = 16  # last positions of the prompt, whose logits are compared
#: allowed relative errors of features and of logits; in half precision they are the networks' own rounding
LIMITS = {torch.float32: (1e-3, 1e-4), torch.bfloat16: (0.1, 0.1), torch.float16: (0.02, 0.02)}
NO_TORCHVISION = "torchvision is not installed; install the build for this torch, from the index that torch came from"


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of a check, printed as a line. `figure` must be at most `limit`; `skipped` says why there is none."""

    name: str
    figure: float = 0.0
    limit: float = 0.0
    unit: str = ""
    skipped: str = ""

    @property
    def failed(self) -> bool:
        """Whether the figure exceeds the limit."""
        return not self.skipped and not self.figure <= self.limit  # NaN fails too

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
    compute: str = "cpu",
    torchvision: bool,
    vllm: Path | None = None,
) -> Iterator[Check]:
    """Yield the checks of a whole checkpoint, or of the folder with both its halves, the cheap ones first.

    Device and server compute on the device `compute`, the independent implementations on the CPU.
    `torchvision` is what `step3p7.import_torchvision` returned, `vllm` a file of `vllm_answer` about `picture`.
    Raises `CheckpointError`, `ImageError`, `ResourceError`, and `UsageError` if `vllm` is another file.
    """
    if vllm is not None and picture is None:
        raise UsageError("--vllm is about a picture; name it with --picture")
    served = None if vllm is None else VllmAnswer.read(vllm)
    whole = Checkpoint.open(model) if (model / "config.json").exists() else None
    if whole is not None and whole.side is not None:
        raise CheckpointError(
            f"{model} is the {whole.side} half of a model; give the whole checkpoint, or the folder that holds device/ "
            "and server/"
        )
    device, server = whole or Checkpoint.open(model, "device"), whole or Checkpoint.open(model, "server")
    for checkpoint, prefix in ((device, VISION), (server, DECODER)):
        for place in dict.fromkeys(("cpu", compute)):
            require_memory(
                int(1.1 * checkpoint.parameter_count(prefix) * dtype.itemsize),
                f"the largest part of {model} as {dtype}".replace("torch.", ""),
                place,
            )
    tokenizer = load_tokenizer(server)
    image = example(device.config.rule) if picture is None else open_image(picture)
    yield from _processors(server.config, tokenizer, torchvision)
    comparison = _Comparison(
        device=device,
        server=server,
        tokenizer=tokenizer,
        other=WholeModel.open(model, dtype),
        image=image,
        dtype=dtype,
        compute=compute,
    )
    yield comparison.prompt()
    yield from comparison.tower()
    yield from comparison.decoder()
    if served is not None:
        yield from comparison.vllm(served)


def example(rule: ViewRule) -> Image.Image:
    """Return a picture that is cut into two crops, the fewest possible: noise on a gradient, always the same."""
    width, height = rule.global_size * 24 // 25, rule.global_size * 12 // 25
    ramp = np.linspace(0, 200, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None] * (1, 0.7, 0.4)
    return Image.fromarray((ramp + np.random.default_rng(0).integers(0, 55, ramp.shape)).astype(np.uint8))


def _processors(config: SplitConfig, tokenizer: PreTrainedTokenizerFast, torchvision: bool) -> Iterator[Check]:
    names = ("plans of views", "pixels of views", "picture tokens")
    if not torchvision:
        yield from (Check(name=name, skipped=NO_TORCHVISION) for name in names)
        return
    rule = config.rule
    tried = step3p7.sizes(rule, SIZES)
    yield Check(name=names[0], figure=len(step3p7.other_plans(rule, tried)), unit=f"of {len(tried)} sizes")
    side = rule.global_size
    some = [(side * a // 4, side * b // 4) for a, b in ((2, 3), (2, 4), (5, 4), (5, 7), (12, 2), (9, 1))]
    apart = max(step3p7.levels_apart(rule, step3p7.noise(size)) for size in some)
    yield Check(name=names[1], figure=apart, limit=step3p7.MOST_LEVELS, unit="levels of 255")
    other = step3p7.other_tokens(config, tokenizer, some)
    yield Check(name=names[2], figure=len(other), unit=f"of {len(some)} sizes")


@dataclass(frozen=True, kw_only=True)
class VllmAnswer:
    """Prompt and answer of vLLM, as `vllm_answer` wrote them."""

    prompt: list[int]
    answer: list[int]
    likeliest: dict[int, float]  # candidates for the first token → natural logarithm of their probability

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read the file. Raises `UsageError` if it is another one."""
        try:
            raw = json_text.read(file)
            likeliest = {int(key): float(value) for key, value in raw["log probabilities"].items()}
            return cls(prompt=raw["prompt"], answer=raw["answer"], likeliest=likeliest)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{file} is not what `python -m tofc_lab.verify.vllm_answer` writes ({error!r})") from None


@dataclass(kw_only=True)
class _Comparison:
    """The two implementations on one picture: device and server (`ours`), and the whole model (`theirs`)."""

    device: Checkpoint
    server: Checkpoint
    tokenizer: PreTrainedTokenizerFast
    other: WholeModel
    image: Image.Image
    dtype: torch.dtype
    compute: str
    _reference: dict[int, Tensor] = field(default_factory=dict)

    @cached_property
    def views(self) -> list[View]:
        return views(self.image, self.device.config.rule)

    @cached_property
    def ids(self) -> list[int]:
        config = self.server.config
        cut = plan(*self.image.size, config.rule)
        counts = [config.grid(view.pixels.shape[-1]) ** 2 for view in self.views]
        layout = PictureLayout(rows=cut.rows, columns=cut.columns, crops=tuple(counts[:-1]), whole=counts[-1])
        return build(self.tokenizer, [Turn(role="user", text=QUESTION)], [layout]).ids

    def prompt(self) -> Check:
        """Compare the tokens of the prompt."""
        config = self.server.config
        cut = plan(*self.image.size, config.rule)
        crop, whole = (config.grid(side) ** 2 for side in (config.crop_size, config.global_size))
        theirs = self.other.prompt_ids(QUESTION, cut.rows, cut.columns, crop, whole)
        return Check(name="prompt tokens", figure=count_differences(self.ids, theirs), unit=f"of {len(theirs)}")

    @cached_property
    def features(self) -> list[NDArray[np.float32]]:
        tower = Tower(self.device, self.dtype, self.compute)
        return [tower.encode(view.pixels[None])[0] for view in self.views]

    def reference_features(self, index: int) -> Tensor:
        """Return the features [N, D] of a view by `reference_tower`, computed once."""
        index %= len(self.views)
        if index not in self._reference:
            self._reference[index] = self.other.features(self.views[index].pixels)
        return self._reference[index]

    def tower(self) -> Iterator[Check]:
        """Compare the features of the global view, and of the first crop if there is one."""
        for index, name in ((-1, "tower, global view"), (0, "tower, a crop")):
            if self.views[index].kind in name:
                error = relative(self.features[index], self.reference_features(index).numpy())
                yield Check(name=name, figure=error, limit=LIMITS[self.dtype][0], unit="relative error")
        yield self.on_onnx_runtime()

    def on_onnx_runtime(self) -> Check:
        """Compare the features of the global view as a device without torch computes them, always in float32."""
        name = "tower, ONNX Runtime"
        if "onnx" not in self.device.config.tower.BACKENDS:
            return Check(name=name, skipped="this tower has no graph")
        if self.device.parameter_count(VISION) > SMALL_PARAMETERS:
            return Check(name=name, skipped="the tower is too large for it: devices use torch")
        if find_spec("onnxruntime") is None:
            return Check(name=name, skipped="onnxruntime is not installed; install the extra `onnx`")
        found = OnnxTower(self.device).encode(self.views[-1].pixels[None])[0]
        error = relative(found, self.reference_features(-1).numpy())
        return Check(name=name, figure=error, limit=LIMITS[torch.float32][0], unit="relative error")

    def decoder(self) -> Iterator[Check]:
        """Compare logits and greedy answer with those of the whole model."""
        with torch.inference_mode():
            ours = self.own_reply
            gc.collect()
            visual = self.other.visual([self.reference_features(index) for index in range(len(self.views))])
            gc.collect()
            theirs = self.other.reply(self.ids, visual, most=TOKENS, keep=KEPT)
        limit = LIMITS[self.dtype][1]
        yield Check(name="logits", figure=relative(ours.logits, theirs.logits), limit=limit, unit="relative error")
        yield answer(ours, theirs)

    def vllm(self, theirs: VllmAnswer) -> Iterator[Check]:
        """Compare prompt, the most likely first tokens and the greedy answer with vLLM's."""
        unit = f"of {len(theirs.prompt)}"
        yield Check(name="vLLM, prompt tokens", figure=count_differences(self.ids, theirs.prompt), unit=unit)
        ours = torch.log_softmax(torch.from_numpy(self.own_reply.logits[-1]).double(), -1).numpy()
        tokens = np.array(list(theirs.likeliest))
        error = relative(ours[tokens], np.array(list(theirs.likeliest.values())))
        limit = LIMITS[self.dtype][1] * 10  # vLLM rounds probabilities instead of logits, and sums in another order
        yield Check(name="vLLM, log probabilities", figure=error, limit=limit, unit="relative error")
        different = count_differences(self.own_reply.answer[: len(theirs.answer)], theirs.answer)
        yield Check(name="vLLM, greedy answer", figure=different, unit=f"of {len(theirs.answer)} tokens differ")

    @cached_property
    def own_reply(self) -> Reply:
        """Logits and answer by the code of device and server."""
        projector = Projector(self.server)
        rows = np.concatenate([projector.project(features) for features in self.features])  # [F, H]
        model = load_qwen3(self.server, device=self.compute, dtype=self.dtype)
        embeds = TokenEmbedding(self.server)(self.ids)  # [T, H]
        embeds[np.array(self.ids) == self.server.config.image_token_id] = rows
        ready = torch.from_numpy(embeds)[None].to(self.compute, self.dtype)
        logits = model(inputs_embeds=ready, logits_to_keep=KEPT).logits[0].float().cpu().numpy()

        async def ask() -> list[int]:
            engine = TransformersEngine(model, [])
            try:
                return [one async for one in engine.submit(Prompt(embeds=embeds), SamplingParams(max_tokens=TOKENS))]
            finally:
                await engine.stop()

        return Reply(logits=logits, answer=asyncio.run(ask()), margins=[])


def answer(ours: Reply, theirs: Reply) -> Check:
    """Compare two greedy answers.

    If the first different token was chosen by a margin within the difference between the logits, rounding explains it:
    what follows is not compared, and the check passes.
    """
    noise = 2 * float(np.abs(ours.logits - theirs.logits).max())
    same = [a == b for a, b in zip(ours.answer, theirs.answer, strict=True)]
    first = same.index(False) if False in same else len(same)
    if first == len(same) or theirs.margins[first] > noise:
        return Check(name="greedy answer", figure=len(same) - first, unit=f"of {len(same)} tokens differ")
    return Check(name="greedy answer", unit=f"{first} tokens are equal, then come two within rounding of each other")


def count_differences(found: Sequence[int], expected: Sequence[int]) -> int:
    """Return how many tokens differ."""
    return sum(a != b for a, b in zip_longest(found, expected))


def relative(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Return the norm of the difference, divided by the norm of `expected`."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def report(checks: Iterator[Check], log: Log) -> bool:
    """Log each check as soon as it is known; return whether all passed."""
    passed = True
    for check in checks:
        log(str(check))
        passed &= not check.failed
    return passed
