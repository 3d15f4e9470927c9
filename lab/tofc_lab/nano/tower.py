"""Training of the vision tower on labelled cells, from small pictures to those of full size.

Promises that an interrupted run is resumed from its last checkpoint. The recipe is a list of stages; the length of a
stage is a number of pictures, not of minutes, so that it does not depend on the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tofc.json_text import dumps
from tofc.model.perception_encoder import PerceptionEncoder
from tofc.model.views import MEAN, STD, ViewRule, plan, views
from tofc_lab import resume
from tofc_lab.nano import cells
from tofc_lab.nano.batches import Batches
from tofc_lab.nano.features import TowerOutput
from tofc_lab.progress import Log, print_now
from tofc_lab.world import easy_vqa, scene


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the training, on pictures of `px` × `px`."""

    px: int
    batch: int  # pictures of a batch
    pictures: int  # after which the stage ends
    things: tuple[int, int]  # objects in a picture: fewest and most
    size: tuple[float, float] = (44, 100)  # px of an object: smallest and largest
    sign: float = 1 / 3  # share of pictures with a sign
    cut: float = 0.0  # how far an object may reach over the edge, as a share of its size
    rate: float = 2e-3  # learning rate
    decay: float = 0.0  # share of the stage, at the end, over which the learning rate falls to 0
    easy_every: int = 0  # every n-th batch is from easy-VQA; 0: none
    crops_every: int = 0  # every n-th batch is of crop size; 0: none


