"""Rows as a tensor in torch.save's file format, which vLLM reads, written without torch.

    zip, stored: rows/data.pkl (shape, type, which storage), rows/byteorder, rows/data/0 (the numbers), rows/version

Promises bytes that `torch.load(…, weights_only=True)` reads, bfloat16 rounded as torch rounds. Leaves reading to vLLM.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

STORAGES = {"float32": "FloatStorage", "bfloat16": "BFloat16Storage", "float16": "HalfStorage"}


def save_rows(rows: NDArray[np.float32], dtype: str) -> bytes:
    """Return the file of a contiguous tensor with the values of `rows` [T, H], in one of `STORAGES`' types."""
    numbers: NDArray[Any]
    if dtype == "bfloat16":
        numbers = _bfloat16(rows)
    else:
        numbers = np.ascontiguousarray(rows, "<f4" if dtype == "float32" else "<f2")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("rows/data.pkl", _pickle(rows.shape[0], rows.shape[1], STORAGES[dtype]))
        archive.writestr("rows/byteorder", b"little")
        archive.writestr("rows/data/0", numbers.data.cast("B"))
        archive.writestr("rows/version", b"3\n")
    return file.getvalue()


def _bfloat16(rows: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Keep the upper half of each float32 [T, H], rounded to nearest, ties to even. Values must be finite."""
    bits = np.ascontiguousarray(rows, "<f4").view("<u4")
    rounded: NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return rounded


def _pickle(length: int, width: int, storage: str) -> bytes:
    """Return what pickle protocol 2 writes for `_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`.

    Written by opcode, because pickling a reference to torch's names would import torch.
    """

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little")  # BININT

    def text(value: str) -> bytes:
        return b"X" + len(value).to_bytes(4, "little") + value.encode()  # BINUNICODE

    where = text("storage") + f"ctorch\n{storage}\n".encode() + text("0") + text("cpu") + number(length * width)
    return b"".join(
        (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(",  # PROTO 2, GLOBAL, MARK
            b"(" + where + b"tQ",  # MARK … TUPLE BINPERSID: the storage, by its file's name
            number(0),
            number(length) + number(width) + b"\x86",  # TUPLE2: shape
            number(width) + number(1) + b"\x86",  # strides
            b"\x89ccollections\nOrderedDict\n)R",  # NEWFALSE; no backward hooks
            b"tR.",  # TUPLE, REDUCE, STOP
        )
    )
