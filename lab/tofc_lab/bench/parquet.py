"""Folders as lmms-eval reads them: parquet files, or what `datasets` writes with `save_to_disk`.

Promises that two row groups of pictures are in memory at a time, and that splits are told apart by the names of files
(`test-00000-of-00002.parquet`) or of the folders of `save_to_disk`. Leaves the meaning of columns to the sets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from tofc.errors import UsageError

#: a part of a file: its rows without pictures, and what loads a table with the pictures
Group = tuple[list[dict[str, Any]], Callable[[], Any]]

_NAMED = re.compile(r"(?P<split>[\w.]+?)-\d+-of-\d+(-[0-9a-f]+)?")


def read_folder(data: Path, split: str, asked: str | None) -> tuple[list[str], list[dict[str, Any]], str]:
    """Return the columns and rows of a split, and where they are. Raises UsageError, ImportError without pyarrow."""
    import pyarrow as pa

    splits = _splits(data)
    if not splits:
        raise UsageError(f"{data} has no parquet file and no data set of save_to_disk")
    wanted = asked or (split if split in splits or len(splits) > 1 else next(iter(splits)))
    if wanted not in splits:
        raise UsageError(f"{data} has no split {wanted!r}; it has {', '.join(sorted(splits))}: choose with --split")
    columns: list[str] = []
    rows: list[dict[str, Any]] = []
    for file in splits[wanted]:
        try:
            schema, groups = _arrow(file) if file.suffix == ".arrow" else _parquet(file)
            pictures = [field.name for field in schema if _holds_bytes(field.type)]
            for group in groups:
                rows += _rows(file, group, pictures)
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"{file} cannot be read: {error}") from None
        columns += [name for name in schema.names if name not in columns]
    return columns, rows, f"{data} ({wanted})"


def _splits(data: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for file in sorted(data.rglob("*.parquet")):
        named = _NAMED.fullmatch(file.stem)
        found.setdefault(named["split"] if named else file.stem, []).append(file)
    for state in sorted(data.rglob("state.json")):  # of save_to_disk, whose folder is the split's
        files = [one["filename"] for one in json.loads(state.read_text(encoding="utf-8")).get("_data_files", [])]
        name = state.parent.name if state.parent != data else "data"
        found.setdefault(name, []).extend(state.parent / file for file in files)
    return found


def _parquet(file: Path) -> tuple[Any, Iterator[Group]]:
    import pyarrow.parquet as pq

    opened = pq.ParquetFile(file)
    schema = opened.schema_arrow
    pictures = tuple(field.name for field in schema if _holds_bytes(field.type))
    plain = [name for name in schema.names if name not in pictures]
    groups = (
        (opened.read_row_group(number, columns=plain).to_pylist(), partial(_row_group, file, number, pictures))
        for number in range(opened.num_row_groups)
    )
    return schema, groups


@lru_cache(maxsize=2)  # questions at the border of two are asked at one time
def _row_group(file: Path, number: int, columns: tuple[str, ...]) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(file).read_row_group(number, columns=list(columns))


def _arrow(file: Path) -> tuple[Any, Iterator[Group]]:
    import pyarrow as pa

    table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()  # it stays on the disk
    pictures = [field.name for field in table.schema if _holds_bytes(field.type)]
    return table.schema, iter([(table.drop_columns(pictures).to_pylist(), lambda: table)])


def _rows(file: Path, group: Group, pictures: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a group, with a function for each picture that reads it."""
    plain, load = group
    there = {name: _shown(load().column(name)) for name in pictures}
    for at, values in enumerate(plain):
        for name in pictures:
            read = partial(_bytes, load, name, at, f"{file}: row {at + 1}")
            values[name] = read if there[name][at] else None
        yield values


def _shown(column: Any) -> list[bool]:
    """Return which rows have a picture, or the path of one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    valid = column.is_valid()
    if pa.types.is_struct(column.type):
        valid = pc.and_(valid, pc.or_(*(pc.struct_field(column, [name]).is_valid() for name in ("bytes", "path"))))
    found: list[bool] = valid.to_pylist()
    return found


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return {"bytes", "path"} <= {field.name for field in kind}
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _bytes(load: Callable[[], Any], name: str, at: int, where: str) -> bytes:
    value = load().column(name)[at].as_py()
    data = value["bytes"] if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise UsageError(f"{where}, column {name}: has no bytes; it refers to {value.get('path')}, which is not read")
    return data
