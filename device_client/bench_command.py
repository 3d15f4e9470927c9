"""`device-client bench`: opens what is measured, measures each link, prints a table or JSON.

Promises that a server which cannot be reached, or takes no image files, is reported before anything is measured. Leaves
measuring to `bench`.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from device_client import bench
from device_client.bench import Way
from device_client.bench_options import BenchOptions
from device_client.energy import EnergyMeter, NotMeasurable, open_meter
from device_client.link_shape import LinkShape
from device_client.options import PacketOptions, ServerOptions, open_auto
from device_client.picture import open_picture
from device_client.render import format_bytes
from tofc.errors import UsageError
from tofc.model.open_image import open_image
from tofc.model.shipped import NANO
from tofc.terminal import note, say, say_json

EXAMPLE = NANO / "example.jpg"
REAL = "the real link"


async def run(path: Path | None, options: BenchOptions, server: ServerOptions, packets: PacketOptions) -> None:
    """Measure every link and print what was found. Raises as `Session.ask`, UsageError, ImageError."""
    targets = server.targets()
    if len(targets) > 1:
        raise UsageError(f"bench measures one server, got {len(targets)}; give --server once")
    image = open_image(path or EXAMPLE)
    tower = packets.open_encoder()
    auto = open_auto(packets, None, tower=tower)
    views = open_picture(image, tower.rule, tower.codec_id, tower.setting).n_views
    images = await bench.takes_images(targets[0], tower)
    if not images:
        note("the server takes no image files, so only features are measured; start it with --take-images")
    elif auto.files.form(views) is None:
        note(f"image files of equal answers are left out: {auto.no_files}")
    await asyncio.to_thread(tower.load)  # its owner keeps it over all links
    pictures, meter = bench.new_pictures(image, secrets.randbits(64)), open_meter()
    try:
        links: list[LinkShape | None] = [*options.shapes]
        for link in links or [None]:
            ways = bench.ways_of(auto, tower, auto.files.form(views), images=images)
            await bench.measure(
                targets[0],
                link,
                ways,
                pictures,
                options.question,
                rounds=options.rounds,
                meter=meter,
                seed=options.seed,
                progress=_progress(link, options.rounds),
            )
            _print(link, ways, meter, rounds=options.rounds, views=views, as_json=options.as_json)
    finally:
        if not isinstance(meter, NotMeasurable):
            meter.close()


def _progress(link: LinkShape | None, rounds: int) -> Callable[[int], None]:
    """Return what shows how far a link is, at a terminal."""

    def show(done: int) -> None:
        if done and sys.stderr.isatty():
            note(f"{link.name if link else REAL}: round {done} of {rounds}")

    return show


def _print(
    link: LinkShape | None,
    ways: Mapping[str, Way],
    meter: EnergyMeter | NotMeasurable,
    *,
    rounds: int,
    views: int,
    as_json: bool,
) -> None:
    energy = str(meter) if isinstance(meter, NotMeasurable) else f"measured by {meter.name}, of the whole machine"
    ratio = bench.auto_over_better(ways)
    if as_json:
        found: dict[str, Any] = {"link": link.name if link else None, "rounds": rounds, "views": views}
        found["shape"] = str(link) if link else None
        found["ways"] = {name: way.to_json() for name, way in ways.items()}
        say_json(found | {"auto_over_better": ratio and round(ratio, 3), "energy": energy})
        return
    say(f"{link.name}: {link}" if link else REAL)
    say(table(ways))
    if ratio is not None:
        chosen = ways[bench.AUTO].to_json()
        modes = ", ".join(f"{mode} {count}×" for mode, count in chosen["chosen"].items())
        say(f"auto: {ratio:.2f} × the better way; {modes}; the last: {chosen['why']}")
    say(f"joules: {energy}")


def table(ways: Mapping[str, Way]) -> str:
    """Return medians as lines of a table."""
    rows: list[tuple[str, ...]] = [("", "first token", "total", "× features", "picture", "up", "down", "joules")]
    base = ways[bench.FEATURES].median("first_token")
    for name, way in ways.items():
        one = way.to_json()
        rows.append(
            (
                name,
                f"{one['first_token_ms']:.0f} ms",
                f"{one['total_ms']:.0f} ms",
                f"{one['first_token_ms'] / base:.2f}",
                format_bytes(one["bytes_picture"]),
                *("–" if one[way_] is None else format_bytes(one[way_]) for way_ in ("bytes_up", "bytes_down")),
                "–" if one["joules"] is None else f"{one['joules']:.2f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for name, *cells in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *aligned]).rstrip())
    return "\n".join(lines)
