"""The demo of `make demo`: a server and a device on this machine, and two questions about one picture.

Promises to show the commands as a person would type them, and to leave no process behind, even after Ctrl-C.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

from tofc.errors import Error
from tofc.streams import exit_code, prepare
from tofc.terminal import say

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "nano"
PICTURE = MODEL / "example.jpg"
QUESTIONS = ("what number is on the sign?", "is there a rocket?")
READY = "listening on "
GRACE_S = 15.0  # between SIGTERM and SIGKILL to the server


class DemoError(Error):
    """The demo stopped; the message says why."""


def scripts_folder() -> Path:
    """Return the folder with the console scripts of this environment."""
    return Path(sysconfig.get_path("scripts"))


def shown(command: Sequence[str | Path]) -> str:
    """Return the command as one would type it in the project's folder."""
    words = [Path(command[0]).name, *(str(word).removeprefix(f"{ROOT}/") for word in command[1:])]
    return shlex.join(words)


@contextmanager
def serving(model: Path = MODEL) -> Iterator[str]:
    """Run `edge-server serve` on a free port and yield its address once it listens. Raises `DemoError`."""
    command = [
        str(scripts_folder() / "edge-server"),
        "serve",
        "--model",
        str(model),
        "--port",
        "0",
        "--log-level",
        "warning",
    ]
    say(f"$ {shown(command)}")
    # In a new session, so that Ctrl-C reaches only this process, which then stops the server gracefully.
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", start_new_session=True) as server:
        try:
            assert server.stdout is not None
            address = _await_address(server.stdout)
            if address is None:
                raise DemoError(
                    f"the server ended with exit code {server.wait()} before it listened; its message is above"
                )
            # A full pipe would block the server, so everything else that it prints is read and dropped.
            threading.Thread(target=server.stdout.read, daemon=True).start()
            yield address
        finally:
            server.terminate()
            try:
                server.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                server.kill()


def _await_address(lines: IO[str]) -> str | None:
    for line in lines:
        say(line.rstrip())
        if line.startswith(READY):
            return line.removeprefix(READY).strip()
    return None


def ask(
    address: str,
    questions: Sequence[str] = QUESTIONS,
    picture: Path = PICTURE,
    model: Path = MODEL,
    feature_codec: str = "",
) -> None:
    """Run `device-client ask`, whose answers stream to the terminal. Raises `DemoError`.

    An empty `feature_codec` is the model's default one.
    """
    asked = [word for question in questions for word in ("-q", question)]
    client = str(scripts_folder() / "device-client")
    command = [client, "ask", str(picture), *asked, "--server", address, "--model", str(model)]
    command += ["--feature-codec", feature_codec] if feature_codec else []
    say(f"$ {shown(command)}")
    code = subprocess.run(command, check=False).returncode
    if code:
        raise DemoError(f"the device ended with exit code {code}; its message is above")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(feature_codec: str = "") -> int:
    """Run the demo and return its exit code: 0 if every question was answered."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if not PICTURE.is_file():
            raise DemoError(f"{PICTURE} is missing; run the demo from a complete checkout")
        with serving() as address:
            ask(address, feature_codec=feature_codec)
    except DemoError as error:
        print(f"The demo stopped: {error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    say(
        "\nThe server is stopped. To continue on your own: .venv/bin/edge-server serve, and "
        ".venv/bin/device-client --help"
    )
    return 0


if __name__ == "__main__":
    prepare()
    sys.exit(exit_code(lambda: sys.exit(main(*sys.argv[1:2]))))
