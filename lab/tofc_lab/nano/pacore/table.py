"""The tables of docs/pacore.md, from the measurements in JSON.

Promises that no number in them is typed by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tofc import json_text

NAMES = {"shipped": "nano as shipped", "trained": "trained on synthesis prompts"}


def tables(file: Path) -> tuple[str, str, str, str]:
    """Return the tables of accuracy, of differences, of families and of emergent correctness."""
    found = json_text.read(file)
    decoders = found["decoders"]
    return (
        _intervals(decoders, "accuracy", "accuracy"),
        _intervals(decoders, "difference", "difference of accuracies, paired"),
        _families(decoders["trained"]["family"]),
        _emergent(decoders["trained"]["emergent"]),
    )


def _intervals(decoders: dict[str, Any], key: str, title: str) -> str:
    ways = list(dict.fromkeys(way for one in decoders.values() for way in one[key]))
    signed = "+" if key == "difference" else ""
    lines = [f"| {title} | {' | '.join(NAMES[name] for name in decoders)} |", "| --- |" + " --- |" * len(decoders)]
    for way in sorted(ways, key=list(decoders["trained"][key]).index):
        cells = []
        for one in decoders.values():
            if way not in one[key]:
                cells.append("–")
                continue
            mean, low, high = one[key][way]
            cells.append(f"{mean:{signed}.3f} ({low:{signed}.3f} to {high:{signed}.3f})")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _families(families: dict[str, Any]) -> str:
    ways = [way for way in next(iter(families.values())) if way != "questions"]
    lines = [f"| trained, by family | questions | {' | '.join(ways)} |", "| --- | --- |" + " --- |" * len(ways)]
    for name, row in families.items():
        lines.append(f"| {name} | {row['questions']} | {' | '.join(f'{row[way]:.3f}' for way in ways)} |")
    return "\n".join(lines) + "\n"


def _emergent(shares: dict[str, Any]) -> str:
    lines = ["| of 16 messages | questions | PaCoRe right | vote right |", "| --- | --- | --- | --- |"]
    for name, row in shares.items():
        lines.append(f"| {name} | {row['questions']} | {row['pacore right']} | {row['vote right']} |")
    return "\n".join(lines) + "\n"
