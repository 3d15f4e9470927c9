"""What one cell of the exactness matrix does, in a process of its own.

    python -m tests.codec.cell FOLDER [DTYPE ...]

FOLDER holds a job (see `Job`). The last line printed is a report: what every packet decodes to, what every view
is encoded to, and which libraries' settings are really in force here. With dtypes, nano's tower also looks at
the demo's picture in each of them, and what was seen is encoded and decoded. Promises to import torch only
then. Leaves the comparing to ``test_exactness.py``.
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

from shared.codec import Codec, PacketError

NANO = Path(__file__).resolve().parents[2] / "models" / "nano"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to encode and decode with the codec of one folder."""

    codec: str  # its folder
    packets: list[str]  # hex; some are no packets
    views: dict[str, int]  # name of an array [N, D] in views.npz → n

    def save(self, folder: Path, arrays: dict[str, NDArray[np.float32]]) -> None:
        folder.mkdir()
        (folder / "job.json").write_text(json.dumps(vars(self)))
        np.savez(folder / "views.npz", **{name: arrays[name] for name in self.views})

    def run(self, folder: Path) -> dict[str, list[str]]:
        codec, arrays = Codec.load(Path(self.codec)), np.load(folder / "views.npz")
        return {
            "decoded": [digest(codec, bytes.fromhex(packet)) for packet in self.packets],
            "encoded": [codec.encode(arrays[name], n).hex() for name, n in self.views.items()],
        }


def jobs(folder: Path) -> dict[str, Job]:
    """The jobs of a folder, by the names of their own folders."""
    paths = sorted(folder.glob("*/job.json"))
    return {path.parent.name: Job(**json.loads(path.read_text())) for path in paths}


def digest(codec: Codec, packet: bytes) -> str:
    """The hash of every symbol of a packet and of its positions; the reason where it is refused.

    Taken where symbols leave the coder: everything behind it may be floats. They are encoded again, too.
    """
    found: list[Any] = []
    original = codec.payload.decode
    codec.payload.decode = lambda *args, **more: found.append(original(*args, **more)) or found[-1]  # type: ignore
    try:
        decoded = codec.decode(packet)
    except PacketError as error:
        return error.reason
    finally:
        del codec.payload.decode  # type: ignore[attr-defined]
    symbols, interval = found[-1]
    assert codec.payload.encode(symbols) == interval, f"{packet.hex()}: its symbols encode to something else"
    sha = hashlib.sha256()
    integers = {"grid": decoded.grid, "positions": decoded.positions, **vars(symbols)}
    for name, value in sorted(integers.items()):
        array = np.asarray(value)
        assert array.dtype.kind in "iub", f"{name} is {array.dtype}: the decoder's symbols are integers"
        sha.update(f"{name} {array.shape} ".encode() + array.astype("<i8").tobytes())
    return sha.hexdigest()


def settings() -> dict[str, Any]:
    """What is in force in this process, asked of the libraries themselves."""
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


def look(dtype: str, device: str = "cpu") -> NDArray[np.float32]:
    """What nano's tower makes of the demo's picture, [N, D]: the first view."""
    import torch
    from PIL import Image

    from shared.model.checkpoint import Checkpoint
    from shared.model.tower import Tower
    from shared.model.views import views

    checkpoint = Checkpoint.open(NANO, side="device")
    tower = Tower(checkpoint, dtype=getattr(torch, dtype), device=device)
    with Image.open(NANO / "example.jpg") as image:
        view = views(image, checkpoint.config.rule)[0]
    return tower.encode(view.pixels[None])[0]


def see(dtypes: list[str], device: str = "cpu") -> dict[str, dict[str, str]]:
    """Packets of what the tower sees in each dtype, and what they decode to in this process."""
    codec = Codec.load(NANO)
    seen: dict[str, dict[str, str]] = {}
    for dtype in dtypes:
        features = look(dtype, device)
        packets = [codec.encode(features, n) for n in (12, len(features))]
        seen[dtype] = {packet.hex(): digest(codec, packet) for packet in packets}
    return seen


def main(folder: str, *dtypes: str) -> None:
    report = {
        "seen": see(list(dtypes)),
        "jobs": {name: job.run(Path(folder, name)) for name, job in jobs(Path(folder)).items()},
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
