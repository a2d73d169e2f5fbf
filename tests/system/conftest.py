# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the system tests: a swarm for each module. For those of parts of a swarm: a holder, and stand-ins for the
C programs.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.lab import Lab

pytest.register_assert_rewrite("system.swarm_rig", "system.clients", "system.holder_rig", "system.walls")

from pipeline._native import ffi  # noqa: E402
from system.holder_rig import INSTANCE, ROUTER, Place  # noqa: E402
from system.swarm_rig import Swarm, swarm_made  # noqa: E402

from pipeline.host import holder_client, processes  # noqa: E402
from pipeline.host.holder_client import HolderClient  # noqa: E402
from pipeline.policy.model import LayerId  # noqa: E402


@pytest.fixture(scope="module")
def swarm(module_lab: Lab) -> Iterator[Swarm]:
    """One swarm for all tests of a module, as most need it. A module that needs another has its own."""
    with swarm_made(module_lab) as made:
        yield made


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-ins in place of the real programs."""
    for name, script in (("swarmline-instance", INSTANCE), ("swarmline-router", ROUTER)):
        path = tmp_path / name
        path.write_text(f"#!{sys.executable} -P\n{script}")
        path.chmod(0o755)
    monkeypatch.setenv("SWARMLINE_BIN", str(tmp_path))
    monkeypatch.setenv("SWARMLINE_TEXT_OFF", str(ffi.offsetof("struct sl_vm_status", "text")))


@pytest.fixture
def holder(run_dir: Path) -> Iterator[HolderClient]:
    pid = holder_client.start(run_dir)
    with HolderClient(run_dir) as client:
        yield client
    processes.kill_all(run_dir)
    os.waitpid(pid, 0)
    processes.clean_up(run_dir)
    run_dir.mkdir(exist_ok=True)


@pytest.fixture
def place(holder: HolderClient, run_dir: Path) -> Iterator[Callable[..., Place]]:
    made = []

    def make(vm_id: int = 3, layer: LayerId = LayerId.TLS) -> Place:
        made.append(Place(holder, run_dir, vm_id, layer))
        return made[-1]

    yield make
    for each in made:
        each.close()
