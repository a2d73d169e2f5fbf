# SPDX-License-Identifier: Apache-2.0
"""Processes on their CPUs and memory on its node: what of it one node can show."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from support import ROOT

from pipeline.host import hugepages
from pipeline.host.cpus import pin, prefer_node, taken
from pipeline.host.hardware import inventory
from pipeline.host.images import Image
from pipeline.host.memory import sealed_memfd, shared_memfd
from pipeline.host.placer import Placer
from pipeline.instances.driver import InstanceSpec
from pipeline.instances.qemu import _Launch
from pipeline.instances.qemu_argv import Accelerator
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


@pytest.mark.root
def test_hugepages_have_a_node() -> None:
    """They are taken at once, under the policy of the mapping that asks."""
    added = hugepages.reserve(4)
    try:
        fd, huge = shared_memfd("place", 8 << 20)
        with os.fdopen(fd):
            assert huge and os.fstat(fd).st_blocks == 0
            if not prefer_node(fd, 8 << 20, inventory().nodes[0].number):
                pytest.skip("this kernel has no NUMA")
            assert os.fstat(fd).st_blocks == (8 << 20) // 512
    finally:
        hugepages.restore(added)


def test_a_guest_s_memory_has_a_node(tmp_path: Path) -> None:
    there = inventory().nodes[0].number
    for name in ("vmlinux", "initramfs"):
        (tmp_path / name).touch()
    spec = InstanceSpec(7, tmp_path / "run", tmp_path / "ivshmem", memory=8 << 20, node=there)
    spec.run_dir.mkdir()
    with ExitStack() as stack:
        launch, nowhere = (
            _Launch(s, Image("guest", tmp_path, {}), Accelerator.TCG, stack, huge=False)
            for s in (spec, replace(spec, vm_id=8, node=None)))
        launch.settle()
        nowhere.settle()
        assert "prefer" not in policies(nowhere.memory_fd, "sl-guest-8")
        if not prefer_node(nowhere.memory_fd, 8 << 20, there):
            pytest.skip("this kernel has no NUMA")
        assert f"prefer:{there}" in policies(launch.memory_fd, "sl-guest-7")


def policies(fd: int, name: str = "place") -> str:
    """What the kernel says of a fresh mapping: the policy of small pages belongs to the memory, not to who maps it."""
    code = (f"import mmap, sys; m = mmap.mmap(int(sys.argv[1]), 8 << 20); m[0]; "
            f"print([l for l in open('/proc/self/numa_maps') if {name!r} in l])")
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


def test_a_machine_has_its_place_before_it_runs(process: int) -> None:
    """Its memory is on the node of the core that it gets."""
    placer = Placer(config("pin = true"))
    first, second = placer.node(1, LayerId.TLS), placer.node(2, LayerId.TLS)
    assert first is not None and second is not None
    nodes = {cpu.number: cpu.node for cpu in inventory().cpus}
    one, other = placer.instance(1, LayerId.TLS, process), placer.instance(2, LayerId.TLS, process)
    assert (nodes[one[0]], nodes[other[0]]) == (first, second) and (one != other or len(ALL) == 1)
    assert Placer(config()).node(1, LayerId.TLS) is None


def test_cpus_of_running_swarms_are_known() -> None:
    script = f"import os, signal; os.sched_setaffinity(0, [{ALL[-1]}]); print(flush=True); signal.pause()"
    with subprocess.Popen(["/usr/bin/python3", "-c", script, "--run-dir=/run/other"], stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline()
        try:
            assert len(ALL) == 1 or taken().get(ALL[-1]) == "/run/other"
            assert taken(Path("/run/other")).get(ALL[-1]) != "/run/other"
        finally:
            child.kill()


def test_a_place_is_free_when_its_instance_is_gone(process: int) -> None:
    placer = Placer(config("pin = true"))
    placer.router(process)
    first = placer.instance(1, LayerId.TLS, process)
    assert len(first) == 1 and os.sched_getaffinity(process) == set(first)
    placer.instance(2, LayerId.HTTP, process)
    placer.gone(1)
    assert placer.instance(3, LayerId.TLS, process) == first
    assert placer.instance(3, LayerId.TLS, process) == first       # another layer, or the same again: its own place
