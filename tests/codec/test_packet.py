from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from tofc.codec import checksum
from tofc.codec.codec import Codec
from tofc.codec.fake import fake_features, fake_weights
from tofc.codec.layout import PacketLayout
from tofc.codec.packet import _shortest, read, seal, write
from tofc.codec.range_coder import Interval
from tofc.errors import PacketError


def with_crc(head: int, *rest: int) -> bytes:
    """Return a packet with the header's four bits `head`, any bytes after them and a valid checksum."""
    return checksum.append_crc(bytes([head, *rest]))


def reason(data: bytes, *, max_side: int = 16, max_feature_bits: int = 100, max_views: int = 64) -> str:
    with pytest.raises(PacketError) as caught:
        read(data, max_side=max_side, max_feature_bits=max_feature_bits, max_views=max_views)
    assert str(caught.value).strip()
    return caught.value.reason


def test_a_packet_carries_its_layout_and_payload() -> None:
    rng = np.random.default_rng(0)
    for grid in (1, 2, 4, 5, 6, 13, 16):
        for n in {1, 2, grid * grid // 2, grid * grid - 1, grid * grid} & set(range(1, grid * grid + 1)):
            cells = tuple(sorted(rng.permutation(grid * grid)[:n].tolist()))
            low = int.from_bytes(rng.bytes(16), "big") >> 1
            width = int(rng.integers(2**32, 2**60))
            layout = PacketLayout(grid=grid, cells=cells, quality=n % 5)
            data = write([layout], Interval(low=low, width=width, bits=128), qualities=5)
            (back,), payload = read(data, max_side=16, max_feature_bits=1000, qualities=5)
            assert back == layout
            point = int.from_bytes(payload.ljust(64, b"\0"), "big")
            assert low << 384 <= point < (low + width) << 384


def some_views(rng: np.random.Generator, count: int) -> list[PacketLayout]:
    """Return layouts of which some follow an equal one."""
    found: list[PacketLayout] = []
    while len(found) < count:
        grid, quality, merged = (int(one) for one in (rng.choice((1, 4, 5, 6, 13)), rng.integers(3), rng.integers(2)))
        for _ in range(int(rng.integers(1, 6))):
            n = int(rng.integers(1, grid * grid)) if merged and grid > 1 else grid * grid
            cells = tuple(sorted(rng.permutation(grid * grid)[:n].tolist()))
            found.append(PacketLayout(grid=grid, cells=cells, quality=quality))
    return found[:count]


@pytest.mark.parametrize("count", [2, 3, 11, 64])
def test_a_packet_of_several_views_carries_their_layouts_and_payload(count: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(10):
        views, low, width = some_views(rng, count), int.from_bytes(rng.bytes(16), "big") >> 1, 2**40
        data = write(views, Interval(low=low, width=width, bits=128), qualities=3)
        back, payload = read(data, max_side=16, max_feature_bits=1000, qualities=3)
        assert back == views and len(back) == count
        point = int.from_bytes(payload, "big") << 128
        assert low << 8 * len(payload) <= point < (low + width) << 8 * len(payload)


def test_what_views_share_is_sent_once() -> None:
    """Twelve crops and a global view, as a large picture has them."""
    everything = Interval(low=0, width=2**64 - 1, bits=64)
    crop, whole = (PacketLayout(grid=side, cells=tuple(range(side**2)), quality=2) for side in (4, 6))
    assert len(write([*[crop] * 12, whole], everything, qualities=8)) == 6
    assert sum(len(write([one], everything, qualities=8)) for one in [*[crop] * 12, whole]) == 39


@pytest.mark.parametrize(
    ("views", "allowed", "wanted"),
    [(2, 1, "SEVERAL_VIEWS"), (64, 63, "SEVERAL_VIEWS"), (3, 3, None)],
)
def test_more_views_than_expected_are_refused(views: int, allowed: int, wanted: str | None) -> None:
    data = write([PacketLayout(grid=4, cells=(1, 2))] * views, Interval(low=5, width=2**32, bits=64))
    if wanted is None:
        assert len(read(data, max_side=16, max_feature_bits=100, max_views=allowed)[0]) == views
    else:
        assert reason(data, max_views=allowed) == wanted


def several(body: bytes, merged: bool = False) -> bytes:
    return with_crc(14 | merged, 0, *body)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (several(b"", merged=True), "NOT_CANONICAL"),
        (several(bytes([0, 0xFF, 0xFF])), "GRID_INVALID"),  # two views whose side is spelt: 255
        (several(bytes(40_000)), "TOO_LONG"),
        (several(bytes(500)), "TOO_LONG"),  # within the limit of 64 views, but not of the two that it has
    ],
)
def test_invalid_packets_of_several_views(data: bytes, wanted: str) -> None:
    assert reason(data, max_side=4, max_feature_bits=50) == wanted


