"""Training a codec for any checkpoint: pictures, questions and the teacher, on a tiny random checkpoint.

The training itself needs `make lab`; its parts do not.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from edge_server.engine.qwen3 import load_qwen3
from tests.e2e.conftest import MODEL, PICTURES
from tests.lab.conftest import through
from tofc.codec.codec import Codec
from tofc.codec.fake import fake_weights
from tofc.codec.merge import merge
from tofc.errors import CheckpointError, ResourceError, UsageError
from tofc.model.checkpoint import Checkpoint
from tofc.model.projector import Projector
from tofc.model.prompt import PictureLayout, Turn, build
from tofc.model.tower import Tower
from tofc_lab.checkpoint import fake
from tofc_lab.checkpoint.split import split
from tofc_lab.cli import app
from tofc_lab.codec.distributed import ProcessGroup
from tofc_lab.codec.places import places_of
from tofc_lab.distillation import questions
from tofc_lab.distillation.evaluate import Cost, compare, delta_rate, evaluate, grid_table, on_the_hull
from tofc_lab.distillation.index_codec import own_codec
from tofc_lab.distillation.pictures import StoredPicture, divide, encode_all, find
from tofc_lab.distillation.source import DistillationMix, DistillationSource, merged
from tofc_lab.distillation.teacher import Teacher

QUESTIONS = ("how many cats are there?", "what is in the picture?", "is the dog left of the tree?")


PROCESS = """
import sys
from pathlib import Path

from tofc_lab.codec.train import CodecRecipe
from tofc_lab.distillation.experiment import Job
from tofc_lab.distillation.run import train_codec
from tofc_lab.distillation.source import DistillationMix

