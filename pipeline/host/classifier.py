# SPDX-License-Identifier: Apache-2.0
"""The XDP classifier: its program, its pins, and its place on the NIC. Its maps are in ``pins``.

::

    RUN_DIR/bpf            a bpffs of our own, outside /sys: pins stay visible in every network namespace
    RUN_DIR/bpf/v1         one folder per version of c/abi: another version never reuses these maps
        config services vips vms maglev flows frags counters xsks     the maps (c/abi/classifier.h)
        link                                                          the program's place on the NIC

All of it outlives the manager: ``Classifier.load`` makes the pins or adopts those that are there, ``attach``
makes the link or puts the new program in the old one's place between two packets. Calls are synchronous and
take some 10 ms::

    root = mount_pins(run_dir)
    classifier = Classifier.load(root)
    classifier.set_services(...); classifier.set_vms(...); classifier.set_table(...)
    classifier.attach("eth0")                                             # in the NIC's network namespace
    ...
    classifier.unpin(); classifier.close(); umount_pins(run_dir)        # or nothing: the next manager adopts
"""

from __future__ import annotations

import errno
import os
import secrets
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from socket import if_nametoindex
from typing import Any, Self

from pipeline._native import ffi, lib
from pipeline.errors import ClassifierError
from pipeline.host.pins import LINK, MAGLEV_SIZE, MAPS, NO_RIGHTS, Pins, check, link_info

__all__ = ["MAGLEV_SIZE", "Classifier", "Meta", "Pins", "TestRun", "mount_pins", "pin_root", "umount_pins"]

ACTIONS = ("ABORTED", "DROP", "PASS", "TX", "REDIRECT")
_LOG_LEN = 1 << 16


@dataclass(frozen=True)
class Meta:
    """The verdict in front of a frame (struct sl_meta)."""

    magic: int
    hash: int
    vm_id: int
    service: int
    l3_off: int
    layer: int
    kind: int


@dataclass(frozen=True)
class TestRun:
    """What the program did with a packet."""

    __test__ = False    # not a class of tests

    action: str         # one of ACTIONS
    meta: Meta | None   # of a packet for the router
    packet: bytes       # as it left the program
    ns: int             # mean time of one run; 5 to 30 of it are the kernel's own, see an empty frame


def pin_root(run_dir: Path) -> Path:
    """Where the pins of this version lie. It need not exist."""
    return run_dir / "bpf" / f"v{lib.SL_ABI_VERSION}"


def mount_pins(run_dir: Path) -> Path:
    """Mount the bpffs of a run-time folder (once), make the folder of this version, return that."""
    mount_point = run_dir / "bpf"
    try:
        mount_point.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClassifierError(f"make {mount_point}: {error.strerror}", hint=NO_RIGHTS) from error
    check(lib.sl_bpffs_mount(os.fsencode(mount_point)), f"mount a bpffs on {mount_point}", NO_RIGHTS)
    pin_root(run_dir).mkdir(mode=0o700, exist_ok=True)
    return pin_root(run_dir)


def umount_pins(run_dir: Path) -> None:
    """Unmount the bpffs and remove its folder. Every pin goes, and with the link's pin the program leaves the
    NIC. Fine if nothing is mounted.
    """
    mount_point = run_dir / "bpf"
    path = os.fsencode(mount_point)
    while lib.sl_bpffs_is_mounted(path) == 1:
        check(lib.sl_bpffs_umount(path), f"unmount {mount_point}", "some process works in that folder")
    if mount_point.is_dir():
        mount_point.rmdir()


