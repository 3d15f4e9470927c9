"""How long a picture's first token would take as features and as an image file, from what was measured so far.

    features    views · device ms a view ─────────────────────────────── + server decode a view + base
    image file  megapixels · compression ms + bytes · link ms a byte + views · server tower ms a view + base

`base` is what both ways share: the round trip, the prefill, the queue. Times of device and server are the lower
quartile of the last eight, because whatever disturbs them makes them longer; a link is the median of its last three
files, because links change. Promises None where nothing of the device is known yet, and guesses that favour trying an
image file once where only the server is unknown. Leaves deciding to `mode_choice`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

KEPT = 8  # measurements of a time
KEPT_OF_LINK = 3  # of the link's speed
SERVER_SPEEDUP = 4.0  # guess: how much faster than this device a server's tower is, until it was seen
ROUND_TRIPS = 4  # of opening a link: TCP, TLS, HTTP/2's settings, Hello
OPENING_CPU_MS = 15.0  # of both sides
FILE_BYTES_PER_MP = 20_000.0  # guesses, until a file was made: of a small WebP
FILE_MS_PER_MP = 60.0


class Figure:
    """A quantile of the last measurements of one thing; `value` is None before the first."""

    def __init__(self, kept: int = KEPT, *, part: int = 4) -> None:
        """Keep so many measurements; take the one below which a `part`-th of them are (4: the lower quartile)."""
        self._seen: deque[float] = deque(maxlen=kept)
        self._part = part

    def add(self, value: float) -> None:
        """Take a measurement."""
        self._seen.append(value)

    @property
    def value(self) -> float | None:
        """Return the quantile; of few measurements the lower one."""
        return _quantile(self._seen, self._part) if self._seen else None

    def or_else(self, guess: float) -> float:
        """Return the value, or a guess before the first measurement."""
        return guess if self.value is None else self.value


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one question about new pictures took, all sent in one way."""

    views: int
    last_packet_views: int
    """Of the packet whose acknowledgement was the last one; 0 for a file."""
    megapixels: float
    device_ms: float
    """Views, tower and codec; or compressing the file."""
    n_bytes: int
    """Of packets or files."""
    upload_ms: float
    """From the end of encoding to the last acknowledgement."""
    server_ms: float
    """The server's decoding; of a file its tower too."""
    first_token_ms: float | None
    """None: it also contains opening the link or loading the tower."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What opening a link took."""

    ms: float
    n_bytes: int
    """Both ways, on the socket."""


class LinkEstimates:
    """What is known of one link to one server, and of the device that uses it."""

    def __init__(self, opening: Opening, device: DeviceEstimates, server: ServerEstimates) -> None:
        self._opening = opening
        self._device, self._server = device, server
        self._round_trip_ms, self._ms_per_byte = Figure(), Figure(KEPT_OF_LINK, part=2)
        self._seen_features: deque[Measured] = deque(maxlen=KEPT)
        self._seen_files: deque[Measured] = deque(maxlen=KEPT)

    @property
    def file_was_sent(self) -> bool:
        """Whether an image file was sent over this link."""
        return self._ms_per_byte.value is not None

    @property
    def round_trip_ms(self) -> float:
        """Return the round trip, a share of opening the link before the first acknowledgement."""
        return self._round_trip_ms.or_else(self._opening.ms / ROUND_TRIPS)

    @property
    def ms_per_byte(self) -> float:
        """Return what a byte takes: as measured with files, else what opening took beyond its round trips."""
        beyond_ms = self._opening.ms - ROUND_TRIPS * self.round_trip_ms - OPENING_CPU_MS
        return self._ms_per_byte.or_else(max(0.0, beyond_ms) / self._opening.n_bytes)

    def features_ms(self, views: int) -> float | None:
        """Predict the first token of a picture that is sent as packets; None before the first one was."""
        if self._device.view_ms.value is None:
            return None
        return self._packets_ms(views) + self._base_ms(self._features_bases() or self._file_bases())

    def file_ms(self, views: int, megapixels: float) -> float:
        """Predict the first token of a picture that is sent as an image file."""
        return self._file_ms(views, megapixels) + self._base_ms(self._file_bases() or self._features_bases())

    def _packets_ms(self, views: int) -> float:
        """Return what device and server compute for packets."""
        return views * (self._device.view_ms.or_else(0.0) + self._server.packet_ms.or_else(0.0))

    def _file_ms(self, views: int, megapixels: float) -> float:
        """Return what device and server compute for a file, and what the link takes for its bytes."""
        server_view_ms = self._server.view_ms.or_else(self._device.view_ms.or_else(0.0) / SERVER_SPEEDUP)
        device_ms = megapixels * self._device.file_ms_per_mp.or_else(FILE_MS_PER_MP)
        n_bytes = megapixels * self._device.file_bytes_per_mp.or_else(FILE_BYTES_PER_MP)
        return device_ms + n_bytes * self.ms_per_byte + views * server_view_ms

    def _features_bases(self) -> list[float]:
        """Return what the first tokens so far took beyond what is known of packets now."""
        known = [one for one in self._seen_features if one.first_token_ms is not None]
        return [(one.first_token_ms or 0.0) - self._packets_ms(one.views) for one in known]

    def _file_bases(self) -> list[float]:
        known = [one for one in self._seen_files if one.first_token_ms is not None]
        return [(one.first_token_ms or 0.0) - self._file_ms(one.views, one.megapixels) for one in known]

    def _base_ms(self, bases: list[float]) -> float:
        return max(0.0, _quantile(bases, 4)) if bases else self.round_trip_ms

    def add_features(self, seen: Measured) -> None:
        """Take what a question about packets took."""
        self._device.view_ms.add(seen.device_ms / seen.views)
        view_ms = seen.server_ms / seen.views
        self._server.packet_ms.add(view_ms)
        self._round_trip_ms.add(max(0.0, seen.upload_ms - seen.last_packet_views * view_ms))
        self._seen_features.append(seen)

    def add_file(self, seen: Measured) -> None:
        """Take what a question about image files took."""
        self._device.file_ms_per_mp.add(seen.device_ms / seen.megapixels)
        self._device.file_bytes_per_mp.add(seen.n_bytes / seen.megapixels)
        self._server.view_ms.add(seen.server_ms / seen.views)
        self._ms_per_byte.add(max(0.0, seen.upload_ms - self.round_trip_ms) / seen.n_bytes)
        self._seen_files.append(seen)


class DeviceEstimates:
    """What is known of this device."""

    def __init__(self) -> None:
        self.view_ms, self.file_ms_per_mp, self.file_bytes_per_mp = Figure(), Figure(), Figure()


class ServerEstimates:
    """What is known of one server."""

    def __init__(self) -> None:
        self.view_ms, self.packet_ms = Figure(), Figure()


def _quantile(values: Collection[float], part: int) -> float:
    return sorted(values)[(len(values) - 1) // part]
