"""Training of TOFC's entropy model as published (arXiv 2503.12926) through the decoder: D + λR, a model for each λ.

The decoder is frozen. D is the divergence of the answers from those to uncompressed features, R the bits of z, q and
the expert's index. The first steps need no decoder: they minimise R alone, with steps that come from how much answers
depend on each number. Promises that an interrupted run is resumed with the same batches. Leaves the tables to
`selective_hyperprior_export`.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tofc.codec.context.weights import ContextWeights
from tofc_lab import resume
from tofc_lab.codec.feature_noise import PcaNoise
from tofc_lab.codec.model import ste_round
from tofc_lab.codec.selective_hyperprior import SelectiveHyperprior
from tofc_lab.codec.sensitivity import sensitivity
from tofc_lab.codec.source import B, Source
from tofc_lab.progress import Log, print_now
from tofc_lab.resume import NONE, Settings


@dataclass(frozen=True, kw_only=True)
class SelectiveHyperpriorRecipe:
    """Sizes and steps of the training.

    `prices` are the λ, coarsest quality first: the nats of divergence per answer token that one bit per feature may
    cost. `lengths` are the initial steps of each, in spreads of the features (without a transform) or in the finest
    steps of the transform's codec.
    """

    prices: tuple[float, ...] = (7e-4, 3.2e-4, 1.4e-4)
    lengths: tuple[float, ...] = (4.2, 3.0, 2.2)
    experts: int = 16
    hidden: int = 24  # units of each expert
    analysis_hidden: int = 96  # units of h_a
    warm: int = 1500  # first steps, on the rate alone
    warm_next: int = 250  # as many of every model but the first, which starts from the one before
    steps: int = 200  # steps through the decoder
    batch: int = 128  # features whose rate a step computes: 16 experts make it the dearest part
    rate: float = 2e-3  # learning rate
    step_rate: float = 8e-3  # learning rate of the logarithms of the steps
    measured: int = 20  # batches on which the sensitivity is measured
    save: int = 50  # steps between checkpoints


#: with another codec's transform, whose components cost a tenth of the bits
TRANSFORMED = SelectiveHyperpriorRecipe(prices=(1.2e-2, 4e-3, 1.2e-3), lengths=(3.0, 1.75, 1.0))


def new_model(recipe: SelectiveHyperpriorRecipe, dim: int, components: int) -> SelectiveHyperprior:
    """Return an untrained model for components of features of `dim` numbers; z has a sixteenth of their numbers."""
    return SelectiveHyperprior(
        dim=dim,
        components=components,
        hyper=max(1, components // 16),
        hidden=recipe.hidden,
        analysis_hidden=recipe.analysis_hidden,
        experts=recipe.experts,
    )


def checkpoints(out: Path, transformed: bool, recipe: SelectiveHyperpriorRecipe) -> list[Path]:
    """Return the checkpoint of the initial steps, and that of each model; `transformed`: with another codec's."""
    name = "selective-hyperprior-transform" if transformed else "selective-hyperprior"
    return [out / f"{name}-{part}.ckpt" for part in ("unit", *range(len(recipe.prices)))]


def settings_of(inputs: Settings, recipe: SelectiveHyperpriorRecipe, seed: int) -> dict[str, Any]:
    """Return all that the checkpoints depend on, for `tofc_lab.resume.check`."""
    of_recipe = {name: value for name, value in asdict(recipe).items() if name != "save"}
    return {**inputs, **of_recipe, "--seed": seed}


def train(
    source: Source[B],
    out: Path,
    *,
    inputs: Settings = NONE,
    transform: ContextWeights | None = None,
    recipe: SelectiveHyperpriorRecipe | None = None,
    seed: int = 0,
    log: Log = print_now,
) -> list[SelectiveHyperprior]:
    """Run the recipe for each λ, resuming from `out/selective-hyperprior*.ckpt`; return the models, coarsest first.

    Args:
        inputs: what identifies decoder and `transform`; checkpoints of other inputs or settings are refused.
        transform: a codec whose transform to use, as it is; None, as published: none.
    """
    recipe = recipe or SelectiveHyperpriorRecipe()
    settings = settings_of(inputs, recipe, seed)
    start, *paths = checkpoints(out, transform is not None, recipe)
    sample = source.sample().float()
    unit = _unit(source, sample, transform, recipe, seed, start, settings)
    pool = source.pool(lambda view: view if transform is None else _components(transform, view, unit)).features
    models: list[SelectiveHyperprior] = []
    for quality, path in enumerate(paths):
        torch.manual_seed(seed + quality)
        model = new_model(recipe, sample.shape[1], len(unit))
        if models:
            model.continue_from(models[-1], recipe.lengths[quality] / recipe.lengths[quality - 1])
        else:
            _start(model, sample, transform, recipe.lengths[0] * unit)
        log(f"λ {recipe.prices[quality]:g}:")
        models.append(_train_one(source, pool, model, quality, path, settings, recipe, seed, log))
    return models


