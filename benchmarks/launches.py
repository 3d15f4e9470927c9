"""How many kernels a GPU would be told to run, and how often the CPU would wait for it: per view, token and step.

    python -m benchmarks.launches        # a minute without a GPU; writes benchmarks/results/launches.json

Counts operators on a pretended GPU (`pretended_gpu`), with the released numbers of layers at a tiny width: widths do
not change the count. An operator is about one kernel; those that only change a tensor's shape count as none. Promises
counts, which are the same on every machine and in every run. Leaves times to `benchmarks.gpu`.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.pretended_gpu import on_gpu, pretend_gpu
from edge_server.engine.base import Prompt
from edge_server.engine.sampling import SamplingParams
from edge_server.engine.transformers import TransformersEngine
from tofc import json_text
from tofc.model.checkpoint import Checkpoint
from tofc.model.perception_encoder import PerceptionEncoder
from tofc.model.prompt import PictureLayout
from tofc_lab.checkpoint import fake
from tofc_lab.distillation.teacher import PictureInput, Teacher

ROOT = Path(__file__).resolve().parents[1]
DECODER_LAYERS, TOWER_LAYERS = 36, 47  # of the released model
HIDDEN, VOCABULARY = 32, 64
QUESTIONS = 8  # about a picture
_aten = torch.ops.aten
_SYNCING = {_aten._local_scalar_dense.default, _aten.nonzero.default, _aten.masked_select.default}
_FREE = {_aten._unsafe_view.default, _aten.empty_like.default, _aten.new_empty.default, _aten.new_empty_strided.default}


@dataclass(kw_only=True)
class Launches:
    """What happened on the GPU."""

    operators: int = 0
    copies_to_host: int = 0
    copies_to_gpu: int = 0
    syncs: int = 0  # waits of the CPU for a number, or for the size of a result; each copy to the host is one more

    def observe(self, func: Any, given: list[Tensor]) -> None:
        """Count an operator that takes these tensors."""
        if func is _aten.copy_.default and on_gpu(given[0]) != on_gpu(given[1]):
            if on_gpu(given[0]):
                self.copies_to_gpu += 1
            else:
                self.copies_to_host += 1
        elif func in _SYNCING:
            self.syncs += 1
        elif not func.is_view and func not in _FREE:
            self.operators += 1

    def each(self, before: Launches, count: int) -> dict[str, float]:
        """Return what was counted since `before`, divided by a count of views, tokens or steps."""
        then = asdict(before)
        return {name: round((value - then[name]) / count, 1) for name, value in asdict(self).items()}


@contextmanager
def counted() -> Iterator[Launches]:
    """Count what happens on a pretended GPU in a `with` block."""
    found = Launches()
    with pretend_gpu(observer=found.observe):
        yield found


def growth(work: Callable[[int], Any], few: int, many: int) -> dict[str, float]:
    """Return what `work(many)` takes more than `work(few)`, for each more: without what happens once only."""
    totals = []
    for count in (few, many):
        with counted() as found:
            work(count)
        totals.append(found)
    return totals[1].each(totals[0], many - few)


def a_view() -> dict[str, float]:
    """Count a view in the tower."""
    vision = {
        "hidden_size": HIDDEN, "num_attention_heads": 2, "num_channels": 3, "patch_size": 14, "image_size": 728,
        "layer_norm_eps": 1e-5, "num_hidden_layers": TOWER_LAYERS, "mlp_ratio": 2.0, "layer_scale_init_value": 0.1,
    }  # fmt: skip
    with counted() as found, torch.inference_mode():
        tower = PerceptionEncoder(vision).to("cuda")
        before = Launches(**asdict(found))
        tower(torch.zeros(1, 3, 728, 728, device="cuda"))
    return found.each(before, 1)


def a_token(**sampling: Any) -> dict[str, float]:
    """Count a token of the embedded engine."""
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=HIDDEN, num_hidden_layers=DECODER_LAYERS, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=64, vocab_size=VOCABULARY, max_position_embeddings=256, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    prompt = Prompt(embeds=np.random.default_rng(0).standard_normal((9, HIDDEN)).astype(np.float32))

    async def answer(tokens: int) -> None:
        engine = TransformersEngine(Qwen3ForCausalLM(config).to("cuda").eval(), [])
        try:
            async for _ in engine.submit(prompt, SamplingParams(max_tokens=tokens, **sampling)):
                pass
        finally:
            await engine.stop()

    return growth(lambda tokens: asyncio.run(answer(tokens)), 4, 12)


def an_answer(folder: Path) -> dict[str, float]:
    """Count a token of all of a picture's answers together, as train-codec and judge-codec compute them."""
    checkpoint = Checkpoint.open(folder)
    config, rng = checkpoint.config, np.random.default_rng(0)
    cells = config.grid(config.global_size) ** 2
    picture = PictureInput(
        features=rng.standard_normal((cells, config.feature_dim)).astype(np.float32),
        sides=np.full(cells, config.grid(config.global_size)),
        cells=np.arange(cells),
        layout=PictureLayout(whole=cells),
    )

    def answer(tokens: int) -> None:
        teacher = Teacher.open(checkpoint, device=torch.device("cuda"), dtype=torch.float32, ends=[])
        teacher.answer(picture, [f"question {number}?" for number in range(QUESTIONS)], tokens, teacher.no_grid())

    return growth(answer, 2, 6)


