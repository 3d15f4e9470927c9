"""docker-compose.yml: which profile starts what, and that engines can be reached by edge servers only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from edge_server.cli import app
from edge_server.settings import MIB, ServerSettings
from tests.vllm.engines import OPTIONS, ROUTER_OPTIONS
from tofc.model.shipped import NANO

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docker-compose.yml"
COMPOSE = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ENGINES = {"vllm", "vllm-a", "vllm-b", "router"}


def started(profile: str) -> set[str]:
    return {name for name, one in SERVICES.items() if profile in one.get("profiles", [profile])}


def networks(name: str) -> set[str]:
    return set(SERVICES[name].get("networks", ()))


def test_each_profile_starts_its_services() -> None:
    base = {"credentials", "server"}
    assert started("") == base
    assert started("vllm") == base | {"model", "vllm"}
    cluster = {"model", "server2", "router", "vllm-a", "vllm-b", "prometheus", "grafana"}
    assert started("cluster") == base | cluster


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_limits(name: str) -> None:
    service = SERVICES[name]
    assert service["mem_limit"] == service["memswap_limit"]
    assert 0 < service["pids_limit"] <= 4096
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("image", "").endswith(":latest")


@pytest.mark.parametrize("name", ["server", "server2"])
def test_a_server_with_full_caches_fits_into_its_memory(name: str) -> None:
    default = re.compile(r"\$\{\w+:-(\d+)g?\}")
    limit, keys_and_values = (
        int(default.fullmatch(text)[1])  # type: ignore[index]
        for text in (SERVICES[name]["mem_limit"], SERVICES[name]["environment"]["TOFC_SERVER_ENGINE_CACHE_MIB"])
    )
    pictures = ServerSettings(model=NANO).cache_bytes
    assert 430e6 + pictures + keys_and_values * MIB < 0.8 * limit * 1024 * MIB


def test_engines_are_reached_by_edge_servers_only() -> None:
    assert COMPOSE["networks"]["engines"]["internal"]
    for name in ENGINES:
        assert networks(name) == {"engines"} and "ports" not in SERVICES[name]
    assert {name for name in SERVICES if "engines" in networks(name)} == ENGINES | {"server", "server2"}


@pytest.mark.parametrize("profile", ["vllm", "cluster"])
def test_one_service_of_a_profile_has_the_name_that_servers_ask(profile: str) -> None:
    named = [
        name for name in started(profile) if isinstance(SERVICES[name].get("networks"), dict) and _named(SERVICES[name])
    ]
    assert named == [{"vllm": "vllm", "cluster": "router"}[profile]]
    assert "TOFC_ENGINE_URL=http://engines:8000" in FILE.read_text()


def _named(service: dict[str, Any]) -> bool:
    return "engines" in ((service["networks"].get("engines") or {}).get("aliases") or [])


def test_variables_of_servers_are_options() -> None:
    command = typer.main.get_command(app)
    serve = command.commands["serve"]  # type: ignore[attr-defined]
    known: set[str] = set()
    for option in serve.params:
        known |= {option.envvar} if isinstance(option.envvar, str) else set(option.envvar or ())
    given = {name for service in ("server", "server2") for name in SERVICES[service]["environment"]}
    assert {name for name in given if name.startswith("TOFC_SERVER_")} <= known


def test_every_variable_has_a_default_and_is_explained() -> None:
    text = FILE.read_text()
    used = set(re.findall(r"\$\{(\w+):-", text))
    assert set(re.findall(r"\$\{(\w+)", text)) == used
    comment = text[: text.index("\nx-bounds")]
    assert [name for name in sorted(used) if name not in comment] == []


def test_mounted_files_and_dockerfiles_exist() -> None:
    mounts = [mount.split(":")[0] for one in SERVICES.values() for mount in one.get("volumes", ()) if mount[0] == "."]
    files = [one["build"]["dockerfile"] for one in SERVICES.values() if "build" in one]
    assert len(mounts) == 5
    assert [path for path in [*mounts, *files] if not (ROOT / path).is_file()] == []


def test_documents_name_the_options_that_are_tested() -> None:
    text = (ROOT / "docs" / "serving.md").read_text()
    assert OPTIONS in text and ROUTER_OPTIONS in text
    checks = {option.replace(" ", "=") for option in re.findall(r"--health\S+ \d", ROUTER_OPTIONS)}
    assert len(checks) == 2 and checks <= set(SERVICES["router"]["command"])
