"""One run for whoever has a GPU: whether it computes the same, how fast, and in how much memory.

    python -m benchmarks.gpu                     # at most eight minutes; writes benchmarks/results/gpu.json
    python -m benchmarks.gpu --quick             # a minute on the CPU with a tiny model: tries the benchmark itself
    python -m benchmarks.gpu --model halves      # also vLLM, where it is installed, with a split checkpoint

Networks of the released sizes with random weights, so that no checkpoint is needed; the answers are meaningless.
Promises that a part which fails, or for which no time is left, is a line of the table, and that the others are
measured. Leaves counts of kernels to `launches`, and the released weights to `tofc-lab verify --device cuda`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.launches import can_train
from edge_server.engine.base import Prompt
from edge_server.engine.sampling import SamplingParams
from edge_server.engine.transformers import TransformersEngine
from tofc import json_text
from tofc.model.config import SplitConfig
from tofc.model.perception_encoder import PerceptionEncoder
from tofc.model.torch_devices import check_device, torch_devices
from tofc_lab.checkpoint import fake

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 480.0
SEED = 0
VIEWS = 9  # of a 1920 × 1080 picture
FEATURES, QUESTION_TOKENS = 32, 40  # kept of a view; of question and template
Row = dict[str, float]


@dataclass(kw_only=True)
class Bench:
    """What is measured: a device and the model's sizes."""

    device: str
    shape: fake.Shape
    tokens: int  # of each answer
    rounds: int
    layers: int  # of the decoder whose parity is measured, as float32 of all may not fit
    quick: bool = False
    model: Path | None = None
    raw: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.raw = fake.config(fake.tokenizer(self.shape), shape=self.shape)

    @cached_property
    def config(self) -> SplitConfig:
        return SplitConfig.parse(self.raw)

    def ms(self, work: Callable[[], Any]) -> float:
        """Return the median milliseconds of `work`, after a round that warms up."""
        taken = []
        for _ in range(self.rounds + 1):
            started = time.perf_counter()
            work()
            self.wait()
            taken.append((time.perf_counter() - started) * 1e3)
        return round(statistics.median(taken[1:]), 2)

    def wait(self) -> None:
        if self.device != "cpu":
            torch.accelerator.synchronize()

    def free(self) -> None:
        """Free what a part of the benchmark left, and begin to watch the peak of memory again."""
        gc.collect()
        if self.device != "cpu":
            torch.accelerator.empty_cache()
            torch.accelerator.reset_peak_memory_stats()

    def peak_gb(self) -> Row:
        """Return the peak of the device's memory since `free`."""
        if self.device == "cpu":
            return {}
        return {"peak GB": round(torch.accelerator.max_memory_allocated() / 1e9, 2)}

    def decoder(self, device: str, dtype: torch.dtype, layers: int | None = None) -> Any:
        """Return a decoder with random weights, the same ones in every call with these arguments."""
        text = dict(self.config.text) | ({} if layers is None else {"num_hidden_layers": layers})
        torch.manual_seed(SEED)
        with torch.device(device):
            made: Any = Qwen3ForCausalLM._from_config(Qwen3Config(**text), dtype=dtype)
        return made.eval().requires_grad_(False)

    # the parts

    def tower(self) -> Row:
        """Relative errors of features, and milliseconds of a view, alone and among eight."""
        sides = sorted({self.config.crop_size, self.config.global_size})
        torch.manual_seed(SEED)
        exact = PerceptionEncoder(self.config.tower.values).eval().requires_grad_(False)
        pixels = {side: torch.randn(1, 3, side, side) for side in sides}
        with torch.inference_mode():
            wanted = exact(pixels[sides[0]])
            exact.to(self.device)
            found: Row = {"float32, error against the CPU": error(exact(pixels[sides[0]].to(self.device)), wanted)}
            exact.to(torch.bfloat16)
            half = exact(pixels[sides[0]].to(self.device, torch.bfloat16))
            found["bfloat16, error against the CPU"] = error(half, wanted)
            for side in sides:
                ready = pixels[side].to(self.device, torch.bfloat16)
                found[f"{side} px, ms a view"] = self.ms(partial(exact, ready))
                found[f"{side} px, ms a view of eight"] = round(
                    self.ms(partial(exact, ready.expand(8, -1, -1, -1))) / 8, 2
                )
        return found

    def logits(self) -> Row:
        """Relative errors of logits, with some of the layers."""
        rows = torch.randn(1, 64, self.config.hidden, generator=torch.Generator().manual_seed(SEED))
        exact = self.decoder("cpu", torch.float32, self.layers)
        with torch.inference_mode():
            wanted = exact(inputs_embeds=rows, logits_to_keep=16).logits
            exact.to(self.device)
            same = exact(inputs_embeds=rows.to(self.device), logits_to_keep=16).logits
            exact.to(torch.bfloat16)
            half = exact(inputs_embeds=rows.to(self.device, torch.bfloat16), logits_to_keep=16).logits
        return {
            "layers": self.layers,
            "float32, error against the CPU": error(same, wanted),
            "bfloat16, error against the CPU": error(half, wanted),
        }

    def answers(self, static: bool = False) -> Row:
        """Milliseconds to the first token and tokens a second of the embedded engine, with one question and with 8.

        With `static`, on a GPU as CUDA graphs; then also how many tokens of an answer are those without it.
        """
        model = self.decoder(self.device, torch.bfloat16)

        async def tokens_of(static: bool) -> list[int]:
            engine = TransformersEngine(model, [], static=static)
            try:
                return [one async for one in engine.submit(self.prompt(), SamplingParams(max_tokens=self.tokens))]
            finally:
                await engine.stop()

        async def ask(questions: int, tokens: int) -> tuple[float, float]:
            async def one() -> float:
                first = 0.0
                async for _ in engine.submit(self.prompt(), SamplingParams(max_tokens=tokens)):
                    first = first or time.perf_counter()
                return first - started

            engine = TransformersEngine(model, [], static=static)
            try:
                started = time.perf_counter()
                first = await asyncio.gather(*(one() for _ in range(questions)))
                return max(first), questions * (tokens - 1) / (time.perf_counter() - started - min(first))
            finally:
                await engine.stop()

        found: Row = {}
        asyncio.run(ask(1, 2))  # warms up
        for questions in (1, 8):
            first, speed = asyncio.run(ask(questions, self.tokens))
            found[f"{questions} at once, first token, ms"] = round(first * 1e3, 1)
            found[f"{questions} at once, tokens a second"] = round(speed, 1)
        if static:
            pairs = list(zip(*(asyncio.run(tokens_of(one)) for one in (False, True)), strict=True))
            alike = next((i for i, (one, other) in enumerate(pairs) if one != other), len(pairs))
            found[f"tokens of {len(pairs)} until one differs"] = alike
        return found | self.peak_gb()

    def prompt(self) -> Prompt:
        rows = VIEWS * FEATURES + QUESTION_TOKENS
        embeds = np.random.default_rng(SEED).standard_normal((rows, self.config.hidden)).astype(np.float32)
        return Prompt(embeds=embeds)

    def training(self) -> Row:
        """Milliseconds of train-codec's steps, and of a picture's answers; needs what `make lab` installs."""
        from tofc_lab.codec.distributed import ProcessGroup
        from tofc_lab.codec.entropy_model_trainer import EntropyModelTrainer
        from tofc_lab.codec.model import CodecModel
        from tofc_lab.codec.train import ROUND, CodecRecipe, train
        from tofc_lab.distillation.pictures import StoredPicture
        from tofc_lab.distillation.questions import GENERAL
        from tofc_lab.distillation.source import DistillationMix, DistillationSource, merged
        from tofc_lab.distillation.teacher import Teacher

        config = self.config
        side = config.grid(config.global_size)
        model = self.decoder(self.device, torch.bfloat16)
        if config.hidden >= 2048:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
            model.train()
        teacher = Teacher(
            tokenizer=fake.tokenizer(self.shape),
            model=model,
            projector=torch.randn(config.hidden, config.feature_dim, device=self.device) * config.feature_dim**-0.5,
            bias=None,
            sides=sorted({config.grid(config.crop_size), side}),
            patch=config.image_token_id,
            ends=frozenset(),
            device=torch.device(self.device),
        )
        found: Row = {}
        with tempfile.TemporaryDirectory() as folder:
            features = np.random.default_rng(SEED).standard_normal((side * side, config.feature_dim))
            file = Path(folder) / "picture.npz"
            np.savez(file, features=features.astype(np.float16), grid=np.array([0, 0, side]))
            picture = StoredPicture(path=file, digest="picture", file=file, sides=(side,), rows=0, columns=0)
            asked = [(question, tuple(range(5, 5 + self.tokens))) for question in GENERAL]
            shown, grid = merged(picture), teacher.no_grid()
            found["a picture's answers, ms"] = self.ms(lambda: teacher.answer(shown, GENERAL, self.tokens, grid))
            source = DistillationSource(
                teacher, [picture], {"picture": asked}, grid=grid, mix=DistillationMix(batch=1, turns=4), seed=SEED,
                processes=ProcessGroup(),
            )  # fmt: skip
            components = min(64, config.feature_dim)

            def run(steps: int) -> tuple[float, CodecModel]:
                recipe = CodecRecipe(components=components, warm=0, steps=steps, entropy_steps=0, measured=1)
                started = time.perf_counter()
                with tempfile.TemporaryDirectory() as out:
                    made = train(source, Path(out), recipe=recipe, log=lambda _: None)
                self.wait()
                return time.perf_counter() - started, made

            few, many = 1, 1 + 2 * self.rounds
            if not self.quick:
                run(few)  # warms up
            (once, _), (often, codec) = run(few), run(many)
            found["a step through the decoder, one picture, ms"] = round((often - once) / (many - few) * 1e3, 1)
            trainer = EntropyModelTrainer(codec.train(), source.pool(lambda view: view), SEED)
            trainer.freeze()
            found["a settling step, ms"] = round(self.ms(lambda: trainer.run([1e-3] * ROUND)) / ROUND, 2)
        return found | self.peak_gb()

    def vllm(self) -> Row:
        """Tokens a second of vLLM with the same prompts, from the server half of a split checkpoint."""
        from vllm import LLM
        from vllm import SamplingParams as VllmParams

        assert self.model is not None
        server = self.model / "server" if (self.model / "server").is_dir() else self.model
        engine = LLM(model=str(server), dtype="bfloat16", enable_prompt_embeds=True, max_model_len=4096, seed=SEED)
        rows = torch.from_numpy(self.prompt().embeds).to(torch.bfloat16)
        found: Row = {}
        for questions in (1, 8):
            taken = []
            for tokens in (1, self.tokens):
                asked: Any = [{"prompt_embeds": rows}] * questions
                params = VllmParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
                started = time.perf_counter()
                engine.generate(asked, params, use_tqdm=False)
                taken.append(time.perf_counter() - started)
            found[f"{questions} at once, first token, ms"] = round(taken[0] * 1e3, 1)
            found[f"{questions} at once, tokens a second"] = round(
                questions * (self.tokens - 1) / (taken[1] - taken[0]), 1
            )
        return found

    def parts(self) -> dict[str, Callable[[], Row] | str]:
        """Return the parts by name: how to measure each, or why it is not measured."""
        why = (
            "vLLM is not installed" if importlib.util.find_spec("vllm") is None else "" if self.model else "no --model"
        )
        return {
            "tower": self.tower,
            "decoder": self.logits,
            "embedded engine, bfloat16": self.answers,
            "embedded engine, --cuda-graph, bfloat16": partial(self.answers, static=True),
            "train-codec, bfloat16": self.training if can_train() else "needs `make lab`",
            "vLLM, bfloat16": why or self.vllm,
        }


