"""The learned image codec of the comparison, trained here because no package has weights of one.

    training pictures ─ shrink by any factor ─ crop ─ hyperprior ─ bits + λ·255²·squared error, a λ for each rate

The comparison favours it. It is trained on pictures of the same world, always new ones on backgrounds of the training
split; and the picture's size, the lengths of its strings and the rate count as two bytes together. Promises that an
interrupted training is resumed with the same pictures as without the interruption.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tofc.model.image_codec import scaled_size
from tofc_lab import resume
from tofc_lab.nano.features import Kind, TowerOutput, picture
from tofc_lab.progress import Log, print_now
from tofc_lab.rate_distortion.hyperprior import Hyperprior
from tofc_lab.world import easy_vqa

HEADER = 2  # bytes
TITLE = "learned image codec (trained here)"
#: 336 px become 320, 256, 192 and 128: multiples of 64 px need no padding. Pictures of easy-VQA have 64 px, where even
#: the highest rate loses too much, so they are also coded at twice the size
SCALES: dict[Kind, tuple[float, ...]] = {
    "world": tuple(side / 336 for side in (320, 256, 192, 128)),
    "easy": (1.0, 2.0),
    "large": (0.5, 0.35),
}
VALIDATION = 1000  # pictures at the start of easy-VQA's training split, used to choose settings


@dataclass(frozen=True, kw_only=True)
class ImageCodecRecipe:
    """Sizes of the model, and steps and learning rates of its training."""

    channels: int = 64
    latent: int = 96
    prices: tuple[float, ...] = (0.00005, 0.00015, 0.0004, 0.0012, 0.0035, 0.01)  # bits per pixel per squared level
    finest: float = 8.0  # initial gain of the highest rate; without it y, small at first, would be rounded to 0
    steps: int = 9000
    batch: int = 8
    crop: int = 128  # px
    kernels: float = 1e-3  # initial learning rate of convolutions
    rest: float = 3e-3  # initial learning rate of everything else
    save: int = 250  # steps between checkpoints


def batch(assets: Path, recipe: ImageCodecRecipe, seed: int, step: int) -> Tensor:
    """Return crops [B, 3, C, C] in 0…1 of training pictures, two of each, at random scales given by (seed, step)."""
    rng = np.random.default_rng([seed, 11, step])
    kind: Kind = {3: "large", 7: "easy"}.get(step % 8, "world")  # type: ignore[assignment]
    if kind == "easy":  # whole, because it is coded whole
        indices = rng.integers(VALIDATION, len(easy_vqa.pictures("train")), recipe.batch)
        crops = [picture(assets, kind, "train", seed, int(index))[0] for index in indices]
    else:
        first = step * recipe.batch
        images = [picture(assets, kind, "train", seed, first + i)[0] for i in range(0, recipe.batch, 2)]
        crops = [_crop(image, recipe.crop, rng) for image in images for _ in range(2)]
    return torch.from_numpy(np.stack([np.asarray(crop) for crop in crops])).permute(0, 3, 1, 2).float() / 255


def _crop(image: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    scale = float(np.exp(rng.uniform(np.log(side / min(image.size)), 0)))
    width, height = (max(side, one) for one in scaled_size(image.size, scale))
    left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    small = image.resize((width, height), Image.Resampling.LANCZOS)
    return small.crop((left, top, left + side, top + side))


class _Optimiser:
    """Muon for the kernels of convolutions, as matrices, and Adam for the rest."""

    def __init__(self, model: nn.Module, recipe: ImageCodecRecipe) -> None:
        # without the quantiles, which compressai's `update` computes
        named = [(name, weight) for name, weight in model.named_parameters() if not name.endswith("quantiles")]
        self.weights = [weight for _, weight in named]
        self.kernels = [weight for weight in self.weights if weight.ndim == 4]
        self.matrices = [nn.Parameter(kernel.detach().flatten(1)) for kernel in self.kernels]  # the same memory
        self.parts: list[tuple[float, torch.optim.Optimizer]] = [
            (recipe.kernels, torch.optim.Muon(self.matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")),
            (recipe.rest, torch.optim.Adam([weight for weight in self.weights if weight.ndim != 4])),
        ]

    def step(self, share: float) -> None:
        """Make one step at a share of the learning rates, and clear the gradients."""
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        for rate, part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate * share
            part.step()
        for weight in self.weights:
            weight.grad = None

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the state of both optimisers."""
        return [part.state_dict() for _, part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore what `state_dict` returned."""
        for (_, part), state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def train(
    assets: Path,
    out: Path,
    *,
    recipe: ImageCodecRecipe | None = None,
    seed: int = 0,
    log: Log = print_now,
) -> Hyperprior:
    """Run the recipe, resuming from `out`, and return the model ready to code."""
    recipe = recipe or ImageCodecRecipe()
    settings = {**asdict(recipe), "seed": seed}
    torch.manual_seed(seed)
    gains = tuple(recipe.finest * (price / recipe.prices[-1]) ** 0.5 for price in recipe.prices)
    model = Hyperprior(recipe.channels, recipe.latent, gains)
    model.g_s[-1].bias.data.fill_(0.5)  # grey
    optimiser = _Optimiser(model, recipe)
    done, running = 0, dict[str, float]()
    if (state := resume.load(out, settings)) is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        done, running = state["done"], state["running"]
    model.train()
    started, first = time.monotonic(), done
    for step in range(done, recipe.steps):
        torch.manual_seed(seed + step)  # for the noise: a resumed run draws the same as an uninterrupted one
        chosen = int(np.random.default_rng([seed, 12, step]).integers(len(recipe.prices)))
        x, price = batch(assets, recipe, seed, step), recipe.prices[chosen]
        passed = model(x, chosen, autocast=True)
        bits = passed.bits / x[:, 0].numel()  # per pixel
        error = nn.functional.mse_loss(passed.x_hat, x)
        # Divided by the root of the price, so that the gradients of all rates have similar sizes.
        ((bits + price * 255**2 * error) * (recipe.prices[0] / price) ** 0.5).backward()
        optimiser.step((1 - step / recipe.steps) / (1 + step / 100) ** 0.5)
        if step % 8 not in (3, 7):
            for name, value in (("bits", bits), ("dB", -10 * error.log10())):
                name = f"{name} {chosen}"
                running[name] = 0.95 * running.get(name, value.item()) + 0.05 * value.item()
        if (step + 1) % recipe.save == 0 or step + 1 == recipe.steps:
            speed = (step + 1 - first) / (time.monotonic() - started)
            values = " ".join(f"{name} {value:.3g}" for name, value in sorted(running.items()))
            log(f"{step + 1}/{recipe.steps} {speed:.2f} steps/s {values}")
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
            resume.save(out, state | {"done": step + 1, "running": running}, settings)
    return model.ready()


@dataclass(frozen=True)
class LearnedSetting:
    """Rate and scale of a picture coded by a trained model; `identity` changes with the model's weights."""

    model: Hyperprior
    identity: str
    rate: int
    scale: float

    def __str__(self) -> str:
        return f"rate {self.rate} scale {self.scale:.2f}"

    @property
    def folder(self) -> str:
        """The name of the folder for its features."""
        return f"learned-{self.identity}-{self.rate}-{self.scale:.2f}"

    def through(self, encode: Callable[[Image.Image], TowerOutput]) -> Callable[[Image.Image], TowerOutput]:
        """Return a function that codes and decodes a picture and passes it to `encode`, the tower."""

        def encode_decoded(image: Image.Image) -> TowerOutput:
            size = scaled_size(image.size, self.scale)
            small = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
            strings = self.model.compress(small, self.rate)
            found = encode(self.model.decompress(strings, size, self.rate))
            return found._replace(size=HEADER + sum(map(len, strings)))

        return encode_decoded


def settings(model: Hyperprior, identity: str, kind: Kind) -> list[LearnedSetting]:
    """Return all settings that are tried on a kind of pictures."""
    return [LearnedSetting(model, identity, rate, scale) for rate, scale in product(range(model.rates), SCALES[kind])]
