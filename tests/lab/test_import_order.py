"""The folders of the lab import each other without cycles."""

from __future__ import annotations

from graphlib import TopologicalSorter
from pathlib import Path

from tests.test_imports import imported

LAB = Path(__file__).resolve().parents[2] / "lab" / "tofc_lab"


def test_no_folder_depends_on_itself_through_others() -> None:
    arrows: dict[str, set[str]] = {}
    for path in LAB.rglob("*.py"):
        own = path.relative_to(LAB).parts[0].removesuffix(".py")
        others = {name.split(".")[1] for name in imported(path) if name.startswith("tofc_lab.")}
        arrows.setdefault(own, set()).update(others - {own})
    order = list(TopologicalSorter(arrows).static_order())  # raises CycleError
    assert order.index("codec") < order.index("nano") < order.index("rate_distortion") < order.index("cli")
    assert {"checkpoint", "codec", "distillation", "nano", "rate_distortion", "verify", "world"} <= arrows.keys()
