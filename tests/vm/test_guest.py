# SPDX-License-Identifier: Apache-2.0
"""The instance as the first program of a virtual machine: its devices, its doorbells, its end."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from vm.guest_rig import SMALL, Guest, Measured, guest_made

from pipeline.host.control import Command
from pipeline.host.edges import EdgeMemory
from pipeline.host.holder_client import HolderClient
from pipeline.host.images import Image
from pipeline.policy.model import Edge, LayerId, Side, VmState

pytestmark = pytest.mark.qemu

HEARTBEAT = 0.1          # c/abi/control.h: SL_HEARTBEAT_NS


@pytest.fixture(scope="module")
def guest(image: Image, vm_dir: Path, holder: HolderClient) -> Iterator[Guest]:
    """A warm guest, which the first test assigns."""
    with guest_made(image, vm_dir, holder) as made:
        made.start()
        yield made


@pytest.fixture(scope="module")
def edge(guest: Guest) -> EdgeMemory:
    return guest.edge()


@pytest.fixture(scope="module")
def active(guest: Guest, edge: EdgeMemory) -> Guest:
    """The guest with an edge and the layer app."""
    guest.until_warm()
    guest.plug(edge)
    guest.assign(edge)
    guest.ring()
    guest.until_state(VmState.READY)
    guest.command(Command.RUN)
    guest.until_state(VmState.ACTIVE)
    return guest


def test_a_guest_without_assignment_is_warm(guest: Guest) -> None:
    report = guest.until_warm()
    assert report.status.vm_id == guest.vm_id
    assert report.status.protocol_layers == ()
    first = report.status.heartbeat_ns
    guest.until(lambda r: r.status.heartbeat_ns >= first + 2 * HEARTBEAT * 1e9, "heartbeats of a warm guest", 5)
    assert guest.control.report().status.state is VmState.READY      # type: ignore[union-attr]


def test_the_seed_is_used_and_wiped(guest: Guest) -> None:
    guest.until_warm()
    assert not any(guest.control._header.entropy)


def test_assigned_it_attaches_the_plugged_edge(active: Guest, edge: EdgeMemory) -> None:
    report = active.control.report()
    assert report is not None
    assert report.status.protocol_layers == (LayerId.APP,)
    (peer,) = edge.peers()
    assert (peer.side, peer.slot, peer.vm_id, peer.incarnation) == (Side.BACK, 0, active.vm_id, 7)
    assert edge.intact()


def test_the_heartbeat_goes_on(active: Guest, edge: EdgeMemory) -> None:
    before = active.until(lambda r: r.status.heartbeat_ns, "heartbeat")
    active.until(lambda r: r.status.heartbeat_ns >= before + 5 * HEARTBEAT * 1e9, "five heartbeats", 5)
    (peer,) = edge.peers()
    assert peer.heartbeat_ns > before
    assert peer.state is VmState.ACTIVE


def test_a_doorbell_wakes_a_sleeping_guest(active: Guest, measured: Measured) -> None:
    """There and back: the manager rings, the guest carries the command out and rings the manager."""
    times = []
    for _ in range(30):
        active.rung_forget()
        time.sleep(0.003)                 # so that it sleeps again; a heartbeat may fall into it
        active.rung_forget()
        begun = time.monotonic()
        active.command(Command.RUN)
        assert active.rung(1.0)
        times.append(time.monotonic() - begun)
    measured("doorbell_round_trip_us", round(statistics.median(times) * 1e6))
    # without the doorbell it would look at its next heartbeat only: half of that on average
    assert statistics.median(times) < HEARTBEAT / 4


def test_an_idle_guest_costs_little(active: Guest, measured: Measured) -> None:
    shares = []
    for _ in range(3):
        before, begun = active.cpu_seconds(), time.monotonic()
        time.sleep(2)
        shares.append((active.cpu_seconds() - before) / (time.monotonic() - begun))
        if shares[-1] < 0.02:
            break
    measured("idle_cpu_percent", round(100 * min(shares), 2))
    assert min(shares) < 0.02


def test_an_edge_that_is_not_its_own_changes_nothing(active: Guest) -> None:
    other = active.edge(Edge(LayerId.TCP, LayerId.TLS, 1, 1), SMALL)
    active.plug(other, "other")
    before = active.until(lambda r: r.status.heartbeat_ns, "heartbeat")
    active.until(lambda r: r.status.heartbeat_ns > before + 3 * HEARTBEAT * 1e9, "heartbeats go on", 5)
    assert other.peers() == []
    active.unplug("other")
    active.qmp.event("DEVICE_DELETED")
    active.until(lambda r: r.status.state is VmState.ACTIVE, "still active")


def test_unplugging_its_edge_ends_it_with_a_reason(active: Guest) -> None:
    """Last: it has no edge and no life afterwards."""
    active.unplug()
    report = active.until_state(VmState.FAILED, timeout=5)
    assert "unplugged" in report.text
    assert active.qemu.wait(5) == 0       # switched off, not crashed
    assert "panic" not in active.said()


def test_stop_switches_the_machine_off(image: Image, vm_dir: Path, holder: HolderClient) -> None:
    with guest_made(image, vm_dir, holder, vm_id=6) as guest:
        guest.assign()                    # a cold boot with the assignment there: no edge
        guest.start()
        guest.until_state(VmState.READY)
        guest.command(Command.STOP)
        assert guest.qemu.wait(5) == 0
        report = guest.control.report()
        assert report is not None
        assert report.status.state is VmState.GONE