class Classifier(Pins):
    """The pinned maps and a loaded program over them. Made by ``load``."""

    def __init__(self, root: Path, program: Any) -> None:
        """Takes over ``program`` (struct sl_bpf *)."""
        self._program = program
        self._prog_fd: int = check(lib.sl_bpf_prog_fd(program), "find the classifier's program")
        super().__init__(root)

    @classmethod
    def load(cls, root: Path, object_file: Path | None = None) -> Self:
        """Load the program over the maps pinned in ``root`` (of ``mount_pins``); maps that are not there yet
        are made and pinned. The program is on no interface yet. After a failure there is no pin that was not
        there before.
        """
        before = {pin.name for pin in root.iterdir()}
        path = object_file or Path(str(resources.files("pipeline") / "bpf" / "classifier.bpf.o"))
        log, program = ffi.new("char[]", _LOG_LEN), ffi.new("struct sl_bpf **")
        result = lib.sl_bpf_open(os.fsencode(path), os.fsencode(root), log, _LOG_LEN, program)
        if result < 0:
            for name in MAPS.keys() - before:
                (root / name).unlink(missing_ok=True)
            raise _load_error(result, path, root, ffi.string(log).decode(errors="replace"))
        classifier = cls(root, program[0])
        if not classifier._maps["config"].get(0).hash_seed:
            classifier._configure("hash_seed", secrets.randbits(64) | 1)
        return classifier

    def close(self) -> None:
        """Close descriptors and program. Pins stay, and the program where it is attached."""
        super().close()
        if self._program:
            lib.sl_bpf_close(self._program)
            self._program = None

    def attach(self, interface: int | str) -> None:
        """Put this program on the interface (name or index in the current network namespace), in native mode;
        in the place of an older one of ours if there is one. Raises ClassifierError if somebody else's is
        there, or the driver has no native XDP.
        """
        index = interface if isinstance(interface, int) else _index(interface)
        pin = os.fsencode(self.root / LINK)
        link = lib.sl_bpf_pin_get(pin)
        if link >= 0:
            try:
                if self._adopt(link, index):
                    return
            finally:
                os.close(link)
            self.detach()
        link = lib.sl_bpf_link_create(self._prog_fd, index)
        if link < 0:
            raise _attach_error(link, interface, index)
        try:
            check(lib.sl_bpf_pin_put(link, pin), f"pin {self.root / LINK}")
        finally:
            os.close(link)

    def _adopt(self, link: int, index: int) -> bool:
        """Put this program into a link that is there. False: the link is dead, its interface is gone."""
        info = link_info(link)
        if not info.ifindex:
            return False
        if info.ifindex != index:
            raise ClassifierError(f"the classifier is on interface {info.ifindex} already, not on {index}",
                                  hint="end the swarm with `swarmline down` before it changes its interface")
        old = check(lib.sl_bpf_prog_get(info.prog_id), "open the classifier that runs")
        try:
            check(lib.sl_bpf_link_replace(link, self._prog_fd, old), "replace the classifier that runs",
                  "another manager replaced it at the same time")
        finally:
            os.close(old)
        return True

    def test_run(self, packet: bytes, repeat: int = 1, *, meta: bytes = b"", ifindex: int = 0,
                 queue: int = 0) -> TestRun:
        """Run the program over a packet as if a NIC had received it, ``repeat`` times. Counters and flows
        change as for any packet, so tests and benchmarks need maps of their own. ``meta``: what a driver has
        left in front of it. The interface (0: loopback) must exist in this namespace and have the queue.
        """
        room = len(packet) + len(meta) + 256
        data, out = ffi.from_buffer(meta + packet), ffi.new("char[]", room)
        run = ffi.new("struct sl_bpf_run *", {
            "data": data, "data_len": len(data), "meta_len": len(meta), "out": out, "out_cap": room,
            "ifindex": ifindex, "queue": queue, "repeat": repeat})
        check(lib.sl_bpf_prog_run(self._prog_fd, run), "run the classifier")
        left, split = bytes(ffi.buffer(out, run.out_len)), run.out_meta_len
        action = ACTIONS[run.action] if run.action < len(ACTIONS) else str(run.action)
        return TestRun(action, _meta(left[:split]) if action == "REDIRECT" else None, left[split:], run.ns)


def _meta(data: bytes) -> Meta | None:
    if len(data) != ffi.sizeof("struct sl_meta"):
        return None
    m = ffi.from_buffer("struct sl_meta *", data)
    return Meta(m.magic, m.hash, m.vm_id, m.service, m.l3_off, m.layer, m.kind)


def _index(interface: str) -> int:
    try:
        return if_nametoindex(interface)
    except OSError as error:
        raise ClassifierError(f"there is no interface {interface} in this network namespace",
                              hint="`ip link` shows those that are; [nic] of the config names it") from error


def _load_error(result: int, path: Path, root: Path, log: str) -> ClassifierError:
    """What libbpf's error number and messages mean. All it said goes along as a note."""
    if result == -errno.ENOENT and not path.exists():
        error = ClassifierError(f"there is no BPF object {path}", hint="build and install with `make`")
    elif result == -errno.EPERM:
        error = ClassifierError("this process may not load BPF programs", hint=NO_RIGHTS)
    elif "parameter mismatch" in log:
        error = ClassifierError(f"the maps pinned in {root} are of another build",
                                hint="end the swarm that made them with `swarmline down`, then start again")
    else:
        said = log.removeprefix("libbpf: ").partition("\n")[0] or "libbpf said nothing"
        error = ClassifierError(f"the classifier does not load: {os.strerror(-result)}: {said}",
                                hint="`swarmline doctor` shows whether this kernel has what it needs")
    if log:
        error.add_note(log)
    return error


def _attach_error(result: int, interface: int | str, index: int) -> ClassifierError:
    """Why the interface did not take the program."""
    name = f"interface {interface}"
    if result in (-errno.EBUSY, -errno.EEXIST):
        xdp = ffi.new("struct sl_bpf_xdp *")
        lib.sl_bpf_xdp_query(index, xdp)
        owner, mode = (xdp.native_id, "native") if xdp.native_id else (xdp.generic_id, "generic")
        return ClassifierError(f"{name} has another XDP program already (id {owner}, {mode} mode)",
                               hint=f"`bpftool prog show id {owner}` tells whose; stop it, or take it off "
                                    f"with `ip link set dev {interface} xdp off`")
    hints = {
        errno.ENODEV: "`ip link` shows the interfaces of this network namespace",
        errno.EPERM: NO_RIGHTS,
        errno.EOPNOTSUPP: "its driver has no native XDP; use another NIC, or a veth",
        errno.ERANGE: "its MTU is too large for its driver's XDP; lower it with `ip link set mtu`",
    }
    return ClassifierError(f"{name} does not take the classifier in native XDP mode: {os.strerror(-result)}",
                           hint=hints.get(-result, "the kernel log may say why"))
