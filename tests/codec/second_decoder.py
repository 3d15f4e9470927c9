"""A second decoder, written from docs/bitstream.md alone, in plain integers.

Promises to share no code with `tofc.codec`, so that one confirms the other. Checks only the checksum; leaves refusing
invalid packets to `tofc.codec`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors.numpy import load_file

from tests.codec.second_decoder_index import PlainIndices

SIDES = [4, 6, 8, 9, 12, 13, 16]
#: cell, component, its mean and table → the component
Component = Callable[[int, int, int, int], int]


class PlainDecoder:
    """Decodes packets, given the values of codec.json and the tensors of codec.safetensors."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> None:
        self.config = config
        self.tensors = {name: array.tolist() for name, array in tensors.items()}
        self.limit = config.get("residual_range", 0)

    @classmethod
    def load(cls, directory: Path) -> PlainDecoder:
        return cls(json.loads((directory / "codec.json").read_text()), load_file(directory / "codec.safetensors"))

    def decode(self, packet: bytes) -> list[dict[str, Any]]:
        """Decode the views of a packet."""
        digits = packet.hex()  # four bits each
        head, rest, check = digits[0], digits[1:-3], digits[-3:]
        code, merged = int(head, 16) >> 1, int(head, 16) & 1
        if code == 7:
            side, body = int(rest[:2], 16), rest[2:]
        else:
            side, body = SIDES[code], rest
        assert int(check, 16) == crc(bytes.fromhex("0" + head + rest))
        size = len(body) // 2
        number, whole = int(body or "0", 16), 256**size

        def digit(base: int) -> int:
            nonlocal number
            found, number = divmod(number * base, whole)
            return found

        def cells(side: int, merged: int) -> list[int]:
            total, found = side * side, []
            if not merged:
                return list(range(total))
            n = digit(total - 1) + 1
            rank = digit(comb(total, n))
            for i in range(n, 0, -1):
                found.insert(0, max(c for c in range(total) if comb(c, i) <= rank))
                rank -= comb(found[0], i)
            return found

        if side:
            views = [(side, merged, digit(self.config["qualities"]))]
        else:
            left, views = digit(63) + 2, []
            while left:
                length = digit(left) + 1
                left -= length
                code = digit(8)
                side = digit(256) if code == 7 else SIDES[code]
                views += [(side, digit(2), digit(self.config["qualities"]))] * length
        layouts = [(side, cells(side, merged), quality) for side, merged, quality in views]
        stream = PlainRangeDecoder(number.to_bytes(size, "big"))
        return [
            {"grid": side, "cells": cells, "quality": quality, "q": self.symbols(stream, side, cells, quality)}
            for side, cells, quality in layouts
        ]

    def symbols(self, stream: PlainRangeDecoder, side: int, cells: list[int], quality: int) -> list[list[int]]:
        """Decode the numbers of each feature, in the order of the cells."""
        if self.config["entropy_model"] == "index":
            return PlainIndices(self.config, self.tensors).decode(stream, side, cells, quality)
        if self.config["entropy_model"] == "selective-hyperprior":
            return self.selective_hyperprior(stream, len(cells), quality)
        return self.context(stream, side, cells, quality)

    def selective_hyperprior(self, stream: PlainRangeDecoder, n: int, quality: int) -> list[list[int]]:
        """Decode each feature's expert, its ẑ and its components."""
        t, c, unit = self.tensors, self.config, 2 ** self.config["fraction"]
        experts = [stream.symbol(t["expert_tables"][quality]) for _ in range(n)]
        hyper = [[stream.symbol(table) - c["hyper_range"] for table in t["z_tables"][quality]] for _ in range(n)]
        found = []
        for expert, z in zip(experts, hyper, strict=True):
            w1, b1, w2, b2 = (t[f"h_s_{name}"][quality][expert] for name in ("w1", "b1", "w2", "b2"))
            h = act(w1, [256 * v for v in z], b1)
            q = []
            for i in range(c["components"]):
                means, scales = (dot(w2[kind][i], h) + b2[kind][i] for kind in (0, 1))
                place = means * unit >> 15
                scale = clip(scales >> 15, 0, c["tables"] // unit - 1)
                residual = stream.symbol(t["y_tables"][scale * unit + place % unit]) - self.limit
                q.append(clip(place // unit, -self.limit, self.limit) + residual)
            found.append([expert, *z, *q])
        return found

    def context(self, stream: PlainRangeDecoder, side: int, cells: list[int], quality: int) -> list[list[int]]:
        """Decode the components of each feature."""

        def component(cell: int, i: int, mean: int, table: int) -> int:
            return mean + stream.symbol(self.tensors["y_tables"][table]) - self.limit

        return self.walk(side, cells, quality, component)

    def walk(self, side: int, cells: list[int], quality: int, component: Component) -> list[list[int]]:
        """Ask for every component in coding order; return those of each feature, in the order of the cells."""
        starts = [0, *self.config["slices"][:-1]]
        q: dict[int, list[int]] = {cell: [] for cell in cells}
        for stage in (0, 1):
            cells_here = [cell for cell in cells if (cell // side + cell % side) % 2 == stage]
            around = {cell: self.around(q, side, cell, stage, quality) for cell in cells_here}
            for s, (first, last) in enumerate(zip(starts, self.config["slices"], strict=True)):
                for cell in cells_here:
                    hidden = self.hidden(q[cell], around[cell], stage, s, first, quality)
                    for i in range(first, last):
                        q[cell].append(component(cell, i, *self.expected(hidden, i, quality)))
        return [q[cell] for cell in cells]

    def around(self, q: dict[int, list[int]], side: int, cell: int, stage: int, quality: int) -> list[int]:
        t, reach, row, column = self.tensors, self.config["reach"], *divmod(cell, side)
        offsets = [(y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1) if (y, x) != (0, 0)]
        a = []
        for y, x in offsets:
            inside = 0 <= row + y < side and 0 <= column + x < side
            other = (row + y) * side + column + x
            if stage == 1 and inside and other in q and (row + y + column + x) % 2 == 0:
                a += [*act(t["embed_w"], [256 * v for v in q[other]], t["embed_b"][quality]), 256]
            else:
                a += [0] * (self.config["channels"] + 1)
        return a

    def hidden(self, before: list[int], a: list[int], stage: int, s: int, first: int, quality: int) -> list[int]:
        t = self.tensors
        weights = [own[:first] + around for own, around in zip(t["own_w"][s], t["around_w"], strict=True)]
        h = act(weights, [256 * v for v in before[:first]] + a, t["own_b"][quality][stage][s])
        return act(t["mid_w"][s], h, t["mid_b"][quality][s])

    def expected(self, hidden: list[int], i: int, quality: int) -> tuple[int, int]:
        t, unit = self.tensors, 2 ** self.config["fraction"]
        means, scales = (dot(t["out_w"][kind][i], hidden) + t["out_b"][quality][kind][i] for kind in (0, 1))
        place = means * unit >> 18
        mean = clip(place // unit, -self.limit, self.limit)
        scale = clip(scales >> 18, 0, self.config["tables"] // unit - 1)
        return mean, scale * unit + place % unit


def dot(a: list[int], b: list[int]) -> int:
    return sum(x * y for x, y in zip(a, b, strict=True))


def clip(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)


def act(weights: list[list[int]], values: list[int], biases: list[int]) -> list[int]:
    return [clip(dot(row, values) + bias >> 10, 0, 4095) for row, bias in zip(weights, biases, strict=True)]


class PlainRangeDecoder:
    def __init__(self, payload: bytes) -> None:
        self.rest = payload
        self.offset = self.word() << 32 | self.word()
        self.range = 2**64 - 1

    def word(self) -> int:
        word, self.rest = self.rest[:4].ljust(4, b"\0"), self.rest[4:]
        return int.from_bytes(word, "big")

    def symbol(self, table: list[int]) -> int:  # cumulative counts out of 2¹⁶ or 2²⁴
        unit = (self.range >> 24) * (2**24 // table[-1])
        s = next(s for s in range(len(table) - 1) if self.offset < table[s + 1] * unit)
        self.offset -= table[s] * unit
        self.range = (table[s + 1] - table[s]) * unit
        if self.range < 2**32:
            self.offset, self.range = self.offset << 32 | self.word(), self.range << 32
        return s


def crc(data: bytes) -> int:
    value = 0xFFF
    for byte in data:
        value ^= byte << 4
        for _ in range(8):
            value = (value << 1 ^ (0x80F if value & 0x800 else 0)) & 0xFFF
    return value
