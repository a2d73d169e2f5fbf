# SPDX-License-Identifier: Apache-2.0
"""The router's vhost-user ports and who may be behind them. Whatever one does, another instance goes on serving."""

import errno
import fcntl
import mmap
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from support.lab import in_netns
from support.needs import require
from system.router_rig import ECHO, VIPS, Rig, eventually, ffi, rig_made, run, stub_built

from pipeline.host.vhost import folder_remove

pytestmark = [pytest.mark.netns, pytest.mark.bpf]
VM_ID = 2
PAGE = 4096
GPA, UVA = 0x10000, 0x7F0000000000
SET_FEATURES, SET_OWNER, SET_MEM_TABLE, SET_VRING_NUM, SET_VRING_ADDR = 2, 3, 5, 8, 9
SET_VRING_KICK, SET_VRING_CALL, SET_LOG_BASE = 12, 13, 6
VERSION_1 = 1 << 32
VIOLATIONS = {
    name.removeprefix("SL_RTR_VIOLATION_"): number
    for number, name in ffi.typeof("enum sl_rtr_violation").elements.items()
}


def message(request: int, body: bytes = b"") -> bytes:
    return struct.pack("<III", request, 1, len(body)) + body


GET_FEATURES = message(1)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    require("netns", "bpf")
    with rig_made(stub_built(tmp_path_factory.mktemp("stub")), 1500) as made:
        yield made


class Peer:
    """A QEMU with a guest, as far as the router can see. Ring 1, from the guest, begins at GPA."""

    def __init__(self, rig: Rig, stack: ExitStack) -> None:
        self._stack = stack
        self.listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        self.listener.settimeout(10)
        self.listener.bind(str(rig.vhost_folder(VM_ID) / "net"))
        (rig.run_dir / "vhost" / str(VM_ID) / "net").chmod(0o666)
        self.listener.listen()
        stack.callback(folder_remove, rig.run_dir, VM_ID)
        assert rig.ask("PORT_ADD_VHOST", vm_id=VM_ID, vips=1).status == 0
        stack.callback(rig.ask, "PORT_DEL", vm_id=VM_ID)
        self.accept()

    def accept(self) -> None:
        self.sock = self._stack.enter_context(self.listener.accept()[0])
        self.sock.settimeout(10)

    def say(self, request: int, body: bytes = b"", fd: int | None = None) -> None:
        socket.send_fds(self.sock, [message(request, body)], [] if fd is None else [fd])

    def start(self) -> None:
        """Features, one page of memory, ring 1 with 8 descriptors: table, available ring, used ring, a buffer."""
        fd = os.memfd_create("guest", os.MFD_ALLOW_SEALING)
        self._stack.callback(os.close, fd)
        os.ftruncate(fd, 2 * PAGE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.memory = self._stack.enter_context(mmap.mmap(fd, 2 * PAGE))
        self.say(SET_OWNER)
        self.say(SET_FEATURES, struct.pack("<Q", VERSION_1))
        self.say(SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, GPA, 2 * PAGE, UVA, 0), fd)
        self.say(SET_VRING_NUM, struct.pack("<II", 1, 8))
        self.say(SET_VRING_ADDR, struct.pack("<IIQQQQ", 1, 0, UVA, UVA + 1024, UVA + 512, 0))
        self.call, self.kick = os.eventfd(0), os.eventfd(0)
        for request, eventfd in ((SET_VRING_CALL, self.call), (SET_VRING_KICK, self.kick)):
            self._stack.callback(os.close, eventfd)
            self.say(request, struct.pack("<Q", 1), eventfd)

    def post(self, gpa: int, length: int, flags: int, available: int = 1) -> None:
        """Descriptor 0, and how many buffers are available."""
        self.memory[:16] = struct.pack("<QIHH", gpa, length, flags, 0)
        self.memory[512:516] = struct.pack("<HH", 0, available)
        os.eventfd_write(self.kick, 1)

    def is_cut_off(self) -> bool:
        try:
            while self.sock.recv(1 << 16):
                pass
        except ConnectionError:
            pass
        return True


