"""The id under which a device announces a picture to one server.

Promises that different pictures have different ids in practice, although an id has only 8 bytes: two collide by chance
in one of 2^64 cases. Nobody can search for a collision, which for a plain hash of 8 bytes takes minutes, because the
key changes each time the server starts, and only clients that may open a session receive it. Leaves to the device's
own, longer id which pictures are equal.
"""

from __future__ import annotations

import hashlib

ID_BYTES = 8
KEY_BYTES = range(16, 65)  # allowed lengths of a key; BLAKE2b takes at most 64 bytes


def wire_id(key: bytes, picture_id: bytes) -> bytes:
    """Derive `Picture.picture_id` from a server's key and the device's id of a picture.

    >>> one, other = bytes(16), bytes(15) + b"1"
    >>> name = wire_id(one, b"the device's id")
    >>> len(name), name == wire_id(one, b"the device's id"), name == wire_id(other, b"the device's id")
    (8, True, False)
    """
    return hashlib.blake2b(picture_id, key=key, digest_size=ID_BYTES).digest()
