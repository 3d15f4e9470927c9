"""`Client(":local:")`: both halves in this process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT
from tests.python_client.conftest import DOG, EXAMPLE, SIGN
from tofc import AsyncClient, CheckpointError, Client, TokenError
from tofc.client import Picture


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the private server keeps its token; it is empty in the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert [*folder.iterdir()] == []


def test_both_halves_in_one_process(temporary: Path) -> None:
    with Client(":local:") as edge:
        picture = edge.picture(EXAMPLE)
        first = picture.ask(SIGN)
        assert (first.text, first.usage.bytes_picture > 0) == ("42", True)
        assert picture.chat().ask(DOG, stream=True).result().text == "yes"
        (token,) = temporary.glob("*/token")
        assert token.stat().st_mode & 0o077 == 0
        assert token.parent.stat().st_mode & 0o077 == 0


def test_nobody_else_can_ask_it() -> None:
    with Client(":local:") as edge:
        edge.connect()
        local = edge._connection._local
        assert local is not None
        with Client(local.target.address, token="guessed-0123456789") as other, pytest.raises(TokenError):
            other.connect()


async def test_with_asyncio_and_image_files() -> None:
    async with AsyncClient(":local:", mode="image", quality=90) as edge:
        answer = await (await edge.picture(EXAMPLE)).ask(SIGN)
    assert (answer.text, answer.usage.bytes_picture > 1000) == ("42", True)


async def test_auto_may_send_files_to_the_private_server() -> None:
    async with AsyncClient(":local:", mode="auto") as edge:
        picture = await edge.picture(EXAMPLE)
        first, again = await picture.ask(SIGN), await picture.ask(DOG)
    assert (first.text, again.usage.bytes_picture) == ("42", 0)


def test_closing_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    edge = Client(":local:")
    edge._thread.run(lambda: _begin(edge.picture(EXAMPLE)))
    edge.close()


async def _begin(picture: Picture) -> None:
    """Ask, and do not wait."""
    import asyncio

    asyncio.get_running_loop().create_task(picture._answer(DOG, {}).result(), name="asked").add_done_callback(
        lambda task: task.cancelled() or task.exception()
    )


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with Client(":local:", model=tmp_path / "none") as edge, pytest.raises(CheckpointError, match="none"):
        edge.connect()


@pytest.mark.parametrize("missing", ["grpc_health", "transformers"])
def test_without_the_server_packages_the_command_that_installs_them_is_named(missing: str) -> None:
    script = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from tofc import Client, Error\n"
        "with Client(':local:') as edge:\n"
        "    try: edge.connect()\n"
        "    except Error as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f'Client(":local:") needs {missing}: ')
    assert "pip install" in done.stdout and "[server]" in done.stdout
