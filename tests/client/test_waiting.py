from __future__ import annotations

import asyncio
import io
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TextColumn

from device_client.batch_progress import EncoderActivity
from device_client.encoder import EncoderThread
from device_client.fake import FakeEncoder
from device_client.waiting import waiting


def terminal() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=True, width=80, _environ={}), out


def test_a_person_sees_what_is_slow_and_the_line_is_removed() -> None:
    encoder, (console, out) = EncoderThread(FakeEncoder()), terminal()
    with waiting(encoder, console) as stop_waiting:
        encoder.doing = "encoding [cat].png, 2 of 9"
        stop_waiting()
        drawn = out.getvalue()
        assert "encoding [cat].png, 2 of 9, 0 s" in drawn
        assert drawn.rstrip("\n").endswith("\x1b[2K"), "the line was not erased"
        encoder.doing = "something else"
    assert out.getvalue() == drawn


def test_an_idle_encoder_means_waiting_for_the_server() -> None:
    console, out = terminal()
    with waiting(EncoderThread(FakeEncoder()), console):
        pass
    assert "waiting for the server" in out.getvalue()


def test_nothing_is_written_to_a_file() -> None:
    out = io.StringIO()
    with waiting(EncoderThread(FakeEncoder()), Console(file=out)) as stop_waiting:
        stop_waiting()
    assert out.getvalue() == ""


def test_a_batch_shows_it_beside_its_progress() -> None:
    encoder, (console, out) = EncoderThread(FakeEncoder()), terminal()
    encoder.doing = "loading the model"
    with Progress(TextColumn("{task.description}"), EncoderActivity(encoder), console=console) as progress:
        progress.add_task("asking", total=3)
        progress.update(progress.add_task("ending", total=3), completed=3)
    assert "asking loading the model" in out.getvalue()
    assert "loading" not in out.getvalue().rpartition("ending")[2]


async def test_the_encoder_says_what_it_does(wide: Path) -> None:
    shown: list[str] = []

    class Recording(FakeEncoder):
        def load(self) -> None:
            shown.append(thread.doing)

    thread = EncoderThread(Recording(before_view=lambda index: shown.append(thread.doing)))
    try:
        picture = thread.open(wide)
        for index in range(picture.n_packets):
            await thread.view(picture, index)
    finally:
        thread.close()
    views = [f"encoding {wide}, {number} of {picture.n_packets}" for number in range(1, picture.n_packets + 1)]
    assert len(views) > 2 and shown == ["loading the model", *views]
    async with asyncio.timeout(20):
        while thread.doing:
            await asyncio.sleep(0)
