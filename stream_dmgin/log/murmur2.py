"""The partitioner of Java clients: murmur2 of the key. Every writer of user-keyed topics must use it, so that partition i
of each topic holds the same users (librdkafka's `murmur2_random` gives the same)."""

from __future__ import annotations

_M, _MASK = 0x5BD1E995, 0xFFFFFFFF
_SEED = 0x9747B28C


def murmur2(key: bytes) -> int:
    """32-bit murmur2 of `key` with Kafka's seed, as an unsigned number.

    >>> hex(murmur2(b"kafka"))
    '0xd067cf64'
    """
    n = len(key)
    h = _SEED ^ n
    whole = n & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(key[at : at + 4], "little") * _M & _MASK
        k = (k ^ k >> 24) * _M & _MASK
        h = h * _M & _MASK ^ k
    if whole < n:
        h = (h ^ int.from_bytes(key[whole:], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of `key` among `partitions` (1 or more)."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
