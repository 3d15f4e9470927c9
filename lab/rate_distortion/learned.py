"""The learned image codec of the comparison, trained here: no weights of one are in a package registry.

    training pictures ─ shrink by any factor ─ crop ─ hyperprior ─ bits + λ·255²·squared error, a λ for each rate

Kind to it: it learns on the very world that it is judged in, with backgrounds of the training split and a new
picture every time; the picture's size, its strings' lengths and the rate are counted as two bytes together.
Promises that training goes on where it stopped, with the pictures that it would have seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lab import resume
from lab.nano.features import Kind, Seen, picture
from lab.rate_distortion.hyperprior import Hyperprior
from lab.world import easy_vqa
from shared.model.image_file import scaled_size

HEADER = 2  # bytes
TITLE = "learned image codec (trained here)"
#: 336 px become 320, 256, 192 and 128: at multiples of 64 px nothing is padded. Those of easy-VQA have 64 px, where
#: even the highest rate loses too much: they are also coded enlarged
SCALES: dict[Kind, tuple[float, ...]] = {
    "world": tuple(side / 336 for side in (320, 256, 192, 128)),
    "easy": (1.0, 2.0),
    "large": (0.5, 0.35),
}
VALIDATION = 1000  # of easy-VQA's training pictures: the first ones choose settings


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Sizes, prices of squared error in levels of 255 against bits a pixel, and the way there."""

    channels: int = 64
    latent: int = 96
    prices: tuple[float, ...] = (0.00005, 0.00015, 0.0004, 0.0012, 0.0035, 0.01)
    finest: float = 8.0  # gain of the highest rate in the beginning: y is small then, and would all be rounded away
    steps: int = 9000
    batch: int = 8
    crop: int = 128  # px
    kernels: float = 1e-3  # learning rate of convolutions in the beginning
    rest: float = 3e-3
    save: int = 250


def batch(folder: Path, recipe: Recipe, seed: int, step: int) -> Tensor:
    """Crops [B, 3, C, C] in 0…1 of training pictures, two of each, at random scales; drawn from (seed, step)."""
    rng = np.random.default_rng([seed, 11, step])
    kind: Kind = {3: "large", 7: "easy"}.get(step % 8, "world")  # type: ignore[assignment]
    if kind == "easy":  # whole, as it will be asked for
        indices = rng.integers(VALIDATION, len(easy_vqa.pictures("train")), recipe.batch)
        crops = [picture(folder, kind, "train", seed, int(index))[0] for index in indices]
    else:
        first = step * recipe.batch
        images = [picture(folder, kind, "train", seed, first + i)[0] for i in range(0, recipe.batch, 2)]
        crops = [_crop(image, recipe.crop, rng) for image in images for _ in range(2)]
    return torch.from_numpy(np.stack([np.asarray(crop) for crop in crops])).permute(0, 3, 1, 2).float() / 255


def _crop(image: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    scale = float(np.exp(rng.uniform(np.log(side / min(image.size)), 0)))
    width, height = (max(side, one) for one in scaled_size(image.size, scale))
    left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    small = image.resize((width, height), Image.Resampling.LANCZOS)
    return small.crop((left, top, left + side, top + side))


class _Optimiser:
    """Muon for the kernels of convolutions, seen as matrices, Adam for the rest."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        # compressai's `update` finds the quantiles; nothing has to learn them
        named = [(name, weight) for name, weight in model.named_parameters() if not name.endswith("quantiles")]
        self.weights = [weight for _, weight in named]
        self.kernels = [weight for weight in self.weights if weight.ndim == 4]
        self.matrices = [nn.Parameter(kernel.detach().flatten(1)) for kernel in self.kernels]  # the same memory
        self.parts: list[tuple[float, torch.optim.Optimizer]] = [
            (recipe.kernels, torch.optim.Muon(self.matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")),
            (recipe.rest, torch.optim.Adam([weight for weight in self.weights if weight.ndim != 4])),
        ]

    def step(self, share: float) -> None:
        """One step at this share of the learning rates; gradients are gone then."""
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
        return [part.state_dict() for _, part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for (_, part), state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def train(
    folder: Path,
    out: Path,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> Hyperprior:
    """The model after the whole recipe, ready to code; checkpoints in ``out``."""
    recipe = recipe or Recipe()
    basis = repr((astuple(recipe), seed))
    torch.manual_seed(seed)
    gains = tuple(recipe.finest * (price / recipe.prices[-1]) ** 0.5 for price in recipe.prices)
    model = Hyperprior(recipe.channels, recipe.latent, gains)
    model.g_s[-1].bias.data.fill_(0.5)  # grey
    optimiser = _Optimiser(model, recipe)
    done, running = 0, dict[str, float]()
    if (state := resume.load(out, basis)) is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        done, running = state["done"], state["running"]
    model.train()
    began, first = time.monotonic(), done
    for step in range(done, recipe.steps):
        torch.manual_seed(seed + step)  # the noise: as if it had never stopped
        chosen = int(np.random.default_rng([seed, 12, step]).integers(len(recipe.prices)))
        x, price = batch(folder, recipe, seed, step), recipe.prices[chosen]
        seen = model(x, chosen, autocast=True)
        bits = seen.bits / x[:, 0].numel()  # a pixel
        error = nn.functional.mse_loss(seen.x_hat, x)
        # Over the root of the price, so that no rate's gradient drowns the others'.
        ((bits + price * 255**2 * error) * (recipe.prices[0] / price) ** 0.5).backward()
        optimiser.step((1 - step / recipe.steps) / (1 + step / 100) ** 0.5)
        if step % 8 not in (3, 7):
            for name, value in (("bits", bits), ("dB", -10 * error.log10())):
                name = f"{name} {chosen}"
                running[name] = 0.95 * running.get(name, value.item()) + 0.05 * value.item()
        if (step + 1) % recipe.save == 0 or step + 1 == recipe.steps:
            speed = (step + 1 - first) / (time.monotonic() - began)
            told = " ".join(f"{name} {value:.3g}" for name, value in sorted(running.items()))
            log(f"{step + 1}/{recipe.steps} {speed:.2f} steps/s {told}")
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
            resume.save(out, state | {"done": step + 1, "running": running}, basis)
    return model.ready()


@dataclass(frozen=True)
class Coded:
    """One way to code a picture with a trained model; ``identity`` changes with its weights."""

    model: Hyperprior
    identity: str
    rate: int
    scale: float

    def __str__(self) -> str:
        return f"rate {self.rate} scale {self.scale:.2f}"

    @property
    def folder(self) -> str:
        return f"learned-{self.identity}-{self.rate}-{self.scale:.2f}"

    def through(self, encode: Callable[[Image.Image], Seen]) -> Callable[[Image.Image], Seen]:
        """What the tower behind ``encode`` sees of the decoded picture."""

        def seen(image: Image.Image) -> Seen:
            size = scaled_size(image.size, self.scale)
            small = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
            strings = self.model.compress(small, self.rate)
            found = encode(self.model.decompress(strings, size, self.rate))
            return found._replace(size=HEADER + sum(map(len, strings)))

        return seen


def settings(model: Hyperprior, identity: str, kind: Kind) -> list[Coded]:
    """Every setting tried on a kind of pictures."""
    return [Coded(model, identity, rate, scale) for rate, scale in product(range(model.rates), SCALES[kind])]
