"""The dashboard and the alerts ask for metrics and labels that a server exports, and Prometheus understands them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from edge_server.metrics import Metrics
from tests.server.conftest import Connect, Serve
from tests.server.raw_client import ANSWERED

FOLDER = Path(__file__).resolve().parents[2] / "edge_server" / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana-dashboard.json").read_text())
#: Of every target: what Prometheus adds, and what the client library tells about the process.
TARGET_LABELS = {"instance", "job"}
TARGET_METRICS = {"up", "process_resident_memory_bytes", "process_cpu_seconds_total"}
KEYWORDS = {"by", "without", "or", "and", "on", "ignoring", "bool"}
#: The folder that holds Debian's `prometheus` and `promtool` (CONTRIBUTING.md); without it the last test is skipped.
PROMETHEUS = os.environ.get("TOFC_PROMETHEUS")


def expressions() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    rules = yaml.safe_load((FOLDER / "prometheus-alerts.yml").read_text())["groups"][0]["rules"]
    return [*panels, *(rule["expr"] for rule in rules)]


def exported() -> dict[str, set[str]]:
    """Every series of a server → its labels."""
    found: dict[str, set[str]] = {name: set() for name in TARGET_METRICS}
    for metric in Metrics("1").described:
        if metric.kind == "histogram":
            found |= {f"{metric.name}_{part}": set() for part in ("sum", "count")}
            found[f"{metric.name}_bucket"] = {"le"}
        else:
            found[metric.name] = set(metric.labels)
    return {name: labels | TARGET_LABELS for name, labels in found.items()}


def parsed(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Yield every metric of an expression with the labels that its selector and the groupings around it use."""
    text = re.sub(r'"[^"]*"', '""', expression)
    groups = {
        label.strip() for group in re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", text) for label in group.split(",")
    }
    text = re.sub(r"\b(?:by|without)\s*\([^)]*\)", "", text)
    text = re.sub(r"\[[^]]*\]", "", text)
    for name, selector in re.findall(r"\b([a-zA-Z_:][\w:]*)\b(?!\s*\()(\{[^}]*\})?", text):
        if name not in KEYWORDS:
            yield name, groups | set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))


def test_the_parser_finds_metrics_and_labels() -> None:
    text = 'histogram_quantile(0.5, sum by (le, a) (rate(m_bucket{b=~"x_y"}[$__rate_interval]))) / n or vector(0)'
    assert list(parsed(text)) == [("m_bucket", {"le", "a", "b"}), ("n", {"le", "a"})]


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_uses_metrics_and_labels_that_a_server_exports(expression: str) -> None:
    assert expression.count("(") == expression.count(")") and expression.count("{") == expression.count("}")
    known, found = exported(), list(parsed(expression))
    assert found
    for metric, labels in found:
        assert metric in known, metric
        if len(found) == 1:  # else a label may belong to another metric
            assert labels <= known[metric], metric


def test_every_metric_is_on_the_dashboard() -> None:
    shown = " ".join(expressions())
    assert [metric.name for metric in Metrics("1").described if metric.name not in shown] == []


def test_panels_have_their_own_ids_and_titles_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == len({panel["title"] for panel in panels})
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) == 23


def test_the_other_files_fit_together() -> None:
    named = {name for text in expressions() for name in re.findall(r'job="(\w+)"', text)}
    for file in FOLDER.glob("prometheus*.yml"):
        prometheus = yaml.safe_load(file.read_text())
        if "scrape_configs" in prometheus:
            assert all((FOLDER / name).is_file() for name in prometheus["rule_files"])
            assert named <= {job["job_name"] for job in prometheus["scrape_configs"]}
    server = yaml.safe_load((FOLDER.parents[1] / "docker-compose.yml").read_text())["services"]["server"]
    (discovered,) = yaml.safe_load((FOLDER / "prometheus-compose.yml").read_text())["scrape_configs"]
    (names,) = discovered["dns_sd_configs"]
    assert names["names"] == server["networks"]["edge"]["aliases"]
    assert str(names["port"]) == server["environment"]["TOFC_SERVER_METRICS_PORT"]
    assert f":{names['port']}/readyz" in server["healthcheck"]["test"][-1]
    (source,) = yaml.safe_load((FOLDER / "grafana-datasource.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    (provider,) = yaml.safe_load((FOLDER / "grafana-dashboards.yml").read_text())["providers"]
    assert provider["type"] == "file"


def ask(port: int, path: str, **query: str) -> Any:
    url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=ANSWERED) as response:
        return json.load(response)["data"]


@pytest.mark.skipif(PROMETHEUS is None, reason="TOFC_PROMETHEUS names no folder with Debian's prometheus")
async def test_a_real_prometheus_scrapes_a_server_and_answers_every_expression(
    serve: Serve, connect: Connect, tmp_path: Path, free_port: int
) -> None:
    assert PROMETHEUS is not None
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    for name in ("prometheus.yml", "prometheus-compose.yml"):
        subprocess.run([f"{PROMETHEUS}/promtool", "check", "config", str(tmp_path / name)], check=True)
    server = await serve(metrics_port=0)
    assert server.monitoring is not None
    config = (tmp_path / "prometheus.yml").read_text().replace("127.0.0.1:9464", server.monitoring.address)
    (tmp_path / "prometheus.yml").write_text(config.replace("interval: 5s", "interval: 1s"))
    options = ["--config.file", tmp_path / "prometheus.yml", "--storage.tsdb.path", tmp_path / "data"]
    process = await asyncio.create_subprocess_exec(
        f"{PROMETHEUS}/prometheus", *map(str, options), "--web.listen-address", f"127.0.0.1:{free_port}"
    )
    try:
        client = connect(server)
        await client.hello()
        async with asyncio.timeout(6 * ANSWERED):
            ready, number = False, 0
            while not ready:  # traffic until a rate has two samples with something between them
                number += 1
                await client.picture(number, f"p{number}")
                await client.view(number, 0, b"packet")
                await client.taken(number, 0)
                await client.ask(number, "what is this?", refs=(number,))
                await client.answer(number)
                await client.ask(number, "twice")
                await client.expect("error")
                try:
                    rate = await asyncio.to_thread(
                        ask, free_port, "query", query="sum(rate(tofc_questions_total[15s])) > 0"
                    )
                except OSError:  # it does not listen yet
                    continue
                ready = bool(rate["result"])
        empty = []
        for expression in expressions():
            query = expression.replace("$__rate_interval", "15s").replace("$instance", ".*")
            answer = await asyncio.to_thread(ask, free_port, "query", query=query)
            if not answer["result"]:
                empty.append(expression)
        alerts = yaml.safe_load((FOLDER / "prometheus-alerts.yml").read_text())["groups"][0]["rules"]
        quiet = {rule["expr"] for rule in alerts}
        assert [expression for expression in empty if expression not in quiet] == []
    finally:
        process.terminate()
        await process.wait()


def test_the_document_lists_every_metric_as_the_server_describes_it() -> None:
    text = (FOLDER.parents[1] / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_]+)` \| (\w+) \| ([^|]*)\| (.+) \|$", text, re.MULTILINE)
    documented = [(name, kind, tuple(re.findall(r"`(\w+)`", labels)), what) for name, kind, labels, what in rows]
    assert documented == [(one.name, one.kind, one.labels, one.text) for one in Metrics("1").described]
