# SPDX-License-Identifier: Apache-2.0
"""Holder, process driver and tap together: an instance from its start to its end."""

import asyncio
import fcntl
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from system.holder_rig import MAC, Place

from pipeline.errors import InstanceError, LaunchError
from pipeline.host import namespaces, processes
from pipeline.host.holder_client import HolderClient
from pipeline.host.nic import nic_facts
from pipeline.host.tap import TapSpec, tap_create
from pipeline.instances.driver import Running
from pipeline.instances.process import UID_BASE, ProcessDriver
from pipeline.policy.model import LayerId, VmState

pytestmark = [pytest.mark.root, pytest.mark.netns]


@pytest.mark.usefixtures("programs")
def test_instance_starts_with_its_edges(place: Callable[..., Place], holder: HolderClient) -> None:
    mine = place()

    async def run() -> None:
        running = await mine.started()
        report = await mine.ready()
        assert (report.status.state, report.text) == (VmState.READY, "1/258=/memfd:sl-edge-tcp-tls lo")
        assert holder.instance_get(3).facts.connected
        assert f"uid {UID_BASE + 3} starts" in running.log_path.read_text()
        assert running.alive
        adopted = await ProcessDriver().adopt(mine.spec, running.pid, os.dup(running.grants))
        assert adopted
        adopted.close()
        assert await ProcessDriver().adopt(mine.spec, os.getpid(), os.dup(running.grants)) is None
        await ProcessDriver().stop(running)

    asyncio.run(run())
    assert mine.edge.intact()
    assert processes.find(mine.spec.run_dir) == [process for process in processes.find(mine.spec.run_dir)
                                                 if "pipeline.host.holder" in process.argv]


@pytest.mark.usefixtures("programs")
def test_death_of_an_instance_is_known_in_every_way(place: Callable[..., Place], holder: HolderClient) -> None:
    """By its pidfd and by the closing of its connection. (The holder reaps it only if it started the manager.)"""
    mine = place()

    async def run() -> list[str]:
        events: asyncio.Queue[dict[str, object]] = asyncio.Queue()
        stop = holder.subscribe(events.put_nowait)
        running = await mine.started()
        await mine.ready()
        os.kill(running.pid, signal.SIGSEGV)
        async with asyncio.timeout(10):
            await running.wait()
            names = [str((await events.get())["event"]) for _ in range(2)]
        stop()
        running.close()
        return names

    assert asyncio.run(run()) == ["instance.connected", "instance.gone"]


@pytest.mark.usefixtures("programs")
def test_first_layer_gets_an_interface(place: Callable[..., Place]) -> None:
    mine = place(layer=LayerId.TCP)

    async def run() -> None:
        running = await mine.started()
        report = await mine.ready()
        assert report.text == "1/258=/memfd:sl-edge-tcp-tls 2/0=socket 2/0=socket lo,eth0"
        facts = nic_facts(running.pid, "eth0")
        assert (facts.mac, facts.mtu, facts.up, facts.kind) == (MAC, 1500, True, "tun")
        tap = running.take_tap()
        assert tap is not None
        assert running.take_tap() is None
        listening = namespaces.spawn_in(running.pid, ["ss", "-ltnH"], stdout=subprocess.PIPE).communicate()[0].decode()
        assert {line.split()[3] for line in listening.splitlines()} == {"[::ffff:192.0.2.1]:443", "[2001:db8::1]:443"}
        namespaces.spawn_in(running.pid, ["ip", "addr", "add", "192.0.2.1/24", "dev", "eth0"]).wait()
        ping = namespaces.spawn_in(running.pid, ["ip", "neigh", "get", "192.0.2.9", "dev", "eth0"],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ping.wait()
        namespaces.run_in(running.pid, lambda: _send_udp("192.0.2.9"))
        async with asyncio.timeout(10):
            await processes.readable(tap)
        frame = os.read(tap, 2000)
        assert frame[6:12] == MAC                          # whole frames, no header in front
        os.close(tap)
        await ProcessDriver().stop(running)

    asyncio.run(run())
    assert "eth0" not in [name for _, name in socket.if_nameindex() if name == "eth0" and _mac_of(name) == MAC]


def _send_udp(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", (address, 9))


def _mac_of(name: str) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return fcntl.ioctl(sock, 0x8927, struct.pack("16s24x", name.encode()))[18:24]


@contextmanager
def leaving_nothing(place: Place) -> Iterator[None]:
    """Neither process nor descriptor nor interface."""
    before, links = set(os.listdir("/proc/self/fd")), socket.if_nameindex()
    yield
    assert processes.of_instance(place.spec.run_dir, 3) == []
    assert set(os.listdir("/proc/self/fd")) == before
    assert socket.if_nameindex() == links


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize(("mode", "layer", "words", "status"), [
    ("exits", LayerId.TLS, "no such layer", 1),
    ("dies", LayerId.TLS, "ended at once", None),
    ("lies", LayerId.TLS, "process 1 is not instance 3", None)])
def test_instance_that_does_not_start(place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch, mode: str,
                                      layer: LayerId, words: str, status: int | None) -> None:
    """One clear error, and nothing left."""
    monkeypatch.setenv("SWARMLINE_FAKE", mode)
    mine = place(layer=layer)
    with leaving_nothing(mine), pytest.raises(LaunchError) as caught:
        asyncio.run(mine.started())
    error = caught.value
    assert words in str(error)
    assert error.exit_status == status
    assert error.vm_id == 3
    assert "--vm-id=3" in error.argv
    assert error.log_lines


@pytest.mark.usefixtures("programs")
def test_instance_whose_start_is_cut_off(place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch) -> None:
    """It would never be done; whoever started it has waited long enough. Nothing is left."""
    monkeypatch.setenv("SWARMLINE_FAKE", "hangs")
    mine = place(layer=LayerId.TLS)

    async def cut_off() -> None:
        async with asyncio.timeout(0.5):
            await mine.started()

    with leaving_nothing(mine), pytest.raises(TimeoutError):
        asyncio.run(cut_off())


@pytest.mark.usefixtures("programs")
def test_no_interface_in_the_namespace_of_others(place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARMLINE_FAKE", "shares")
    mine, links = place(layer=LayerId.TCP), socket.if_nameindex()
    with pytest.raises(InstanceError, match="no network namespace of its own"):
        asyncio.run(mine.started())
    assert socket.if_nameindex() == links


def test_instance_without_a_program_or_a_holder(place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch,
                                                tmp_path: Path, holder: HolderClient) -> None:
    mine = place()
    broken = tmp_path / "swarmline-instance"
    broken.write_text("#!/nonexistent/interpreter\n")
    broken.chmod(0o755)
    monkeypatch.setenv("SWARMLINE_BIN", str(tmp_path))
    with pytest.raises(LaunchError, match="cannot run"):
        asyncio.run(ProcessDriver().start(mine.spec))
    holder.instance_remove(3)
    with pytest.raises(LaunchError, match="cannot be connected"):
        asyncio.run(ProcessDriver().start(mine.spec))


def test_running_closes_what_it_owns(netns: Callable[[], str]) -> None:
    process = processes.Process.of(os.getpid())
    assert process
    pidfd = process.open()
    assert pidfd is not None
    tap = tap_create(netns(), TapSpec(MAC, 1500))
    running = Running(1, process, pidfd, Path("/dev/null"), tap)
    running.close()
    running.close()
    for fd in (pidfd, tap):
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
