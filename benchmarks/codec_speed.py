"""How long merging, encoding and decoding take, and how far packets are from their ideal size.

    python -m benchmarks.codec_speed        # about ten minutes; writes benchmarks/results/codec_speed.json

Runs on one core: it restarts itself with one thread for the libraries. Promises medians of processor time over rounds
in which all that is compared takes turns. For the released model's shapes (169 and 81 features of 6144 numbers) it uses
untrained codecs of nano's sizes, one for each entropy model; the published one has a transform there. Leaves the
quality of answers to `tofc-lab rate-distortion`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tofc import json_text
from tofc.codec.codec import Codec
from tofc.codec.fake import fake_features, fake_weights
from tofc.codec.files import load_weights
from tofc.codec.index.fake import fake_index_weights
from tofc.codec.selective_hyperprior.fake import fake_selective_hyperprior
from tofc.codec.weights import CodecWeights
from tofc.model.feature_codecs import codec_folder, codec_names
from tofc.model.shipped import NANO
from tofc.model.views import ViewRule, plan, views

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "tests" / "e2e" / "pictures"
ROUNDS = 9
SEED = 0
GLOBAL, CROP = 169, 81  # features of the released model's views
RULE = ViewRule(global_size=728, crop_size=504, max_side=3024)
BINS = (50, 100, 200, 500)  # sizes of packets in bytes: overhead is averaged within each
ENCODER_ONLY = ("analysis", "bit_price", "h_a_", "router_")  # as docs/bitstream.md says
DECODER_ONLY = ("synthesis", "grid_embedding")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

View = NDArray[np.float32]


def cpu_ms(work: Callable[[], Any]) -> float:
    """Measure the processor time of `work` in this process."""
    started = time.process_time()
    work()
    return (time.process_time() - started) * 1e3


def medians(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each, measured in turns, after a round that warms up."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            taken[name].append(cpu_ms(work))
    return {name: round(statistics.median(values[1:]), 2) for name, values in taken.items()}


def nano(model: Path, rounds: int) -> tuple[dict[str, Any], list[View]]:
    """Compare nano's codecs with its tower, on a view of 336 px; also return the features of all test pictures."""
    import torch

    from tofc.model.checkpoint import Checkpoint
    from tofc.model.tower import Tower

    torch.set_num_threads(1)
    tower = Tower(Checkpoint.open(model))
    pixels = []
    for path in sorted(PICTURES.glob("*.jpg")):
        with Image.open(path) as image:
            pixels.append(views(image.convert("RGB"), tower.config.rule)[-1].pixels[None])
    features = [tower.encode(one)[0] for one in pixels]
    works: dict[str, Callable[[], Any]] = {"tower": lambda: tower.encode(pixels[0])}
    for name in codec_names(model):
        codec = Codec.load(codec_folder(model, name))
        for n in (36, 24, 12):
            packet, label = codec.encode(features[0], n), f"{codec.config.entropy_model}, {n} features"
            works[f"merge and encode, {label}"] = partial(codec.encode, features[0], n)
            works[f"decode, {label}"] = partial(codec.decode, packet)
    taken = medians(works, rounds)
    return {"ms": taken, "of the tower": {k: round(v / taken["tower"], 3) for k, v in taken.items()}}, features


def released_codecs() -> dict[str, Callable[[], CodecWeights]]:
    """Return untrained codecs of the released model's shapes by entropy model, with the sizes that nano's have."""
    return {
        "context": lambda: fake_weights(6144, 64, 4096, seed=SEED, slices=12, hidden=96),
        "index": lambda: fake_index_weights(
            6144, 64, 4096, seed=SEED, K=(4096, 256, 256), E=32, hidden=128, channels=32
        ),
        "selective-hyperprior": lambda: fake_selective_hyperprior(
            6144, 64, 4096, seed=SEED, experts=16, hyper=48, hidden=24
        ),
    }


