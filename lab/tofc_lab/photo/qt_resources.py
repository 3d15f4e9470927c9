"""The files in a Qt resource file (.rcc), in which some packages keep their photographs."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from tofc.errors import UsageError


def resources(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the files in a Qt resource file (.rcc): their paths and contents.

    It has a header (magic, version, and the offsets of tree, data and names), a tree of nodes in breadth-first order,
    and names in UTF-16. Numbers are big-endian. Files compressed by Zstandard are not supported; gcompris has none.
    """
    magic, version, tree, data, names = struct.unpack_from(">4sIIII", content)
    if magic != b"qres":
        raise UsageError(f"not a Qt resource file: it begins with {magic!r}, expected b'qres'")
    node_bytes = 14 if version == 1 else 22  # from version 2 on with the time of the last change
    waiting = [(0, "")]
    while waiting:
        node, parent = waiting.pop()
        at = tree + node * node_bytes
        name_at, flags = struct.unpack_from(">IH", content, at)
        (length,) = struct.unpack_from(">H", content, names + name_at)
        start = names + name_at + 6  # behind the length and a hash
        name = content[start : start + 2 * length].decode("utf-16-be") if node else ""
        path = f"{parent}/{name}" if parent else name
        if flags & 2:  # a folder
            count, first = struct.unpack_from(">II", content, at + 6)
            waiting += [(child, path) for child in range(first, first + count)]
            continue
        (offset,) = struct.unpack_from(">I", content, at + 10)
        (size,) = struct.unpack_from(">I", content, data + offset)
        body = content[data + offset + 4 : data + offset + 4 + size]
        yield path, zlib.decompress(body[4:]) if flags & 1 else body
