# SPDX-License-Identifier: Apache-2.0
"""Processes on their CPUs and memory on its node: what of it one node can show."""

import os
import subprocess
from collections.abc import Iterator

import pytest
from support import ROOT

from pipeline.host.cpus import pin, prefer_node
from pipeline.host.hardware import inventory
from pipeline.host.memory import sealed_memfd
from pipeline.host.placer import Placer
from pipeline.policy.config import Config, parse_config
from pipeline.policy.model import LayerId

ALL = sorted(os.sched_getaffinity(0))


@pytest.fixture
def process() -> Iterator[int]:
    child = subprocess.Popen(["sleep", "60"])
    yield child.pid
    child.kill()
    child.wait()


def config(hardware: str = "", app: str = "") -> Config:
    text = (ROOT / "examples/https.toml").read_text().replace("[layer.app]", f"[layer.app]\n{app}")
    return parse_config(f"[hardware]\n{hardware}\n{text}", "f")


def test_pin(process: int) -> None:
    assert pin(process, ALL[-1:]) and os.sched_getaffinity(process) == {ALL[-1]}
    assert not pin(process, [4095]) and os.sched_getaffinity(process) == {ALL[-1]}
    assert not pin(2**22 - 1, ALL)


def test_memory_has_a_node() -> None:
    fd = sealed_memfd("place", 8 << 20)
    try:
        there = inventory().nodes[0].number
        if not prefer_node(fd, 8 << 20, there):
            pytest.skip("this kernel has no NUMA")
        assert not prefer_node(fd, 8 << 20, 1023), "there is no such node"
        os.pwrite(fd, b"x" * (8 << 20), 0)
        assert f"prefer:{there}" in policies(fd)
    finally:
        os.close(fd)


def policies(fd: int) -> str:
    """What the kernel says of a fresh mapping: the policy belongs to the memory, not to who maps it."""
    code = ("import mmap, sys; m = mmap.mmap(int(sys.argv[1]), 8 << 20); m[0]; "
            "print([l for l in open('/proc/self/numa_maps') if 'place' in l])")
    return subprocess.run(["/usr/bin/python3", "-c", code, str(fd)], pass_fds=[fd], capture_output=True, text=True,
                          check=True).stdout


def test_nothing_is_moved_unasked(process: int) -> None:
    placer = Placer(config())
    assert placer.router(process) == () and placer.instance(1, LayerId.TLS, process) == ()
    assert placer.edge("tcp-tls", -1, 0) is None
    assert os.sched_getaffinity(process) == set(ALL)


def test_configured_cpus_count_without_pin(process: int) -> None:
    placer = Placer(config(app=f"cpus = {ALL[0]}"))
    assert placer.instance(1, LayerId.APP, process) == (ALL[0],) and os.sched_getaffinity(process) == {ALL[0]}


def test_a_place_is_free_when_its_instance_is_gone(process: int) -> None:
    placer = Placer(config("pin = true"))
    placer.router(process)
    first = placer.instance(1, LayerId.TLS, process)
    assert len(first) == 1 and os.sched_getaffinity(process) == set(first)
    placer.instance(2, LayerId.HTTP, process)
    placer.gone(1)
    assert placer.instance(3, LayerId.TLS, process) == first
    assert placer.instance(3, LayerId.TLS, process) == first       # another layer, or the same again: its own place
