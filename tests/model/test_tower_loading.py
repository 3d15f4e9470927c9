"""Loading a tower: its weights, the memory it takes, and its features, compared with those of transformers' tower."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.model.by_transformers import by_column_first, by_transformers
from tofc.model.checkpoint import Checkpoint
from tofc.model.config import SplitConfig
from tofc.model.int8 import Int8Linear
from tofc.model.open_image import open_image
from tofc.model.released_names import vision_shapes
from tofc.model.tower import Tower
from tofc.model.views import views
from tofc_lab.checkpoint import fake

HALF, FULL = torch.bfloat16, torch.float32


@by_column_first
@pytest.mark.parametrize("stored", [HALF, FULL])
@pytest.mark.parametrize("wanted", [HALF, FULL])
def test_features_are_those_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: torch.dtype, wanted: torch.dtype
) -> None:
    monkeypatch.setattr("tofc.model.perception_encoder.BLOCK", 100)  # of 256 tokens
    fake.write(tmp_path, dtype=stored)
    checkpoint = Checkpoint.open(tmp_path)
    ours, theirs = Tower(checkpoint, wanted), by_transformers(checkpoint, wanted)
    pixels = np.random.default_rng(1).standard_normal((2, 3, 224, 224)).astype(np.float32)
    with torch.inference_mode():
        features = theirs(torch.from_numpy(pixels).to(wanted)).last_hidden_state.float().numpy()
    bits = 2**-6 if wanted == HALF else 1e-5  # convolutions and heads add in another order
    np.testing.assert_allclose(ours.encode(pixels), features, atol=bits * np.abs(features).max())


@pytest.mark.parametrize("stored", [HALF, FULL])
@pytest.mark.parametrize("wanted", [HALF, FULL])
def test_weights_are_those_of_the_checkpoint(tmp_path: Path, stored: torch.dtype, wanted: torch.dtype) -> None:
    fake.write(tmp_path, dtype=stored)
    checkpoint = Checkpoint.open(tmp_path)
    found = Tower(checkpoint, wanted).model.state_dict()
    expected = checkpoint.config.tower.state(
        {name.removeprefix("vision_model."): one for name, one in checkpoint.vision_tensors().items()}
    )
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == wanted and torch.equal(found[name], tensor.to(wanted)), name


def test_mixed_stored_dtypes_lose_nothing(tmp_path: Path) -> None:
    fake.write(tmp_path, dtype=FULL)
    tensors = Checkpoint.open(tmp_path).tensors()
    narrow = {name: tensor.to(HALF) if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}
    save_file(narrow, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    assert {one.dtype for one in checkpoint.stored.values()} == {"BF16", "F32"}
    norm = Tower(checkpoint, FULL).model.state_dict()["ln_pre.weight"]
    assert torch.equal(norm, tensors["vision_model.ln_pre.weight"])


def test_int8_keeps_features_and_halves_the_memory_of_bfloat16() -> None:
    checkpoint = Checkpoint.open(Path("models/nano"), "device")
    image = open_image(Path("models/nano/example.jpg"))
    pixels = views(image, checkpoint.config.rule)[-1].pixels[None]
    plain, half, small = (Tower(checkpoint, dtype) for dtype in (FULL, HALF, torch.int8))
    expected = plain.encode(pixels)
    assert 0 < np.linalg.norm(small.encode(pixels) - expected) < 0.06 * np.linalg.norm(expected)
    assert plain.weight_bytes == 2 * half.weight_bytes
    linear = [one for one in small.model.modules() if isinstance(one, Int8Linear)]
    assert half.weight_bytes - small.weight_bytes > 0.9 * sum(one.weight.nbytes for one in linear) > 0


def test_a_row_in_int8_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(40, 24)
    narrow, x = Int8Linear(linear), torch.randn(3, 300, 40)
    x[1] *= 1000
    found = narrow(x)
    assert found.shape == (3, 300, 24) and found.dtype == x.dtype
    assert torch.equal(found[0], narrow(x[0])) and torch.equal(found[2, 299:], narrow(x[2, 299:]))
    expected = linear(x)
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert 0 < error.max() < 0.05
    assert torch.equal(narrow(torch.zeros(1, 40))[0], linear.bias)


MEASURE = """
import sys
from pathlib import Path
import numpy as np, torch
from tofc.model.checkpoint import Checkpoint
from tofc.model.tower import Tower

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

def load(path):
    tower = Tower(Checkpoint.open(Path(path), "device"), getattr(torch, sys.argv[3]))
    tower.encode(np.zeros((1, 3, 112, 112), np.float32))
    return tower.weight_bytes / 1024

load(sys.argv[1])  # the first one also loads libraries
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
resident = kilobytes("VmRSS")
weights = load(sys.argv[2])
print((kilobytes("VmHWM") - resident) / weights)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8"])
def test_a_tower_takes_little_more_memory_than_its_weights(tiny: Path, tmp_path: Path, dtype: str) -> None:
    raw = json.loads((tiny / "config.json").read_text())
    raw["vision_config"] |= {"width": 512, "layers": 12, "heads": 8}
    shapes = vision_shapes(SplitConfig.parse(raw))
    (tmp_path / "config.json").write_text(json.dumps(raw))
    tensors = {name: torch.full(shape, 0.01, dtype=HALF) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size > 80e6
    command = [sys.executable, "-c", MEASURE, str(tiny), str(tmp_path), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0.8 < float(done.stdout) < 1.25
