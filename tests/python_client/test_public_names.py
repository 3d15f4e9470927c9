"""The names that `import tofc` gives, and what importing them loads."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import tofc
from device_client.reasoning import Reasoning
from device_client.sampling import Sampling
from tofc import errors
from tofc.client import AskOptions
from tofc.client.configured import Configured

NAMES = {"AsyncClient", "Checkpoint", "Client", "Codec", "__version__"}


def tree(root: type[BaseException]) -> set[str]:
    """The errors of the tree; a test may have derived others."""
    below = [one for one in root.__subclasses__() if one.__module__ == errors.__name__]
    return {root.__name__}.union(*map(tree, below))


def test_all_is_the_clients_the_codec_the_checkpoint_and_every_error() -> None:
    assert sorted(tofc.__all__) == tofc.__all__
    assert {*tofc.__all__} == NAMES | tree(tofc.Error)


def test_every_name_is_there_and_listed() -> None:
    assert {*tofc.__all__} <= {*dir(tofc)}
    for name in tofc.__all__:
        assert getattr(tofc, name) is not None
    assert tofc.Client is import_module("tofc.client").Client
    assert tofc.__version__ == import_module("tofc.version").software_version()
    with pytest.raises(AttributeError, match="module 'tofc' has no attribute 'Clint'"):
        tofc.Clint  # noqa: B018


def loaded(script: str) -> set[str]:
    script = f"import sys; {script}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_it_is_light() -> None:
    heavy = {
        "torch",
        "grpc",
        "numpy",
        "PIL",
        "transformers",
        "rich",
        "typer",
        "asyncio",
        "device_client",
        "edge_server",
    }
    assert loaded("import tofc; dir(tofc); tofc.Error") & heavy == set()


def test_a_client_is_made_without_torch_and_without_the_server() -> None:
    heavy = {"torch", "transformers", "typer", "rich", "edge_server"}
    found = loaded("from tofc import Client; Client('127.0.0.1:1').close(); Client(':local:')")
    assert found & heavy == set()
    assert "grpc" in found


def test_it_is_typed() -> None:
    assert (Path(tofc.__file__).parent / "py.typed").is_file()


def test_options_of_a_question_are_those_of_sampling_and_of_samples_and_two_more() -> None:
    groups = [*Sampling.__dataclass_fields__, *Reasoning.__dataclass_fields__]
    assert [*AskOptions.__annotations__] == [*groups, "thinking", "timeout_s"]


def test_both_clients_have_the_same_names() -> None:
    client = import_module("tofc.client")
    for ours, theirs in (("Client", "AsyncClient"), ("Picture", "AsyncPicture"), ("Chat", "AsyncChat")):
        sync, with_asyncio = ({n for n in dir(getattr(client, one)) if n[0] != "_"} for one in (ours, theirs))
        assert sync == with_asyncio


def test_every_option_of_a_client_is_described() -> None:
    text = inspect.getdoc(Configured.__init__) or ""
    for name in [*inspect.signature(Configured.__init__).parameters][1:]:
        assert f"\n    {name}: " in text
