# SPDX-License-Identifier: Apache-2.0
"""The ladder of needs: what a test may require of the machine, each found out by trying it.

A marker of the same name on a test, or ``require()`` in a fixture, skips with the reason.
"""

import ctypes
import functools
import mmap
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HUGEPAGE_LEN = 2 << 20


def _root() -> str:
    return "" if os.geteuid() == 0 else "not the superuser"


def _netns() -> str:
    if reason := missing("root"):
        return reason
    if not shutil.which("nsenter") or not shutil.which("ip"):
        return "no nsenter or ip command"
    script = "ip link add probe0 type veth peer name probe1 && ip link set probe0 up"
    command = ["unshare", "--net", "sh", "-c", script]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"no namespace with a veth pair: {tried.stderr.strip()}"


class _ProgLoad(ctypes.Structure):
    """The start of ``union bpf_attr`` for BPF_PROG_LOAD."""

    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
    )


def _bpf() -> str:
    number = {"x86_64": 321, "aarch64": 280}.get(platform.machine())
    if number is None:
        return f"bpf() was not tried on {platform.machine()}"
    prog_load, prog_type_xdp = 5, 6
    program = b"\xb7\0\0\0\2\0\0\0" + b"\x95\0\0\0\0\0\0\0"  # return XDP_PASS
    insns, licence = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"GPL")
    attr = _ProgLoad(
        prog_type=prog_type_xdp, insn_cnt=2, insns=ctypes.addressof(insns), license=ctypes.addressof(licence)
    )
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(number, prog_load, ctypes.byref(attr), ctypes.sizeof(attr))
    if fd < 0:
        return f"can not load an XDP program: {os.strerror(ctypes.get_errno())}"
    os.close(fd)
    return ""


def _hugepages() -> str:
    try:
        fd = os.memfd_create("probe", os.MFD_HUGETLB)
    except OSError as error:
        return f"no hugepage memfd: {error.strerror}"
    try:
        os.ftruncate(fd, HUGEPAGE_LEN)
        mmap.mmap(fd, HUGEPAGE_LEN).close()
    except OSError as error:
        return f"no free 2 MiB page (vm.nr_hugepages): {error.strerror}"
    finally:
        os.close(fd)
    return ""


def _qemu() -> str:
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        return "no qemu-system-x86_64"
    tried = subprocess.run([program, "--version"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else "qemu-system-x86_64 does not run"


def _kvm() -> str:
    if reason := missing("qemu"):
        return reason
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    # A KVM without hardware virtualisation opens as well, but an ordinary kernel does not boot in it.
    if not any(Path("/sys/module", name).exists() for name in ("kvm_intel", "kvm_amd")):
        return "/dev/kvm is neither kvm_intel nor kvm_amd: ordinary kernels do not boot in it"
    return ""


def _dpdk() -> str:
    program = shutil.which("swarmline-router-dpdk", path=Path(sys.executable).parent)
    return "" if program else "swarmline was built without DPDK (libdpdk-dev)"


_PROBES: dict[str, Callable[[], str]] = {
    "root": _root,
    "netns": _netns,
    "bpf": _bpf,
    "hugepages": _hugepages,
    "qemu": _qemu,
    "kvm": _kvm,
    "dpdk": _dpdk,
}

NEEDS = tuple(_PROBES)


@functools.cache
def missing(need: str) -> str:
    """Why this machine can not give ``need``, or an empty string if it can."""
    return _PROBES[need]()


def require(*needs: str) -> None:
    """Skip the calling test unless the machine has all of ``needs``."""
    for need in needs:
        if reason := missing(need):
            pytest.skip(f"needs {need}: {reason}")