model, data, run = map(Path, sys.argv[1:])
recipe = CodecRecipe(
    components=6, hidden=8, warm=2, steps=2, entropy_steps_per_step=1, entropy_steps=3, measured=2, bits=(8.0, 16.0)
)
mix = DistillationMix(batch=1, turns=2)
job = Job(
    model=model, data=data, run=run, out=run / "codec", tokens=2, lora=2, recipe=recipe, mix=mix
)
train_codec(job, lambda items, *_: items, print)
"""


class Half(ProcessGroup):
    """One of two processes, the other of which has finished."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank, self.size, self.others = rank, 2, np.zeros(1)

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        self.found = values
        return values + self.others


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures, one of them in crops, and one file that is not a picture."""
    folder: Path = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number, size in enumerate([(336, 300), (200, 336), (500, 260)]):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 nothing more")
    (folder / "again.png").write_bytes((folder / "0.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def seen(checkpoint: Checkpoint, data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[StoredPicture]:
    logged: list[str] = []
    folder = tmp_path_factory.mktemp("features")
    found = encode_all(
        find(data), checkpoint.config, lambda: Tower(checkpoint), folder, ProcessGroup(), through, logged.append
    )
    assert len(logged) == 1 and "broken.jpg" in logged[0]

    def no_tower() -> Tower:
        raise AssertionError("everything has been computed")

    pictures = {one.digest: one.path for one in found}
    assert encode_all(pictures, checkpoint.config, no_tower, folder, ProcessGroup(), through, logged.append) == found
    return found


@pytest.fixture(scope="module")
def teacher(checkpoint: Checkpoint) -> Teacher:
    return Teacher.open(checkpoint, device=torch.device("cpu"), dtype=torch.float32, ends=[2])


@pytest.fixture(scope="module")
def run() -> Any:
    """The module that trains, which needs `make lab`."""
    pytest.importorskip("tofc_lab.codec.compressai_parts", exc_type=ImportError)
    pytest.importorskip("matplotlib")
    return importlib.import_module("tofc_lab.distillation.run")


def zeros(teacher: Teacher) -> torch.Tensor:
    return torch.zeros(teacher.cells, 32)


def test_copies_count_once_and_some_pictures_are_held_out(data: Path, seen: list[StoredPicture]) -> None:
    assert len(find(data)) == 4 and len(seen) == 3  # `again` is a copy, `broken` is not a picture
    training, held_out = divide(seen, 200)
    assert len(held_out) == 1 and {one.digest for one in [*training, *held_out]} == {one.digest for one in seen}
    crops = next(one for one in seen if one.rows)
    assert len(crops.sides) == crops.rows * crops.columns + 1 and crops.sides[-1] == 6


def test_folders_without_pictures_and_small_disks_are_errors(
    checkpoint: Checkpoint, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="has 0 different pictures"):
        find(tmp_path)
    with pytest.raises(UsageError, match="is not a folder"):
        find(data / "0.png")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 0}))
    with pytest.raises(ResourceError, match="the features of the pictures needs"):
        encode_all(find(data), checkpoint.config, lambda: Tower(checkpoint), tmp_path, ProcessGroup(), through, print)


def test_questions_come_from_a_file_or_are_general(data: Path, tmp_path: Path) -> None:
    pictures = [data / "0.png", data / "1.png"]
    assert questions.read(None, data, pictures) == dict.fromkeys(pictures, questions.GENERAL)
    lines = tmp_path / "questions.txt"
    lines.write_text("one?\n\n two? \n")
    assert questions.read(lines, data, pictures) == dict.fromkeys(pictures, ("one?", "two?"))
    own = tmp_path / "questions.jsonl"
    own.write_text('{"image": "1.png", "question": "why?"}\n')
    found = questions.read(own, data, pictures)
    assert found == {pictures[0]: questions.GENERAL, pictures[1]: ("why?",)}
    own.write_text('{"image": "again.png", "question": "who?"}\n')  # a copy of the first
    assert questions.read(own, data, pictures) == {pictures[0]: ("who?",), pictures[1]: questions.GENERAL}


@pytest.mark.parametrize("name", ["questions.txt", "questions.jsonl", "QUESTIONS.JSONL"])
@pytest.mark.parametrize(
    ("start", "between", "end"),
    [("\ufeff", "\r\n", "\r\n"), ("\ufeff", "\n\ufeff", ""), ("", "\r", "\r"), ("\n", "\n\n", "")],
)
def test_questions_are_read_with_any_line_ends_and_byte_order_mark(
    data: Path, tmp_path: Path, name: str, start: str, between: str, end: str
) -> None:
    asked = ["où est\u2028le chat?", "two\x85 cats?"]
    lines = asked
    if not name.endswith("txt"):
        lines = [json.dumps({"image": "0.png", "question": one}, ensure_ascii=False) for one in asked]
    (tmp_path / name).write_bytes((start + between.join(lines) + end).encode())
    assert questions.read(tmp_path / name, data, [data / "0.png"]) == {data / "0.png": tuple(asked)}


@pytest.mark.parametrize("name", ["questions.txt", "questions.jsonl"])
def test_questions_that_are_not_utf_8_are_refused_in_any_locale(data: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text('{"image": "0.png", "question": "why?"}\n', encoding="utf-16")
    with pytest.raises(ValueError, match="is UTF-16 text; save it as UTF-8"):
        questions.read(file, data, [data / "0.png"])
    file.write_bytes(b'{"image": "0.png", "question": "why?"}\n{"image": "0.png", "question": "caf\xe9?"}\n')
    with pytest.raises(ValueError, match="line 2: not UTF-8 text at character"):
        questions.read(file, data, [data / "0.png"])
    # Independent of the locale: with ASCII, Python would not read é.
    file.write_bytes('{"image": "0.png", "question": "café?"}\n'.encode())
    ask = f"from pathlib import Path; from tofc_lab.distillation import questions; p = Path({str(data / '0.png')!r}); "
    ask += f"print(ascii(questions.read(Path({str(file)!r}), p.parent, [p])[p]))"
    narrow = os.environ | {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", ask], env=narrow, capture_output=True, text=True, check=True)
    assert "caf\\xe9?" in done.stdout


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", r"line 1: expected \{"),
        ("[" * 99_999, r"line 1: expected \{"),
        ('{"image": "0.png", "question": "\\ud800"}', "line 1: the question is not UTF-8 text at character 1"),
        ('{"image": "' + "a" * 300 + '", "question": "why?"}', "is not in"),
        ('{"image": "\\u0000.png", "question": "why?"}', "is not in"),
        ('{"image": "0.png"}', r"line 1: expected \{"),
        ('{"image": "7.png", "question": "why?"}', r"line 1: 7\.png is not in"),
        ('{"image": "0.png", "question": " "}', "line 1: image and question must be non-empty texts"),
    ],
)
def test_a_bad_line_of_questions_is_named(data: Path, tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        questions.read(file, data, [data / "0.png"])


@torch.no_grad()
def test_questions_in_one_sequence_have_the_logits_of_single_prompts(
    checkpoint: Checkpoint, teacher: Teacher, seen: list[StoredPicture]
) -> None:
    model, projector = load_qwen3(checkpoint), Projector(checkpoint)
    asked = [[(question, (5 + i, 9)) for i, question in enumerate(QUESTIONS)] for _ in seen]
    packed = teacher.pack([merged(one) for one in seen], asked)
    found = teacher.logits(packed, packed.features, zeros(teacher))
    assert packed.answers.tolist() == [token for one in asked for _, answer in one for token in answer]
    expected = []
    for one, questions_of in zip(seen, asked, strict=True):
        *crops, whole = (side * side for side in one.sides)
        layout = PictureLayout(rows=one.rows, columns=one.columns, crops=tuple(crops), whole=whole)
        rows = torch.from_numpy(projector.project(np.concatenate(one.views())))
        for question, answer in questions_of:
            tokens = build(teacher.tokenizer, [Turn(role="user", text=question)], [layout])
            embeds = model.get_input_embeddings()(torch.tensor([tokens.ids + list(answer)]))
            embeds[0, torch.from_numpy(tokens.feature_positions)] = rows
            expected.append(model(inputs_embeds=embeds).logits[0, -len(answer) - 1 : -1])
    torch.testing.assert_close(found, torch.cat(expected), atol=2e-4, rtol=1e-3)


@torch.no_grad()
def test_the_teacher_s_answers_are_the_greedy_ones(
    checkpoint: Checkpoint, teacher: Teacher, seen: list[StoredPicture]
) -> None:
    model, projector = load_qwen3(checkpoint), Projector(checkpoint)
    answers = teacher.answer(merged(seen[0]), QUESTIONS, 5, zeros(teacher))
    shown = merged(seen[0])
    for question, answer in zip(QUESTIONS, answers, strict=True):
        tokens = build(teacher.tokenizer, [Turn(role="user", text=question)], [shown.layout])
        embeds = model.get_input_embeddings()(torch.tensor([tokens.ids]))
        embeds[0, torch.from_numpy(tokens.feature_positions)] = torch.from_numpy(projector.project(shown.features))
        generated = model.generate(inputs_embeds=embeds, max_new_tokens=5, do_sample=False, eos_token_id=2)
        assert list(answer) == generated[0].tolist()[: len(answer)]
        assert len(answer) == 5 or answer[-1] == 2


@torch.no_grad()
def test_answers_with_a_cache_are_those_of_whole_sequences(tmp_path: Path) -> None:
    """Read nano's answers again in one sequence with picture and questions: each token is the most likely one."""
    checkpoint = Checkpoint.open(MODEL)
    chosen = {name: PICTURES / f"picture-{name}.jpg" for name in ("00", "11")}  # the second one in crops
    stored = encode_all(
        chosen, checkpoint.config, lambda: Tower(checkpoint), tmp_path, ProcessGroup(), through, lambda _: None
    )
    teacher = Teacher.open(checkpoint, device=torch.device("cpu"), dtype=torch.float32, ends=[])
    codec = own_codec(checkpoint)
    assert codec is not None
    grid = grid_table(teacher, codec)
    for one in stored:
        answers = teacher.answer(merged(one), questions.GENERAL, 12, grid)
        assert [len(answer) for answer in answers] == [12] * len(questions.GENERAL)
        packed = teacher.pack([merged(one)], [list(zip(questions.GENERAL, answers, strict=True))])
        found = teacher.logits(packed, packed.features, grid).argmax(-1)
        assert found.tolist() == [token for answer in answers for token in answer]


