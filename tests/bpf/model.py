# SPDX-License-Identifier: Apache-2.0
"""What the classifier should do, told a second time: from the RFCs and c/abi/classifier.h, not from its code.

It works on slices of bytes (one that is too short shows by its length), knows no instances, and remembers the
flows and fragments it has seen.
"""

from ipaddress import ip_address
from typing import NamedTuple

from pipeline.policy.model import Service

PASS = "pass_not_ours"
EXTENSIONS = {0, 43, 44, 60}


class Broken(Exception):
    """The headers contradict each other, after the addresses."""


class Datagram(NamedTuple):
    """An IP datagram with its extension headers taken off."""

    src: bytes
    dst: bytes
    version: int
    proto: int
    payload: bytes
    fragment: str  # "", "first", "later"
    identity: tuple[object, ...]


def mapped(v4: bytes) -> bytes:
    return bytes(10) + b"\xff\xff" + v4


def number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def parse_ip(data: bytes, ethertype: int, *, quoted: bool) -> Datagram | bytes | None:
    """The datagram; its destination if it is broken; None if it is not IP for us to judge."""
    if ethertype == 0x0800:
        if len(data) < 20 or data[0] >> 4 != 4:
            return None
        src, dst, head, length = (
            mapped(data[12:16]),
            mapped(data[16:20]),
            (data[0] & 15) * 4,
            number(data[2:4]),
        )
        frag, proto, identity = number(data[6:8]), data[9], data[4:6]
        if head < 20 or length < head or (length > len(data) and not quoted) or len(data) < head:
            return dst
        fragment = "later" if frag & 0x1FFF else "first" if frag & 0x2000 else ""
        return Datagram(src, dst, 4, proto, data[head:length], fragment, (src, dst, proto, identity))
    if ethertype == 0x86DD:
        if len(data) < 40 or data[0] >> 4 != 6 or data[24:36] == mapped(b""):
            return None
        src, dst, length = data[8:24], data[24:40], number(data[4:6])
        if length > len(data) - 40 and not quoted:
            return dst
        try:
            return parse_extensions(src, dst, data[6], data[40 : 40 + length])
        except Broken:
            return dst
    return None


def parse_extensions(src: bytes, dst: bytes, proto: int, data: bytes) -> Datagram:
    fragment, identity, nb = "", b"", 0
    while proto in EXTENSIONS:
        nb += 1
        if nb > 4 or len(data) < 8:
            raise Broken
        if proto == 44:
            where = number(data[2:4])
            if where & 0xFFF9:
                fragment, identity = "later" if where & 0xFFF8 else "first", data[4:8]
            proto, data = data[0], data[8:]
            if fragment == "later":
                break
        else:
            length = 8 + data[1] * 8
            if len(data) < length:
                raise Broken
            proto, data = data[0], data[length:]
    return Datagram(src, dst, 6, proto, data, fragment, (src, dst, identity))


class Model:
    """The verdict for one frame after another; every instance is there and active, and so is the router."""

    def __init__(self, services: tuple[Service, ...]) -> None:
        self.services = {(ip_address(a), s.port, int(s.protocol)) for s in services for a in s.addresses}
        self.vips = {mapped(a.packed) if a.version == 4 else a.packed for s in services for a in s.addresses}
        self.keys = {
            (mapped(a.packed) if a.version == 4 else a.packed, port, proto)
            for a, port, proto in self.services
        }
        self.forget()

    def forget(self) -> None:
        self.flows: set[tuple[object, ...]] = set()
        self.fragments: set[tuple[object, ...]] = set()

    def verdict(self, frame: bytes) -> str:
        ethertype, data = number(frame[12:14]), frame[14:]
        for _ in range(2):
            if ethertype in (0x8100, 0x88A8):
                ethertype, data = (number(data[2:4]), data[4:]) if len(data) >= 4 else (0, b"")
        if ethertype == 0x0806:
            ours = len(data) >= 28 and data[:6] == b"\0\1\x08\0\6\4" and mapped(data[24:28]) in self.vips
            return "arp" if ours else PASS
        ip = parse_ip(data, ethertype, quoted=False)
        if not isinstance(ip, Datagram):
            return "drop_malformed" if ip in self.vips else PASS
        if ip.fragment == "later":
            if ip.dst not in self.vips:
                return PASS
            return "frag_later" if ip.identity in self.fragments else "drop_frag_miss"
        verdict = PASS
        if ip.proto in (6, 17):
            verdict = self.flow(ip)
        elif ip.proto == (58 if ip.version == 6 else 1):
            verdict = self.icmp(ip)
        if ip.fragment == "first" and verdict in ("flow_new", "flow_known", "icmp_echo", "icmp_error"):
            self.fragments.add(ip.identity)
        return verdict

    def flow(self, ip: Datagram) -> str:
        if len(ip.payload) < (20 if ip.proto == 6 else 8):
            return "drop_truncated" if ip.dst in self.vips else PASS
        sport, dport = ip.payload[:2], number(ip.payload[2:4])
        if (ip.dst, dport, ip.proto) not in self.keys:
            return PASS
        key = (ip.src, sport, ip.dst, dport, ip.proto)
        known = key in self.flows
        self.flows.add(key)
        return "flow_known" if known else "flow_new"

    def icmp(self, ip: Datagram) -> str:
        if ip.dst not in self.vips and not (ip.version == 6 and ip.payload[:1] in (b"\x87", b"\x88")):
            return PASS
        if len(ip.payload) < 8:
            return "drop_truncated" if ip.dst in self.vips else PASS
        kind = ip.payload[0]
        if kind == (128 if ip.version == 6 else 8):
            return "icmp_echo"
        if kind in ((1, 2, 3, 4) if ip.version == 6 else (3, 4, 11, 12)):
            return self.icmp_error(ip)
        if ip.version == 6 and kind in (135, 136):
            return self.neighbour(ip, kind)
        return PASS

    def icmp_error(self, ip: Datagram) -> str:
        quote = parse_ip(ip.payload[8:], 0x86DD if ip.version == 6 else 0x0800, quoted=True)
        if not isinstance(quote, Datagram) or quote.fragment == "later" or quote.src != ip.dst:
            return "drop_icmp_orphan"
        sport = number(quote.payload[:2])
        if len(quote.payload) < 4 or (quote.src, sport, quote.proto) not in self.keys:
            return "drop_icmp_orphan"
        return "icmp_error"

    def neighbour(self, ip: Datagram, kind: int) -> str:
        target = ip.payload[8:24]
        if len(target) < 16:
            return "drop_truncated" if ip.dst in self.vips else PASS
        about_us = target in self.vips and target[:12] != mapped(b"")
        return "nd" if about_us or (kind == 136 and ip.dst in self.vips) else PASS
