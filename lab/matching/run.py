"""A checkpoint and a folder of pictures → a codec for that checkpoint, with a report.

    pictures ─ tower ─ features on disk ─┐
    questions ───────────────────────────┴─ decoder's own answers ─ training ─ tables ─ held-out report ─ codec files

Promises that every part is resumable and that nothing but the codec is trained; leaves the parts to their modules.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge_server.engine.qwen3 import need_room
from lab import resume
from lab.codec import train
from lab.codec.export import export
from lab.codec.team import Team
from lab.matching import figure, lora, pictures, questions, settings
from lab.matching.judge import Cost, counts, grid_table, judge, on_the_hull, rows
from lab.matching.pictures import Seen, Track
from lab.matching.source import Asked, MatchingSource, Mix, merged
from lab.matching.teacher import Teacher
from shared import json_text
from shared.codec.codec import Codec
from shared.codec.weights import CodecConfig, CodecWeights, Rate
from shared.model.checkpoint import Checkpoint, CheckpointError, check_codec_model
from shared.model.device import devices
from shared.model.generation import stop_tokens
from shared.model.prompt import load_tokenizer
from shared.model.tensor_files import read_metadata
from shared.model.tower import Tower

NamedTrack = Callable[[Iterable[Any], int, str], Iterable[Any]]
COUNTED = 1200  # pictures that the tables are filled from


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be done. ``tokens`` of each answer are matched; ``lora`` is the rank of adapters, 0 for none."""

    model: Path
    data: Path
    run: Path
    out: Path
    questions: Path | None = None
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    tokens: int = 32
    judged: int = 100  # held-out pictures at most, and as many to choose rates on
    lora: int = 0
    recipe: train.Recipe = field(default_factory=train.Recipe)
    mix: Mix = field(default_factory=Mix)

    def __post_init__(self) -> None:
        if self.device not in (found := devices()):
            raise ValueError(f"--device {self.device} is not there; torch finds on this machine: {', '.join(found)}")


