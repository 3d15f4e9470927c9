"""CRC-12: the check of a packet, one and a half bytes, and how it shares a byte with what it checks.

Promises to find every error of one or two bits within 255 bytes, every odd number of flipped bits and every burst
of up to 12 bits. Leaves damage on the way to the transport, whose own checks are longer.
"""

from __future__ import annotations

from functools import lru_cache

_BITS = 12
_POLYNOMIAL, _MASK = 0x80F, (1 << _BITS) - 1


def _step(value: int) -> int:
    for _ in range(8):
        value = value << 1 ^ (_POLYNOMIAL if value & 0x800 else 0)
    return value & _MASK


_TABLE = [_step(byte << 4) for byte in range(256)]


@lru_cache(maxsize=4)  # a decoder asks about what came, and again about what should have come
def crc12(data: bytes) -> int:
    """Polynomial 0x80F, initial value 0xFFF, not reflected, no final xor.

    >>> hex(crc12(b"123456789"))
    '0x37c'
    """
    value = _MASK
    for byte in data:
        value = value << 8 & _MASK ^ _TABLE[value >> 4 ^ byte]
    return value


def sealed(content: bytes) -> bytes:
    """Content, whose first byte has four bits only, and its check behind it: one byte more.

    >>> content_of(sealed(b"\\x0fabc"))
    b'\\x0fabc'
    """
    return (int.from_bytes(content, "big") << _BITS | crc12(content)).to_bytes(len(content) + 1, "big")


def content_of(data: bytes) -> bytes:
    """What of at least two bytes is not the check, whether that is right or not."""
    return (int.from_bytes(data, "big") >> _BITS).to_bytes(len(data) - 1, "big")
