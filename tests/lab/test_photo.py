"""The photo model's recipe with tiny settings: names, scenes, questions, training that resumes, and a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from tofc.model.checkpoint import Checkpoint
from tofc.model.efficientnet_lite import Trunk
from tofc_lab.checkpoint.pretrained_trunk import Pretrained
from tofc_lab.codec.index.train import IndexRecipe
from tofc_lab.nano.answerer import SLOT, Answerer
from tofc_lab.nano.unpack import answerer_of
from tofc_lab.photo import (
    asked_scenes,
    colours,
    decoder,
    export,
    names,
    questions,
    scene,
    signs,
    teacher,
    tokenizer,
    tower,
)
from tofc_lab.photo.evaluate import evaluate
from tofc_lab.photo.features import CELLS, MIDDLE, Known, Maps
from tofc_lab.photo.pictures import Patch

TOWER = tower.TowerRecipe(steps=4, batch=3, save=2)
RECIPE = decoder.PhotoRecipe(steps=4, batch=3, turns=3, save=2)


@pytest.fixture(scope="module", autouse=True)
def random_classifier() -> Iterator[None]:
    """Take random directions for the published classifier, whose package is not needed to see that training works."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((names.CLASSES, 1280), np.float32) * 0.06
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, "classifier", lambda: teacher.Classifier(weight, np.zeros(names.CLASSES, np.float32)))
        scene.directions.cache_clear()
        yield
    scene.directions.cache_clear()


def _maps(seed: int, count: int = 6) -> Maps:
    rng = np.random.default_rng(seed)
    head = np.maximum(rng.standard_normal((count, CELLS, 1280)) - 1, 0)
    shares = np.zeros((count, CELLS, len(colours.COLOURS)), np.uint8)
    shares[:, :, colours.BLUE] = 255
    sign = signs.Sign(text="EXIT 7", places=((30, 30), (80, 30), (120, 30), (160, 30), (200, 30)))
    patch = Patch(colour="blue", cells=(14, 15, 20, 21))
    known = [Known(parts=1, sign=sign if i % 2 else None, patches=() if i % 2 else (patch,)) for i in range(count)]
    return Maps(
        head=head.astype(np.float16),
        middle=rng.standard_normal((count, 123, MIDDLE, MIDDLE)).astype(np.float16),
        colours=shares,
        known=known,
    )


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    tokenizer.train(out)
    return out


def test_every_class_has_a_name_and_everyday_groups() -> None:
    known = names.load()
    assert len(known.names) == names.CLASSES and known.members.sum(0).min() >= 1
    retriever = known.names.index("golden retriever")
    assert {"dog", "animal", "retriever"} <= set(known.groups_of[retriever])
    assert set(known.synonyms).isdisjoint(known.words)
    assert known.members[known.index["food"], known.names.index("pizza")] == 1


def test_names_are_tokens_and_signs_are_read_by_characters(words: Path) -> None:
    loaded = PreTrainedTokenizerFast.from_pretrained(words)
    for word in names.load().words:
        assert len(loaded(word, add_special_tokens=False)["input_ids"]) == 1, word
    text = "is there a golden retriever, or do cats catch wolves?"
    ids = loaded(text, add_special_tokens=False)["input_ids"]
    assert loaded.decode(ids) == text
    assert {"golden retriever", "cats", "wolves"} <= set(loaded.convert_ids_to_tokens(ids))
    assert loaded.tokenize("NO ENTRY") == ["N", "O", "Ġ", "E", "N", "T", "R", "Y"]


def test_the_classifier_sees_what_is_put_into_a_picture() -> None:
    rng, maps = np.random.default_rng(1), _maps(0)
    for sure in (0.3, 0.9):
        head = maps.head[0].astype(np.float32)
        cells = (7, 8, 13, 14)
        scene.put(rng, head, 207, cells, sure)
        logits = head[list(cells)].mean(0) @ teacher.classifier().weight.T
        assert abs(1 / np.exp(logits - logits[207]).sum() - sure) < 0.05
        untouched = np.setdiff1d(np.arange(CELLS), cells)
        assert np.array_equal(head[untouched], maps.head[0][untouched].astype(np.float32))


def test_answers_follow_from_the_scene() -> None:
    rng, maps = np.random.default_rng(2), _maps(0)
    seen: dict[str, int] = dict.fromkeys(questions.FAMILIES, 0)
    for number in range(60):
        at = number % len(maps)
        built = scene.build(rng, maps.head[at], maps.colours[at], maps.known[at])
        for one in questions.ask(rng, built, 12):
            seen[one.family] += 1
            if one.family == "colour":
                assert one.answer == "blue"
            if one.family == "read":
                assert one.answer == ("EXIT 7" if at % 2 else questions.NO_SIGN)
            if one.family == "count":
                assert 0 <= int(one.answer) <= len(built.things)
            if one.family == "where":
                assert one.answer in sum(questions.PLACES, ())
            for word, cells in one.named:
                assert cells and re.search(rf"\b{word}\b", one.text.lower())
    assert min(seen.values()) > 5, seen


