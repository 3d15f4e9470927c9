"""Tensors in safetensors files: their byte ranges, their bytes, and writing them to new files.

Promises that only headers (https://github.com/huggingface/safetensors#format) are read until a tensor is asked for, and
that a truncated or damaged file is refused when its header is read. Needs no tensor library: bytes of any dtype are
copied from file to file, hashed, or read as a numpy array. Leaves to `checkpoint` which tensors a model needs.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tofc.errors import CheckpointError
from tofc.model.config import read_json

#: bytes per element of each dtype; quantised ones too, so that `checkpoint` can refuse them with a better message
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_SIZES |= {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}
_NUMPY["BF16"] = "<u2"  # numpy has no such type: the upper half of a float32
_MAX_HEADER_BYTES = 100_000_000
_CHUNK_BYTES = 16 << 20
_ADVICE = "copy or export the file again"


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor in a file."""

    stored_name: str
    """Its name in the file."""
    dtype: str
    """Its dtype as safetensors names it, as in `BF16`."""
    shape: tuple[int, ...]
    """Its shape."""
    file: Path
    """The file that holds it."""
    start: int
    """First byte in the file."""
    end: int
    """First byte after it."""

    def chunks(self, size: int = _CHUNK_BYTES) -> Iterator[bytes]:
        """Yield its bytes in pieces of at most `size` bytes."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            left = self.end - self.start
            while left:
                piece = file.read(min(size, left))
                if not piece:
                    raise CheckpointError(f"{self.file} ended while {self.stored_name} was read; copy the file again")
                left -= len(piece)
                yield piece

    def array(self) -> NDArray[np.float32]:
        """Read it as a float32 numpy array."""
        with self.file.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            raw = mapped[self.start : self.end]
        return _float32(np.frombuffer(raw, _NUMPY[self.dtype]).reshape(self.shape), self.dtype)

    def mapped(self) -> NDArray[np.float32]:
        """Return it as a float32 array that is not to be written to: mapped into memory if it is stored in float32."""
        raw = np.memmap(self.file, _NUMPY[self.dtype], "r", self.start, self.shape)
        return np.asarray(raw) if self.dtype == "F32" else _float32(np.asarray(raw), self.dtype)

    def rows(self) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
        """Map it into memory; return what reads its rows at some indices as float32 [..., *shape[1:]]."""
        mapped = np.memmap(self.file, _NUMPY[self.dtype], "r", self.start, self.shape)
        return lambda indices: _float32(mapped[indices], self.dtype)


def _float32(raw: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    return (raw.astype("<u4") << 16).view("<f4") if dtype == "BF16" else raw.astype(np.float32)


def read_header(file: Path) -> dict[str, StoredTensor]:
    """List all tensors of one `.safetensors` file by stored name. Raises `CheckpointError`."""
    header, first = _read_json(file)
    size = file.stat().st_size
    found = {}
    try:
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, stop = entry["data_offsets"]
            shape, dtype = tuple(entry["shape"]), entry["dtype"]
            if dtype not in _SIZES:
                raise CheckpointError(f"{file}: the dtype of {name} must be one of {', '.join(_SIZES)}, got {dtype!r}")
            if stop - begin != prod(shape) * _SIZES[dtype] or not 0 <= begin <= stop or min(shape, default=0) < 0:
                raise CheckpointError(
                    f"{file}: {name} claims shape {shape} of {dtype} in {stop - begin} bytes; {_ADVICE}"
                )
            start, end = first + begin, first + stop
            if end > size:
                raise CheckpointError(
                    f"{file} is truncated: it has {size} bytes and {name} ends at byte {end}; {_ADVICE}"
                )
            found[name] = StoredTensor(stored_name=name, dtype=dtype, shape=shape, file=file, start=start, end=end)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} has a malformed header ({error!r}); {_ADVICE}") from None
    return found


def read_metadata(file: Path) -> dict[str, str]:
    """Read the metadata of a `.safetensors` file; empty if it has none."""
    found = _read_json(file)[0].get("__metadata__", {})
    return found if isinstance(found, dict) else {}


def _read_json(file: Path) -> tuple[dict[str, Any], int]:
    """Read a file's header; also return the offset of its first tensor."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(f"{file} is not a safetensors file, or is truncated ({size} bytes); {_ADVICE}")
            header = json.loads(opened.read(length))
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist; {_ADVICE}") from None
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file} has an unreadable header ({error}); {_ADVICE}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{file} has a malformed header ({type(header).__name__}); {_ADVICE}")
    return header, 8 + length


def read_directory(path: Path) -> dict[str, StoredTensor]:
    """List all tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.

    They are not compared with the tensors that the index lists: the caller knows which ones it needs.
    Raises `CheckpointError`.
    """
    whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if whole.exists():
        return read_header(whole)
    if not index.exists():
        raise CheckpointError(f"{path} has neither {whole.name} nor {index.name}; give the directory of a checkpoint")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index} has no weight_map; export the checkpoint again")
    found: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(
                f"{index} names the shard {shard!r}; it must be a file name without folders, beside the index"
            )
        found |= read_header(path / shard)
    return found


def write(file: Path, tensors: Mapping[str, StoredTensor], advance: Callable[[int], None] = lambda size: None) -> str:
    """Write stored tensors under new names to a safetensors file, in pieces; `file` is replaced when it is complete.

    `advance` is called with the number of bytes of each piece written. Returns the file's SHA-256.
    """
    # Tensors with larger elements come first, so that every offset is aligned.
    order = sorted(tensors, key=lambda name: (-_SIZES[tensors[name].dtype], name))
    at = 0
    header: dict[str, dict[str, object]] = {}
    for name in order:
        tensor = tensors[name]
        size = tensor.end - tensor.start
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header | {"__metadata__": {"format": "pt"}}, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256()
    partial = file.with_name(file.name + ".partial")
    with partial.open("wb") as out:

        def put(piece: bytes) -> None:
            out.write(piece)
            digest.update(piece)

        put(len(head).to_bytes(8, "little") + head)
        for name in order:
            for piece in tensors[name].chunks():
                put(piece)
                advance(len(piece))
        out.flush()
        os.fsync(out.fileno())
    partial.replace(file)
    return digest.hexdigest()
