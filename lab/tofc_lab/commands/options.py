"""Options, default folders and progress bars that several commands share.

Promises to load neither torch nor transformers, so that `--help` is quick. For that a command imports the modules that
do its work only when it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

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

from tofc.errors import UsageError
from tofc.model.torch_devices import check_device, default_dtype
from tofc_lab.progress import ByteProgress

Dtype = Literal["float32", "bfloat16", "float16"]
Device = Annotated[str, typer.Option(help="Where the networks compute: cpu, cuda, cuda:1, …")]
#: what `--help` says about a number type that follows device and checkpoint, see `chosen_dtype`
BY_DEVICE = "float32; not on a CPU: as stored"
Assets = Annotated[
    Path, typer.Option(help="Folder of fonts and photographs (`tofc-lab assets`).", envvar="TOFC_LAB_ASSETS")
]
Run = Annotated[
    Path, typer.Option(help="Folder of this training: weights, features, checkpoints and logs.", envvar="TOFC_LAB_RUN")
]
Seed = Annotated[int, typer.Option(help="Seed of all random numbers.")]
Offline = Annotated[bool, typer.Option("--offline", help="Use only what is in the hub's cache on this machine.")]
JsonFile = Annotated[Path, typer.Option(help="JSON file to write.")]
FeatureCodec = Annotated[
    str, typer.Option(help="The model's codec that makes the packets: a name in its codecs/.", metavar="NAME")
]
WholeCheckpoint = Annotated[Path, typer.Argument(help="Folder of a whole checkpoint.")]
#: Defaults of these options. NANO and RESULTS are relative: these commands run in a checkout.
ASSETS, RUN, NANO, RESULTS = Path("runs/assets"), Path("runs/nano"), Path("models/nano"), Path("benchmarks/results")


def chosen_dtype(given: str | None, device: str, model: Path) -> str:
    """Return a number type: the one given, float32 on a CPU, elsewhere as the checkpoint's tower is stored.

    Raises `UsageError` for a device that torch does not find, `CheckpointError`.
    """
    check_device(device)
    if given is not None or device == "cpu":
        return given or "float32"
    from tofc.model.checkpoint import Checkpoint

    return default_dtype(device, Checkpoint.open(model, "device").vision_dtype)


def features_bar(chunks: Iterable[Any], total: int) -> Iterable[Any]:
    """Show how many chunks of features are computed."""
    return track(chunks, total=total, description="features")


def named_bar(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    """Show on stderr how many items of the work `what` are done."""
    return track(items, total=total, description=what, console=Console(stderr=True))


@contextmanager
def byte_bars() -> Iterator[ByteProgress]:
    """Yield a callback that shows a bar on stderr for each kind of work."""
    columns = (TextColumn("{task.description:8}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as shown:
        bars: dict[str, TaskID] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = shown.add_task(what, total=total)
            shown.update(bars[what], completed=done)

        yield progress


def writable(out: Path) -> Path:
    """Return `out` after creating its folder, so that an error comes now and not after hours of work.

    Raises `UsageError` if `out` is a folder.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir():
        raise UsageError(f"{out} is a folder; name a file")
    return out
