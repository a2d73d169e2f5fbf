# SPDX-License-Identifier: Apache-2.0
"""The holder: the one process of a swarm that must not die, and therefore does little.

``python -P -m pipeline.host.holder --run-dir=DIR`` keeps what would vanish with the manager: the memfds of
edges and control regions, the descriptors of taps, the connections of the instances (ivshmem), the manager's
own notes. It is the init of the swarm: a child subreaper, so orphans come to it and are reaped, and it starts
the manager again if that dies. It never looks into the memory it keeps.

It listens on DIR/holder.sock (SOCK_SEQPACKET, mode 0600): messages as in ``wire``, requests as in ``ops``.
Every reply has ``ok``; a refusal has ``ok`` false and ``error``. Events have ``event``:
``instance.connected``, ``instance.gone`` (vm_id, why), ``process.exited`` (pid, status), ``manager.exited``
(pid, status, state).

One thread, one loop; nothing in it waits for a client.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import selectors
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from pipeline.host import wire
from pipeline.host.ivshmem import IvshmemServer
from pipeline.host.ops import Fds, Ops, Refused, Reply
from pipeline.host.supervisor import Supervisor

CLIENTS_MAX = 64
QUEUE_MAX = 256                 # messages that a client may leave unread
EXITS_MAX = 256                 # orphans whose exit status is remembered
PR_SET_CHILD_SUBREAPER = 36
EXIT_TAKEN = 8                  # as errors.AlreadyRunning


def log(event: str, **fields: Any) -> None:
    """One JSON object per line on stderr."""
    print(json.dumps({"time": round(time.time(), 3), "process": "holder", "event": event, **fields}),
          file=sys.stderr, flush=True)


class Client:
    """A connection to the control socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.outbox = wire.Outbox(sock, QUEUE_MAX)
        self.subscribed = False

    def send(self, message: wire.Message, fds: Fds) -> None:
        data, memfd = wire.encode(message)
        try:
            self.outbox.put(data, fds if memfd is None else [*fds, memfd])
        finally:
            if memfd is not None:
                os.close(memfd)


