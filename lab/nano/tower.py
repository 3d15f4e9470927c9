"""Training the vision tower on cells, from small canvases to whole pictures.

Promises that a run can be interrupted and resumed from its last checkpoint. The recipe is a list of
stages; a stage counts pictures, not minutes, so that a seed means something on any machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lab import resume
from lab.nano import cells
from lab.nano.features import Seen
from lab.world import easy_vqa, scene
from shared.json_text import dumps
from shared.model.perception_encoder import PerceptionEncoder
from shared.model.views import MEAN, STD, ViewRule, plan, views


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Pictures of ``px`` × ``px`` until ``pictures`` are seen; the rate falls to zero over the last ``decay``."""

    px: int
    batch: int
    pictures: int
    things: tuple[int, int]
    size: tuple[float, float] = (44, 100)
    sign: float = 1 / 3
    cut: float = 0.0
    rate: float = 2e-3
    decay: float = 0.0
    easy_every: int = 0
    crops_every: int = 0


RECIPE = (
    Stage(px=112, batch=64, pictures=45_000, things=(1, 1), cut=0.15, sign=0.1),
    Stage(px=168, batch=48, pictures=22_000, things=(1, 2), cut=0.15, sign=0.5),
    Stage(px=224, batch=32, pictures=14_000, things=(1, 4), size=(44, 120), cut=0.3, sign=0.6, easy_every=16),
    Stage(
        px=336, batch=24, pictures=7_700, things=(1, 6), sign=0.5, rate=1.5e-3, decay=0.8, easy_every=7, crops_every=8
    ),
    Stage(
        px=336, batch=24, pictures=12_000, things=(1, 6), sign=0.4, rate=1.5e-3, decay=0.7, easy_every=12, crops_every=8
    ),
)
VISION: dict[str, Any] = {
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "num_channels": 3,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-05,
    "mlp_ratio": 4.0,
    "layer_scale_init_value": 1.0,
    "max_position_embeddings": 576,
}


def fresh() -> PerceptionEncoder:
    """A tower before its training."""
    tower = PerceptionEncoder(VISION)
    for module in tower.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    torch.nn.init.normal_(tower.positional_embedding, std=0.02)
    return tower


