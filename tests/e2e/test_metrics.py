"""What nano's server counts is what the device that asked it reports."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from device_client.encoder import TowerEncoder
from device_client.link import Target
from device_client.session import Session
from tests.e2e.conftest import PICTURES, ServerThread

QUESTION = "what number is on the sign?"


@pytest.fixture
def measured() -> Iterator[ServerThread]:
    server = ServerThread(metrics_port=0)
    yield server
    server.stop()


def scrape(server: ServerThread) -> dict[str, float]:
    """Return the sum of every series over its labels."""
    assert server.running.monitoring is not None
    with urllib.request.urlopen(f"http://{server.running.monitoring.address}/metrics") as response:
        text = response.read().decode()
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not sample.name.endswith("_bucket"):
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


async def test_a_device_and_its_server_count_the_same(measured: ServerThread, encoder: TowerEncoder) -> None:
    async with Session(Target(address=measured.address), encoder) as session:
        picture = session.open(sorted(PICTURES.glob("*.jpg"))[0])
        reports = [await session.ask([picture], QUESTION).result() for _ in range(3)]
        found = scrape(measured)
    assert found["tofc_questions_total"] == 3 and found["tofc_sessions"] == 1 and found["tofc_pictures_total"] == 1
    assert found["tofc_received_bytes_total"] == sum(report.bytes_picture for report in reports) > 0
    assert found["tofc_new_tokens_total"] == sum(report.usage["new_tokens"] for report in reports) > 0
    assert found["tofc_prompt_tokens_total"] == sum(report.usage["prompt_tokens"] for report in reports)
    assert found["tofc_first_token_seconds_sum"] == pytest.approx(
        sum(report.timings["server_first_token"] for report in reports) / 1e3,
        abs=2e-5,  # a report has hundredths of a millisecond
    )
    assert found["embedding_cache_hits_total"] == 2 and found["embedding_cache_misses_total"] == 1
    assert found["tofc_view_decode_seconds_count"] == 1 and found["embedding_cache_entries"] == 1
    assert found["tofc_engine_running"] == found["tofc_engine_waiting"] == found["tofc_admission_waiting"] == 0
    assert 0 < found["tofc_sent_bytes_total"] < 10_000
