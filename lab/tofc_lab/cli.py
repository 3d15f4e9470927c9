"""The command `tofc-lab`: checkpoints, codecs for them, nano's training, and measurements.

Promises that wrong input ends with one line and exit code 2. Leaves the commands to `tofc_lab.commands`.
"""

from __future__ import annotations

from typing import Any

import typer

from tofc.command import Commands, Program
from tofc.error_text import describe
from tofc.errors import Error
from tofc.install import install
from tofc.terminal import note
from tofc_lab.commands import bench, checkpoints, codec, measurements, nano, photo

EXIT_CODES = (
    "Exit codes: 0 success; 1 `verify` found a difference; 2 wrong input, or something is missing; 70 a defect."
)


class Lab(Commands):
    """The group of all commands, which turns errors that a user can cause into one line and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; report every `Error`, every failure of a file, and a missing package."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader of our output is gone: `Program` ends quietly
            raise
        except (Error, OSError, ImportError) as error:
            # An ImportError without a name is raised by us, and its message says what to install.
            advice = f"; {install('lab')}" if isinstance(error, ImportError) and error.name else ""
            note(f"error: {describe(error)}{advice}")
            raise typer.Exit(2) from None


app = Program(
    "tofc-lab",
    cls=Lab,
    context_settings={"auto_envvar_prefix": "TOFC_LAB"},  # --out of train-codec is TOFC_LAB_TRAIN_CODEC_OUT too
    help="Split and verify checkpoints, train a codec for one, train nano, and measure.\n\n"
    "For a checkpoint of your own: verify → train-codec → split. For nano: assets → nano → evaluate → tables.",
    epilog=EXIT_CODES,
)
for group in (checkpoints.app, codec.app, nano.app, photo.app, measurements.app, bench.app):
    app.add_typer(group)  # without a name: its commands become those of `tofc-lab`


if __name__ == "__main__":
    app()
