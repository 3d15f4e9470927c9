"""From measured pieces to many devices: arithmetic, and a simulation of where a cluster saturates (docs/scaling.md)."""
