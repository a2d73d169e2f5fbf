# SPDX-License-Identifier: Apache-2.0
"""The manager's side of the holder.

Calls are short and block: the holder answers from memory, in well under a millisecond. Events come on a
connection of their own and are handed to a callback of the asyncio loop. Descriptors that a call returns
belong to the caller.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import AlreadyRunning, HolderError
from pipeline.host import wire
from pipeline.host.holder import EXIT_TAKEN

CALL_TIMEOUT = 5.0       # seconds for one answer
START_TIMEOUT = 10.0     # seconds until a new holder serves


@dataclass(frozen=True)
class EdgeMemfd:
    """An edge's memory as the holder keeps it. ``huge``: made of 2 MiB pages, all reserved."""

    name: str
    edge_id: int
    len: int
    huge: bool
    fd: int


@dataclass(frozen=True)
class InstanceFacts:
    """An instance as the holder knows it. ``state``: waiting, connected, gone. ``bells``: by which of its
    doorbells each of those rings it that may, or once might.
    """

    vm_id: int
    socket: Path
    state: str
    peers: tuple[int, ...]
    bells: Mapping[int, int]

    @property
    def connected(self) -> bool:
        return self.state == "connected"


@dataclass(frozen=True)
class InstanceFds:
    """What the manager needs to talk to one instance; its own copies of the descriptors."""

    facts: InstanceFacts
    control: int        # memfd of the control region
    doorbell: int       # eventfd that rings the instance
    manager: int        # eventfd by which the instance rings the manager

    def close(self) -> None:
        wire.close_all((self.control, self.doorbell, self.manager))


@dataclass(frozen=True)
class ManagerFacts:
    """The supervised manager. ``state``: idle, running, waiting, ended, failed; ``status`` of its last
    exit."""

    state: str
    pid: int
    starts: int
    status: int | None


@dataclass(frozen=True)
class HolderFacts:
    """The holder itself."""

    pid: int
    run_dir: Path
    manager: ManagerFacts


