"""The name under which a device announces a picture to one server.

Promises that different pictures have different names there, though a name has only 8 bytes. By chance two share
one in 2^64 cases; and nobody can look for two that do, which for a plain hash of 8 bytes takes minutes, because the
key is another one each time a server starts and only who may open a session is told it. Leaves what makes pictures
equal to the device's own id, which is longer.
"""

import hashlib

ID_BYTES = 8
KEY_BYTES = range(16, 65)  # what a key may have; BLAKE2b takes no longer one


def wire_id(key: bytes, picture_id: bytes) -> bytes:
    """A server's key and a device's id of a picture → `Picture.picture_id`.

    >>> one, other = bytes(16), bytes(15) + b"1"
    >>> name = wire_id(one, b"the device's id")
    >>> len(name), name == wire_id(one, b"the device's id"), name == wire_id(other, b"the device's id")
    (8, True, False)
    """
    return hashlib.blake2b(picture_id, key=key, digest_size=ID_BYTES).digest()
