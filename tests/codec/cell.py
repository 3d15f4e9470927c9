"""The program of one cell of the exactness matrix: it decodes and encodes under certain library settings.

    python -m tests.codec.cell FOLDER [DTYPE ...]

FOLDER holds jobs (see `Job`). The last line printed is a report in JSON: what every packet decodes to, what every view
is encoded to, and which library settings are in force. For each DTYPE, nano's tower also encodes the demo's picture,
and the codec encodes and decodes its features. Promises to import torch only then. Leaves comparing the reports to
`test_exactness.py`.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tofc.codec import Codec, CodedView
from tofc.codec.layout import PacketLayout
from tofc.errors import PacketError

NANO = Path(__file__).resolve().parents[2] / "models" / "nano"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to encode and decode with the codec of one folder."""

    codec: str  # its folder
    packets: list[str]  # hex; some are invalid
    views: dict[str, int]  # name of an array [N, D] in views.npz → n

    def save(self, folder: Path, arrays: dict[str, NDArray[np.float32]]) -> None:
        folder.mkdir(parents=True)
        (folder / "job.json").write_text(json.dumps(vars(self)))
        np.savez(folder / "views.npz", **{name: arrays[name] for name in self.views})

    def run(self, folder: Path) -> dict[str, list[str]]:
        codec, arrays = Codec.load(Path(self.codec)), np.load(folder / "views.npz")
        return {
            "decoded": [digest(codec, bytes.fromhex(packet)) for packet in self.packets],
            "encoded": [codec.encode(arrays[name], n).hex() for name, n in self.views.items()],
        }


def run_jobs(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Do the jobs in a folder and the folders in it; return their results by the names of the jobs' own folders."""
    paths = sorted(folder.glob("**/job.json"))
    return {path.parent.name: Job(**json.loads(path.read_text())).run(path.parent) for path in paths}


def digest(codec: Codec, packet: bytes) -> str:
    """Hash every symbol of a packet and its positions; return the reason if it is refused.

    The symbols are those that the range coder returns, because later steps may use floats. They are also encoded again.
    """
    found: list[Any] = []
    original = codec.entropy_model.decode
    codec.entropy_model.decode = lambda *args, **more: found.append(original(*args, **more)) or found[-1]  # type: ignore
    try:
        decoded = codec.parse_views(packet)
    except PacketError as error:
        return error.reason
    finally:
        del codec.entropy_model.decode  # type: ignore[attr-defined]
    coded = [
        CodedView(
            layout=PacketLayout(grid=one.grid, cells=tuple(one.positions.tolist()), quality=one.quality), symbols=its
        )
        for one, its in zip(decoded, found, strict=True)
    ]
    assert codec.write(coded) == packet, f"{packet.hex()}: its symbols do not encode to it"
    sha = hashlib.sha256()
    for one, symbols in zip(decoded, found, strict=True):
        integers = {"grid": one.grid, "positions": one.positions, **vars(symbols)}
        for name, value in sorted(integers.items()):
            array = np.asarray(value)
            assert array.dtype.kind in "iub", f"{name} is {array.dtype}: the decoder's symbols must be integers"
            sha.update(f"{name} {array.shape} ".encode() + array.astype("<i8").tobytes())
    return sha.hexdigest()


def settings() -> dict[str, Any]:
    """Ask the libraries which settings are in force in this process."""
    from numpy._core._multiarray_umath import __cpu_features__

    found: dict[str, Any] = {
        "machine": platform.machine(), "optimize": sys.flags.optimize, "numpy": dict(__cpu_features__),
    }  # fmt: skip
    for path in Path(np.__file__).parents[1].glob("numpy.libs/libscipy_openblas64_*"):
        library = ctypes.CDLL(str(path))
        library.scipy_openblas_get_corename64_.restype = ctypes.c_char_p
        found["kernel"] = library.scipy_openblas_get_corename64_().decode()
        found["threads"] = library.scipy_openblas_get_num_threads64_()
    return found


def tower_features(dtype: str, device: str = "cpu") -> NDArray[np.float32]:
    """Return the features [N, D] of the first view of the demo's picture, by nano's tower."""
    import torch
    from PIL import Image

    from tofc.model.checkpoint import Checkpoint
    from tofc.model.tower import Tower
    from tofc.model.views import views

    checkpoint = Checkpoint.open(NANO, side="device")
    tower = Tower(checkpoint, dtype=getattr(torch, dtype), device=device)
    with Image.open(NANO / "example.jpg") as image:
        view = views(image, checkpoint.config.rule)[0]
    return tower.encode(view.pixels[None])[0]


def tower_packets(dtypes: list[str], device: str = "cpu") -> dict[str, dict[str, str]]:
    """Return packets of the tower's features in each dtype, and what they decode to in this process."""
    codec = Codec.load(NANO)
    found: dict[str, dict[str, str]] = {}
    for dtype in dtypes:
        features = tower_features(dtype, device)
        packets = [codec.encode(features, n) for n in (12, len(features))]
        found[dtype] = {packet.hex(): digest(codec, packet) for packet in packets}
    return found


def main(folder: str, *dtypes: str) -> None:
    report = {
        "tower_packets": tower_packets(list(dtypes)),
        "jobs": run_jobs(Path(folder)),
    }
    report["settings"] = settings()
    if dtypes:
        import torch

        report["settings"] |= {
            "torch": torch.backends.cpu.get_cpu_capability(),
            "torch_threads": torch.get_num_threads(),
        }
    print("\n" + json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
