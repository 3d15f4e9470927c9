"""The tables of README, of nano's card and of docs/, generated from the measurements in JSON.

Promises that no number in those tables is typed by hand. Leaves all other text unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

from tofc import json_text
from tofc.errors import UsageError
from tofc_lab.rate_distortion.outcomes import OURS
from tofc_lab.results import read

#: columns of the table of accuracy, by their names in accuracy.json
WAYS = ("uncompressed", "packets", "merged to 12, uncompressed", "merged to 12, packets")
PREFILTERED = "a file for each question: bytes of a 336 px picture"
INDEXED = "one index per feature: bytes of a 336 px picture"
INDEXED_FAMILIES = "one index per feature: 3 points under uncompressed"
IN_README = (
    *(OURS, "TOFC as published", "ECVQ, net over neighbours"),
    *("PCA behind the projector + scalar quantisation", "AVIF"),
)  # of the methods compared
STAGES = {
    "views": "views",
    "tower": "tower",
    "encode": "merge and encode",
    "upload": "upload",
    "server_decode": "server: decode",
    "server_prefill": "server: prefill",
    "first_token": "first token after the question",
    "total": "whole answer",
}


def _number(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")


def _cell(rows: dict[str, Any], way: str, family: str) -> str:
    row = rows.get(way, {"accuracy": {}})
    if family not in row["accuracy"]:
        return "–"
    low, high = row["interval"][family]
    return f"{row['accuracy'][family]:.3f} ±{(high - low) / 2:.3f}"


def accuracy(results: dict[str, Any]) -> str:
    """Return accuracy by family, uncompressed and in packets, merged and not, from `tofc-lab evaluate`."""
    lines = [
        "| | 36 features, uncompressed | 36 features, packets | merged to 12, uncompressed | merged to 12, packets |",
        "| --- | --- | --- | --- | --- |",
        "| bytes of a 336 px picture | " + " | ".join(_number(results["world"][way]["bytes"]) for way in WAYS) + " |",
    ]
    named = {name: ("world", name) for name in ("exist", "count", "what", "side", "rel", "cmp", "read")}
    named |= {
        "**all seven**": ("world", "all"),
        "easy-VQA, test split": ("easy", "easy"),
        "pictures of 420–1050 px, in crops": ("large", "all"),
    }
    for title, (kind, family) in named.items():
        lines.append(f"| {title} | " + " | ".join(_cell(results[kind], way, family) for way in WAYS) + " |")
    return "\n".join(lines) + "\n"


def first(results: dict[str, Any], costs: dict[str, Any]) -> str:
    """Return README's first table: ways to send a picture, with their bytes and the accuracy of the answers."""
    world, files = results["world"], costs["the same 336 px pictures as files"]
    return (
        "| what is sent for one 336 px picture | bytes | accuracy on unseen pictures |\n| --- | --- | --- |\n"
        f"| JPEG, quality 75 | {_number(files['jpeg_q75'])} | |\n"
        f"| WebP, quality 75 | {_number(files['webp_q75'])} | |\n"
        f"| **TOFC packet** | **{_number(world['preset high']['bytes'])}** | {_cell(world, 'preset high', 'all')} |\n"
        f"| TOFC packet, `--preset low` | {_number(world['preset low']['bytes'])} | "
        f"{_cell(world, 'preset low', 'all')} |\n"
        f"| the same features, uncompressed (fp16) | {_number(world['uncompressed']['bytes'])} | "
        f"{_cell(world, 'uncompressed', 'all')} |\n"
    )


def costs(found: dict[str, Any]) -> str:
    """Return bytes and times of a question, from `benchmarks.end_to_end`."""
    new, again = found["first question about a 336 px picture"], found["another question about it"]
    large = found["first question about a picture of several views"]
    text = (
        "| | a new 336 px picture | another question about it | a new picture of 7 views |\n| --- | --- | --- | --- |\n"
    )
    for title, key in (("packets", "bytes_picture"), ("on the socket with every header, up", "bytes_up")):
        text += f"| {title}, bytes | " + " | ".join(f"{one[key]:.0f}" for one in (new, again, large)) + " |\n"
    tls = found["over TLS with a token"]
    safe = (tls[name]["bytes_up"] for name in ("first question about a 336 px picture", "another question about it"))
    text += "| the same over TLS with a token, bytes | " + " | ".join(f"{size:.0f}" for size in safe) + " | |\n"
    for key, title in STAGES.items():
        text += f"| {title}, ms | " + " | ".join(f"{one['ms'][key]:.1f}" for one in (new, again, large)) + " |\n"
    return text


