"""The golden packets: a second decoder, written from docs/bitstream.md, decodes them to the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.codec.second_decoder import PlainDecoder, crc
from tofc.codec import Codec, CodedView
from tofc.codec.context.context_model import CodingStep, ContextModel, stages
from tofc.codec.context.symbols import ContextSymbols
from tofc.codec.entropy_model import Symbols
from tofc.codec.files import load_config
from tofc.codec.index.entropy_model import IndexEntropyModel
from tofc.codec.index.probabilities import spans_of
from tofc.codec.index.symbols import IndexSymbols
from tofc.codec.index.waves import waves
from tofc.codec.index.weights import IndexWeights
from tofc.codec.layout import SIDES, PacketLayout
from tofc.codec.selective_hyperprior.hyper_synthesis import HyperSynthesis
from tofc.codec.selective_hyperprior.symbols import SelectiveHyperpriorSymbols
from tofc.codec.selective_hyperprior.weights import SelectiveHyperpriorWeights
from tofc.errors import PacketError

GOLDEN = Path(__file__).parent / "golden"
CONTEXT_CODECS = ["one-quality", "four-qualities"]
HYPERPRIOR_CODECS = ["published", "published-with-transform"]
INDEX_CODECS = ["index"]
CODECS = [*CONTEXT_CODECS, *HYPERPRIOR_CODECS, *INDEX_CODECS]
DOCUMENT = Path(__file__).parents[2] / "docs" / "bitstream.md"


def with_crc(number: int, size: int) -> bytes:
    """Return a packet of `size` bytes with `number` as header and body and a valid checksum."""
    content = number.to_bytes(size - 1, "big")  # its first half byte is 0, then comes the header's
    return (number << 12 | crc(content)).to_bytes(size, "big")


def golden(name: str, kind: str = "packets") -> list[dict[str, Any]]:
    """Return the golden packets of one view, or with "several" those of several views."""
    packets: list[dict[str, Any]] = json.loads((GOLDEN / name / f"{kind}.json").read_text())
    return packets


def every(name: str) -> list[bytes]:
    """Return all golden packets."""
    return [bytes.fromhex(entry["packet"]) for kind in ("packets", "several") for entry in golden(name, kind)]


def entropy_model_of(name: str) -> str:
    """Return the entropy model of a golden codec."""
    return load_config(GOLDEN / name).entropy_model


def test_the_checksum_is_the_documented_one() -> None:
    assert crc(b"123456789") == 0x37C
    assert "0x37C" in DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CODECS)
def test_a_decoder_from_the_document_reads_the_golden_packets(name: str) -> None:
    decoder = PlainDecoder.load(GOLDEN / name)
    for entry in golden(name):
        packet = bytes.fromhex(entry.pop("packet"))
        assert decoder.decode(packet) == [entry]


@pytest.mark.parametrize("name", CODECS)
def test_the_codec_reads_them_to_the_same_numbers(name: str) -> None:
    codec = Codec.load(GOLDEN / name)
    for entry in golden(name):
        decoded = codec.decode(bytes.fromhex(entry["packet"]))
        assert (decoded.grid, decoded.positions.tolist()) == (entry["grid"], entry["cells"])
        assert (decoded.features == codec.dequantise(np.array(entry["q"]), entry["quality"])).all()


@pytest.mark.parametrize("name", CODECS)
def test_packets_of_several_views_are_read_by_both_decoders(name: str) -> None:
    codec, plain = Codec.load(GOLDEN / name), PlainDecoder.load(GOLDEN / name)
    for entry in golden(name, "several"):
        packet = bytes.fromhex(entry["packet"])
        assert plain.decode(packet) == entry["views"]
        found = codec.decode_views(packet)
        assert len(found) == len(entry["views"])
        for view, wanted in zip(found, entry["views"], strict=True):
            assert (view.grid, view.positions.tolist(), view.q.tolist()) == (
                wanted["grid"],
                wanted["cells"],
                wanted["q"],
            )
        with pytest.raises(PacketError, match=f"{len(found)} views, at most 1") as caught:
            codec.decode(packet)
        assert caught.value.reason == "SEVERAL_VIEWS"


@pytest.mark.parametrize("name", CODECS)
def test_the_golden_symbols_give_the_golden_bytes(name: str) -> None:
    codec = Codec.load(GOLDEN / name)
    for entry in golden(name):
        symbols = SYMBOLS[codec.config.entropy_model](codec, entry)
        layout = PacketLayout(grid=entry["grid"], cells=tuple(entry["cells"]), quality=entry["quality"])
        assert codec.write([CodedView(layout=layout, symbols=symbols)]).hex() == entry["packet"]


def coding_steps_of(codec: Codec, entry: dict[str, Any]) -> list[CodingStep]:
    """Return every coding step of a golden packet."""
    q = np.array(entry["q"], np.float64)
    return list(ContextModel(codec.weights).coding_steps(entry["grid"], np.array(entry["cells"]), entry["quality"], q))


def context_symbols(codec: Codec, entry: dict[str, Any]) -> ContextSymbols:
    """Return the symbols of a golden packet."""
    q, steps = np.array(entry["q"]), coding_steps_of(codec, entry)
    residuals = [q[step.rows, step.first : step.last] - step.mean for step in steps]
    return ContextSymbols.of(entry["quality"], q, list(zip(steps, residuals, strict=True)))


def hyperprior_symbols(codec: Codec, entry: dict[str, Any]) -> SelectiveHyperpriorSymbols:
    """Return the symbols of a golden packet."""
    weights, q = codec.weights, np.array(entry["q"])
    assert isinstance(weights, SelectiveHyperpriorWeights)
    z = q[:, 1 : 1 + weights.config.hyper]
    mean, table = HyperSynthesis(weights)(q[:, 0], z, entry["quality"])
    residual = q[:, 1 + weights.config.hyper :] - mean
    return SelectiveHyperpriorSymbols(quality=entry["quality"], q=q, residual=residual, table=table)


def index_symbols(codec: Codec, entry: dict[str, Any]) -> IndexSymbols:
    """Return the symbols of a golden packet."""
    q, cells, model = np.array(entry["q"]), np.array(entry["cells"]), codec.entropy_model
    assert isinstance(model, IndexEntropyModel)
    order, ends = waves(entry["grid"], cells)
    in_order = iter([index for rows in np.split(order, ends[:-1]) for index in q[rows].T.ravel().tolist()])
    return model.walk(entry["grid"], cells, entry["quality"], lambda weights: span_of(weights, next(in_order)))


def span_of(weights: NDArray[np.int64], index: int) -> tuple[int, int, int]:
    """Return an index, the counts before it, and its own, by the weights of all indices of its stage."""
    first, count = spans_of(weights[None], np.array([index]))
    return index, int(first[0]), int(count[0])


#: by entropy model: (codec, golden packet) → its symbols
SYMBOLS: dict[str, Callable[[Codec, dict[str, Any]], Symbols]] = {
    "context": context_symbols,
    "selective-hyperprior": hyperprior_symbols,
    "index": index_symbols,
}


@pytest.mark.parametrize("name", CODECS)
def test_the_golden_packets_cover_the_format(name: str) -> None:
    codec, entries = Codec.load(GOLDEN / name), golden(name)
    assert {entry["grid"] for entry in entries} == {1, 2, 5, 7, 10, *SIDES}  # without a code, and with each
    assert {bytes.fromhex(entry["packet"])[0] >> 4 & 1 for entry in entries} == {0, 1}
    assert {entry["quality"] for entry in entries} == set(range(codec.config.qualities))


@pytest.mark.parametrize("name", HYPERPRIOR_CODECS)
def test_the_golden_packets_cover_experts_and_hyper_symbols(name: str) -> None:
    codec = Codec.load(GOLDEN / name)
    found = [hyperprior_symbols(codec, entry) for entry in golden(name)]
    c, weights = codec.config, codec.weights
    assert isinstance(weights, SelectiveHyperpriorWeights) and (weights.analysis is None) == (name == "published")
    for quality in range(c.qualities):
        experts = np.concatenate([one.experts for one in found if one.quality == quality])
        assert {*experts.tolist()} == set(range(weights.config.experts))
    z = np.concatenate([one.q[:, 1 : 1 + weights.config.hyper] for one in found])
    residual, table = (np.concatenate([getattr(one, part).ravel() for one in found]) for part in ("residual", "table"))
    assert {-weights.config.hyper_range, weights.config.hyper_range} <= {*z.ravel().tolist()}
    assert {-weights.config.residual_range, weights.config.residual_range} <= {*residual.tolist()}
    assert len({*table.tolist()}) > 20 and {0, weights.config.tables - 1} & {*table.tolist()}


@pytest.mark.parametrize("name", INDEX_CODECS)
def test_the_golden_packets_cover_indices(name: str) -> None:
    """Every index of every stage, likely and unlikely ones, in grids with a table of places and without."""
    codec, entries = Codec.load(GOLDEN / name), golden(name)
    weights = codec.weights
    assert isinstance(weights, IndexWeights) and weights.config.stages == 3
    q = np.concatenate([entry["q"] for entry in entries])
    for stage, size in enumerate(weights.config.codewords):
        assert {*q[:, stage].tolist()} == set(range(size))
    counts = np.concatenate([index_symbols(codec, entry).count for entry in entries])
    assert counts.min() < 2**6 and counts.max() > 2**23
    for side in weights.place:
        assert {cell for entry in entries if entry["grid"] == side for cell in entry["cells"]} == set(range(side**2))


@pytest.mark.parametrize("name", CONTEXT_CODECS)
def test_the_golden_packets_cover_the_context_model(name: str) -> None:
    codec, entries = Codec.load(GOLDEN / name), golden(name)
    present = [frozenset(stages(entry["grid"], np.array(entry["cells"])).tolist()) for entry in entries]
    assert {*present} == {frozenset({0}), frozenset({1}), frozenset({0, 1})}
    limit, means, tables, residuals = codec.config.residual_range, [], [], []
    for entry in entries:
        for step in coding_steps_of(codec, entry):
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


@pytest.mark.parametrize("name", CODECS)
def test_truncations_are_refused(name: str) -> None:
    """All are refused except those that twelve bits miss: one in 4096."""
    codec = Codec.load(GOLDEN / name)
    tried = missed = 0
    for packet in every(name):
        for size in range(len(packet)):
            tried += 1
            try:
                codec.decode_views(packet[:size])
            except PacketError:
                continue
            missed += 1
    assert tried > 300 and missed <= 1 + tried / 2048


@pytest.mark.parametrize("name", CODECS)
def test_every_flipped_bit_is_refused(name: str) -> None:
    codec = Codec.load(GOLDEN / name)
    for packet in every(name):
        for bit in range(8 * len(packet)):
            damaged = bytearray(packet)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(PacketError):
                codec.decode_views(bytes(damaged))


@pytest.mark.parametrize("name", CODECS)
def test_damage_with_a_valid_checksum_is_refused_or_is_another_packet(name: str) -> None:
    """What passes the checksum is canonical: it decodes to the end and encodes to itself."""
    codec = Codec.load(GOLDEN / name)
    plain = PlainDecoder.load(GOLDEN / name)
    rng = np.random.default_rng(0)
    accepted = refused = 0
    for packet in every(name):
        content, size = int.from_bytes(packet, "big") >> 12, len(packet)
        bits = rng.permutation(8 * size - 12)[:60]
        damaged = [with_crc(content ^ 1 << b, size) for b in bits.tolist()]
        damaged += [with_crc(content << 8 | tail, size + 1) for tail in (0, 1, 0x5A)]
        damaged += [with_crc(content << 64 | int.from_bytes(rng.bytes(8), "big"), size + 8)]
        for sealed in damaged:
            try:
                decoded = codec.decode_views(sealed)
            except PacketError as error:
                assert error.reason in PacketError.__doc__  # type: ignore[operator]
                refused += 1
            else:
                assert [one["cells"] for one in plain.decode(sealed)] == [one.positions.tolist() for one in decoded]
                accepted += 1
    assert accepted and refused


@pytest.mark.parametrize("name", CODECS)
def test_nothing_can_be_appended(name: str) -> None:
    codec = Codec.load(GOLDEN / name)
    for packet in every(name):
        for tail in (b"\0", b"\0\0\0\0", b"\1", b"\xff" * 4):
            content = (int.from_bytes(packet, "big") >> 12) << 8 * len(tail) | int.from_bytes(tail, "big")
            with pytest.raises(PacketError) as caught:
                codec.decode_views(with_crc(content, len(packet) + len(tail)))
            assert caught.value.reason in {"NOT_CANONICAL", "PAYLOAD_INVALID"}


def test_random_bytes_are_refused() -> None:
    codec = Codec.load(GOLDEN / "four-qualities")
    rng = np.random.default_rng(1)
    for _ in range(400):
        size = int(rng.integers(2, 60))
        data = with_crc(int.from_bytes(rng.bytes(size), "big") >> 12, size)
        try:
            decoded = codec.decode(data)
        except PacketError as error:
            assert error.reason.isupper() and str(error)
        else:
            assert len(decoded.features) == len(decoded.positions)
