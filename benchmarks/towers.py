"""The vision towers in every back end: CPU time of a view by size of the tower, and whether packets are equal.

    python -m benchmarks.towers                    # minutes; writes benchmarks/results/towers.json

Towers in nano's layout of three sizes, and EfficientNet-Lite2, have random weights, one thread; all back ends encode
the same views in turn, so that a busy machine slows all of them. nano's packets are compared on the pictures of
`tests/e2e`, and on mirrored, darkened and enlarged ones. Promises that every figure comes from that run. Leaves a fresh
process to `startup`, and int8's answers to `tofc-lab evaluate --backend onnx --dtype int8`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from safetensors.numpy import save_file

from device_client.compute import Compute
from device_client.encoder import TowerEncoder
from tofc import json_text
from tofc.blas_threads import set_blas_threads
from tofc.model.checkpoint import Checkpoint
from tofc.model.config import SplitConfig
from tofc.model.open_image import open_image
from tofc.model.released_names import VISION, vision_shapes
from tofc.model.shipped import NANO
from tofc.model.vision_tower import DTYPES, SMALL_PARAMETERS, open_tower

ROOT = Path(__file__).resolve().parents[1]
SIZES = ((192, 6), (384, 12), (768, 12))  # width, layers; 64 numbers a head
WIDTHS = {"detail_width": 256, "adapter_width": 1024, "concept_width": 1000, "code_width": 128, "output_width": 512}
LITE = {"model_type": "efficientnet_lite2", **WIDTHS}
TOWERS: dict[str, dict[str, Any]] = {
    f"width {width}, {layers} layers": {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
    }
    for width, layers in SIZES
} | {"EfficientNet-Lite2": LITE}
SEED = 0


def fake_device_half(folder: Path, vision: dict[str, Any]) -> Checkpoint:
    """Write a device's half with random weights; return it. `vision` is its vision_config, or what nano's lacks."""
    raw = json.loads((NANO / "config.json").read_text(encoding="utf-8"))
    raw["vision_config"] = vision if "model_type" in vision else raw["vision_config"] | vision
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    (folder / "split.json").write_text('{"format": 1, "side": "device"}', encoding="utf-8")
    for name in ("codec.json", "codec.safetensors"):
        (folder / name).symlink_to(NANO / name)
    rng = np.random.default_rng(SEED)
    tensors = {
        name: rng.standard_normal(shape, np.float32) * np.float32(np.prod(shape[1:], dtype=int) ** -0.5)
        for name, shape in vision_shapes(SplitConfig.parse(raw)).items()
    }
    save_file(tensors, folder / "model.safetensors")
    return Checkpoint.open(folder, side="device")


def ways(checkpoint: Checkpoint) -> dict[str, tuple[str, str]]:
    """Return back end and number type of each way to compute a tower, by its name in the figures."""
    tower = checkpoint.config.tower
    found = {name: (name, "float32") for name in tower.BACKENDS}
    found |= {f"{name}_int8": (name, "int8") for name in tower.BACKENDS if tower.INT8 and "int8" in DTYPES[name]}
    return found


def compare_speed(checkpoint: Checkpoint, rounds: int) -> dict[str, Any]:
    """Return the CPU ms of a global view each way, the best of some rounds, and how far features are from torch's."""
    towers = {
        name: open_tower(checkpoint, backend, dtype=dtype, threads=1)
        for name, (backend, dtype) in ways(checkpoint).items()
    }
    set_blas_threads(1)
    side = checkpoint.config.global_size
    pixels = np.random.default_rng(SEED).standard_normal((1, 3, side, side), np.float32)
    times: dict[str, list[float]] = {name: [] for name in towers}
    features = {}
    for _ in range(rounds):
        for name, tower in towers.items():
            started = time.process_time()
            features[name] = tower.encode(pixels)
            times[name].append(time.process_time() - started)
    best = {name: min(found) for name, found in times.items()}
    exact = features["torch"]
    return {
        "parameters_millions": round(checkpoint.parameter_count(VISION) / 1e6, 1),
        "cpu_ms": {name: round(seconds * 1e3, 1) for name, seconds in best.items()},
        "over_torch": {name: round(seconds / best["torch"], 2) for name, seconds in best.items()},
        "relative_error": {
            name: float(f"{np.linalg.norm(one - exact) / np.linalg.norm(exact):.1e}") for name, one in features.items()
        },
    }


def pictures(number: int) -> Iterator[Image.Image]:
    """Yield test pictures and changed copies of them, `number` in all; every twelfth is cut into crops."""
    rng = np.random.default_rng(SEED)
    files = sorted((ROOT / "tests" / "e2e" / "pictures").glob("*.jpg"))
    for at in range(number):
        image = open_image(files[at % len(files)])
        if at >= len(files):
            image = ImageOps.mirror(image) if rng.random() < 0.5 else image
            image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.5, 1.5)).rotate(rng.uniform(-20, 20))
        yield image.resize((700, 420)) if at % 12 == 11 else image


def compare_packets(number: int) -> dict[str, Any]:
    """Encode pictures with nano each way; count packets, and those equal to torch's."""
    encoders = {
        name: TowerEncoder.open(NANO, compute=Compute(backend=backend, dtype=dtype, threads=1))
        for name, (backend, dtype) in ways(Checkpoint.open(NANO, "device")).items()
    }
    for encoder in encoders.values():
        encoder.load()
    equal, packets = dict.fromkeys(encoders, 0), 0
    for image in pictures(number):
        found = {name: [one.packet for one in encoder.encode(image)] for name, encoder in encoders.items()}
        packets += len(found["torch"])
        for name, own in found.items():
            equal[name] += sum(one == other for one, other in zip(own, found["torch"], strict=True))
    return {"pictures": number, "packets": packets, "equal_to_torch": equal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "towers.json")
    chosen = parser.parse_args()
    found: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.towers", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread, load {os.getloadavg()[0]:.1f}",
        "seed": SEED,
        "small_parameters": SMALL_PARAMETERS,
        "nano": compare_packets(chosen.pictures),
    }
    for name, vision in TOWERS.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = compare_speed(fake_device_half(Path(folder), vision), chosen.rounds)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    json_text.write(chosen.out, found)
    print(json_text.dumps(found, indent=1))


if __name__ == "__main__":
    main()
