"""Experts on top of the index codec's context model: what is measured is what the codec would code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tofc.codec.codec import Codec
from tofc.codec.fake import fake_features
from tofc.codec.files import load_weights
from tofc.codec.index.fake import fake_index_weights
from tofc.codec.index.weights import IndexWeights
from tofc.model.shipped import NANO
from tofc_lab.codec.index.model import IndexModel
from tofc_lab.nano import index_experts
from tofc_lab.nano.features import CachedPicture
from tofc_lab.nano.index_experts import IndexExperts, compare, indices

WEIGHTS = fake_index_weights()
CODEC = Codec(WEIGHTS)
QUALITY = CODEC.config.qualities - 1


def pictures(count: int, first: int = 0) -> list[CachedPicture]:
    return [
        CachedPicture(
            features=fake_features(WEIGHTS, 36, seed=first + at).astype(np.float16), sides=(6,), rows=0, columns=0
        )
        for at in range(count)
    ]


def test_a_model_read_from_a_codec_predicts_what_the_codec_does() -> None:
    weights = load_weights(NANO)
    assert isinstance(weights, IndexWeights)
    codec, model = Codec(weights), IndexModel.of(weights).eval()
    features = fake_features(weights, 36)
    for quality in (0, 4, 7):
        symbols = codec.symbols(codec.components(features), 6, np.arange(36), quality)
        index = torch.from_numpy(symbols.q)[None]
        bits = model.loss(6, index, torch.ones(1, 36, dtype=torch.bool), torch.tensor([quality])).sum(-1)
        np.testing.assert_allclose(bits.detach().numpy(), codec.entropy_model.bits(symbols), atol=0.3)


def test_one_expert_is_the_trained_model(monkeypatch: pytest.MonkeyPatch) -> None:
    grids = indices(CODEC, pictures(4), QUALITY, 0)
    model = IndexModel.of(WEIGHTS).eval()
    one = IndexExperts(model, 1, "one").eval()
    for part in grids:
        index, quality = part.y.long(), torch.full((len(part.y),), QUALITY)
        wanted = model.loss(part.side, index, part.present, quality).sum(-1).mean()
        loss, coded = one(part.side, index, part.present, QUALITY)
        assert float(loss.detach()) == pytest.approx(float(coded.detach()), rel=1e-5)
        assert float(coded.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)


def test_every_variant_is_measured_and_a_finished_file_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = tmp_path / "experts.json", list[str]()
    monkeypatch.setattr(index_experts, "VARIANTS", ((1, "one"), (2, "try all"), (2, "router"), (2, "decoded")))
    arguments = dict(codec_id="c", quality=QUALITY, steps=2, log=said.append)
    found = compare(WEIGHTS, pictures(3), pictures(2, 9), out, **arguments)
    assert [one["chooser"] for one in found] == ["one", "try all", "router", "decoded"]
    assert all(one["bits"] > 0 for one in found) and len(said) == 4
    assert compare(WEIGHTS, pictures(3), pictures(2, 9), out, **arguments) == found and len(said) == 4
