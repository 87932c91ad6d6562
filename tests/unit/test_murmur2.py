"""Placement as Java clients have it."""

import pytest

from stream_dmgin.log.murmur2 import murmur2, partition_of

# org.apache.kafka.common.utils.UtilsTest, as signed numbers
JAVA = {
    b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536, b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, b"abc": 479470107,
}  # fmt: skip


@pytest.mark.parametrize("key", JAVA)
def test_the_values_of_the_java_client(key: bytes) -> None:
    assert murmur2(key) == JAVA[key] % (1 << 32)


def test_every_partition_is_used_and_in_range() -> None:
    places = [partition_of(b"user%d" % i, 8) for i in range(8000)]
    assert set(places) == set(range(8))
    assert max(places.count(p) for p in range(8)) < 1200
    assert partition_of(b"", 8) == (murmur2(b"") & 0x7FFFFFFF) % 8
    assert {partition_of(b"user%d" % i, 1) for i in range(100)} == {0}
