"""ONNX graphs without the package `onnx`: the few messages of onnx.proto that a tower needs, in protobuf's wire format.

    graph = OnnxGraph(); x = graph.input("x", "float", ["batch", 4]); graph.output(graph.node("Relu", x))
    graph.model() ─ bytes ─→ ONNX Runtime, which gets `graph.weights` beside them, without a copy of each in the bytes

Promises that a graph follows from a checkpoint's configuration when the checkpoint is loaded, so that none must be
written, shipped or kept in step with the weights. `onnx` itself would be 60 MB more on a device. Leaves checking types
and shapes to ONNX Runtime, and running to `onnx_tower`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

OPSET = 20  # the first with Gelu
IR_VERSION = 9
_TYPES = {"float": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7}  # TensorProto.DataType
_NAMES = {"float32": "float", "int8": "int8", "int64": "int64"}
_FLOAT, _INT, _STRING, _INTS = 1, 2, 3, 7  # AttributeProto.AttributeType
_EXTERNAL = 1  # TensorProto.DataLocation


class OnnxGraph:
    """A graph that is built node by node. Values are known by their names, which every method returns."""

    def __init__(self) -> None:
        self.weights: dict[str, NDArray[Any]] = {}
        """Large constants by name, which are not in the model's bytes."""
        self._nodes: list[bytes] = []
        self._constants: list[bytes] = []
        self._inputs: list[bytes] = []
        self._outputs: list[bytes] = []
        self._count = 0

    def input(self, name: str, kind: str, shape: Sequence[int | str]) -> str:
        """Declare an input of the graph; sizes that are not known are texts."""
        self._inputs.append(_value(name, kind, shape))
        return name

    def output(self, name: str, shape: Sequence[int | str]) -> None:
        """Make a value of type float an output of the graph."""
        self._outputs.append(_value(name, "float", shape))

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: float | int | str | Sequence[int]) -> str:
        """Add an operator; return the name of its output, of several that of the first: the others are in `more`."""
        names = self.more(self._name(), outputs)
        fields = [_bytes(1, name.encode()) for name in inputs] + [_bytes(2, name.encode()) for name in names]
        fields += [_bytes(4, op.encode()), *(_bytes(5, _attribute(key, value)) for key, value in attributes.items())]
        self._nodes.append(b"".join(fields))
        return names[0]

    @staticmethod
    def more(first: str, outputs: int) -> list[str]:
        """Return the names of all outputs of a node."""
        return [first, *(f"{first}.{number}" for number in range(1, outputs))]

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """Add a large constant, once by its name."""
        if name not in self.weights:
            self.weights[name] = np.ascontiguousarray(array)
            place = _bytes(1, b"location") + _bytes(2, b"checkpoint")
            self._constants.append(_tensor(name, array) + _bytes(13, place) + _varint(14, _EXTERNAL))
        return name

    def constant(self, value: Any, dtype: type[Any] = np.float32) -> str:
        """Add a small constant."""
        array, name = np.asarray(value, dtype), self._name()
        self._constants.append(_tensor(name, array) + _bytes(9, array.tobytes()))
        return name

    def model(self) -> bytes:
        """Return the serialised ModelProto."""
        parts = [_bytes(1, node) for node in self._nodes] + [_bytes(2, b"tower")]
        parts += [_bytes(5, one) for one in self._constants]
        parts += [_bytes(11, one) for one in self._inputs] + [_bytes(12, one) for one in self._outputs]
        opset = _bytes(1, b"") + _varint(2, OPSET)
        return _varint(1, IR_VERSION) + _bytes(7, b"".join(parts)) + _bytes(8, opset)

    def _name(self) -> str:
        self._count += 1
        return f"v{self._count}"


def _varint(field: int, value: int) -> bytes:
    return _number(field << 3) + _number(value & (1 << 64) - 1)


def _bytes(field: int, content: bytes) -> bytes:
    return _number(field << 3 | 2) + _number(len(content)) + content


def _number(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _tensor(name: str, array: NDArray[Any]) -> bytes:
    dims = b"".join(_varint(1, size) for size in array.shape)
    return dims + _varint(2, _TYPES[_NAMES[array.dtype.name]]) + _bytes(8, name.encode())


def _value(name: str, kind: str, shape: Sequence[int | str]) -> bytes:
    sizes = [_varint(1, size) if isinstance(size, int) else _bytes(2, size.encode()) for size in shape]
    tensor = _varint(1, _TYPES[kind]) + _bytes(2, b"".join(_bytes(1, size) for size in sizes))
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, tensor))


def _attribute(name: str, value: float | int | str | Sequence[int]) -> bytes:
    if isinstance(value, str):
        content, kind = _bytes(4, value.encode()), _STRING
    elif isinstance(value, int):
        content, kind = _varint(3, value), _INT
    elif isinstance(value, float):
        content, kind = _number(2 << 3 | 5) + struct.pack("<f", value), _FLOAT
    else:
        content, kind = b"".join(_varint(8, one) for one in value), _INTS
    return _bytes(1, name.encode()) + content + _varint(20, kind)