def error(found: Tensor, wanted: Tensor) -> float:
    """Return the norm of the difference, divided by the norm of `wanted`."""
    exact = wanted.double().cpu()
    return float(f"{float((found.float().cpu().double() - exact).norm() / exact.norm()):.3g}")


def measure(bench: Bench, seconds: float = SECONDS) -> dict[str, Row | str]:
    """Measure the parts one after another until `seconds` are over; texts say why a part has no numbers."""
    started = time.monotonic()
    found: dict[str, Row | str] = {}
    for name, part in bench.parts().items():
        if isinstance(part, str):
            found[name] = part
        elif (taken := time.monotonic() - started) > seconds:
            found[name] = f"no time left after {taken:.0f} s"
        else:
            bench.free()
            try:
                found[name] = part()
            except Exception as failure:  # of a machine that nobody has tried: the other parts are worth having
                found[name] = f"failed: {type(failure).__name__}: {failure}"
        print(table({name: found[name]}), flush=True)
    return found


def table(found: dict[str, Row | str]) -> str:
    """Return rows of a table, as docs/gpu.md may take them."""
    lines = []
    for name, row in found.items():
        cells = {"": row} if isinstance(row, str) else row
        lines += [f"| {name} | {what} | {value} |" for what, value in cells.items()]
    return "\n".join(lines)


