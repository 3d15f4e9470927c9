"""``tofc-lab``: every step from nothing to a shipped model, each resumable, and the figures about it.

Promises that the commands of `tofc-lab nano`, in their order, are the recipe of the shipped model. Thin: the
work is in the modules named by the commands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
    track,
)

from shared import json_text
from shared.command import Commands, Program
from shared.install import install
from shared.sentence import sentence
from shared.terminal import note, say

if TYPE_CHECKING:
    from lab.nano.features import Sizes


class Lab(Commands):
    """What is wrong with the input is a sentence and exit code 2, whichever command finds it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # nobody reads any more: `Program` ends quietly
            raise
        except (ValueError, OSError, ImportError) as error:
            # Without a name it is one of ours, which says itself what to install.
            advice = f"; {install('lab')}" if isinstance(error, ImportError) and error.name else ""
            note(f"error: {sentence(error)}{advice}")
            raise typer.Exit(2) from None


app = Program(
    cls=Lab, help="Train nano, or a codec for another checkpoint; open, check and split checkpoints; measure."
)
nano = typer.Typer(no_args_is_help=True, help="Train nano: assets → tower → features → decoder → codec → export.")
app.add_typer(nano, name="nano")

Dtype = Literal["float32", "bfloat16", "float16"]
Assets = Annotated[Path, typer.Option(help="Folder of fonts and photographs.", envvar="TOFC_LAB_ASSETS")]
Run = Annotated[Path, typer.Option(help="Folder of checkpoints, features and logs of this run.", envvar="TOFC_LAB_RUN")]
ASSETS, RUN = Path("runs/assets"), Path("runs/nano")
SIZES: Sizes = {
    ("world", "train"): 24_000,
    ("large", "train"): 1600,
    ("easy", "train"): 2500,
    ("world", "validation"): 300,
}
TEST_SIZES: Sizes = {("world", "test"): 1000, ("large", "test"): 150, ("easy", "test"): 1000}


def _bar(chunks: Iterable[int], total: int) -> Iterable[int]:
    return track(chunks, total=total, description="features")


@contextmanager
def _bytes() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for each kind of work."""
    columns = (TextColumn("{task.description:8}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        bars: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done)

        yield tell


def _named_bar(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    return track(items, total=total, description=what, console=Console(stderr=True))


def _writable(out: Path) -> Path:
    """``out``, whose folder is made: what takes hours must not fail when it is written."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir():
        raise ValueError(f"{out} is a folder; name a file")
    return out


