# SPDX-License-Identifier: Apache-2.0
"""Facts of the real interface, read inside its network namespace."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from pyroute2 import IPRoute

from pipeline.errors import NamespaceError
from pipeline.host import namespaces
from pipeline.policy.model import IPAddress
from pipeline.policy.settings import Nic

IPNetwork = IPv4Network | IPv6Network

SIOCETHTOOL = 0x8946
ETHTOOL_GCHANNELS = 0x3C
RT_TABLE_MAIN = 254
RTN_UNICAST = 1
ETHER = 1                      # ARPHRD_ETHER
DPDK_MTU = 1500                # of a device if nothing is configured

# <linux/genetlink.h>, <linux/netdev.h>
NETLINK_GENERIC = 16
NLMSG_ERROR = 2
GENL_ID_CTRL = 16
CTRL_CMD_GETFAMILY = 3
CTRL_ATTR_FAMILY_ID = 1
CTRL_ATTR_FAMILY_NAME = 2
NETDEV_CMD_DEV_GET = 1
NETDEV_A_DEV_IFINDEX = 1
NETDEV_A_DEV_XDP_FEATURES = 3
XDP_ACT_BASIC = 1
XDP_ACT_REDIRECT = 2
XDP_ACT_XSK_ZEROCOPY = 8


@dataclass(frozen=True)
class Gateway:
    """A route of the interface: frames for ``network`` go to the neighbour ``via``; None: they go
    directly."""

    network: IPNetwork
    via: IPAddress | None


@dataclass(frozen=True)
class NicFacts:
    """What the classifier and the router must know of the interface."""

    name: str
    ifindex: int
    mac: bytes
    mtu: int
    rx_queues: int
    up: bool
    kind: str                            # veth, bridge, ...; empty: a device
    routes: tuple[Gateway, ...]          # main table without link-local ones; longest prefix first
    native_xdp: bool | None              # None: this kernel does not say
    zero_copy: bool | None

    @property
    def networks(self) -> tuple[IPNetwork, ...]:
        """Those that are directly connected."""
        return tuple(route.network for route in self.routes if route.via is None)


def facts_of(nic: Nic) -> NicFacts:
    """Facts of the configured NIC. Of a device that DPDK drives the kernel knows nothing: what is not configured, the
    router tells when it has opened it.
    """
    if nic.interface:
        return nic_facts(nic.netns, nic.interface)
    return NicFacts(name=nic.devargs, ifindex=0, mac=bytes(6), mtu=nic.mtu or DPDK_MTU, rx_queues=1, up=True,
                    kind="dpdk", routes=(), native_xdp=None, zero_copy=None)


def nic_facts(where: namespaces.Netns, name: str) -> NicFacts:
    """Facts of the interface ``name``. Raises NamespaceError, which lists those that there are."""
    return namespaces.run_in(where, lambda: _facts(where, name))


def _facts(where: namespaces.Netns, name: str) -> NicFacts:
    with IPRoute() as route:
        links = {link.get_attr("IFLA_IFNAME"): link for link in route.get_links()}
        link = links.get(name)
        if link is None:
            place = f" in network namespace {where}" if where else ""
            there = ", ".join(sorted(other for other in links if other != "lo")) or "none"
            raise NamespaceError(f"no interface {name!r}{place}; there are: {there}",
                                 hint="name one of them as the nic's interface")
        if link["ifi_type"] != ETHER:
            raise NamespaceError(f"interface {name!r} is no Ethernet interface", hint="name another")
        routes = _routes(route, link["index"])
    features = _xdp_features(link["index"])
    return NicFacts(
        name=name, ifindex=link["index"], mac=bytes.fromhex(link.get_attr("IFLA_ADDRESS").replace(":", "")),
        mtu=link.get_attr("IFLA_MTU"), rx_queues=_channels(name) or link.get_attr("IFLA_NUM_RX_QUEUES") or 1,
        up=bool(link["flags"] & 1), routes=routes,
        kind=link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or "",
        native_xdp=None if features is None else features & 3 == XDP_ACT_BASIC | XDP_ACT_REDIRECT,
        zero_copy=None if features is None else bool(features & XDP_ACT_XSK_ZEROCOPY))


def _routes(route: Any, index: int) -> tuple[Gateway, ...]:
    found = set()
    for entry in route.get_routes(oif=index):
        if entry.get_attr("RTA_TABLE") != RT_TABLE_MAIN or entry["type"] != RTN_UNICAST:
            continue
        anywhere = "0.0.0.0" if entry["family"] == socket.AF_INET else "::"
        network = ip_network(f"{entry.get_attr('RTA_DST') or anywhere}/{entry['dst_len']}")
        if network.is_link_local or network.is_multicast:
            continue
        via = entry.get_attr("RTA_GATEWAY")
        found.add(Gateway(network, ip_address(via) if via else None))
    return tuple(sorted(
        found, key=lambda r: (r.network.version, -r.network.prefixlen, r.network.network_address)))


def _channels(name: str) -> int:
    """Receive queues that are switched on; 0 if the driver does not say."""
    answer = (ctypes.c_uint32 * 9)(ETHTOOL_GCHANNELS)     # struct ethtool_channels
    request = struct.pack("=16sQ16x", name.encode(), ctypes.addressof(answer))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            fcntl.ioctl(sock, SIOCETHTOOL, request)
        except OSError:
            return 0
    return answer[5] + answer[8]                          # rx_count + combined_count


def _xdp_features(index: int) -> int | None:
    """What the driver can do with XDP in native mode (enum netdev_xdp_act), since Linux 6.3; None:
    unknown."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_GENERIC) as sock:
        sock.settimeout(2)
        try:
            family = _genl(sock, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME, b"netdev\0")
            (number,) = struct.unpack("=H", family[CTRL_ATTR_FAMILY_ID])
            device = _genl(sock, number, NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, struct.pack("=I", index))
            (features,) = struct.unpack("=Q", device[NETDEV_A_DEV_XDP_FEATURES])
        except (OSError, KeyError, struct.error):
            return None
    return int(features)


def _genl(sock: socket.socket, family: int, command: int, attribute: int, value: bytes) -> dict[int, bytes]:
    """One request with one attribute; the attributes of the one answer."""
    body = struct.pack("=BBH", command, 1, 0) + struct.pack("=HH", 4 + len(value), attribute)
    body += value.ljust((len(value) + 3) & ~3, b"\0")
    sock.send(struct.pack("=IHHII", 16 + len(body), family, 1, 1, 0) + body)     # NLM_F_REQUEST
    data = sock.recv(65536)
    length, kind = struct.unpack_from("=IH", data)
    if kind == NLMSG_ERROR:
        raise OSError(-struct.unpack_from("=i", data, 16)[0] or errno.EPROTO, "generic netlink")
    attributes, offset = {}, 20
    while offset + 4 <= min(length, len(data)):
        size, number = struct.unpack_from("=HH", data, offset)
        if size < 4:
            break
        attributes[number & 0x3FFF] = data[offset + 4:offset + size]
        offset += (size + 3) & ~3
    return attributes