def machine(device: str) -> dict[str, str]:
    """Return what the figures depend on."""
    found = {"cpu": platform.machine(), "torch": torch.__version__, "device": device}
    if device.startswith("cuda"):
        about = torch.cuda.get_device_properties(torch.device(device))
        found |= {"gpu": about.name, "memory": f"{about.total_memory / 1e9:.0f} GB", "cuda": str(torch.version.cuda)}
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model, on the CPU unless --device says otherwise")
    parser.add_argument("--device", help="cuda, cuda:1, …; by default the first that torch finds")
    parser.add_argument("--model", type=Path, help="folder of halves, or of a server half, for vLLM")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json")
    chosen = parser.parse_args(arguments)
    names = torch_devices()
    device = chosen.device or ("cpu" if chosen.quick else [*names, "cuda"][1])
    check_device(device)  # says why there is no GPU
    if chosen.quick:
        bench = Bench(device=device, shape="tiny", tokens=4, rounds=1, layers=1, quick=True, model=chosen.model)
    else:
        bench = Bench(device=device, shape="full", tokens=64, rounds=5, layers=4, model=chosen.model)
    print("| part | | |\n| --- | --- | --- |", flush=True)
    measured = measure(bench)
    found = {
        "command": f"python -m benchmarks.gpu{' --quick' if chosen.quick else ''}",
        "date": date.today().isoformat(),
        "machine": machine(device),
        "seed": SEED,
        "measured": measured,
    }
    json_text.write(chosen.out, found)


if __name__ == "__main__":
    main()
