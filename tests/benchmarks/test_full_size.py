"""The benchmark of the released size, at a tiny size: it measures what it says and resumes where it stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import full_size
from tofc_lab.checkpoint import fake

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    fake.write(path)
    return path


def run(model: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.full_size", str(model), "--out", str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_it_resumes_where_it_stopped(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "full_size.json"
    names = list(full_size.measurements(model))
    assert (
        names[0] == "split, to the disk"
        and "load from the disk, int8" in names
        and "a picture of 1920 × 1080, bfloat16" in names
    )
    head = full_size.head(model)
    out.write_text(json.dumps({**head, "measured": {name: {"kept": True} for name in names[1:]}}))
    done = run(model, out)
    assert done.returncode == 0 and names[0] in done.stderr and names[1] not in done.stderr, done.stderr
    found = json.loads(out.read_text())
    assert found == json.loads(done.stdout)
    assert found["measured"][names[0]]["written MB"] > 0 and found["measured"][names[0]]["date"]
    assert found["measured"][names[1]] == {"kept": True}


def test_a_half_is_not_split_again(model: Path) -> None:
    (model / "split.json").write_text('{"format": 1, "side": "device"}')
    try:
        assert "split, to the disk" not in full_size.measurements(model)
    finally:
        (model / "split.json").unlink()


def test_a_picture_is_measured_with_all_its_views(model: Path) -> None:
    found = full_size.encode_picture(model, "bfloat16")
    assert found["views"] == 46 and found["tower s, a view"].keys() == {"224 px", "336 px"}
    assert found["merge and encode s"].keys() == {"16 features a view", "32 features a view"}
    assert found["worked"]["peak MB"] >= found["loaded"]["peak MB"] > found["weights MB"]


def test_measurements_for_a_gpu_run_on_a_cpu_too(model: Path) -> None:
    assert full_size.accelerated_tower(model, "cpu").keys() == {"224 px, ms", "336 px, ms"}
    found = full_size.accelerated_decoder(model, "cpu")
    assert found.keys() == {"756 features", "736 features", "1472 features"}
    assert all(one["prefill and first token, ms"] > 0 for one in found.values())
