# SPDX-License-Identifier: Apache-2.0
"""Processes by pidfd, and everything that belongs to a run-time folder.

Each process of a swarm carries ``--run-dir=DIR`` in its argv, with DIR absolute. So whatever was killed, and
whatever is left, ``find`` finds the rest: it needs no file of a process that may be dead.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import math
import os
import re
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import HostError

MNT_DETACH = 2
BIN_VARIABLE = "SWARMLINE_BIN"     # a folder that is searched first for swarmline's programs; for tests
RUN_DIR_OPTION = "--run-dir="
VARIABLES = ("SWARMLINE_", "ASAN_", "UBSAN_")

# What processes of a swarm make in its folder. Nothing else is ever removed from there.
FILES = ("*.sock", "*.log", "*.log.[0-9]*", "*.pid", "*.new", "state.json", "lock")
FOLDERS = ("ivshmem", "instances", "vhost", "log", "keys", "bpf", "dpdk")


@dataclass(frozen=True)
class Process:
    """A process that can not be mistaken for a later one with the same pid."""

    pid: int
    start_time: int       # clock ticks since boot, /proc/PID/stat field 22
    argv: tuple[str, ...] = ()

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this pid now; None if there is none, or only its zombie."""
        facts = _stat(pid)
        if facts is None or facts[0] in "ZX":
            return None
        return cls(pid, facts[1], _argv(pid))

    @property
    def alive(self) -> bool:
        now = _stat(self.pid)
        return now is not None and now[1] == self.start_time and now[0] not in "ZX"

    @property
    def runnable(self) -> bool:
        """One of its threads could run if there were a CPU for it: not all are asleep, stopped or dead."""
        try:
            threads = os.listdir(f"/proc/{self.pid}/task")
        except OSError:
            return False
        return any(stat[0] == "R" for thread in threads if (stat := _stat(int(thread))))

    def open(self) -> int | None:
        """A pidfd; None if the process is gone. The caller closes it."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        if self.alive:                     # the pidfd is older than this look: it can not be another's
            return pidfd
        os.close(pidfd)
        return None

    def kill(self, number: signal.Signals = signal.SIGKILL) -> bool:
        """Sends a signal to this process and no other. False: it was gone."""
        pidfd = self.open()
        if pidfd is None:
            return False
        try:
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(pidfd)
        return True

    async def wait(self) -> None:
        """Returns when it has ended."""
        pidfd = self.open()
        if pidfd is None:
            return
        try:
            await readable(pidfd)
        finally:
            os.close(pidfd)


async def readable(fd: int) -> None:
    """Waits until a descriptor is readable: a pidfd becomes so when its process ends."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(fd, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(fd)


def program(name: str) -> Path:
    """The path of one of swarmline's programs: in $SWARMLINE_BIN, beside this Python, or on PATH."""
    folders = [os.environ.get(BIN_VARIABLE, ""), str(Path(sys.executable).parent),
               os.environ.get("PATH", os.defpath)]
    found = shutil.which(name, path=os.pathsep.join(folder for folder in folders if folder))
    if not found:
        raise HostError(f"the program {name} is not installed",
                        hint=f"run `make install`, or name its folder in ${BIN_VARIABLE}")
    return Path(found)


def environment() -> dict[str, str]:
    """For programs that the manager starts: nothing of its own, but what is needed to debug them."""
    passed = {name: value for name, value in os.environ.items() if name.startswith(VARIABLES)}
    return {"PATH": os.defpath, "LANG": "C.UTF-8", **passed}


def run_dir_argument(run_dir: Path) -> str:
    """The word by which a process is known to belong to a swarm."""
    return f"{RUN_DIR_OPTION}{os.path.abspath(run_dir)}"


def find(run_dir: Path) -> list[Process]:
    """All processes of the swarm in this folder, without the caller and those that it descends from."""
    word = run_dir_argument(run_dir)
    spared = set(_ancestry(os.getpid()))
    return [process for pid in _pids() if pid not in spared
            and (process := Process.of(pid)) and word in process.argv and not _front_end(process)]


def of_instance(run_dir: Path, vm_id: int) -> list[Process]:
    """Those of one instance: it, and while it starts what starts it."""
    return [process for process in find(run_dir) if f"--vm-id={vm_id}" in process.argv]


