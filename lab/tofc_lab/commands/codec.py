"""Commands for a codec of any checkpoint: train one without labels, and measure any.

The defaults that `--help` shows repeat those of `tofc_lab.codec.train.CodecRecipe`, which needs torch and compressai.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tofc.errors import UsageError
from tofc.terminal import say
from tofc_lab.commands.options import JsonFile, Offline, Seed, named_bar, writable

app = typer.Typer()
PANEL = "A codec for a checkpoint of your own"

Model = Annotated[str, typer.Option(help="A whole checkpoint: its folder, or OWNER/NAME on the hub.")]
Pictures = Annotated[Path, typer.Option(help="Folder of pictures like those of your devices.")]
Questions = Annotated[
    Path | None,
    typer.Option(help='One question per line, or .jsonl of {"image", "question"}.', show_default="general questions"),
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
NetworkDtype = Annotated[Literal["float32", "bfloat16"], typer.Option(help="Number type of tower and decoder.")]
Tokens = Annotated[int, typer.Option(help="First tokens of each answer that the codec must preserve.", min=1)]
Judged = Annotated[
    int,
    typer.Option(help="Held-out pictures to report on, at most; as many again are held out to choose rates.", min=1),
]


@app.command("train-codec", rich_help_panel=PANEL)
def train_codec(
    model: Model,
    data: Pictures,
    run: Annotated[Path, typer.Option(help="Folder of features, answers and training state.")] = Path("runs/codec"),
    out: Annotated[Path | None, typer.Option(help="Folder to write the codec to.", show_default="RUN/codec")] = None,
    questions: Questions = None,
    offline: Offline = False,
    device: Device = "cpu",
    dtype: NetworkDtype = "float32",
    steps: Annotated[
        int | None, typer.Option(help="Training steps through the decoder.", min=0, show_default="1200")
    ] = None,
    entropy_steps: Annotated[
        int | None,
        typer.Option(
            "--settle", help="Training steps of the context model alone, at the end.", min=0, show_default="16000"
        ),
    ] = None,
    components: Annotated[
        int | None,
        typer.Option(help="Numbers that are coded for each feature.", min=1, max=4096, show_default="64"),
    ] = None,
    bits: Annotated[
        str | None,
        typer.Option(
            help="Target bits per feature of each quality, ascending.", show_default="4,5,6.25,7.75,9.5,11.75,14.5,18"
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Pictures per step.", min=1)] = 4,
    turns: Annotated[int, typer.Option(help="Questions about each picture per step, at most.", min=1)] = 8,
    tokens: Tokens = 32,
    judged: Judged = 100,
    lora: Annotated[int, typer.Option(help="Rank of adapters trained on the decoder; 0: none.", min=0)] = 0,
    seed: Seed = 0,
) -> None:
    """Train a codec for a checkpoint on pictures without labels. Takes hours; an interrupted run is resumed."""
    from tofc_lab.checkpoint.hub import locate
    from tofc_lab.codec.train import CodecRecipe
    from tofc_lab.distillation.experiment import Job
    from tofc_lab.distillation.run import train_codec
    from tofc_lab.distillation.source import DistillationMix

    given: dict[str, Any] = {
        "steps": steps,
        "entropy_steps": entropy_steps,
        "components": components,
        "bits": _ascending(bits),
    }
    job = Job(
        model=locate(model, offline=offline),
        data=data,
        run=run,
        out=out or run / "codec",
        questions=questions,
        device=device,
        dtype=dtype,
        seed=seed,
        tokens=tokens,
        most_held_out=judged,
        lora=lora,
        recipe=replace(CodecRecipe(), **{name: value for name, value in given.items() if value is not None}),
        mix=DistillationMix(batch=batch, turns=turns),
    )
    train_codec(job, named_bar, say)


@app.command("judge-codec", rich_help_panel=PANEL)
def judge_codec(
    model: Model,
    data: Pictures,
    codec: Annotated[Path, typer.Option(help="Folder of the codec to measure.")],
    out: JsonFile,
    run: Annotated[Path, typer.Option(help="Folder of features and answers, as for train-codec.")] = Path("runs/codec"),
    questions: Questions = None,
    offline: Offline = False,
    device: Device = "cpu",
    dtype: NetworkDtype = "float32",
    tokens: Tokens = 32,
    judged: Judged = 100,
    beside: Annotated[Path | None, typer.Option(help="Another codec's report.json, to compare bytes with.")] = None,
) -> None:
    """Measure bytes, divergence and agreement of any codec, on the pictures that train-codec holds out."""
    from tofc_lab.checkpoint.hub import locate
    from tofc_lab.distillation.experiment import Job
    from tofc_lab.distillation.judge import judge_codec

    job = Job(
        model=locate(model, offline=offline),
        data=data,
        run=run,
        out=writable(out),
        questions=questions,
        device=device,
        dtype=dtype,
        tokens=tokens,
        most_held_out=judged,
    )
    judge_codec(job, codec, beside, named_bar, say)


def _ascending(bits: str | None) -> tuple[float, ...] | None:
    """Parse --bits: positive numbers, each larger than the one before. Raises `UsageError`."""
    if bits is None:
        return None
    try:
        found = tuple(float(one) for one in bits.split(","))
    except ValueError:
        found = ()
    if not found or any(one <= 0 for one in found) or list(found) != sorted(set(found)):
        raise UsageError(
            f"--bits must be numbers above 0, each larger than the one before, as in 8,12,19,36, got {bits}"
        )
    return found
