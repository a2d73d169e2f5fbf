# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: named ones (/run/netns/NAME, as made by ``ip netns``) and those of processes.

A namespace belongs to a thread. Whatever must happen inside one runs in a thread made for it, so the caller
never moves.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import NamespaceError

CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWNET = 0x04000000, 0x08000000, 0x40000000
FOLDER = Path("/run/netns")

T = TypeVar("T")

Netns = str | int     # a name, empty for the caller's own; or the pid of a process in it


def names() -> list[str]:
    """The named network namespaces."""
    try:
        return sorted(path.name for path in FOLDER.iterdir())
    except FileNotFoundError:
        return []


def open_netns(where: Netns) -> int:
    """A descriptor of the namespace, which lives at least as long. The caller closes it."""
    path = _path(where)
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        if isinstance(where, int):
            raise NamespaceError(f"process {where} is gone") from error
        known = ", ".join(names()) or "none"
        raise NamespaceError(f"no network namespace {where!r}; there are: {known}",
                             hint=f"make it with `ip netns add {where}`, or name another") from error
    except OSError as error:
        raise NamespaceError(f"cannot open {path}: {error.strerror}", hint="run it as root") from error


def identity(where: Netns) -> tuple[int, int]:
    """Two namespaces are the same if their identities are equal."""
    fd = open_netns(where)
    try:
        facts = os.fstat(fd)
    finally:
        os.close(fd)
    return facts.st_dev, facts.st_ino


def run_in(where: Netns, function: Callable[[], T]) -> T:
    """Calls function in a thread inside the namespace and returns, or raises, what it does. Blocks until
    then."""
    if where == "":
        return function()
    netns = open_netns(where)
    try:
        return _in_thread(lambda: _enter(netns, where), function)
    finally:
        os.close(netns)


def spawn_in(where: Netns, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Starts a process inside the namespace; options as for subprocess.Popen."""
    return run_in(where, lambda: subprocess.Popen(argv, **options))


def spawn_alone(argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Starts a process in a network, an IPC and a host name namespace of its own, in which there is nothing."""
    return _in_thread(_leave, lambda: subprocess.Popen(argv, **options))


def _in_thread(first: Callable[[], None], function: Callable[[], T]) -> T:
    """A namespace is left with the thread that entered it."""
    result: list[T] = []
    failure: list[BaseException] = []

    def thread() -> None:
        try:
            first()
            result.append(function())
        except BaseException as error:  # handed to the caller
            failure.append(error)

    runner = threading.Thread(target=thread, name="namespace")
    runner.start()
    runner.join()
    if failure:
        raise failure[0]
    return result[0]


def _path(where: Netns) -> Path:
    if isinstance(where, int):
        return Path(f"/proc/{where}/ns/net")
    if where == "":
        return Path("/proc/thread-self/ns/net")
    if "/" in where or where in (".", ".."):
        raise NamespaceError(f"{where!r} is no name of a network namespace",
                             hint="use a name that `ip netns` shows")
    return FOLDER / where


def _enter(netns: int, where: Netns) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(netns, CLONE_NEWNET):
        error = os.strerror(ctypes.get_errno())
        raise NamespaceError(f"cannot enter the network namespace of {where}: {error}",
                             hint="this needs CAP_SYS_ADMIN: run it as root")


def _leave() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS):
        raise NamespaceError(f"cannot make namespaces: {os.strerror(ctypes.get_errno())}",
                             hint="this needs CAP_SYS_ADMIN: run it as root")
