# SPDX-License-Identifier: Apache-2.0
"""The classifier: ns for a packet of each kind, as BPF_PROG_TEST_RUN measures it, beside a program that only passes;
and the same source in user space, beside the kernel's."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline._native import ffi, lib

from bench.harness import Bench, CannotMeasure, Group, pairs
from bench.native import built, measure
from pipeline.errors import SwarmlineError
from pipeline.host.classifier import Classifier, mount_pins, umount_pins

_REPEAT = 300_000
_USER_REPEAT = 2_000_000
_SYS_BPF, _PROG_LOAD, _TYPE_XDP = 321, 5, 6
_KINDS = {
    "": "tcp4",
    ".tcp6": "tcp6",
    ".udp4": "udp4",
    ".vlan": "vlan tcp4",
    ".qinq": "qinq tcp4",
    ".ext6": "tcp6 three extensions",
    ".icmp_error": "unreachable4",
    ".arp": "ARP request for a virtual IP",
    ".other": "ssh to the host",
}
"""Suffix of the id: name of a row in tests/bpf/packets.py. After the first packet the flow is known."""


class _ProgLoad(ctypes.Structure):
    """The start of ``union bpf_attr`` for BPF_PROG_LOAD."""

    _fields_ = (("prog_type", ctypes.c_uint32), ("insn_cnt", ctypes.c_uint32), ("insns", ctypes.c_uint64),
                ("license", ctypes.c_uint64), ("rest", ctypes.c_uint8 * 96))


def _pass_program() -> int:
    """A loaded XDP program of two instructions: r0 = XDP_PASS; exit."""
    code = ctypes.create_string_buffer(bytes((0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0)), 16)
    licence = ctypes.create_string_buffer(b"GPL")
    attr = _ProgLoad(_TYPE_XDP, 2, ctypes.addressof(code), ctypes.addressof(licence))
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(_SYS_BPF, _PROG_LOAD, ctypes.byref(attr), ctypes.sizeof(attr))
    if fd < 0:
        raise CannotMeasure(f"the kernel does not load a BPF program: {errno.errorcode[ctypes.get_errno()]}")
    return int(fd)


def _bare(fd: int, frame: bytes) -> Callable[[], float]:
    data, out = ffi.from_buffer(frame), ffi.new("char[]", len(frame) + 256)
    run = ffi.new("struct sl_bpf_run *", {"data": data, "data_len": len(frame), "out": out,
                                          "out_cap": len(frame) + 256, "repeat": _REPEAT})

    def measure() -> float:
        if lib.sl_bpf_prog_run(fd, run) < 0:
            raise CannotMeasure("the bare program does not run")
        return float(run.ns)

    return measure


@contextmanager
def _opened() -> Iterator[Sequence[Bench]]:
    # scapy takes a second to import, and warns of each frame that is wrong on purpose
    logging.getLogger("scapy").setLevel(logging.ERROR)
    from bpf.bench import Bench as Classified
    from bpf.packets import ROWS

    with tempfile.TemporaryDirectory(prefix="slb-") as folder:
        try:
            classifier = Classifier.load(mount_pins(Path(folder)))
        except SwarmlineError as error:
            umount_pins(Path(folder))
            raise CannotMeasure(str(error)) from error
        bare = _pass_program()
        rig = Classified(classifier)
        try:
            rig.reset()
            frames = {row.name: row.frame for row in ROWS}
            packets = Path(folder, "frames")
            packets.write_bytes(b"".join(struct.pack("=I", len(row.frame)) + row.frame for row in ROWS))
            place = {row.name: index for index, row in enumerate(ROWS)}
            program = built("bench-classifier")
            yield [
                Bench(f"classifier.ns{suffix}", "ns", pairs(_run(classifier, frames[name]), _bare(bare, frames[name])),
                      f"bare XDP_PASS ({name})", more_is_better=False, nb=7)
                for suffix, name in _KINDS.items()
            ] + [
                Bench(f"classifier.user.ns{suffix}", "ns",
                      pairs(_in_user_space(program, classifier, packets, place[name]),
                            _run(classifier, frames[name])),
                      f"the XDP program, BPF_PROG_TEST_RUN ({name})", more_is_better=False, nb=7)
                for suffix, name in _KINDS.items()
            ]
        finally:
            rig.unplug()
            os.close(bare)
            classifier.unpin()
            classifier.close()
            umount_pins(Path(folder))


def _run(classifier: Classifier, frame: bytes) -> Callable[[], float]:
    return lambda: float(classifier.test_run(frame, repeat=_REPEAT).ns)


def _in_user_space(program: Path, classifier: Classifier, packets: Path, index: int) -> Callable[[], float]:
    """On the same pinned maps; the descriptor of the program is not needed."""
    return lambda: measure(program, classifier.root, -1, packets, _USER_REPEAT, "time", index)


GROUPS = (Group(("classifier.ns", "classifier.user.ns"), _opened),)
