# SPDX-License-Identifier: Apache-2.0
"""What the config file says besides services and pools: [nic], [hardware], and the own settings of each layer."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import PurePath

from pipeline.policy.model import IPAddress


@dataclass(frozen=True)
class Nic:
    """Where frames come from: an interface that the classifier is attached to, or a device that DPDK drives. None
    and () mean: as the kernel has it."""

    interface: str = "sl-nic0"     # empty: DPDK
    netns: str = ""                # name of its network namespace; empty: the manager's own
    mtu: int | None = None
    queues: int | None = None
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    gateways: tuple[IPAddress, ...] = ()
    devargs: str = ""              # DPDK: the device and its arguments
    eal: tuple[str, ...] = ()      # DPDK: further arguments for EAL

    @property
    def label(self) -> str:
        return self.interface or self.devargs


@dataclass(frozen=True)
class HardwareSettings:
    """[hardware]: what of this machine the swarm may take hold of."""

    allow: tuple[str, ...] = ()    # PCI functions, and the VFs of those
    vfs: int = 0                   # VFs to make on each of them that has none
    pin: bool = False              # put instances and memory where `swarmline place` says


@dataclass(frozen=True)
class Certificate:
    """A PEM chain, leaf first, and its key. The names it serves are those in the certificate."""

    cert: PurePath
    key: PurePath


@dataclass(frozen=True)
class TcpSettings:
    """[layer.tcp]. Times in seconds."""

    backlog: int = 1024
    max_connections: int = 16384         # of one instance
    idle_timeout: float = 300.0          # no byte in either direction; 0: never
    user_timeout: float = 30.0           # sent data unacknowledged (RFC 5482); 0: as the kernel does


@dataclass(frozen=True)
class TlsSettings:
    """[layer.tls]. The first certificate answers clients that name no host or an unknown one."""

    certificates: tuple[Certificate, ...] = ()
    self_signed: tuple[str, ...] = ()      # a throw-away certificate is made for each of these names
    min_version: str = "1.2"
    alpn: tuple[str, ...] = ("http/1.1",)
    tickets: bool = True
    ticket_lifetime: float = 7200.0
    handshake_timeout: float = 10.0
    max_connections: int = 16384


@dataclass(frozen=True)
class HttpSettings:
    """[layer.http]. Sizes in bytes, times in seconds."""

    max_header_bytes: int = 8 << 10      # of all header lines
    max_headers: int = 100
    max_body_bytes: int = 0              # 0: any number
    max_uri_bytes: int = 4 << 10
    header_timeout: float = 10.0         # for the whole header, from its first byte
    body_timeout: float = 30.0           # between two pieces of a body
    keepalive_timeout: float = 60.0      # between two requests
    max_requests: int = 0                # of one connection; 0: any number
    max_connections: int = 16384


@dataclass(frozen=True)
class AppSettings:
    """[layer.app]."""

    root: PurePath | None = None         # folder of static files
    index: str = "index.html"            # file served for a folder
    echo: bool = False                   # /echo returns the body it is sent
    max_requests: int = 4096             # at one time
