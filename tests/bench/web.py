# SPDX-License-Identifier: Apache-2.0
"""HTTP and HTTPS: the swarm beside nginx."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.harness import Bench, CannotMeasure, Group, pairs
from bench.swarm import Server, both_up

_SECONDS = 2
_CONNECTIONS = 50
_RATE = 600
"""Requests per second for the latency: what a slow machine's server can do without a queue."""


def _output(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise CannotMeasure(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def rate(server: Server, scheme: str, *options: str) -> float:
    """Requests per second by wrk. One failed request, and there is no result."""
    out = _output(server.client("wrk", "-t1", f"-c{_CONNECTIONS}", f"-d{_SECONDS}s", *options, server.url(scheme)))
    if bad := re.search(r"Non-2xx.*|Socket errors: (?!connect 0, read 0, write 0, timeout 0).*", out):
        raise CannotMeasure(f"wrk at {server.addr}: {bad.group()}")
    found = re.search(r"Requests/sec:\s+([\d.]+)", out)
    if not found:
        raise CannotMeasure(f"wrk at {server.addr} says: {out}")
    return float(found.group(1))


def p99_us(server: Server) -> float:
    """Latency in us that 99 % of the requests at a fixed rate do not exceed, by h2load's log."""
    with tempfile.TemporaryDirectory(prefix="slb-") as folder:
        log, connections = Path(folder, "log"), 10
        _output(server.client("h2load", "--h1", f"-n{_RATE * _SECONDS}", f"-c{connections}",
                              f"--rps={_RATE // connections}", f"--log-file={log}", server.url()))
        lines = [line.split("\t") for line in log.read_text().splitlines()]
    took = sorted(int(fields[2]) for fields in lines if fields[1] == "200")
    if len(took) < _RATE * _SECONDS * 0.99:
        raise CannotMeasure(f"h2load at {server.addr}: {len(took)} of {_RATE * _SECONDS} requests were answered")
    return float(took[len(took) * 99 // 100])


@contextmanager
def _opened() -> Iterator[Sequence[Bench]]:
    for tool in ("wrk", "h2load"):
        if not shutil.which(tool):
            raise CannotMeasure(f"{tool} is not installed")
    with both_up() as (swarm, nginx):
        name = "nginx" if nginx else "nginx missing"

        def compare(measure: Callable[..., float], *args: str) -> Callable[[], Iterator[tuple[float, float | None]]]:
            return pairs(lambda: measure(swarm, *args), (lambda: measure(nginx, *args)) if nginx else None)

        yield (
            Bench("https.keepalive", "requests/s", compare(rate, "https"), name, nb=5),
            Bench("http.keepalive", "requests/s", compare(rate, "http"), name, nb=5),
            Bench("https.handshake", "handshakes/s", compare(rate, "https", "-H", "Connection: close"), name, nb=5),
            Bench("https.latency.p99", "us", compare(p99_us), name, more_is_better=False, nb=5,
                  note=lambda: f"at {_RATE} requests/s"),
        )


GROUPS = (Group(("https.keepalive", "http.keepalive", "https.handshake", "https.latency"), _opened),)
