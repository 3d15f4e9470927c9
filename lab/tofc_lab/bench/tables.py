"""The files of a benchmark → rows: a folder of parquet or `save_to_disk`, or one TSV file of VLMEvalKit.

    FOLDER/**/*.parquet, *.arrow ─ pyarrow ─┐
                                            ├─→ Table of Row; a picture's bytes are read when they are needed
    FILE.tsv ─ csv ─ index references ──────┘

Promises that a column which a set needs and the file lacks is named, with those it has, and that a damaged value is
named with its row. Leaves what columns mean to the sets.
"""

from __future__ import annotations

import ast
import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tofc.errors import UsageError
from tofc_lab.bench.question import LETTERS, Source

Form = Literal["parquet", "tsv"]
REFERENCE = 64  # characters: a shorter value of `image` is the index of another row, as VLMEvalKit has it
#: what pandas, with which VLMEvalKit reads, takes for a missing value
MISSING = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
     "NULL", "NaN", "None", "n/a", "nan", "null")
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row. `number` counts from 1, for messages."""

    values: Mapping[str, Any]
    number: int
    where: str

    def text(self, name: str) -> str:
        """Return a value as text. Raises UsageError if it is missing."""
        found = self.optional(name)
        if found is None:
            raise self.wrong(name, "is missing")
        return found

    def optional(self, name: str) -> str | None:
        """Return a value as text; None where it is missing."""
        value = self.values.get(name)
        return None if value is None else str(value)

    def options(self) -> dict[str, str]:
        """Return the columns A, B, … that have a value, by letter."""
        return {letter: text for letter in LETTERS if (text := self.optional(letter)) is not None}

    def pictures(self, name: str = "image") -> tuple[Source, ...]:
        """Return where the pictures of a column come from; none where it has no value."""
        value = self.values.get(name)
        if value is None:
            return ()
        if isinstance(value, str):
            texts = _texts(value)
            if texts is None:
                raise self.wrong(name, "must be base64, the index of another row, or a list of base64")
            return tuple(partial(self._decoded, name, text) for text in texts)
        if isinstance(value, bytes):
            return (partial(bytes, value),)
        if callable(value):
            return (value,)
        raise self.wrong(name, f"must be a picture, got {type(value).__name__}")

    def wrong(self, name: str, problem: str) -> UsageError:
        """Return the error for a value of this row."""
        return UsageError(f"{self.where}: row {self.number}, column {name}: {problem}")

    def _decoded(self, name: str, text: str) -> bytes:
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise self.wrong(name, f"is not base64 ({error}); it begins with {text[:20]!r}") from None


@dataclass(frozen=True, kw_only=True)
class Table:
    """All rows of a split."""

    form: Form
    where: str
    columns: Sequence[str]
    rows: Sequence[Row]

    def require(self, *names: str) -> None:
        """Raise UsageError unless the file has these columns."""
        if missing := [name for name in names if name not in self.columns]:
            raise UsageError(
                f"{self.where} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; it has "
                f"{', '.join(self.columns)}"
            )


def make_table(form: Form, where: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Table:
    """Return a table of rows."""
    made = [Row(values=values, number=number, where=where) for number, values in enumerate(rows, 1)]
    return Table(form=form, where=where, columns=tuple(columns), rows=made)


def read_table(data: Path, split: str, asked: str | None) -> Table:
    """Read a folder or a TSV file. `split`: what the set is scored on; `asked`: the one the user names instead.

    Raises UsageError for what is neither, for a damaged file and for a split that is not there, ImportError without
    pyarrow.
    """
    if data.is_dir():
        from tofc_lab.bench.parquet import read_folder

        columns, rows, where = read_folder(data, split, asked)
        table = make_table("parquet", where, columns, rows)
    elif data.is_file():
        from tofc_lab.bench.tsv import read_tsv

        table = _of_split(make_table("tsv", str(data), *read_tsv(data)), split, asked)
    else:
        raise UsageError(f"{data} does not exist; give --data a folder of parquet files or a TSV file of VLMEvalKit")
    if not table.rows:
        raise UsageError(f"{table.where} has no rows")
    return table


def _of_split(table: Table, split: str, asked: str | None) -> Table:
    names = dict.fromkeys(row.optional("split") or "" for row in table.rows)
    if asked is None and (len(names) < 2 or split not in names):
        return table
    wanted = asked or split
    if wanted not in names:
        raise UsageError(
            f"{table.where} has no split {wanted!r}; it has {', '.join(map(repr, names))}: choose with --split"
        )
    rows = [row for row in table.rows if row.optional("split") == wanted]
    return Table(form=table.form, where=table.where, columns=table.columns, rows=rows)


def _texts(value: str) -> list[str] | None:
    """Return the base64 texts of a value: itself, or a list that is written as Python writes it."""
    if not (value.startswith("[") and value.endswith("]")):
        return [value]
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return found if isinstance(found, list) and all(isinstance(one, str) for one in found) else None