def released(
    weights: CodecWeights, rounds: int, sizes: tuple[int, ...] = (1, 9, 37), kept: tuple[int, ...] = (4, 16, 32, 64)
) -> dict[str, Any]:
    """Measure the released model's shapes: pictures of as many views as `sizes`, with `kept` features of each view."""
    codec = Codec(weights)
    made = [fake_features(codec.weights, GLOBAL, seed=SEED)]
    made += [fake_features(codec.weights, CROP, seed=SEED + i) for i in range(1, max(sizes))]
    found: dict[str, Any] = {}
    for n in kept:
        packets = [codec.encode(view, n) for view in made]
        works: dict[str, Callable[[], Any]] = {}
        for count in sizes:
            works[f"merge and encode, {count} views"] = (
                lambda count=count, n=n: [  # type: ignore[misc]
                    codec.encode(view, n) for view in made[:count]
                ]
            )
            works[f"decode, {count} views"] = (
                lambda count=count, packets=packets: [  # type: ignore[misc]
                    codec.decode(packet) for packet in packets[:count]
                ]
            )
        mean = round(statistics.mean(map(len, packets)))
        found[f"{n} features a view"] = {"bytes a view": mean, "ms": medians(works, rounds)}
    return found


def bytes_of(weights: CodecWeights) -> dict[str, int]:
    """Return the bytes of a codec's tensors: all, which both halves of a checkpoint hold, and what each half reads."""
    sizes = {name: array.nbytes for name, array in weights.arrays().items()}

    def without(*names: str) -> int:
        return sum(size for name, size in sizes.items() if not name.startswith(names))

    return {"all": without("-"), "device": without(*DECODER_ONLY), "server": without(*ENCODER_ONLY)}


def overhead(codec: Codec, features: list[View]) -> dict[str, Any]:
    """Measure the bytes of packets beyond their ideal size; header and checksum count as overhead."""
    extra_and_ideal: dict[str, list[tuple[float, float]]] = {}
    finer = Codec(fake_weights(768, 64, seed=SEED))
    coarse = [(codec, view, n, q) for view in features for n in (12, 24, 36) for q in range(codec.config.qualities)]
    fine = [
        (finer, fake_features(finer.weights, cells, seed=i), n, 0)
        for i in range(6)
        for cells in (36, 81)
        for n in (12, 20, 36)
    ]
    for one, view, n, quality in [*coarse, *fine]:
        spent = one.explain(view, n, quality)
        size, ideal = len(spent.packet), (spent.position_bits + float(spent.feature_bits.sum())) / 8
        for low, high in itertools.pairwise(BINS):
            if low <= size < high:
                extra_and_ideal.setdefault(f"{low}–{high} bytes", []).append((size - ideal, ideal))
    return {
        name: {
            "packets": len(pairs),
            "bytes": round(statistics.mean(extra for extra, _ in pairs), 2),
            "per cent": round(100 * sum(extra for extra, _ in pairs) / sum(ideal for _, ideal in pairs), 2),
        }
        for name, pairs in sorted(extra_and_ideal.items(), key=lambda item: int(item[0].split("–")[0]))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=NANO)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "codec_speed.json")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = parser.parse_args()
    if not ONE_THREAD.items() <= os.environ.items():  # the libraries read it while they load
        command = [sys.executable, "-m", "benchmarks.codec_speed", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | ONE_THREAD)
    ours, features = nano(chosen.model, chosen.rounds)
    made = released_codecs()
    crops = {(p := plan(*size, RULE)).rows * p.columns + 1: size for size in ((1920, 1080), (3024, 3024))}
    loaded = [load_weights(codec_folder(chosen.model, name)) for name in codec_names(chosen.model)]
    found = {
        "command": "python -m benchmarks.codec_speed",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, one core",
        "seed": SEED,
        "nano, a view of 336 px": ours,
        "picture of so many views, px": {str(k): list(v) for k, v in crops.items()},
        "the released model's shapes": {name: released(make(), chosen.rounds) for name, make in made.items()},
        "bytes of tensors": {
            "nano": {one.config.entropy_model: bytes_of(one) for one in loaded},
            "the released model's shapes": {name: bytes_of(make()) for name, make in made.items()},
        },
        "overhead": overhead(Codec.load(chosen.model), features),
    }
    json_text.write(chosen.out, found)
    print(json_text.dumps(found, indent=1))


if __name__ == "__main__":
    main()
