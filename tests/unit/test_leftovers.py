# SPDX-License-Identifier: Apache-2.0
"""The clean-up check itself: a check that finds nothing must be able to find something."""

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.leftovers import hugepages_left, leftovers, namespaces_of


def test_nothing_in_an_unused_folder(run_dir: Path) -> None:
    assert leftovers(run_dir) == []


def test_finds_a_process_by_its_argument(run_dir: Path) -> None:
    waits = [sys.executable, "-c", "print(flush=True); input()", f"--run-dir={run_dir}"]
    with subprocess.Popen(waits, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdin
        assert process.stdout.readline() == b"\n"  # before that it may still be on its way through exec
        assert [line.split(":")[0] for line in leftovers(run_dir)] == [f"process {process.pid}"]
        assert leftovers(run_dir.with_name(run_dir.name + "x")) == []
        process.stdin.write(b"\n")


def test_finds_a_socket_open_and_closed(run_dir: Path) -> None:
    path = run_dir / "api.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert leftovers(run_dir) == [f"socket {path}, open", f"socket {path}"]
    assert leftovers(run_dir) == [f"socket {path}"]
    path.unlink()


def test_finds_a_pin(run_dir: Path) -> None:
    pin = run_dir / "bpf" / "v1" / "services"
    pin.parent.mkdir(parents=True)
    pin.touch()
    assert leftovers(run_dir) == [f"pin {pin}"]
    pin.unlink()


@pytest.mark.netns
def test_finds_a_namespace_by_its_prefix(run_dir: Path, netns: Callable[[], str]) -> None:
    name = netns()
    assert leftovers(run_dir, netns_prefix=name) == [f"network namespace {name}"]
    assert leftovers(run_dir) == []
    assert namespaces_of(name + "-") == []


def test_counts_hugepages_that_nobody_uses() -> None:
    assert hugepages_left((10, 4), (10, 4)) == 0
    assert hugepages_left((10, 4), (18, 12)) == 8
    assert hugepages_left((10, 4), (18, 4)) == 0, "another swarm made them, and uses them"
    assert hugepages_left((10, 4), (10, 9)) == 0, "another let go of what he used"
