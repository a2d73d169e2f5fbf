# SPDX-License-Identifier: Apache-2.0
"""The interface of a process instance: a tap in the instance's own network namespace, its other end in the
router.

The tap is not persistent: it lives as long as a descriptor of it is open, and so does the namespace. Who
removes an instance closes all of them: the router's (PORT_DEL) and the holder's (``fd.remove``).
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from dataclasses import dataclass

from pipeline._native import ffi, lib
from pipeline.errors import NamespaceError
from pipeline.host import namespaces
from pipeline.host.assignment import Assignment, assignment_struct

TUN = "/dev/net/tun"
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
TUNSETIFF = 0x400454CA
UNNAMED = "tap-new"
SIOCSIFNAME = 0x8923
SIOCSIFMTU = 0x8922
SIOCSIFHWADDR = 0x8924
ARPHRD_ETHER = 1
IFNAMSIZ = 16
IFREQ_LEN = 40


@dataclass(frozen=True)
class TapSpec:
    """``mac`` is the NIC's: frames from it then need no rewriting."""

    mac: bytes
    mtu: int
    name: str = "eth0"


def tap_create(where: namespaces.Netns, spec: TapSpec) -> int:
    """Makes the tap in the namespace and returns its descriptor, non-blocking. It is down and has no address:
    the
    instance does the rest. Raises NamespaceError."""
    if len(spec.mac) != 6 or not 0 < len(spec.name) < IFNAMSIZ:
        raise ValueError(f"no interface: {spec}")
    return namespaces.run_in(where, lambda: _create(spec))


def net_setup(where: namespaces.Netns, assignment: Assignment, backlog: int) -> list[tuple[int, int]]:
    """In the namespace, after ``tap_create``: addresses and routes of a first layer's interface, and a listening socket
    for each address of its services. Returns (number of the service, descriptor), which are the caller's.
    """
    found = ffi.new(f"struct sl_listener[{lib.SL_LISTENERS_MAX}]")
    count = namespaces.run_in(where, lambda: lib.sl_net_setup(assignment_struct(assignment), backlog, 1000, found))
    if count < 0:
        raise NamespaceError(f"the interface of an instance cannot be set up: {os.strerror(-count)}")
    return [(listener.service, listener.fd) for listener in found[0:count]]


def _create(spec: TapSpec) -> int:
    # Opened inside: the device appears in the namespace in which /dev/net/tun was opened.
    try:
        tap = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise NamespaceError(f"cannot open {TUN}: {error.strerror}",
                             hint="it needs root, and a kernel with CONFIG_TUN (`modprobe tun`)") from error
    try:
        # The instance waits for the name. It must not see the interface before its address stands: a change of the
        # address flushes even permanent neighbours.
        fcntl.ioctl(tap, TUNSETIFF, _ifreq(UNNAMED, struct.pack("=H", IFF_TAP | IFF_NO_PI)))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            fcntl.ioctl(sock, SIOCSIFHWADDR, _ifreq(UNNAMED, struct.pack("=H6s", ARPHRD_ETHER, spec.mac)))
            fcntl.ioctl(sock, SIOCSIFMTU, _ifreq(UNNAMED, struct.pack("=i", spec.mtu)))
            fcntl.ioctl(sock, SIOCSIFNAME, _ifreq(UNNAMED, spec.name.encode()))
    except OSError as error:
        os.close(tap)
        why = f"cannot make the tap {spec.name} with MTU {spec.mtu}: {error.strerror}"
        raise NamespaceError(why) from error
    return tap


def _ifreq(name: str, data: bytes) -> bytes:
    return (name.encode().ljust(IFNAMSIZ, b"\0") + data).ljust(IFREQ_LEN, b"\0")
