"""The frozen trunk's maps of many pictures, computed once and kept on disk in chunks, and what is known of each.

    pictures ─ trunk ─┬─ head's map, means of 2 × 2: [36, 1280] ─┐
                      └─ stride 16, and colours: [123, 21, 21] ──┴─ chunk-0000.npz, half precision

Promises that an interrupted run resumes with the next chunk, and that a chunk depends only on the trunk and on
`(seed, split, chunk)`. Leaves the detail branch and the adapter, which are trained, to `tower`.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tofc.errors import UsageError
from tofc.model.efficientnet_lite import Trunk, cells, means
from tofc.model.efficientnet_lite import colours as colours_of
from tofc.model.efficientnet_lite_config import COLOURS, DETAIL, HEAD
from tofc_lab.checkpoint.pretrained_trunk import Pretrained
from tofc_lab.photo import colours, pictures
from tofc_lab.photo.assets import Split
from tofc_lab.photo.pictures import GRID, Patch
from tofc_lab.photo.signs import Sign
from tofc_lab.progress import Progress, no_progress
from tofc_lab.resume import save_arrays

CHUNK = 50  # pictures in a file
#: how many pictures of each split
SIZES: dict[Split, int] = {"train": 9000, "validation": 600}
CELLS = GRID * GRID
MIDDLE = 21  # side of the map at stride 16


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a picture: the number of photographs in it, its sign and its patches of one colour."""

    parts: int
    sign: Sign | None
    patches: tuple[Patch, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Maps:
    """The trunk's maps of `P` pictures, the colours of their cells, and what is known of each."""

    head: NDArray[np.float16]  # [P, 36, 1280]
    middle: NDArray[np.float16]  # [P, 123, 21, 21]
    colours: NDArray[np.uint8]  # [P, 36, colours] in 255ths
    known: Sequence[Known]

    def __len__(self) -> int:
        return len(self.known)

    def __getitem__(self, chosen: slice) -> Maps:
        return Maps(
            head=self.head[chosen], middle=self.middle[chosen], colours=self.colours[chosen], known=self.known[chosen]
        )


def pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    """Return pictures as the trunk wants them, float32 [B, 3, S, S]."""
    stacked = np.stack([np.asarray(image, np.float32) for image in images])
    return torch.from_numpy((stacked - 127) / 128).permute(0, 3, 1, 2).contiguous()


@cache
def trunk() -> Trunk:
    """Return the pretrained trunk. Raises `CheckpointError` without its package."""
    loaded = Trunk()
    loaded.load_state_dict(Pretrained.load().trunk)
    loaded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return loaded.eval().requires_grad_(False)


@torch.inference_mode()
def maps_of(images: Sequence[Image.Image], *, autocast: bool = True) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Return the head's cells [B, 36, 1280] of pictures of 336 px, and their map at stride 16 [B, 123, 21, 21].

    Its last three channels are the means of the pixels.
    """
    given = pixels(images)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):  # a third of the time on CPUs that have bf16
        middle, last = trunk()(given.contiguous(memory_format=torch.channels_last))
    middle = torch.cat((middle, colours_of(given)), 1)
    return cells(means(last.float())).to(torch.float16).numpy(), middle.to(torch.float16).numpy()


def compute(
    assets: Path,
    out: Path,
    split: Split,
    count: int,
    *,
    seed: int = 0,
    processes: int = 1,
    progress: Progress = no_progress,
) -> None:
    """Write `out/SPLIT-K.npz` for at least `count` pictures, in whole chunks; existing files are kept."""
    out.mkdir(parents=True, exist_ok=True)
    chunks = [n for n in range(-(-count // CHUNK)) if not _path(out, split, n).exists()]
    if processes == 1:
        for chunk in progress(chunks, len(chunks)):
            _write(assets, out, split, seed, chunk)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        pending = [pool.submit(_write, assets, out, split, seed, chunk) for chunk in chunks]
        for one in progress(pending, len(pending)):
            one.result()


def _path(out: Path, split: Split, chunk: int) -> Path:
    return out / f"{split}-{chunk:04d}.npz"


def _write(assets: Path, out: Path, split: Split, seed: int, chunk: int) -> None:
    drawn = [pictures.draw(assets, split, seed, index) for index in range(chunk * CHUNK, (chunk + 1) * CHUNK)]
    parts = [maps_of([one.image for one in drawn[at : at + 10]]) for at in range(0, CHUNK, 10)]
    known = [
        {"parts": one.parts, "sign": one.sign and asdict(one.sign), "patches": [asdict(patch) for patch in one.patches]}
        for one in drawn
    ]
    save_arrays(
        _path(out, split, chunk),
        head=np.concatenate([head for head, _ in parts]),
        middle=np.concatenate([middle for _, middle in parts]),
        colours=np.stack([colours.shares(one.image, GRID) for one in drawn]),
        known=np.frombuffer(json.dumps(known).encode(), np.uint8),
    )


def load(out: Path, split: Split, count: int | None = None) -> Maps:
    """Load the pictures that `compute` wrote, in order, at most `count`. Raises `UsageError` where there are none."""
    paths = sorted(out.glob(f"{split}-????.npz"))
    paths = paths if count is None else paths[: -(-count // CHUNK)]
    if not paths:
        raise UsageError(f"{out} has no maps {split}-*.npz; run `tofc-lab photo features` first")
    total = len(paths) * CHUNK
    head = np.empty((total, CELLS, HEAD), np.float16)
    middle = np.empty((total, DETAIL + COLOURS, MIDDLE, MIDDLE), np.float16)
    shares = np.empty((total, CELLS, len(colours.COLOURS)), np.uint8)
    known: list[Known] = []
    for number, path in enumerate(paths):
        at = slice(number * CHUNK, (number + 1) * CHUNK)
        with np.load(path) as stored:
            head[at], middle[at], shares[at] = stored["head"], stored["middle"], stored["colours"]
            known.extend(_known(stored["known"].tobytes()))
    return Maps(head=head, middle=middle, colours=shares, known=known)[: count or total]


def _known(stored: bytes) -> Iterator[Known]:
    for one in json.loads(stored):
        sign = one["sign"]
        yield Known(
            parts=one["parts"],
            sign=sign and Sign(text=sign["text"], places=tuple((x, y) for x, y in sign["places"])),
            patches=tuple(Patch(colour=patch["colour"], cells=tuple(patch["cells"])) for patch in one["patches"]),
        )