def _bytes(found: list[float | None]) -> str:
    value, low, high = found
    if value is None:
        return "not reached"
    return f"{_number(value)} ({'–'.join('…' if end is None else _number(end) for end in (low, high))})"


def _ratio(found: list[float | None]) -> str:
    value = found[0]
    return "–" if not value or value == 1 else f"{value:.{3 if value < 1 else 1}f} ×"


def equal_answers(
    kinds: dict[str, Any], only: Container[str] | None = None, title: str = "bytes of a 336 px picture"
) -> str:
    """Return the bytes of a 336 px picture at equal answers (`tofc-lab rate-distortion`), by method."""
    lines = [
        f"| {title} | 3 points under uncompressed | 1 point under | TOFC relative to it |",
        "| --- | --- | --- | --- |",
    ]
    for method, found in kinds["world"]["methods"].items():
        if only is not None and method not in only:
            continue
        cells = [_bytes(found["bytes"]["all"][drop]) for drop in ("3 points", "1 point")]
        ratios = " / ".join(_ratio(found["ours"]["all"][drop]) for drop in ("3 points", "1 point"))
        name = f"**{method}**" if ratios == "– / –" and method == OURS else method
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {ratios if method != OURS else ''} |")
    return "\n".join(lines) + "\n"


def each_family(kinds: dict[str, Any], methods: Sequence[str], title: str = "3 points under uncompressed") -> str:
    """Return the bytes at an accuracy 3 points under uncompressed, by family of questions and kind of picture."""
    lines = [
        f"| {title}, bytes | " + " | ".join(methods) + " |",
        "| --- " * (len(methods) + 1) + "|",
    ]
    rows = [("world", family) for family in kinds["world"]["uncompressed"]]
    rows += [("easy", "easy"), ("large", "all")]
    for kind, family in [one for one in rows if one[0] in kinds]:
        title = {"easy": "easy-VQA, test split", "large": "pictures of 420–1050 px, in crops"}.get(kind, family)
        title = "**all seven**" if title == "all" else title
        measured = kinds[kind]["methods"]
        cells = [_bytes(measured[one]["bytes"][family]["3 points"]) if one in measured else "–" for one in methods]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write(results: Path, readme: Path, card: Path, comparison: Path, latency: Path) -> None:
    """Replace the tables in the four documents. Raises `UsageError` if a table is not there exactly once."""
    measured = read(results / "accuracy.json", "results")
    end_to_end = json_text.read(results / "end_to_end.json")
    kinds = read(results / "rate_distortion.json", "kinds")
    few = json_text.read(results / "rate_distortion.json").get("prefiltered")  # only where that was measured
    indexed = [OURS, *(name for name in kinds["world"]["methods"] if "VQ" in name)]
    others = [name for name in kinds["world"]["methods"] if name not in indexed[1:]]
    everywhere = [name for name in others if name in kinds["large"]["methods"] and not name.startswith("top n")]
    for path, tables in (
        (readme, (first(measured, end_to_end), equal_answers(kinds, IN_README))),
        (card, (accuracy(measured),)),
        (comparison, (equal_answers(kinds, others), equal_answers(kinds, indexed, INDEXED))),
        (comparison, (each_family(kinds, everywhere), each_family(kinds, indexed, INDEXED_FAMILIES))),
        (comparison, (equal_answers({"world": few}, title=PREFILTERED),) if few else ()),
        (latency, (costs(end_to_end),)),
    ):
        replace(path, tables)


def replace(path: Path, tables: Iterable[str]) -> None:
    """Replace tables, which are found by their first lines. Raises `UsageError` unless each is there once."""
    text = path.read_text(encoding="utf-8")
    for table in tables:
        head = re.escape(table.splitlines()[0])
        found = re.findall(rf"^{head}\n(?:\|[^\n]*\n)+", text, flags=re.MULTILINE)
        if len(found) != 1:
            raise UsageError(f"{path} must have 1 table that begins with {table.splitlines()[0]!r}, has {len(found)}")
        text = text.replace(found[0], table)
    path.write_text(text, encoding="utf-8")