def of_all_swarms() -> Iterator[tuple[Process, Path]]:
    """Each process of every swarm on this machine, with the swarm's folder."""
    for pid in _pids():
        process = Process.of(pid)
        words = process.argv if process and not _front_end(process) else ()
        folder = next((w.removeprefix(RUN_DIR_OPTION) for w in words if w.startswith(RUN_DIR_OPTION)), "")
        if process and folder:
            yield process, Path(folder)


def _front_end(process: Process) -> bool:
    """A command of somebody at a terminal (`swarmline events -f`, `up` in the foreground) is no part of the swarm."""
    return any(Path(word).name == "swarmline" for word in process.argv[:2])


def kill_all(run_dir: Path, timeout: float = 10.0) -> list[Process]:
    """Kills every process of the swarm; those that would start others first. Returns those killed.

    Raises HostError if some are still there so long after they were sent the signal: on a starved machine it takes
    seconds to find them.
    """
    killed: dict[tuple[int, int], Process] = {}
    deadline = math.inf
    while left := find(run_dir):
        if time.monotonic() > deadline:
            raise HostError(f"these processes do not die: {', '.join(str(p.pid) for p in left)}",
                            hint="they are blocked in the kernel: see /proc/PID/stack")
        pidfds = []
        for process in sorted(left, key=_starters_first):
            killed[process.pid, process.start_time] = process
            pidfd = process.open()
            if pidfd is not None:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                pidfds.append(pidfd)
        deadline = min(deadline, time.monotonic() + timeout)
        _wait_all(pidfds, deadline)
    return list(killed.values())


def clean_up(run_dir: Path) -> None:
    """Unmounts what is mounted below the folder, removes what swarms make in it, and the folder if it is
    empty then."""
    unmount_below(run_dir)
    for pattern in FILES:
        for path in run_dir.glob(pattern):
            if not path.is_dir() or path.is_symlink():
                path.unlink(missing_ok=True)
    for name in FOLDERS:
        folder = run_dir / name
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder, ignore_errors=True)
    try:
        run_dir.rmdir()
    except OSError:
        return             # somebody keeps something of his own there, or the folder never was


def unmount_below(run_dir: Path) -> list[Path]:
    """Unmounts all mounts below the folder, the last first: a bpffs goes with its pins. Returns their
    places."""
    prefix = f"{os.path.realpath(run_dir)}/"
    places = [place for place in _mounts() if place.startswith(prefix)]
    libc = ctypes.CDLL(None, use_errno=True)
    for place in reversed(places):
        if libc.umount2(os.fsencode(place), MNT_DETACH):
            error = os.strerror(ctypes.get_errno())
            raise HostError(f"cannot unmount {place}: {error}", hint="run it as root")
    return [Path(place) for place in places]


def log_tail(path: Path, lines: int = 5) -> list[str]:
    """The last lines of a log; none if there is no log."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [_words(line) for line in text.splitlines() if line.strip()][-lines:]


def _words(line: str) -> str:
    """What a structured line says, for people."""
    try:
        value = json.loads(line)
        return str(value["event"])
    except (ValueError, KeyError, TypeError):
        return line


def _starters_first(process: Process) -> int:
    order = ("pipeline.host.holder", "pipeline.daemon")
    return next((n for n, word in enumerate(order) if word in process.argv), len(order))


def _wait_all(pidfds: list[int], deadline: float) -> None:
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    left = set(pidfds)
    while left and (rest := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(rest * 1000):
            poll.unregister(fd)
            left.discard(fd)
    for pidfd in pidfds:
        os.close(pidfd)


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _ancestry(pid: int) -> Iterable[int]:
    while pid > 0:
        yield pid
        facts = _stat(pid)
        pid = facts[2] if facts else 0


def _stat(pid: int) -> tuple[str, int, int] | None:
    """State, start time and parent. The name before them may hold anything, so it is cut off at its last
    bracket."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[19]), int(fields[1])


def _argv(pid: int) -> tuple[str, ...]:
    try:
        data = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ()
    return tuple(word.decode(errors="replace") for word in data.rstrip(b"\0").split(b"\0"))


def _mounts() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [re.sub(r"\\(\d{3})", _unescape, line.split()[4]) for line in lines]


def _unescape(octal: re.Match[str]) -> str:
    return chr(int(octal[1], 8))
