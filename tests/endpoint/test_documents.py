"""docs/clients.md: its program runs against an endpoint, and its tables name what the endpoint has."""

from __future__ import annotations

import re

import httpx2
import pytest

from device_client.endpoint.metrics import Metrics
from device_client.endpoint.request import IGNORED
from tests.e2e.conftest import ROOT
from tests.endpoint.conftest import EndpointThread
from tests.endpoint.requests import CHAT, NUMBER, ask

TEXT = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")


def test_the_program_prints_the_number_on_the_sign(
    endpoint: EndpointThread, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (program,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)
    program = (
        program.replace("http://127.0.0.1:8080/v1", endpoint.url)
        .replace("open(", "Path(")
        .replace(', "rb").read()', ").read_bytes()")
    )
    names: dict[str, object] = {}
    exec(compile("from pathlib import Path\n" + program, "docs/clients.md", "exec"), names)
    names["client"].close()  # type: ignore[attr-defined]
    assert capsys.readouterr().out.startswith(f"{NUMBER} {{'picture_bytes': ")


def test_the_table_of_costs_is_that_of_an_answer(http: httpx2.Client) -> None:
    (table,) = re.findall(r"^\| `usage\.tofc` \|.*?\n\n", TEXT, re.M | re.S)
    documented = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines()[2:] if line)))
    usage = http.post(CHAT, json=ask(vote=2)).json()["usage"]["tofc"]
    assert documented == set(usage)


def test_every_metric_and_every_ignored_field_is_named() -> None:
    text = Metrics(lambda: 0, lambda: None).text().decode()
    for name in re.findall(r"^# TYPE tofc_device(_\w+)", text, re.M):
        assert name in TEXT, name
    for field in IGNORED:
        assert field in TEXT or field.endswith("_penalty") or field in ("functions", "verbosity"), field
