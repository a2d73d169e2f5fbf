# SPDX-License-Identifier: Apache-2.0
"""The holder's ivshmem server: QEMU's protocol, hostile and stuck clients."""

import errno
import os
import select
import socket
from collections.abc import Callable, Mapping

import pytest
from pipeline._native import lib
from unit.holder_rig import GREETING, Qemu, nb_fds, same_file, state_of, until

from pipeline.errors import HolderError
from pipeline.host.holder_client import HolderClient
from pipeline.host.ivshmem import BELLS


def test_greeting(holder: HolderClient, connect: Callable[[int], Qemu]) -> None:
    """Version, own id, region, the manager's doorbell, own doorbell last: the order that QEMU's client insists on."""
    qemu = connect(7)
    assert qemu.messages(GREETING) == [(0, False), (7, False), (-1, True), (0, True), *[(7, True)] * BELLS]
    mine = holder.instance_get(7)
    assert mine.facts.connected
    assert same_file(mine.control, qemu.fds[-1])
    assert os.fstat(qemu.fds[-1]).st_size == 1 << 20
    os.eventfd_write(qemu.fds[0], 1)
    assert os.eventfd_read(mine.manager) == 1
    mine.close()


def test_memory_cannot_be_resized(holder: HolderClient, connect: Callable[[int], Qemu]) -> None:
    qemu = connect(1)
    qemu.greeting()
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
    first.greeting()
    holder.instance_add(2).close()
    holder.instance_peers(1, [2])
    holder.instance_peers(2, [1])
    assert first.silent()                                  # 2 is not connected yet
    second = Qemu(holder.instance_get(2).facts.socket)
    head = [(0, False), (2, False), (-1, True), (0, True), (1, True)]
    assert second.messages(GREETING + 1) == [*head, *[(2, True)] * BELLS]
    assert first.message() == (2, True)
    second.close()
    assert first.message() == (2, False)
    until(lambda: state_of(holder, 2) == "gone")


def bells(holder: HolderClient, vm_id: int) -> Mapping[int, int]:
    return next(facts.bells for facts in holder.instance_list() if facts.vm_id == vm_id)


def test_each_peer_has_a_doorbell_of_its_own(holder: HolderClient, connect: Callable[[int], Qemu]) -> None:
    """It is known whose. Number 0 is the manager's alone; when there are more peers than doorbells, some share one."""
    hub = connect(1)
    hub.greeting()
    mine = holder.instance_get(1)
    os.eventfd_write(mine.doorbell, 1)
    assert os.eventfd_read(hub.bells[0]) == 1
    mine.close()
    assert BELLS == lib.SL_BELLS
    used = []
    for vm_id in range(2, BELLS + 3):
        peer = connect(vm_id)
        peer.greeting()
        holder.instance_peers(vm_id, [1])
        assert peer.message() == (1, True)
        os.eventfd_write(peer.fds[1], 5)
        rung = [number for number, bell in enumerate(hub.bells) if select.select([bell], [], [], 0)[0]]
        assert [os.eventfd_read(hub.bells[number]) for number in rung] == [5]
        used += rung
        assert bells(holder, 1)[vm_id] == rung[0]
    assert used == [*range(1, BELLS), 1, 2]
    holder.instance_peers(3, [])
    holder.instance_peers(3, [1])
    assert bells(holder, 1)[3] == used[1], "it could still ring that one"
    holder.instance_remove(3)
    assert 3 not in bells(holder, 1)


def test_peers_are_exactly_those_set(holder: HolderClient, connect: Callable[[int], Qemu]) -> None:
    hub, *others = [connect(vm_id) for vm_id in (1, 2, 3, 4)]
    for qemu in (hub, *others):
        qemu.greeting()
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


def test_one_that_can_not_forget_is_told_of_each_peer_once(holder: HolderClient,
                                                           connect: Callable[[int], Qemu]) -> None:
    """QEMU's device would use what it has freed."""
    holder.instance_add(1, retracts=False).close()
    hub, peer = Qemu(holder.instance_get(1).facts.socket), connect(2)
    hub.greeting()
    peer.greeting()
    for peers in ([2], [], [2]):
        holder.instance_peers(1, peers)
    assert hub.message() == (2, True)
    for _ in range(2):
        holder.instance_silence(1, 2)
        holder.instance_silence(1, 3)
        holder.instance_peers(1, [2])
    assert hub.message() == (2, False)                     # unless it must not ring it any more: that once, too
    peer.close()
    until(lambda: state_of(holder, 2) == "gone")
    assert hub.silent()
    hub.close()


def test_a_process_is_not_silenced(holder: HolderClient, connect: Callable[[int], Qemu]) -> None:
    """It would not forget the doorbell, but take the peer for dead."""
    hub, peer = connect(1), connect(2)
    hub.greeting()
    peer.greeting()
    holder.instance_peers(1, [2])
    assert hub.message() == (2, True)
    holder.instance_silence(1, 2)
    assert hub.silent()


def test_removed_instance_is_not_mistaken_for_the_next(holder: HolderClient,
                                                       connect: Callable[[int], Qemu]) -> None:
    hub, old = connect(1), connect(2)
    hub.greeting()
    holder.instance_peers(1, [2])
    assert hub.message() == (2, True)
    holder.instance_remove(2)
    assert hub.message() == (2, False)
    assert old.ended()
    connect(2).greeting()                                 # the same VMID, started again
    holder.hello()
    assert hub.silent()
    holder.instance_peers(1, [2])
    assert hub.message() == (2, True)


def test_one_connection_for_life(holder: HolderClient, connect: Callable[[int], Qemu]) -> None:
    qemu = connect(1)
    qemu.greeting()
    path = holder.instance_get(1).facts.socket
    for _ in range(2):                                     # while it lives, and after
        with pytest.raises(OSError, match=r"No such file|refused"):
            Qemu(path)
        qemu.close()
        until(lambda: state_of(holder, 1) == "gone")


def test_client_that_speaks_is_dropped(holder: HolderClient, connect: Callable[[int], Qemu]) -> None:
    hub, rude = connect(1), connect(2)
    hub.greeting()
    rude.greeting()
    holder.instance_peers(1, [2])
    assert hub.message() == (2, True)
    with open(os.devnull) as null:
        socket.send_fds(rude.sock, [b"x" * 100], [null.fileno()])
    assert hub.message() == (2, False)
    assert rude.ended()


def test_stuck_instance_blocks_nobody(holder: HolderClient, connect: Callable[[int], Qemu]) -> None:
    """One that never reads is dropped when its queue is full; meanwhile, and then, all others are served."""
    stuck, reader, hub = connect(1), connect(2), connect(3)
    reader.greeting()
    hub.greeting()
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
