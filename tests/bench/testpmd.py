# SPDX-License-Identifier: Apache-2.0
"""dpdk-testpmd in both of its roles: guests, whose drivers are net_virtio_user, on core 0, and what moves their frames,
net_vhost, on core 1. Another program can take the second one's place.

Rates are those that the guests see.
"""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.harness import CannotMeasure, PeerMissing, until
from bench.native import first, hugepages_reserved

BackEnd = Callable[[list[str]], list[str]]
"""The command of a program that connects to these sockets and moves frames: from the only guest to nowhere, or from
each of two to the other."""
SPLIT, PACKED = "mrg_rxbuf=1,in_order=1", "packed_vq=1,mrg_rxbuf=1,in_order=1"

_HUGEPAGES = 160      # what the two processes need
_SAMPLES, _SECONDS = 3, 0.6
_CIRCLING = 8         # bursts of 32 frames on their way, for each of two guests


def _argv(core: int, name: str, vdevs: list[str], *options: str) -> list[str]:
    return first([
        "stdbuf", "-oL", "dpdk-testpmd", f"--lcores=0@{core},1@{core}", "--in-memory", "--single-file-segments",
        "-m", "128", "--no-pci", "--no-telemetry", f"--file-prefix={name}", *(f"--vdev={vdev}" for vdev in vdevs), "--",
        "--no-mlockall", "--total-num-mbufs=8192", "--burst=32", *options])


def vhost(sockets: list[str]) -> list[str]:
    """The peer of every other back-end."""
    vdevs = [f"net_vhost{n},iface={path},client=1" for n, path in enumerate(sockets)]
    return _argv(1, "slb-vhost", vdevs, "--auto-start", f"--forward-mode={'io' if len(sockets) > 1 else 'rxonly'}",
                 "--stats-period=3600")


class _Guests:
    """Their process, at its prompt once all of them are connected."""

    def __init__(self, folder: Path, sockets: list[str], kind: str) -> None:
        vdevs = [f"net_virtio_user{n},path={path},server=1,queue_size=1024,{kind}" for n, path in enumerate(sockets)]
        self._log = folder / "guests.log"
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(_argv(0, "slb-guest", vdevs, "-i"), stdin=subprocess.PIPE, stdout=out,
                                            stderr=out)

    def tell(self, *commands: str) -> None:
        assert self.process.stdin
        self.process.stdin.write("".join(f"{command}\n" for command in commands).encode())
        self.process.stdin.flush()

    def text(self) -> str:
        return self._log.read_text(errors="replace")

    def rate(self, way: str, nb_guest: int) -> float:
        """Median of the frames per second of all of them: ``Rx`` or ``Tx``. The time before the first look is not
        used."""
        for _ in range(_SAMPLES + 1):
            self.tell("show port stats all")
            time.sleep(_SECONDS)
        found = [float(rate) for rate in re.findall(rf"{way}-pps:\s+(\d+)", self.text())]
        rates = [sum(found[at : at + nb_guest]) for at in range(nb_guest, len(found), nb_guest)]
        if not rates or not min(rates):
            raise CannotMeasure(f"the guests saw no frames: {self.text()[-300:]}")
        return statistics.median(rates)


@contextmanager
def _connected(nb_guest: int, kind: str, back_end: BackEnd) -> Iterator[_Guests]:
    with hugepages_reserved(_HUGEPAGES), tempfile.TemporaryDirectory(prefix="slb-") as name:
        folder = Path(name)
        sockets = [str(folder / f"guest{n}") for n in range(nb_guest)]
        guests = _Guests(folder, sockets, kind)
        running = [guests.process]

        def is_there(condition: Callable[[], bool], what: str) -> None:
            until(lambda: condition() or any(p.poll() is not None for p in running), 15, what)
            if not condition():
                raise PeerMissing(f"{what}: it does not run here: {guests.text()[-300:]}")

        try:
            for path in sockets:       # each is waited for before the next one is made
                is_there(lambda path=path: Path(path).exists(), "dpdk-testpmd's socket")   # type: ignore[misc]
                if len(running) == 1:
                    with (folder / "back-end.log").open("wb") as out:
                        running.append(subprocess.Popen(back_end(sockets), stdin=subprocess.PIPE, stdout=out,
                                                        stderr=out))
            is_there(lambda: "testpmd> " in guests.text(), "dpdk-testpmd's prompt")
            yield guests
        finally:
            for process in reversed(running):
                process.kill()
                process.wait()


def hop(frame_len: int, kind: str, back_end: BackEnd = vhost) -> float:
    """Frames per second that a guest can send."""
    with _connected(1, kind, back_end) as guests:
        guests.tell("set fwd txonly", f"set txpkts {frame_len}", "start")
        return guests.rate("Tx", 1)


def circle(frame_len: int, kind: str, back_end: BackEnd = vhost) -> float:
    """Frames per second that two guests receive who send on to the other what they got."""
    with _connected(2, kind, back_end) as guests:
        guests.tell("set fwd io", f"set txpkts {frame_len}", f"start tx_first {_CIRCLING}")
        return guests.rate("Rx", 2)


def peer(frame_len: int, scale: float = 1) -> Callable[[], float] | None:
    """The rate of a hop times ``scale`` as a function, or None if testpmd does not run here."""
    if not shutil.which("dpdk-testpmd"):
        return None

    def rate() -> float:
        try:
            return hop(frame_len, SPLIT) * scale
        except CannotMeasure:
            return hop(frame_len, SPLIT) * scale   # somebody else may have taken the hugepages just then

    try:
        rate()
    except CannotMeasure:
        return None
    return rate
