"""The tables of README and of nano's card, written from what the benchmarks left in JSON.

Promises that no figure in those tables was typed. Leaves every other sentence alone.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

WAYS = ("uncompressed", "packets", "merged to 12, uncompressed", "merged to 12, packets")
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
    """Accuracy per family, uncompressed and in packets, merged and not, as ``tofc-lab evaluate`` left it."""
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
    """README's first table: what goes up, and the answers it gives."""
    world, files = results["world"], costs["the same 336 px pictures as files"]
    return (
        "| what goes up for one 336 px picture | bytes | accuracy on unseen pictures |\n| --- | --- | --- |\n"
        f"| JPEG, quality 75 | {_number(files['jpeg_q75'])} | |\n"
        f"| WebP, quality 75 | {_number(files['webp_q75'])} | |\n"
        f"| **TOFC packet** | **{_number(world['packets']['bytes'])}** | {_cell(world, 'packets', 'all')} |\n"
        f"| the same features, uncompressed (fp16) | {_number(world['uncompressed']['bytes'])} | "
        f"{_cell(world, 'uncompressed', 'all')} |\n"
    )


def costs(found: dict[str, Any]) -> str:
    """Bytes and times of a question, as ``benchmarks.end_to_end`` left them."""
    new, again = found["first question about a 336 px picture"], found["another question about it"]
    large = found["first question about a picture of several views"]
    text = (
        "| | a new 336 px picture | another question about it | a new picture of 7 views |\n| --- | --- | --- | --- |\n"
    )
    for title, key in (("packets", "bytes_picture"), ("on the socket with every header", "bytes_up")):
        text += f"| {title}, bytes | " + " | ".join(f"{one[key]:.0f}" for one in (new, again, large)) + " |\n"
    for key, title in STAGES.items():
        text += f"| {title}, ms | " + " | ".join(f"{one['ms'][key]:.1f}" for one in (new, again, large)) + " |\n"
    return text


def write(results: Path, readme: Path, card: Path) -> None:
    """Replace the tables in ``readme`` and ``card``. Raises ``ValueError`` where one is not found."""
    measured = json.loads((results / "accuracy.json").read_text())["results"]
    end_to_end = json.loads((results / "end_to_end.json").read_text())
    for path, tables in (
        (readme, (accuracy(measured), first(measured, end_to_end), costs(end_to_end))),
        (card, (accuracy(measured),)),
    ):
        text = path.read_text(encoding="utf-8")
        for table in tables:
            head = re.escape(table.splitlines()[0])
            found = re.findall(rf"^{head}\n(?:\|[^\n]*\n)+", text, flags=re.MULTILINE)
            if len(found) != 1:
                raise ValueError(f"{path}: {len(found)} tables begin with {table.splitlines()[0]!r}; one must")
            text = text.replace(found[0], table)
        path.write_text(text, encoding="utf-8")
