"""Commands for any checkpoint: split it, verify it, write its features, and make a random one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tofc.model.feature_codecs import DEFAULT, is_name
from tofc.model.tower_config import DEFAULT as DEFAULT_TOWER
from tofc.model.tower_config import TOWERS
from tofc.terminal import say
from tofc_lab.commands.options import BY_DEVICE, Device, Dtype, Offline, Seed, byte_bars, chosen_dtype

app = typer.Typer()
PANEL = "Checkpoints"


@app.command(rich_help_panel=PANEL)
def split(
    model: Annotated[str, typer.Argument(help="A whole checkpoint: its folder, or OWNER/NAME on the hub.")],
    out: Annotated[Path, typer.Option(help="Folder to write device/ and server/ to.")],
    codec: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder of its default codec, if not the checkpoint's. NAME=FOLDER, repeatable: a further codec, for "
            "--feature-codec NAME.",
            metavar="[NAME=]FOLDER",
            show_default=False,
        ),
    ] = None,
    offline: Offline = False,
) -> None:
    """Split a checkpoint into the halves for device and server. An interrupted split is resumed."""
    from tofc_lab.checkpoint.hub import locate
    from tofc_lab.checkpoint.split import split

    whole = locate(model, offline=offline)
    with byte_bars() as progress:
        halves = split(whole, out, codecs=dict(map(_named_codec, codec or ())), progress=progress)
    for side, path in (("device", halves.device), ("server", halves.server)):
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        say(f"{side}: {path} {size / 1e6:.1f} MB")
    codecs = [halves.codec_id, *(f"{name} {codec_id}" for name, codec_id in halves.codecs.items())]
    say(f"model {halves.model_id} codec {', '.join(codecs)}")


@app.command(rich_help_panel=PANEL)
def probe(
    model: Annotated[Path, typer.Argument(help="Folder of a whole checkpoint, or of its server half.")],
) -> None:
    """Write probe.json, by which a server recognises its model in an engine elsewhere; `split` writes it too."""
    from tofc.model.checkpoint import Checkpoint
    from tofc.model.identity_probe import FILE
    from tofc_lab.checkpoint.probe import compute_probe

    whole = (model / "config.json").exists() and not (model / "split.json").exists()
    checkpoint = Checkpoint.open(model, None if whole else "server")
    compute_probe(checkpoint, checkpoint.model_id).write(checkpoint.path)
    say(f"written: {checkpoint.path / FILE}, of the model {checkpoint.model_id}")


def _named_codec(argument: str) -> tuple[str, Path]:
    """Split [NAME=]FOLDER. A folder that would be taken for that is written as ./NAME=FOLDER.

    >>> _named_codec("runs/codec"), _named_codec("fast=runs/codec"), _named_codec("./lr=3")
    (('default', PosixPath('runs/codec')), ('fast', PosixPath('runs/codec')), ('default', PosixPath('lr=3')))
    """
    name, equals, folder = argument.partition("=")
    return (name, Path(folder)) if equals and is_name(name) else (DEFAULT, Path(argument))


@app.command(rich_help_panel=PANEL)
def verify(
    model: Annotated[
        str,
        typer.Argument(help="A whole checkpoint or both halves: their folder, or OWNER/NAME on the hub."),
    ],
    picture: Annotated[Path | None, typer.Option(help="The picture to compare on.", show_default="generated")] = None,
    vllm: Annotated[
        Path | None,
        typer.Option(help="vLLM's answer about this picture, written by `python -m tofc_lab.verify.vllm_answer`."),
    ] = None,
    device: Device = "cpu",
    dtype: Annotated[Dtype | None, typer.Option(help="Number type of the networks.", show_default=BY_DEVICE)] = None,
    offline: Offline = False,
) -> None:
    """Compare each part of device and server with an independent implementation; exit code 1 if one differs."""
    from tofc_lab.verify.step3p7 import import_torchvision

    torchvision = import_torchvision()  # before transformers
    import torch

    from tofc_lab.checkpoint.hub import locate
    from tofc_lab.verify.checks import report, verify
    from tofc_lab.verify.whole_model import quiet

    with quiet():
        folder = locate(model, offline=offline)
        outcomes = verify(
            folder,
            picture,
            dtype=getattr(torch, chosen_dtype(dtype, device, folder)),
            compute=device,
            torchvision=torchvision,
            vllm=vllm,
        )
        passed = report(outcomes, say)
    if not passed:
        raise typer.Exit(1)


@app.command("features", rich_help_panel=PANEL)
def view_features(
    model: Annotated[str, typer.Argument(help="A whole checkpoint, the device half, or the folder of both halves.")],
    picture: Annotated[Path, typer.Argument(help="A picture.")],
    out: Annotated[Path, typer.Option(help="The .npz file to write.")],
    device: Device = "cpu",
    dtype: Annotated[Dtype | None, typer.Option(help="Number type of the tower.", show_default=BY_DEVICE)] = None,
    offline: Offline = False,
) -> None:
    """Write pixels, features and projected features of each view, to compare with other implementations."""
    import torch

    from tofc_lab.checkpoint.hub import locate
    from tofc_lab.verify.view_features import write

    folder = locate(model, offline=offline)
    chosen = getattr(torch, chosen_dtype(dtype, device, folder))
    write(folder, picture, out, dtype=chosen, compute=device, log=say)
    say(f"{out} {out.stat().st_size / 1e6:.1f} MB")


@app.command("fake-checkpoint", rich_help_panel=PANEL)
def fake_checkpoint(
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    shape: Annotated[Literal["tiny", "full"], typer.Option(help="full: the released sizes, 20 GB.")] = "tiny",
    seed: Seed = 0,
    tower: Annotated[str, typer.Option(help=f"Vision tower: {', '.join(TOWERS)}.")] = DEFAULT_TOWER,
) -> None:
    """Write random weights in the released format, without a codec, to try everything but the quality of answers."""
    import torch

    from tofc_lab.checkpoint import fake

    with byte_bars() as progress:
        fake.write(
            out,
            shape=shape,
            seed=seed,
            image_size=fake.RELEASED_SIZE if tower == DEFAULT_TOWER else 336,
            tower=tower,
            dtype=torch.bfloat16,
            shard_bytes=2 << 30 if shape == "full" else 100_000,
            progress=lambda done, total: progress("writing", done, total),
        )
    say(f"{out}: {sum(file.stat().st_size for file in out.iterdir()) / 1e6:.1f} MB")
