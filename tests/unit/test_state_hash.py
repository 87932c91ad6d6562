"""The hash of ids is XXH64 with seed 0, and every file with kernels is part of the stamp of the cache."""

import os
from pathlib import Path

import xxhash

import stream_dmgin.state
from stream_dmgin.state.hash import hash64, item_hash
from stream_dmgin.state.jit import KERNEL_FILES


def test_hash64_is_xxh64():
    for n in (*range(101), 255, 1024):
        data = os.urandom(n)
        assert hash64(data) == xxhash.xxh64_intdigest(data), n


def test_item_hash_is_of_utf8():
    assert item_hash("漢字") == xxhash.xxh64_intdigest("漢字".encode())


def test_every_file_with_kernels_is_in_the_stamp():
    room = Path(stream_dmgin.state.__file__).parent
    with_kernels = {f.name for f in room.glob("*.py") if "\n@kernel\n" in f.read_text()}
    assert with_kernels <= set(KERNEL_FILES)
    assert all((room / f).exists() for f in KERNEL_FILES)
