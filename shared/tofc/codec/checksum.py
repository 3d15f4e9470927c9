"""CRC-12, the checksum of a packet: 12 bits, of which the upper four share a byte with the packet's header.

Promises to find every error of one or two bits within 255 bytes, every odd number of flipped bits and every burst
of up to 12 bits. Leaves protection in transit to TCP and TLS, whose own checks are longer.
"""

from __future__ import annotations

from functools import lru_cache

_BITS = 12
_POLYNOMIAL, _MASK = 0x80F, (1 << _BITS) - 1


def _shift_byte(value: int) -> int:
    """Divide eight more bits by the polynomial."""
    for _ in range(8):
        value = value << 1 ^ (_POLYNOMIAL if value & 0x800 else 0)
    return value & _MASK


_TABLE = [_shift_byte(byte << 4) for byte in range(256)]


@lru_cache(maxsize=4)  # a decoder needs it twice: for the bytes received, and for the bytes an encoder would write
def crc12(data: bytes) -> int:
    """Compute the CRC: polynomial 0x80F, initial value 0xFFF, not reflected, no final xor.

    >>> hex(crc12(b"123456789"))
    '0x37c'
    """
    value = _MASK
    for byte in data:
        value = value << 8 & _MASK ^ _TABLE[value >> 4 ^ byte]
    return value


def append_crc(content: bytes) -> bytes:
    """Append the checksum to content whose first byte uses only its lower four bits. The result is one byte longer.

    >>> strip_crc(append_crc(b"\\x0fabc"))
    b'\\x0fabc'
    """
    return (int.from_bytes(content, "big") << _BITS | crc12(content)).to_bytes(len(content) + 1, "big")


def strip_crc(data: bytes) -> bytes:
    """Remove the checksum of at least two bytes of data, without checking it: the inverse of `append_crc`."""
    return (int.from_bytes(data, "big") >> _BITS).to_bytes(len(data) - 1, "big")
