"""The vision tower in numpy and in torch: CPU time of a view by size of the tower, and whether packets are equal.

    python -m benchmarks.towers                    # minutes; writes benchmarks/results/towers.json

Towers of three sizes have random weights in nano's layout, float32, one thread; both encode the same views in turn, so
that a busy machine slows both. nano's packets are compared on the pictures of `tests/e2e`, and on mirrored, darkened
and enlarged ones. Promises that every figure comes from that run. Leaves a fresh process to `startup`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
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
from tofc.model.vision_tower import SMALL_PARAMETERS, open_tower

ROOT = Path(__file__).resolve().parents[1]
SIZES = ((192, 6), (384, 12), (768, 12))  # width, layers; 64 numbers a head
SEED = 0


def fake_device_half(folder: Path, width: int, layers: int) -> Checkpoint:
    """Write a device's half with random weights; return it."""
    raw = json.loads((NANO / "config.json").read_text(encoding="utf-8"))
    raw["vision_config"] |= {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64}
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    (folder / "split.json").write_text('{"format": 1, "side": "device"}', encoding="utf-8")
    for name in ("codec.json", "codec.safetensors"):
        (folder / name).symlink_to(NANO / name)
    rng = np.random.default_rng(SEED)
    tensors = {
        name: rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)
        for name, shape in vision_shapes(SplitConfig.parse(raw)).items()
    }
    save_file(tensors, folder / "model.safetensors")
    return Checkpoint.open(folder, side="device")


def compare_speed(checkpoint: Checkpoint, rounds: int) -> dict[str, Any]:
    """Return the CPU ms of a global view in both back ends, the best of some rounds, and how far features differ."""
    towers = {name: open_tower(checkpoint, name, threads=1) for name in ("numpy", "torch")}
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
    error = np.linalg.norm(features["numpy"] - features["torch"]) / np.linalg.norm(features["torch"])
    return {
        "parameters_millions": round(checkpoint.parameter_count(VISION) / 1e6, 1),
        **{f"{name}_cpu_ms": round(min(found) * 1e3, 1) for name, found in times.items()},
        "numpy_over_torch": round(min(times["numpy"]) / min(times["torch"]), 2),
        "relative_error": float(f"{error:.1e}"),
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


def compare_packets(number: int) -> dict[str, int]:
    """Encode pictures with nano in both back ends; count equal packets."""
    encoders = [TowerEncoder.open(NANO, compute=Compute(backend=name, threads=1)) for name in ("numpy", "torch")]
    for encoder in encoders:
        encoder.load()
    packets = [
        (first.packet, second.packet)
        for image in pictures(number)
        for first, second in zip(*(encoder.encode(image) for encoder in encoders), strict=True)
    ]
    return {"pictures": number, "packets": len(packets), "equal": sum(one == other for one, other in packets)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "towers.json")
    chosen = parser.parse_args()
    found: dict[str, Any] = {
        "command": "python -m benchmarks.towers",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread, load {os.getloadavg()[0]:.1f}",
        "numpy_max_parameters": SMALL_PARAMETERS,
        "nano": compare_packets(chosen.pictures),
    }
    for width, layers in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            found[f"width {width}, {layers} layers"] = compare_speed(
                fake_device_half(Path(folder), width, layers), chosen.rounds
            )
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    json_text.write(chosen.out, found)
    print(json_text.dumps(found, indent=1))


if __name__ == "__main__":
    main()
