"""Training of the codec on cached features through the frozen decoder: D + λR.

D is the divergence of the answers from those to uncompressed features (so no labels are needed), R the coded bits. The
transform is trained on both. The context model affects only R, and has many more, cheap steps that need no decoder.
Promises that an interrupted run can be resumed. Leaves the tables to `export`.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tofc.codec.context.weights import ContextWeights
from tofc.json_text import dumps
from tofc_lab import resume
from tofc_lab.codec.distributed import ProcessGroup
from tofc_lab.codec.entropy_model_trainer import EntropyModelTrainer
from tofc_lab.codec.feature_noise import PcaNoise
from tofc_lab.codec.model import CodecModel
from tofc_lab.codec.sensitivity import in_float64, root, sensitivity
from tofc_lab.codec.source import B, Source
from tofc_lab.progress import Log, print_now
from tofc_lab.resume import NONE, Settings

ROUND = 8  # settling steps whose symbols are chosen together
#: the names of two settings in files; with other names, no existing run could be resumed
_STORED_NAMES = {"entropy_steps_per_step": "follow", "entropy_steps": "settle"}


@dataclass(frozen=True, kw_only=True)
class CodecRecipe:
    """Sizes and steps of a codec's training.

    `rate_weight` is the initial λ: the nats of divergence per answer token that one bit per feature may cost. λ is then
    controlled so that unmerged pictures cost the `bits` per feature of the finest quality: the byte budget is given,
    and the loss in answers is the outcome. The other qualities use the same transform with longer steps; a transform
    trained at all of them at once was worse at each (docs/decisions.md).
    """

    components: int = 64
    hidden: int = 96
    warm: int = 200  # first steps, which minimise squared error weighed by the sensitivity and need no decoder
    steps: int = 1200  # steps through the decoder
    entropy_steps_per_step: int = 2  # steps of the context model alone for each step of the transform
    entropy_steps: int = 16_000  # steps of the context model alone at the end
    save: int = 100  # steps between checkpoints
    rate: float = 2e-3  # learning rate
    context: float = 1.0  # learning rate of the context model, as a share of `rate`
    measured: int = 40  # batches on which the sensitivity is measured
    plain: float = 0.1  # weight of the projector's own directions in the initial measure, beside the sensitivity
    rate_weight: float = 4e-3
    transform: float = 0.2  # learning rate of the transform, as a share of `rate`
    bits: tuple[float, ...] = (4.0, 5.0, 6.25, 7.75, 9.5, 11.75, 14.5, 18.0)  # per feature; coarsest quality first

    def stored(self) -> dict[str, Any]:
        """Return the settings by the names that they have in files."""
        return {_STORED_NAMES.get(name, name): value for name, value in asdict(self).items()}


def settings_of(inputs: Settings, recipe: CodecRecipe, seed: int) -> dict[str, Any]:
    """Return all that `out/codec.ckpt` depends on, for `tofc_lab.resume.check`."""
    of_recipe = {f"--{name}": value for name, value in recipe.stored().items() if name != "save"}
    return {**inputs, **of_recipe, "--seed": seed}


def train(
    source: Source[B],
    out: Path,
    *,
    inputs: Settings = NONE,
    start: ContextWeights | None = None,
    recipe: CodecRecipe | None = None,
    seed: int = 0,
    processes: ProcessGroup | None = None,
    log: Log = print_now,
) -> CodecModel:
    """Run the recipe, resuming from `out/codec.ckpt`, and write `out/codec.pt`.

    Args:
        inputs: what identifies decoder, features and `start`; a checkpoint of other inputs or settings is refused.
        start: a codec whose transform to start from; None starts from the sensitivity of the answers.
        processes: the processes that share the batches.
    """
    recipe, processes = recipe or CodecRecipe(), processes or ProcessGroup()
    settings = settings_of(inputs, recipe, seed)
    torch.manual_seed(seed)
    device = source.projector.device
    model = new_model(recipe, source.projector.shape[1]).to(device).train()
    transform = [model.analysis, model.synthesis]
    extra = list(source.extra.parameters())
    main = [*transform, model.log_step, *extra]
    groups = [{"params": [model.log_step, *extra], "scale": 1.0}, {"params": transform, "scale": recipe.transform}]
    optimiser = torch.optim.Adam(groups)
    saved, step, weight, running = out / "codec.ckpt", 0, recipe.rate_weight, dict[str, float]()
    entropy_steps_done = 0
    finest, wanted_bits = model.qualities - 1, recipe.bits[-1]
    warm = recipe.warm if start is None else 0
    if (state := resume.load(saved, settings)) is None:
        if processes.rank == 0:
            (out / "codec.jsonl").unlink(missing_ok=True)  # the log of an earlier training
        measure = _initialise(model, source, recipe, start, seed)
        processes.broadcast([*model.parameters(), *model.buffers(), *extra, measure])
        space = model.mean.cpu(), (model.analysis / model.log_step[-1, :, None].exp()).detach().cpu()
    else:
        measure, space = state["measure"].to(device), state["space"]
        model.load_state_dict(state["model"])
        source.extra.load_state_dict(state["extra"])
        optimiser.load_state_dict(state["optimiser"])
        step, weight, running = state["step"], state["weight"], state["running"]
        entropy_steps_done = state["settled"]
    # Features are merged by distances between the codec's own components, as they were at the start.
    mean, analysis = (one.double().numpy() for one in space)
    entropy_trainer = EntropyModelTrainer(
        model, source.pool(lambda view: (view - mean) @ analysis.T), seed, processes=processes
    )
    if state is not None:
        entropy_trainer.load_state_dict(state["follower"])

    def save() -> None:
        if processes.rank:
            return
        with (out / "codec.jsonl").open("a", encoding="utf-8") as file:
            file.write(dumps({"step": step, "settled": entropy_steps_done, **running}) + "\n")
        state = {
            "measure": measure,
            "space": space,
            "model": model.state_dict(),
            "extra": source.extra.state_dict(),
            "optimiser": optimiser.state_dict(),
            "follower": entropy_trainer.state_dict(),
            "step": step,
            "weight": weight,
            "running": running,
            "settled": entropy_steps_done,
        }
        resume.save(saved, state, settings)

    total = warm + recipe.steps
    batches = source.batches(step)
    started, first = time.monotonic(), step
    while step < total:
        torch.manual_seed((seed << 32) + step)  # for dropout: a resumed run draws the same as an uninterrupted one
        rate = recipe.rate * min(1.0, (step + 1) / 30, 2 * (total - step) / total)
        if recipe.entropy_steps_per_step:
            entropy_trainer.run([recipe.context * recipe.rate] * recipe.entropy_steps_per_step, finest)
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
        processes.average_gradients(main)
        nn.utils.clip_grad_norm_(main, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        mean_bits, mean_distortion = processes.mean(torch.stack([bits.mean(), distortion]).detach()).tolist()
        figures = {"distortion": mean_distortion, "bits a feature": mean_bits, "weight": weight}
        if counted:
            weight *= float(np.exp(0.06 * np.clip(mean_bits / wanted_bits - 1, -1, 1)))
            figures["bits of the unmerged"] = mean_bits
        for name, value in figures.items():
            running[name] = 0.95 * running.get(name, value) + 0.05 * value
        if step == warm:
            running.clear()
        if step % 25 == 0:
            speed = (step - first) / (time.monotonic() - started)
            log(f"{step}/{total} {speed:.2f} steps/s " + " ".join(f"{k} {v:.4f}" for k, v in running.items()))
        if step % recipe.save == 0 or step == total:
            save()
    if total and not entropy_steps_done:
        # The transform and the finest steps have changed since they were initialised, and so has each quality's rate.
        model.space_steps(entropy_trainer.pool.features[:20_000].float().to(device), recipe.bits)
    entropy_trainer.freeze()
    while entropy_steps_done < recipe.entropy_steps:
        torch.manual_seed((seed << 32) + total + entropy_steps_done)
        steps = range(entropy_steps_done, _next_multiple(entropy_steps_done, ROUND, recipe.entropy_steps))
        shares = [min(1.0, 2 * (1 - done / recipe.entropy_steps)) for done in steps]
        for spent in entropy_trainer.run([recipe.context * recipe.rate * share for share in shares]):
            running["settled bits"] = 0.99 * running.get("settled bits", spent) + 0.01 * spent  # of all qualities
        entropy_steps_done = steps.stop
        if entropy_steps_done % 500 < len(steps):
            log(f"entropy steps {entropy_steps_done}/{recipe.entropy_steps} bits {running['settled bits']:.3f}")
        if entropy_steps_done % (10 * recipe.save) < len(steps) or entropy_steps_done == recipe.entropy_steps:
            save()
    if processes.rank == 0:
        torch.save(model.state_dict(), out / "codec.pt")
    return model.eval()


def new_model(recipe: CodecRecipe, dim: int) -> CodecModel:
    """Return an untrained model for features of `dim` numbers."""
    return CodecModel(
        dim=dim,
        components=min(recipe.components, dim),
        hidden=recipe.hidden,
        qualities=len(recipe.bits),
    )


def _next_multiple(number: int, of: int, most: int) -> int:
    """Return the next multiple after `number`, but at most `most`: a resumed run makes the same rounds."""
    return min(number - number % of + of, most)


@torch.no_grad()
def _initialise(
    model: CodecModel, source: Source[B], recipe: CodecRecipe, start: ContextWeights | None, seed: int
) -> Tensor:
    """Initialise the transform, and return the measure [D, D] by which the first steps weigh errors.

    Without `start` the transform is initialised from the sensitivity of the answers, whose root is the measure. With
    `start` the transform is that codec's, and the measure is empty because there are no such first steps.
    """
    seen = source.sample()
    device = source.projector.device
    if start is not None:
        model.continue_from(start, seen.to(device), recipe.bits)
        return torch.zeros(0)
    with torch.enable_grad():
        fisher = sensitivity(source, PcaNoise.fit(seen.numpy()), batches=recipe.measured, seed=seed)
    projector = in_float64(source.projector)
    plain = projector.T @ projector
    measure = root(fisher + recipe.plain * plain * (len(plain) / plain.trace())).float().to(device)
    model.start_from(seen.to(device), measure, recipe.bits)
    return measure
