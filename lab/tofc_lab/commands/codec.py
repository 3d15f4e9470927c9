"""Commands for a codec of any checkpoint: train one without labels, and measure any.

The defaults that `--help` shows repeat those of `tofc_lab.codec.train.CodecRecipe`, which needs torch and compressai.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from tofc.errors import UsageError
from tofc.terminal import say
from tofc_lab.commands.options import Device, JsonFile, Offline, Seed, chosen_dtype, named_bar, writable

app = typer.Typer()
Number = TypeVar("Number", int, float)
PANEL = "A codec for a checkpoint of your own"

Model = Annotated[str, typer.Option(help="A whole checkpoint: its folder, or OWNER/NAME on the hub.")]
Pictures = Annotated[Path, typer.Option(help="Folder of pictures like those of your devices.")]
Questions = Annotated[
    Path | None,
    typer.Option(help='One question per line, or .jsonl of {"image", "question"}.', show_default="general questions"),
]
NetworkDtype = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option(
        help="Number type of tower and decoder.", show_default="float32; not on a CPU: bfloat16, if stored so"
    ),
]
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
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write the codec to.", show_default="RUN/codec; RUN/quick with --quick"),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="A first codec in minutes: the tower alone, no questions, few pictures."),
    ] = False,
    entropy_model: Annotated[
        Literal["context", "index"] | None,
        typer.Option(help="What is sent of a feature: its components, or an index.", show_default="context"),
    ] = None,
    questions: Questions = None,
    offline: Offline = False,
    device: Device = "cpu",
    dtype: NetworkDtype = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Training steps through the decoder.", min=0, show_default="by the pictures, up to 1200"),
    ] = None,
    entropy_steps: Annotated[
        int | None,
        typer.Option(
            "--settle",
            help="Training steps of the context model alone, at the end.",
            min=0,
            show_default="by the pictures, up to 16000; index: 7000; --quick: 1000",
        ),
    ] = None,
    components: Annotated[
        int | None,
        typer.Option(help="Numbers that are coded for each feature.", min=1, max=4096, show_default="64"),
    ] = None,
    codewords: Annotated[
        str | None,
        typer.Option(
            help="Sizes of the codebooks of an index codec, of residuals too, as in 800,50,50.",
            show_default="by the pictures, up to 4096,256,256",
        ),
    ] = None,
    pictures: Annotated[
        int | None, typer.Option(help="Pictures that --quick trains on, at most.", min=1, show_default="600")
    ] = None,
    bits: Annotated[
        str | None,
        typer.Option(
            help="Target bits per feature of each quality, ascending.", show_default="4,5,6.25,7.75,9.5,11.75,14.5,18"
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures per step.", min=1, show_default="4")] = None,
    turns: Annotated[
        int | None, typer.Option(help="Questions about each picture per step, at most.", min=1, show_default="8")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(help="First tokens of each answer that the codec must preserve.", min=1, show_default="32"),
    ] = None,
    judged: Judged = 100,
    lora: Annotated[int, typer.Option(help="Rank of adapters trained on the decoder; 0: none.", min=0)] = 0,
    seed: Seed = 0,
) -> None:
    """Train a codec for a checkpoint on pictures without labels. Takes hours, --quick minutes; can be resumed."""
    kind = entropy_model or ("index" if quick else "context")
    if quick and kind != "index":
        raise UsageError(f"--quick trains the entropy model index, got --entropy-model {kind}; leave one of them out")
    through_decoder = {"--steps": steps, "--bits": bits, "--batch": batch, "--turns": turns, "--lora": lora or None}
    unused: dict[str, dict[str, Any]] = {
        "the entropy model index, which is trained without the decoder": through_decoder if kind == "index" else {},
        "--quick, which asks no questions": {"--questions": questions, "--tokens": tokens} if quick else {},
        "the entropy model context": {} if kind == "index" else {"--codewords": codewords},
        "a training without --quick, which uses all pictures": {} if quick else {"--pictures": pictures},
    }
    for what, options in unused.items():
        if given := [name for name, value in options.items() if value is not None]:
            raise UsageError(f"{given[0]} does not apply to {what}; leave it out")
    sizes, targets = _sizes(codewords), _ascending(bits)

    from tofc_lab.checkpoint.hub import locate
    from tofc_lab.codec.index.train import IndexRecipe
    from tofc_lab.codec.train import CodecRecipe
    from tofc_lab.distillation.amount import with_codewords
    from tofc_lab.distillation.experiment import Job
    from tofc_lab.distillation.source import DistillationMix

    index = None
    if kind == "index":
        index = replace(IndexRecipe(), **_without_none({"steps": entropy_steps, "components": components}))
        index = index if sizes is None else with_codewords(index, sizes)
        follows = {"steps": entropy_steps, "codewords": sizes}
    else:
        follows = {"steps": steps, "entropy_steps": entropy_steps}
    recipe = {"steps": steps, "entropy_steps": entropy_steps, "components": components, "bits": targets}
    folder = locate(model, offline=offline)
    job = Job(
        model=folder,
        data=data,
        run=run,
        out=out or run / ("quick" if quick else "codec"),
        questions=questions,
        device=device,
        dtype=_network_dtype(dtype, device, folder),
        seed=seed,
        tokens=tokens or 32,
        most_held_out=judged,
        lora=lora,
        recipe=replace(CodecRecipe(), **_without_none(recipe)),
        mix=replace(DistillationMix(), **_without_none({"batch": batch, "turns": turns})),
        index=index,
        follow=frozenset(name for name, value in follows.items() if value is None),
    )
    if quick:
        from tofc_lab.distillation.quick import PICTURES, train_quick

        train_quick(job, pictures or PICTURES, named_bar, say)
        return
    from tofc_lab.distillation.run import train_codec

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
    dtype: NetworkDtype = None,
    tokens: Tokens = 32,
    judged: Judged = 100,
    beside: Annotated[Path | None, typer.Option(help="Another codec's report.json, to compare bytes with.")] = None,
) -> None:
    """Measure bytes, divergence and agreement of any codec, on the pictures that train-codec holds out."""
    from tofc_lab.checkpoint.hub import locate
    from tofc_lab.distillation.experiment import Job
    from tofc_lab.distillation.judge import judge_codec

    folder = locate(model, offline=offline)
    job = Job(
        model=folder,
        data=data,
        run=run,
        out=writable(out),
        questions=questions,
        device=device,
        dtype=_network_dtype(dtype, device, folder),
        tokens=tokens,
        most_held_out=judged,
    )
    judge_codec(job, codec, beside, named_bar, say)


def _network_dtype(given: str | None, device: str, model: Path) -> str:
    """Return the number type of tower and decoder: float16 has too small a range to train through."""
    found = chosen_dtype(given, device, model)
    return "bfloat16" if found == "float16" else found


def _ascending(bits: str | None) -> tuple[float, ...] | None:
    """Parse --bits: positive numbers, each larger than the one before. Raises `UsageError`."""
    if bits is None:
        return None
    found = _listed(bits, float)
    if not found or any(one <= 0 for one in found) or list(found) != sorted(set(found)):
        raise UsageError(
            f"--bits must be numbers above 0, each larger than the one before, as in 8,12,19,36, got {bits}"
        )
    return found


def _sizes(codewords: str | None) -> tuple[int, ...] | None:
    """Parse --codewords: the sizes of 1 to 8 codebooks, each 2 to 8192. Raises `UsageError`."""
    if codewords is None:
        return None
    found = _listed(codewords, int)
    if not 1 <= len(found) <= 8 or not all(2 <= size <= 8192 for size in found):
        raise UsageError(
            f"--codewords must be 1 to 8 sizes of codebooks, each 2 to 8192, as in 800,50,50, got {codewords}"
        )
    return found


def _listed(text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    """Return the numbers between commas; none if one of them is not a number."""
    try:
        return tuple(kind(one) for one in text.split(","))
    except ValueError:
        return ()


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that were given."""
    return {name: value for name, value in values.items() if value is not None}
