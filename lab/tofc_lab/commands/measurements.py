"""Commands that measure nano and its codec, and write the figures and tables of the documents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tofc.model.feature_codecs import DEFAULT
from tofc.terminal import say
from tofc_lab.commands.options import (
    ASSETS,
    NANO,
    RESULTS,
    RUN,
    Assets,
    FeatureCodec,
    JsonFile,
    Run,
    WholeCheckpoint,
    features_bar,
    writable,
)

app = typer.Typer()
PANEL = "Measurements of nano (defaults are paths in the checkout)"


@app.command(rich_help_panel=PANEL)
def evaluate(
    model: WholeCheckpoint = NANO,
    assets: Assets = ASSETS,
    run: Annotated[
        Path,
        typer.Option(help="Folder that keeps the features of the test pictures, in test/.", envvar="TOFC_LAB_RUN"),
    ] = RUN,
    out: JsonFile = RESULTS / "accuracy.json",
    feature_codec: FeatureCodec = DEFAULT,
    backend: Annotated[str, typer.Option(help="What computes the tower: numpy, onnx, torch.")] = "torch",
    dtype: Annotated[str, typer.Option(help="In which number type: float32, bfloat16, int8.")] = "float32",
    pictures: Annotated[int | None, typer.Option(help="Pictures of each kind, at most.", min=1)] = None,
) -> None:
    """Measure accuracy by family of questions on test pictures: uncompressed, merged, and through the codec."""
    from tofc_lab.nano.report import TEST_SIZES, report

    sizes = {kind: min(count, pictures or count) for kind, count in TEST_SIZES.items()}
    report(
        model,
        assets,
        run / "test",
        writable(out),
        sizes,
        features_bar,
        feature_codec=feature_codec,
        backend=backend,
        dtype=dtype,
    )


@app.command("rate-distortion", rich_help_panel=PANEL)
def rate_distortion(
    model: WholeCheckpoint = NANO,
    assets: Assets = ASSETS,
    run: Annotated[Path, typer.Option(help="Folder of computed features and outcomes, for resuming.")] = Path(
        "runs/rate-distortion"
    ),
    out: JsonFile = RESULTS / "rate_distortion.json",
    picture: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("docs/rate_distortion.png"),
    only: Annotated[
        list[str] | None,
        typer.Option(help="Compare only this method with ours; repeat it. The others stay as --out has them."),
    ] = None,
    feature_codec: FeatureCodec = DEFAULT,
    training: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a training run (`tofc-lab nano features`): vector quantisers are fitted to its features.",
            show_default="1 800 pictures, computed here",
        ),
    ] = None,
) -> None:
    """Compare bytes at equal answers: packets, image codecs, TOFC as published, simple codecs. Hours, resumable."""
    from tofc_lab.rate_distortion import compare, figure
    from tofc_lab.rate_distortion.measure import Benchmark

    writable(picture)
    benchmark = Benchmark.open(model, assets, run, compare.SIZES, features_bar, training, feature_codec)
    compare.compare(benchmark, run, writable(out), say, only)
    figure.draw(out, picture)


@app.command("image-files", rich_help_panel=PANEL)
def image_files(
    codec: Annotated[Path, typer.Option(help="Folder of the codec's files.")] = NANO,
    comparison: Annotated[Path, typer.Option(help="JSON file of `tofc-lab rate-distortion`.")] = RESULTS
    / "rate_distortion.json",
) -> None:
    """Write which image files answer as well as the codec's presets, for `device-client --mode auto`."""
    from tofc_lab.rate_distortion import equal_files

    say(f"wrote {equal_files.write(comparison, codec)}")


@app.command(rich_help_panel=PANEL)
def curves(
    run: Run = RUN,
    report: Annotated[Path, typer.Option(help="JSON file of `tofc-lab evaluate`.")] = RESULTS / "accuracy.json",
    comparison: Annotated[Path, typer.Option(help="JSON file of `tofc-lab rate-distortion`.")] = RESULTS
    / "rate_distortion.json",
    out: Annotated[Path, typer.Option(help="Folder to write the pictures to.")] = Path("docs"),
) -> None:
    """Draw accuracy.png, rate_distortion.png and, from a run's logs, training.png (nano's: models/nano/training)."""
    from tofc_lab.nano import curves
    from tofc_lab.rate_distortion import figure

    curves.accuracy(report, out / "accuracy.png")
    curves.training(run, out / "training.png")
    figure.draw(comparison, out / "rate_distortion.png")


@app.command(rich_help_panel=PANEL)
def tables(
    results: Annotated[
        Path, typer.Option(help="Folder of the JSON files of evaluate, rate-distortion and benchmarks.end_to_end.")
    ] = RESULTS,
) -> None:
    """Write the tables of README, of nano's card and of docs/ from the measurements in JSON."""
    from tofc_lab import tables
    from tofc_lab.nano.pacore import table

    docs = Path("docs")
    tables.replace(docs / "pacore.md", table.tables(results / "pacore.json"))
    tables.write(results, Path("README.md"), NANO / "README.md", docs / "rate_distortion.md", docs / "latency.md")