def _numbers(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        found = tuple(float(one) for one in text.split(","))
    except ValueError:
        found = ()
    if not found or any(one <= 0 for one in found) or list(found) != sorted(set(found)):
        raise ValueError(f"--bits {text}: numbers above 0, each larger than the one before, as in 8,12,19,36")
    return found


@app.command()
def assets(out: Annotated[Path, typer.Option(help="Where to.")] = ASSETS) -> None:
    """Download fonts and photographs from Debian's packages (nothing is installed)."""
    from lab.world import assets as world_assets

    world_assets.fetch(out)
    for split in ("train", "validation", "test"):
        say(f"{split}: {len(world_assets.photographs(out, split))} photographs")


@nano.command()
def tower(assets: Assets = ASSETS, run: Run = RUN, seed: int = 0) -> None:
    """Train the vision tower on labelled cells, small canvases first."""
    from lab.nano import tokenizer, tower

    tower.train(assets, run, seed=seed)
    tokenizer.train(assets, run / "tokenizer", seed=seed)


@nano.command()
def features(assets: Assets = ASSETS, run: Run = RUN, seed: int = 0) -> None:
    """Compute the features of the training pictures once."""
    from lab.nano import features
    from lab.nano.tower import encoder

    for (kind, split), count in SIZES.items():
        features.compute(
            assets,
            features.folder(run),
            encoder(run / "tower.pt"),
            kind=kind,
            split=split,
            count=count,
            seed=seed,
            progress=_bar,
        )


@nano.command()
def pictures(
    out: Annotated[Path, typer.Argument(help="Where to.")],
    assets: Assets = ASSETS,
    count: Annotated[int, typer.Option(help="336 px pictures; a twentieth as many large ones more.")] = 3000,
    turns: Annotated[int, typer.Option(help="Questions about each.")] = 8,
    seed: Annotated[int, typer.Option(help="0: those that nano and its codec were trained on.")] = 1,
) -> None:
    """Draw pictures of nano's world as files with questions.jsonl, as a user of `train-codec` has them."""
    from lab.nano.files import draw

    draw(assets, out, {"world": count, "large": count // 20}, turns, seed, _named_bar)


@nano.command()
def decoder(
    run: Run = RUN,
    seed: int = 0,
    start: Annotated[Path | None, typer.Option(help="Go on from the decoder.pt of another run.")] = None,
    codec: Annotated[Path | None, typer.Option(help="Checkpoint whose codec makes features coarse.")] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate; less of it when going on.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps in all.")] = None,
) -> None:
    """Train projector, grid embedding and decoder on the computed features."""
    from transformers import PreTrainedTokenizerFast

    from lab.nano import decoder, features
    from lab.nano.rough import Coded
    from shared.codec.codec import Codec

    recipe = decoder.Recipe()
    recipe = replace(recipe, rate=rate or recipe.rate, steps=steps or recipe.steps)
    folder = features.folder(run)
    world, large, easy, validation = (features.load(folder, *key, count) for key, count in SIZES.items())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(run / "tokenizer")
    decoder.train(
        world,
        large,
        easy,
        validation,
        tokenizer,
        run,
        basis=folder.name,
        start=start,
        coarsen=None if codec is None else Coded(Codec.load(codec)),
        recipe=recipe,
        seed=seed,
    )


@nano.command()
def codec(
    run: Run = RUN,
    seed: int = 0,
    start: Annotated[Path | None, typer.Option(help="Go on from the transform of this checkpoint's codec.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps through the decoder.")] = None,
) -> None:
    """Train the codec through the frozen decoder."""
    from lab.codec import train
    from lab.nano import features
    from lab.nano.answerer import load
    from lab.nano.source import NanoSource
    from lab.resume import fingerprint
    from shared.codec.weights import CodecWeights

    folder = features.folder(run)
    world, large, easy, _ = (features.load(folder, *key, count) for key, count in SIZES.items())
    answerer, tokenizer = load(run, world[0].features.shape[1])
    recipe = train.Recipe()
    train.train(
        NanoSource(answerer, tokenizer, world, large, easy, seed=seed),
        run,
        basis=fingerprint(run / "decoder.pt"),
        start=None if start is None else CodecWeights.load(start),
        recipe=replace(recipe, steps=recipe.steps if steps is None else steps),
        seed=seed,
    )


@nano.command()
def experts(
    model: Annotated[Path, typer.Argument(help="A checkpoint with a codec.")] = Path("models/nano"),
    run: Run = RUN,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("benchmarks/results/experts.json"),
) -> None:
    """Bits a feature with hyperpriors of 1, 4 and 16 experts, and with the context model. Minutes for each."""
    from lab.codec.experts import trial
    from lab.nano import features
    from shared.codec.codec import Codec
    from shared.model.checkpoint import Checkpoint

    folder = features.folder(run)
    world, validation = features.load(folder, "world", "train", 6000), features.load(folder, "world", "validation", 300)
    trial(Codec.load(model), world, validation, _writable(out), codec_id=Checkpoint.open(model).codec_id, quality=4)


@nano.command()
def export(
    run: Run = RUN,
    out: Annotated[Path, typer.Option(help="Where the checkpoint goes.")] = Path("models/nano"),
) -> None:
    """Write the trained parts as a checkpoint with the released tensor names."""
    from lab.nano.export import export_run

    export_run(run, out)


@nano.command()
def unpack(
    model: Annotated[Path, typer.Argument(help="A whole checkpoint.")] = Path("models/nano"), run: Run = RUN
) -> None:
    """Turn a shipped checkpoint back into a run, to train on from it (`decoder --start`)."""
    from lab.nano.unpack import unpack

    unpack(model, run)
    say(f"{run}: tower.pt, decoder.pt, tokenizer/")


@app.command()
def examples(assets: Assets = ASSETS) -> None:
    """Draw the pictures that ship: the demo's and the tests'."""
    from lab.examples import write

    write(assets, Path("models/nano"), Path("tests/e2e/pictures"))


@app.command("fake-checkpoint")
def fake_checkpoint(
    out: Annotated[Path, typer.Argument(help="Where to.")],
    shape: Annotated[Literal["tiny", "full"], typer.Option(help="full: the released sizes, 20 GB.")] = "tiny",
    seed: int = 0,
) -> None:
    """Write random weights in the released format, to try everything that comes before good answers."""
    import torch

    from lab import fake

    with _bytes() as tell:
        fake.write(
            out,
            shape=shape,
            seed=seed,
            image_size=fake.RELEASED_SIZE,
            dtype=torch.bfloat16,
            shard_bytes=2 << 30 if shape == "full" else 100_000,
            tell=lambda done, total: tell("writing", done, total),
        )
    say(f"{out}: {sum(file.stat().st_size for file in out.iterdir()) / 1e6:.1f} MB")


@app.command()
def split(
    model: Annotated[str, typer.Argument(help="A whole checkpoint: its folder, or OWNER/NAME on the hub.")],
    out: Annotated[Path, typer.Option(help="Where device/ and server/ go.")],
    codec: Annotated[Path | None, typer.Option(help="Folder of its codec, if that is another.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Take only what the hub's cache has.")] = False,
) -> None:
    """Split a checkpoint into what the device needs and what the server needs. Goes on where it was stopped."""
    from lab.checkpoint import split
    from lab.hub import locate

    whole = locate(model, offline=offline)
    with _bytes() as tell:
        halves = split(whole, out, codec=codec, tell=tell)
    for side, path in (("device", halves.device), ("server", halves.server)):
        size = sum(file.stat().st_size for file in path.iterdir())
        say(f"{side}: {path} {size / 1e6:.1f} MB")
    say(f"model {halves.model_id} codec {halves.codec_id}")


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help="A whole checkpoint or the folder of both halves; OWNER/NAME too.")],
    picture: Annotated[Path | None, typer.Option(help="A picture of your own.")] = None,
    vllm: Annotated[
        Path | None, typer.Option(help="What `python -m lab.vllm_answer` wrote about this picture.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="What the networks compute in.")] = "float32",
    offline: Annotated[bool, typer.Option("--offline", help="Take only what the hub's cache has.")] = False,
) -> None:
    """Compare each part of a checkpoint with an independent implementation; exit code 1 if one differs."""
    from lab.step3p7 import import_torchvision

    torchvision = import_torchvision()  # before transformers
    import torch

    from lab.hub import locate
    from lab.verify import report, verify
    from lab.whole_model import quiet

    with quiet():
        outcomes = verify(
            locate(model, offline=offline),
            picture,
            dtype=getattr(torch, dtype),
            torchvision=torchvision,
            vllm=vllm,
        )
        fine = report(outcomes, say)
    if not fine:
        raise typer.Exit(1)


@app.command("features")
def view_features(
    model: Annotated[str, typer.Argument(help="A whole checkpoint, the device half, or the folder of both halves.")],
    picture: Annotated[Path, typer.Argument(help="A picture.")],
    out: Annotated[Path, typer.Option(help="The .npz to write.")],
    dtype: Annotated[Dtype, typer.Option(help="What the tower computes in.")] = "float32",
    offline: Annotated[bool, typer.Option("--offline", help="Take only what the hub's cache has.")] = False,
) -> None:
    """Write each view's pixels, features before merging, and what the projector makes of them."""
    import torch

    from lab.hub import locate
    from lab.view_features import write

    write(locate(model, offline=offline), picture, out, dtype=getattr(torch, dtype), tell=say)
    say(f"{out} {out.stat().st_size / 1e6:.1f} MB")


@app.command("train-codec")
def train_codec(
    model: Annotated[str, typer.Option(help="A whole checkpoint: its folder, or OWNER/NAME on the hub.")],
    data: Annotated[Path, typer.Option(help="Folder of pictures.")],
    run: Annotated[Path, typer.Option(help="Folder of features, answers and checkpoints.")] = Path("runs/codec"),
    out: Annotated[Path | None, typer.Option(help="Where the codec goes.", show_default="RUN/codec")] = None,
    questions: Annotated[
        Path | None, typer.Option(help='One a line, or .jsonl of {"image", "question"}; else general ones.')
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Take only what the hub's cache has.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of tower and decoder.")] = "float32",
    steps: Annotated[int | None, typer.Option(help="Steps through the decoder.", min=0)] = None,
    settle: Annotated[int | None, typer.Option(help="Steps of the context model at the end.", min=0)] = None,
    components: Annotated[int | None, typer.Option(help="Numbers coded of a feature.", min=1, max=4096)] = None,
    bits: Annotated[str | None, typer.Option(help="Of a feature, by quality: 8,12,19,36")] = None,
    batch: Annotated[int, typer.Option(help="Pictures a step.", min=1)] = 4,
    turns: Annotated[int, typer.Option(help="Questions about each.", min=1)] = 8,
    tokens: Annotated[int, typer.Option(help="How much of an answer is matched.", min=1)] = 32,
    judged: Annotated[
        int, typer.Option(help="Held-out pictures at most, and as many to choose rates on.", min=1)
    ] = 100,
    lora: Annotated[
        int, typer.Option(help="Rank of adapters trained on the decoder; 0: it stays as it is.", min=0)
    ] = 0,
    seed: int = 0,
) -> None:
    """Train a codec for a checkpoint on pictures without labels. Hours; goes on where it was stopped."""
    from lab.codec.train import Recipe
    from lab.hub import locate
    from lab.matching.run import Job, train_codec
    from lab.matching.source import Mix

    given: dict[str, Any] = {
        "steps": steps,
        "settle": settle,
        "components": components,
        "bits": _numbers(bits),
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
        judged=judged,
        lora=lora,
        recipe=replace(Recipe(), **{name: value for name, value in given.items() if value is not None}),
        mix=Mix(batch=batch, turns=turns),
    )
    train_codec(job, _named_bar, say)


@app.command("judge-codec")
def judge_codec(
    model: Annotated[str, typer.Option(help="A whole checkpoint: its folder, or OWNER/NAME on the hub.")],
    data: Annotated[Path, typer.Option(help="Folder of pictures.")],
    codec: Annotated[Path, typer.Option(help="Folder of the codec.")],
    out: Annotated[Path, typer.Option(help="Where the figures go, JSON.")],
    run: Annotated[Path, typer.Option(help="Folder of features and answers.")] = Path("runs/codec"),
    questions: Annotated[Path | None, typer.Option(help="As for train-codec.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Take only what the hub's cache has.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of tower and decoder.")] = "float32",
    tokens: Annotated[int, typer.Option(help="How much of an answer is matched.", min=1)] = 32,
    judged: Annotated[
        int, typer.Option(help="Held-out pictures at most, and as many to choose rates on.", min=1)
    ] = 100,
    beside: Annotated[Path | None, typer.Option(help="Another codec's report.json, to compare bytes with.")] = None,
) -> None:
    """Bytes, divergence and agreement of any codec, on the pictures that train-codec holds out."""
    from lab.codec.team import Team
    from lab.hub import locate
    from lab.matching.judge import compare
    from lab.matching.run import Bench, Job
    from shared.codec.codec import Codec

    job = Job(
        model=locate(model, offline=offline),
        data=data,
        run=run,
        out=_writable(out),
        questions=questions,
        device=device,
        dtype=dtype,
        tokens=tokens,
        judged=judged,
    )
    loaded = Codec.load(codec)
    other = None if beside is None else json_text.read(beside)
    if not isinstance(other, dict | None):
        raise ValueError(f"--beside {beside} is not the report.json of a codec")
    bench = Bench(job, Team(), _named_bar, say, codec=codec, beside=other)
    if other is not None:
        bench.check_comparable(other)
    report = bench.report(bench.judge(loaded)[1])
    if bench.team.rank:
        return
    if other is not None:
        report["beside"] = compare(report, other)
        ratio = report["beside"]["bytes at equal divergence"]
        said = "they share no divergence" if ratio is None else f"{ratio:.3f} × the bytes at equal divergence"
        say(f"{beside} beside {codec}: {said}")
    json_text.write(out, report)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A whole checkpoint.")] = Path("models/nano"),
    assets: Assets = ASSETS,
    run: Run = RUN,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("benchmarks/results/accuracy.json"),
) -> None:
    """Accuracy per family on the test split: uncompressed, merged, and through the codec."""
    from lab.report import report

    report(model, assets, run / "test", _writable(out), TEST_SIZES, _bar)


@app.command("rate-distortion")
def rate_distortion(
    model: Annotated[Path, typer.Argument(help="A whole checkpoint.")] = Path("models/nano"),
    assets: Assets = ASSETS,
    run: Annotated[Path, typer.Option(help="Folder of what has been computed.")] = Path("runs/rate-distortion"),
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("benchmarks/results/rate_distortion.json"),
    picture: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("docs/rate_distortion.png"),
) -> None:
    """Bytes at equal answers: packets, image codecs, TOFC as published, simple codecs. Hours, resumable."""
    from lab.rate_distortion import compare, figure
    from lab.rate_distortion.measure import Bench

    _writable(picture)
    compare.compare(Bench(model, assets, run, compare.SIZES, _bar), run, _writable(out), say)
    figure.draw(out, picture)


@app.command()
def curves(
    run: Run = RUN,
    report: Annotated[Path, typer.Option(help="What `evaluate` wrote.")] = Path("benchmarks/results/accuracy.json"),
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("docs"),
) -> None:
    """Draw training.png from a run's logs and accuracy.png from the report."""
    from lab import curves

    curves.accuracy(report, out / "accuracy.png")
    curves.training(run, out / "training.png")


@app.command()
def tables(
    results: Annotated[Path, typer.Option(help="What `evaluate` and the benchmarks wrote.")] = Path(
        "benchmarks/results"
    ),
) -> None:
    """Write the tables of README, of nano's card and of the comparison from the figures in JSON."""
    from lab import tables

    tables.write(results, Path("README.md"), Path("models/nano/README.md"), Path("docs/rate_distortion.md"))


if __name__ == "__main__":
    app()