class Bench:
    """A job's model, pictures, questions and the model's answers: everything but the codec."""

    def __init__(
        self,
        job: Job,
        team: Team,
        track: NamedTrack,
        say: Callable[[str], None],
        complain: Callable[[str], None] | None = None,
        codec: Path | None = None,
        beside: dict[str, Any] | None = None,
    ) -> None:
        """``codec``: the one that will be judged, ``beside``: the report that it will be compared with.

        Those of another model or of other settings are refused before anything slow.
        """
        self.job, self.team, self.track = job, team, track
        self.checkpoint = Checkpoint.open(job.model)
        if self.checkpoint.side is not None:
            raise CheckpointError(f"{job.model} is the {self.checkpoint.side} half of a model; a whole one is needed")
        found = pictures.find(job.data)
        ask = questions.read(job.questions, job.data, list(found.values()))  # before anything slow
        device, dtype = team.device(job.device), getattr(torch, job.dtype)
        load_tokenizer(self.checkpoint)  # here, too, only to hear now of what is wrong
        need_room(self.checkpoint, str(device), dtype)
        say(f"{len(found)} pictures; identifying the model")
        self.model_id = self.checkpoint.model_id
        self.ask = {digest: ask[path] for digest, path in found.items()}
        if codec is None:
            settings.check(job.run, self.settings, self.ask)
        else:
            if beside is not None:
                self._check_settings(beside)
            check_codec_model(codec, self.model_id)
            takes, has = CodecConfig.load(codec).feature_dim, self.checkpoint.config.feature_dim
            if takes != has:
                raise ValueError(f"the codec in {codec} takes features of {takes}, {job.model} has {has}")
        folder = job.run / "features" / f"{self.model_id}-{job.dtype}"

        def open_tower() -> Tower:
            return Tower(self.checkpoint, dtype, str(device))

        config, tell = self.checkpoint.config, complain or say
        seen = pictures.look(found, config, open_tower, folder, team, self._track("features"), tell)
        self.training, held_out = pictures.divide(seen, 2 * job.judged)
        # Rates are chosen on other pictures than they are reported on, where there are two.
        self.held_out, self.choosing = held_out[::2], held_out[1::2] or held_out
        if len(held_out) == 1:
            say("one picture is held out: rates are chosen and reported on it; from 15 on there are two")
        ends = stop_tokens(self.checkpoint)
        self.teacher = Teacher(self.checkpoint, device=device, dtype=dtype, ends=ends)
        self.grid = self._own_grid()
        self.reference = torch.zeros(self.teacher.cells, self.checkpoint.config.hidden, device=device)
        if self.grid is not None:
            self.reference = self.grid
        self.seen = {one.digest: one for one in [*self.training, *self.choosing, *self.held_out]}
        self.asked = self._answers(self.ask)

    @property
    def judging(self) -> dict[str, Any]:
        """What was asked of a report and changes it, by the names of options where there are some."""
        job = self.job
        held_out = pictures.held_out(len(self.ask), 2 * job.judged)
        return {"--dtype": job.dtype, "--tokens": job.tokens, "pictures held out": held_out}

    @property
    def settings(self) -> dict[str, Any]:
        """Of a training."""
        job = self.job
        return {
            "model": self.model_id,
            **self.judging,
            "--seed": job.seed,
            "--lora": job.lora,
            "processes": self.team.size,
            **{f"--{name}": value for name, value in (asdict(job.recipe) | asdict(job.mix)).items()},
        }

    def _track(self, what: str) -> Track:
        return lambda items, total: self.track(items, total, what)

    def _own_grid(self) -> torch.Tensor | None:
        """That of a codec beside the model which names no model: this one was trained with it.

        Codecs that name theirs came later, and what they add is no part of the model's own answers.
        """
        codec = self.checkpoint.path / "codec.safetensors"
        if not codec.exists() or "model_id" in read_metadata(codec):
            return None
        return grid_table(self.teacher, Codec.load(self.checkpoint.path))

    def _answers(self, ask: Mapping[str, Sequence[str]]) -> Asked:
        """The model's own answers, kept on disk picture by picture."""
        folder = self.job.run / "answers" / f"{self.model_id}-{self.job.dtype}-{self.job.tokens}{self.grid_id}"
        folder.mkdir(parents=True, exist_ok=True)
        files = {digest: folder / f"{digest}.json" for digest in self.seen}
        known = {digest: json.loads(file.read_bytes()) for digest, file in files.items() if file.exists()}
        # Shared out before looking at what is there: others write meanwhile.
        shared = sorted(self.seen)[self.team.rank :: self.team.size]
        mine = [digest for digest in shared if set(ask[digest]) - set(known.get(digest, {}))]
        for digest in self._track("answers")(mine, len(mine)):
            lacking = [question for question in ask[digest] if question not in known.get(digest, {})]
            given = self.teacher.answer(merged(self.seen[digest]), lacking, self.job.tokens, self.reference)
            partial = files[digest].with_suffix(".partial")
            told = json.dumps(known.get(digest, {}) | dict(zip(lacking, given, strict=True)))
            partial.write_text(told, encoding="utf-8")
            partial.replace(files[digest])
        self.team.wait()
        found = {digest: json.loads(file.read_bytes()) for digest, file in files.items()}
        return {digest: [(q, tuple(found[digest][q])) for q in ask[digest]] for digest in self.seen}

    def judge(self, codec: Codec) -> tuple[CodecConfig, list[Cost]]:
        """A codec's configuration with the rates that are worth having, and what these cost and spoil.

        They are chosen among every number of features with every quality, whatever rates it came with.
        """
        every = [(n, quality) for n in counts(self.teacher) for quality in range(codec.config.qualities)]
        chosen = on_the_hull(codec.config, self._costs(codec, self.choosing, every))
        return chosen, self._costs(codec, self.held_out, chosen.rates)

    def _costs(self, codec: Codec, seen: Sequence[Seen], rates: Sequence[Rate]) -> list[Cost]:
        return judge(self.teacher, codec, seen, self.asked, self.reference, rates, self._track("held-out"), self.team)

    @property
    def grid_id(self) -> str:
        """Of the model's own grid, which answers depend on; empty without one."""
        if self.grid is None:
            return ""
        return "-" + hashlib.sha256(self.grid.cpu().numpy().tobytes()).hexdigest()[:8]

    @property
    def judged_on(self) -> str:
        """Names the held-out pictures with all questions about them and the model's own answers."""
        told = json.dumps([[one.digest, self.asked[one.digest]] for one in [*self.choosing, *self.held_out]])
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    def _check_settings(self, report: dict[str, Any]) -> None:
        told = {"model_id": report.get("model_id"), **report.get("settings", {})}
        here = {"model_id": self.model_id, **self.judging}
        differ = [f"{name} was {value}, is {here.get(name)}" for name, value in told.items() if value != here.get(name)]
        if differ:
            raise ValueError(f"the report to compare with was made with other settings: {'; '.join(differ)}")

    def check_comparable(self, report: dict[str, Any]) -> None:
        """Raises ``ValueError`` where another codec's report is not of what this bench judges on."""
        if (theirs := report.get("judged on")) != self.judged_on:
            raise ValueError(
                f"the report to compare with was judged on {theirs}, here it is {self.judged_on}; that takes the same "
                "model, pictures, questions, --tokens, --judged and --dtype"
            )

    def report(self, costs: Sequence[Cost]) -> dict[str, Any]:
        """The frame of a report in JSON."""
        return {
            "model_id": self.model_id,
            "date": date.today().isoformat(),
            "judged on": self.judged_on,
            "settings": self.judging,
            "seed": self.job.seed,
            "pictures": {
                "training": len(self.training),
                "choosing rates": len(self.choosing),
                "held out": len(self.held_out),
            },
            "questions": {
                "training": sum(len(self.asked[one.digest]) for one in self.training),
                "held out": sum(len(self.asked[one.digest]) for one in self.held_out),
            },
            "rates": rows(costs),
        }


