"""VLMEvalKit's files: tab-separated values with pictures in base64, or the index of another row that has one.

Promises the values that VLMEvalKit reads, with pandas: what pandas takes for missing is missing here, and rows without
a picture are left out. Every value stays a text.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tofc.errors import UsageError
from tofc_lab.bench.tables import MISSING, REFERENCE

LONGEST = 1 << 30  # characters of a value: pictures


def read_tsv(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the columns and the rows. Raises UsageError."""
    rows = list(_records(path))
    if not rows:
        raise UsageError(f"{path} is empty; VLMEvalKit's files begin with a line of column names")
    columns, *records = rows
    for needed in ("index", "image"):
        if needed not in columns:
            raise UsageError(f"{path} lacks the column {needed}; it has {', '.join(columns)}")
    found: list[dict[str, Any]] = []
    for number, record in enumerate(records, 1):
        if len(record) != len(columns):
            raise UsageError(f"{path}: row {number} has {len(record)} values, but there are {len(columns)} columns")
        values = {name: value for name, value in zip(columns, record, strict=True) if value not in MISSING}
        if "index" not in values:
            raise UsageError(f"{path}: row {number}, column index: is missing")
        found.append(values)
    return columns, _with_pictures(path, found)


def _with_pictures(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace references to other rows by the pictures there, and leave out rows without any."""
    pictures = {row["index"]: row["image"] for row in rows if "image" in row}
    for number, row in enumerate(rows, 1):
        if len(row.get("image", "")) > REFERENCE or "image" not in row:
            continue
        reference = row["image"]
        if len(pictures.get(reference, "")) <= REFERENCE:
            raise UsageError(
                f"{path}: row {number}, column image: {reference!r} must be base64 or the index of a row that has a "
                f"picture; {'the row of that index has none' if reference in pictures else 'there is no such index'}"
            )
        row["image"] = pictures[reference]
    return [row for row in rows if "image" in row]


def _records(path: Path) -> Iterator[list[str]]:
    before = csv.field_size_limit(LONGEST)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from (record for record in csv.reader(file, delimiter="\t") if record)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a TSV file in UTF-8 ({error})") from None
    finally:
        csv.field_size_limit(before)
