"""The figures that people read are those that were measured."""

import shutil
from pathlib import Path

import pytest

from lab import tables

ROOT = Path(__file__).resolve().parents[2]


DOCUMENTS = (ROOT / "README.md", ROOT / "models" / "nano" / "README.md", ROOT / "docs" / "rate_distortion.md")


def test_the_tables_of_the_documents_are_the_measured_ones(tmp_path: Path) -> None:
    copies = [tmp_path / f"{number}.md" for number in range(len(DOCUMENTS))]
    for document, copy in zip(DOCUMENTS, copies, strict=True):
        shutil.copyfile(document, copy)
    tables.write(ROOT / "benchmarks" / "results", *copies)
    for document, copy in zip(DOCUMENTS, copies, strict=True):
        assert copy.read_text(encoding="utf-8") == document.read_text(encoding="utf-8")


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty.md"
    empty.write_text("no table")
    with pytest.raises(ValueError, match="0 tables begin with"):
        tables.write(ROOT / "benchmarks" / "results", empty, empty, empty)