@contextmanager
def peer_made(rig: Rig) -> Iterator[Peer]:
    with ExitStack() as stack:
        yield Peer(rig, stack)


def answers(rig: Rig) -> bool:
    """The other instance serves."""
    return run(*in_netns(rig.lab.client, sys.executable, "-c", ECHO, VIPS[0], "100000")).startswith("True")


def storm_of_messages(peer: Peer) -> None:
    try:
        for _ in range(10):
            peer.sock.sendall(message(SET_OWNER) * 1000)
    except OSError:
        pass


def storm_of_kicks(peer: Peer) -> None:
    peer.start()
    os.eventfd_write(peer.kick, 1 << 40)


def storm_of_resets(peer: Peer) -> None:
    try:
        for _ in range(50):
            peer.start()
            for _ in range(10):
                peer.say(SET_VRING_KICK, struct.pack("<Q", 1), peer.kick)
                peer.say(11, struct.pack("<II", 1, 0))
    except OSError:
        pass


def storm_of_links(peer: Peer) -> None:
    for _ in range(25):
        peer.sock.close()
        peer.accept()


ATTACKS: dict[str, Callable[[Peer], None]] = {
    "MSG_HEADER": lambda peer: peer.sock.sendall(struct.pack("<III", 1, 2, 0)),
    "MSG_REFUSED": lambda peer: peer.say(SET_LOG_BASE, bytes(16)),
    "MSG_SIZE": lambda peer: peer.say(SET_OWNER, b"?"),
    "MSG_FDS": lambda peer: peer.say(SET_VRING_CALL, struct.pack("<Q", 1), 0),
    "MSG_VALUE": lambda peer: peer.say(SET_FEATURES, struct.pack("<Q", 1)),
    "MSG_STATE": lambda peer: peer.say(17),
    "MSG_MEMORY": lambda peer: peer.say(SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, GPA, PAGE, UVA, 0), 0),
    "RING_SETUP": lambda peer: peer.say(SET_VRING_KICK, struct.pack("<Q", 1), os.eventfd(0)),
    "STORM_MESSAGES": storm_of_messages,
    "STORM_KICKS": storm_of_kicks,
    "STORM_RESETS": storm_of_resets,
    "STORM_LINKS": storm_of_links,
}


@pytest.mark.parametrize("reason", ATTACKS)
def test_attacker_is_quarantined_by_name(rig: Rig, reason: str) -> None:
    before = rig.port(VM_ID).violations
    with peer_made(rig) as peer, rig.counted("VIOLATION"):
        ATTACKS[reason](peer)
        assert answers(rig)
        eventually(lambda: rig.port(VM_ID).violations > before)
        assert rig.port(VM_ID).violation == VIOLATIONS[reason]
        if reason != "STORM_LINKS":  # which was one of many
            assert peer.is_cut_off()
            peer.accept()  # it is let in again
        peer.sock.sendall(GET_FEATURES)
        assert len(peer.sock.recv(100)) == len(GET_FEATURES) + 8


BAD_RINGS = {
    "RING_JUMP": (GPA + PAGE, 100, 0, 9),
    "RING_FLAGS": (GPA + PAGE, 100, 2, 1),
    "RING_LENGTH": (GPA + PAGE, 0, 0, 1),
    "RING_ADDRESS": (GPA + PAGE, PAGE + 1, 0, 1),
    "RING_CHAIN": (GPA + PAGE, 100, 1, 1),
}


@pytest.mark.parametrize("reason", BAD_RINGS)
def test_bad_ring_is_stopped_by_name(rig: Rig, reason: str) -> None:
    before = rig.port(VM_ID).violations
    with peer_made(rig) as peer:
        peer.start()
        peer.post(*BAD_RINGS[reason])
        eventually(lambda: rig.port(VM_ID).violations > before)
        assert rig.port(VM_ID).violation == VIOLATIONS[reason]
        peer.sock.sendall(GET_FEATURES)  # QEMU is not to blame
        assert len(peer.sock.recv(100)) == len(GET_FEATURES) + 8
        assert answers(rig)


