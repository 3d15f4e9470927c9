"""`device-client` for typer: help, completion, messages about wrong use, and every call that is not an ordinary one.

Promises the commands of `cli`, with their errors reported as `program` does. Leaves ordinary calls to `program`.
"""

from __future__ import annotations

from typing import Any, NoReturn

from device_client.cli import COMMANDS
from device_client.program import leave, reporting
from tofc.command import Commands, Program
from tofc.option_groups import with_option_groups


class DeviceCommands(Commands):
    """Commands whose errors are one line on stderr and an exit code. Other exceptions are defects: see `Program`."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        return reporting(lambda: super(DeviceCommands, self).invoke(ctx))


class DeviceProgram(Program):
    """The program; ends at once when done."""

    def leave(self, code: int) -> NoReturn:
        """End the process."""
        leave(code)


app = DeviceProgram(
    "device-client",
    cls=DeviceCommands,
    help="Ask an edge server about pictures; of each picture this device sends about 20 bytes.",
)
for _command, _epilog in COMMANDS.values():
    app.command(epilog=_epilog)(with_option_groups(_command))
