# SPDX-License-Identifier: Apache-2.0
"""A holder as a process of its own, and QEMU's side of its protocol."""

import os
import select
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.host import processes
from pipeline.host.holder_client import HolderClient
from pipeline.host.ivshmem import BELLS

PATIENCE = 10.0
GREETING = 4 + BELLS       # messages, if it may ring nobody


class Qemu:
    """The client side of the ivshmem protocol, as QEMU has it: one integer and perhaps one descriptor at a time."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.fds: dict[int, int] = {}      # value -> its latest descriptor
        self.bells: list[int] = []         # its own doorbells
        try:
            self.sock.connect(str(path))
        except OSError:
            self.sock.close()
            raise

    def message(self) -> tuple[int, bool]:
        """The next value, and whether a descriptor came with it."""
        data, fds, _, _ = socket.recv_fds(self.sock, 8, 2)
        assert len(data) == 8
        assert len(fds) <= 1
        (value,) = struct.unpack("<q", data)
        if fds:
            self._forget(value)
            self.fds[value] = fds[0]
        return value, bool(fds)

    def greeting(self) -> None:
        """All messages of it; it may ring nobody yet."""
        (_, _), (own, _), *_ = self.messages(GREETING - BELLS)
        for _ in range(BELLS):
            assert self.message() == (own, True)
            self.bells.append(self.fds.pop(own))

    def messages(self, nb: int) -> list[tuple[int, bool]]:
        return [self.message() for _ in range(nb)]

    def silent(self) -> bool:
        """Nothing has come. Ask after a call to the holder: it answers in order."""
        return not select.select([self.sock], [], [], 0)[0]

    def ended(self) -> bool:
        """The holder hung up. What was sent before is skipped."""
        try:
            while self.sock.recv(4096):
                pass
        except ConnectionResetError:
            pass
        return True

    def _forget(self, value: int) -> None:
        if value in self.fds:
            os.close(self.fds.pop(value))

    def close(self) -> None:
        for value in list(self.fds):
            self._forget(value)
        while self.bells:
            os.close(self.bells.pop())
        self.sock.close()


def reap(pid: int) -> None:
    """Takes the exit status of a holder that this process started, if no test has done so."""
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        return


def down(run_dir: Path) -> list[processes.Process]:
    """What remains of a swarm after any crash goes; the folder itself stays for the fixture that made it."""
    killed = processes.kill_all(run_dir)
    processes.clean_up(run_dir)
    assert not run_dir.exists()
    run_dir.mkdir()
    return killed


def until(condition: Callable[[], Any]) -> None:
    """Waits for what another process does without telling anybody."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def same_file(a: int, b: int) -> bool:
    return os.path.samestat(os.fstat(a), os.fstat(b))


def nb_fds(holder: HolderClient) -> int:
    return len(os.listdir(f"/proc/{holder.hello().pid}/fd"))


def state_of(holder: HolderClient, vm_id: int) -> str:
    return next(facts.state for facts in holder.instance_list() if facts.vm_id == vm_id)