def test_interrupt_that_would_wait(rig: Rig) -> None:
    """The eventfd for interrupts waits when it is full, and is."""
    with peer_made(rig) as peer:
        peer.start()
        os.eventfd_read(peer.call)  # comes with the start
        os.eventfd_write(peer.call, (1 << 64) - 2)
        out = rig.port(VM_ID).out_dropped
        peer.post(GPA + PAGE, 12 + 60, 0)
        eventually(lambda: rig.port(VM_ID).out_dropped > out)  # it is no frame that may go out
        assert answers(rig)


def lingering() -> socket.socket:
    """A connection with bytes that nobody takes, whose last close() would wait a minute for that."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.create_connection(server.getsockname())
        deaf, _ = server.accept()
    sock.setblocking(False)
    try:
        while True:
            sock.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
    DEAF.append(deaf)
    return sock


DEAF: list[socket.socket] = []


@pytest.mark.parametrize("nb_before", [0, 3], ids=["handled", "queued"])
def test_descriptor_whose_close_would_wait(rig: Rig, nb_before: int) -> None:
    """Handled or still in the queue when the link ends."""
    with peer_made(rig) as peer:
        sock = lingering()
        bad = message(SET_OWNER, b"?") * nb_before
        socket.send_fds(peer.sock, [bad + message(SET_VRING_CALL, struct.pack("<Q", 1))], [sock.fileno()])
        sock.close()
        assert peer.is_cut_off()
        assert answers(rig)
    DEAF.pop().close()


def test_vhost_port_listens_or_connects(rig: Rig) -> None:
    """To be a server it must be given a UNIX socket that listens; a client waits for its peer as long as it takes."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as idle, socket.socket() as other:
        other.listen()
        statuses = [rig.ask("PORT_ADD_VHOST", fds=(s.fileno(),), vm_id=2).status for s in (idle, other)]
        assert statuses == [-errno.EINVAL] * 2
        listener.bind(str(rig.run_dir / "peer.sock"))
        listener.listen()
        assert rig.ask("PORT_ADD_VHOST", fds=(listener.fileno(),) * 2, vm_id=2).status == -errno.EINVAL
        assert rig.ask("PORT_ADD_VHOST", fds=(listener.fileno(),), vm_id=2).nb_port == 2
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(10)
        peer.connect(str(rig.run_dir / "peer.sock"))
        peer.sendall(GET_FEATURES)
        assert len(peer.recv(100)) == len(GET_FEATURES) + 8
        assert rig.ask("PORT_ADD_VHOST", vm_id=2).nb_port == 2  # now a client
        assert peer.recv(100) == b""
    (rig.run_dir / "peer.sock").unlink()
    place = rig.vhost_folder(2)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(10)
        listener.bind(str(place / "net"))
        (place / "net").chmod(0o666)
        listener.listen()
        accepted, _ = listener.accept()
        with accepted:
            assert rig.ask("PORT_ADD_VHOST", vm_id=2).status == 0  # repeated: the link stays
            accepted.settimeout(10)
            accepted.sendall(GET_FEATURES)
            assert len(accepted.recv(100)) == len(GET_FEATURES) + 8
    assert rig.ask("PORT_DEL", vm_id=2).nb_port == 1
    folder_remove(rig.run_dir, 2)


def test_vhost_peer_must_own_its_folder(rig: Rig) -> None:
    """Whoever owns a folder can not lead the router to somebody else's socket."""
    place = rig.vhost_folder(2, user=4711)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(10)
        listener.bind(str(rig.run_dir / "vhost/other"))
        (rig.run_dir / "vhost/other").chmod(0o666)
        (place / "net").symlink_to("../other")
        listener.listen()
        assert rig.ask("PORT_ADD_VHOST", vm_id=2).status == 0
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(10)
            assert accepted.recv(100) == b""
    assert rig.ask("PORT_DEL", vm_id=2).nb_port == 1
    (rig.run_dir / "vhost/other").unlink()
    folder_remove(rig.run_dir, 2)
