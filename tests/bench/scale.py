# SPDX-License-Identifier: Apache-2.0
"""How soon there is more of a layer: from the decision to the first answer of the new instance; and how soon there is
a virtual machine.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
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
_LAYERS = ("app", "http", "tls", "tcp")
_SETTLED = 0.5      # seconds for which the clients ask before, and after


_CLIENTS = 2        # of those that connect anew each time: one is on its way while the other waits


class _Client(threading.Thread):
    """Asks again and again, so that the layer's next instance is asked soon: each request can go to another app
    instance, each connection to another one of the other layers.
    """

    def __init__(self, server: Server, layer: str) -> None:
        super().__init__(daemon=True)
        self.server, self.layer, self.done = server, layer, False
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE

    def run(self) -> None:
        run_in(self.server.netns, self._ask)

    def _ask(self) -> None:
        while not self.done:
            with self._connected() as sock:
                self._request(sock)
                while self.layer == "app" and not self.done:
                    self._request(sock)

    @contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        tls = self.layer == "tls"
        with socket.create_connection((self.server.addr, 443 if tls else 80), timeout=10) as sock:
            if not tls:
                yield sock
                return
            with self._context.wrap_socket(sock, server_hostname="a") as wrapped:
                yield wrapped

    def _request(self, sock: socket.socket) -> None:
        sock.sendall(f"GET /{FILE} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        sock.recv(65536)
        time.sleep(_PAUSE)


@contextmanager
def _asked(server: Server, layer: str) -> Iterator[None]:
    clients = [_Client(server, layer) for _ in range(1 if layer == "app" else _CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        for client in clients:
            client.done = True
        for client in clients:
            client.join()


def _instances(run_dir: Path, layer: str) -> set[int]:
    """The active ones; with an empty name the warm ones."""
    state = "active" if layer else "ready"
    found = call(run_dir, "GET", "/v1/status")["instances"]
    return {i["vm_id"] for i in found if i["state"] == state and i["layers"] == ([layer] if layer else [])}


def _is_at_rest(run_dir: Path, layer: str) -> bool:
    """Nobody drains any more, and somebody is warm."""
    found = [i["state"] for i in call(run_dir, "GET", "/v1/status")["instances"] if i["layers"] == [layer]]
    return found == ["active"] and bool(_instances(run_dir, ""))


def _scale_out(server: Server, layer: str) -> float:
    """Milliseconds until the layer's next instance has made (app) or got (the others) its first answer, by its own
    trace. That is read later: it is long, and the manager would be busy with it.
    """
    run_dir, point = server.run_dir, "out" if layer == "app" else "back"
    assert run_dir
    until(lambda: _is_at_rest(run_dir, layer), _PATIENCE, "a warm instance, and one of the layer")
    before = _instances(run_dir, layer)
    first: list[int] = []

    def answered() -> bool:
        time.sleep(_SETTLED)
        events = call(run_dir, "GET", "/v1/trace")["events"]
        first.extend(e["time_ns"] for e in events
                     if e["layer"] == layer and e["point"] == point and e["vm_id"] not in before)
        return bool(first)

    with _asked(server, layer):
        time.sleep(_SETTLED)
        call(run_dir, "POST", "/v1/trace", {"every": 1})
        begin = time.monotonic_ns()
        call(run_dir, "POST", "/v1/scale", {"layer": layer, "instances": 2})
        until(answered, _PATIENCE, "an answer of the new instance")
    call(run_dir, "POST", "/v1/trace", {"every": 0})
    call(run_dir, "POST", "/v1/scale", {"layer": layer, "instances": 1})
    return (min(first) - begin) / 1e6


@contextmanager
def _warm(layer: str, machine: bool) -> Iterator[Sequence[Bench]]:
    more = f"[pool]\n{'vms' if machine else 'processes'} = 1\n"
    name, target = ("scale.warm.vm", 100) if machine else ("scale.warm", 50)
    with site_made() as folder, swarm_up(folder, f"slb{time.time_ns() % 10000}w", pinned=False, more=more,
                                         machine=layer if machine else "") as swarm:
        yield [Bench(f"{name}.{layer}", "ms from scale-out to first answer", pairs(lambda: _scale_out(swarm, layer)),
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
    *(Group((f"scale.warm.{layer}",), partial(_warm, layer, False)) for layer in _LAYERS),
    *(Group((f"scale.warm.vm.{layer}",), partial(_warm, layer, True)) for layer in _LAYERS),
    Group(("vm.boot", "vm.restore"), _machines),
)