def test_the_smallest_packets() -> None:
    everything = Interval(low=0, width=2**64 - 1, bits=64)
    assert write([PacketLayout(grid=4, cells=tuple(range(16)))], everything).hex()[:1] == "0"
    assert len(write([PacketLayout(grid=4, cells=tuple(range(16)))], everything)) == 2  # header and check
    assert (
        len(write([PacketLayout(grid=5, cells=tuple(range(25)))], everything)) == 3
    )  # any other grid: its side as well
    assert len(write([PacketLayout(grid=6, cells=(0,))], everything)) == 2  # n = 1 at cell 0 is the fraction 0
    assert len(write([PacketLayout(grid=6, cells=(20,))], everything)) == 4  # 35 · 36 possibilities take eleven bits


@pytest.mark.parametrize("whole", [2**64, 630 << 64, (9075135300 * 35) << 64])
def test_no_shorter_body_lies_in_the_interval(whole: int) -> None:
    """Compared with a search through all sizes; many intervals contain a number that is much shorter than usual."""
    rng = np.random.default_rng(whole % 97)
    for trial in range(300):
        width = 1 << int(rng.integers(0, whole.bit_length() - 1))
        size = int(rng.integers(0, 9))
        point = int.from_bytes(rng.bytes(size), "big") * whole // 256**size
        low = min(max(point - trial % 3 * width // 2, 0), whole - width)
        found = _shortest(low, width, whole)
        for shorter in range(len(found) + 1):
            number = -(-low * 256**shorter // whole)
            if number * whole < (low + width) * 256**shorter:
                assert found == number.to_bytes(shorter, "big")
                break
        else:
            pytest.fail("the body is outside of the interval")


def test_the_body_is_the_shortest_in_the_interval() -> None:
    layout = PacketLayout(grid=4, cells=tuple(range(16)))
    half = Interval(low=2**63 - 1, width=2**32, bits=64)
    for interval, body in (
        (half, b"\x80"),
        (Interval(low=2**63, width=1, bits=64), b"\x80"),
        (Interval(low=2**63 + 1, width=1, bits=64), b"\x80" + bytes(6) + b"\1"),
    ):
        assert write([layout], interval) == seal(4, False, body)


@pytest.mark.parametrize("data", [b"", b"\0", b"\xe0", b"\xe0\5"])
def test_too_short(data: bytes) -> None:
    assert reason(data) == "TOO_SHORT"


@pytest.mark.parametrize("side", [17, 255])
def test_grids_beyond_the_limit(side: int) -> None:
    assert reason(with_crc(14, side)) == "GRID_INVALID"


def test_a_grid_code_beyond_the_codecs_limit() -> None:
    assert reason(with_crc(6), max_side=8) == "GRID_INVALID"


def test_a_side_that_has_a_code_must_not_be_spelt_out() -> None:
    assert reason(with_crc(14, 6)) == "NOT_CANONICAL"


def test_too_long() -> None:
    assert reason(with_crc(0, *bytes(10_000))) == "TOO_LONG"


def test_a_single_cell_cannot_be_merged() -> None:
    assert reason(with_crc(15, 1, 0)) == "COUNT_INVALID"


def test_a_wrong_checksum() -> None:
    assert reason(b"\0\0\0\0") == "CHECKSUM_MISMATCH"


def test_hostile_headers_allocate_next_to_nothing() -> None:
    """Whatever the bytes claim, memory is bounded by their number and by the codec's limits."""
    codec = Codec(fake_weights(D=512))
    codec.decode(codec.encode(fake_features(codec.weights, 16)))
    hostile = [with_crc(14, side, *tail) for side in (0, 17, 64, 255) for tail in (b"", b"\xff" * 500)]
    hostile += [with_crc(15, 255, *b"\xff" * 9), b"\xc1" * 3, with_crc(0, *b"\xff" * 60_000)]
    tracemalloc.start()
    try:
        for data in hostile:
            with pytest.raises(PacketError):
                codec.decode(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 256 * 1024
