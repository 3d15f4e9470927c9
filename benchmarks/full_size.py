"""How much time and memory it takes to split and load a checkpoint of the released size, and to encode a picture.

    tofc-lab fake-checkpoint --shape full full
    python -m benchmarks.full_size full     # 30 minutes on two cores; writes benchmarks/results/full_size.json

A device half is enough; splitting is then left out.

Promises one process for each measurement, so that it has its own peak memory, and that each result is written at once:
the command resumes where it stopped, and starts again for another machine or model. The codec is untrained, of nano's
sizes. If torch finds a GPU, the tower is measured on it too, and a decoder of the checkpoint's shape with random
weights. Leaves small models to `benchmarks.end_to_end`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import date
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

from benchmarks.processes import peak_mb, status_mb
from tofc import json_text
from tofc.codec.codec import Codec
from tofc.codec.fake import fake_weights
from tofc.model.checkpoint import Checkpoint, Side
from tofc.model.released_names import VISION
from tofc.model.views import views

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[1]
SIZE = (1920, 1080)
DTYPES = ("bfloat16", "int8", "float32")
KEPT = (16, 32)  # features kept of a view
QUESTION_TOKENS = 30  # of the prompt besides the picture's features
ROUNDS = 5
SEED = 0

Times = defaultdict[str, list[float]]


class Memory:
    """Measures the peak resident memory of this process in MB: in all, and without memory-mapped files."""

    def __init__(self) -> None:
        self._anonymous = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self._anonymous = max(self._anonymous, status_mb(os.getpid(), "RssAnon"))

    def peaks(self) -> dict[str, int]:
        """Return the peaks so far."""
        return {"peak MB": round(peak_mb(os.getpid())), "peak MB without mapped files": round(self._anonymous)}


def picture(width: int, height: int) -> Image.Image:
    """Make a picture of smooth colours with some noise."""
    rng = np.random.default_rng(SEED)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 16, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def drop_page_cache(model: Path, side: Side | None = "device") -> None:
    """Drop the weights' files from the page cache, so that they are read from the disk next time."""
    for file in {one.file for one in Checkpoint.open(model, side).stored.values()}:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def split_cold(model: Path) -> dict[str, Any]:
    """Measure splitting a whole checkpoint, from disk to disk; the halves are removed afterwards."""
    from tofc_lab.checkpoint.split import split

    drop_page_cache(model, None)
    config = Checkpoint.open(model).config
    with Memory() as memory, tempfile.TemporaryDirectory(dir=model.resolve().parent) as there:
        codec, halves = Path(there) / "codec", Path(there) / "halves"
        codec.mkdir()
        fake_weights(config.feature_dim, 64, config.hidden, seed=SEED).save(codec)
        _, seconds = timed(partial(split, model, halves, codecs={"default": codec}))
        size = sum(file.stat().st_size for file in halves.rglob("*") if file.is_file())
    return {"s": round(seconds, 1), "written MB": round(size / 1e6), **memory.peaks()}


def load_cold(model: Path, dtype: str) -> dict[str, Any]:
    """Measure loading the tower from disk; libraries are imported before."""
    import torch

    from tofc.model.tower import Tower

    drop_page_cache(model)
    started = time.perf_counter()
    Tower(Checkpoint.open(model, "device"), getattr(torch, dtype))
    return {"s": round(time.perf_counter() - started, 2)}


def encode_picture(model: Path, dtype: str) -> dict[str, Any]:
    """Measure loading the tower and encoding a 1080p picture: views, tower, merge and encode."""
    import torch

    import device_client.cli
    import device_client.session  # noqa: F401 - a device's memory holds them too
    from tofc.model.tower import Tower

    with Memory() as memory:
        started = time.perf_counter()
        checkpoint = Checkpoint.open(model, "device")
        tower = Tower(checkpoint, getattr(torch, dtype))
        load_s = time.perf_counter() - started
        loaded = memory.peaks()
        codec = Codec(fake_weights(checkpoint.config.feature_dim, 64, 4096, seed=SEED, slices=12, hidden=96))
        prepared, views_s = timed(partial(views, picture(*SIZE), checkpoint.config.rule))
        count, taken, busy, encode = len(prepared), Times(list), Times(list), Times(list)
        while prepared:
            view, started = prepared.pop(0), time.process_time()  # frees its pixels afterwards, as a device does
            size = f"{view.pixels.shape[-1]} px"
            features, seconds = timed(partial(tower.encode, view.pixels[None]))
            taken[size].append(seconds)
            busy[size].append(time.process_time() - started)
            for n in KEPT:
                kept = min(n, features.shape[1])
                encode[f"{n} features a view"].append(timed(partial(codec.encode, features[0], kept))[1])
        worked = memory.peaks()
    weights = tower.weight_bytes / 1e6
    return {
        "weights MB": round(weights),
        "load s": round(load_s, 2),
        "loaded": loaded,
        "views": count,
        "views s": round(views_s, 2),
        "tower s, a view": {size: round(statistics.median(each), 2) for size, each in taken.items()},
        "tower s of the processor, a view": {size: round(statistics.median(each), 2) for size, each in busy.items()},
        "tower s": round(sum(map(sum, taken.values())), 1),
        "merge and encode s": {name: round(sum(each), 3) for name, each in encode.items()},
        "worked": worked,
        "peak over weights": round(worked["peak MB"] / weights, 3),
    }


