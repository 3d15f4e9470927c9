"""The same packets from every back end; which one is chosen; execution providers; int8 on ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from device_client.compute import Compute
from device_client.encoder import TowerEncoder
from tests.model.test_numpy_tower import PICTURES, draw, pictures, without_torch
from tofc.codec.codec import Codec
from tofc.codec.fake import fake_weights
from tofc.errors import EncoderError, UsageError
from tofc.model import vision_tower
from tofc.model.checkpoint import Checkpoint
from tofc.model.onnx_tower import OnnxTower
from tofc.model.open_image import open_image
from tofc.model.shipped import NANO
from tofc.model.tower import Tower
from tofc.model.vision_tower import choose_backend
from tofc_lab.checkpoint import fake

LITE = "efficientnet_lite2"


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole checkpoint with an EfficientNet-Lite2 tower, random weights and a codec; do not change it."""
    path: Path = tmp_path_factory.mktemp("lite")
    fake.write(path, tower=LITE, dtype=torch.float16)
    fake_weights(D=128, H=32, seed=4).save(path)
    return path


def loaded(model: Path, compute: Compute, codec: str = "default") -> TowerEncoder:
    encoder = TowerEncoder.open(model, compute=compute, feature_codec=codec)
    encoder.load()
    return encoder


def relative(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tower", ["perception_encoder", LITE])
def test_features_are_torchs_at_every_size(tmp_path: Path, tower: str, dtype: torch.dtype) -> None:
    fake.write(tmp_path, tower=tower, dtype=dtype)
    checkpoint = Checkpoint.open(tmp_path, "device")
    on_onnx, by_torch = OnnxTower(checkpoint), Tower(checkpoint)
    for side in (336, 224, 112, 336):  # one graph for all
        found, expected = on_onnx.encode(draw(2, 3, side, side)), by_torch.encode(draw(2, 3, side, side))
        assert found.shape == expected.shape and found.dtype == np.float32
        assert relative(found, expected) < 5e-5  # of up to 64 convolutions, which add in another order


def test_nanos_packets_are_byte_for_byte_those_of_numpy() -> None:
    encoders = [
        loaded(NANO, Compute(backend=backend), codec)
        for codec in ("default", "context")  # the second has a number for each component: more could differ
        for backend in ("numpy", "onnx")
    ]
    for image in pictures():
        first, second, third, fourth = ([one.packet for one in encoder.encode(image)] for encoder in encoders)
        assert (first, third) == (second, fourth)


def test_packets_of_efficientnet_are_torchs_but_for_near_ties(lite: Path) -> None:
    """Its features differ from torch's by 1e-5, so that of thousands of numbers one may be rounded to its neighbour."""
    encoders = [loaded(lite, Compute(backend=backend)) for backend in ("onnx", "torch")]
    codec = Codec.load(Checkpoint.open(lite).codec_path)
    packets = [[one.packet for path in PICTURES for one in encoder.encode(open_image(path))] for encoder in encoders]
    pairs = list(zip(*packets, strict=True))
    assert len(pairs) > len(PICTURES)  # one picture has crops
    assert sum(found == expected for found, expected in pairs) >= 0.75 * len(pairs)
    for pair in pairs:
        found, expected = map(codec.decode, pair)
        assert (found.positions == expected.positions).all() and relative(found.features, expected.features) < 0.01


@pytest.mark.parametrize("model", ["nano", "lite"])
def test_threads_change_no_number(model: str, lite: Path) -> None:
    checkpoint = Checkpoint.open(NANO if model == "nano" else lite, "device")
    one, three = (OnnxTower(checkpoint, threads=number) for number in (1, 3))
    for side in (336, 224):
        assert (one.encode(draw(1, 3, side, side)) == three.encode(draw(1, 3, side, side))).all()


def test_the_best_back_end_that_is_installed_is_chosen(lite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nano, photo = Checkpoint.open(NANO, "device"), Checkpoint.open(lite, "device")

    def chosen(checkpoint: Checkpoint, dtype: str = "float32", device: str = "cpu") -> str:
        return choose_backend("auto", checkpoint, dtype=dtype, device=device)

    assert [chosen(nano), chosen(photo)] == ["numpy", "onnx"]
    assert [chosen(nano, "int8"), chosen(photo, "bfloat16"), chosen(photo, device="cuda")] == ["onnx", "torch", "torch"]
    monkeypatch.setattr(vision_tower, "find_spec", lambda name: None if name == "onnxruntime" else name)
    assert [chosen(nano), chosen(photo), chosen(nano, "int8")] == ["numpy", "torch", "torch"]
    monkeypatch.setattr(vision_tower, "find_spec", lambda name: None)
    assert [chosen(nano), chosen(photo)] == ["numpy", "onnx"]  # the error says what to install


def test_int8_stays_near_and_is_part_of_the_pictures_setting() -> None:
    checkpoint = Checkpoint.open(NANO, "device")
    exact, rounded = OnnxTower(checkpoint), OnnxTower(checkpoint, int8=True)
    for path in PICTURES[:4]:
        pixels = _view(path)
        assert 0 < relative(rounded.encode(pixels), exact.encode(pixels)) < 0.08
    settings = [Compute(dtype="int8", backend=name).setting(checkpoint) for name in ("auto", "onnx", "torch")]
    assert settings == [", int8, onnx", ", int8, onnx", ", int8"]
    assert [Compute(backend=name).setting(checkpoint) for name in ("numpy", "onnx", "torch")] == ["", "", ""]


def _view(path: Path) -> NDArray[np.float32]:
    from tofc.model.views import views

    rule = Checkpoint.open(NANO, "device").config.rule
    return views(open_image(path), rule)[-1].pixels[None]


def test_a_missing_execution_provider_is_refused_with_those_that_are_there() -> None:
    with pytest.raises(UsageError, match=r"must be one that ONNX Runtime has here \(.*CPU.*\), got toaster"):
        TowerEncoder.open(NANO, compute=Compute(provider="toaster"))
    for settings in ({"backend": "numpy"}, {"device": "cuda"}):
        with pytest.raises(UsageError, match="--execution-provider cpu belongs to --backend onnx"):
            Compute(provider="cpu", **settings)
    with pytest.raises(UsageError, match="--backend onnx computes in float32 or int8; with --dtype bfloat16 use"):
        Compute(provider="cpu", dtype="bfloat16")


def test_the_cpu_is_an_execution_provider(lite: Path) -> None:
    encoder = loaded(NANO, Compute(provider="cpu"))
    assert encoder.setting == loaded(NANO, Compute()).setting
    assert Compute(provider="CUDA").setting(Checkpoint.open(NANO, "device")) == ", cuda"


def test_without_onnx_runtime_the_error_says_what_to_install(lite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)  # as if it were not installed
    monkeypatch.setattr(vision_tower, "find_spec", lambda name: None)
    with pytest.raises(EncoderError, match=r"a vision tower in float32 needs onnxruntime: .*\[onnx\]"):
        loaded(lite, Compute())
    with pytest.raises(EncoderError, match=r"--execution-provider needs onnxruntime: .*\[onnx\]"):
        TowerEncoder.open(lite, compute=Compute(provider="CUDA"))


def test_a_device_with_efficientnet_needs_no_torch(lite: Path) -> None:
    done = without_torch(f"""
from pathlib import Path
from device_client.encoder import TowerEncoder
from tofc.model.open_image import open_image
encoder = TowerEncoder.open(Path({str(lite)!r}))
encoder.load()
print(*(one.packet.hex() for one in encoder.encode(open_image({str(PICTURES[0])!r}))))
print([name for name in sys.modules if name.startswith(("torch", "transformers", "safetensors.torch"))])
""")
    expected = [one.packet.hex() for one in loaded(lite, Compute(backend="torch")).encode(open_image(PICTURES[0]))]
    assert done.stdout.splitlines() == [" ".join(expected), "[]"], done.stderr


def test_lack_of_memory_within_onnx_runtime_is_about_the_model() -> None:
    script = """
import resource
from pathlib import Path
import onnxruntime
from device_client.compute import Compute
from device_client.encoder import TowerEncoder
from tofc.errors import EncoderError
from tofc.model import onnx_tower
from tofc.model.shipped import NANO
encoder = TowerEncoder.open(NANO, compute=Compute(backend="onnx"))
session = onnxruntime.InferenceSession
def short(*given, **options):  # what is left suffices for the weights, not for the copies that it orders
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 4_000_000,) * 2)
    return session(*given, **options)
onnxruntime.InferenceSession = short
try:
    encoder.load()
except EncoderError as error:
    print(error)
"""
    done = without_torch(script)
    assert done.stdout.startswith("this device has not enough memory for the vision tower"), done.stderr
    assert done.stderr == ""
