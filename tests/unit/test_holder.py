# SPDX-License-Identifier: Apache-2.0
"""The holder as a process of its own: ivshmem protocol, hostile and stuck clients, supervision, what survives what."""

import asyncio
import errno
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import AlreadyRunning, HolderError
from pipeline.host import holder_client, processes, wire
from pipeline.host.holder_client import HolderClient

PATIENCE = 10.0


class Qemu:
    """The client side of the ivshmem protocol, as QEMU has it: one integer and perhaps one descriptor at a time."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.fds: dict[int, int] = {}      # value -> its latest descriptor
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


@pytest.fixture
def holder(run_dir: Path) -> Iterator[HolderClient]:
    """A client of a running holder."""
    pid = holder_client.start(run_dir)
    with HolderClient(run_dir) as client:
        yield client
    down(run_dir)
    reap(pid)


@pytest.fixture
def connect(holder: HolderClient) -> Iterator[Callable[[int], Qemu]]:
    """Adds an instance and connects to its socket, without reading."""
    made: list[Qemu] = []

    def connected(vm_id: int) -> Qemu:
        added = holder.instance_add(vm_id)
        added.close()
        made.append(Qemu(added.facts.socket))
        return made[-1]

    yield connected
    for qemu in made:
        qemu.close()


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


# ---- ivshmem


def test_greeting(holder: HolderClient, connect: Callable[[int], Qemu]) -> None:
    """Version, own id, region, the manager's doorbell, own doorbell last: the order that QEMU's client insists on."""
    qemu = connect(7)
    assert qemu.messages(5) == [(0, False), (7, False), (-1, True), (0, True), (7, True)]
    mine = holder.instance_get(7)
    assert mine.facts.connected
    assert same_file(mine.control, qemu.fds[-1])
    assert os.fstat(qemu.fds[-1]).st_size == 1 << 20
    os.eventfd_write(qemu.fds[0], 1)
    assert os.eventfd_read(mine.manager) == 1
    os.eventfd_write(mine.doorbell, 1)
    assert os.eventfd_read(qemu.fds[7]) == 1
    mine.close()


def test_memory_cannot_be_resized(holder: HolderClient, connect: Callable[[int], Qemu]) -> None:
    qemu = connect(1)
    qemu.messages(5)
    edge = holder.edge_create("tcp-tls", 0x102, 1 << 21)
    for fd, length in ((qemu.fds[-1], 1 << 20), (edge.fd, 1 << 21)):
        for wrong in (length - 4096, length + 4096, 0):
            with pytest.raises(OSError, match=r"Operation not permitted|Invalid argument") as error:
                os.ftruncate(fd, wrong)
            assert error.value.errno in (errno.EPERM, errno.EINVAL)
        assert os.fstat(fd).st_size == length
    assert os.readlink(f"/proc/self/fd/{edge.fd}").startswith("/memfd:sl-edge-tcp-tls")
    os.close(edge.fd)


def test_peers_hear_of_each_other(holder: HolderClient, connect: Callable[[int], Qemu]) -> None:
    first = connect(1)
    first.messages(5)
    holder.instance_add(2).close()
    holder.instance_peers(1, [2])
    holder.instance_peers(2, [1])
    assert first.silent()                                  # 2 is not connected yet
    second = Qemu(holder.instance_get(2).facts.socket)
    assert second.messages(6) == [(0, False), (2, False), (-1, True), (0, True), (1, True), (2, True)]
    assert first.message() == (2, True)
    os.eventfd_write(first.fds[2], 5)
    assert os.eventfd_read(second.fds[2]) == 5             # the doorbell that it was told is the peer's own
    second.close()
    assert first.message() == (2, False)
    until(lambda: state_of(holder, 2) == "gone")


def test_peers_are_exactly_those_set(holder: HolderClient, connect: Callable[[int], Qemu]) -> None:
    hub, *others = [connect(vm_id) for vm_id in (1, 2, 3, 4)]
    for qemu in (hub, *others):
        qemu.messages(5)
    holder.instance_peers(1, [2, 3])
    assert hub.messages(2) == [(2, True), (3, True)]
    holder.instance_peers(1, [2, 3])
    assert hub.silent()
    holder.instance_peers(1, [4, 3])
    assert hub.messages(2) == [(2, False), (4, True)]
    holder.instance_peers(1, [])
    assert hub.messages(2) == [(3, False), (4, False)]
    holder.hello()
    assert all(qemu.silent() for qemu in (hub, *others))   # nobody was told that 1 may ring it
    with pytest.raises(HolderError):
        holder.instance_peers(1, [1])
    with pytest.raises(HolderError):
        holder.instance_peers(1, [0])


def test_removed_instance_is_not_mistaken_for_the_next(holder: HolderClient,
                                                       connect: Callable[[int], Qemu]) -> None:
    hub, old = connect(1), connect(2)
    hub.messages(5)
    holder.instance_peers(1, [2])
    assert hub.message() == (2, True)
    holder.instance_remove(2)
    assert hub.message() == (2, False)
    assert old.ended()
    connect(2).messages(5)                                 # the same VMID, started again
    holder.hello()
    assert hub.silent()
    holder.instance_peers(1, [2])
    assert hub.message() == (2, True)


def test_one_connection_for_life(holder: HolderClient, connect: Callable[[int], Qemu]) -> None:
    qemu = connect(1)
    qemu.messages(5)
    path = holder.instance_get(1).facts.socket
    for _ in range(2):                                     # while it lives, and after
        with pytest.raises(OSError, match=r"No such file|refused"):
            Qemu(path)
        qemu.close()
        until(lambda: state_of(holder, 1) == "gone")


def test_client_that_speaks_is_dropped(holder: HolderClient, connect: Callable[[int], Qemu]) -> None:
    hub, rude = connect(1), connect(2)
    hub.messages(5)
    rude.messages(5)
    holder.instance_peers(1, [2])
    assert hub.message() == (2, True)
    with open(os.devnull) as null:
        socket.send_fds(rude.sock, [b"x" * 100], [null.fileno()])
    assert hub.message() == (2, False)
    assert rude.ended()


def test_stuck_instance_blocks_nobody(holder: HolderClient, connect: Callable[[int], Qemu]) -> None:
    """One that never reads is dropped when its queue is full; meanwhile, and then, all others are served."""
    stuck, reader, hub = connect(1), connect(2), connect(3)
    reader.messages(5)
    hub.messages(5)
    holder.instance_peers(3, [1])
    assert hub.message() == (1, True)
    fds, rounds = nb_fds(holder), 0
    while state_of(holder, 1) == "connected":
        holder.instance_peers(1, [2] if rounds % 2 else [])
        holder.instance_peers(2, [3] if rounds % 2 else [])
        rounds += 1
        assert rounds < 5000
    assert hub.message() == (1, False)
    joins_and_leaves = rounds - 1                          # the first round changed nothing
    assert reader.messages(joins_and_leaves) == [(3, n % 2 == 0) for n in range(joins_and_leaves)]
    assert stuck.ended()
    assert nb_fds(holder) == fds - 1                       # the connection; no copy of a doorbell stayed behind


def test_connection_that_ends_in_the_greeting(holder: HolderClient, connect: Callable[[int], Qemu]) -> None:
    for vm_id in range(1, 30):
        connect(vm_id).close()
        holder.instance_peers(vm_id, [vm_id + 1])
    until(lambda: all(facts.state == "gone" for facts in holder.instance_list()))


# ---- control socket


def test_descriptors_and_notes_are_kept(holder: HolderClient, run_dir: Path) -> None:
    edge = holder.edge_create("http-app", 0x304, 1 << 21)
    reader, writer = os.pipe()
    holder.fd_put("tap-1", [reader])
    big = {"text": "ä" * 100_000, "list": list(range(1000))}
    holder.blob_put("swarm", big)
    holder.close()                                         # as a manager that dies
    again = holder.edge_get(0x304)
    assert same_file(again.fd, edge.fd)
    assert (again.name, again.len, holder.edge_ids()) == ("http-app", 1 << 21, [0x304])
    (kept,) = holder.fd_get("tap-1")
    os.write(writer, b"x")
    assert os.read(kept, 9) == b"x"
    assert holder.blob_get("swarm") == big
    assert json.loads((run_dir / "state.json").read_text())["swarm"] == big
    assert holder.blob_get("nothing") is None
    holder.fd_remove("tap-1")
    holder.edge_remove(0x304)
    assert (holder.fd_list(), holder.edge_list()) == ([], [])
    with pytest.raises(HolderError, match="no descriptors"):
        holder.fd_get("tap-1")
    for fd in (edge.fd, again.fd, reader, writer, kept):
        os.close(fd)


def test_nothing_leaks(holder: HolderClient, connect: Callable[[int], Qemu]) -> None:
    def round_trip(vm_id: int) -> None:
        added = holder.instance_add(vm_id)
        qemu = Qemu(added.facts.socket)
        holder.fd_put("x", [added.control, added.doorbell])
        holder.fd_put("x", [added.control])
        holder.blob_put("b", "x" * 50_000)
        os.close(holder.edge_create("tcp-tls", 1, 4096).fd)
        wire.close_all(holder.fd_get("x"))
        qemu.messages(5)
        qemu.close()
        added.close()
        holder.instance_remove(vm_id)
        holder.edge_remove(1)
        holder.fd_remove("x")

    round_trip(1)
    before, ours = nb_fds(holder), len(os.listdir("/proc/self/fd"))
    for vm_id in range(1, 50):
        round_trip(vm_id)
    assert nb_fds(holder) == before
    assert len(os.listdir("/proc/self/fd")) == ours


@pytest.mark.parametrize("packet", [
    b"{", b"[]", b"null", b"\xff\xfe", b'{"long": 5}', b'{"long": -1}', b"[" * 20_000, b"x" * (wire.PACKET_MAX + 2)])
def test_broken_packet_ends_that_connection(holder: HolderClient, run_dir: Path, packet: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bad:
        bad.settimeout(PATIENCE)
        bad.connect(str(run_dir / "holder.sock"))
        bad.send(packet)
        with suppress(ConnectionResetError):
            assert bad.recv(100) == b""
    assert holder.hello().pid


@pytest.mark.parametrize("request_", [
    {}, {"op": 5}, {"op": "nonsense"}, {"op": "carry_out"}, {"op": "edge.get"}, {"op": "edge.get", "edge_id": []},
    {"op": "edge.create", "name": "x", "edge_id": 1, "len": 0}, {"op": "edge.create", "name": "x", "edge_id": 1,
     "len": 1 << 40}, {"op": "edge.create", "name": "", "edge_id": 1, "len": 4096},
    {"op": "instance.add", "vm_id": 0}, {"op": "instance.add", "vm_id": 1024}, {"op": "instance.add", "vm_id": None},
    {"op": "instance.add", "vm_id": 1e999}, {"op": "instance.peers", "vm_id": 9, "peers": []},
    {"op": "instance.peers", "vm_id": 1, "peers": "all"}, {"op": "fd.put", "key": "x"}, {"op": "manager.start"},
    {"op": "manager.start", "argv": [], "log": "/dev/null"},
    {"op": "manager.start", "argv": ["/nonexistent/program"], "log": "/dev/null"},
    {"op": "process.exit", "pid": {}}])
def test_bad_request_is_refused(holder: HolderClient, run_dir: Path, request_: dict[str, Any]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(run_dir / "holder.sock"))
        for _ in range(2):
            sock.send(json.dumps(request_).encode())
            reply = json.loads(sock.recv(10_000))
            assert reply["ok"] is False
            assert reply["error"]
    assert holder.instance_list() == []


def test_client_that_never_reads(holder: HolderClient, run_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as lazy:
        lazy.connect(str(run_dir / "holder.sock"))
        lazy.settimeout(PATIENCE)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):  # noqa: PT012 - any of the sends
            while True:
                lazy.send(b'{"op":"hello"}')
                holder.hello()


def test_many_clients(holder: HolderClient, run_dir: Path) -> None:
    clients = [HolderClient(run_dir) for _ in range(20)]
    for n, client in enumerate(clients):
        client.blob_put(str(n), n)
    assert [clients[-1 - n].blob_get(str(n)) for n in range(20)] == list(range(20))
    for client in clients:
        client.close()


def test_socket_is_private(holder: HolderClient, run_dir: Path) -> None:
    assert (run_dir / "holder.sock").stat().st_mode & 0o777 == 0o600
    assert (run_dir / "ivshmem").stat().st_mode & 0o777 == 0o700


# ---- life


def test_second_holder_is_refused(holder: HolderClient, run_dir: Path) -> None:
    with pytest.raises(AlreadyRunning):
        holder_client.start(run_dir)
    assert holder.hello().pid


def test_new_holder_after_a_killed_one(holder: HolderClient, run_dir: Path) -> None:
    old = holder.hello().pid
    holder.instance_add(1).close()
    os.kill(old, signal.SIGKILL)
    reap(old)
    with pytest.raises(HolderError):
        holder.hello()
    new = holder_client.start(run_dir)
    assert holder.hello().pid == new                       # the client connects again
    assert holder.instance_list() == []
    holder.shutdown()
    reap(new)


def test_holder_that_cannot_start(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises((HolderError, FileExistsError)):
        holder_client.start(blocked)


def test_shutdown_leaves_its_notes_for_down(run_dir: Path) -> None:
    pid = holder_client.start(run_dir)
    with HolderClient(run_dir) as client:
        client.instance_add(1).close()
        client.blob_put("x", 1)
        client.shutdown()
    reap(pid)
    assert sorted(path.name for path in run_dir.iterdir()) == ["holder.log", "ivshmem", "lock", "state.json"]
    assert list((run_dir / "ivshmem").iterdir()) == []


def events_of(holder: HolderClient, nb: int, cause: Callable[[], object], kind: str = "") -> list[dict[str, Any]]:
    """The first so many events of a kind after cause()."""

    async def gather() -> list[dict[str, Any]]:
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        stop = holder.subscribe(queue.put_nowait)
        got: list[dict[str, Any]] = []
        try:
            cause()
            async with asyncio.timeout(PATIENCE):
                while len(got) < nb:
                    event = await queue.get()
                    got += [event] if event["event"].startswith(kind) else []
        finally:
            stop()
        return got

    return asyncio.run(gather())


def test_events_of_instances(holder: HolderClient, connect: Callable[[int], Qemu]) -> None:
    def come_and_go() -> None:
        connect(5).close()

    came, went = events_of(holder, 2, come_and_go)
    assert came == {"event": "instance.connected", "vm_id": 5, "why": ""}
    assert went["event"] == "instance.gone"
    assert went["vm_id"] == 5


def test_event_of_the_holders_own_death(holder: HolderClient) -> None:
    pid = holder.hello().pid
    assert events_of(holder, 1, lambda: os.kill(pid, signal.SIGKILL)) == [{"event": "holder.gone"}]


def test_killed_manager_is_started_again_and_finds_everything(holder: HolderClient, run_dir: Path,
                                                              connect: Callable[[int], Qemu]) -> None:
    qemu = connect(3)
    qemu.messages(5)
    before = holder.instance_get(3)
    first = holder.manager_start(["/bin/sleep", "1000"], run_dir / "manager.log")
    (died,) = events_of(holder, 1, lambda: os.kill(first, signal.SIGKILL))
    assert died == {"event": "manager.exited", "pid": first, "status": -9, "state": "waiting"}
    until(lambda: holder.hello().manager.state == "running")
    manager = holder.hello().manager
    assert (manager.starts, manager.pid != first) == (2, True)
    after = holder.instance_get(3)
    assert after.facts.connected
    assert all(same_file(a, b) for a, b in ((before.control, after.control), (before.doorbell, after.doorbell),
                                            (before.manager, after.manager)))
    assert qemu.silent()                                   # the instance noticed nothing
    with pytest.raises(HolderError, match="already"):
        holder.manager_start(["/bin/true"], run_dir / "manager.log")
    holder.manager_stop()
    until(lambda: holder.hello().manager.state == "ended")
    before.close()
    after.close()


@pytest.mark.parametrize(("program", "state", "starts"), [("/bin/false", "failed", 5), ("/bin/true", "ended", 1)])
def test_manager_that_will_not_live(holder: HolderClient, run_dir: Path, program: str, state: str,
                                    starts: int) -> None:
    holder.manager_start([program], run_dir / "manager.log")
    until(lambda: holder.hello().manager.state == state)
    assert holder.hello().manager.starts == starts


def test_manager_does_not_inherit_descriptors(holder: HolderClient, run_dir: Path) -> None:
    holder.instance_add(1).close()
    log = run_dir / "manager.log"
    holder.manager_start(["/bin/ls", "/proc/self/fd"], log)
    until(lambda: holder.hello().manager.state == "ended")
    assert log.read_text().split() == ["0", "1", "2", "3"]      # 3 is ls's own


def test_orphans_are_reaped_and_remembered(holder: HolderClient, run_dir: Path) -> None:
    """What a manager leaves behind becomes the holder's: nobody stays a zombie, and how it ended is known."""
    argv = ["/bin/sh", "-c", "(sh -c 'exit 7' &); exec sleep 1000"]
    (event,) = events_of(holder, 1, lambda: holder.manager_start(argv, run_dir / "manager.log"), "process.exited")
    assert event["status"] == 7
    assert holder.process_exit(event["pid"]) == 7
    assert holder.process_exit(1) is None


