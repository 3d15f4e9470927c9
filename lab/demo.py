"""What `make demo` does: a server and a device on this machine, and two questions about one picture.

Promises to show the commands as a person would type them, and to leave no process behind, also after
Ctrl-C. Leaves the answers to the model.
"""

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

from shared.streams import exit_code, prepare

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "nano"
PICTURE = MODEL / "example.jpg"
QUESTIONS = ("what number is on the sign?", "is there a rocket?")
READY = "listening on "
GRACE = 15.0  # seconds between asking the server to end and ending it


class DemoError(Exception):
    """Why the demo could not go on."""


def commands() -> Path:
    """The folder with this environment's console commands."""
    return Path(sysconfig.get_path("scripts"))


def shown(command: Sequence[str | Path]) -> str:
    """The command as one would type it in the project's folder."""
    words = [Path(command[0]).name, *(str(word).removeprefix(f"{ROOT}/") for word in command[1:])]
    return shlex.join(words)


@contextmanager
def serving(model: Path = MODEL) -> Iterator[str]:
    """Runs `edge-server serve` on a free port and yields its address once it listens. Raises DemoError."""
    command = [str(commands() / "edge-server"), "serve", "--model", str(model), "--port", "0", "--log-level", "warning"]
    say(f"$ {shown(command)}")
    # A session of its own: Ctrl-C reaches only this process, which then ends the server in good order.
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", start_new_session=True) as server:
        try:
            assert server.stdout is not None
            address = _await_address(server.stdout)
            if address is None:
                raise DemoError(f"the server ended with {server.wait()} before it listened; it says why above")
            # A full pipe would stop the server, so what else it prints is read and dropped.
            threading.Thread(target=server.stdout.read, daemon=True).start()
            yield address
        finally:
            server.terminate()
            try:
                server.wait(GRACE)
            except subprocess.TimeoutExpired:
                server.kill()


def _await_address(lines: IO[str]) -> str | None:
    for line in lines:
        say(line.rstrip())
        if line.startswith(READY):
            return line.removeprefix(READY).strip()
    return None


def ask(address: str, questions: Sequence[str] = QUESTIONS, picture: Path = PICTURE, model: Path = MODEL) -> None:
    """Runs `device-client ask`; its answers stream to the terminal. Raises DemoError."""
    asked = [word for question in questions for word in ("-q", question)]
    client = str(commands() / "device-client")
    command = [client, "ask", str(picture), *asked, "--server", address, "--model", str(model)]
    say(f"$ {shown(command)}")
    code = subprocess.run(command, check=False).returncode
    if code:
        raise DemoError(f"the device ended with {code}; it says why above")


def say(text: str) -> None:
    print(text, flush=True)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Runs the demo; 0 when every question was answered."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if not PICTURE.is_file():
            raise DemoError(f"{PICTURE} is missing; run the demo from a complete checkout")
        with serving() as address:
            ask(address)
    except DemoError as error:
        print(f"The demo stopped: {error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    say(
        "\nThe server is stopped. To go on by yourself: .venv/bin/edge-server serve, and .venv/bin/device-client --help"
    )
    return 0


if __name__ == "__main__":
    prepare()
    sys.exit(exit_code(lambda: sys.exit(main())))
