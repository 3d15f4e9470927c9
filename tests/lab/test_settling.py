"""Settling: symbols of several batches are chosen together, as they are chosen alone. Needs `make lab`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("tofc_lab.codec.compressai_parts", exc_type=ImportError)

from tofc_lab.codec.entropy_model_trainer import EntropyModelTrainer
from tofc_lab.codec.model import CodecModel
from tofc_lab.codec.places import Pool, joined, places_of

VIEWS = [(6, np.arange(36)), (4, np.array([0, 1, 5, 15])), (1, np.array([0])), (6, np.array([3, 9, 10, 30, 35]))]
FEATURES = sum(len(cells) for _, cells in VIEWS)


@pytest.fixture
def model() -> CodecModel:
    """A model of three qualities, whose predictions are far apart."""
    torch.manual_seed(0)
    model = CodecModel(dim=24, components=10, hidden=16, qualities=3)
    model.start_from(torch.randn(400, 24), torch.eye(24), (6.0, 12.0, 20.0))
    with torch.no_grad():
        model.context.out_w.normal_(std=0.4)
        model.context.embed_b.normal_(std=0.3)
    return model.train()


def trainer_of(model: CodecModel) -> EntropyModelTrainer:
    torch.manual_seed(1)
    trainer = EntropyModelTrainer(model, Pool.of(torch.randn(FEATURES, 24), VIEWS), seed=3, batch=60)
    trainer.freeze()
    return trainer


def test_places_are_joined() -> None:
    parts = [places_of(VIEWS[:1]), places_of(VIEWS[1:3]), places_of(VIEWS[3:])]
    for found, wanted in zip(joined(parts), places_of(VIEWS), strict=True):
        assert torch.equal(found, wanted)


@torch.no_grad()
def test_batches_of_several_qualities_are_chosen_as_each_alone(model: CodecModel) -> None:
    qualities, each = (2, 0, 1, 0), places_of(VIEWS)
    y = [model.quantise(torch.randn(FEATURES, 24), quality) for quality in qualities]
    dropped = model.context.dropped(FEATURES * len(y))
    alone = [
        model.choose(one, quality, each, kept)
        for one, quality, kept in zip(y, qualities, dropped.split(FEATURES), strict=True)
    ]
    of_each = torch.tensor(qualities).repeat_interleave(FEATURES)
    together = model.choose(torch.cat(y), of_each, joined([each] * len(y)), dropped)
    assert torch.equal(together, together.round())
    assert (together == torch.cat(alone)).float().mean() > 0.999  # rounding may decide between two that cost the same
    assert (together != torch.cat(y).round()).float().mean() > 0.02  # some are a step shorter


def test_only_the_symbols_of_a_round_are_older_than_its_steps(model: CodecModel) -> None:
    """The first step of a round is that of a round of one; the next ones draw the same batches and qualities."""
    start = {name: one.clone() for name, one in model.state_dict().items()}
    torch.manual_seed(5)
    together = trainer_of(model).run([1e-3, 1e-3, 1e-3])
    model.load_state_dict(start)
    apart = trainer_of(model)
    with torch.no_grad():
        torch.manual_seed(1)
    found = [apart.run([1e-3])[0] for _ in range(3)]
    assert found == pytest.approx(together, rel=0.1)
    assert apart.steps == 3


def test_a_round_lowers_the_bits(model: CodecModel) -> None:
    trainer = trainer_of(model)
    bits = [np.mean(trainer.run([3e-3] * 8)) for _ in range(8)]
    assert bits[-1] < 0.9 * bits[0]
