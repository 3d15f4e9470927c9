"""The bounded cache of decoded pictures, and what a session keeps of its announcements."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_server.picture_cache import OVERHEAD_BYTES, HeldPicture, PictureCache
from edge_server.settings import SessionLimits
from edge_server.uploads import Uploads
from tests.server.raw_client import picture_id
from tofc.errors import LimitError, MismatchError
from tofc.v1 import tofc_pb2 as pb

ROWS = np.zeros((4, 8), np.float32)  # 128 bytes
ONE = OVERHEAD_BYTES + ROWS.nbytes


def add(cache: PictureCache, name: bytes, views: NDArray[np.float32] = ROWS) -> HeldPicture:
    picture = cache.open(name, 0, 0)
    cache.put(picture, 0, views, 1.0)
    return picture


async def test_a_picture_is_complete_when_all_views_are_in() -> None:
    cache = PictureCache(10 * ONE)
    picture = cache.open(b"a", 1, 2)
    waiting = asyncio.create_task(picture.wait())
    for index in (2, 0, 0, 2):
        cache.put(picture, index, ROWS + index, 2.0)
        await asyncio.sleep(0)
        assert not waiting.done() and not picture.complete
    cache.put(picture, 1, ROWS + 1, 2.0)
    await waiting
    assert [view[0, 0] for view in picture.views] == [0, 1, 2]
    assert picture.decode_ms == 6.0
    assert cache.size_bytes == picture.size_bytes == OVERHEAD_BYTES + 3 * ROWS.nbytes
    assert cache.open(b"a", 1, 2) is picture
    with pytest.raises(MismatchError, match="1 x 2 crops, now it is announced with 2 x 1"):
        cache.open(b"a", 2, 1)


def test_the_least_recently_used_goes_first() -> None:
    cache = PictureCache(3 * ONE)
    for name in (b"a", b"b", b"c"):
        add(cache, name)
    assert cache.get(b"a") is not None
    add(cache, b"d")
    assert [cache.get(name) is not None for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert cache.size_bytes == 3 * ONE


def test_pictures_in_use_stay_even_if_memory_runs_out() -> None:
    cache = PictureCache(2 * ONE)
    asked = add(cache, b"a")
    asked.questions += 1
    sent = cache.open(b"b", 0, 0)
    sent.uploaders += 1
    with pytest.raises(LimitError, match="--cache-mib"):
        cache.open(b"c", 0, 0)
    cache.put(sent, 0, ROWS, 1.0)  # complete: an uploader holds it no longer
    third = cache.open(b"c", 0, 0)
    assert cache.get(b"a") is asked and cache.get(b"b") is None
    with pytest.raises(LimitError):
        cache.put(third, 0, np.zeros((2 * ONE, 1), np.float32), 1.0)
    assert cache.size_bytes == ONE + OVERHEAD_BYTES
    assert not third.complete


def test_a_view_of_a_dropped_picture_is_ignored() -> None:
    cache = PictureCache(10 * ONE)
    gone = cache.open(b"a", 0, 0)
    cache.drop_if_unused(gone)
    assert (len(cache), cache.size_bytes) == (0, 0)
    again = cache.open(b"a", 0, 0)
    cache.put(gone, 0, ROWS, 1.0)
    assert not gone.complete and not again.complete
    assert cache.size_bytes == OVERHEAD_BYTES
    again.uploaders += 1
    cache.drop_if_unused(again)
    assert cache.get(b"a") is again


def test_memory_stays_within_its_limit() -> None:
    rng = np.random.default_rng(1)
    cache = PictureCache(5 * ONE)
    for _ in range(2000):
        picture = cache.open(bytes([rng.integers(12)]), 1, 1)
        view = np.zeros((rng.integers(1, 40), 8), np.float32)
        with contextlib.suppress(LimitError):
            cache.put(picture, int(rng.integers(picture.count)), view, 1.0)
        assert 0 <= cache.size_bytes <= cache.capacity_bytes
        assert cache.size_bytes == sum(one.size_bytes for one in cache._pictures.values())


UNKNOWN = b"\xfa\x01" + b"\xa0\x8d\x06" + bytes(100_000)  # field 31 with 100 000 bytes


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_unknown_fields_of_an_announcement_take_no_memory() -> None:
    uploads = Uploads(PictureCache(10_000_000), SessionLimits(views_per_picture=1), None)
    before = resident()
    for ref in range(1000):
        announced = pb.Picture(ref=ref, picture_id=picture_id(str(ref)), want_state=True)
        uploads.announce(pb.Picture.FromString(announced.SerializeToString() + UNKNOWN))
    assert resident() - before < 20e6
    kept = uploads.get(999)
    assert kept is not None and kept.ByteSize() < 20
    uploads.announce(kept)  # equal to the first, although it lacks unknown fields
