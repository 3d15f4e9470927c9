"""The bytes of a picture are those of the packets in which its views leave together."""

from __future__ import annotations

import pytest

from tofc.codec.codec import Codec
from tofc.codec.fake import fake_features
from tofc.codec.index.fake import fake_index_weights
from tofc_lab.nano.costs import HEADER, CodedCost, IdealCost, packet_bytes


@pytest.mark.parametrize("views", [1, 8, 9, 20])
def test_ideal_bits_get_a_header_for_each_packet_of_eight_views(views: int) -> None:
    assert packet_bytes([IdealCost(11.0)] * views) == HEADER * -(-views // 8) + views * 11 / 8


def test_real_packets_are_those_that_a_device_sends() -> None:
    codec = Codec(fake_index_weights(seed=3))
    coded = [codec.code(fake_features(codec.weights, 16, seed), 16) for seed in range(10)]
    total = packet_bytes([CodedCost(codec, view) for view in coded])
    assert total == sum(map(len, codec.packets(coded))) < sum(len(codec.write([view])) for view in coded)


def test_sizes_that_are_known_add_up() -> None:
    assert packet_bytes([100.0, 20.5]) == 120.5 and packet_bytes([]) == 0
