"""Tensors in safetensors files: where each lies, its bytes by memory-mapping, and writing them again.

Promises that nothing is read but headers until a tensor is asked for, and that a truncated or damaged
file is refused at opening. Knows no tensor library: bytes go from file to file, hash or numpy array
without one, whatever the type (https://github.com/huggingface/safetensors#format).
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

from shared.model.config import CheckpointError, read_json

#: bytes per element of the types that codecs and checkpoints use, quantised ones too: the checkpoint refuses those
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_SIZES |= {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}
_LARGEST_HEADER = 100_000_000
_CHUNK = 16 << 20
_ADVICE = "copy or export the file again"


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor: ``dtype`` as safetensors names it, and the byte range ``[start, end)`` of its file."""

    stored_name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    def chunks(self, size: int = _CHUNK) -> Iterator[bytes]:
        """Its bytes in pieces; never more than ``size`` in memory."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            left = self.end - self.start
            while left:
                piece = file.read(min(size, left))
                if not piece:
                    raise CheckpointError(f"{self.file} ended while {self.stored_name} was read; copy it again")
                left -= len(piece)
                yield piece

    def array(self) -> NDArray[np.float32]:
        """As float32 numpy, in its shape."""
        with self.file.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            raw = mapped[self.start : self.end]
        if self.dtype == "BF16":  # the upper half of a float32
            wide = np.frombuffer(raw, "<u2").astype("<u4") << 16
            return wide.view("<f4").astype(np.float32).reshape(self.shape)
        return np.frombuffer(raw, _NUMPY[self.dtype]).astype(np.float32).reshape(self.shape)


def read_header(file: Path) -> dict[str, StoredTensor]:
    """All tensors of one ``.safetensors`` file, by stored name."""
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
                raise CheckpointError(f"{file}: {name} has type {dtype!r}; supported: {', '.join(_SIZES)}")
            if stop - begin != prod(shape) * _SIZES[dtype] or not 0 <= begin <= stop or min(shape, default=0) < 0:
                raise CheckpointError(f"{file}: {name} says {shape} of {dtype} in {stop - begin} bytes; {_ADVICE}")
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
    """What a ``.safetensors`` file says of itself."""
    found = _read_json(file)[0].get("__metadata__", {})
    return found if isinstance(found, dict) else {}


def _read_json(file: Path) -> tuple[dict[str, Any], int]:
    """A file's header, and where its first tensor begins."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
                raise CheckpointError(f"{file} is no safetensors file or is truncated ({size} bytes); {_ADVICE}")
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
    """All tensors of ``model.safetensors``, or of the shards that ``model.safetensors.index.json`` lists.

    Whether these are the tensors that it lists is not looked at: who knows which are needed says which is missing.
    """
    whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if whole.exists():
        return read_header(whole)
    if not index.exists():
        raise CheckpointError(f"{path} has neither {whole.name} nor {index.name}; is it a model's directory?")
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise CheckpointError(f"{index} has no weight_map; export the checkpoint again")
    found: dict[str, StoredTensor] = {}
    for shard in sorted(set(places.values())):
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{index} names the shard {shard!r}; shards lie beside their index")
        found |= read_header(path / shard)
    return found


def write(file: Path, tensors: Mapping[str, StoredTensor], advance: Callable[[int], None] = lambda size: None) -> str:
    """A new safetensors file of stored tensors under the given names, streamed; replaces ``file`` when complete.

    ``advance`` hears of the bytes of each piece. Returns the file's SHA-256.
    """
    order = sorted(tensors, key=lambda name: (-_SIZES[tensors[name].dtype], name))  # keeps every offset aligned
    at = 0
    header: dict[str, dict[str, object]] = {}
    for name in order:
        one = tensors[name]
        size = one.end - one.start
        header[name] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": [at, at + size]}
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