TOWER_STAGES = (
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


def untrained() -> PerceptionEncoder:
    """Return a tower with random weights."""
    tower = PerceptionEncoder(VISION)
    for module in tower.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    torch.nn.init.normal_(tower.positional_embedding, std=0.02)
    return tower


def normalise(pixels: Tensor) -> Tensor:
    """Return uint8 pixels [B, H, W, 3] as float [B, 3, H, W], normalised as the tower expects."""
    x = pixels.permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


class TowerBatches(Batches[tuple[str, Tensor, dict[str, Tensor]]]):
    """Endless batches of a stage, from step `first` on: (`"world"` or `"easy"`, pixels uint8, labels)."""

    def __init__(self, assets: Path, stage: Stage, seed: int, first: int) -> None:
        self.assets, self.stage, self.seed, self.first = assets, stage, seed, first

    def draw(self, step: int) -> tuple[str, Tensor, dict[str, Tensor]]:
        """Return batch `step`, which depends only on the seed, the stage and `step`."""
        stage, rng = self.stage, np.random.default_rng([self.seed, self.stage.px, step])
        if stage.easy_every and (step + 1) % stage.easy_every == 0:
            return self._easy(rng)
        if stage.crops_every and (step + 1) % stage.crops_every == 0:
            stage = Stage(px=224, batch=2 * stage.batch, pictures=0, things=(1, 4), size=(44, 150), cut=0.45, sign=0.5)
        return self._world(rng, stage)

    def _world(self, rng: np.random.Generator, stage: Stage) -> tuple[str, Tensor, dict[str, Tensor]]:
        pixels, labels = [], []
        for _ in range(stage.batch):
            drawn = scene.draw_scene(
                rng,
                self.assets,
                width=stage.px,
                height=stage.px,
                things=stage.things,
                size=stage.size,
                sign=stage.sign,
                cut=stage.cut,
            )
            pixels.append(np.asarray(scene.render(rng, self.assets, "train", drawn)))
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


def validation_batch(assets: Path, px: int, count: int = 96) -> tuple[Tensor, dict[str, Tensor]]:
    """Return fixed pictures on validation backgrounds, with their labels."""
    rng = np.random.default_rng([7, px])
    things = {112: (1, 1), 168: (1, 2), 224: (1, 4)}.get(px, (1, 6))
    drawn = [scene.draw_scene(rng, assets, width=px, height=px, things=things) for _ in range(count)]
    pixels = np.stack([np.asarray(scene.render(rng, assets, "validation", s)) for s in drawn])
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
    assets: Path,
    out: Path,
    *,
    seed: int = 0,
    recipe: tuple[Stage, ...] = TOWER_STAGES,
    muon: bool = True,
    autocast: bool = True,
    log: Log = print_now,
) -> None:
    """Run the recipe, resuming from `out/tower.ckpt`; write `out/tower.pt` and the log `out/tower.jsonl`."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tower, head = untrained(), cells.CellHead(4 * VISION["hidden_size"])
    optimisers = _optimisers(tower, head, muon)
    at, step = 0, 0
    saved = out / "tower.ckpt"
    if (state := resume.load(saved, settings_of(recipe, seed))) is not None:
        tower.load_state_dict(state["tower"])
        head.load_state_dict(state["head"])
        for optimiser, values in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        at, step = state["stage"], state["step"]
    while at < len(recipe):
        stage = recipe[at]
        total = stage.pictures // stage.batch
        drawn = sum(before.pictures // before.batch for before in recipe[:at] if before.px == stage.px)
        batches = TowerBatches(assets, stage, seed, drawn + step).ahead()
        pixels_val, labels_val = validation_batch(assets, stage.px)
        started, running = time.monotonic(), dict[str, float]()
        first = step
        while step < total:
            kind, pixels, labels = next(batches)
            left = (total - step) / total
            rate = stage.rate * min(1.0, step / 60 + 0.02) * min(1.0, left / stage.decay if stage.decay else 1.0)
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
                speed = (step - first) * stage.batch / (time.monotonic() - started)
                shown = " ".join(f"{k} {v:.3f}" for k, v in running.items())
                log(f"stage {at} ({stage.px} px) {step}/{total} {speed:.1f} pictures/s {shown}")
            if step % 100 == 0 or step == total:
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    outputs = torch.cat([tower(normalise(p)) for p in pixels_val.split(24)])
                scores = head.scores(outputs.float(), labels_val)
                line = {"stage": at, "step": step, "pictures": step * stage.batch, **running, "validation": scores}
                with (out / "tower.jsonl").open("a", encoding="utf-8") as file:
                    file.write(dumps(line) + "\n")
                log("  validation " + " ".join(f"{k} {v:.3f}" for k, v in scores.items()))
                _save(saved, tower, head, optimisers, at, step, settings_of(recipe, seed))
        at, step = at + 1, 0
        _save(saved, tower, head, optimisers, at, step, settings_of(recipe, seed))
    torch.save(tower.state_dict(), out / "tower.pt")


def settings_of(recipe: tuple[Stage, ...], seed: int) -> dict[str, Any]:
    """Return all that `out/tower.ckpt` depends on, for `tofc_lab.resume`."""
    return {"stages": [asdict(stage) for stage in recipe], "--seed": seed}


def _save(
    path: Path,
    tower: Any,
    head: Any,
    optimisers: list[torch.optim.Optimizer],
    at: int,
    step: int,
    settings: resume.Settings,
) -> None:
    state = {
        "tower": tower.state_dict(),
        "head": head.state_dict(),
        "optimisers": [o.state_dict() for o in optimisers],
        "stage": at,
        "step": step,
    }
    resume.save(path, state, settings)


def encoder(weights: Path) -> Callable[[Image.Image], TowerOutput]:
    """Return a trained tower as a function of a picture, in bf16 for speed."""
    tower = PerceptionEncoder(VISION).eval()
    tower.load_state_dict(torch.load(weights, weights_only=True))
    rule = ViewRule(global_size=VISION["image_size"], crop_size=224)

    @torch.inference_mode()
    def encode(image: Image.Image) -> TowerOutput:
        prepared = views(image, rule)
        found: list[NDArray[np.float32]] = []
        for group in (prepared[:-1], prepared[-1:]):  # crops have one size, the global view another
            if group:
                with torch.autocast("cpu", torch.bfloat16):
                    x = tower(torch.from_numpy(np.stack([view.pixels for view in group])))
                found.extend(x.float().numpy())
        cut = plan(*image.size, rule)
        return TowerOutput(found, cut.rows, cut.columns)

    return encode