def normalise(pixels: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] → float [B, 3, H, W] as the tower wants it."""
    x = pixels.permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


class Batches(IterableDataset[tuple[str, Tensor, dict[str, Tensor]]]):
    """Endless batches of a stage: ``("world" | "easy", pixels uint8, labels)``, drawn from ``(seed, first + i)``."""

    def __init__(self, folder: Path, stage: Stage, seed: int, first: int) -> None:
        self.folder, self.stage, self.seed, self.first = folder, stage, seed, first

    def __iter__(self) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        index = self.first
        while True:
            rng = np.random.default_rng([self.seed, self.stage.px, index])
            index += 1
            if self.stage.easy_every and index % self.stage.easy_every == 0:
                yield self._easy(rng)
            elif self.stage.crops_every and index % self.stage.crops_every == 0:
                crop = Stage(
                    px=224, batch=2 * self.stage.batch, pictures=0, things=(1, 4), size=(44, 150), cut=0.45, sign=0.5
                )
                yield self._world(rng, crop)
            else:
                yield self._world(rng, self.stage)

    def _world(self, rng: np.random.Generator, stage: Stage) -> tuple[str, Tensor, dict[str, Tensor]]:
        pixels, labels = [], []
        for _ in range(stage.batch):
            drawn = scene.draw_scene(
                rng,
                self.folder,
                width=stage.px,
                height=stage.px,
                things=stage.things,
                size=stage.size,
                sign=stage.sign,
                cut=stage.cut,
            )
            pixels.append(np.asarray(scene.render(rng, self.folder, "train", drawn)))
            labels.append(cells.label(drawn))
        stacked = {k: torch.from_numpy(np.stack([one[k] for one in labels])) for k in labels[0]}
        return "world", torch.from_numpy(np.stack(pixels)), stacked

    def _easy(self, rng: np.random.Generator) -> tuple[str, Tensor, dict[str, Tensor]]:
        known = [p for p in easy_vqa.pictures("train") if p.shape and p.colour]
        chosen = [known[i] for i in rng.integers(len(known), size=self.stage.batch)]
        size = (self.stage.px, self.stage.px)
        pixels = [np.asarray(p.image().resize(size, Image.Resampling.BILINEAR)) for p in chosen]
        labels = {
            "shape": torch.tensor([easy_vqa.SHAPES.index(p.shape or "") for p in chosen]),
            "colour": torch.tensor([easy_vqa.COLOURS.index(p.colour or "") for p in chosen]),
        }
        return "easy", torch.from_numpy(np.stack(pixels)), labels


def validation_batch(folder: Path, px: int, count: int = 96) -> tuple[Tensor, dict[str, Tensor]]:
    """Fixed pictures on validation backgrounds."""
    rng = np.random.default_rng([7, px])
    things = {112: (1, 1), 168: (1, 2), 224: (1, 4)}.get(px, (1, 6))
    drawn = [scene.draw_scene(rng, folder, width=px, height=px, things=things) for _ in range(count)]
    pixels = np.stack([np.asarray(scene.render(rng, folder, "validation", s)) for s in drawn])
    labels = [cells.label(s) for s in drawn]
    return torch.from_numpy(pixels), {k: torch.from_numpy(np.stack([x[k] for x in labels])) for k in labels[0]}


def _optimisers(tower: torch.nn.Module, head: torch.nn.Module, muon: bool) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in tower.named_parameters() if p.ndim == 2 and n != "positional_embedding"] if muon else []
    chosen = {id(p) for p in matrices}
    rest = [p for p in [*tower.parameters(), *head.parameters()] if id(p) not in chosen]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.98), weight_decay=0.01)]
    if matrices:
        found.append(torch.optim.Muon(matrices, lr=1.0, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return found


def train(
    folder: Path,
    out: Path,
    *,
    seed: int = 0,
    recipe: tuple[Stage, ...] = RECIPE,
    muon: bool = True,
    autocast: bool = True,
    log: Any = print,
) -> None:
    """Run the recipe, resuming from ``out/tower.ckpt``; ends with ``out/tower.pt`` and a log ``out/tower.jsonl``."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tower, head = fresh(), cells.CellHead(4 * VISION["hidden_size"])
    optimisers = _optimisers(tower, head, muon)
    at, step = 0, 0
    saved = out / "tower.ckpt"
    if (state := resume.load(saved)) is not None:
        tower.load_state_dict(state["tower"])
        head.load_state_dict(state["head"])
        for optimiser, values in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        at, step = state["stage"], state["step"]
    while at < len(recipe):
        stage = recipe[at]
        total = stage.pictures // stage.batch
        drawn = sum(before.pictures // before.batch for before in recipe[:at] if before.px == stage.px)
        batches = Batches(folder, stage, seed, drawn + step)
        loader = iter(DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=4))
        pixels_val, labels_val = validation_batch(folder, stage.px)
        began, running = time.monotonic(), dict[str, float]()
        first = step
        while step < total:
            kind, pixels, labels = next(loader)
            left = (total - step) / total
            rate = stage.rate * min(1.0, (step - 0) / 60 + 0.02) * min(1.0, left / stage.decay if stage.decay else 1.0)
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = rate
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                features = tower(normalise(pixels))
            loss, parts = (head.loss if kind == "world" else head.easy_loss)(features.float(), labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad()
            step += 1
            for name, value in parts.items():
                running[name] = 0.95 * running.get(name, value) + 0.05 * value
            if step % 20 == 0:
                speed = (step - first) * stage.batch / (time.monotonic() - began)
                shown = " ".join(f"{k} {v:.3f}" for k, v in running.items())
                log(f"stage {at} ({stage.px} px) {step}/{total} {speed:.1f} pictures/s {shown}", flush=True)
            if step % 100 == 0 or step == total:
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    seen = torch.cat([tower(normalise(p)) for p in pixels_val.split(24)])
                scores = head.scores(seen.float(), labels_val)
                line = {"stage": at, "step": step, "pictures": step * stage.batch, **running, "validation": scores}
                with (out / "tower.jsonl").open("a", encoding="utf-8") as file:
                    file.write(dumps(line) + "\n")
                log("  validation " + " ".join(f"{k} {v:.3f}" for k, v in scores.items()), flush=True)
                _save(saved, tower, head, optimisers, at, step)
        at, step = at + 1, 0
        _save(saved, tower, head, optimisers, at, step)
    torch.save(tower.state_dict(), out / "tower.pt")


def _save(path: Path, tower: Any, head: Any, optimisers: list[torch.optim.Optimizer], at: int, step: int) -> None:
    state = {
        "tower": tower.state_dict(),
        "head": head.state_dict(),
        "optimisers": [o.state_dict() for o in optimisers],
        "stage": at,
        "step": step,
    }
    resume.save(path, state)


def encoder(weights: Path) -> Callable[[Image.Image], Seen]:
    """What a trained tower sees of a picture, in bf16 for speed."""
    tower = PerceptionEncoder(VISION).eval()
    tower.load_state_dict(torch.load(weights, weights_only=True))
    rule = ViewRule(global_size=VISION["image_size"], crop_size=224)

    @torch.inference_mode()
    def encode(image: Image.Image) -> Seen:
        seen = views(image, rule)
        found: list[NDArray[np.float32]] = []
        for group in (seen[:-1], seen[-1:]):  # crops are of one size, the global view of another
            if group:
                with torch.autocast("cpu", torch.bfloat16):
                    x = tower(torch.from_numpy(np.stack([view.pixels for view in group])))
                found.extend(x.float().numpy())
        cut = plan(*image.size, rule)
        return Seen(found, cut.rows, cut.columns)

    return encode
