# SPDX-License-Identifier: Apache-2.0
"""The peer of a hop: two dpdk-testpmd, net_virtio_user (txonly) on core 0 to net_vhost (rxonly) on core 1."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.harness import CannotMeasure, PeerMissing, until
from bench.native import first, hugepages_reserved

_HUGEPAGES = 160   # what the two processes need
_SAMPLES = 2


def _argv(core: int, name: str, vdev: str, *options: str) -> list[str]:
    return first([
        "dpdk-testpmd", f"--lcores=0@{core},1@{core}", "--in-memory", "--single-file-segments", "-m", "128",
        "--no-pci", "--no-telemetry", f"--file-prefix={name}", f"--vdev={vdev}", "--", "--no-mlockall",
        "--total-num-mbufs=8192", "--burst=32", "--stats-period=1", "--auto-start", *options])


def packets_per_second(frame_len: int) -> float:
    """Frames per second at the receiver, whose counters are read each second. The first second is not used."""
    if not shutil.which("dpdk-testpmd"):
        raise PeerMissing("dpdk-testpmd is not installed")
    try:
        return _run(frame_len)
    except CannotMeasure:
        return _run(frame_len)   # somebody else may have taken the hugepages just then


def _run(frame_len: int) -> float:
    with hugepages_reserved(_HUGEPAGES), tempfile.TemporaryDirectory(prefix="slb-") as folder:
        socket, log = Path(folder, "vhost"), Path(folder, "rx.log")
        sender = _argv(0, "slb-tx", f"net_virtio_user0,path={socket},server=1,queue_size=1024",
                       "--forward-mode=txonly", f"--txpkts={frame_len}")
        receiver = _argv(1, "slb-rx", f"net_vhost0,iface={socket},client=1", "--forward-mode=rxonly")
        running: list[subprocess.Popen[bytes]] = []
        try:
            with log.open("wb") as out, Path(folder, "tx.log").open("wb") as tx_out:
                running.append(subprocess.Popen(sender, stdin=subprocess.PIPE, stdout=tx_out, stderr=tx_out))
                until(lambda: socket.exists() or running[0].poll() is not None, 10, "dpdk-testpmd's socket")
                running.append(subprocess.Popen(receiver, stdin=subprocess.PIPE, stdout=out, stderr=out))
            until(lambda: len(_rates(log)) > _SAMPLES or any(p.poll() is not None for p in running), 15,
                  "dpdk-testpmd's rate")
        finally:
            for process in reversed(running):
                process.kill()
                process.wait()
        rates = _rates(log)[1:1 + _SAMPLES]
        if not rates:
            raise PeerMissing(f"dpdk-testpmd does not run here: {_last_line(Path(folder))}")
        return statistics.median(rates)


def _rates(log: Path) -> list[float]:
    found = [float(rate) for rate in re.findall(rb"Rx-pps:\s+(\d+)", log.read_bytes())]
    return [rate for rate in found if rate]


def _last_line(folder: Path) -> str:
    lines = [line for name in ("tx.log", "rx.log") for line in (folder / name).read_text(errors="replace").splitlines()
             if "rror" in line or "annot" in line]
    return lines[-1] if lines else "no message"


def peer(frame_len: int, scale: float = 1) -> Callable[[], float] | None:
    """The rate times ``scale`` as a function, or None if testpmd does not run here."""
    try:
        packets_per_second(frame_len)
    except (PeerMissing, CannotMeasure):
        return None
    return lambda: packets_per_second(frame_len) * scale
