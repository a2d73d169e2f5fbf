# SPDX-License-Identifier: Apache-2.0
"""Shared memory: how long it is, and what of it is paid for."""

import mmap
import os
from contextlib import closing

import pytest

from pipeline.host import hugepages
from pipeline.host.memory import HUGE_PAGE_LEN, power_of_two, shared_memfd


@pytest.mark.parametrize(("length", "longer"), [(1, 1), (2, 2), (3, 4), (4096, 4096), (3 << 20, 4 << 20)])
def test_power_of_two(length: int, longer: int) -> None:
    assert power_of_two(length) == longer


def test_memory_without_hugepages_is_as_long() -> None:
    fd, huge = shared_memfd("sl-test", 4096, room=8192)
    with os.fdopen(fd, "rb") as file:
        assert not huge
        assert os.fstat(file.fileno()).st_size == 8192
        with pytest.raises(PermissionError):
            os.ftruncate(file.fileno(), 4096)


@pytest.mark.root
def test_what_lies_behind_the_length_costs_no_hugepage() -> None:
    added = hugepages.reserve(1)
    try:
        more_than_there_are = (hugepages.pool().total + 1) * HUGE_PAGE_LEN
        fd, huge = shared_memfd("sl-test", HUGE_PAGE_LEN, room=more_than_there_are)
        with os.fdopen(fd, "rb+") as file:
            assert huge
            assert os.fstat(file.fileno()).st_size > HUGE_PAGE_LEN
            with closing(mmap.mmap(file.fileno(), HUGE_PAGE_LEN)) as memory:
                memory[0] = 1
    finally:
        hugepages.restore(added)
