"""The tables in the documents are those of the measurements."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tofc.errors import UsageError
from tofc_lab import tables
from tofc_lab.nano.pacore import table

ROOT = Path(__file__).resolve().parents[2]

DOCUMENTS = [
    ROOT / name for name in ("README.md", "models/nano/README.md", "docs/rate_distortion.md", "docs/latency.md")
]


def test_the_tables_of_the_documents_are_the_measured_ones(tmp_path: Path) -> None:
    copies = [tmp_path / f"{number}.md" for number in range(len(DOCUMENTS))]
    for document, copy in zip(DOCUMENTS, copies, strict=True):
        shutil.copyfile(document, copy)
    tables.write(ROOT / "benchmarks" / "results", *copies)
    for document, copy in zip(DOCUMENTS, copies, strict=True):
        assert copy.read_text(encoding="utf-8") == document.read_text(encoding="utf-8")


def test_the_tables_of_pacore_are_the_measured_ones(tmp_path: Path) -> None:
    copy = tmp_path / "pacore.md"
    shutil.copyfile(ROOT / "docs" / "pacore.md", copy)
    tables.replace(copy, table.tables(ROOT / "benchmarks" / "results" / "pacore.json"))
    assert copy.read_text(encoding="utf-8") == (ROOT / "docs" / "pacore.md").read_text(encoding="utf-8")


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty.md"
    empty.write_text("no table")
    with pytest.raises(UsageError, match=r"must have 1 table that begins with .*, has 0"):
        tables.write(ROOT / "benchmarks" / "results", empty, empty, empty, empty)