def test_pixels_get_the_name_of_their_colour() -> None:
    rng = np.random.default_rng(3)
    for name in colours.COLOURS:
        for _ in range(20):
            image = Image.new("RGB", (12, 12), colours.draw(rng, name))
            shares = colours.shares(image, 6)
            assert shares.shape == (CELLS, len(colours.COLOURS))
            assert colours.COLOURS[int(shares[0].argmax())] == name


def test_the_places_of_a_signs_characters_are_labels() -> None:
    labels = tower.characters_of(_maps(0).known[1])
    read = [signs.CHARACTERS[label - 1] for label in labels.ravel() if label]
    assert "".join(read) == "EXIT7"


def _train_tower(out: Path, logs: int = 1000) -> dict[str, torch.Tensor]:
    def log(*_: object) -> None:
        nonlocal logs
        logs -= 1
        if logs < 0:
            raise KeyboardInterrupt

    out.mkdir(exist_ok=True)
    trained = tower.train(_maps(0), _maps(1), out, recipe=TOWER, autocast=False, workers=0, log=log)
    return trained.state_dict()


def test_an_interrupted_tower_is_resumed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):  # after the first checkpoint, before the second
        _train_tower(tmp_path / "twice", logs=1)
    resumed, whole = _train_tower(tmp_path / "twice"), _train_tower(tmp_path / "once")
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, words: Path) -> Path:
    """Return the folder of a tiny training: tower, scenes, tokenizer and decoder."""
    out = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    reader = tower.Reader()
    torch.save(reader.state_dict(), out / "tower.pt")
    (out / "tokenizer").symlink_to(words)
    for split, seed in (("train", 0), ("validation", 1)):
        asked_scenes.compute(_maps(seed), reader, asked_scenes.folder(out), split, 12)  # type: ignore[arg-type]
    _train_decoder(out, out)
    return out


def test_names_are_to_attend_to_the_cells_of_their_things(run: Path) -> None:
    at = 0
    for one in asked_scenes.load(asked_scenes.folder(run), "train"):
        maps = _maps(0)
        rng = np.random.default_rng([0, 53, 0, at])
        built = scene.build(rng, *(part[at % len(maps)] for part in (maps.head, maps.colours, maps.known)))
        cells = {SLOT[6] + cell for thing in built.things for cell in thing.cells}
        assert all(slots <= cells for question in one.questions for _, slots in question.named)
        at += 1
    assert at == 12


def _train_decoder(run: Path, out: Path, logs: int = 1000) -> dict[str, torch.Tensor]:
    def log(*_: object) -> None:
        nonlocal logs
        logs -= 1
        if logs < 0:
            raise KeyboardInterrupt

    out.mkdir(exist_ok=True)
    folder = asked_scenes.folder(run)
    trained = decoder.train(
        _maps(0),
        asked_scenes.load(folder, "validation"),
        tower.load(run),
        PreTrainedTokenizerFast.from_pretrained(run / "tokenizer"),
        out,
        recipe=RECIPE,
        autocast=False,
        workers=0,
        log=log,
    )
    return trained.state_dict()


def test_an_interrupted_decoder_is_resumed(run: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _train_decoder(run, tmp_path / "twice", logs=1)
    resumed = _train_decoder(run, tmp_path / "twice")
    for name, value in torch.load(run / "decoder.pt", weights_only=True).items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


def test_a_run_becomes_a_checkpoint_with_a_codec(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = Pretrained(
        trunk=Trunk().state_dict(),
        classifier=torch.zeros(names.CLASSES, 1280),
        classifier_bias=torch.zeros(names.CLASSES),
    )
    monkeypatch.setattr(Pretrained, "load", lambda: random)
    export.export_run(run, tmp_path)
    spans = export.CODEC.spans[:2]
    recipe = IndexRecipe(codewords=(8, 4), weights=(0.01, 0.01), spans=spans, prices=(1.0, 0.3), steps=4, rounds=2)
    export.write_codec(run, tmp_path, recipe, 0, log=lambda text: None)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.config.rule.max_side == 336 and checkpoint.config.feature_dim == 384
    shipped, trained = answerer_of(checkpoint), export.load(run)[0]
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(shipped.state_dict()[name], value, rtol=2e-3, atol=2e-3)
    found = evaluate(tmp_path, asked_scenes.load(asked_scenes.folder(run), "validation"), tower.load(run))
    assert {"uncompressed", *export.PRESETS} <= set(found)
    assert 0 < found["high"]["bytes"] < found["uncompressed"]["bytes"]


def test_the_committed_training_can_be_continued() -> None:
    start = Path(__file__).resolve().parents[2] / "models" / "photo" / "training"
    tower.load(start)
    vocabulary = PreTrainedTokenizerFast.from_pretrained(start / "tokenizer")
    answerer = Answerer(tower.VISION["output_width"], decoder.config(vocabulary))
    answerer.load_state_dict(torch.load(start / "decoder.pt", weights_only=True))