@torch.no_grad()
def _start(model: SelectiveHyperprior, sample: Tensor, transform: ContextWeights | None, step: Tensor) -> None:
    """Initialise the first model."""
    if transform is None:
        model.mean.copy_(sample.mean(0))
    else:
        assert transform.analysis is not None and transform.synthesis is not None
        model.mean.copy_(torch.tensor(transform.mean))
        model.analysis.copy_(torch.tensor(transform.analysis))
        model.synthesis.copy_(torch.tensor(transform.synthesis))
    model.start_from(model.project(sample), step)


def _components(transform: ContextWeights, view: NDArray[np.float32], unit: Tensor) -> NDArray[np.floating]:
    """Return the components [N, M] of features, in the finest steps of the transform's codec."""
    assert transform.analysis is not None
    found: NDArray[np.floating] = (view - transform.mean) @ transform.analysis.T / unit.numpy()
    return found


def _unit(
    source: Source[B],
    sample: Tensor,
    transform: ContextWeights | None,
    recipe: SelectiveHyperpriorRecipe,
    seed: int,
    path: Path,
    settings: Settings,
) -> Tensor:
    """Return the steps [M] that `recipe.lengths` are multiples of.

    A number's step is inverse to the root of its sensitivity (the diagonal of the decoder's Fisher information), as
    reverse water-filling has it.
    """
    if transform is not None:
        return torch.tensor(transform.step[-1])
    if (state := resume.load(path, settings)) is not None:
        return state["unit"]  # type: ignore[no-any-return]
    worth = sensitivity(source, PcaNoise.fit(sample.numpy()), batches=recipe.measured, seed=seed).diagonal()
    root = (worth + 0.05 * worth.mean()).sqrt()
    unit = (sample.std() * root.mean() / root).float()
    resume.save(path, {"unit": unit}, settings)
    return unit


def _train_one(
    source: Source[B],
    pool: Tensor,
    model: SelectiveHyperprior,
    quality: int,
    path: Path,
    settings: Settings,
    recipe: SelectiveHyperpriorRecipe,
    seed: int,
    log: Log,
) -> SelectiveHyperprior:
    """Train the model of one λ, on the features of `pool` [T, D] and through the decoder."""
    model.train()
    warm = recipe.warm_next if quality else recipe.warm
    # without the quantiles, which only compressai's own coder needs
    entropy = [one for name, one in model.named_parameters() if name != "log_step" and not name.endswith("quantiles")]
    optimiser = torch.optim.Adam([{"params": entropy}, {"params": [model.log_step]}])
    step, running = 0, dict[str, float]()
    if (state := resume.load(path, settings)) is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step, running = state["step"], state["running"]
    price, total = recipe.prices[quality], warm + recipe.steps
    batches, started, first = source.batches(max(0, step - warm)), time.monotonic(), step
    while step < total:
        torch.manual_seed((seed << 32) + (quality << 24) + step)
        optimiser.param_groups[0]["lr"] = recipe.rate * min(1.0, 2 * (1 - step / total))
        optimiser.param_groups[1]["lr"] = recipe.step_rate * min(1.0, 2 * (total - step) / recipe.steps)
        figures = {}
        if step < warm:
            x = pool[torch.randint(len(pool), (recipe.batch,))].float()
            bits = model.rate(model.project(x) / model.log_step.detach().exp()).mean()
            loss = bits
        else:
            batch, _ = next(batches)
            y = model.project(batch.features) / model.log_step.exp()
            with torch.no_grad():
                wanted = source.wanted(batch).log_softmax(-1)
            got = source.logits(batch, model.dequantise(ste_round(y))).log_softmax(-1)
            distortion = F.kl_div(got, wanted, log_target=True, reduction="batchmean")
            bits = model.rate(y[torch.randperm(len(y))[: recipe.batch]]).mean()
            loss = distortion / price + bits  # D + λR, divided by λ: the entropy model's gradients do not depend on it
            figures["distortion"] = distortion.item()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(entropy, 10.0)
        optimiser.step()
        step += 1
        figures |= {"bits": bits.item(), "step": float(model.log_step.detach().exp().mean())}
        for name, value in figures.items():
            running[name] = 0.95 * running.get(name, value) + 0.05 * value
        if step % recipe.save == 0 or step == total:
            speed = (step - first) / (time.monotonic() - started)
            values = " ".join(f"{name} {value:.4f}" for name, value in running.items())
            log(f"{step}/{total} {speed:.2f} steps/s {values}")
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
            resume.save(path, state | {"step": step, "running": running}, settings)
    return model.eval()
