"""The shape of a link: how fast it is each way, its round trip, how often it loses a segment, how much delays vary.

    "25KB/s" · "3g" · "lte" · "wifi" · RATE[,RTT[,LOSS[,JITTER]]] ─ parse_link ─→ LinkShape

Promises that a text which is no link is refused with an error that says which part is wrong and what is allowed. Leaves
behaving like the link to `relay`.

>>> parse_link("25KB/s").up, parse_link("1Mbit/s:5Mbit/s,20ms,1%").down, parse_link("1Mbit/s,20ms,1%").rtt_s
(25000.0, 625000.0, 0.02)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from tofc.errors import UsageError

RTT_S = 0.06  # of a link that is given by its rate alone
_PER_S = {"b/s": 1.0, "kb/s": 1e3, "mb/s": 1e6, "bit/s": 0.125, "kbit/s": 125.0, "mbit/s": 125e3, "gbit/s": 125e6}
_NUMBER = r"(\d+(?:\.\d+)?|\.\d+)\s*"


@dataclass(frozen=True, kw_only=True)
class LinkShape:
    """A link. `up` and `down` in bytes a second, `up` from the device."""

    name: str
    up: float
    down: float
    rtt_s: float = RTT_S
    loss: float = 0.0
    """Share of segments that are lost, and so arrive later."""
    jitter_s: float = 0.0
    """The most that a segment is delayed beyond half of the round trip."""

    def __post_init__(self) -> None:
        if not (self.up >= 100 and self.down >= 100):
            raise UsageError(f"--link must carry at least 100 B/s each way, got {self.name}")
        if not 0 <= self.rtt_s <= 10:
            raise UsageError(f"--link must have a round trip of 0 to 10 s, got {self.name}")
        if not 0 <= self.loss <= 0.2:
            raise UsageError(f"--link must lose 0 to 20 % of its segments, got {self.name}")
        if not 0 <= self.jitter_s <= 5:
            raise UsageError(f"--link must have a jitter of 0 to 5 s, got {self.name}")

    def __str__(self) -> str:
        ways = _rate(self.up) if self.up == self.down else f"{_rate(self.up)} up, {_rate(self.down)} down"
        more = [f"round trip {self.rtt_s * 1e3:g} ms"]
        more += [f"{self.loss * 100:g} % lost"] if self.loss else []
        more += [f"jitter {self.jitter_s * 1e3:g} ms"] if self.jitter_s else []
        return f"{ways}, {', '.join(more)}"


#: 3G and LTE as WebPageTest's profiles of these names, with some loss and jitter; Wi-Fi as a room away from the router.
PRESETS = {
    "3g": LinkShape(name="3g", up=96e3, down=200e3, rtt_s=0.3, loss=0.005, jitter_s=0.03),
    "lte": LinkShape(name="lte", up=1.5e6, down=1.5e6, rtt_s=0.07, loss=0.001, jitter_s=0.01),
    "wifi": LinkShape(name="wifi", up=3.75e6, down=3.75e6, rtt_s=0.01, loss=0.002, jitter_s=0.005),
}


def parse_link(text: str) -> LinkShape:
    """Read a link. Raises UsageError."""
    name = text.strip()
    if found := PRESETS.get(name.lower()):
        return found
    rates, *rest = [part.strip() for part in name.split(",")]
    if len(rest) > 3:
        raise UsageError(f"--link takes at most RATE,RTT,LOSS,JITTER, got {len(rest) + 1} parts: {text!r}")
    up, colon, down = rates.partition(":")
    shape = LinkShape(name=name, up=_bytes_per_s(up, text), down=_bytes_per_s(down if colon else up, text))
    units = ("rtt_s", {"ms": 1e-3, "s": 1.0}), ("loss", {"%": 0.01}), ("jitter_s", {"ms": 1e-3, "s": 1.0})
    values = {field: _value(part, units, text) for part, (field, units) in zip(rest, units, strict=False)}
    return replace(shape, **values)  # type: ignore[arg-type]


def _bytes_per_s(part: str, text: str) -> float:
    match = re.fullmatch(_NUMBER + r"([kmg]?(?:b|bit)/s)", part.strip(), re.IGNORECASE)
    if match is None or (unit := match[2].lower()) not in _PER_S:
        raise UsageError(
            f"--link must be {', '.join(PRESETS)}, or RATE[,RTT[,LOSS[,JITTER]]] such as 25KB/s or 1Mbit/s,60ms,1%; "
            f"{part!r} in {text!r} is no rate (B/s, KB/s, MB/s, kbit/s, Mbit/s)"
        )
    return float(match[1]) * _PER_S[unit]


def _value(part: str, units: dict[str, float], text: str) -> float:
    match = re.fullmatch(_NUMBER + r"(\D+)", part)
    if match is None or match[2] not in units:
        raise UsageError(f"--link {text!r}: {part!r} must be a number with {' or '.join(units)} behind it")
    return float(match[1]) * units[match[2]]


def _rate(per_s: float) -> str:
    return f"{per_s / 1e3:g} KB/s" if per_s < 1e6 else f"{per_s / 1e6:g} MB/s"
