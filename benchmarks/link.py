"""First token over real TCP and TLS on slow links: features, image files of equal answers, WebP at quality 75, auto.

    sudo python -m benchmarks.link                  # the matrix; a quarter of an hour; benchmarks/results/link.json
    sudo python -m benchmarks.link --only 25KB/s    # the links whose name contains this
    python -m benchmarks.link --table               # the table of docs/latency.md, from the last run
    python -m benchmarks.link --waterfall docs/link.png   # the picture there; needs matplotlib
    python -m benchmarks.link_goals                 # how far the goals are reached

Runs the real server and `device-client bench` in two network namespaces with a link between them (`tun_relay`); needs
root and /dev/net/tun. Promises that the ways of sending take turns within a link, so that a busy machine slows all of
them alike: compare within a row. A run continues where the results end, and each row says when it was measured.
Without root: `device-client bench --link`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.listening import listening
from benchmarks.tun_relay import DEVICE, EDGE, EDGE_IP, namespaces
from device_client.bench import AUTO, EQUAL, FEATURES, PLAIN
from device_client.link_shape import parse_link
from edge_server.credentials import Credentials, write
from tofc import json_text
from tofc.model.shipped import NANO

ROOT = Path(__file__).resolve().parents[1]
RATES = ("25KB/s", "50KB/s", "100KB/s", "1Mbit/s", "5Mbit/s", "10Mbit/s")
TRIPS, LOSSES = ("60ms", "20ms", "200ms"), ("0%", "1%")
LINKS = [",".join(parts) for parts in product(RATES, TRIPS, LOSSES)]
DRAWN = ROOT / "tests" / "e2e" / "pictures"
FULL_HD = (1920, 1080)
#: The pictures (that of 1080p is made of drawn ones), and the links of those in crops, which take longer.
PICTURES = {"336 px": NANO / "example.jpg", "crops": DRAWN / "picture-11.jpg", "1080p": Path("1080p.png")}
COUNT = "how many objects are there?"
QUESTIONS = {"336 px": "what number is on the sign?", "crops": COUNT, "1080p": COUNT}
CROP_LINKS = [",".join(parts) for parts in product(("25KB/s", "1Mbit/s", "10Mbit/s"), ("60ms",), ("0%",))]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
CHOICE, NOT_MEASURED = "choice", "–"
GOALS = "first token: 0.25 × WebP q75 and 0.45 × the image file of equal answers at 25 KB/s, 1.0 everywhere"


@contextmanager
def serving(secrets: Credentials) -> Iterator[str]:
    """Run a server in its namespace; yield its address."""
    command = [*_inside(EDGE), "edge_server", "serve", "--host", EDGE_IP, "--take-images", "--log-level", "warning"]
    command += ["--tls-cert", str(secrets.certificate), "--tls-key", str(secrets.key)]
    command += ["--token-file", str(secrets.token)]
    with listening(command, environment=ENVIRONMENT) as (address, _):
        yield address


def _inside(namespace: str) -> list[str]:
    return ["ip", "netns", "exec", namespace, sys.executable, "-m"]


def full_hd(out: Path) -> None:
    """Write a picture of 1080p: drawn pictures side by side, none of them enlarged."""
    canvas, drawn = Image.new("RGB", FULL_HD), [Image.open(path) for path in sorted(DRAWN.glob("*.jpg"))]
    tile = min(image.width for image in drawn)
    for number, (y, x) in enumerate(product(range(0, FULL_HD[1], tile), range(0, FULL_HD[0], tile))):
        canvas.paste(drawn[number % len(drawn)].crop((0, 0, tile, tile)), (x, y))
    canvas.save(out)


def bench(address: str, secrets: Credentials, picture: Path, question: str, rounds: int) -> dict[str, Any]:
    """Run `device-client bench` in the device's namespace; return what it printed."""
    command = [*_inside(DEVICE), "device_client", "bench", str(picture), "-q", question, "--json"]
    command += ["--server", address, "--tls-ca", str(secrets.ca), "--token-file", str(secrets.client_token)]
    done = subprocess.run([*command, "--rounds", str(rounds)], stdout=subprocess.PIPE, env=ENVIRONMENT, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(out: Path, only: str, rounds: int, seed: int) -> None:
    """Measure the links that the results lack."""
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.exists() else []
    known = {(row["link"], row["picture"]) for row in rows}
    wanted = [(link, "336 px") for link in LINKS] + list(product(CROP_LINKS, ("crops", "1080p")))
    missing = [one for one in sorted(wanted, key=_first) if one not in known and only in one[0]]
    with (
        tempfile.TemporaryDirectory() as folder,
        namespaces(parse_link(LINKS[0]), seed=seed) as relay,
        serving(secrets := write(Path(folder, "credentials"), [EDGE_IP])) as address,
    ):
        full_hd(Path(folder, PICTURES["1080p"]))
        for link, picture in missing:
            relay.shape, before = parse_link(link), relay.lost
            # Joined to the folder, an absolute path stays as it is.
            found = bench(address, secrets, Path(folder, PICTURES[picture]), QUESTIONS[picture], rounds)
            row = {"link": link, "picture": picture, "date": date.today().isoformat(), "load": os.getloadavg()[0]}
            rows.append(row | {name: found[name] for name in ("rounds", "views", "ways", "auto_over_better")})
            rows[-1]["lost_packets"] = relay.lost - before
            print(link, picture, {name: way["first_token_ms"] for name, way in found["ways"].items()}, flush=True)
            told = {"command": "python -m benchmarks.link", "seed": seed, "goals": GOALS}
            machine = f"{platform.machine()}, {os.cpu_count()} cores"
            json_text.write(out, told | {"machine": machine, "rows": rows})


def _first(one: tuple[str, str]) -> tuple[int, int]:
    """Order: a round trip of 60 ms without loss first, then what is left."""
    link, picture = one
    return (0 if link.endswith(",60ms,0%") else 1, list(PICTURES).index(picture))


def tables(rows: list[dict[str, Any]]) -> str:
    """Return the results as Markdown: ratios of medians, at the three round trips in turn."""
    by_link = {(row["link"], row["picture"]): row for row in rows}
    compared = {"image file of equal answers": EQUAL, "WebP q75": PLAIN}
    titles = [f"{what}{lost}" for what in compared for lost in ("", ", 1 % lost")]
    lines = [
        f"| {' / '.join(sorted(TRIPS, key=_ms))} | {' | '.join(titles)} | auto over the better | its choices |",
        "|" + " --- |" * (len(titles) + 3),
    ]
    for rate, picture in ((rate, picture) for picture in PICTURES for rate in RATES):
        cells = [_ratios(by_link, rate, loss, picture, other) for other in compared.values() for loss in LOSSES]
        cells += [_ratios(by_link, rate, "0%", picture, one) for one in (AUTO, CHOICE)]
        if set(cells) != {NOT_MEASURED}:
            lines.append(f"| {rate}, {picture} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratios(by_link: dict[tuple[str, str], dict[str, Any]], rate: str, loss: str, picture: str, what: str) -> str:
    """Return a cell: a ratio for each round trip, in rising order."""
    rows = [by_link.get((f"{rate},{trip},{loss}", picture)) for trip in sorted(TRIPS, key=_ms)]
    found = [None if row is None else ratio(row, what) for row in rows]
    return " / ".join("–" if one is None else f"{one:.2f}" for one in found) if any(found) else NOT_MEASURED


def ratio(row: dict[str, Any], what: str) -> float:
    """Return features' first token over that of an image file; or for auto what it took over the better way.

    CHOICE: as auto, but each of its questions counted as what the way it chose took in the same round.
    """
    ways = row["ways"]
    first = {name: way["first_token_ms"] for name, way in ways.items()}
    if what not in (AUTO, CHOICE):
        return float(first[FEATURES] / first[what])
    better = min(first[FEATURES], first[EQUAL])
    if what == AUTO:
        return float(first[AUTO] / better)
    chosen = [FEATURES if mode == "features" else EQUAL for mode in ways[AUTO]["modes"]]
    return statistics.median(ways[name]["first_tokens_ms"][turn] for turn, name in enumerate(chosen)) / better


def _ms(trip: str) -> float:
    return parse_link(f"25KB/s,{trip}").rtt_s


def _order(link: str) -> int:
    return LINKS.index(link)


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """Draw where the time to the first token goes, at 60 ms without loss."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [row for row in rows if row["picture"] == "336 px" and row["link"].endswith(",60ms,0%")]
    shown.sort(key=lambda row: -_order(row["link"]))
    stages = {"device": "#4c72b0", "link and queue": "#dd8452", "server": "#55a868"}
    bars = [(row, name) for row in shown for name in reversed((FEATURES, EQUAL, PLAIN, AUTO))]
    figure, axes = plt.subplots(figsize=(8, 0.26 * len(bars) + 1.2), layout="constrained")
    places = [index + index // 4 * 0.6 for index in range(len(bars))]
    left = [0.0] * len(bars)
    for stage, colour in stages.items():
        widths = [row["ways"][name]["stages_ms"][stage] for row, name in bars]
        axes.barh(places, widths, left=left, color=colour, label=stage, height=0.8)
        left = [one + width for one, width in zip(left, widths, strict=True)]
    axes.set_yticks(places, [f"{row['link'].split(',')[0]}  {name}" for row, name in bars], fontsize=7)
    axes.set_xlabel("ms from the question to the first token (medians)")
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "link.json")
    parser.add_argument("--only", default="", help="measure only links whose name contains this text")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0, help="of the losses")
    parser.add_argument("--table", action="store_true", help="print the tables of the last run, measure nothing")
    parser.add_argument("--waterfall", type=Path, help="draw the last run into this PNG, measure nothing")
    chosen = parser.parse_args()
    if not (chosen.table or chosen.waterfall):
        if os.geteuid():
            sys.exit("namespaces need root; without it run `device-client bench --link 25KB/s`")
        measure(chosen.out, chosen.only, chosen.rounds, chosen.seed)
    rows = json.loads(chosen.out.read_text(encoding="utf-8"))["rows"]
    if chosen.waterfall:
        draw(rows, chosen.waterfall)
    else:
        print(tables(rows))


if __name__ == "__main__":
    main()
