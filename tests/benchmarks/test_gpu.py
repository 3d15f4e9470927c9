"""The benchmark for a GPU, tried on the CPU with a tiny model, and on a pretended GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.launches import can_train
from tofc.errors import UsageError

GRAPH = "embedded engine, --cuda-graph, bfloat16"
NAMES = ["tower", "decoder", "embedded engine, bfloat16", GRAPH, "train-codec, bfloat16", "vLLM, bfloat16"]


def test_every_part_has_numbers_or_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--quick", "--out", str(tmp_path / "gpu.json")])
    found: dict[str, Any] = json.loads((tmp_path / "gpu.json").read_text())["measured"]
    assert list(found) == NAMES
    for name in NAMES[:4]:
        assert isinstance(found[name], dict) and all(value >= 0 for value in found[name].values()), (name, found[name])
    assert len(found[NAMES[4]]) == 3 if can_train() else found[NAMES[4]] == "needs `make lab`", found[NAMES[4]]
    assert (
        found["tower"]["float32, error against the CPU"] == 0 < found["tower"]["bfloat16, error against the CPU"] < 0.1
    )
    assert found["decoder"]["float32, error against the CPU"] == 0
    assert found["embedded engine, bfloat16"]["8 at once, tokens a second"] > 0
    assert found[GRAPH]["tokens of 4 until one differs"] == 4
    assert found["vLLM, bfloat16"] == "vLLM is not installed"
    shown = capsys.readouterr().out
    assert shown.startswith("| part | | |\n") and all(f"| {name} | " in shown for name in NAMES)


def test_a_part_that_fails_or_comes_too_late_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> gpu.Row:
        raise RuntimeError("no kernel image is available")

    bench = gpu.Bench(device="cpu", shape="tiny", tokens=2, rounds=1, layers=1)
    monkeypatch.setattr(gpu.Bench, "parts", lambda _: {"one": broken, "two": lambda: {"ms": 1.0}})
    assert gpu.measure(bench) == {"one": "failed: RuntimeError: no kernel image is available", "two": {"ms": 1.0}}
    assert gpu.measure(bench, seconds=-1)["two"] == "no time left after 0 s"


def test_without_a_gpu_the_reason_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this torch is a CPU build"):
        gpu.main(["--out", str(tmp_path / "gpu.json")])
