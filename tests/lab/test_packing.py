"""Packed questions give the same answers as questions in prompts of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.e2e.conftest import MODEL
from tofc.model.checkpoint import Checkpoint
from tofc.model.prompt import PictureLayout, Turn, build, load_tokenizer
from tofc_lab.codec.places import places_of
from tofc_lab.nano.answerer import Answerer, config
from tofc_lab.nano.packing import AttentionLabel, Packer, QuestionAnswer, VisualInput


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer(Checkpoint.open(MODEL, side="server"))


def _picture(rows: int = 0, columns: int = 0) -> VisualInput:
    views = ((4, np.array([0, 1, 6, 15])),) * (rows * columns) + ((6, np.array([3, 4, 9, 20, 21, 35])),)
    total = sum(len(cells) for _, cells in views)
    features = np.random.default_rng(0).standard_normal((total, 8)).astype(np.float32)
    return VisualInput(
        features=features, views=views, slots=np.zeros(total, np.int64), rows=rows, columns=columns, size=0
    )


QUESTIONS = [
    QuestionAnswer(family="exist", text="is there a cat?", answer="yes"),
    QuestionAnswer(family="count", text="How many dogs are there", answer="3"),
    QuestionAnswer(family="read", text="read the sign.", answer="42"),
]


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (2, 3)])
def test_training_prompts_are_the_servers(tokenizer: PreTrainedTokenizerFast, rows: int, columns: int) -> None:
    picture = _picture(rows, columns)
    packed = Packer(tokenizer).pack([picture], [QUESTIONS[:1]], independent=True)
    layout = PictureLayout(rows=rows, columns=columns, crops=(4,) * (rows * columns), whole=6)
    prompt = build(tokenizer, [Turn(role="user", text=QUESTIONS[0].text)], [layout])
    assert packed.ids[0, : len(prompt.ids)].tolist() == list(prompt.ids)
    assert packed.image[0].nonzero().flatten().tolist() == prompt.feature_positions.tolist()
    wanted = places_of(picture.views)
    assert torch.equal(packed.places.around, wanted.around) and torch.equal(packed.places.stage, wanted.stage)


def test_a_packed_question_attends_to_the_picture_and_itself(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    answerer, packer = Answerer(8, config(tokenizer)).eval(), Packer(tokenizer)
    together = packer.pack([_picture()], [QUESTIONS], independent=True)
    alone = [packer.pack([_picture()], [[question]], independent=True) for question in QUESTIONS]
    with torch.inference_mode():
        torch.testing.assert_close(
            answerer(together), torch.cat([answerer(one) for one in alone]), rtol=1e-4, atol=1e-5
        )


def test_a_conversation_attends_to_what_came_before(tokenizer: PreTrainedTokenizerFast) -> None:
    packed = Packer(tokenizer).pack([_picture()], [QUESTIONS], independent=False)
    assert bool((packed.mask[0, 0] == torch.ones(packed.mask.shape[-2:], dtype=torch.bool).tril()).all())
    assert (packed.owner[0].unique() == torch.tensor([-1, 0, 1, 2])).all()


def test_a_name_attends_to_what_it_names_and_an_answer_to_both_names(tokenizer: PreTrainedTokenizerFast) -> None:
    picture = _picture()
    picture.slots[:] = np.arange(16, 22)
    named = (("owl", frozenset({17})), ("cat", frozenset({19, 20, 40})))
    asked = QuestionAnswer(family="rel", text="Is the cat left of the owl?", answer="no", named=named, paired=True)
    packed = Packer(tokenizer).pack([picture], [[QUESTIONS[0], asked]], independent=True)
    kinds, _, places = packed.supervised.T.tolist()
    assert kinds == [AttentionLabel.NAME, AttentionLabel.NAME, AttentionLabel.FIRST, AttentionLabel.SECOND]
    ids = packed.ids[0]
    assert tokenizer.decode(ids[places[0]]).strip() == "cat" and tokenizer.decode(ids[places[1]]).strip() == "owl"
    assert places[2] == places[3] == int((packed.owner[0] == 1).nonzero()[0])
    patches = packed.image[0].nonzero().flatten()
    attended = [one.nonzero().flatten().tolist() for one in packed.attended]
    assert attended == [patches[[3, 4]].tolist(), patches[[1]].tolist(), [places[0]], [places[1]]]
