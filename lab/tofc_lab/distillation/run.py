"""Training of a codec for any checkpoint on a folder of pictures, with a report.

    pictures ─ tower ─ features on disk ─┐
    questions ───────────────────────────┴─ decoder's own answers ─ training ─ tables ─ held-out report ─ codec files

Promises that every part can be resumed, and that only the codec (and adapters, if asked for) is trained. Leaves the
parts to their modules.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tofc import json_text
from tofc.codec.codec import Codec
from tofc.codec.files import load_weights
from tofc.model.checkpoint import Checkpoint
from tofc_lab import resume
from tofc_lab.codec import train
from tofc_lab.codec.distributed import ProcessGroup
from tofc_lab.codec.export import export
from tofc_lab.codec.index.train import IndexRecipe
from tofc_lab.codec.model import CodecModel
from tofc_lab.distillation import figure, lora, settings
from tofc_lab.distillation.experiment import Experiment, Job
from tofc_lab.distillation.index_codec import train_index
from tofc_lab.distillation.pictures import StoredPicture
from tofc_lab.distillation.source import DistillationSource
from tofc_lab.progress import Log, NamedProgress

COUNTED_FOLDER = "counted"  # of the trained codec, in the run's folder, before its rates are chosen
COUNTED = 1200  # pictures on which symbols are counted for the tables


def train_codec(job: Job, progress: NamedProgress, log: Log) -> None:
    """Train, evaluate on held-out pictures, and write codec.json, codec.safetensors and report.{json,png} to `job.out`.

    With adapters, also writes `model`: a whole checkpoint with the adapters merged into it, to which the codec belongs.
    Raises `UsageError` and its kinds for faults of model, data or questions, and `ResourceError`.
    """
    processes = ProcessGroup.join()
    warn = log  # every rank warns about its own share of the pictures
    if processes.rank:

        def log(text: str) -> None: ...

        def progress(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
            return items

    job.run.mkdir(parents=True, exist_ok=True)
    job.out.mkdir(parents=True, exist_ok=True)
    if job.lora:
        import peft  # noqa: F401  # fails now, and not hours later, if it is missing

        lora.require_disk_for(Checkpoint.open(job.model), job.out / "model")
    experiment = Experiment.open(job, processes, progress=progress, log=log, warn=warn)
    job = experiment.job  # with the settings that follow the amount of data
    if processes.rank == 0:
        training = {one.digest for one in experiment.training}
        held_out = {one.digest for one in [*experiment.choosing, *experiment.held_out]}
        saved = job.run / job.checkpoint
        settings.save(saved, experiment.training_settings, job.trained_on(experiment.questions), training, held_out)
    if job.index is None:
        _train_context(job, experiment, log)
    elif processes.rank == 0:
        _train_index(job, job.index, experiment, log)
    processes.barrier()
    _finish(job, experiment, log)
    processes.barrier()
    log(f"{job.out}: codec.json, codec.safetensors, report.json, report.png")


def _train_context(job: Job, experiment: Experiment, log: Log) -> None:
    """Train a codec with a context model through the decoder, and write it, with counted tables, to `run/counted`."""
    teacher = experiment.teacher
    if job.lora:
        torch.manual_seed(job.seed)  # of the adapters' first values
        teacher.adapt(job.lora)
    source = DistillationSource(
        teacher,
        experiment.training,
        experiment.answers,
        grid=experiment.grid,
        mix=job.mix,
        seed=job.seed,
        processes=experiment.processes,
    )
    model = _trained(job, experiment, source, log)
    if experiment.processes.rank:
        return
    table = source.grid.detach().cpu().numpy().astype(np.float16)
    grids = {side: table[teacher.first[side] : teacher.first[side] + side * side] for side in teacher.sides}
    log("counting symbols for the tables")
    weights = export(model, grids, table.shape[1], _views(experiment.training, job.seed))
    weights.save(job.run / COUNTED_FOLDER, experiment.model_id)


def _train_index(job: Job, recipe: IndexRecipe, experiment: Experiment, log: Log) -> None:
    """Train an index codec, without the decoder, and write it to `run/counted`."""
    digests = "".join(one.digest for one in experiment.training)
    weights = train_index(
        experiment.training,
        experiment.checkpoint,
        job.run / job.checkpoint,
        inputs={
            "model": experiment.model_id,
            "--dtype": job.dtype,
            "the pictures' id": hashlib.sha256(digests.encode()).hexdigest()[:12],
        },
        recipe=recipe,
        seed=job.seed,
        log=log,
    )
    weights.save(job.run / COUNTED_FOLDER, experiment.model_id)


def _trained(job: Job, experiment: Experiment, source: DistillationSource, log: Log) -> CodecModel:
    """Load the model if a run with the same inputs is finished; otherwise train it."""
    basis = _basis(job, experiment)
    inputs = {"model, answers and settings": basis}
    finished, note, state = job.run / "codec.pt", job.run / "codec.basis", None
    if finished.exists() and note.exists() and note.read_text(encoding="utf-8") == basis:
        # codec.pt lacks what was trained along with the codec: grid table and adapters.
        state = resume.load(job.run / job.checkpoint, train.settings_of(inputs, job.recipe, job.seed))
    if state is not None:
        model = train.new_model(job.recipe, source.projector.shape[1])
        model.load_state_dict(torch.load(finished, weights_only=True, map_location="cpu"))
        source.extra.load_state_dict(state["extra"])
        return model
    processes = experiment.processes
    model = train.train(source, job.run, inputs=inputs, recipe=job.recipe, seed=job.seed, processes=processes, log=log)
    if processes.rank == 0:
        note.write_text(basis, encoding="utf-8")
    return model


def _finish(job: Job, experiment: Experiment, log: Log) -> None:
    """Choose the rates of the codec in `run/counted`, and write codec and report."""
    weights = load_weights(job.run / COUNTED_FOLDER)
    config, costs = experiment.evaluate(Codec(weights))
    if experiment.processes.rank:
        return
    weights = replace(weights, config=config)
    report = experiment.report(costs)
    if job.index is None:
        report |= {"warm": job.recipe.warm, "recipe": job.recipe.stored(), "mix": asdict(job.mix)}
    else:
        report |= {"recipe": asdict(job.index)}
    json_text.write(job.out / "report.json", report)
    figure.draw(None if job.index else job.run / "codec.jsonl", report, job.out / "report.png")
    model_id = experiment.model_id
    if (adapters := experiment.teacher.adapters) is not None:
        weights.save(job.run / COUNTED_FOLDER, model_id)  # with its rates: merging may fail for want of memory or disk
        log("writing the adapted model")
        model_id = lora.merge(experiment.checkpoint, adapters.deltas(), job.out / "model")
    weights.save(job.out, model_id)
    for name, index in config.presets.items():
        one = costs[index]
        log(f"{name:7} {one.bytes:7.1f} B  divergence {one.divergence:.4f}  answers that agree {one.agreement:.3f}")


def _views(stored: Sequence[StoredPicture], seed: int) -> Iterable[tuple[NDArray[np.float32], float]]:
    """Yield the views that the tables are counted on, each with the share of features that merging keeps."""
    rng = np.random.default_rng([seed, 43])
    for one in stored[:COUNTED]:
        share = 1.0 if rng.random() < 0.6 else float(rng.uniform(0.2, 1.0))
        yield from ((view, share) for view in one.views())


def _basis(job: Job, experiment: Experiment) -> str:
    """Return an id of everything that the training depends on."""
    answers = {digest: experiment.answers[digest] for digest in sorted(one.digest for one in experiment.training)}
    of_model = [experiment.model_id, experiment.grid_id, job.dtype]
    of_job = [job.seed, job.lora, experiment.processes.size, job.recipe.stored(), asdict(job.mix)]
    return hashlib.sha256(json.dumps([of_model, *of_job, answers]).encode()).hexdigest()[:12]
