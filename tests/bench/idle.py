# SPDX-License-Identifier: Apache-2.0
"""What a swarm that nobody asks anything costs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.harness import Bench, CannotMeasure, Group, pairs
from bench.swarm import site_made, swarm_up
from pipeline.host import processes

_SECONDS = 5


def _ticks(pid: int) -> int:
    """utime + stime of a process; 0 if it has gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def cpu_percent(run_dir: Path) -> float:
    """CPU time of all processes of the swarm, in % of one core."""
    before = {process.pid: _ticks(process.pid) for process in processes.find(run_dir)}
    if not before:
        raise CannotMeasure("the swarm has no process")
    begin = time.monotonic()
    time.sleep(_SECONDS)
    used = sum(max(0, _ticks(pid) - ticks) for pid, ticks in before.items())
    return used / os.sysconf("SC_CLK_TCK") / (time.monotonic() - begin) * 100


@contextmanager
def _opened() -> Iterator[Sequence[Bench]]:
    with site_made() as folder, swarm_up(folder, f"slb{os.getpid()}i", pinned=False) as swarm:
        run_dir = swarm.run_dir
        assert run_dir is not None
        nb = len(processes.find(run_dir))
        yield [Bench("idle.cpu", "% of one core", pairs(lambda: cpu_percent(run_dir)), more_is_better=False, nb=3,
                     note=lambda: f"{nb} processes; target < 2")]


GROUPS = (Group(("idle.cpu",), _opened),)
