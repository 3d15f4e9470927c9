"""Training of the index codec on cached features: no decoder and no answers are needed.

    features ─ transform ─ codebooks ─┬─ rounds of: choose indices by rate and distortion, move codewords to the mean
                    context model ────┘  of what was coded with them, train the context model on the indices

Distances are those behind the projector (`transform`). All qualities share one set of weights and differ in λ, the
price of a bit. Promises that an interrupted run is resumed with the same result. Leaves integers to `export`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tofc_lab import resume
from tofc_lab.codec.index import codebooks
from tofc_lab.codec.index.codebooks import Codebook
from tofc_lab.codec.index.grids import Grids
from tofc_lab.codec.index.model import IndexModel
from tofc_lab.progress import Log, print_now
from tofc_lab.resume import NONE, Settings

#: the options of `train-codec` that set these
_OPTIONS = {"steps": "--settle", "components": "--components", "codewords": "--codewords"}


@dataclass(frozen=True, kw_only=True)
class IndexRecipe:
    """Sizes and steps of the training.

    `prices` are λ of each quality, coarsest first, in units of the mean squared distance to the first codebook when it
    is fitted without a price.
    """

    components: int = 64  # of a feature behind the projector
    merged: float = 0.25  # share of pictures that are merged: indices cost so little that merging rarely pays
    codewords: tuple[int, ...] = (4096, 256, 256)  # at most, of each stage
    weights: tuple[float, ...] = (0.1, 0.3, 0.3)  # price at which each codebook is fitted, in the same way
    spans: tuple[tuple[int, int], ...] = ()  # first and end of the components that each stage codes; else all
    vectors: int = 600_000  # features that the codebooks are fitted to, at most
    fitting: int = 8  # rounds of k-means, and again with the price
    learned: int = 32
    hidden: int = 128
    prices: tuple[float, ...] = (1.0, 0.6, 0.36, 0.21, 0.125, 0.075, 0.045, 0.025)
    rounds: int = 5
    moving: int = 3  # of the rounds, those after which codewords are moved
    steps: int = 7_000  # of the context model, in all rounds together
    batch: int = 1700  # features of a step
    rate: float = 3e-3
    save: int = 250


def settings_of(inputs: Settings, recipe: IndexRecipe, seed: int) -> dict[str, Any]:
    """Return all that a checkpoint depends on, for `tofc_lab.resume.check`."""
    of_recipe = {_OPTIONS.get(name, name): value for name, value in asdict(recipe).items() if name != "save"}
    return {**inputs, **of_recipe, "--seed": seed}


def train(
    views: Sequence[Grids],
    saved: Path,
    *,
    inputs: Settings = NONE,
    recipe: IndexRecipe | None = None,
    seed: int = 0,
    log: Log = print_now,
) -> tuple[IndexModel, Tensor]:
    """Run the recipe, resuming from the checkpoint `saved`; return the model and λ [Q].

    Args:
        views: the components of the features, some of them merged.
        inputs: what identifies tower and pictures; a checkpoint of other inputs or settings is refused.
    """
    recipe = recipe or IndexRecipe()
    settings = settings_of(inputs, recipe, seed)
    torch.manual_seed(seed)
    state = resume.load(saved, settings)
    if state is None:
        books, unit = _fit_codebooks(views, recipe, seed, log)
        state = {"books": [tuple(book) for book in books], "unit": unit, "step": 0, "round": -1}
    books = [Codebook(*book) for book in state["books"]]
    price = torch.tensor(recipe.prices) * state["unit"]
    model = IndexModel(
        books,
        learned=recipe.learned,
        hidden=recipe.hidden,
        qualities=len(recipe.prices),
        sides=[one.side for one in views],
    )
    optimiser = torch.optim.AdamW(model.parameters(), recipe.rate, weight_decay=0.02)
    if "model" in state:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
    step, done_round, running = state["step"], state["round"], state.get("running", 0.0)
    index: list[Tensor] = state.get("index", [])
    started, first = time.monotonic(), step

    def save() -> None:
        kept: dict[str, Any] = {
            "books": state["books"], "unit": state["unit"], "step": step, "round": done_round, "running": running,
            "model": model.state_dict(), "optimiser": optimiser.state_dict(), "index": index,
        }  # fmt: skip
        resume.save(saved, kept, settings)

    sizes = torch.tensor([float(one.present.sum()) for one in views])
    per_round = -(-recipe.steps // recipe.rounds)
    while step < recipe.steps:
        if (now := step // per_round) > done_round:
            model.eval()
            moments = _Moments(model) if 0 < now <= recipe.moving else None
            index = [_choose(model, one, now, price, moments) for one in views]
            if moments is not None:
                model.move_codewords(moments.sums, moments.counts)
            done_round = now
            log(f"round {now + 1}/{recipe.rounds}: indices chosen, {time.monotonic() - started:.0f} s")
        model.train()
        generator = torch.Generator().manual_seed((seed << 32) + step)
        torch.manual_seed((seed << 32) + step)  # for dropout
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * min(1.0, (step + 1) / 100, 1.5 * (1 - step / recipe.steps))
        which = int(torch.multinomial(sizes, 1, generator=generator))
        grids, chosen = views[which], index[which]
        count = max(1, round(recipe.batch / grids.present.shape[1]))
        rows = torch.randint(len(grids.y), (count,), generator=generator)
        bits = model.loss(grids.side, chosen[rows].long(), grids.present[rows], _quality_of(rows, done_round, model))
        loss = bits.sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        step += 1
        running = loss.item() if not running else 0.99 * running + 0.01 * loss.item()
        if step % 100 == 0:
            log(f"{step}/{recipe.steps} {(step - first) / (time.monotonic() - started):.2f} steps/s bits {running:.3f}")
        if step % recipe.save == 0 or step == recipe.steps:
            save()
    return model.eval(), price


def _fit_codebooks(views: Sequence[Grids], recipe: IndexRecipe, seed: int, log: Log) -> tuple[list[Codebook], float]:
    """Fit the codebooks of all stages; return also the mean squared distance to the first, without a price."""
    points = torch.cat([one.y[one.present] for one in views])
    if len(points) > recipe.vectors:
        points = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[: recipe.vectors]]
    books, unit = list[Codebook](), 0.0
    spans = recipe.spans or ((0, points.shape[1]),) * len(recipe.codewords)
    for stage, (size, weight, span) in enumerate(zip(recipe.codewords, recipe.weights, spans, strict=True)):
        seen = torch.zeros_like(points)
        seen[:, slice(*span)] = points[:, slice(*span)]
        book, plain = codebooks.fit(seen, size, weight, recipe.fitting, seed)
        unit = unit or plain
        chosen, distance = codebooks.nearest(seen, book.codewords, book.bits, weight * plain)
        log(
            f"codebook {stage}: {len(book.bits)} codewords, {float(book.bits[chosen].mean()):.2f} bits, mean squared "
            f"distance {float(distance.mean()):.4g}"
        )
        points = points - book.codewords[chosen]
        books.append(book)
    return books, unit


class _Moments:
    """Sums and counts of what is coded with each codeword, less the codewords of the other stages."""

    def __init__(self, model: IndexModel) -> None:
        self.sums, self.counts = torch.zeros_like(model.codewords), torch.zeros(len(model.codewords))
        self._model = model

    def add(self, y: Tensor, index: Tensor) -> None:
        """Count features [T, M] that were coded with the indices [T, S]."""
        starts = torch.tensor([first for first, _ in self._model.spans])
        rows = index + starts
        words = self._model.codewords[rows]  # [T, S, M]
        rest = y[:, None] - words.sum(1, keepdim=True) + words
        self.sums.index_add_(0, rows.flatten(), rest.flatten(0, 1))
        self.counts.index_add_(0, rows.flatten(), torch.ones(rows.numel()))


def _quality_of(rows: Tensor, round_: int, model: IndexModel) -> Tensor:
    """Return the quality of views `rows` in a round: each view gets another one in each round."""
    return (rows * 5 + round_ * 3) % model.qualities


def _choose(model: IndexModel, views: Grids, round_: int, price: Tensor, moments: _Moments | None) -> Tensor:
    """Return the indices int16 [V, G², S] of all views, each at its quality of this round."""
    found = []
    for rows in torch.arange(len(views.y)).split(max(1, 8000 // views.present.shape[1])):
        part = Grids(side=views.side, y=views.y[rows], present=views.present[rows])
        index = model.choose(part, _quality_of(rows, round_, model), price)
        if moments is not None:
            moments.add(part.y[part.present], index[part.present])
        found.append(index.to(torch.int16))
    return torch.cat(found)
