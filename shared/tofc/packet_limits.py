"""Limits of packets that device and server know before they import the codec, which takes time."""

from __future__ import annotations

MOST_VIEWS = 64  # of one packet
