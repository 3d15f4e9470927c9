"""Texts of --link, and what is said of those that are none."""

from __future__ import annotations

import pytest

from device_client.link_shape import PRESETS, LinkShape, parse_link
from tofc.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("25KB/s", LinkShape(name="25KB/s", up=25e3, down=25e3, rtt_s=0.06)),
        ("1 Mbit/s, 20 ms, 1 %", LinkShape(name="1 Mbit/s, 20 ms, 1 %", up=125e3, down=125e3, rtt_s=0.02, loss=0.01)),
        (
            "96KB/s:1.6mbit/s,.3s,0.5%,30ms",
            LinkShape(name="96KB/s:1.6mbit/s,.3s,0.5%,30ms", up=96e3, down=2e5, rtt_s=0.3, loss=0.005, jitter_s=0.03),
        ),
        ("LTE", PRESETS["lte"]),
    ],
)
def test_a_link_is_read(text: str, expected: LinkShape) -> None:
    found = parse_link(text)
    assert (found.name, found.up, found.down) == (expected.name, pytest.approx(expected.up), expected.down)
    assert (found.rtt_s, found.loss, found.jitter_s) == pytest.approx(
        (expected.rtt_s, expected.loss, expected.jitter_s)
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("5g", "--link must be 3g, lte, wifi, or RATE.*'5g' in '5g' is no rate"),
        ("", "is no rate"),
        ("25", "is no rate"),
        ("25KB", "is no rate"),
        ("25KB/s:fast", "'fast' in '25KB/s:fast' is no rate"),
        ("25KB/s,60", "'60' must be a number with ms or s behind it"),
        ("25KB/s,60ms,1", "'1' must be a number with % behind it"),
        ("25KB/s,60ms,1%,2ms,3", "at most RATE,RTT,LOSS,JITTER, got 5 parts"),
        ("1B/s", "at least 100 B/s each way, got 1B/s"),
        ("25KB/s,11s", "a round trip of 0 to 10 s"),
        ("25KB/s,60ms,50%", "0 to 20 % of its segments"),
        ("25KB/s,60ms,1%,6s", "a jitter of 0 to 5 s"),
    ],
)
def test_what_is_no_link_is_refused_with_what_is_allowed(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_link(text)


def test_a_link_says_what_it_is() -> None:
    assert str(PRESETS["3g"]) == "96 KB/s up, 200 KB/s down, round trip 300 ms, 0.5 % lost, jitter 30 ms"
    assert str(parse_link("10Mbit/s,0ms")) == "1.25 MB/s, round trip 0 ms"
