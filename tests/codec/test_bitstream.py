"""A second decoder, written from docs/bitstream.md in plain integers, and the golden packets."""

from __future__ import annotations

import json
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from shared.codec import Codec, PacketError
from shared.codec.context import Context, Step, stages
from shared.codec.packet import Layout, write
from shared.codec.symbols import Symbols

GOLDEN = Path(__file__).parent / "golden"
CODECS = ["one-quality", "four-qualities"]
DOCUMENT = Path(__file__).parents[2] / "docs" / "bitstream.md"


class PlainDecoder:
    def __init__(self, directory: Path) -> None:
        self.config = json.loads((directory / "codec.json").read_text())
        self.tensors = {name: array.tolist() for name, array in load_file(directory / "codec.safetensors").items()}
        self.limit = self.config["residual_range"]

    def decode(self, packet: bytes) -> dict[str, Any]:
        digits = packet.hex()  # one for four bits
        head, rest, check = digits[0], digits[1:-3], digits[-3:]
        code, merged = int(head, 16) >> 1, int(head, 16) & 1
        if code == 7:
            side, body = int(rest[:2], 16), rest[2:]
        else:
            side, body = [4, 6, 8, 9, 12, 13, 16][code], rest
        assert int(check, 16) == crc(bytes.fromhex("0" + head + rest))
        total, size = side * side, len(body) // 2
        quality, number = divmod(int(body or "0", 16) * self.config["qualities"], 256**size)
        whole = 256**size
        cells = list(range(total))
        if merged:
            n, number = divmod(number * (total - 1), whole)
            n += 1
            rank, number = divmod(number * comb(total, n), whole)
            cells = []
            for i in range(n, 0, -1):
                cells.insert(0, max(c for c in range(total) if comb(c, i) <= rank))
                rank -= comb(cells[0], i)
        q = self.symbols(number.to_bytes(size, "big"), side, cells, quality)
        return {"grid": side, "cells": cells, "quality": quality, "q": q}

    def symbols(self, payload: bytes, side: int, cells: list[int], quality: int) -> list[list[int]]:
        """Every component of every feature, in the order of the cells."""
        stream, starts = RangeDecoder(payload), [0, *self.config["slices"][:-1]]
        q: dict[int, list[int]] = {cell: [] for cell in cells}
        for stage in (0, 1):
            cells_here = [cell for cell in cells if (cell // side + cell % side) % 2 == stage]
            around = {cell: self.around(q, side, cell, stage, quality) for cell in cells_here}
            for s, (first, last) in enumerate(zip(starts, self.config["slices"], strict=True)):
                for cell in cells_here:
                    hidden = self.hidden(q[cell], around[cell], stage, s, first, quality)
                    for i in range(first, last):
                        mean, table = self.expected(hidden, i, quality)
                        q[cell].append(mean + stream.symbol(self.tensors["y_tables"][table]) - self.limit)
        return [q[cell] for cell in cells]

    def around(self, q: dict[int, list[int]], side: int, cell: int, stage: int, quality: int) -> list[int]:
        t, reach, row, column = self.tensors, self.config["reach"], *divmod(cell, side)
        offsets = [(y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1) if (y, x) != (0, 0)]
        a = []
        for y, x in offsets:
            inside = 0 <= row + y < side and 0 <= column + x < side
            other = (row + y) * side + column + x
            if stage == 1 and inside and other in q and (row + y + column + x) % 2 == 0:
                a += act(t["embed_w"], [256 * v for v in q[other]], t["embed_b"][quality]) + [256]
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


class RangeDecoder:
    def __init__(self, payload: bytes) -> None:
        self.rest = payload
        self.offset = self.word() << 32 | self.word()
        self.range = 2**64 - 1

    def word(self) -> int:
        word, self.rest = self.rest[:4].ljust(4, b"\0"), self.rest[4:]
        return int.from_bytes(word, "big")

    def symbol(self, table: list[int]) -> int:
        unit = (self.range >> 24) * 256
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


def resealed(number: int, size: int) -> bytes:
    """``number``, header and body of a packet of ``size`` bytes, with its checksum mended."""
    content = number.to_bytes(size - 1, "big")  # half a byte longer than it has to be: the header's half comes alone
    return (number << 12 | crc(content)).to_bytes(size, "big")


def golden(name: str) -> list[dict[str, Any]]:
    packets: list[dict[str, Any]] = json.loads((GOLDEN / name / "packets.json").read_text())
    return packets


def test_the_checksum_is_the_documented_one() -> None:
    assert crc(b"123456789") == 0x37C
    assert "0x37C" in DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CODECS)
def test_a_decoder_from_the_document_reads_the_golden_packets(name: str) -> None:
    decoder = PlainDecoder(GOLDEN / name)
    for entry in golden(name):
        packet = bytes.fromhex(entry.pop("packet"))
        assert decoder.decode(packet) == entry


@pytest.mark.parametrize("name", CODECS)
def test_the_codec_reads_them_to_the_same_numbers(name: str) -> None:
    codec = Codec.load(GOLDEN / name)
    for entry in golden(name):
        decoded = codec.decode(bytes.fromhex(entry["packet"]))
        assert (decoded.grid, decoded.positions.tolist()) == (entry["grid"], entry["cells"])
        assert (decoded.features == codec.dequantise(np.array(entry["q"]), entry["quality"])).all()


@pytest.mark.parametrize("name", CODECS)
def test_the_golden_symbols_give_the_golden_bytes(name: str) -> None:
    codec = Codec.load(GOLDEN / name)
    for entry in golden(name):
        q, quality = np.array(entry["q"]), entry["quality"]
        steps = walked(codec, entry)
        residual = [(q[step.rows, step.first : step.last] - step.mean).ravel() for step in steps]
        symbols = Symbols(
            quality=quality,
            q=q,
            feature=np.concatenate([np.repeat(step.rows, step.last - step.first) for step in steps]),
            residual=np.concatenate(residual),
            table=np.concatenate([step.table.ravel() for step in steps]),
        )
        layout = Layout(grid=entry["grid"], cells=tuple(entry["cells"]), quality=quality)
        packet = write(layout, codec.payload.encode(symbols), qualities=codec.config.qualities)
        assert packet.hex() == entry["packet"]


def walked(codec: Codec, entry: dict[str, Any]) -> list[Step]:
    """Every step of a golden packet."""
    q = np.array(entry["q"], np.float64)
    return list(Context(codec.weights).steps(entry["grid"], np.array(entry["cells"]), entry["quality"], q))


@pytest.mark.parametrize("name", CODECS)
def test_the_golden_packets_cover_the_format(name: str) -> None:
    codec, entries = Codec.load(GOLDEN / name), golden(name)
    assert {entry["grid"] for entry in entries} == {1, 2, 4, 5, 6}  # with a code and without
    assert {bytes.fromhex(entry["packet"])[0] >> 4 & 1 for entry in entries} == {0, 1}
    assert {entry["quality"] for entry in entries} == set(range(codec.config.qualities))
    present = [frozenset(stages(entry["grid"], np.array(entry["cells"])).tolist()) for entry in entries]
    assert {*present} == {frozenset({0}), frozenset({1}), frozenset({0, 1})}
    limit, means, tables, residuals = codec.config.residual_range, [], [], []
    for entry in entries:
        for step in walked(codec, entry):
            means.append(step.mean.ravel())
            tables.append(step.table.ravel())
            residuals.append((np.array(entry["q"])[step.rows, step.first : step.last] - step.mean).ravel())
    mean, table, residual = (np.concatenate(each) for each in (means, tables, residuals))
    assert {-limit, limit} <= {*residual.tolist()}
    assert len({*table.tolist()}) > 20 and len({*mean.tolist()}) >= 4
    if name == "four-qualities":
        assert {-limit, limit} <= {*mean.tolist()}
        assert {0, codec.config.tables - 1} <= {*table.tolist()}
        assert len({*(table % (1 << codec.config.fraction)).tolist()}) == 4


@pytest.mark.parametrize("part", ["embed_w", "embed_b", "around_w", "own_w", "own_b", "mid_w", "mid_b", "out_w", "out_b"])
def test_every_part_of_the_context_model_matters_to_some_packet(part: str) -> None:
    """Else the golden packets would not notice what became of it."""
    codec = Codec.load(GOLDEN / "four-qualities")
    weights = replace(codec.weights, **{part: np.zeros_like(getattr(codec.weights, part))})
    other = Codec(weights)
    changed = 0
    for entry in golden("four-qualities"):
        one, two = walked(codec, entry), walked(other, entry)
        changed += any((a.table != b.table).any() or (a.mean != b.mean).any() for a, b in zip(one, two, strict=True))
    assert changed >= 2


@pytest.mark.parametrize("name", CODECS)
def test_truncations_are_refused(name: str) -> None:
    """All but those that twelve bits miss: one in 4096."""
    codec = Codec.load(GOLDEN / name)
    tried = missed = 0
    for entry in golden(name):
        packet = bytes.fromhex(entry["packet"])
        for size in range(len(packet)):
            tried += 1
            try:
                codec.decode(packet[:size])
            except PacketError:
                continue
            missed += 1
    assert tried > 300 and missed <= 1


@pytest.mark.parametrize("name", CODECS)
def test_every_flipped_bit_is_refused(name: str) -> None:
    codec = Codec.load(GOLDEN / name)
    for entry in golden(name):
        packet = bytes.fromhex(entry["packet"])
        for bit in range(8 * len(packet)):
            damaged = bytearray(packet)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(PacketError):
                codec.decode(bytes(damaged))


@pytest.mark.parametrize("name", CODECS)
def test_damage_with_a_right_checksum_is_refused_or_is_another_packet(name: str) -> None:
    """What gets past the checksum is canonical: it decodes to the end and encodes to itself."""
    codec = Codec.load(GOLDEN / name)
    plain = PlainDecoder(GOLDEN / name)
    rng = np.random.default_rng(0)
    accepted = refused = 0
    for entry in golden(name):
        packet = bytes.fromhex(entry["packet"])
        content, size = int.from_bytes(packet, "big") >> 12, len(packet)
        bits = rng.permutation(8 * size - 12)[:60]
        damaged = [resealed(content ^ 1 << b, size) for b in bits.tolist()]
        damaged += [resealed(content << 8 | tail, size + 1) for tail in (0, 1, 0x5A)]
        damaged += [resealed(content << 64 | int.from_bytes(rng.bytes(8), "big"), size + 8)]
        for sealed in damaged:
            try:
                decoded = codec.decode(sealed)
            except PacketError as error:
                assert error.reason in PacketError.__doc__  # type: ignore[operator]
                refused += 1
            else:
                assert plain.decode(sealed)["cells"] == decoded.positions.tolist()
                accepted += 1
    assert accepted and refused


@pytest.mark.parametrize("name", CODECS)
def test_nothing_can_be_appended(name: str) -> None:
    codec = Codec.load(GOLDEN / name)
    for entry in golden(name):
        packet = bytes.fromhex(entry["packet"])
        for tail in (b"\0", b"\0\0\0\0", b"\1", b"\xff" * 4):
            content = (int.from_bytes(packet, "big") >> 12) << 8 * len(tail) | int.from_bytes(tail, "big")
            with pytest.raises(PacketError) as caught:
                codec.decode(resealed(content, len(packet) + len(tail)))
            assert caught.value.reason in {"NOT_CANONICAL", "PAYLOAD_INVALID"}


def test_random_bytes_are_refused() -> None:
    codec = Codec.load(GOLDEN / "four-qualities")
    rng = np.random.default_rng(1)
    for _ in range(400):
        size = int(rng.integers(2, 60))
        data = resealed(int.from_bytes(rng.bytes(size), "big") >> 12, size)
        try:
            decoded = codec.decode(data)
        except PacketError as error:
            assert error.reason.isupper() and str(error)
        else:
            assert len(decoded.features) == len(decoded.positions)
