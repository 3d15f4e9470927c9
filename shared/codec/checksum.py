"""CRC-12: the check of a packet, one and a half bytes.

Promises to find every error of one or two bits within 255 bytes, every odd number of flipped bits and every burst
of up to 12 bits. Leaves damage on the way to the transport, whose own checks are longer.
"""

from __future__ import annotations

BITS = 12
_POLYNOMIAL, _MASK = 0x80F, (1 << BITS) - 1


def _step(value: int) -> int:
    for _ in range(8):
        value = value << 1 ^ (_POLYNOMIAL if value & 0x800 else 0)
    return value & _MASK


_TABLE = [_step(byte << 4) for byte in range(256)]


def crc12(data: bytes) -> int:
    """Polynomial 0x80F, initial value 0xFFF, not reflected, no final xor.

    >>> hex(crc12(b"123456789"))
    '0x37c'
    """
    value = _MASK
    for byte in data:
        value = value << 8 & _MASK ^ _TABLE[value >> 4 ^ byte]
    return value
