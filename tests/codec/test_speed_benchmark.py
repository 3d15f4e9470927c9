"""The codec's benchmark measures what it says; no test asserts how fast anything is."""

from __future__ import annotations

from benchmarks import codec_speed
from tofc.codec.codec import Codec
from tofc.codec.fake import fake_features, fake_weights


def test_every_size_of_picture_is_timed() -> None:
    found = codec_speed.released(rounds=1, sizes=(1, 2), kept=(4,))
    assert found["picture of so many views, px"] == {"9": [1920, 1080], "37": [3024, 3024]}
    taken = found["4 features a view"]["ms"]
    assert set(taken) == {f"{work}, {count} views" for work in ("merge and encode", "decode") for count in (1, 2)}
    assert all(one > 0 for one in taken.values())


def test_small_packets_have_little_beyond_their_content() -> None:
    codec = Codec(fake_weights(Q=3))
    found = codec_speed.overhead(codec, [fake_features(codec.weights, 36, seed=seed) for seed in range(3)])
    assert found
    for name, beyond in found.items():
        assert 2 <= beyond["bytes"] < 3
        assert beyond["packets"] > 0
        assert beyond["per cent"] < 100 * 3 / int(name.split("–")[0]) + 1
