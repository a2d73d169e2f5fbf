# SPDX-License-Identifier: Apache-2.0
"""Where processes run, and on which NUMA node memory lies."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from pipeline.host import processes

_MBIND, _MPOL_PREFERRED, _MPOL_MF_MOVE = {"x86_64": 237, "aarch64": 235}, 1, 2
_WORDS = 16                    # of a mask of nodes: 1024 of them
_MADV_POPULATE_WRITE = 23


def pin(pid: int, cpus: Iterable[int]) -> bool:
    """Every thread of the process, and those that it starts later, runs on these CPUs only. False: it has gone, or
    there are no such CPUs.
    """
    wanted = set(cpus)
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        for thread in threads:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), wanted)
    except (OSError, ValueError):
        return False
    return True


def taken(spared: Path | None = None) -> dict[int, str]:
    """The CPUs that parts of running swarms are pinned to, each with the run-time folder of its swarm. ``spared``: the
    folder of one that does not count.
    """
    anywhere, found = os.sched_getaffinity(0), dict[int, str]()
    spared = spared and spared.absolute()
    for process, folder in processes.of_all_swarms():
        with contextlib.suppress(ProcessLookupError):
            cpus = os.sched_getaffinity(process.pid)
            if cpus < anywhere and folder != spared:
                found |= dict.fromkeys(cpus, str(folder))
    return found


def prefer_node(fd: int, length: int, node: int) -> bool:
    """Pages of this shared memory are taken from the node while it has some, whoever touches them first; those that are
    there already move. Hugepages are taken at once, which needs a quarter of a second for a GiB: to the kernel their
    place is a matter of the mapping that touches them, not of the memory. False: the kernel has no NUMA, or no such
    node; then they come from anywhere.
    """
    number = _MBIND.get(os.uname().machine)
    if number is None or not 0 <= node < 64 * _WORDS:
        return False
    mask = (ctypes.c_ulong * _WORDS)()
    mask[node // 64] = 1 << node % 64
    with closing(mmap.mmap(fd, length)) as memory:
        start = ctypes.c_char.from_buffer(memory)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall.argtypes = [ctypes.c_long] * 7
        failed = libc.syscall(number, ctypes.addressof(start), length, _MPOL_PREFERRED, ctypes.addressof(mask),
                              64 * _WORDS + 1, _MPOL_MF_MOVE)
        del start
        if not failed and os.fstat(fd).st_blksize > mmap.PAGESIZE:
            memory.madvise(_MADV_POPULATE_WRITE)
    return not failed