def test_kill_of_everything_then_cleaning_up(run_dir: Path) -> None:
    """SIGKILL of the holder, with a manager and an orphan alive: the folder's name in argv is enough to find them."""
    pid = holder_client.start(run_dir)
    word = processes.run_dir_argument(run_dir)
    child = f"import time; print(1, flush=True); time.sleep(1000)  # {word}"
    with HolderClient(run_dir) as client:
        script = f"{sys.executable} -c '{child}' {word} & exec sleep 1000"
        client.manager_start(["/bin/sh", "-c", script, word], run_dir / "manager.log")
        client.blob_put("nr_hugepages", 5)
        until(lambda: (run_dir / "manager.log").read_text())
        client.instance_add(1).close()
        os.kill(pid, signal.SIGKILL)
        reap(pid)
        assert json.loads((run_dir / "state.json").read_text()) == {"nr_hugepages": 5}
        found = processes.find(run_dir)
        assert found
        killed = down(run_dir)
    assert {process.pid for process in found} <= {process.pid for process in killed}
    assert processes.find(run_dir) == []


def test_killing_everything_is_final(run_dir: Path) -> None:
    """The holder would start the manager again: it must die first."""
    pid = holder_client.start(run_dir)
    with HolderClient(run_dir) as client:
        word = processes.run_dir_argument(run_dir)
        client.manager_start(["/bin/sh", "-c", "while :; do sleep 1; done", word], run_dir / "manager.log")
    assert down(run_dir)[0].pid == pid
    reap(pid)
    assert processes.find(run_dir) == []


def test_imports_are_light() -> None:
    """The holder starts in some 40 ms because it imports nothing but the standard library's small parts."""
    code = "import sys, pipeline.host.holder; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    heavy = {"asyncio", "subprocess", "logging", "typing_extensions", "cffi", "pydantic", "pyroute2", "argparse",
             "pipeline._native", "pipeline.policy"}
    assert heavy & set(done.stdout.split()) == set()
