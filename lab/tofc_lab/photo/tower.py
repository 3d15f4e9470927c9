"""Training of the tower's concepts, detail branch and adapter on labelled cells; the trunk is frozen.

    middle ─ detail ─┐                      ┌─ means of windows ─ names: the classifier's own probabilities
    head ─┬──────────┴─ adapter ─┬ features ┼─ colours of the cell
          └──────────── concepts ┘          └─ characters of the cell, from left to right

Promises that an interrupted run can be resumed. The three linear readers are used in training only; the decoder reads
the features by itself. Leaves the trunk's maps to `features`.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tofc.model.efficientnet_lite import Adapter
from tofc.model.efficientnet_lite_config import DETAIL, HEAD
from tofc_lab import resume
from tofc_lab.nano.batches import Batches
from tofc_lab.photo import names, scene, teacher
from tofc_lab.photo.colours import COLOURS
from tofc_lab.photo.features import CELLS, Known, Maps
from tofc_lab.photo.pictures import GRID, SIZE, place
from tofc_lab.photo.signs import CHARACTERS
from tofc_lab.progress import Log, print_now, smooth, step_line
from tofc_lab.resume import NONE, Settings

#: the widths of `tofc.model.efficientnet_lite.EfficientNetLite2Tower`
VISION: dict[str, Any] = {
    "model_type": "efficientnet_lite2",
    "detail_width": 160,
    "adapter_width": 640,
    "concept_width": names.CLASSES,
    "code_width": 128,
    "output_width": 384,
}
SLOTS = 4  # characters of a cell that are learned
LINEAR = 256  # units of the adapter that start as directions in which the classifier's answers differ most
WEAK = 0.015  # their share of the classifier's outputs
CODE = 4.0  # length of a concept's vector at the start
SAMPLE = 600  # pictures that the adapter's start is computed from
WINDOWS = 12  # windows and cells of a picture, drawn at random, whose names are learned in a step


@dataclass(frozen=True, kw_only=True)
class TowerRecipe:
    """Steps, learning rate and weights of the losses."""

    steps: int = 1500
    batch: int = 32  # pictures of a batch
    rate: float = 1e-3
    decay: float = 0.4  # share of the steps, at the end, over which the learning rate falls to 0
    put: float = 0.65  # share of pictures into which things are put
    names: float = 1.0
    colours: float = 0.4
    characters: float = 0.7
    noise: float = (
        0.25  # on the maps, as a share of each number (head) or of their spread (middle): against learning by heart
    )
    save: int = 150  # steps between checkpoints


class Reader(Adapter):
    """The trained part of the tower, and linear readers of its features for training."""

    def __init__(self) -> None:
        super().__init__(VISION)
        width = VISION["output_width"]
        self.names = nn.Linear(width, names.CLASSES)
        self.colours = nn.Linear(width, len(COLOURS))
        self.characters = nn.Linear(width, SLOTS * (len(CHARACTERS) + 1))

    def forward(self, head: Tensor, middle: Tensor) -> Tensor:
        """Return features [B, 36, D] of maps [B, 36, 1280] and [B, 123, 21, 21], as the tower does."""
        return self.adapt(head, middle[:, :DETAIL], middle[:, DETAIL:])


@torch.no_grad()
def start_from_classifier(reader: Reader, given: TowerBatch) -> None:
    """Start the concepts as the classifier's classes, with the head's cells of some pictures.

    Each class has a random vector. `LINEAR` units of the adapter stay where GELU is straight: they keep what many cells
    show weakly, of which the classifier's pooling makes an answer.
    """
    generator = torch.Generator().manual_seed(0)
    weight, bias = map(torch.from_numpy, teacher.classifier())
    cells = given.head.flatten(0, 1)
    central = weight - weight.mean(0)
    power, directions = torch.linalg.eigh(central @ cells.T.cov() @ central.T)  # ascending
    spread = power[-LINEAR:].sqrt()
    straight = directions[:, -LINEAR:].T @ central / spread[:, None]  # [LINEAR, 1280], outputs of spread 1
    concepts, codes, first, second = reader.concepts[0], reader.concepts[2], reader.adapter[0], reader.adapter[2]
    assert isinstance(concepts, nn.Linear) and isinstance(codes, nn.Linear)
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    concepts.weight.copy_(weight)
    concepts.bias.copy_(bias)
    codes.weight.copy_(CODE * F.normalize(torch.randn(codes.weight.shape, generator=generator), dim=0))
    first.weight[:LINEAR] = 0
    first.weight[:LINEAR, :HEAD] = straight
    first.bias[:LINEAR] = 4 - straight @ cells.mean(0)
    basis = torch.linalg.qr(torch.randn(len(second.weight), LINEAR, generator=generator)).Q
    second.weight[:, :LINEAR] = WEAK * spread * basis
    second.bias.sub_(4 * second.weight[:, :LINEAR].sum(1))
    # The reader of names starts as the least squares of the classifier's outputs from the features.
    windows = torch.cat((given.head, given.windows @ given.head), 1).flatten(0, 1)
    features = reader(given.head, given.middle)
    features = torch.cat((features, given.windows @ features), 1).flatten(0, 1)
    ones = torch.cat((features, torch.ones(len(features), 1)), 1)
    power = ones.T @ ones + 0.01 * len(ones) * torch.eye(ones.shape[1])
    found = torch.linalg.solve(power, ones.T @ (windows @ central.T + bias))
    reader.names.weight.copy_(found[:-1].T)
    reader.names.bias.copy_(found[-1])


class TowerBatch(NamedTuple):
    """Maps and labels of some pictures."""

    head: Tensor  # [B, 36, 1280]
    middle: Tensor  # [B, 123, 21, 21]
    windows: Tensor  # [B, WINDOWS, 36], weights that give means
    sure: Tensor  # [B, WINDOWS, 1000], the classifier's probabilities there
    colours: Tensor  # [B, 36, colours], shares
    characters: Tensor  # [B, 36, SLOTS]: 0 for none, else 1 + its index


class TowerBatches(Batches[TowerBatch]):
    """Endless batches from step `first` on; batch `step` depends only on `(seed, step)`."""

    def __init__(self, maps: Maps, recipe: TowerRecipe, seed: int, first: int) -> None:
        self.maps, self.recipe, self.seed, self.first = maps, recipe, seed, first

    def draw(self, step: int) -> TowerBatch:
        rng = np.random.default_rng([self.seed, 19, step])
        chosen = rng.integers(len(self.maps), size=self.recipe.batch)
        return batch(rng, self.maps, chosen, self.recipe.put)


def batch(rng: np.random.Generator, maps: Maps, chosen: NDArray[np.integer], share: float) -> TowerBatch:
    """Return these pictures as a batch, things put into a share of them."""
    head = maps.head[chosen].astype(np.float32)
    weights = np.zeros((len(chosen), WINDOWS, CELLS), np.float32)
    large = teacher.windows()[0]
    for one, row in zip(head, weights, strict=True):
        regions: list[tuple[int, ...]] = []
        if rng.random() < share:
            taken = np.zeros((GRID, GRID), bool)
            for _ in range(int(rng.integers(1, 4))):
                if region := place(rng, taken, 5):
                    scene.put(rng, one, scene.draw_class(rng), region, float(rng.uniform(0.3, 0.97)))
                    regions.append(region)
        row[0] = large[0]
        for number, region in enumerate(regions):
            row[1 + number, list(region)] = 1 / len(region)
        for number in range(1 + len(regions), WINDOWS):
            if number % 2:
                row[number] = large[int(rng.integers(1, len(large)))]
            else:
                row[number, int(rng.integers(CELLS))] = 1
    weight, bias = teacher.classifier()
    logits = (weights @ head) @ weight.T + bias
    logits -= logits.max(-1, keepdims=True)
    sure = np.exp(logits)
    return TowerBatch(
        head=torch.from_numpy(head),
        middle=torch.from_numpy(maps.middle[chosen].astype(np.float32)),
        windows=torch.from_numpy(weights),
        sure=torch.from_numpy(sure / sure.sum(-1, keepdims=True)),
        colours=torch.from_numpy(maps.colours[chosen].astype(np.float32) / 255),
        characters=torch.from_numpy(np.stack([characters_of(maps.known[i]) for i in chosen.tolist()])),
    )


def characters_of(known: Known) -> NDArray[np.int64]:
    """Return the characters [36, SLOTS] whose middles lie in each cell, in reading order."""
    found = np.zeros((CELLS, SLOTS), np.int64)
    if known.sign is None:
        return found
    used = [0] * CELLS
    for character, (x, y) in zip(known.sign.text.replace(" ", ""), known.sign.places, strict=True):
        column, row = (min(GRID - 1, max(0, int(value * GRID / SIZE))) for value in (x, y))
        cell = row * GRID + column
        if used[cell] < SLOTS:
            found[cell, used[cell]] = 1 + CHARACTERS.index(character)
            used[cell] += 1
    return found


def noisy(given: TowerBatch, share: float, generator: torch.Generator) -> TowerBatch:
    """Return a batch whose maps have noise: `share` of each number of the head's map, and of the other's spread."""
    head, middle = (torch.randn(part.shape, generator=generator) for part in (given.head, given.middle))
    return given._replace(
        head=given.head * (1 + share * head), middle=given.middle + share * given.middle.std() * middle
    )


def losses(reader: Reader, given: TowerBatch) -> dict[str, Tensor]:
    """Return the loss of each reader, and the shares of characters and of clear names that are right."""
    features = reader(given.head, given.middle)
    named = reader.names(given.windows @ features)
    colours = reader.colours(features)
    characters = reader.characters(features).unflatten(-1, (SLOTS, -1))
    empty = given.characters == 0
    of_character = F.cross_entropy(characters.float().flatten(0, 2), given.characters.flatten(), reduction="none")
    weight = torch.where(empty, 0.05, 1.0).flatten()
    read = (characters.argmax(-1) == given.characters)[~empty].float()
    clear = given.sure.max(-1).values > 0.5
    same = (named.argmax(-1) == given.sure.argmax(-1))[clear].float()
    return {
        "names": F.kl_div(
            F.log_softmax(named.float(), -1).flatten(0, 1), given.sure.flatten(0, 1), reduction="batchmean"
        ),
        "colours": F.cross_entropy(colours.float().flatten(0, 1), given.colours.flatten(0, 1)),
        "characters": (weight * of_character).sum() / weight.sum(),
        "read": read.mean(),
        "named": same.mean(),
    }


def train(
    maps: Maps,
    validation: Maps,
    out: Path,
    *,
    inputs: Settings = NONE,
    start: Path | None = None,
    recipe: TowerRecipe | None = None,
    seed: int = 0,
    autocast: bool = True,
    workers: int = 1,
    log: Log = print_now,
) -> Reader:
    """Run the recipe, resuming from `out/tower.ckpt`, and write `out/tower.pt`.

    More `steps` than those of the checkpoint continue it. `start` is the `tower.pt` of another run to start from.
    """
    recipe = recipe or TowerRecipe()
    inputs = {**inputs, "--start": None if start is None else resume.fingerprint(start)}
    settings = {
        **inputs,
        **{f"--{n}": v for n, v in asdict(recipe).items() if n not in {"save", "steps"}},
        "--seed": seed,
    }
    saved = out / "tower.ckpt"
    torch.manual_seed(seed)
    reader = Reader()
    if start is not None:
        reader.load_state_dict(torch.load(start, weights_only=True))
    elif not saved.exists():
        chosen = np.arange(min(SAMPLE, len(maps)))
        start_from_classifier(reader, batch(np.random.default_rng([seed, 23]), maps, chosen, recipe.put))
    optimiser = torch.optim.AdamW(reader.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    step, running = 0, dict[str, float]()
    if (state := resume.load(saved, settings)) is not None:
        reader.load_state_dict(state["reader"])
        optimiser.load_state_dict(state["optimiser"])
        step, running = state["step"], state["running"]
    batches = TowerBatches(maps, recipe, seed, step).ahead(workers)
    started, first = time.monotonic(), step
    while step < recipe.steps:
        given = noisy(next(batches), recipe.noise, torch.Generator().manual_seed(1_000_003 * seed + step))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = losses(reader, given)
        rate = recipe.rate * min(1.0, (step + 1) / 50, (recipe.steps - step) / (recipe.decay * recipe.steps))
        for group in optimiser.param_groups:
            group["lr"] = rate
        total = sum(getattr(recipe, name) * found[name] for name in ("names", "colours", "characters"))
        assert isinstance(total, Tensor)
        total.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        smooth(running, {name: value.item() for name, value in found.items() if not value.isnan()})  # without signs
        if step % 25 == 0:
            log(step_line(step, recipe.steps, (step - first) / (time.monotonic() - started), running))
        if step % recipe.save == 0 or step == recipe.steps:
            scores = validate(reader, validation)
            log("  validation " + " ".join(f"{k} {v:.3f}" for k, v in scores.items()))
            resume.save(
                saved,
                {
                    "reader": reader.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "step": step,
                    "running": running,
                },
                settings,
            )
    if step > first or not (out / "tower.pt").exists():  # its fingerprint names the folder of scenes
        torch.save(reader.state_dict(), out / "tower.pt")
    return reader


@torch.no_grad()
def validate(reader: Reader, maps: Maps, count: int = 300) -> dict[str, float]:
    """Return the losses and shares on held-out photographs, without and with things put into them."""
    chosen = np.arange(min(count, len(maps)))
    reader.eval()
    found: dict[str, float] = {}
    for name, share in (("", 0.0), ("put: ", 1.0)):
        given = batch(np.random.default_rng(3), maps, chosen, share)
        found |= {name + key: value.item() for key, value in losses(reader, given).items()}
    reader.train()
    return found


def load(run: Path) -> Reader:
    """Load the trained tower of a run."""
    reader = Reader()
    reader.load_state_dict(torch.load(run / "tower.pt", weights_only=True))
    return reader.eval().requires_grad_(False)
