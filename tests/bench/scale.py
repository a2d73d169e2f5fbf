# SPDX-License-Identifier: Apache-2.0
"""How soon there is more of a layer: from the decision to the first answer of the new instance; and how soon there is
a virtual machine.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.harness import Bench, CannotMeasure, Group, pairs, until
from bench.swarm import FILE, Server, site_made, swarm_up
from pipeline.cli.client import call
from pipeline.errors import SwarmlineError
from pipeline.host import holder_client, images, processes
from pipeline.host.control import ControlRegion
from pipeline.host.holder_client import HolderClient
from pipeline.host.namespaces import run_in
from pipeline.instances.driver import InstanceSpec
from pipeline.instances.qemu import QemuDriver
from pipeline.policy.model import Layer, VmState

_PAUSE = 0.001      # seconds between two requests: somebody always asks, and nobody is busy
_PATIENCE = 60.0


class _Client(threading.Thread):
    """Asks again and again on one connection, so each request can go to another app instance."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self.server, self.done = server, False

    def run(self) -> None:
        run_in(self.server.netns, self._ask)

    def _ask(self) -> None:
        request = f"GET /{FILE} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        with socket.create_connection((self.server.addr, 80), timeout=10) as sock:
            while not self.done:
                sock.sendall(request)
                sock.recv(65536)
                time.sleep(_PAUSE)


@contextmanager
def _asked(server: Server) -> Iterator[None]:
    client = _Client(server)
    client.start()
    try:
        yield
    finally:
        client.done = True
        client.join()


def _instances(run_dir: Path, layer: str) -> set[int]:
    """The active ones; with an empty name the warm ones."""
    state = "active" if layer else "ready"
    found = call(run_dir, "GET", "/v1/status")["instances"]
    return {i["vm_id"] for i in found if i["state"] == state and i["layers"] == ([layer] if layer else [])}


def _scale_out(run_dir: Path) -> float:
    """Milliseconds until http has got the first answer of another app instance, by its own trace."""
    until(lambda: len(_instances(run_dir, "app")) == 1 and bool(_instances(run_dir, "")), _PATIENCE, "a warm instance")
    before = _instances(run_dir, "app")
    call(run_dir, "POST", "/v1/trace", {"every": 1})
    begin = time.monotonic_ns()
    call(run_dir, "POST", "/v1/scale", {"layer": "app", "instances": 2})
    first: list[int] = []

    def answered() -> bool:
        events = call(run_dir, "GET", "/v1/trace")["events"]
        first.extend(e["time_ns"] for e in events
                     if e["layer"] == "http" and e["point"] == "back" and e["peer_vm"] not in {0, *before}
                     and e["peer_vm"] in _instances(run_dir, "app"))
        return bool(first)

    until(answered, _PATIENCE, "an answer of the new instance")
    call(run_dir, "POST", "/v1/trace", {"every": 0})
    call(run_dir, "POST", "/v1/scale", {"layer": "app", "instances": 1})
    return (min(first) - begin) / 1e6


@contextmanager
def _warm(driver: str) -> Iterator[Sequence[Bench]]:
    pool = {"process": "processes", "qemu": "vms"}[driver]
    more = f'driver = "{driver}"\n[pool]\n{pool} = 1\n'
    with site_made() as folder, swarm_up(folder, f"slb{time.time_ns() % 10000}w", pinned=False, more=more) as swarm, \
            _asked(swarm):
        assert swarm.run_dir
        run_dir = swarm.run_dir
        name, target = ("scale.warm", 50) if driver == "process" else ("scale.warm.vm", 100)
        yield [Bench(name, "ms from scale-out to first answer", pairs(lambda: _scale_out(run_dir)),
                     more_is_better=False, nb=7, note=lambda: f"target < {target}")]


# ---- virtual machines alone

async def _start(run_dir: Path, holder: HolderClient, template: bool) -> float:
    """Milliseconds from the start of a machine until it is warm."""
    fds = holder.instance_add(5)
    control = ControlRegion(fds.control, 5)
    control.format()
    driver = QemuDriver()
    begin = time.monotonic()
    spec = InstanceSpec(5, run_dir, fds.facts.socket, memory=Layer.memory)
    running = await (driver.start(spec) if template else driver.boot(spec))
    while (report := control.report()) is None or report.status.state is not VmState.READY:
        if time.monotonic() - begin > _PATIENCE:
            raise CannotMeasure("the machine does not boot")
        await asyncio.sleep(0.001)
    seconds = time.monotonic() - begin
    await driver.stop(running)
    control.close()
    fds.close()
    holder.instance_remove(5)
    return seconds * 1e3


@contextmanager
def _machines() -> Iterator[Sequence[Bench]]:
    try:
        images.load(images.default_folder())
    except SwarmlineError as error:
        raise CannotMeasure(error.explain()) from error
    with tempfile.TemporaryDirectory(prefix="slb-") as name:
        run_dir = Path(name)
        holder_client.start(run_dir)
        try:
            with HolderClient(run_dir) as holder:
                asyncio.run(_start(run_dir, holder, True))      # makes the template
                yield [Bench(f"vm.{what}", "ms from start to warm",
                             pairs(lambda template=template: asyncio.run(_start(run_dir, holder, template))),
                             more_is_better=False, nb=5) for what, template in (("boot", False), ("restore", True))]
        finally:
            processes.kill_all(run_dir)
            with suppress(OSError):
                processes.clean_up(run_dir)
            run_dir.mkdir(exist_ok=True)


GROUPS = (
    Group(("scale.warm",), lambda: _warm("process")),
    Group(("scale.warm.vm",), lambda: _warm("qemu")),
    Group(("vm.boot", "vm.restore"), _machines),
)
