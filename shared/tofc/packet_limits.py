"""How many views a packet has: what device and server know before they import the codec, which takes time."""

from __future__ import annotations

MOST_VIEWS = 64
VIEWS_PER_PACKET = 8  # by default: at the released sizes all crops of 1920 × 1080 px, while the global view is encoded
