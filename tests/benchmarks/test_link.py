"""The benchmark of slow links: namespaces with a link between them, its table and its picture."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import link, link_goals, tun_relay
from device_client.bench import AUTO, EQUAL, FEATURES, PLAIN
from device_client.link_shape import parse_link

LISTEN = "import socket; s = socket.create_server(('10.77.0.2', 5000)); print('ready', flush=True); c, _ = s.accept()\n"
ECHO = LISTEN + "while data := c.recv(4096): c.sendall(data)"
SEND = """
import socket, time
c = socket.create_connection(('10.77.0.2', 5000))
started = time.perf_counter()
c.sendall(bytes(30_000))
left = 30_000
while left:
    left -= len(c.recv(4096))
print(time.perf_counter() - started)
"""


def namespaces_work() -> bool:
    """Whether this machine lets the tests make namespaces and links."""
    if os.geteuid() or not Path("/dev/net/tun").exists() or shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", f"tofc-try-{os.getpid()}"], stderr=subprocess.DEVNULL, check=False)
    if made.returncode == 0:
        subprocess.run(["ip", "netns", "del", f"tofc-try-{os.getpid()}"], check=True)
    return made.returncode == 0


@pytest.mark.skipif(not namespaces_work(), reason="needs root, iproute2 and /dev/net/tun")
def test_tcp_between_the_namespaces_is_as_slow_as_the_link_and_survives_losses() -> None:
    with tun_relay.namespaces(parse_link("100KB/s,40ms,3%"), seed=1) as relay:
        inside = [["ip", "netns", "exec", name, sys.executable, "-c"] for name in (tun_relay.DEVICE, tun_relay.EDGE)]
        with subprocess.Popen([*inside[1], ECHO], stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None and server.stdout.readline() == "ready\n"
            done = subprocess.run([*inside[0], SEND], capture_output=True, text=True, timeout=120, check=True)
    assert float(done.stdout) >= 30_000 / 100e3 + 0.04, "30 kB each way, at one time, and a round trip"
    assert relay.lost > 0
    assert tun_relay.DEVICE not in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout


def row(name: str, picture: str, **first_ms: float) -> dict[str, Any]:
    stages = {"device": 90.0, "link and queue": 70.0, "server": 20.0}
    ways: dict[str, dict[str, Any]] = {
        way: {"first_token_ms": ms, "first_tokens_ms": [ms] * 3, "stages_ms": stages} for way, ms in first_ms.items()
    }
    ways[AUTO]["modes"] = ["features", "image", "features"]
    return {"link": name, "picture": picture, "ways": ways}


ROWS = [
    row("1Mbit/s,60ms,0%", "336 px", **{FEATURES: 150, EQUAL: 200, PLAIN: 300, AUTO: 156}),
    row("25KB/s,60ms,0%", "336 px", **{FEATURES: 128, EQUAL: 256, PLAIN: 512, AUTO: 130}),
    row("25KB/s,200ms,1%", "336 px", **{FEATURES: 400, EQUAL: 500, PLAIN: 800, AUTO: 410}),
]


def test_the_table_has_a_row_for_each_rate_and_a_number_for_each_round_trip() -> None:
    header, _, first, second = link.tables(ROWS).splitlines()
    assert header.startswith(
        "| 20ms / 60ms / 200ms | image file of equal answers | image file of equal answers, 1 % lost |"
    )
    assert first.split(" | ")[:3] == ["| 25KB/s, 336 px", "– / 0.50 / –", "– / – / 0.80"]
    assert first.split(" | ")[3:] == ["– / 0.25 / –", "– / – / 0.50", "– / 1.02 / –", "– / 1.00 / – |"]
    assert second.split(" | ")[2] == "–"


def test_a_choice_counts_as_what_the_chosen_way_took_in_that_round() -> None:
    made = row("25KB/s,60ms,0%", "336 px", **{FEATURES: 100, EQUAL: 200, PLAIN: 300, AUTO: 150})
    made["ways"][FEATURES]["first_tokens_ms"], made["ways"][EQUAL]["first_tokens_ms"] = [90, 100, 130], [150, 200, 210]
    assert link.ratio(made, AUTO) == 1.5
    assert link.ratio(made, link.CHOICE) == 1.3, "90, 200, 130"


def test_the_goals_are_counted_from_unrounded_ratios() -> None:
    close = row("5Mbit/s,60ms,0%", "336 px", **{FEATURES: 200.6, EQUAL: 200, PLAIN: 400, AUTO: 230})
    found = link_goals.lines([*ROWS, close])
    assert "25KB/s, 336 px, over image, WebP q75: 0.25 to 0.50" in found
    assert "over image, equal answers at most 1.0: 3 of 4, median 0.78, 0.50 to 1.00" in found
    assert "    5Mbit/s: 0 of 1, median 1.00, 1.00 to 1.00" in found
    assert "auto at most 1.05: 3 of 4, median 1.03, 1.02 to 1.15" in found


def test_auto_is_compared_with_the_way_that_it_took_in_the_same_round() -> None:
    made = row("25KB/s,60ms,0%", "336 px", **{FEATURES: 100, EQUAL: 200, PLAIN: 300, AUTO: 150})
    made["ways"][FEATURES]["first_tokens_ms"] = [100, 110, 120]
    assert link_goals.beside_the_same_way([made], "features") == [1.5, 150 / 120]
    assert link_goals.beside_the_same_way([made], "image") == [150 / 200]


def test_a_way_that_scatters_exceeds_the_limit_beside_itself_and_a_steady_one_does_not() -> None:
    scattered = row("25KB/s,60ms,0%", "336 px", **{FEATURES: 100, EQUAL: 200, PLAIN: 300, AUTO: 150})
    scattered["ways"][FEATURES]["first_tokens_ms"] = [50, 100, 200]
    assert link_goals.over_itself(ROWS) == 0
    assert 0.2 < link_goals.over_itself([scattered]) < 0.5


def test_the_links_of_the_issue_are_all_measured() -> None:
    assert len(link.LINKS) == len(set(link.LINKS)) == 36
    assert all(parse_link(name).rtt_s in (0.02, 0.06, 0.2) for name in link.LINKS)
    assert set(link.CROP_LINKS) <= set(link.LINKS)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    link.draw(ROWS, tmp_path / "link.png")
    assert (tmp_path / "link.png").stat().st_size > 5000
