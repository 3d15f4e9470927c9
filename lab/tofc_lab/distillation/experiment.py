"""A checkpoint with a folder of pictures: features, questions and the model's own answers, ready to train or evaluate.

Promises that wrong input is an error before anything slow, and that features and answers are kept on disk as they are
computed. Leaves training a codec to `run`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, Self

import torch

from edge_server.engine.qwen3 import require_decoder_memory
from tofc.codec.codec import Codec
from tofc.codec.config import CodecConfig, Rate
from tofc.codec.files import load_config
from tofc.errors import CheckpointError, UsageError
from tofc.model.checkpoint import Checkpoint
from tofc.model.feature_codecs import check_codec_model
from tofc.model.generation import stop_tokens
from tofc.model.prompt import load_tokenizer
from tofc.model.torch_devices import check_device
from tofc.model.tower import Tower
from tofc_lab.codec.distributed import ProcessGroup
from tofc_lab.codec.entropy_model_trainer import BATCH as ENTROPY_BATCH
from tofc_lab.codec.index.train import IndexRecipe, settings_of
from tofc_lab.codec.train import CodecRecipe
from tofc_lab.distillation import answers, pictures, questions, settings
from tofc_lab.distillation.amount import Amount, described
from tofc_lab.distillation.evaluate import Cost, evaluate, feature_counts, grid_table, on_the_hull, rows
from tofc_lab.distillation.index_codec import own_codec
from tofc_lab.distillation.pictures import StoredPicture
from tofc_lab.distillation.source import Answers, DistillationMix
from tofc_lab.distillation.teacher import Teacher
from tofc_lab.progress import Log, NamedProgress, Progress


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training or an evaluation: its files and its settings."""

    model: Path
    data: Path
    run: Path
    out: Path
    questions: Path | None = None
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    tokens: int = 32  # of each answer, from its start, that the codec must preserve
    most_held_out: int = 100  # held-out pictures, and as many again on which rates are chosen
    lora: int = 0  # rank of adapters on the decoder; 0: none
    recipe: CodecRecipe = field(default_factory=CodecRecipe)
    mix: DistillationMix = field(default_factory=DistillationMix)
    index: IndexRecipe | None = None  # train this index codec, without the decoder, instead of `recipe`
    follow: frozenset[str] = frozenset()  # settings of the recipe that follow the amount of data (`amount`)

    def __post_init__(self) -> None:
        check_device(self.device)

    def sized(self, amount: Amount, processes: int) -> Self:
        """Return the job with the settings of `follow` chosen for an amount of data."""
        if self.index is not None:
            return replace(self, index=amount.index_recipe(self.index, self.follow), follow=frozenset())
        chosen: dict[str, Any] = {
            "steps": amount.decoder_steps(self.mix.batch * processes, self.recipe.steps),
            "entropy_steps": amount.entropy_steps(ENTROPY_BATCH * processes, self.recipe.entropy_steps),
        }
        recipe_of = replace(self.recipe, **{name: chosen[name] for name in self.follow})
        return replace(self, recipe=recipe_of, follow=frozenset())

    def described(self) -> str:
        """Return what will be trained, in words."""
        if self.index is not None:
            return described(self.index)
        return f"{self.recipe.steps} steps through the decoder, {self.recipe.entropy_steps} of the context model alone"

    @property
    def checkpoint(self) -> str:
        """The name of the training's checkpoint in `run`."""
        return settings.CHECKPOINT if self.index is None else settings.INDEX_CHECKPOINT

    def trained_on(self, asked: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
        """Return what the training depends on among the questions about each picture, by digest."""
        return asked if self.index is None else dict.fromkeys(asked, ())

    def evaluation_settings(self, count: int) -> dict[str, Any]:
        """Return the settings that change a report on `count` pictures, named by their options where they have one."""
        held_out = pictures.held_out(count, 2 * self.most_held_out)
        return {"--dtype": self.dtype, "--tokens": self.tokens, "pictures held out": held_out}

    def training_settings(self, count: int, model_id: str, processes: int) -> dict[str, Any]:
        """Return the settings that change a training on `count` pictures."""
        common = {"model": model_id, **self.evaluation_settings(count), "--seed": self.seed}
        if self.index is not None:
            return settings_of(common, self.index, self.seed)
        return {
            **common,
            "--lora": self.lora,
            "processes": processes,
            **{f"--{name}": value for name, value in (self.recipe.stored() | asdict(self.mix)).items()},
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Experiment:
    """A job's model, pictures, questions and the model's answers: everything but the codec. `open` makes one."""

    job: Job
    processes: ProcessGroup
    progress: NamedProgress
    checkpoint: Checkpoint
    model_id: str
    questions: Mapping[str, Sequence[str]]  # by digest, of every picture in the folder
    training: list[StoredPicture]
    choosing: list[StoredPicture]  # held-out pictures on which rates are chosen
    held_out: list[StoredPicture]  # those that are reported on
    teacher: Teacher
    grid: torch.Tensor | None  # the model's own grid table [G, H], where it has one
    answers: Answers

    @classmethod
    def open(
        cls,
        job: Job,
        processes: ProcessGroup,
        *,
        progress: NamedProgress,
        log: Log,
        warn: Log | None = None,
        codec: Path | None = None,
        beside: dict[str, Any] | None = None,
    ) -> Self:
        """Check the input, then compute the features and answers that are not on disk yet, which takes hours.

        Args:
            warn: takes warnings about single pictures; by default `log`.
            codec: the codec that will be evaluated; None where one will be trained.
            beside: the report that it will be compared with.

        Raises `UsageError` and its kinds, and `ResourceError`, before anything slow.
        """
        checkpoint = open_checkpoint(job.model)
        found = pictures.find(job.data)
        by_path = questions.read(job.questions, job.data, list(found.values()))
        device, dtype = processes.device(job.device), getattr(torch, job.dtype)
        load_tokenizer(checkpoint)  # fails now, and not hours later, if it cannot be loaded
        require_decoder_memory(checkpoint, str(device), dtype)
        if codec is None:
            kept = pictures.held_out(len(found), 2 * job.most_held_out)
            amount = Amount.of([found[digest] for digest in sorted(found)[kept:]], checkpoint.config)
            job = job.sized(amount, processes.size)
            log(f"{amount}: {job.described()}")
        log(f"{len(found)} pictures; computing the model's id")
        model_id = checkpoint.model_id
        by_digest = {digest: by_path[path] for digest, path in found.items()}
        if codec is None:
            given = job.training_settings(len(found), model_id, processes.size)
            settings.check(job.run / job.checkpoint, given, job.trained_on(by_digest))
        else:
            if beside is not None:
                _check_settings(beside, {"model_id": model_id, **job.evaluation_settings(len(found))})
            check_codec_model(codec, model_id)
            takes, has = load_config(codec).feature_dim, checkpoint.config.feature_dim
            if takes != has:
                raise UsageError(
                    f"the codec in {codec} takes features of {takes} numbers, {job.model} has {has}; name a codec of "
                    "this model"
                )

        def bar(what: str) -> Progress:
            return lambda items, total: progress(items, total, what)

        stored = pictures.encode_all(
            found,
            checkpoint.config,
            lambda: Tower(checkpoint, dtype, str(device)),
            job.run / "features" / f"{model_id}-{job.dtype}",
            processes,
            bar("features"),
            warn or log,
        )
        training, held_out = pictures.divide(stored, 2 * job.most_held_out)
        if len(held_out) == 1:
            log("one picture is held out: rates are chosen and reported on it; from 15 pictures on, two are held out")
        teacher = Teacher.open(checkpoint, device=device, dtype=dtype, ends=stop_tokens(checkpoint))
        grid = _own_grid(checkpoint, teacher)
        return cls(
            job=job,
            processes=processes,
            progress=progress,
            checkpoint=checkpoint,
            model_id=model_id,
            questions=by_digest,
            training=training,
            choosing=held_out[1::2] or held_out,  # not those that are reported on, unless there is only one
            held_out=held_out[::2],
            teacher=teacher,
            grid=grid,
            answers=answers.compute(
                job.run / "answers" / f"{model_id}-{job.dtype}-{job.tokens}{_grid_id(grid)}",
                teacher,
                {one.digest: one for one in [*training, *held_out]},
                by_digest,
                most=job.tokens,
                grid=teacher.no_grid() if grid is None else grid,
                processes=processes,
                progress=bar("answers"),
            ),
        )

    @property
    def reference(self) -> torch.Tensor:
        """The model's own grid table [G, H]; zeros if it has none."""
        return self.teacher.no_grid() if self.grid is None else self.grid

    @property
    def grid_id(self) -> str:
        """An id of the model's own grid table, on which answers depend; empty if it has none."""
        return _grid_id(self.grid)

    @property
    def evaluation_id(self) -> str:
        """An id of the held-out pictures, the questions about them and the model's own answers."""
        known = json.dumps([[one.digest, self.answers[one.digest]] for one in [*self.choosing, *self.held_out]])
        return hashlib.sha256(known.encode()).hexdigest()[:12]

    @property
    def training_settings(self) -> dict[str, Any]:
        """The settings of a training, as `settings` keeps them."""
        return self.job.training_settings(len(self.questions), self.model_id, self.processes.size)

    def evaluate(self, codec: Codec) -> tuple[CodecConfig, list[Cost]]:
        """Return a codec's configuration with the rates on the hull, and what these cost.

        Rates are chosen among every number of features at every quality, whatever rates the codec came with.
        """
        every = [(n, quality) for n in feature_counts(self.teacher) for quality in range(codec.config.qualities)]
        chosen = on_the_hull(codec.config, self._costs(codec, self.choosing, every))
        return chosen, self._costs(codec, self.held_out, chosen.rates)

    def _costs(self, codec: Codec, stored: Sequence[StoredPicture], rates: Sequence[Rate]) -> list[Cost]:
        def bar(items: Any, total: int) -> Any:
            return self.progress(items, total, "held-out")

        return evaluate(self.teacher, codec, stored, self.answers, self.reference, rates, bar, self.processes)

    def check_comparable(self, report: dict[str, Any]) -> None:
        """Raise `UsageError` if another codec's report is about other pictures, questions or answers."""
        if (theirs := report.get("judged on")) != self.evaluation_id:
            raise UsageError(
                f"the report to compare with was evaluated on {theirs}, this run evaluates on {self.evaluation_id}; "
                "use the same model, pictures, questions, --tokens, --judged and --dtype"
            )

    def report(self, costs: Sequence[Cost]) -> dict[str, Any]:
        """Return the report as JSON, without the settings of a training."""
        return {
            "model_id": self.model_id,
            "date": date.today().isoformat(),
            "judged on": self.evaluation_id,
            "settings": self.job.evaluation_settings(len(self.questions)),
            "seed": self.job.seed,
            "pictures": {
                "training": len(self.training),
                "choosing rates": len(self.choosing),
                "held out": len(self.held_out),
            },
            "questions": {
                "training": sum(len(self.answers[one.digest]) for one in self.training),
                "held out": sum(len(self.answers[one.digest]) for one in self.held_out),
            },
            "rates": rows(costs),
        }


def open_checkpoint(model: Path) -> Checkpoint:
    """Open a whole checkpoint. Raises `CheckpointError` for half of one."""
    checkpoint = Checkpoint.open(model)
    if checkpoint.side is not None:
        raise CheckpointError(f"{model} is the {checkpoint.side} half of a model; a whole one is needed")
    return checkpoint


def _own_grid(checkpoint: Checkpoint, teacher: Teacher) -> torch.Tensor | None:
    """Return the model's own grid table [G, H], where it has one."""
    codec = own_codec(checkpoint)
    return None if codec is None else grid_table(teacher, codec)


def _grid_id(grid: torch.Tensor | None) -> str:
    return "" if grid is None else "-" + hashlib.sha256(grid.cpu().numpy().tobytes()).hexdigest()[:8]


def _check_settings(report: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise `UsageError` if the report to compare with was made with other settings than `here`."""
    there = {"model_id": report.get("model_id"), **report.get("settings", {})}  # without settings: an older report
    differ = [f"{name} was {value}, is {here.get(name)}" for name, value in there.items() if value != here.get(name)]
    if differ:
        raise UsageError(f"the report to compare with was made with other settings: {'; '.join(differ)}")
