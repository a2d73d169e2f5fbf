# SPDX-License-Identifier: Apache-2.0
"""Requests over an edge from a process to a guest: payloads, answers, and doorbells in both directions."""

import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support import ROOT
from unit.holder_rig import Qemu
from vm.guest_rig import Guest, Measured, guest_made

from pipeline.host.control import Command, RouteEntry
from pipeline.host.edges import EdgeMemory
from pipeline.host.holder_client import HolderClient
from pipeline.host.images import Image
from pipeline.policy.model import VmState

pytestmark = pytest.mark.qemu

PEER_VM, PEER_INCARNATION = 3, 9
REQUESTS = 60


@pytest.fixture(scope="module")
def peer_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("peer") / "http_peer"
    sources = [Path(__file__).with_name("http_peer.c"), *(ROOT / "c/edge").glob("*.c"), *(ROOT / "c/base").glob("*.c")]
    subprocess.run(["gcc", "-D_GNU_SOURCE", "-O2", "-I", ROOT / "c", "-o", program, *sources], check=True)
    return program


class Peer:
    """The process on the other side of the edge, as the holder knows it."""

    def __init__(self, program: Path, holder: HolderClient, edge: EdgeMemory, app: Guest) -> None:
        self._program, self._edge, self._app = program, edge, app
        self.fds = holder.instance_add(PEER_VM)
        self.client = Qemu(self.fds.facts.socket)
        self.client.greeting()
        holder.instance_peers(app.vm_id, [PEER_VM])
        (number,) = (f.bells[app.vm_id] for f in holder.instance_list() if f.vm_id == PEER_VM)
        self.bell = self.client.bells[number]         # by which the app rings it

    def ask(self, requests: int, pause: float) -> list[tuple[int, int, int]]:
        """Status, microseconds and time of the end in ns, of each request. Once for each incarnation."""
        fds = [self._edge.fd, self.bell, self._app.fds.doorbell]
        argv = [self._program, *map(str, fds), str(self._app.vm_id), str(requests), str(round(pause * 1e6))]
        done = subprocess.run(argv, pass_fds=fds, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}{self._app.said()}"
        return [(int(status), int(us), int(ns)) for status, us, ns in map(str.split, done.stdout.splitlines())]

    def close(self) -> None:
        self.client.close()
        self.fds.close()


@pytest.fixture(scope="module")
def warm(image: Image, vm_dir: Path, holder: HolderClient) -> Iterator[Guest]:
    with guest_made(image, vm_dir, holder) as guest:
        guest.start()
        guest.until_warm()
        yield guest


def test_a_warm_guest_answers_requests(warm: Guest, holder: HolderClient, peer_program: Path,
                                       measured: Measured) -> None:
    edge = warm.edge()
    with closing(Peer(peer_program, holder, edge, warm)) as peer:
        time.sleep(0.3)                   # an idle machine, as a warm pool's
        begun = time.monotonic()
        warm.plug(edge)
        warm.assign(edge)
        warm.control.routes_set(0, 1, [RouteEntry(PEER_VM, PEER_INCARNATION, 0, 1, VmState.ACTIVE)])
        warm.ring()
        warm.until_state(VmState.READY)
        warm.command(Command.RUN)
        warm.until_state(VmState.ACTIVE)
        answers = peer.ask(REQUESTS, 0.002)
        assert {status for status, _, _ in answers} == {200}
        times = [us for _, us, _ in answers]
        measured("scale_out_to_first_answer_ms", round(answers[0][2] / 1e6 - begun * 1e3))
        measured("request_to_a_sleeping_guest_us", statistics.median(times))
        # neither side waited for a heartbeat: each was woken by the other's doorbell
        assert statistics.median(times) < 50_000
        warm.until(lambda r: r.requests >= REQUESTS, "it counted them", 2)
        report = warm.control.report()
        assert report is not None
        assert report.counters["doorbells"] > 0
        assert report.counters["quarantined"] == 0
        holder.instance_remove(PEER_VM)
