# SPDX-License-Identifier: Apache-2.0
"""QEMU's ivshmem server protocol, version 0: an instance's control region and the doorbells that it may ring.

An instance has one connection for life to a UNIX stream socket of its own. All messages go from the server to
it; each is a little-endian 64-bit integer, perhaps with a file descriptor:

======================  ===========  =====================================================================
value                   descriptor   means
======================  ===========  =====================================================================
0                       –            protocol version
own id                  –            VMID
-1                      memfd        the control region
id of a peer            eventfd      the peer joined: writing the eventfd rings it (the manager is peer 0)
own id                  eventfd      its own doorbells, BELLS times; the last messages of the greeting
later: id of a peer     eventfd      joined
later: id of a peer     –            left
======================  ===========  =====================================================================

A peer is rung by vector 0: each of those that may ring an instance has another one of its doorbells, as long as there
are enough, so it can tell who rings, and nobody can empty or fill another's. Number 0 is the manager's.

A peer is announced only to those that the manager lets ring it, and only while it is connected. QEMU's device (7.2)
frees a peer's doorbells when it left and uses them when the same peer joins again, so who is added with ``retracts``
false is told of no peer that left, but of one that it must not ring any more, and of each VMID once.

State of an instance here: ``waiting -> connected -> gone``; never back. QEMU does not reconnect, and whoever
connects to the socket of a dead instance is not that instance: a new start is a new VMID, or ``remove`` and
``add``.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.host.memory import sealed_memfd
from pipeline.host.wire import Outbox

PROTOCOL_VERSION = 0
VM_MANAGER = 0                # c/abi/base.h: SL_VM_MANAGER, SL_VM_MAX
VM_MAX = 1024
BELLS = 16                    # c/abi/base.h: SL_BELLS
CONTROL_LEN = 1 << 20         # c/abi/control.h: SL_CONTROL_LEN
QUEUE_MAX = 2 * VM_MAX + BELLS + 8    # messages: a greeting and as many changes again


class Instance:
    """What is kept for one VMID: control region, doorbells, connection, peers."""

    def __init__(self, vm_id: int, path: Path, retracts: bool) -> None:
        self.vm_id = vm_id
        self.retracts = retracts            # it can forget a peer
        self.path = path
        self.state = "waiting"
        self.wanted: set[int] = set()       # peers that it may ring
        self.known: set[int] = set()        # those that it has been told of
        self.listener: socket.socket | None = None
        self.conn: socket.socket | None = None
        self.outbox: Outbox | None = None
        self.silenced: set[int] = set()     # those of them that it can not ring any more
        self.bells_of: dict[int, int] = {}  # who may ring it, or might -> by which of its doorbells
        self.fds: list[int] = []            # control region, doorbell 0, the manager's for it, the other doorbells
        try:
            self.fds.append(sealed_memfd(f"sl-control-{vm_id}", CONTROL_LEN))
            for _ in range(BELLS + 1):
                self.fds.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            self.listener = _listener(path)
        except OSError:
            self.close()
            raise

    @property
    def bells(self) -> list[int]:
        return [self.fds[1], *self.fds[3:]]

    def bell_for(self, peer: int) -> int:
        """By which that peer rings it, the least used one. The peer keeps it for life: it would not forget it."""
        if peer not in self.bells_of:
            used = Counter(self.bells_of.values())
            self.bells_of[peer] = min(range(1, BELLS), key=lambda bell: used[bell])
        return self.bells[self.bells_of[peer]]

    def close(self) -> None:
        """Gives everything back; who has mapped the region keeps it until it unmaps."""
        self.close_sockets()
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def close_sockets(self) -> None:
        """Ends the connection and the offer of one."""
        if self.outbox is not None:
            self.outbox.close()
        for sock in (self.conn, self.listener):
            if sock:
                sock.close()
        if self.listener:
            self.path.unlink(missing_ok=True)
        self.conn = self.listener = self.outbox = None


def _listener(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(1)
    except OSError:
        sock.close()
        raise
    return sock


class IvshmemServer:
    """All instances of a swarm. ``changed(vm_id, state, why)`` is called when one has connected or gone."""

    def __init__(self, selector: selectors.BaseSelector, folder: Path,
                 changed: Callable[[int, str, str], None]) -> None:
        self._selector = selector
        self._folder = folder
        self._changed = changed
        self._broken: list[tuple[Instance, str]] = []    # found while announcing; dropped afterwards
        self.instances: dict[int, Instance] = {}

    def add(self, vm_id: int, *, retracts: bool = True) -> Instance:
        """Makes the instance's region, doorbells and socket. Raises ValueError, OSError."""
        if not 1 <= vm_id < VM_MAX:
            raise ValueError(f"no VMID: {vm_id}")
        if vm_id in self.instances:
            raise ValueError(f"instance {vm_id} exists")
        instance = Instance(vm_id, self._folder / f"{vm_id}.sock", retracts)
        self.instances[vm_id] = instance
        assert instance.listener
        self._selector.register(instance.listener, selectors.EVENT_READ, lambda _: self._accept(instance))
        return instance

    def peers_set(self, vm_id: int, peers: Iterable[int]) -> None:
        """From now on the instance may ring exactly these peers, besides the manager.

        A peer that is not connected (yet) is announced when it connects.
        """
        instance = self.instances[vm_id]
        wanted = set(peers)
        if not all(1 <= peer < VM_MAX and peer != vm_id for peer in wanted):
            raise ValueError(f"peers that can not be: {sorted(wanted)}")
        instance.wanted = wanted
        for peer in sorted(instance.known - wanted):
            self._tell_left(instance, peer)
        for peer in sorted(wanted - instance.known):
            self._tell_joined(instance, peer)
        self._settle()

    def silence(self, vm_id: int, peer: int) -> None:
        """QEMU shall not ring that peer for its guest any more, ever. Nothing can be taken away from a process."""
        instance = self.instances[vm_id]
        if not instance.retracts and peer in instance.known - instance.silenced:
            instance.silenced.add(peer)
            self._send(instance, peer)
            self._settle()

    def remove(self, vm_id: int) -> None:
        """Forgets the instance. Its VMID may be added again: nobody will mistake the new one for it."""
        instance = self.instances[vm_id]
        self._drop(instance, "removed")
        del self.instances[vm_id]
        instance.close()
        for other in self.instances.values():
            other.wanted.discard(vm_id)
            other.bells_of.pop(vm_id, None)
        self._settle()

    def close(self) -> None:
        """Ends all connections."""
        for instance in self.instances.values():
            self._unwatch(instance)
            instance.close()
        self.instances = {}

    def _accept(self, instance: Instance) -> None:
        assert instance.listener
        try:
            conn, _ = instance.listener.accept()
        except OSError:
            return                                       # it hung up before it was served
        conn.setblocking(False)
        self._selector.unregister(instance.listener)
        instance.close_sockets()                         # one connection for life: nobody else may connect
        instance.conn, instance.outbox = conn, Outbox(conn, QUEUE_MAX)
        instance.state = "connected"
        self._selector.register(conn, selectors.EVENT_READ, lambda mask: self._ready(instance, mask))
        self._greet(instance)
        for other in list(self.instances.values()):
            self._tell_joined(other, instance.vm_id)
        self._changed(instance.vm_id, instance.state, "")
        self._settle()

    def _greet(self, instance: Instance) -> None:
        control, _, manager = instance.fds[:3]
        self._send(instance, PROTOCOL_VERSION)
        self._send(instance, instance.vm_id)
        self._send(instance, -1, control)
        self._send(instance, VM_MANAGER, manager)
        for peer in sorted(instance.wanted):
            self._tell_joined(instance, peer)
        for bell in instance.bells:
            self._send(instance, instance.vm_id, bell)

    def _ready(self, instance: Instance, mask: int) -> None:
        assert instance.conn and instance.outbox is not None
        try:
            if mask & selectors.EVENT_READ:
                data = instance.conn.recv(64)      # no room for descriptors: the kernel closes what comes
                self._broken.append((instance, "spoke, which no client of ivshmem does" if data else "left"))
            else:
                instance.outbox.flush()
                self._watch(instance)
        except BlockingIOError:
            pass
        except OSError as error:
            self._broken.append((instance, str(error)))
        self._settle()

    def _tell_joined(self, instance: Instance, peer_id: int) -> None:
        peer = self.instances.get(peer_id)
        if (peer and peer.state == instance.state == "connected" and peer_id in instance.wanted
                and peer_id not in instance.known):
            instance.known.add(peer_id)
            self._send(instance, peer_id, peer.bell_for(instance.vm_id))

    def _tell_left(self, instance: Instance, peer_id: int) -> None:
        if peer_id in instance.known and instance.retracts:
            instance.known.discard(peer_id)
            self._send(instance, peer_id)

    def _send(self, instance: Instance, value: int, fd: int | None = None) -> None:
        if instance.outbox is None:
            return
        try:
            instance.outbox.put(struct.pack("<q", value), () if fd is None else (fd,))
            self._watch(instance)
        except OSError as error:
            self._broken.append((instance, str(error)))

    def _watch(self, instance: Instance) -> None:
        assert instance.conn and instance.outbox is not None
        wants = selectors.EVENT_READ | (selectors.EVENT_WRITE if instance.outbox.pending else 0)
        key = self._selector.get_key(instance.conn)
        if key.events != wants:
            self._selector.modify(instance.conn, wants, key.data)

    def _unwatch(self, instance: Instance) -> None:
        sock = instance.conn or instance.listener
        if sock:
            self._selector.unregister(sock)

    def _drop(self, instance: Instance, why: str) -> None:
        if instance.state == "gone":
            return
        self._unwatch(instance)
        instance.close_sockets()
        instance.known = set()
        instance.state = "gone"
        for other in list(self.instances.values()):
            self._tell_left(other, instance.vm_id)
        self._changed(instance.vm_id, instance.state, why)

    def _settle(self) -> None:
        """Drops those whose connection broke; telling the others may break more."""
        while self._broken:
            self._drop(*self._broken.pop())
