"""Sessions that come and go: one load at a time, and nothing stays of those that were closed."""

import asyncio
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from device_client.encoder import THREAD, EncoderThread, TowerEncoder
from device_client.errors import EncoderError
from device_client.fake import FakeEncoder
from device_client.loading import Loads
from tests.client.conftest import Begin, FakeServer

NANO = Path(__file__).resolve().parents[2] / "models" / "nano"
HANGS_S = 20


class Slow(FakeEncoder):
    """Loads as long as `go` is not set. `loads` holds those that are loading."""

    loads: set["Slow"]
    most = 0

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.begun, self.go = threading.Event(), threading.Event()
        self._before = before

    def load(self) -> None:
        super().load()
        Slow.loads.add(self)
        Slow.most = max(Slow.most, len(Slow.loads))
        self.begun.set()
        assert self.go.wait(HANGS_S)
        Slow.loads.remove(self)
        self._before()


@pytest.fixture(autouse=True)
def none_loads() -> None:
    Slow.loads, Slow.most = set(), 0


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
    assert isinstance(first.encoder, Slow) and first.encoder.begun.wait(HANGS_S)
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
        assert one.begun.wait(HANGS_S)
    for thread in threads:
        thread.close()
        joined(thread)
    assert Slow.most == 1


def test_a_load_that_failed_leaves_its_turn() -> None:
    def fails() -> None:
        raise EncoderError("needs torch")

    broken, good = EncoderThread(Slow(fails)), EncoderThread(FakeEncoder())
    assert isinstance(broken.encoder, Slow) and isinstance(good.encoder, FakeEncoder)
    broken.start()
    assert broken.encoder.begun.wait(HANGS_S)
    broken.encoder.go.set()
    good.start()
    good._submit(lambda: None).result(HANGS_S)
    for thread in (broken, good):
        thread.close()
        joined(thread)
    assert str(broken.broken) == "needs torch" and good.encoder.loaded == 1


async def test_what_waits_for_a_closed_encoder_hears_of_it(small: Path) -> None:
    holder, waiting = EncoderThread(Slow()), EncoderThread(FakeEncoder())
    assert isinstance(holder.encoder, Slow)
    holder.start()
    assert holder.encoder.begun.wait(HANGS_S)
    waiting.start()
    picture = waiting.open(small)
    view = waiting._submit(lambda: waiting._until(picture, 0))
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
    tower = weakref.ref(encoder._parts()[0])
    threads[0].close()
    joined(threads[0])
    assert tower() is not None
    threads[1].close()
    joined(threads[1])
    assert tower() is None
    with pytest.raises(EncoderError, match="not loaded"):
        encoder._parts()


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


def test_nothing_is_freed_while_the_process_ends() -> None:
    """Python ends a daemon's thread wherever it is; within torch that aborts the process."""
    loads, encoder = Loads(), FakeEncoder()
    assert loads.load(encoder, lambda: False)
    loads._exit()
    loads.unload(encoder)
    assert encoder.unloaded == 0
