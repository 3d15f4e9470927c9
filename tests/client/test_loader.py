"""Sessions that are opened and closed: one loads at a time, and closed ones leave nothing behind."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from device_client.encoder import THREAD, EncoderThread, TowerEncoder
from device_client.fake import FakeEncoder
from device_client.loader import Loader
from tests.client.conftest import Begin, FakeServer
from tofc.errors import EncoderError
from tofc.model.shipped import NANO

HANGS_S = 20


class Slow(FakeEncoder):
    """Loads until `go` is set. `loads` holds the encoders that are loading."""

    loads: set[Slow]
    max_loading = 0

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.started, self.go = threading.Event(), threading.Event()
        self._before = before

    def load(self) -> None:
        super().load()
        Slow.loads.add(self)
        Slow.max_loading = max(Slow.max_loading, len(Slow.loads))
        self.started.set()
        assert self.go.wait(HANGS_S)
        Slow.loads.remove(self)
        self._before()


@pytest.fixture(autouse=True)
def none_loads() -> None:
    Slow.loads, Slow.max_loading = set(), 0


def joined(thread: EncoderThread) -> None:
    assert thread._thread is not None
    thread._thread.join(HANGS_S)
    assert not thread._thread.is_alive()


def working() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == THREAD]


def test_threads_that_were_closed_before_their_turn_end_without_loading() -> None:
    before = len(working())
    first, *others = threads = [EncoderThread(Slow()) for _ in range(40)]
    first.start()
    assert isinstance(first.encoder, Slow) and first.encoder.started.wait(HANGS_S)
    for one in others:
        one.start()
    for one in threads:
        one.close()
    for one in others:
        joined(one)
    assert len(working()) == before + 1, "the one that was loading already"
    first.encoder.go.set()
    joined(first)
    assert [one.encoder.loaded for one in threads] == [1] + [0] * 39  # type: ignore[attr-defined]
    assert first.encoder.unloaded == 1


def test_loads_take_turns() -> None:
    encoders = [Slow() for _ in range(4)]
    threads = [EncoderThread(one) for one in encoders]
    for thread in threads:
        thread.start()
    for one in encoders:  # all at once, so that all could begin
        one.go.set()
    for one in encoders:
        assert one.started.wait(HANGS_S)
    for thread in threads:
        thread.close()
        joined(thread)
    assert Slow.max_loading == 1


def test_a_load_that_failed_leaves_its_turn() -> None:
    def fails() -> None:
        raise EncoderError("needs torch")

    broken, good = EncoderThread(Slow(fails)), EncoderThread(FakeEncoder())
    assert isinstance(broken.encoder, Slow) and isinstance(good.encoder, FakeEncoder)
    broken.start()
    assert broken.encoder.started.wait(HANGS_S)
    broken.encoder.go.set()
    good.start()
    good._submit(lambda: None).result(HANGS_S)
    for thread in (broken, good):
        thread.close()
        joined(thread)
    assert str(broken.broken) == "needs torch" and good.encoder.loaded == 1


async def test_a_picture_that_waits_for_a_closed_encoder_gets_an_error(small: Path) -> None:
    holder, waiting = EncoderThread(Slow()), EncoderThread(FakeEncoder())
    assert isinstance(holder.encoder, Slow)
    holder.start()
    assert holder.encoder.started.wait(HANGS_S)
    waiting.start()
    picture = waiting.open(small)
    view = waiting._submit(lambda: waiting._encode_up_to(picture, 0))
    waiting.close()
    with pytest.raises(EncoderError, match="the encoder was closed; open another session"):
        view.result(HANGS_S)
    holder.encoder.go.set()
    holder.close()
    joined(holder)


async def test_weights_go_with_the_last_thread_that_used_them() -> None:
    encoder = TowerEncoder.open(NANO)
    threads = [EncoderThread(encoder) for _ in range(2)]
    for thread in threads:
        picture = thread.open(NANO / "example.jpg")
        await thread.view(picture, 0)
    tower = weakref.ref(encoder._loaded()[0])
    threads[0].close()
    joined(threads[0])
    assert tower() is not None
    threads[1].close()
    joined(threads[1])
    assert tower() is None
    with pytest.raises(EncoderError, match="not loaded"):
        encoder._loaded()


async def test_forty_sessions_that_asked_and_were_closed_leave_no_thread(
    server: FakeServer, begin: Begin, small: Path
) -> None:
    before = len(working())
    sessions = [begin() for _ in range(40)]
    for session in sessions:
        await session.ask([session.open(small)], "what?").result()
        await session.close()
    for session in sessions:
        joined(session.encoder)
    assert len(working()) == before


def test_what_was_loaded_before_stays_loaded() -> None:
    encoder = FakeEncoder()
    encoder.load()
    for _ in range(2):
        thread = EncoderThread(encoder)
        thread.start()
        thread.close()
        joined(thread)
    assert (encoder.loaded, encoder.unloaded) == (1, 0)


def test_what_was_loaded_before_stays_loaded_for_threads_at_the_same_time() -> None:
    encoder = FakeEncoder()
    encoder.load()
    threads = [EncoderThread(encoder) for _ in range(3)]
    for thread in threads:
        thread.start()
        asyncio.run(within_thread(thread))
    for thread in threads:
        thread.close()
        joined(thread)
    assert (encoder.loaded, encoder.unloaded) == (1, 0)


def test_threads_share_what_one_of_them_loaded() -> None:
    encoder = FakeEncoder()
    first, second = EncoderThread(encoder), EncoderThread(encoder)
    first.start()
    second.start()
    for thread in (first, second):
        asyncio.run(within_thread(thread))
    first.close()
    joined(first)
    assert (encoder.loaded, encoder.unloaded) == (1, 0)
    second.close()
    joined(second)
    assert (encoder.loaded, encoder.unloaded) == (1, 1)


async def within_thread(thread: EncoderThread) -> None:
    """Until it has loaded."""
    await asyncio.wrap_future(thread._submit(lambda: None))


def test_a_process_that_ends_waits_for_what_its_encoder_is_doing() -> None:
    """Python would end the thread within torch, and abort the process."""
    script = """
import threading
from device_client.encoder import EncoderThread
from device_client.fake import FakeEncoder

class Slow(FakeEncoder):
    def load(self):
        loading.set()
        closed.wait()
        print("loaded", flush=True)

class Told(EncoderThread):
    def close(self):
        super().close()
        closed.set()

loading, closed = threading.Event(), threading.Event()
thread = Told(Slow())
thread.start()
loading.wait()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=HANGS_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, "loaded\n", "")


def test_nothing_is_freed_while_the_process_ends() -> None:
    """Python ends a daemon's thread wherever it is; within torch that aborts the process."""
    loader, encoder = Loader(), FakeEncoder()
    assert loader.load(encoder, lambda: False)
    loader._exit()
    loader.release(encoder)
    assert encoder.unloaded == 0
