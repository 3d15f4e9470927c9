"""PaCoRe in the lab: prompts as the server builds them, samples of the decoder's distribution, training, the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from edge_server.engine.base import Finish
from edge_server.pacore.messages import Sample, ordered_messages
from edge_server.pacore.prompt import synthesis_text
from tests.e2e.conftest import MODEL
from tests.lab.conftest import through
from tests.lab.test_training import _pictures
from tofc.model.checkpoint import Checkpoint
from tofc.model.prompt import PictureLayout, Turn, build, load_tokenizer
from tofc_lab.nano.answerer import Answerer, config, merging, visual_input
from tofc_lab.nano.packing import Packer
from tofc_lab.nano.pacore import examples, filters, report, vocabulary
from tofc_lab.nano.pacore import train as training
from tofc_lab.nano.pacore.blocks import Block, answer_ids, pack, prompt_ids
from tofc_lab.nano.pacore.pool import Pooled, fill
from tofc_lab.nano.pacore.sampling import sample
from tofc_lab.nano.pacore.synthesis import greedy_syntheses
from tofc_lab.nano.unpack import answerer_of

WIDTH = 96
QUESTIONS = ["how many cats are there?", "what is on the sign?", "is there a dog?"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer(Checkpoint.open(MODEL, side="server"))


@pytest.fixture(scope="module")
def small(tokenizer: PreTrainedTokenizerFast) -> Answerer:
    """A decoder with random weights, for features of WIDTH numbers."""
    torch.manual_seed(0)
    return Answerer(WIDTH, config(tokenizer)).eval()


def pooled(picture: int, answer: str, *samples: str, question: str = "how many?") -> Pooled:
    return Pooled(picture=picture, family="count", question=question, answer=answer, greedy=samples[0], samples=samples)


def test_a_block_is_the_prompt_that_the_server_builds(tokenizer: PreTrainedTokenizerFast, small: Answerer) -> None:
    packer, (cached,) = Packer(tokenizer), _pictures(0, 1)
    shown = visual_input(cached, merging())
    texts = [*QUESTIONS, synthesis_text(QUESTIONS[0], ["3", "two birds"])]
    prompts = prompt_ids(packer, texts)
    together = small(pack(packer, [shown], [[Block(ids=ids) for ids in prompts]], WIDTH))
    for index, (text, ids) in enumerate(zip(texts, prompts, strict=True)):
        tokens = build(tokenizer, [Turn(role="user", text=text)], [PictureLayout(whole=36)])
        assert tokens.ids == [*packer.prefix(shown), *ids]
        alone = small(pack(packer, [shown], [[Block(ids=ids)]], WIDTH))
        torch.testing.assert_close(together[index], alone[0], rtol=1e-3, atol=1e-3)
        blind = build(tokenizer, [Turn(role="user", text=text)], [])
        assert blind.ids == [*packer.head, *ids]
        assert pack(packer, [None], [[Block(ids=ids)]], WIDTH).ids[0].tolist() == blind.ids


def test_messages_have_the_server_s_order() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 16, 24):
        texts = ["x" * int(size) for size in rng.integers(0, 6, count)]
        of_server = [Sample(index=i, text=text, message=text, finish=Finish.STOP) for i, text in enumerate(texts)]
        assert examples.references(texts) == ordered_messages(of_server)
    drawn = [examples.draw(rng, pooled(0, "1", *map(str, range(24)))).count("Reference ") - 1 for _ in range(200)]
    assert (min(drawn), max(drawn)) == (16, 24), "the heading is the one that is not a message"


def test_samples_follow_the_decoder_s_distribution() -> None:
    checkpoint = Checkpoint.open(MODEL)
    answerer, packer = answerer_of(checkpoint), Packer(load_tokenizer(checkpoint))
    prompt = prompt_ids(packer, ["how many cats are there?"])  # without a picture it guesses
    p = torch.softmax(answerer(pack(packer, [None], [[Block(ids=prompt[0])]], 768)).double(), -1)[0]
    count = 400
    (found,) = sample(answerer, packer, [None], [prompt], count, [[np.random.default_rng(0)]])[0]
    texts = [packer.tokenizer.decode([token]) for token in p.topk(3).indices.tolist()]
    assert found.greedy.startswith(texts[0]) and p.max() < 0.9, "else the test shows nothing"
    for text, expected in zip(texts, p.topk(3).values.tolist(), strict=True):
        share = np.mean([one.startswith(text) for one in found.samples])
        assert abs(share - expected) < 4 * (expected * (1 - expected) / count) ** 0.5 + 0.01
    others = prompt_ids(packer, QUESTIONS)
    rngs = [[np.random.default_rng(0)], [np.random.default_rng(i) for i in range(3)]]
    (again,), _ = sample(answerer, packer, [None, None], [prompt, others], count, rngs)
    assert again == found, "whatever is sampled beside it"


def test_nano_s_samples_and_guessed_syntheses_are_what_decoding_gives() -> None:
    checkpoint = Checkpoint.open(MODEL)
    answerer, packer = answerer_of(checkpoint), Packer(load_tokenizer(checkpoint))
    (cached,) = _pictures(0, 1)
    features = np.random.default_rng(1).standard_normal((36, 768)).astype(np.float16)
    cached = replace(cached, features=features)
    rngs = [[np.random.default_rng(i) for i in range(3)]]
    shown = visual_input(cached, merging())
    (answers,) = sample(answerer, packer, [shown], [prompt_ids(packer, QUESTIONS)], 16, rngs)
    asked = [
        Pooled(picture=0, family="", question=text, answer="", greedy=one.greedy, samples=one.samples)
        for text, one in zip(QUESTIONS, answers, strict=True)
    ]
    for blind in (False, True):
        guessed = greedy_syntheses(answerer, packer, [cached], asked, merging(), blind=blind)
        prompts = prompt_ids(packer, [examples.synthesis(one.question, one.samples) for one in asked])
        stepwise = [
            sample(answerer, packer, [None if blind else shown], [[ids]], 0, [[np.random.default_rng(0)]])[0][0].greedy
            for ids in prompts
        ]
        assert guessed == stepwise


def test_the_filters_are_the_published_ones() -> None:
    pool = [
        pooled(0, "1", *["1"] * 0, *["2"] * 24),  # never right
        pooled(1, "1", *["1"] * 1, *["2"] * 23),
        pooled(2, "1", *["1"] * 8, *["2"] * 16),
        pooled(3, "1", *["1"] * 9, *["2"] * 15),  # not below 9/24
        pooled(4, "1", *["1"] * 24),  # always right
    ]
    assert [one.picture for one in filters.stage_1(pool)] == [1, 2]
    assert [one.picture for one in filters.stage_2(pool, [0.0, 0.5, 1.0, 0.1, 0.9])] == [1, 3, 4]
    assert [one.picture for one in filters.disagreeing(pool)] == [1, 2, 3]


def test_the_wider_vocabulary_changes_only_the_prompt(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.save_pretrained(tmp_path / "old")
    texts = [*QUESTIONS, "Read the sign.", "How many?", "top left", "42"]
    added = vocabulary.extend(tmp_path / "old", tmp_path / "new", texts)
    wider = PreTrainedTokenizerFast.from_pretrained(tmp_path / "new")
    assert added and len(wider) > len(tokenizer)
    for text in texts:
        assert wider(text)["input_ids"] == tokenizer(text)["input_ids"]
    prompt = synthesis_text(QUESTIONS[0], ["3"] * 16)
    before, after = len(tokenizer(prompt)["input_ids"]), len(wider(prompt)["input_ids"])
    assert after < before / 2 and wider.decode(wider(prompt)["input_ids"]) == prompt
    spelt = vocabulary.spelt(tmp_path / "old", tmp_path / "new")
    assert len(spelt) == len(wider) - len(tokenizer)
    tables = {name: torch.randn(len(tokenizer), 4) for name in vocabulary.TABLES}
    for name, table in vocabulary.extended_state(tables, spelt).items():
        assert torch.equal(table[: len(tokenizer)], tables[name])
        torch.testing.assert_close(table[len(tokenizer)], tables[name][spelt[0]].mean(0))


RECIPE = training.SynthesisRecipe(steps=4, batch=3, save=2)


def _train(out: Path, small: Answerer, tokenizer: PreTrainedTokenizerFast, logs: int = 1000) -> Answerer:
    def log(*_: object) -> None:
        nonlocal logs
        logs -= 1
        if logs < 0:
            raise KeyboardInterrupt

    start = Answerer(WIDTH, small.decoder.config)
    start.load_state_dict(small.state_dict())
    pictures = {"world": _pictures(0), "large": _pictures(2), "easy": _pictures(3)}
    pool = [pooled(i, "1", *["1"] * 10, *["2"] * 14) for i in range(3)]
    validation = (_pictures(1), [pooled(i, "1", *["1"] * 24) for i in range(3)])
    return training.train(
        start, tokenizer, pictures, pool, pool[:1], validation, out, recipe=RECIPE, autocast=False, workers=0, log=log
    )


def test_training_resumes_and_learns_the_answer(
    tmp_path: Path, small: Answerer, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "ORDINARY", replace(training.ORDINARY, batch=2, turns=2, large=0.0, easy=0.0))
    with pytest.raises(KeyboardInterrupt):  # after the first checkpoint
        _train(tmp_path / "twice", small, tokenizer, logs=1)
    resumed, whole = _train(tmp_path / "twice", small, tokenizer), _train(tmp_path / "once", small, tokenizer)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    lines = (tmp_path / "once" / "decoder.jsonl").read_text().splitlines()
    first, last = (json.loads(line) for line in (lines[0], lines[-1]))
    assert last["synthesis"] < first["synthesis"] and last["validation"].keys() == {
        *("plain", "synthesis", "blind", "vote")
    }


def test_a_pool_is_written_in_chunks_and_read_again(
    tmp_path: Path, small: Answerer, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tofc_lab.nano.pacore.pool.CHUNK", 2)
    packer, pictures = Packer(tokenizer), _pictures(0, 3)
    options = {"turns": 2, "seed": 0, "question_seed": 1, "progress": through, "samples": 5}
    found = fill(small, packer, pictures, 10, merging(), tmp_path, **options)  # type: ignore[arg-type]
    assert [one.picture for one in found] == [10, 10, 11, 11, 12, 12] and len(found[0].samples) == 5
    assert sorted(file.name for file in tmp_path.iterdir()) == ["000010.json", "000012.json"]
    (tmp_path / "000012.json").unlink()
    assert fill(small, packer, pictures, 10, merging(), tmp_path, **options) == found  # type: ignore[arg-type]


def test_the_report_counts_and_pairs() -> None:
    asked = [pooled(i // 2, "1", *["1"] * count, *["2"] * (16 - count)) for i, count in enumerate([0, 3, 8, 16])]
    right = np.array(
        [  # greedy, sample, vote, pacore, blind, any
            [0, 0 / 16, 0, 1, 0, 0],
            [0, 3 / 16, 0, 1, 0, 1],
            [1, 8 / 16, 1, 0, 1, 1],
            [1, 1, 1, 1, 1, 1],
        ]
    )
    found = report.summary(asked, right)
    assert found["accuracy"]["pacore-16"][0] == 0.75 and found["accuracy"]["vote-16"][0] == 0.5
    difference = found["difference"]["pacore-16 − vote-16"]
    assert difference[0] == 0.25 and difference[1] <= -0.5 and difference[2] == 1.0, "two pictures, drawn together"
    assert found["emergent"] == {
        "no message right": {"questions": 1, "pacore right": 1, "vote right": 0},
        "fewer than half right": {"questions": 1, "pacore right": 1, "vote right": 0},
        "at least half right": {"questions": 2, "pacore right": 1, "vote right": 2},
    }


def test_answers_are_predicted_token_by_token(tokenizer: PreTrainedTokenizerFast) -> None:
    packer = Packer(tokenizer)
    (answer,) = answer_ids(packer, ["top left"])
    (prompt,) = prompt_ids(packer, QUESTIONS[:1])
    batch = pack(packer, [None], [[Block(ids=[*prompt, *answer], answer=len(answer))]], WIDTH)
    at = (batch.targets[0] >= 0).nonzero().flatten().tolist()
    assert batch.targets[0, at].tolist() == answer and batch.ids[0, at[1:]].tolist() == answer[:-1]
    assert at[0] == len(packer.head) + len(prompt) - 1