def train_codec(job: Job, track: NamedTrack, say: Callable[[str], None]) -> None:
    """Train, judge on held-out pictures and write ``job.out``: codec.json, codec.safetensors, report.json, report.png.

    With adapters also ``model``, a whole checkpoint with them inside, which the codec is for.

    Raises ``CheckpointError``, ``RoomError``, ``ValueError`` for what is wrong with model, data or questions.
    """
    team = Team()
    complain = say  # about a member's own share, so all may
    if team.rank:

        def say(text: str) -> None: ...

        def track(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
            return items

    job.run.mkdir(parents=True, exist_ok=True)
    job.out.mkdir(parents=True, exist_ok=True)
    if job.lora:
        import peft  # noqa: F401  # only to hear now, not hours later, that it is missing

        lora.need_room(Checkpoint.open(job.model), job.out / "model")
    bench = Bench(job, team, track, say, complain)
    if job.lora:
        bench.teacher.adapt(job.lora)
    source = MatchingSource(
        bench.teacher, bench.training, bench.asked, grid=bench.grid, mix=job.mix, seed=job.seed, team=team
    )
    basis = _basis(job, bench)
    if team.rank == 0:
        training, held_out = ({one.digest for one in some} for some in (bench.training, bench.held_out))
        held_out |= {one.digest for one in bench.choosing}
        settings.save(job.run, bench.settings, bench.ask, training, held_out)
    finished = job.run / "codec.pt"
    note, state = job.run / "codec.basis", None
    if finished.exists() and note.exists() and note.read_text(encoding="utf-8") == basis:
        state = resume.load(job.run / settings.CHECKPOINT, basis)  # what was trained beside the codec is there alone
    if state is not None:
        model = train.new_model(job.recipe, source.projector.shape[1])
        model.load_state_dict(torch.load(finished, weights_only=True, map_location="cpu"))
        source.extra.load_state_dict(state["extra"])
    else:
        model = train.train(
            source, job.run, basis=basis, recipe=job.recipe, seed=job.seed, team=team, log=lambda text, **_: say(text)
        )
        if team.rank == 0:
            note.write_text(basis, encoding="utf-8")
    _finish(job, bench, source, model, say)
    team.wait()
    say(f"{job.out}: codec.json, codec.safetensors, report.json, report.png")


def _finish(job: Job, bench: Bench, source: MatchingSource, model: Any, say: Callable[[str], None]) -> None:
    table = source.grid.detach().cpu().numpy().astype(np.float16)
    teacher = bench.teacher
    grids = {side: table[teacher.first[side] : teacher.first[side] + side * side] for side in teacher.sides}
    counted = job.run / "counted"
    if bench.team.rank == 0:
        say("counting symbols for the tables")
        export(model, grids, table.shape[1], _views(bench.training, job.seed)).save(counted, bench.model_id)
    bench.team.wait()
    weights = CodecWeights.load(counted)
    config, costs = bench.judge(Codec(weights))
    if bench.team.rank:
        return
    weights = replace(weights, config=config)
    model_id = bench.model_id
    if (adapters := teacher.adapters) is not None:
        say("writing the adapted model")
        model_id = lora.merge(bench.checkpoint, adapters.deltas(), job.out / "model")
    weights.save(job.out, model_id)
    report = bench.report(costs) | {"warm": job.recipe.warm, "recipe": asdict(job.recipe), "mix": asdict(job.mix)}
    json_text.write(job.out / "report.json", report)
    figure.draw(job.run / "codec.jsonl", report, job.out / "report.png")
    for name, index in config.presets.items():
        one = costs[index]
        say(f"{name:7} {one.bytes:7.1f} B  divergence {one.divergence:.4f}  answers that agree {one.agreement:.3f}")


def _views(seen: Sequence[Seen], seed: int) -> Iterable[tuple[NDArray[np.float32], float]]:
    rng = np.random.default_rng([seed, 43])
    for one in seen[:COUNTED]:
        share = 1.0 if rng.random() < 0.6 else float(rng.uniform(0.2, 1.0))
        yield from ((view, share) for view in one.views())


def _basis(job: Job, bench: Bench) -> str:
    """Names everything that the training depends on."""
    asked = {digest: bench.asked[digest] for digest in sorted(one.digest for one in bench.training)}
    of_model = [bench.model_id, bench.grid_id, job.dtype]
    said = json.dumps([of_model, job.seed, job.lora, bench.team.size, asdict(job.recipe), asdict(job.mix), asked])
    return hashlib.sha256(said.encode()).hexdigest()[:12]
