"""Any bytes are refused with a reason or are exactly what an encoder writes, and neither costs much."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from random import Random
from types import FrameType
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import Finding
from benchmarks.fuzz.packets import REASON, Packets, canonicalised, check, codecs, strip_crc, with_valid_crc
from tests.codec.kinds import KINDS
from tests.codec.test_bitstream import span_of
from tofc.codec import Codec, CodecWeights, CodedView
from tofc.codec.context.config import ContextConfig
from tofc.codec.context.context_model import ContextModel
from tofc.codec.context.symbols import ContextSymbols
from tofc.codec.context.weights import ContextWeights
from tofc.codec.fake import fake_features, fake_weights
from tofc.codec.index.config import IndexConfig
from tofc.codec.index.entropy_model import IndexEntropyModel
from tofc.codec.index.fake import fake_index_weights
from tofc.codec.index.symbols import IndexSymbols
from tofc.codec.layout import PacketLayout
from tofc.codec.selective_hyperprior.config import SelectiveHyperpriorConfig
from tofc.codec.selective_hyperprior.fake import fake_selective_hyperprior
from tofc.codec.selective_hyperprior.hyper_synthesis import HyperSynthesis
from tofc.codec.selective_hyperprior.symbols import SelectiveHyperpriorSymbols
from tofc.codec.selective_hyperprior.weights import SelectiveHyperpriorWeights
from tofc.errors import PacketError

CODECS = codecs()
VIEWS = {side: fake_features(CODECS[0].weights, side**2, seed=side) for side in (1, 2, 4, 5, 6)}
quick = settings(max_examples=80, deadline=None, derandomize=True)
number = st.integers(0, 2**32 - 1)


def refused(codec: Codec, data: bytes) -> str:
    outcome = check(codec, data)
    assert REASON.fullmatch(outcome), f"{data.hex()} was accepted"
    return outcome


@st.composite
def valid(draw: st.DrawFn) -> tuple[Codec, bytes]:
    codec = draw(st.sampled_from(CODECS))
    side = draw(st.sampled_from(sorted(VIEWS)))
    n = draw(st.integers(1, side**2))
    factor = np.float32(draw(st.sampled_from([0, 1, 1, 5, 1e20])))
    return codec, codec.encode(VIEWS[side] * factor, n)


@quick
@given(st.sampled_from(CODECS), st.binary(max_size=300))
@example(CODECS[0], b"")
def test_any_bytes(codec: Codec, data: bytes) -> None:
    check(codec, data)
    check(codec, with_valid_crc(data))


@quick
@given(valid())
def test_what_an_encoder_writes_is_accepted(packet: tuple[Codec, bytes]) -> None:
    codec, data = packet
    assert len(check(codec, data)) == 64 and canonicalised(codec, data) == data


@quick
@given(
    valid(), st.lists(st.tuples(number, st.integers(1, 255)), min_size=1, max_size=4), st.integers(0, 3), st.binary()
)
def test_damage_with_a_valid_checksum(
    packet: tuple[Codec, bytes], damage: list[tuple[int, int]], cut: int, more: bytes
) -> None:
    """The content of such bytes has one canonical packet, which is accepted and decodes to the same."""
    codec, data = packet
    body = bytearray(strip_crc(data)[: len(data) - 1 - cut] + more)
    for at, change in damage:
        if body:
            body[at % len(body)] ^= change
    check(codec, with_valid_crc(bytes(body)))
    proper = canonicalised(codec, with_valid_crc(bytes(body)))
    if proper is not None:
        assert len(check(codec, proper)) == 64 and canonicalised(codec, proper) == proper


@quick
@given(valid(), number, st.binary(min_size=1, max_size=40))
def test_shorter_and_longer_packets_are_refused(packet: tuple[Codec, bytes], at: int, more: bytes) -> None:
    codec, data = packet
    refused(codec, data[: at % len(data)])
    refused(codec, data + more)
    refused(codec, with_valid_crc(strip_crc(data) + bytes(1 + at % 9)))  # zeros behind a fraction do not change it


@quick
@given(valid(), number)
def test_one_flipped_bit_is_refused(packet: tuple[Codec, bytes], at: int) -> None:
    codec, data = packet
    flipped = bytearray(data)
    flipped[at // 8 % len(data)] ^= 1 << at % 8
    refused(codec, bytes(flipped))


@pytest.mark.parametrize(
    "codec",
    CODECS,
    ids=[
        "one slice", "small grids", "three slices", "published", "published, with a transform", "indices", "one index",
    ],
)  # fmt: skip
def test_every_header(codec: Codec) -> None:
    data = codec.encode(VIEWS[6], 12)
    outcomes = {check(codec, with_valid_crc(bytes([first]) + strip_crc(data)[1:])) for first in range(16)}
    outcomes |= {check(codec, with_valid_crc(bytes([14 | merged, side]))) for merged in (0, 1) for side in range(256)}
    assert {"GRID_INVALID", "NOT_CANONICAL"} <= outcomes


def peak(work: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def memory_bound(codec: Codec) -> int:
    """Return the bytes that the largest view may take.

    They are for its features in a few copies, the coder's tables for each symbol, and the entropy model's network:
    hidden units and neighbourhoods, or hyper symbols and predictions, or what is known of each feature. Indices are
    predicted in waves of at most half a side, with counts for each codeword.
    """
    c, wave = codec.config, 0
    if isinstance(c, ContextConfig):
        symbols = c.components * (2 * c.residual_range + 40)
        network = len(c.slices) * c.context_hidden + (2 * c.reach + 1) ** 2 * (c.channels + 3)
    elif isinstance(c, SelectiveHyperpriorConfig):
        symbols = c.components * (2 * c.residual_range + 40)
        network = 20 * c.hyper + 2 * c.synthesis_hidden + 4 * c.components
    else:
        assert isinstance(c, IndexConfig)
        symbols, network = 40 * c.stages + 4 * c.components, (2 * c.reach + 1) ** 2 * 3 + c.channels
        wave = c.max_grid // 2 * 8 * (4 * max(c.codewords) + c.neighbourhood * (c.channels + 1) + 4 * c.context_hidden)
    return c.max_grid**2 * 4 * (4 * c.feature_dim + 2 * symbols + 4 * network) + wave + 100_000


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from(CODECS), st.randoms(use_true_random=False))
def test_memory_is_bounded_by_the_limits_and_the_bytes_that_came(codec: Codec, rng: Random) -> None:
    data = with_valid_crc(
        rng.choice(HEADS) + rng.choice((b"", b"\x80", b"\xff" * 9, rng.randbytes(rng.randrange(60_000))))
    )

    def work() -> None:
        check(codec, data)

    assert peak(work) < memory_bound(codec) + 8 * len(data)


HEADS = sorted({strip_crc(seed[1:])[:2] for seed in Packets().seeds()})


LARGE = {
    "context": partial(fake_weights, D=512, M=64, seed=3),
    "selective hyperprior": partial(fake_selective_hyperprior, D=64, seed=3),
    "selective hyperprior with a transform": partial(fake_selective_hyperprior, D=512, M=64, seed=3),
    "index": partial(fake_index_weights, D=512, M=64, seed=3, K=(2048, 64, 64)),
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_packet_of_the_largest_view_stays_within_the_memory_bound(kind: str) -> None:
    codec = Codec(LARGE[kind]())
    for data in (codec.encode(fake_features(codec.weights, 256) * np.float32(9)), rarest(codec, 16)):
        used = peak(partial(codec.decode, data))
        assert memory_bound(codec) / 20 < used < memory_bound(codec), "the bound is too loose or too tight"


def rarest(codec: Codec, side: int) -> bytes:
    """Return the packet in which every symbol is the rarest of its table: nearly the longest of this grid."""
    layout = PacketLayout(grid=side, cells=tuple(range(side**2)))
    symbols = RAREST[codec.config.entropy_model](codec, side)
    return codec.write([CodedView(layout=layout, symbols=symbols)])


def least_likely(tables: np.ndarray) -> np.ndarray:
    """Return the rarest symbol of each table."""
    return np.diff(tables.astype(np.int64)).argmin(axis=-1)


def rarest_of_context(codec: Codec, side: int) -> ContextSymbols:
    weights = codec.weights
    assert isinstance(weights, ContextWeights)
    least = least_likely(weights.y_tables) - weights.config.residual_range
    cells, q = np.arange(side**2), np.zeros((side**2, weights.config.components))
    steps = []
    for step in ContextModel(weights).coding_steps(side, cells, 0, q):
        steps.append((step, least[step.table]))
        q[step.rows, step.first : step.last] = step.mean + least[step.table]
    return ContextSymbols.of(0, q, steps)


def rarest_of_experts(codec: Codec, side: int) -> SelectiveHyperpriorSymbols:
    weights = codec.weights
    assert isinstance(weights, SelectiveHyperpriorWeights)
    n, c = side**2, weights.config
    experts = np.full(n, least_likely(weights.expert_tables)[0])
    z = np.tile(least_likely(weights.z_tables)[0] - c.hyper_range, (n, 1))
    mean, table = HyperSynthesis(weights)(experts, z, 0)
    residual = (least_likely(weights.y_tables) - c.residual_range)[table]
    q = np.concatenate([experts[:, None], z, mean + residual], axis=1)
    return SelectiveHyperpriorSymbols(quality=0, q=q, residual=residual, table=table)


def rarest_of_indices(codec: Codec, side: int) -> IndexSymbols:
    model = codec.entropy_model
    assert isinstance(model, IndexEntropyModel)
    return model.walk(side, np.arange(side**2), 0, lambda weights: span_of(weights, int(weights.argmin())))


#: by entropy model: (codec, grid side) → the rarest symbols of quality 0
RAREST: dict[str, Callable[[Codec, int], Any]] = {
    "context": rarest_of_context,
    "selective-hyperprior": rarest_of_experts,
    "index": rarest_of_indices,
}


#: by entropy model: lines of code that a symbol of an honest packet may take; an index is searched among many
LINES = {"context": 20, "selective-hyperprior": 20, "index": 60}


def lines(work: Callable[[], Any]) -> int:
    """Count the lines of the codec's code that run. Machines differ in speed, not in this."""
    found = 0

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal found
        found += event == "line"
        return count if "/codec/" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(count)
    try:
        work()
    finally:
        sys.settrace(before)
    return found


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_no_packet_takes_much_more_work_than_an_honest_one(make: Callable[..., CodecWeights]) -> None:
    """Neither the longest packet of a grid nor a few bytes that claim as much take much longer."""
    codec = Codec(make(D=64, M=64, seed=3))
    honest = codec.encode(fake_features(codec.weights, 256))
    longest = rarest(codec, 16)
    symbols, ordinary = codec.parse(honest).q.size, lines(partial(check, codec, honest))
    assert 2 * 8 * len(longest) > 256 * codec.entropy_model.max_feature_bits, "it must be the longest, or nearly"
    assert len(longest) > 1.5 * len(honest) and symbols < ordinary < LINES[codec.config.entropy_model] * symbols
    for data in (longest, *(with_valid_crc(bytes.fromhex(body)) for body in ("0c", "0c80", "0d80", "0dff"))):
        assert lines(partial(check, codec, data)) < 2 * ordinary, data[:4].hex()


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_what_is_longer_than_any_packet_is_refused_before_it_is_read(make: Callable[..., CodecWeights]) -> None:
    codec = Codec(make(D=64, M=64, seed=3))
    longest = rarest(codec, 16)
    data = with_valid_crc(strip_crc(longest) + bytes(2 * len(longest)))
    assert check(codec, data) == "TOO_LONG" and lines(partial(check, codec, data)) < 60


def test_the_check_finds_a_codec_that_breaks_its_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Codec(fake_weights(D=12, M=6, H=4))
    data = codec.encode(VIEWS[4])
    with pytest.raises(Finding, match="without a reason or a message"), monkeypatch.context() as patched:
        patched.setattr(codec, "decode_views", Mock(side_effect=PacketError("odd", "?")))
        check(codec, data)
    with pytest.raises(Finding, match="numbers"), monkeypatch.context() as patched:
        patched.setattr(codec, "dequantise", lambda q, *_: np.full((len(q), 12), np.nan, np.float32))
        check(codec, data)
