"""Training the codec on cached features through the frozen decoder: D + λR.

D is the divergence of the answers from those the uncompressed features give (no labels needed), R the
coded bits. The transform follows both; the context model, which only R depends on, follows the transform with
many cheap steps that need no decoder. Promises a resumable run; leaves the tables to ``export``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab import resume
from lab.codec.follow import Follower
from lab.codec.model import CodecModel
from lab.codec.sensitivity import root, sensitivity
from lab.codec.source import B, Source
from lab.codec.team import Team
from lab.nano.rough import Rough
from shared.codec.weights import CodecWeights
from shared.json_text import dumps


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """``rate_weight`` is where λ begins: nats of divergence an answer token may cost for one bit a feature.

    λ is then steered until unmerged pictures cost the finest quality's ``bits`` a feature: the byte budget is the
    given, its price in answers the outcome. The other qualities share the transform with longer steps; trained at
    all of them at once, it served none (docs/decisions.md).
    """

    components: int = 64
    hidden: int = 96
    warm: int = 200  # steps of squared error as the sensitivity weighs it, which need no decoder
    steps: int = 1200
    follow: int = 2  # steps of the context model for one of the transform
    settle: int = 16_000  # steps of the context model at the end
    save: int = 100  # steps between checkpoints
    rate: float = 2e-3
    context: float = 1.0  # of the rate
    measured: int = 40  # batches that the sensitivity is measured on
    plain: float = 0.1  # of the start: what any direction that passes the projector is worth beside the sensitivity
    rate_weight: float = 4e-3
    transform: float = 0.2  # of the rate
    bits: tuple[float, ...] = (4.0, 5.0, 6.25, 7.75, 9.5, 11.75, 14.5, 18.0)  # of the qualities, the coarsest first


def train(
    source: Source[B],
    out: Path,
    *,
    basis: str = "",
    start: CodecWeights | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    team: Team | None = None,
    log: Any = print,
) -> CodecModel:
    """Run the recipe, resuming from ``out/codec.ckpt``; ends with ``out/codec.pt``.

    Args:
        basis: names the decoder; a checkpoint of another basis is refused.
        start: a codec whose transform to go on from; None begins where answers are sensitive.
        team: the processes among which batches are shared.
    """
    recipe, team = recipe or Recipe(), team or Team()
    torch.manual_seed(seed)
    device = source.projector.device
    model = new_model(recipe, source.projector.shape[1]).to(device).train()
    transform = [model.analysis, model.synthesis]
    extra = list(source.extra.parameters())
    main = [*transform, model.log_step, *extra]
    groups = [{"params": [model.log_step, *extra], "scale": 1.0}, {"params": transform, "scale": recipe.transform}]
    optimiser = torch.optim.Adam(groups)
    saved, step, weight, running = out / "codec.ckpt", 0, recipe.rate_weight, dict[str, float]()
    settled = 0
    finest, wanted_bits = model.qualities - 1, recipe.bits[-1]
    warm = recipe.warm if start is None else 0
    if (state := resume.load(saved, basis)) is None:
        if team.rank == 0:
            (out / "codec.jsonl").unlink(missing_ok=True)  # of another training
        measure = _begin(model, source, recipe, start, seed)
        team.agree([*model.parameters(), *model.buffers(), *extra, measure])
        space = model.mean.cpu(), (model.analysis / model.log_step[-1, :, None].exp()).detach().cpu()
    else:
        measure, space = state["measure"].to(device), state["space"]
        model.load_state_dict(state["model"])
        source.extra.load_state_dict(state["extra"])
        optimiser.load_state_dict(state["optimiser"])
        step, weight, running, settled = state["step"], state["weight"], state["running"], state["settled"]
    # What features are merged by: the codec's own components, as they are to begin with.
    mean, analysis = (one.double().numpy() for one in space)
    follower = Follower(model, source.pool(lambda view: (view - mean) @ analysis.T), seed, team=team)
    if state is not None:
        follower.load_state_dict(state["follower"])

    def keep() -> None:
        if team.rank:
            return
        with (out / "codec.jsonl").open("a", encoding="utf-8") as file:
            file.write(dumps({"step": step, "settled": settled, **running}) + "\n")
        state = {
            "measure": measure,
            "space": space,
            "model": model.state_dict(),
            "extra": source.extra.state_dict(),
            "optimiser": optimiser.state_dict(),
            "follower": follower.state_dict(),
            "step": step,
            "weight": weight,
            "running": running,
            "settled": settled,
        }
        resume.save(saved, state, basis)

    total = warm + recipe.steps
    batches = source.batches(step)
    began, first = time.monotonic(), step
    while step < total:
        torch.manual_seed((seed << 32) + step)  # of what dropout leaves out, so that a resumed run goes on as it would
        rate = recipe.rate * min(1.0, (step + 1) / 30, 2 * (total - step) / total)
        for _ in range(recipe.follow):
            follower.step(recipe.context * recipe.rate, finest)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        batch, counted = next(batches)
        x = batch.features
        x_hat, bits = model(x, finest, batch.places)
        if step < warm:
            error = F.linear(x_hat - x, measure).square().sum(-1).mean()
            distortion = error / F.linear(x - model.mean, measure).square().sum(-1).mean()
        else:
            with torch.no_grad():
                wanted = source.wanted(batch).log_softmax(-1)
            got = source.logits(batch, x_hat).log_softmax(-1)
            distortion = F.kl_div(got, wanted, log_target=True, reduction="batchmean")
        loss = distortion + weight * bits.mean()
        loss.backward()
        team.average(main)
        nn.utils.clip_grad_norm_(main, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        cost, spoilt = team.mean(torch.stack([bits.mean(), distortion]).detach()).tolist()
        figures = {"distortion": spoilt, "bits a feature": cost, "weight": weight}
        if counted:
            weight *= float(np.exp(0.06 * np.clip(cost / wanted_bits - 1, -1, 1)))
            figures["bits of the unmerged"] = cost
        for name, value in figures.items():
            running[name] = 0.95 * running.get(name, value) + 0.05 * value
        if step == warm:
            running.clear()
        if step % 25 == 0:
            speed = (step - first) / (time.monotonic() - began)
            log(
                f"{step}/{total} {speed:.2f} steps/s " + " ".join(f"{k} {v:.4f}" for k, v in running.items()),
                flush=True,
            )
        if step % recipe.save == 0 or step == total:
            keep()
    if total and not settled:
        # The transform and the finest steps have moved since they were spaced, and real packets are not λ's bits.
        model.space_steps(follower.seen.features[:20_000].float().to(device), recipe.bits)
    follower.freeze()
    while settled < recipe.settle:
        torch.manual_seed((seed << 32) + total + settled)
        spent = follower.step(recipe.context * recipe.rate * min(1.0, 2 * (1 - settled / recipe.settle)))
        settled += 1
        running["settled bits"] = 0.99 * running.get("settled bits", spent) + 0.01 * spent  # of all qualities
        if settled % 500 == 0:
            log(f"settled {settled}/{recipe.settle} bits {running['settled bits']:.3f}", flush=True)
        if settled % (10 * recipe.save) == 0 or settled == recipe.settle:
            keep()
    if team.rank == 0:
        torch.save(model.state_dict(), out / "codec.pt")
    return model.eval()


def new_model(recipe: Recipe, dim: int) -> CodecModel:
    """An untrained model of features ``dim`` wide."""
    return CodecModel(
        dim=dim,
        components=min(recipe.components, dim),
        hidden=recipe.hidden,
        qualities=len(recipe.bits),
    )


@torch.no_grad()
def _begin(model: CodecModel, source: Source[B], recipe: Recipe, start: CodecWeights | None, seed: int) -> Tensor:
    """Start the transform where answers are sensitive; that measure's root [D, D] is the first steps' distance.

    Or go on from another codec's, without such steps.
    """
    seen = source.sample()
    device = source.projector.device
    if start is not None:
        model.continue_from(start, seen.to(device), recipe.bits)
        return torch.zeros(0)
    with torch.enable_grad():
        fisher = sensitivity(source, Rough(seen.numpy()), batches=recipe.measured, seed=seed)
    plain = source.projector.T.double() @ source.projector.double()
    measure = root(fisher + recipe.plain * plain * (len(plain) / plain.trace())).float()
    model.start_from(seen.to(device), measure, recipe.bits)
    return measure
