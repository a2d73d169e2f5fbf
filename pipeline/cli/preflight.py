# SPDX-License-Identifier: Apache-2.0
"""What can be known before anything is started: each problem is one clear error, with how to mend it."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from pathlib import Path

from pipeline.errors import ConfigError, HostError, NamespaceError
from pipeline.host import namespaces, processes
from pipeline.host.access import group_id
from pipeline.host.nic import facts_of
from pipeline.host.router import PROGRAM_DPDK
from pipeline.host.wishes import wishes
from pipeline.instances.guests import Guests, check
from pipeline.policy.config import Config, parse_config
from pipeline.policy.model import Driver

TUN = Path("/dev/net/tun")


def config(file: Path) -> Config:
    """The config file, read and checked, and the files that it names."""
    try:
        text = file.read_text()
    except OSError as error:
        raise ConfigError(f"cannot read it: {error.strerror}", file=str(file)) from error
    value = parse_config(text, str(file.absolute()))
    if value.app.root and not Path(str(value.app.root)).is_dir():
        raise ConfigError(f"{value.app.root} is not a folder", file=str(file), key="layer.app.root")
    for pair in value.tls.certificates:
        _check_pair(Path(str(pair.cert)), Path(str(pair.key)), file)
    return value


def _check_pair(cert: Path, key: Path, file: Path) -> None:
    """A certificate and its private key, as OpenSSL sees them."""
    place = "layer.tls.certificates"
    for path in (cert, key):
        if not path.is_file() or not os.access(path, os.R_OK):
            raise ConfigError(f"cannot read {path}", file=str(file), key=place)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConfigError(f"{cert} is no certificate that {key} is the private key of ({reason})",
                          file=str(file), key=place, hint="both must be PEM, the key without a passphrase") from None


def rights() -> None:
    """Namespaces, BPF and raw packets need the superuser."""
    if os.geteuid() != 0:
        raise HostError("this needs root", hint="run it with sudo")


def machine(value: Config) -> int:
    """The interface, its namespace, TUN, AF_XDP. Returns how many hugepages the edges want."""
    nic = facts_of(value.nic)
    if value.nic.devargs:
        _dpdk()
    if not nic.up:
        raise NamespaceError(f"interface {nic.name} is down", hint=f"`ip link set {nic.name} up`")
    if nic.native_xdp is False:
        raise NamespaceError(f"the driver of {nic.name} has no native XDP",
                             hint="use an interface whose driver has it; veth, virtio_net, ice, mlx5 and others do")
    if not TUN.exists():
        raise HostError(f"{TUN} is missing", hint="`modprobe tun`")
    if value.api_group:
        group_id(value.api_group)
    _ports_free(value)
    return sum(wishes(value).edges.values())


def guests(value: Config) -> Guests | None:
    """Image, memory and accelerator of virtual machines; None if there are none."""
    return check(value.layers, value.app.root, warm=value.warm.get(Driver.QEMU, 0))


def _dpdk() -> None:
    """The router for DPDK is there only if DPDK was there when it was built."""
    try:
        processes.program(PROGRAM_DPDK)
    except HostError as error:
        raise HostError("swarmline was built without DPDK",
                        hint="install libdpdk-dev, then build and install again") from error


def _ports_free(value: Config) -> None:
    """A service's address must not be in use by the host itself: its own sockets would never be asked again."""
    def try_all() -> None:
        for service in value.services:
            for address in service.addresses:
                family = socket.AF_INET if address.version == 4 else socket.AF_INET6
                with socket.socket(family, socket.SOCK_STREAM) as sock:
                    try:
                        sock.bind((str(address), service.port))
                    except OSError as error:
                        if error.errno != errno.EADDRINUSE:
                            continue        # the host does not have the address, as it should be
                        raise HostError(
                            f"port {service.port} of {address} (service {service.name}) is in use on this host",
                            hint="stop the server that listens there, or take another address") from None

    namespaces.run_in(value.nic.netns, try_all)