def steps(folder: Path) -> dict[str, dict[str, float]]:
    """Count the steps of `train-codec`: through the decoder, and of the entropy model alone (settling)."""
    from tofc_lab.codec.distributed import ProcessGroup
    from tofc_lab.codec.entropy_model_trainer import EntropyModelTrainer
    from tofc_lab.codec.places import Pool
    from tofc_lab.codec.train import ROUND, CodecRecipe, new_model, train
    from tofc_lab.distillation.pictures import StoredPicture
    from tofc_lab.distillation.source import DistillationMix, DistillationSource

    checkpoint = Checkpoint.open(folder)
    side = checkpoint.config.grid(checkpoint.config.global_size)
    features = np.random.default_rng(0).standard_normal((side * side, checkpoint.config.feature_dim))
    np.savez(folder / "picture.npz", features=features.astype(np.float16), grid=np.array([0, 0, side]))
    picture = StoredPicture(
        path=folder, digest="picture", file=folder / "picture.npz", sides=(side,), rows=0, columns=0
    )

    def through_the_decoder(count: int) -> None:
        teacher = Teacher.open(checkpoint, device=torch.device("cuda"), dtype=torch.float32, ends=[])
        source = DistillationSource(
            teacher, [picture], {"picture": [("what?", (5, 6))]}, grid=teacher.no_grid(),
            mix=DistillationMix(batch=2, merged=0.0), seed=0, processes=ProcessGroup(),
        )  # fmt: skip
        recipe = CodecRecipe(warm=0, steps=count, entropy_steps=0, measured=1)
        with tempfile.TemporaryDirectory() as out:
            train(source, Path(out), recipe=recipe, log=lambda _: None)

    def settling(count: int) -> None:
        model = new_model(CodecRecipe(), features.shape[1]).to("cuda").train()
        view = torch.from_numpy(features).half()
        trainer = EntropyModelTrainer(model, Pool.of(view, [(side, np.arange(side * side))]), seed=0, batch=100)
        trainer.freeze()
        for _ in range(count // ROUND):
            trainer.run([1e-3] * ROUND)

    return {
        "a step through the decoder, 2 layers": growth(through_the_decoder, 1, 3),
        "a settling step": growth(settling, ROUND, 3 * ROUND),
    }


def can_train() -> bool:
    """Tell whether what training needs is installed (`make lab`)."""
    try:
        import tofc_lab.codec.compressai_parts  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def serving() -> dict[str, dict[str, float]]:
    """Count what needs nothing but a server's requirements."""
    found = {
        f"a view, {TOWER_LAYERS} layers": a_view(),
        f"a token, greedy, {DECODER_LAYERS} layers": a_token(),
        f"a token, sampled, {DECODER_LAYERS} layers": a_token(temperature=1.0, top_p=0.9, top_k=20),
    }
    with tempfile.TemporaryDirectory() as folder:
        fake.write(Path(folder))
        found[f"a token of {QUESTIONS} answers of training, 2 layers"] = an_answer(Path(folder))
    return found


def training() -> dict[str, dict[str, float]]:
    """Count the steps of train-codec, which need what `make lab` installs."""
    with tempfile.TemporaryDirectory() as folder:
        fake.write(Path(folder))
        return steps(Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "launches.json")
    chosen = parser.parse_args()
    found = {
        "command": "python -m benchmarks.launches",
        "date": date.today().isoformat(),
        "counted on": f"a pretended GPU, torch {torch.__version__}",
        "launches": serving() | training(),
    }
    json_text.write(chosen.out, found)
    print(json_text.dumps(found, indent=1))


if __name__ == "__main__":
    main()