class HolderClient:
    """A connection to the holder of a run-time folder; it connects at the first call, and again after a
    failure."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "holder.sock"
        self._sock: socket.socket | None = None

    def __enter__(self) -> HolderClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hangs up; the next call connects again."""
        if self._sock:
            self._sock.close()
            self._sock = None

    # ---- the holder, the manager

    def hello(self) -> HolderFacts:
        reply = self._ask("hello")
        return HolderFacts(reply["pid"], Path(reply["run_dir"]), ManagerFacts(**reply["manager"]))

    def manager_start(self, argv: Sequence[str], log: Path) -> int:
        """Starts the manager, to be started again whenever it dies. Returns its pid."""
        return int(self._ask("manager.start", argv=list(argv), log=str(log))["pid"])

    def manager_stop(self) -> None:
        """SIGTERM, and no restart."""
        self._ask("manager.stop")

    def shutdown(self) -> None:
        """Ends the holder. Instances, router and manager go on; their connections to the holder end."""
        self._ask("shutdown")
        self.close()

    def process_exit(self, pid: int) -> int | None:
        """How a process ended that the holder has reaped: its exit status, or -signal. None: not reaped
        (yet)."""
        status = self._ask("process.exit", pid=pid)["status"]
        return None if status is None else int(status)

    # ---- edges

    def edge_create(self, name: str, edge_id: int, length: int) -> EdgeMemfd:
        """Zeroed shared memory, of hugepages if the machine has enough free."""
        return self._edge("edge.create", name=name, edge_id=edge_id, len=length)

    def edge_get(self, edge_id: int) -> EdgeMemfd:
        return self._edge("edge.get", edge_id=edge_id)

    def edge_remove(self, edge_id: int) -> None:
        """Forgets the edge; its memory is free when the last instance has unmapped it."""
        self._ask("edge.remove", edge_id=edge_id)

    def edge_list(self) -> list[str]:
        """Names of the edges."""
        return [edge["name"] for edge in self._ask("edge.list")["edges"]]

    def edge_ids(self) -> list[int]:
        return [edge["edge_id"] for edge in self._ask("edge.list")["edges"]]

    # ---- instances

    def instance_add(self, vm_id: int, *, retracts: bool = True) -> InstanceFds:
        """``retracts``: it can be told that it may no longer ring a peer, which QEMU can not."""
        return self._instance("instance.add", vm_id, retracts=retracts)

    def instance_get(self, vm_id: int) -> InstanceFds:
        """The same descriptors as instance_add: adoption by a restarted manager."""
        return self._instance("instance.get", vm_id)

    def instance_peers(self, vm_id: int, peers: Sequence[int]) -> None:
        """Exactly those that it may ring, besides the manager."""
        self._ask("instance.peers", vm_id=vm_id, peers=sorted(peers))

    def instance_silence(self, vm_id: int, peer: int) -> None:
        """The instance, if it is a virtual machine, can not ring that peer any more."""
        self._ask("instance.silence", vm_id=vm_id, peer=peer)

    def instance_remove(self, vm_id: int) -> None:
        self._ask("instance.remove", vm_id=vm_id)

    def instance_list(self) -> list[InstanceFacts]:
        return [_instance_facts(facts) for facts in self._ask("instance.list")["instances"]]

    # ---- notes and descriptors that must survive the manager

    def blob_put(self, key: str, value: Any) -> None:
        """Keeps any JSON value, in the holder and in DIR/state.json."""
        self._ask("blob.put", key=key, value=value)

    def blob_get(self, key: str) -> Any:
        return self._ask("blob.get", key=key)["value"]

    def fd_put(self, key: str, fds: Sequence[int]) -> None:
        """Keeps copies of 1 to 8 descriptors."""
        self._call("fd.put", fds, key=key)

    def fd_get(self, key: str) -> list[int]:
        return self._call("fd.get", key=key)[1]

    def fd_remove(self, key: str) -> None:
        self._ask("fd.remove", key=key)

    def fd_list(self) -> list[str]:
        return list(self._ask("fd.list")["keys"])

    # ---- events

    def subscribe(self, callback: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        """Hands each event of the holder to callback, in the running loop. Returns the function that ends it.

        The last event of a holder that died is ``{"event": "holder.gone"}``.
        """
        loop = asyncio.get_running_loop()
        sock = _connect(self._path)
        try:
            _exchange(sock, {"op": "subscribe"}, ())
        except (OSError, wire.WireError) as error:
            sock.close()
            raise HolderError(f"the holder does not send events: {error}") from error
        sock.setblocking(False)

        def stop() -> None:
            if sock.fileno() >= 0:
                loop.remove_reader(sock)
                sock.close()

        def ready() -> None:
            event = _event(sock)
            if event is None:
                return
            if event["event"] == "holder.gone":
                stop()
            callback(event)

        loop.add_reader(sock, ready)
        return stop

    # ---- one exchange

    def _edge(self, op: str, **fields: Any) -> EdgeMemfd:
        reply, fds = self._call(op, **fields)
        return EdgeMemfd(reply["name"], reply["edge_id"], reply["len"], reply["huge"], fds[0])

    def _instance(self, op: str, vm_id: int, **fields: Any) -> InstanceFds:
        reply, fds = self._call(op, vm_id=vm_id, **fields)
        return InstanceFds(_instance_facts(reply), *fds)

    def _ask(self, op: str, **fields: Any) -> wire.Message:
        reply, fds = self._call(op, **fields)
        wire.close_all(fds)
        return reply

    def _call(self, op: str, fds: Sequence[int] = (), **fields: Any) -> tuple[wire.Message, list[int]]:
        if not self._sock:
            self._sock = _connect(self._path)
        try:
            reply, got = _exchange(self._sock, {"op": op, **fields}, fds)
        except (OSError, wire.WireError) as error:
            self.close()
            raise HolderError(f"the holder did not answer {op}: {error}",
                              hint="the swarm needs it: `swarmline down`, then `up`") from error
        if not reply.get("ok"):
            wire.close_all(got)
            raise HolderError(f"the holder refused {op}: {reply.get('error')}")
        return reply, got


@contextmanager
def vacant(run_dir: Path) -> Iterator[bool]:
    """Whether no holder has the folder; then none takes it during the block."""
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(run_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)     # as the holder does
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except BlockingIOError:
        free = False
    try:
        yield free
    finally:
        os.close(lock)


def start(run_dir: Path) -> int:
    """Starts a holder for the folder, which outlives the caller, and waits until it serves. Returns its pid.

    Its log is DIR/holder.log. Raises AlreadyRunning if the folder has one, HolderError if it does not start.
    """
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = run_dir / "holder.log"
    argv = [sys.executable, "-P", "-m", "pipeline.host.holder", f"--run-dir={run_dir}"]
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                                   start_new_session=True, cwd="/")
    assert process.stdout
    with process.stdout as pipe:
        if pipe.readline() == b"ready\n":
            process.returncode = 0         # it is not ours to wait for: no warning about a child left running
            return process.pid
    status = process.wait(START_TIMEOUT)
    if status == EXIT_TAKEN:
        raise AlreadyRunning(f"a swarm is running already in {run_dir}")
    last = path.read_text(errors="replace").strip().splitlines()[-1:]
    raise HolderError(f"the holder did not start (exit status {status}): {''.join(last)}",
                      hint=f"its log is {path}")


def _connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(CALL_TIMEOUT)
    try:
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        raise HolderError(f"no holder at {path}: {error.strerror or error}",
                          hint="`swarmline up FILE` starts a swarm; after a crash: `down` first") from error
    return sock


def _exchange(sock: socket.socket, request: wire.Message,
              fds: Sequence[int]) -> tuple[wire.Message, list[int]]:
    data, memfd = wire.encode(request)
    try:
        socket.send_fds(sock, [data], [*fds] if memfd is None else [*fds, memfd])
    finally:
        if memfd is not None:
            os.close(memfd)
    packet = wire.receive(sock)
    if packet is None:
        raise ConnectionResetError("it hung up")
    data, got = packet
    return wire.decode(data, got), got


def _event(sock: socket.socket) -> wire.Message | None:
    try:
        packet = wire.receive(sock)
        if packet:
            event = wire.decode(*packet)
            wire.close_all(packet[1])
            return event
    except BlockingIOError:
        return None
    except (OSError, wire.WireError):
        pass
    return {"event": "holder.gone"}


def _instance_facts(facts: wire.Message) -> InstanceFacts:
    return InstanceFacts(facts["vm_id"], Path(facts["socket"]), facts["state"], tuple(facts["peers"]),
                         dict(facts["bells"]))
