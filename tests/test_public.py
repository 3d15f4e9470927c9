"""The names that people and scripts rely on: the distribution's commands."""

from importlib import metadata

import pytest

COMMANDS = {
    "device-client": "device_client.__main__:main",
    "edge-server": "edge_server.__main__:main",
    "tofc-lab": "lab.cli:app",
}


def test_the_distribution_has_these_commands() -> None:
    found = {point.name: point.value for point in metadata.distribution("tofc").entry_points}
    assert found == COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_command_can_be_called(command: str) -> None:
    (point,) = metadata.entry_points(group="console_scripts", name=command)
    assert callable(point.load())
