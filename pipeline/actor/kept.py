# SPDX-License-Identifier: Apache-2.0
"""Bytes that must survive the manager and must not be written to a disk: they lie with the holder."""

from __future__ import annotations

import os
import pickle

from pipeline.host import keys
from pipeline.host.holder_client import HolderClient
from pipeline.host.memory import sealed_memfd
from pipeline.policy.model import Swarm


def keep(holder: HolderClient, key: str, memory: bytes) -> None:
    """In the place of what was kept under this key, at once."""
    fd = sealed_memfd(f"sl-{key}", max(len(memory), 1))
    try:
        os.pwrite(fd, memory, 0)
        holder.fd_put(key, [fd])
    finally:
        os.close(fd)


def kept(holder: HolderClient, key: str) -> bytes | None:
    """None: nothing is kept under this key."""
    if key not in holder.fd_list():
        return None
    fd = holder.fd_get(key)[0]
    try:
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def remember(holder: HolderClient, swarm: Swarm) -> None:
    """Leaves the plan's state for a manager that comes after this one."""
    keep(holder, keys.SWARM, pickle.dumps(swarm))


def recall(holder: HolderClient) -> Swarm | None:
    """What a former manager left; None: there was none."""
    memory = kept(holder, keys.SWARM)
    if memory is None:
        return None
    swarm = pickle.loads(memory)       # written by remember() alone
    assert isinstance(swarm, Swarm)
    return swarm
