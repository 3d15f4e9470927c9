"""The tower in numpy gives the features and packets of torch's, and devices use it without loading torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from device_client.compute import Compute
from device_client.encoder import TowerEncoder
from tofc.errors import EncoderError, UsageError
from tofc.model import vision_tower
from tofc.model.checkpoint import Checkpoint
from tofc.model.numpy_tower import BLOCK, NumpyTower
from tofc.model.open_image import open_image
from tofc.model.shipped import NANO
from tofc.model.tower import Tower
from tofc.model.vision_tower import choose_backend
from tofc_lab.checkpoint import fake

ROOT = Path(__file__).resolve().parents[2]
PICTURES = sorted((ROOT / "tests/e2e/pictures").glob("*.jpg"))


def draw(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def agree(checkpoint: Checkpoint, pixels: NDArray[np.float32]) -> None:
    found, expected = NumpyTower(checkpoint).encode(pixels), Tower(checkpoint).encode(pixels)
    assert found.shape == expected.shape and found.dtype == np.float32
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("size", [336, 224, 112])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_features_are_torchs_whatever_weights_are_stored_in(tmp_path: Path, size: int, dtype: torch.dtype) -> None:
    fake.write(tmp_path, dtype=dtype)
    agree(Checkpoint.open(tmp_path, "device"), draw(2, 3, size, size))


def test_views_of_the_released_sizes_too(tmp_path: Path) -> None:
    fake.write(tmp_path, image_size=728)
    for size in (728, 504):
        assert (size // 14) ** 2 > 4 * BLOCK, "the last block is whole"
        agree(Checkpoint.open(tmp_path, "device"), draw(1, 3, size, size))


def pictures() -> Iterator[Image.Image]:
    """Yield the test pictures, their mirror images, and one that is cut into crops."""
    for path in PICTURES:
        image = open_image(path)
        yield image
        yield ImageOps.mirror(image)
    yield open_image(PICTURES[0]).resize((1000, 600))


def test_packets_are_byte_for_byte_those_of_torch() -> None:
    encoders = [
        TowerEncoder.open(NANO, compute=Compute(backend=backend), feature_codec=codec)
        for codec in ("default", "context")  # the second has a number for each component: more could differ
        for backend in ("numpy", "torch")
    ]
    for encoder in encoders:
        encoder.load()
    compared = 0
    for image in pictures():
        numpys, torchs, numpys_numbers, torchs_numbers = (
            [encoded.packet for encoded in encoder.encode(image)] for encoder in encoders
        )
        assert (numpys, numpys_numbers) == (torchs, torchs_numbers)
        compared += len(numpys)
    assert compared > 2 * len(PICTURES) + 1 and len(set(numpys)) > 1


@pytest.mark.parametrize("threads", [2, 3])
def test_more_threads_give_the_same_packets(threads: int) -> None:
    one, several = (TowerEncoder.open(NANO, compute=Compute(threads=number)) for number in (None, threads))
    image = open_image(PICTURES[1])
    for encoder in (one, several):
        encoder.load()
    assert [e.packet for e in one.encode(image)] == [e.packet for e in several.encode(image)]


def test_extreme_features_stay_finite_and_warn_nobody(tiny: Path) -> None:
    """Warnings are errors here; the device's users would see them between answers."""
    agree(Checkpoint.open(tiny, "device"), 1e4 * draw(1, 3, 112, 112))


@pytest.mark.parametrize("shape", [(3, 224, 224), (1, 3, 224, 210), (1, 3, 225, 225), (1, 1, 224, 224)])
def test_other_shapes_are_refused(tiny: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"\[B, 3, S, S\] with S a multiple of 14"):
        NumpyTower(Checkpoint.open(tiny)).encode(draw(*shape))


def test_which_back_end_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nano = Checkpoint.open(NANO, "device")
    chosen = {
        asked: choose_backend(asked[0], nano, dtype=asked[1], device=asked[2])
        for asked in [
            ("auto", "float32", "cpu"),
            ("auto", "bfloat16", "cpu"),
            ("auto", "float32", "cuda"),
            ("torch", "float32", "cpu"),
            ("numpy", "float32", "cpu"),
        ]
    }
    assert list(chosen.values()) == ["numpy", "torch", "torch", "torch", "numpy"]
    monkeypatch.setattr(vision_tower, "SMALL_PARAMETERS", nano.parameter_count("vision_model.") - 1)
    assert choose_backend("auto", nano, dtype="float32", device="cpu") == "torch"
    monkeypatch.setattr(vision_tower, "find_spec", lambda _: None)  # torch is not installed
    assert choose_backend("auto", nano, dtype="float32", device="cpu") == "numpy"


def test_numpy_computes_bfloat16_weights_in_float32(tmp_path: Path) -> None:
    fake.write(tmp_path, dtype=torch.bfloat16)
    checkpoint = Checkpoint.open(tmp_path, "device")
    assert Compute(backend="numpy").dtype_of(checkpoint) == "float32"
    assert Compute(backend="numpy").setting(checkpoint) == "" != Compute().setting(checkpoint)
    assert isinstance(Compute(backend="numpy").open_tower(checkpoint), NumpyTower)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "jax"}, "--backend must be one of auto, numpy, onnx, torch, got jax"),
        ({"backend": "numpy", "dtype": "int8"}, "with --dtype int8 use --backend torch"),
        ({"backend": "numpy", "device": "cuda"}, "with --device cuda use --backend torch"),
    ],
)
def test_what_numpy_cannot_do_is_refused_at_once(settings: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Compute(**settings)  # type: ignore[arg-type]


# Without torch, as on a device: a finder that knows no torch stands before all others.
WITHOUT_TORCH = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


def without_torch(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + script], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_device_makes_packets_without_torch() -> None:
    script = """
from pathlib import Path
from device_client.encoder import TowerEncoder
from tofc.model.open_image import open_image
from tofc.model.shipped import NANO
encoder = TowerEncoder.open(NANO)
encoder.load()
print(*(one.packet.hex() for one in encoder.encode(open_image(NANO / "example.jpg"))))
print([name for name in sys.modules if name.startswith(("torch", "transformers", "safetensors.torch"))])
"""
    done = without_torch(script)
    encoder = TowerEncoder.open(NANO, compute=Compute(backend="torch"))
    encoder.load()
    expected = [one.packet.hex() for one in encoder.encode(open_image(NANO / "example.jpg"))]
    assert done.stdout.splitlines() == [" ".join(expected), "[]"], done.stderr


def test_where_torch_is_needed_and_missing_the_error_says_what_to_do() -> None:
    script = """
from device_client.compute import Compute
from device_client.encoder import TowerEncoder
from tofc.errors import EncoderError
from tofc.model.shipped import NANO
try:
    TowerEncoder.open(NANO, compute=Compute(dtype="bfloat16")).load()
except EncoderError as error:
    print(error)
"""
    done = without_torch(script)
    assert done.stdout.startswith("a vision tower in bfloat16 needs torch: "), done.stderr
    assert "[torch]" in done.stdout and "without it --backend numpy computes in float32" in done.stdout


def test_lack_of_memory_is_about_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tofc.model.resources.free_memory_bytes", lambda: 1000)
    with pytest.raises(EncoderError, match=r"the vision tower in float32 needs 24\.9 MB of memory"):
        TowerEncoder.open(NANO).load()
