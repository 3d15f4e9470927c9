"""The options of the commands: what they are called, what a person is told, and that they are written down once."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import typer

from device_client.cli import app
from device_client.options import AnswerOptions, ImageOptions, PacketOptions, ServerOptions
from device_client.reasoning import Reasoning
from device_client.sampling import Sampling
from tofc.errors import UsageError
from tofc.model.shipped import NANO
from tofc.v1 import tofc_pb2 as pb

SHARED = (ServerOptions, PacketOptions, ImageOptions, Sampling, Reasoning, AnswerOptions)


def options(command: str) -> dict[str, Any]:
    """What typer made of a command's parameters, by the name of the field."""
    group: Any = typer.main.get_command(app)
    return {parameter.name: parameter for parameter in group.commands[command].params}


def names(command: str) -> dict[str, str | None]:
    """Options of a command → their environment variables."""
    found = options(command).values()
    return {name: one.envvar for one in found for name in one.opts if name.startswith("-")}


def test_the_options_and_their_variables_stay() -> None:
    shared = {"--model": "TOFC_MODEL", "--device": "TOFC_DEVICE_ACCELERATOR", "-n": "TOFC_DEVICE_FEATURES"}
    packets = "feature-codec preset features budget-bytes views-per-packet backend dtype execution-provider threads"
    others = (
        "server wait token-file tls tls-ca tls-cert tls-key mode codec quality scale max-tokens temperature top-p "
        "top-k seed pacore vote rollouts token-budget timeout show-thinking json trace"
    )
    shared |= {f"--{name}": f"TOFC_DEVICE_{name.upper().replace('-', '_')}" for name in packets.split()}
    assert names("inspect") == {**shared, "--out": "TOFC_DEVICE_INSPECT_OUT"}
    shared |= {f"--{name}": f"TOFC_DEVICE_{name.upper().replace('-', '_')}" for name in others.split()}
    assert names("chat") == shared
    batch = {"--batch": "TOFC_DEVICE_BATCH", "--out": "TOFC_DEVICE_BATCH_OUT", "--resume": "TOFC_DEVICE_RESUME"}
    assert names("ask") == {**shared, **batch, "--question": None, "-q": None}


def test_defaults_stay() -> None:
    found = options("chat")
    given = {name: one.default for name, one in found.items() if one.default is not None and name != "help"}
    assert given == {
        "model": NANO,
        "server": ["127.0.0.1:50061"],
        "mode": "features",
        "max_tokens": 0,
        "token_budget": 0,
        "timeout_s": 300.0,
        **dict.fromkeys(("as_json", "rollouts", "show_thinking", "tls", "trace"), False),
    }


@pytest.mark.parametrize("command", ["ask", "chat", "inspect", "bench"])
def test_every_option_says_what_it_is_in_a_sentence(command: str) -> None:
    for name, parameter in options(command).items():
        if name != "help":
            assert parameter.help and parameter.help[0].isupper() and parameter.help.endswith("."), name


def test_commands_share_the_groups_and_nothing_is_written_twice() -> None:
    shared = [field.name for group in SHARED for field in fields(group)]
    assert len(shared) == len(set(shared)) and set(shared) <= options("ask").keys() & options("chat").keys()
    assert {field.name for field in fields(PacketOptions)} <= options("inspect").keys()


@pytest.mark.parametrize("given", [["a:1", "b:2"], ["a:1,b:2"], ["a:1, b:2"], ["a:1 b:2"]])
def test_several_servers_are_named_by_repeating_the_option_or_in_one_value(given: list[str]) -> None:
    assert [target.address for target in ServerOptions(server=given).targets()] == ["a:1", "b:2"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["a:1", "b:0"], "--server must have a port above 0, got b:0"),
        (["a:1,a:1"], "--server a:1 is given 2 times"),
        ([""], "HOST:PORT"),
        ([], "give at least one server"),
    ],
)
def test_servers_that_cannot_be_are_refused(given: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ServerOptions(server=given).targets()


@pytest.mark.parametrize("command", ["ask", "chat"])
def test_a_field_of_the_sampling_message_is_a_field_and_an_option(command: str) -> None:
    """So a new one is written in tofc.proto and sampling.py, and arrives."""
    wire = [field.name for field in pb.Sampling.DESCRIPTOR.fields]
    assert sorted(wire) == sorted(field.name for field in fields(Sampling))
    for name in wire:
        assert f"--{name.replace('_', '-')}" in options(command)[name].opts


def test_every_field_of_sampling_arrives_in_the_message() -> None:
    values: dict[str, Any] = {"max_tokens": 7, "temperature": 0.5, "top_p": 0.25, "top_k": 3, "seed": 11}
    assert Sampling(**values).message(pb.Welcome(), seed=5) == pb.Sampling(**values)
    for name, value in values.items():
        assert Sampling(**{name: value}).message(pb.Welcome(), 5) in (
            pb.Sampling(**{name: value}),
            pb.Sampling(**{name: value, "seed": 5}),
        )


def test_a_seed_is_chosen_only_for_an_answer_that_is_sampled() -> None:
    sampled, greedy = pb.Welcome(samples_by_default=True), pb.Welcome(samples_by_default=False)
    assert Sampling().message(greedy, seed=5) is None
    assert Sampling().message(sampled, seed=5) == pb.Sampling(seed=5)
    assert Sampling(seed=9).message(sampled, seed=5) == pb.Sampling(seed=9)
    assert Sampling(temperature=0.0).message(sampled, seed=5) == pb.Sampling(temperature=0.0)
    assert Sampling(temperature=1.0).message(greedy, seed=5) == pb.Sampling(temperature=1.0, seed=5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_tokens": -1}, "--max-tokens must be 0 .the server's default. to 2..32 - 1, got -1"),
        ({"max_tokens": 2**32}, "--max-tokens must be 0 .* got 4294967296"),
        ({"temperature": 10.5}, "--temperature must be 0 .* to 10, got 10.5"),
        ({"temperature": float("nan")}, "--temperature must be .* got nan"),
        ({"top_p": 0.0}, "--top-p must be more than 0 and at most 1, got 0"),
        ({"top_p": 1.5}, "--top-p must be more than 0 and at most 1, got 1.5"),
        ({"top_k": -1}, "--top-k must be 0 .* got -1"),
        ({"top_k": 2**32}, "--top-k must be 0 .* got 4294967296"),
        ({"seed": -1}, "--seed must be 0 to 2..64 - 1, got -1"),
        ({"seed": 2**64}, "--seed must be 0 to 2..64 - 1, got 18446744073709551616"),
    ],
)
def test_a_value_that_does_not_fit_into_the_message_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Sampling(**values)