class Holder:
    """The loop: clients, children, signals."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._selector = selectors.DefaultSelector()
        self._clients: set[Client] = set()
        self._running = True
        self._supervisor = Supervisor(log)
        folder = run_dir / "ivshmem"
        folder.mkdir(mode=0o700, exist_ok=True)
        self._ivshmem = IvshmemServer(self._selector, folder, self._instance_changed)
        self._ops = Ops(run_dir, self._ivshmem, self._supervisor)
        self._listener = self._listen(run_dir / "holder.sock")

    def run(self) -> None:
        """Serves until ``shutdown`` or SIGTERM."""
        signals = _signals_to_pipe()
        self._selector.register(signals, selectors.EVENT_READ, lambda _: self._signalled(signals))
        while self._running:
            deadline = self._supervisor.deadline
            timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
            for key, mask in self._selector.select(timeout):
                current = self._selector.get_map().get(key.fd)
                if current and current.data is key.data:      # not closed by an earlier event of this turn
                    key.data(mask)
            self._supervisor.tick()
        self._close()

    # ---- clients

    def _listen(self, path: Path) -> socket.socket:
        path.unlink(missing_ok=True)       # the lock is ours: whoever made it is dead
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(CLIENTS_MAX)
        self._selector.register(sock, selectors.EVENT_READ, lambda _: self._accept())
        return sock

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            log("client.not_accepted", error=str(error))
            return
        sock.setblocking(False)
        if len(self._clients) >= CLIENTS_MAX:
            log("client.refused", clients=len(self._clients))
            sock.close()
            return
        client = Client(sock)
        self._clients.add(client)
        self._selector.register(sock, selectors.EVENT_READ, lambda mask: self._ready(client, mask))

    def _ready(self, client: Client, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE:
                client.outbox.flush()
                self._watch(client)
            if mask & selectors.EVENT_READ:
                packet = wire.receive(client.sock)
                if packet is None:
                    self._drop(client)
                else:
                    self._serve(client, *packet)
        except BlockingIOError:
            pass
        except (OSError, wire.WireError) as error:
            self._drop(client, str(error))

    def _serve(self, client: Client, data: bytes, fds: Fds) -> None:
        try:
            reply, out = self._answer(client, wire.decode(data, fds), fds)
        finally:
            wire.close_all(fds)            # what an op keeps it has taken out of the list
        self._send(client, reply, out)

    def _answer(self, client: Client, request: wire.Message, fds: Fds) -> Reply:
        op = request.get("op")
        try:
            if op == "subscribe":
                client.subscribed = True
                return {"ok": True}, []
            if op == "shutdown":
                self._running = False
                return {"ok": True}, []
            reply, out = self._ops.carry_out(request, fds)
            return {"ok": True, **reply}, out
        except (Refused, ValueError, OSError) as error:
            return {"ok": False, "error": str(error)}, []
        except (KeyError, TypeError) as error:
            return {"ok": False, "error": f"bad request: {error!r}"}, []
        except Exception as error:         # a bug must not take the swarm with it
            log("bug", op=str(op), trace=traceback.format_exc())
            return {"ok": False, "error": f"internal error: {error!r}"}, []

    def _send(self, client: Client, message: wire.Message, fds: Fds) -> None:
        if client not in self._clients:
            return
        try:
            client.send(message, fds)
            self._watch(client)
        except OSError as error:
            self._drop(client, str(error))

    def _watch(self, client: Client) -> None:
        wants = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.outbox.pending else 0)
        key = self._selector.get_key(client.sock)
        if key.events != wants:
            self._selector.modify(client.sock, wants, key.data)

    def _drop(self, client: Client, why: str = "") -> None:
        if client not in self._clients:
            return
        if why:
            log("client.dropped", why=why)
        self._clients.discard(client)
        self._selector.unregister(client.sock)
        client.outbox.close()
        client.sock.close()

    def _tell(self, event: str, **fields: Any) -> None:
        for client in [c for c in self._clients if c.subscribed]:
            self._send(client, {"event": event, **fields}, [])

    def _instance_changed(self, vm_id: int, state: str, why: str) -> None:
        log(f"instance.{state}", vm_id=vm_id, why=why)
        self._tell(f"instance.{state}", vm_id=vm_id, why=why)

    # ---- children and signals

    def _signalled(self, pipe: int) -> None:
        for number in os.read(pipe, 512):
            if number != signal.SIGCHLD:
                log("stopped", signal=number)
                self._running = False
        while (child := _reap()) is not None:
            self._child_exited(*child)

    def _child_exited(self, pid: int, status: int) -> None:
        if self._supervisor.exited(pid, status):
            self._tell("manager.exited", pid=pid, status=status, state=self._supervisor.state)
            return
        exits = self._ops.exits
        exits.pop(pid, None)
        exits[pid] = status
        while len(exits) > EXITS_MAX:
            exits.popitem(last=False)
        self._tell("process.exited", pid=pid, status=status)

    def _close(self) -> None:
        self._ivshmem.close()
        for client in list(self._clients):
            self._drop(client)
        self._listener.close()
        (self._run_dir / "holder.sock").unlink(missing_ok=True)     # the notes stay: `down` needs them
        log("ended")


def _reap() -> tuple[int, int] | None:
    """One dead child and its exit status (negative: a signal)."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, os.waitstatus_to_exitcode(status)) if pid else None


def _signals_to_pipe() -> int:
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)     # only the pipe matters
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return reader


def _fail(message: str, status: int) -> NoReturn:
    log("failed", error=message)
    sys.exit(status)


def main(argv: list[str]) -> None:
    """Takes the run-time folder, says ``ready`` on stdout, serves. Exit status EXIT_TAKEN: another holder has
    the folder."""
    if len(argv) != 1 or not argv[0].startswith("--run-dir=/"):
        _fail("usage: python -P -m pipeline.host.holder --run-dir=/ABSOLUTE/FOLDER", 2)
    run_dir = Path(argv[0].removeprefix("--run-dir="))
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(run_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)    # held until the process ends
        if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
            _fail("prctl(PR_SET_CHILD_SUBREAPER) failed", 1)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        holder = Holder(run_dir)
    except BlockingIOError:
        _fail(f"another holder has {run_dir}", EXIT_TAKEN)
    except OSError as error:
        _fail(str(error), 1)
    print("ready", flush=True)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)          # whoever waits for "ready" sees the end of the pipe
    holder.run()


if __name__ == "__main__":
    main(sys.argv[1:])
