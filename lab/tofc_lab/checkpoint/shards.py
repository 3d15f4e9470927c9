"""Distribution of a checkpoint's tensors over files of limited size, named and indexed as on the hub.

Promises that the same tensors are always put into the same files, so that an existing file can be kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

INDEX = "model.safetensors.index.json"


def plan(sizes: Mapping[str, int], most: int | None) -> dict[str, list[str]]:
    """Return the tensors of each file, in the order of `sizes` (bytes); a file has at most `most` or one tensor."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if most is not None and groups[-1] and filled + size > most:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}


def index(files: Mapping[str, Iterable[str]], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return the content of `model.safetensors.index.json`."""
    places = {name: file for file, names in files.items() for name in names}
    return {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(places.items()))}
