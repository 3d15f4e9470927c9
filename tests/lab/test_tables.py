"""The figures that people read are those that were measured."""

import shutil
from pathlib import Path

import pytest

from lab import tables

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_of_readme_and_card_are_the_measured_ones(tmp_path: Path) -> None:
    readme, card = tmp_path / "README.md", tmp_path / "card.md"
    shutil.copyfile(ROOT / "README.md", readme)
    shutil.copyfile(ROOT / "models" / "nano" / "README.md", card)
    tables.write(ROOT / "benchmarks" / "results", readme, card)
    assert readme.read_text(encoding="utf-8") == (ROOT / "README.md").read_text(encoding="utf-8")
    assert card.read_text(encoding="utf-8") == (ROOT / "models" / "nano" / "README.md").read_text(encoding="utf-8")


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.md").write_text("no table")
    with pytest.raises(ValueError, match="0 tables begin with"):
        tables.write(ROOT / "benchmarks" / "results", tmp_path / "empty.md", tmp_path / "empty.md")
