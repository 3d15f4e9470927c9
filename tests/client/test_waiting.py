import asyncio
import io
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TextColumn

from device_client.encoder import EncoderThread
from device_client.fake import FakeEncoder
from device_client.waiting import Doing, waiting


def terminal() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=True, width=80, _environ={}), out


def test_a_person_sees_what_takes_long_and_nothing_of_it_stays() -> None:
    encoder, (console, out) = EncoderThread(FakeEncoder()), terminal()
    with waiting(encoder, console) as over:
        encoder.doing = "looking at [cat].png, 2 of 9"
        over()
        drawn = out.getvalue()
        assert "looking at [cat].png, 2 of 9, 0 s" in drawn
        assert drawn.rstrip("\n").endswith("\x1b[2K"), "the line is not wiped"
        encoder.doing = "something else"
    assert out.getvalue() == drawn


def test_an_idle_encoder_leaves_the_server() -> None:
    console, out = terminal()
    with waiting(EncoderThread(FakeEncoder()), console):
        pass
    assert "waiting for the server" in out.getvalue()


def test_a_file_gets_none_of_it() -> None:
    out = io.StringIO()
    with waiting(EncoderThread(FakeEncoder()), Console(file=out)) as over:
        over()
    assert out.getvalue() == ""


def test_a_batch_shows_it_beside_its_progress() -> None:
    encoder, (console, out) = EncoderThread(FakeEncoder()), terminal()
    encoder.doing = "loading the model"
    with Progress(TextColumn("{task.description}"), Doing(encoder), console=console) as progress:
        progress.add_task("asking", total=3)
    assert "asking loading the model" in out.getvalue()


async def test_the_encoder_says_what_it_does(wide: Path) -> None:
    said: list[str] = []

    class Telling(FakeEncoder):
        def load(self) -> None:
            said.append(thread.doing)

    thread = EncoderThread(Telling(before_view=lambda index: said.append(thread.doing)))
    try:
        picture = thread.open(wide)
        for index in range(picture.n_packets):
            await thread.view(picture, index)
    finally:
        thread.close()
    views = [f"looking at {wide}, {number} of {picture.n_packets}" for number in range(1, picture.n_packets + 1)]
    assert len(views) > 2 and said == ["loading the model", *views]
    async with asyncio.timeout(20):
        while thread.doing:
            await asyncio.sleep(0)