def test_a_model_s_own_grid_is_kept_and_otherwise_one_is_learned(teacher: Teacher, seen: list[StoredPicture]) -> None:
    asked = {one.digest: [(question, (7,)) for question in QUESTIONS] for one in seen}
    mix = DistillationMix(batch=2, turns=2, merged=1.0)
    own = torch.randn(teacher.cells, 32)
    kept = DistillationSource(teacher, seen, asked, grid=own, mix=mix, seed=0, processes=ProcessGroup())
    assert not list(kept.extra.parameters()) and torch.equal(kept.grid, own)
    learned = DistillationSource(teacher, seen, asked, grid=None, mix=mix, seed=0, processes=ProcessGroup())
    batch, counted = next(learned.batches(3))
    again, _ = next(learned.batches(3))
    assert torch.equal(batch.features, again.features) and not counted
    assert len(batch.features) < len(batch.whole.features)
    assert batch.coded.answers.tolist() == batch.whole.answers.tolist()
    (grid,) = learned.extra.parameters()
    learned.logits(batch, batch.features).square().sum().backward()
    assert grid.grad is not None and grid.grad.abs().sum() > 0
    assert not learned.wanted(batch).requires_grad


def test_real_packets_are_evaluated_and_only_rates_on_the_hull_stay(
    teacher: Teacher, seen: list[StoredPicture], monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = Codec(fake_weights(D=128, M=24, H=32, Q=3))
    asked = {
        one.digest: list(zip(QUESTIONS, teacher.answer(merged(one), QUESTIONS, 3, zeros(teacher)), strict=True))
        for one in seen
    }
    rates = [(None, 2), (4, 0)]
    fine, coarse = evaluate(teacher, codec, seen, asked, zeros(teacher), rates, through, ProcessGroup())
    packets = [codec.packets([codec.code(view, None, 2) for view in one.views()]) for one in seen]
    assert fine.bytes == round(sum(len(packet) for each in packets for packet in each) / 3, 1)
    assert fine.bytes > coarse.bytes > 0 and fine.divergence > 0 and 0 <= fine.agreement <= 1
    again = evaluate(teacher, codec, seen, asked, zeros(teacher), rates, through, ProcessGroup())
    assert again == [fine, coarse]
    first, other = Half(0), Half(1)
    evaluate(teacher, codec, seen, asked, zeros(teacher), rates, through, other)
    first.others = other.found
    assert evaluate(teacher, codec, seen, asked, zeros(teacher), rates, through, first) == [
        replace(one, divergence=pytest.approx(one.divergence)) for one in (fine, coarse)
    ]
    monkeypatch.setattr("tofc_lab.distillation.teacher.AT_ONCE", 2)  # of three
    assert evaluate(teacher, codec, seen, asked, zeros(teacher), rates, through, ProcessGroup()) == [
        replace(one, divergence=pytest.approx(one.divergence, rel=1e-4)) for one in (fine, coarse)
    ]
    for one in seen:
        answers = teacher.answer(merged(one), QUESTIONS, 3, zeros(teacher))
        assert list(zip(QUESTIONS, answers, strict=True)) == asked[one.digest]
    config = on_the_hull(codec.config, [fine, coarse])
    assert set(config.rates) <= set(rates) and config.presets.keys() == {"low", "medium", "high", "max"}


def test_a_projection_decides_what_is_merged_and_the_features_are_averaged(seen: list[StoredPicture]) -> None:
    one = next(one for one in seen if one.rows)
    plain, first = merged(one, 0.5), merged(one, 0.5, lambda view: view[:, :1])
    assert plain.cells.tolist() != first.cells.tolist()
    rows, cells = iter(first.features), iter(first.cells.tolist())
    for view in one.views():
        found = merge(view[:, :1], round(len(view) * 0.5))
        assert [next(cells) for _ in found.centres] == found.centres.tolist()
        for wanted in found.means(view):
            np.testing.assert_array_equal(next(rows), wanted)
    assert next(rows, None) is None
    whole = merged(one, 1.0, lambda view: view[:, :1])
    assert (whole.features == np.concatenate(one.views())).all()


def test_features_of_a_batch_know_their_neighbours(teacher: Teacher, seen: list[StoredPicture]) -> None:
    asked = {one.digest: [(question, (7,)) for question in QUESTIONS] for one in seen}
    source = DistillationSource(
        teacher, seen, asked, grid=zeros(teacher), mix=DistillationMix(), seed=0, processes=ProcessGroup()
    )
    shown = [merged(one, share) for one, share in zip(seen, (1.0, 0.5, 0.2), strict=True)]
    views = [view for one in shown for view in one.views()]
    packed = teacher.pack(shown, [[(QUESTIONS[0], (5,))] for _ in seen])
    assert [cells.tolist() for _, cells in views] == [
        cells.tolist() for one, share in zip(seen, (1.0, 0.5, 0.2), strict=True) for cells in centres(one, share)
    ]
    assert [side for side, _ in views] == [side for one in seen for side in one.sides]
    wanted = places_of(views)
    assert torch.equal(packed.places.around, wanted.around) and torch.equal(packed.places.stage, wanted.stage)
    pool = source.pool(lambda view: view)
    assert len(pool) == sum(len(cells) for _, cells in pool.views) and len(pool.views) == len(views)
    assert {len(cells) == side**2 for side, cells in pool.views} == {True, False}  # merged ones and others


def centres(one: StoredPicture, share: float) -> list[Any]:
    return [merge(view, max(min(2, len(view)), round(len(view) * share))).centres for view in one.views()]


def test_bytes_at_equal_divergence() -> None:
    rows = [{"bytes": 10.0 * 2**i, "divergence": 0.5**i} for i in range(5)]
    dearer = [row | {"bytes": row["bytes"] * 1.1} for row in rows]
    assert delta_rate(dearer, rows) == pytest.approx(1.1) and delta_rate(rows, dearer[1:-1]) == pytest.approx(1 / 1.1)
    assert delta_rate(rows, [row | {"divergence": row["divergence"] / 100} for row in rows]) is None
    reports = [{"rates": [row | {"agreement": 0.8} for row in one]} for one in (rows, dearer)]
    found = compare(*reports)
    assert found["report"] == reports[1] and found["bytes at equal divergence"] == 1.1
    assert found["bytes where so many answers agree"] == {
        **{share: [11.0, 10.0] for share in ("0.75", "0.8")},
        **{share: [None, None] for share in ("0.85", "0.9", "0.95")},
    }


def test_too_little_memory_is_an_error_before_the_decoder_is_read(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tofc.model.resources.free_memory_bytes", lambda: 1000)
    with pytest.raises(ResourceError, match=r"the decoder in float32 needs [\d.]+ MB of memory and 0\.0 MB are free"):
        Teacher.open(checkpoint, device=torch.device("cpu"), dtype=torch.float32, ends=[2])
    with pytest.raises(ResourceError, match=r"the vision tower in int8 needs [\d.]+ MB of memory"):
        Tower(checkpoint, torch.int8)
    Tower(checkpoint, torch.float32)  # in the stored type: it is mapped from its file


def test_wrong_input_is_an_error_before_the_features(
    run: Any, checkpoint: Checkpoint, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = run.Job(model=checkpoint.path, data=data, run=tmp_path / "run", out=tmp_path / "codec", lora=2)
    with monkeypatch.context() as small:
        small.setattr("tofc.model.resources.free_memory_bytes", lambda: 1000)
        with pytest.raises(ResourceError, match="the decoder in float32 needs"):
            run.train_codec(job, through, print)
    with monkeypatch.context() as small:
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        small.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(ResourceError, match="the adapted model needs"):
            run.train_codec(job, through, print)
    own = shutil.copytree(checkpoint.path, tmp_path / "own")
    tokenizer = own / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("<patch_newline>", "<patch_other>"))
    with pytest.raises(CheckpointError, match="no token <patch_newline>"):
        run.train_codec(replace(job, model=own), through, print)
    assert not list(tmp_path.rglob("*.npz"))


def test_a_grid_is_the_model_s_own_where_its_codec_names_no_model(
    run: Any, checkpoint: Checkpoint, data: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(checkpoint.path, tmp_path / "own")
    job = run.Job(model=own, data=data, run=tmp_path / "run", out=tmp_path / "codec", tokens=1)
    weights = fake_weights(D=128, H=32)

    def opened() -> Any:
        return run.Experiment.open(job, ProcessGroup(), progress=through, log=print)

    weights.save(own)
    together = opened()
    assert together.grid is not None and together.reference.any()
    for name in (checkpoint.model_id, "0123456789abcdef"):  # trained for this model afterwards; for another one
        weights.save(own, name)
        assert opened().grid is None and not opened().reference.any()


def test_a_trained_codec_names_its_model_and_is_refused_beside_another(
    run: Any, checkpoint: Checkpoint, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = run.train.CodecRecipe(
        components=6, hidden=8, warm=2, steps=2, entropy_steps_per_step=1, entropy_steps=3, measured=2, bits=(8.0, 16.0)
    )
    job = run.Job(
        model=checkpoint.path, data=data, run=tmp_path / "run", out=tmp_path / "codec", tokens=3, recipe=recipe,
        mix=DistillationMix(batch=2, turns=2),
    )  # fmt: skip
    logged: list[str] = []
    tried: list[int] = []

    def watched(*given: Any) -> list[Cost]:
        tried.append(len(given[5]))
        return evaluate(*given)

    monkeypatch.setattr("tofc_lab.distillation.experiment.evaluate", watched)
    run.train_codec(job, through, logged.append)
    once = {file.name: file.read_bytes() for file in job.out.iterdir()}
    assert once.keys() == {"codec.json", "codec.safetensors", "report.json", "report.png"}
    report = json.loads(once["report.json"])
    assert report["pictures"] == {"training": 2, "choosing rates": 1, "held out": 1}
    rates = [[row["features"], row["quality"]] for row in report["rates"]]
    assert rates == json.loads(once["codec.json"])["rates"]
    assert tried == [12, len(rates)]  # every number of features with each quality, then those on the hull
    run.train_codec(job, through, logged.append)  # everything is there already
    assert {file.name: file.read_bytes() for file in job.out.iterdir()} == once
    evaluation = [
        "judge-codec", "--model", checkpoint.path, "--data", data, "--codec", job.out, "--run", job.run,
        "--beside", job.out / "report.json", "--out", tmp_path / "judged.json", "--tokens",
    ]  # fmt: skip
    result = CliRunner().invoke(app, list(map(str, [*evaluation, 3])))
    assert result.exit_code == 0, result.output
    judged = json.loads((tmp_path / "judged.json").read_text())
    assert judged["rates"] == report["rates"] and judged["beside"]["report"] == report
    result = CliRunner().invoke(app, list(map(str, [*evaluation, 2])))
    assert result.exit_code == 2 and "was made with other settings: --tokens was 3, is 2" in result.output
    beside = tmp_path / "codec" / "report.json"
    beside.write_text(json.dumps({name: value for name, value in report.items() if name != "settings"}))
    result = CliRunner().invoke(app, list(map(str, [*evaluation, 2])))  # an older report
    assert result.exit_code == 2 and f"evaluated on {report['judged on']}, this run evaluates on" in result.output
    beside.write_text("[]")
    assert (
        "--beside must be the report.json of a codec"
        in CliRunner().invoke(app, list(map(str, [*evaluation, 3]))).output
    )
    for name in ("codec.json", "codec.safetensors"):
        (checkpoint.path / name).write_bytes(once[name])
    try:
        assert len(checkpoint.codec_id) == 16
        other = tmp_path / "other"
        fake.write(other, seed=4)
        for name in ("codec.json", "codec.safetensors"):
            (other / name).write_bytes(once[name])
        with pytest.raises(CheckpointError, match=f"was trained for the model {checkpoint.model_id}"):
            _ = Checkpoint.open(other).codec_id
    finally:
        for name in ("codec.json", "codec.safetensors"):
            (checkpoint.path / name).unlink()


def test_other_settings_of_a_run_are_an_error_before_the_features(
    run: Any, checkpoint: Checkpoint, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = run.train.CodecRecipe(
        components=6, hidden=8, warm=2, steps=2, entropy_steps_per_step=1, entropy_steps=3, measured=2, bits=(8.0, 16.0)
    )
    own = shutil.copytree(data, tmp_path / "data")
    lines = tmp_path / "questions.txt"
    lines.write_text("why?\nhow?\n")
    job = run.Job(
        model=checkpoint.path, data=own, run=tmp_path / "run", out=tmp_path / "codec", tokens=2, recipe=recipe,
        questions=lines, mix=DistillationMix(batch=2, turns=2),
    )  # fmt: skip
    stopped = replace(job, recipe=replace(recipe, save=1))
    with monkeypatch.context() as interrupted:
        interrupted.setattr(run, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.train_codec(stopped, through, lambda _: None)
    kept = (tmp_path / "run" / "codec.ckpt").read_bytes()

    def slow(*_: Any, **__: Any) -> None:
        raise AssertionError("features or answers were started")

    experiment = importlib.import_module("tofc_lab.distillation.experiment")
    with monkeypatch.context() as quick:
        for name in ("Teacher", "Tower"):
            quick.setattr(experiment, name, slow)
        quick.setattr(experiment.pictures, "encode_all", slow)
        for other, logged in (
            ({"seed": 3}, "--seed was 0, is 3"),
            ({"tokens": 5}, "--tokens was 2, is 5"),
            ({"dtype": "bfloat16"}, "--dtype was float32, is bfloat16"),
            ({"mix": DistillationMix(batch=1, turns=2)}, "--batch was 2, is 1"),
            ({"recipe": replace(stopped.recipe, bits=(8.0, 12.0))}, r"--bits was \[8.0, 16.0\], is \[8.0, 12.0\]"),
            ({"questions": None}, "pictures that have other questions: 2"),
        ):
            with pytest.raises(ValueError, match=f"was started with other settings: {logged}.*name another --run"):
                run.train_codec(replace(stopped, **other), through, print)
        fresh = own / "new.png"
        Image.new("RGB", (336, 336), "red").save(fresh)
        with pytest.raises(ValueError, match="pictures that are new: 1"):
            run.train_codec(stopped, through, print)
        fresh.unlink()
        (own / "1.png").rename(tmp_path / "1.png")
        with pytest.raises(ValueError, match="pictures that are missing: 1"):
            run.train_codec(stopped, through, print)
        (tmp_path / "1.png").rename(own / "1.png")
    assert (tmp_path / "run" / "codec.ckpt").read_bytes() == kept
    (own / "broken.jpg").unlink()  # it was left out, so it is not missing
    run.train_codec(stopped, through, lambda _: None)
    assert (tmp_path / "codec" / "codec.json").exists()


def test_two_processes_of_accelerate_launch_train_one_codec_with_adapters(
    run: Any, checkpoint: Checkpoint, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("peft")
    member = tmp_path / "member.py"
    member.write_text(PROCESS)
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [sys.executable, *launch, member, checkpoint.path, data, tmp_path / "run"]
    cpus = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(list(map(str, command)), env=cpus, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    codec = tmp_path / "run" / "codec"
    report = json.loads((codec / "report.json").read_text())
    assert report["pictures"] == {"training": 2, "choosing rates": 1, "held out": 1}
    assert ended.stdout.count("report.png") == 1  # only rank 0 logs
    adapted = Checkpoint.open(codec / "model")
    assert adapted.model_id != checkpoint.model_id
    split(codec / "model", tmp_path / "halves", codecs={"default": codec})


def test_adapters_change_nothing_at_first_and_are_merged_into_the_weights(
    checkpoint: Checkpoint, seen: list[StoredPicture], tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    from tofc_lab.distillation.lora import merge

    teacher = Teacher.open(checkpoint, device=torch.device("cpu"), dtype=torch.float32, ends=[2])
    packed = teacher.pack([merged(seen[0])], [[(QUESTIONS[0], (5, 6, 7))]])
    grid = zeros(teacher)
    with torch.no_grad():
        before = teacher.logits(packed, packed.features, grid)
    teacher.adapt(2)
    assert teacher.adapters is not None
    asked = {one.digest: [(QUESTIONS[0], (7,))] for one in seen}
    source = DistillationSource(
        teacher, seen, asked, grid=grid, mix=DistillationMix(), seed=0, processes=ProcessGroup()
    )
    assert len(list(source.extra.parameters())) == 2 * 4 * 2  # layers, projections, two factors each
    with torch.no_grad():
        assert torch.equal(teacher.logits(packed, packed.features, grid), before)
        for one in source.extra.parameters():
            one.add_(0.1 * torch.randn_like(one))
        changed = teacher.logits(packed, packed.features, grid)
        with teacher.plain():
            assert torch.equal(teacher.logits(packed, packed.features, grid), before)
    assert (changed - before).abs().max() > 1e-3
    teacher.logits(packed, packed.features, grid).sum().backward()
    assert all(one.grad is not None for one in source.extra.parameters())
    model_id = merge(checkpoint, teacher.adapters.deltas(), tmp_path / "adapted")
    adapted = Checkpoint.open(tmp_path / "adapted")
    assert adapted.model_id == model_id != checkpoint.model_id
    other = Teacher.open(adapted, device=torch.device("cpu"), dtype=torch.float32, ends=[2])
    with torch.no_grad():
        torch.testing.assert_close(other.logits(packed, packed.features, grid), changed, atol=1e-4, rtol=1e-3)
