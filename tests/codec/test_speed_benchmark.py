"""The codec's benchmark measures what it says; no test asserts how fast anything is."""

from __future__ import annotations

import pytest

from benchmarks import codec_speed
from tofc.codec.codec import Codec
from tofc.codec.fake import fake_features, fake_weights
from tofc.codec.files import ENTROPY_MODELS
from tofc.codec.index.fake import fake_index_weights


@pytest.mark.parametrize("name", sorted(ENTROPY_MODELS))
def test_every_size_of_picture_is_timed_for_every_entropy_model(name: str) -> None:
    weights = codec_speed.released_codecs()[name]()
    assert (weights.config.entropy_model, weights.config.feature_dim, weights.config.hidden) == (name, 6144, 4096)
    found = codec_speed.released(weights, rounds=1, sizes=(1, 2), kept=(4,))
    taken = found["4 features a view"]["ms"]
    assert set(taken) == {f"{work}, {count} views" for work in ("merge and encode", "decode") for count in (1, 2)}
    assert all(one > 0 for one in taken.values())


def test_a_half_reads_all_tensors_but_those_of_the_other() -> None:
    weights = fake_index_weights(D=12, M=6, H=4)
    found = codec_speed.bytes_of(weights)
    assert found["all"] - found["device"] == 4 * 12 * 6 + 4 * 4 * (16 + 36)
    assert found["all"] - found["server"] == 4 * 12 * 6 + 4


def test_small_packets_have_little_beyond_their_content() -> None:
    codec = Codec(fake_weights(Q=3))
    found = codec_speed.overhead(codec, [fake_features(codec.weights, 36, seed=seed) for seed in range(3)])
    assert found
    for name, beyond in found.items():
        assert 2 <= beyond["bytes"] < 3
        assert beyond["packets"] > 0
        assert beyond["per cent"] < 100 * 3 / int(name.split("–")[0]) + 1
