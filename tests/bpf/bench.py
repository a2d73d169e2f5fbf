# SPDX-License-Identifier: Apache-2.0
"""A classifier on the test bench: its own maps, two services, three instances, a socket on queue 0."""

import contextlib
import ctypes
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from pipeline._native import ffi, lib

from pipeline.host.classifier import MAGLEV_SIZE, Classifier, TestRun
from pipeline.policy.model import Chain, Instance, LayerId, Protocol, Service, VmState
from pipeline.policy.routing import maglev_table

VIP4, VIP6, CLIENT4, CLIENT6 = "10.77.0.10", "fd77::10", "10.77.0.2", "fd77::2"
OTHER_VIP4 = "10.77.0.11"
HTTPS = Service(
    "https",
    (ip_address(VIP4), ip_address(OTHER_VIP4), ip_address(VIP6)),
    443,
    Chain((LayerId.TCP, LayerId.TLS)),
    index=0,
)
DNS = Service("dns", (ip_address(VIP4), ip_address(VIP6)), 53, Chain((LayerId.DNS,)), Protocol.UDP, index=1)
SERVICES = (HTTPS, DNS)
VMS = (1, 2, 3)


def instance(vm_id: int, state: VmState = VmState.ACTIVE, incarnation: int = 0) -> Instance:
    return Instance(vm_id, (LayerId.TCP,), state=state, incarnation=incarnation or vm_id)


@dataclass(frozen=True)
class Seen:
    """What happened to a packet: the counter that moved, and the rest."""

    verdict: str
    run: TestRun

    @property
    def vm_id(self) -> int:
        assert self.run.meta is not None, f"{self.verdict} has no metadata"
        return self.run.meta.vm_id


class Bench:
    """Runs packets one at a time and names the verdict by the counter that moved."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self._counters = classifier.counters()
        self._socket: socket.socket | None = None

    def reset(self) -> None:
        """Both services, every instance active and in each table, a socket, no flow."""
        self.classifier.set_services(SERVICES)
        self.set_vms(*(instance(i) for i in VMS))
        for service in SERVICES:
            self.set_table(VMS, service.index)
        self.plug()
        self.forget()
        self.recount()

    def recount(self) -> None:
        """Packets that somebody else sent are not the next one's."""
        self._counters = self.classifier.counters()

    def forget(self) -> None:
        """No flow and no fragment is known any more."""
        for name in ("flows", "frags"):
            entries = self.classifier._maps[name]
            for key in entries.snapshot():
                entries.delete(key)

    def set_vms(self, *instances: Instance) -> None:
        self.classifier.set_vms(instances)

    def set_table(self, vm_ids: Iterable[int], service: int = 0) -> None:
        self.classifier.set_table(service, maglev_table([(vm_id, 100) for vm_id in vm_ids], MAGLEV_SIZE))

    def plug(self) -> None:
        """Put an AF_XDP socket into the slot of queue 0. A test run looks for it and delivers nothing."""
        if self._socket is None:
            self._socket = socket.socket(44, socket.SOCK_RAW)  # AF_XDP
            fd = ffi.new("__u32 *", self._socket.fileno())
            result = lib.sl_bpf_map_update(self.classifier.map_fd("xsks"), ffi.new("__u32 *", 0), fd)
            assert result == 0, os.strerror(-result)

    def unplug(self) -> None:
        """No router any more: the kernel empties the slot when the socket closes."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def send(self, frame: bytes, **options: int | bytes) -> Seen:
        """Run the frame once. Fails unless exactly one counter moved, by one."""
        run = self.classifier.test_run(frame, **options)  # type: ignore[arg-type]
        now = self.classifier.counters()
        moved = {name: now[name] - before for name, before in self._counters.items() if now[name] != before}
        self._counters = now
        assert len(moved) == 1 and set(moved.values()) == {1}, f"counted {moved}, action {run.action}"
        return Seen(next(iter(moved)), run)


@contextlib.contextmanager
def entered(netns: str) -> Iterator[None]:
    """This thread is in the network namespace inside of the block."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as home, Path("/run/netns", netns).open() as there:
        for fd in (there.fileno(), home.fileno()):
            if libc.setns(fd, 0x40000000):  # CLONE_NEWNET
                raise OSError(ctypes.get_errno(), f"setns {netns}")
            if fd == there.fileno():
                try:
                    yield
                except BaseException:
                    libc.setns(home.fileno(), 0x40000000)
                    raise