def accelerated_tower(model: Path, device: str) -> dict[str, Any]:
    """Measure the tower on an accelerator in bfloat16, in ms a view, with transfers."""
    import torch

    from tofc.model.tower import Tower

    checkpoint = Checkpoint.open(model, "device")
    tower = Tower(checkpoint, torch.bfloat16, device)
    sizes = sorted({view.pixels.shape[-1] for view in views(picture(*SIZE), checkpoint.config.rule)})
    pixels = {size: np.zeros((1, 3, size, size), np.float32) for size in sizes}
    return {f"{size} px, ms": median_ms(partial(tower.encode, pixels[size])) for size in sizes}


def accelerated_decoder(model: Path, device: str) -> dict[str, Any]:
    """Measure a decoder of the checkpoint's shape in bfloat16: ms to the first token, and from it to the next."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Checkpoint.open(model, "device").config
    with torch.device(device), torch.inference_mode():
        decoder: Any = Qwen3ForCausalLM._from_config(Qwen3Config(**config.text), dtype=torch.bfloat16).eval()
        prepared = views(picture(*SIZE), config.rule)
        unmerged = sum(config.grid(view.pixels.shape[-1]) ** 2 for view in prepared)
        found = {}
        for count in (unmerged, *(len(prepared) * n for n in KEPT)):
            prompt = torch.randn(1, count + QUESTION_TOKENS, config.hidden, dtype=torch.bfloat16)

            one, two = (median_ms(partial(answer, decoder, prompt, tokens)) for tokens in (1, 2))
            found[f"{count} features"] = {"prefill and first token, ms": one, "next token, ms": round(two - one, 2)}
    return found


def answer(decoder: Any, prompt: torch.Tensor, tokens: int) -> list[int]:
    """Decode greedily after a prompt [1, T, H]; each token is copied to the CPU, as on a server."""
    import torch
    from transformers import DynamicCache

    from edge_server.engine.qwen3 import CACHE

    cache = {CACHE: DynamicCache(config=decoder.config)}
    output = decoder(inputs_embeds=prompt, **cache, logits_to_keep=1)
    found = [int(output.logits.argmax())]
    while len(found) < tokens:
        output = decoder(input_ids=torch.tensor([found[-1:]], device=prompt.device), **cache)
        found.append(int(output.logits.argmax()))
    return found


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of `work` and the seconds it took."""
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def median_ms(work: Callable[[], Any]) -> float:
    """Return the median ms of some rounds; one more warms up. `work` ends when its result is on the CPU."""
    return round(statistics.median(timed(work)[1] for _ in range(ROUNDS + 1)) * 1e3, 2)


def measurements(model: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return the measurements by name, in the order in which they run."""
    from tofc.model.torch_devices import torch_devices

    found: dict[str, Callable[[], dict[str, Any]]] = {}
    if (model / "config.json").exists() and not (model / "split.json").exists():
        found["split, to the disk"] = partial(split_cold, model)
    for dtype in DTYPES:
        found[f"load from the disk, {dtype}"] = partial(load_cold, model, dtype)
    for dtype in DTYPES:
        found[f"a picture of {SIZE[0]} × {SIZE[1]}, {dtype}"] = partial(encode_picture, model, dtype)
    for device in torch_devices()[1:2]:
        found[f"tower on {device}, bfloat16"] = partial(accelerated_tower, model, device)
        found[f"decoder on {device}, bfloat16"] = partial(accelerated_decoder, model, device)
    return found


def machine() -> str:
    """Describe the machine: processors, threads, accelerator."""
    import torch

    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [
            line.partition(":")[2].strip()
            for line in info.read_text(encoding="utf-8").splitlines()
            if line.startswith("model n")
        ]
        cpu = names[0] if names else cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{cpu}, {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {gpu}"


def head(model: Path) -> dict[str, str]:
    """Describe what is measured and where; results are kept only while this stays the same."""
    stored = Checkpoint.open(model, "device").stored
    shapes = [one.shape for name, one in stored.items() if name.startswith(VISION)]
    return {
        "command": "python -m benchmarks.full_size MODEL_DIR",
        "machine": machine(),
        "tower": f"{len(shapes)} tensors, {sum(map(prod, shapes)) / 1e9:.3f} B parameters",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="a device half, or a whole checkpoint")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "full_size.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    works = measurements(chosen.model)
    if chosen.one:
        print(json_text.dumps(works[chosen.one]()))
        return
    described, found = head(chosen.model), {}
    if chosen.out.exists():
        found = json.loads(chosen.out.read_text(encoding="utf-8"))
    if not described.items() <= found.items():
        found = {**described, "measured": {}}
    for name in works:
        if name in found["measured"]:
            continue
        print(name, file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "benchmarks.full_size", str(chosen.model), "--one", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name!r} ended with {done.returncode}; earlier measurements are in {chosen.out}")
        found["measured"][name] = json.loads(done.stdout) | {"date": date.today().isoformat()}
        partial = chosen.out.with_suffix(".partial")
        json_text.write(partial, found)
        partial.replace(chosen.out)
    print(json_text.dumps(found, indent=1))


if __name__ == "__main__":
    main()
