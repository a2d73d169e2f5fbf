# SPDX-License-Identifier: Apache-2.0
"""Two app instances, one with a quarter of the other's CPU time: what a client waits for, by who picks the receiver.

Four swarms that differ in one function of the http instance: select_best_vm; round robin; random; and the ideal, which
is told the truth and deals four requests to the one and one to the other. All get the same requests at the same rate,
two thirds of what both app instances can do together.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

from support.cgroups import cpu_group

from bench.harness import Bench, CannotMeasure, Group, pairs
from bench.native import built
from bench.swarm import Server, site_made, swarm_up
from pipeline.cli.client import call
from pipeline.host import processes

PEERS = ("ideal", "round-robin", "random")
IDS = tuple(f"route.unequal.{name}" for name in PEERS)
TARGETS = {"ideal": 1 / 1.3}
FAST, SLOW, PERIOD = 0.004, 0.001, 0.1     # seconds of CPU time in each period of so many
CONNECTIONS, SECONDS, LOAD = 16, 2, 2 / 3
FILES = 512    # more than an app instance keeps open: each request costs it some system calls


@dataclass(frozen=True)
class Swarm:
    """One of the four. ``rate``: requests per second."""

    server: Server
    urls: tuple[str, str]
    rate: int

    def p99(self) -> float:
        """Of one run, in milliseconds."""
        with tempfile.NamedTemporaryFile("r") as log:
            argv = ["h2load", "--h1", "-c", str(CONNECTIONS), "-t", "1", f"--rps={self.rate / CONNECTIONS:.0f}",
                    "-D", str(SECONDS), "--warm-up-time=1", f"--log-file={log.name}", *self.urls]
            _do(self.server.client(*argv))
            rows = [line.split("\t") for line in log.read().splitlines()]
        if not rows or any(status != "200" for _, status, _ in rows):
            raise CannotMeasure(f"{sum(s != '200' for _, s, _ in rows)} of {len(rows)} requests failed")
        return quantiles([int(us) / 1e3 for _, _, us in rows], n=100)[98]

    def most(self) -> float:
        """Requests per second that the app instances can do together."""
        shown = _do(self.server.client("h2load", "--h1", "-c", str(CONNECTIONS), "-t", "1", "-D", "2",
                                       "--warm-up-time=1", *self.urls))
        return float(shown.partition("finished in ")[2].partition(", ")[2].partition(" req/s")[0])


def _do(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise CannotMeasure(f"h2load: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@contextmanager
def _programs(policy: str) -> Iterator[Path]:
    """A folder with an instance that picks so, and everything else as it is."""
    with tempfile.TemporaryDirectory(prefix="slb-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copy(built(f"instance-{policy}"), folder / "swarmline-instance")
        yield folder


@contextmanager
def _swarm(prefix: str, policy: str) -> Iterator[tuple[Server, tuple[str, str]]]:
    """And what its client is to ask for."""
    with ExitStack() as stack:
        folder = stack.enter_context(site_made())
        environ, urls = {}, folder / "urls"
        for n in range(FILES):
            (folder / "site" / f"{n}.txt").write_bytes(b"%d" % n)
        urls.write_text("".join(f"http://10.77.0.10/{n}.txt\n" for n in range(FILES)))
        if policy:
            environ[processes.BIN_VARIABLE] = str(stack.enter_context(_programs(policy)))
        server = stack.enter_context(swarm_up(folder, prefix, pinned=False, apps=2, environ=environ))
        assert server.run_dir
        apps = [i for i in call(server.run_dir, "GET", "/v1/status")["instances"] if i["layers"] == ["app"]]
        apps.sort(key=lambda i: i["vm_id"])
        for app, time in zip(apps, (FAST, SLOW), strict=True):
            stack.enter_context(cpu_group(f"{prefix}-{app['vm_id']}", app["pid"], time, PERIOD))
        yield server, ("-i", str(urls))


@contextmanager
def _opened() -> Iterator[Sequence[Bench]]:
    prefix = f"slb{os.getpid()}"
    with ExitStack() as stack:
        servers = {policy: stack.enter_context(_swarm(f"{prefix}{n}", policy)) for n, policy in enumerate(("", *PEERS))}
        rate = int(LOAD * max(Swarm(*servers["ideal"], 0).most() for _ in range(2)))
        swarms = {policy: Swarm(*server, rate) for policy, server in servers.items()}
        yield [Bench(f"route.unequal.{peer}", "ms p99", pairs(swarms[""].p99, swarms[peer].p99), peer,
                     more_is_better=False, nb=5 if peer in TARGETS else 3, target=TARGETS.get(peer),
                     note=lambda: f"{rate} requests/s") for peer in PEERS]


GROUPS = (Group(IDS, _opened),)
