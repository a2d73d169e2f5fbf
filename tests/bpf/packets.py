# SPDX-License-Identifier: Apache-2.0
"""One frame per header kind and verdict. Frames are built once: scapy needs 0.3 ms for each."""

from dataclasses import dataclass

from bpf.bench import CLIENT4, CLIENT6, OTHER_VIP4, VIP4, VIP6
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, IPOption_Timestamp
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

FLOW, ARP_KIND, ND_KIND = 1, 2, 3
BROADCAST = "ff:ff:ff:ff:ff:ff"


@dataclass(frozen=True)
class Row:
    """A frame and what must become of it. ``kind``, ``service`` and ``l3_off`` are those of its metadata."""

    name: str
    frame: bytes
    verdict: str
    kind: int = FLOW
    service: int = 0
    l3_off: int = 14

    @property
    def action(self) -> str:
        return {"pass": "PASS", "drop": "DROP"}.get(self.verdict.split("_")[0], "REDIRECT")


def eth(payload: Packet, dst: str = "02:00:00:00:00:0a") -> bytes:
    return bytes(Ether(dst=dst, src="02:00:00:00:00:0b") / payload)


def ip4(payload: Packet, dst: str = VIP4, src: str = CLIENT4, **fields: object) -> Packet:
    return IP(src=src, dst=dst, **fields) / payload


def ip6(payload: Packet, dst: str = VIP6, src: str = CLIENT6, **fields: object) -> Packet:
    return IPv6(src=src, dst=dst, **fields) / payload


def tcp(sport: int = 40000, dport: int = 443, flags: str = "S") -> Packet:
    return TCP(sport=sport, dport=dport, flags=flags)


def udp(dport: int = 53) -> Packet:
    return UDP(sport=40000, dport=dport) / Raw(b"query")


def quote4(
    sport: int = 443, dport: int = 40000, src: str = VIP4, dst: str = CLIENT4, **fields: object
) -> Packet:
    """What an ICMP error quotes: the head of a packet that an instance sent to the client."""
    return IP(src=src, dst=dst, **fields) / TCP(sport=sport, dport=dport, flags="A")


def quote6(sport: int = 443, dport: int = 40000, src: str = VIP6, dst: str = CLIENT6) -> Packet:
    return IPv6(src=src, dst=dst) / TCP(sport=sport, dport=dport, flags="A")


def fragments4(payload: Packet, identity: int = 7) -> tuple[bytes, bytes]:
    """The first and the last fragment of a datagram to the IPv4 address."""
    whole = bytes(ip4(payload / Raw(bytes(64)), id=identity))[20:]
    proto = {UDP: 17, ICMP: 1}[type(payload)]
    first = ip4(Raw(whole[:48]), id=identity, flags="MF", proto=proto)
    return eth(first), eth(ip4(Raw(whole[48:]), id=identity, frag=6, proto=proto))


def fragments6(payload: Packet, proto: int, identity: int = 7) -> tuple[bytes, bytes]:
    whole = bytes(ip6(payload / Raw(bytes(64))))[40:]
    head = {"id": identity, "nh": proto}
    return (
        eth(ip6(IPv6ExtHdrFragment(m=1, offset=0, **head) / Raw(whole[:48]))),
        eth(ip6(IPv6ExtHdrFragment(m=0, offset=6, **head) / Raw(whole[48:]))),
    )


def patched(frame: bytes, offset: int, data: bytes) -> bytes:
    return frame[:offset] + data + frame[offset + len(data) :]


OPTIONS = [IPOption_NOP(), IPOption_Timestamp()]
EXT4 = (
    IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))]) / IPv6ExtHdrRouting(segleft=0) / IPv6ExtHdrDestOpt()
)
SYN4, SYN6 = eth(ip4(tcp())), eth(ip6(tcp()))
ARP_FOR_VIP = ARP(op=1, psrc=CLIENT4, pdst=VIP4)
NS_FOR_VIP = ICMPv6ND_NS(tgt=VIP6) / ICMPv6NDOptSrcLLAddr(lladdr="02:00:00:00:00:0b")

ROWS = (
    # -- TCP and UDP of a service, behind every kind of header
    Row("tcp4", SYN4, "flow_new"),
    Row("tcp6", SYN6, "flow_new"),
    Row("tcp4 segment without entry", eth(ip4(tcp(flags="PA") / Raw(b"x" * 500))), "flow_new"),
    Row("udp4", eth(ip4(udp())), "flow_new", service=1),
    Row("udp6", eth(ip6(udp())), "flow_new", service=1),
    Row("vlan tcp4", eth(Dot1Q(vlan=5) / ip4(tcp())), "flow_new", l3_off=18),
    Row("vlan tcp6", eth(Dot1Q(vlan=5) / ip6(tcp())), "flow_new", l3_off=18),
    Row("qinq tcp4", eth(Dot1AD(vlan=5) / Dot1Q(vlan=6) / ip4(tcp())), "flow_new", l3_off=22),
    Row("two 802.1Q tags tcp6", eth(Dot1Q(vlan=5) / Dot1Q(vlan=6) / ip6(tcp())), "flow_new", l3_off=22),
    Row("tcp4 with options", eth(ip4(tcp(), options=OPTIONS)), "flow_new"),
    Row("udp4 with longest options", eth(ip4(udp(), options=[IPOption_NOP()] * 40)), "flow_new", service=1),
    Row("tcp6 hop-by-hop", eth(ip6(IPv6ExtHdrHopByHop() / tcp())), "flow_new"),
    Row("tcp6 three extensions", eth(ip6(EXT4 / tcp())), "flow_new"),
    Row("udp6 four extensions", eth(ip6(EXT4 / IPv6ExtHdrDestOpt() / udp())), "flow_new", service=1),
    Row("tcp6 atomic fragment", eth(ip6(IPv6ExtHdrFragment(id=3) / tcp())), "flow_new"),
    Row("tcp4 padded by Ethernet", SYN4 + bytes(6), "flow_new"),
    # -- fragments
    Row("first fragment udp4", fragments4(udp())[0], "flow_new", service=1),
    Row("first fragment udp6", fragments6(udp(), 17)[0], "flow_new", service=1),
    Row("first fragment icmp4", fragments4(ICMP())[0], "icmp_echo"),
    Row("later fragment alone, v4", fragments4(udp())[1], "drop_frag_miss"),
    Row("later fragment alone, v6", fragments6(udp(), 17)[1], "drop_frag_miss"),
    Row(
        "later fragment to another",
        eth(ip4(Raw(b"x" * 8), dst="10.77.0.1", frag=6, proto=17)),
        "pass_not_ours",
    ),
    # -- ICMP
    Row("echo4", eth(ip4(ICMP())), "icmp_echo"),
    Row("echo6", eth(ip6(ICMPv6EchoRequest())), "icmp_echo"),
    Row("echo4 to another", eth(ip4(ICMP(), dst="10.77.0.1")), "pass_not_ours"),
    Row("echo reply4", eth(ip4(ICMP(type=0))), "pass_not_ours"),
    Row("echo reply6", eth(ip6(ICMPv6EchoReply())), "pass_not_ours"),
    Row("redirect4", eth(ip4(ICMP(type=5) / quote4())), "pass_not_ours"),
    Row("ICMPv6 in IPv4", eth(ip4(ICMP(type=8), proto=58)), "pass_not_ours"),
    Row("unreachable4", eth(ip4(ICMP(type=3, code=4) / quote4())), "icmp_error"),
    Row("source quench4", eth(ip4(ICMP(type=4) / quote4())), "icmp_error"),
    Row("time exceeded4", eth(ip4(ICMP(type=11) / quote4(options=OPTIONS), src="192.0.2.1")), "icmp_error"),
    Row("parameter problem4", eth(ip4(ICMP(type=12) / quote4())), "icmp_error"),
    Row("unreachable4, shortest quote", eth(ip4(ICMP(type=3) / Raw(bytes(quote4())[:28]))), "icmp_error"),
    Row("unreachable6", eth(ip6(ICMPv6DestUnreach() / quote6())), "icmp_error"),
    Row("too big6", eth(ip6(ICMPv6PacketTooBig() / quote6(), src="2001:db8::1")), "icmp_error"),
    Row("time exceeded6", eth(ip6(ICMPv6TimeExceeded() / quote6())), "icmp_error"),
    Row("parameter problem6", eth(ip6(ICMPv6ParamProblem() / quote6())), "icmp_error"),
    Row(
        "unreachable6, quote with extensions",
        eth(ip6(ICMPv6DestUnreach() / IPv6(src=VIP6, dst=CLIENT6) / EXT4 / tcp(443, 40000))),
        "icmp_error",
    ),
    Row("error about no service", eth(ip4(ICMP(type=3) / quote4(sport=22))), "drop_icmp_orphan"),
    Row("error about somebody else", eth(ip4(ICMP(type=3) / quote4(src="10.77.0.1"))), "drop_icmp_orphan"),
    Row(
        "error about another virtual IP",
        eth(ip4(ICMP(type=3) / quote4(src=OTHER_VIP4))),
        "drop_icmp_orphan",
    ),
    Row("error without quote", eth(ip4(ICMP(type=3))), "drop_icmp_orphan"),
    Row("error about a later fragment", eth(ip4(ICMP(type=11) / quote4(frag=5))), "drop_icmp_orphan"),
    Row(
        "error about an echo",
        eth(ip4(ICMP(type=3) / IP(src=VIP4, dst=CLIENT4) / ICMP(type=0))),
        "drop_icmp_orphan",
    ),
    Row(
        "error to another", eth(ip4(ICMP(type=3) / quote4(src="10.77.0.1"), dst="10.77.0.1")), "pass_not_ours"
    ),
    # -- neighbours
    Row("ARP request for a virtual IP", eth(ARP_FOR_VIP, BROADCAST), "arp", ARP_KIND),
    Row("ARP request in a VLAN", eth(Dot1Q(vlan=5) / ARP_FOR_VIP, BROADCAST), "arp", ARP_KIND, l3_off=18),
    Row("ARP reply to a virtual IP", eth(ARP(op=2, psrc=CLIENT4, pdst=VIP4)), "arp", ARP_KIND),
    Row(
        "ARP request for another", eth(ARP(op=1, psrc=CLIENT4, pdst="10.77.0.1"), BROADCAST), "pass_not_ours"
    ),
    Row("ARP of another form", eth(ARP(hwlen=8, psrc=CLIENT4, pdst=VIP4)), "pass_not_ours"),
    Row("NS for a virtual IP", eth(ip6(NS_FOR_VIP, dst="ff02::1:ff00:10")), "nd", ND_KIND),
    Row("NS to a virtual IP", eth(ip6(NS_FOR_VIP)), "nd", ND_KIND),
    Row("NA to a virtual IP", eth(ip6(ICMPv6ND_NA(tgt=CLIENT6) / ICMPv6NDOptDstLLAddr())), "nd", ND_KIND),
    Row("NA about a virtual IP", eth(ip6(ICMPv6ND_NA(tgt=VIP6), dst="ff02::1")), "nd", ND_KIND),
    Row("NS for another", eth(ip6(ICMPv6ND_NS(tgt="fd77::1"), dst="ff02::1:ff00:1")), "pass_not_ours"),
    Row("NS for another, to a virtual IP", eth(ip6(ICMPv6ND_NS(tgt="fd77::1"))), "pass_not_ours"),
    Row(
        "NS for a mapped address", eth(ip6(ICMPv6ND_NS(tgt=f"::ffff:{VIP4}"), dst="ff02::1")), "pass_not_ours"
    ),
    Row("router solicitation", eth(ip6(ICMPv6ND_RS(), dst="ff02::2")), "pass_not_ours"),
    # -- of no service
    Row("ssh to the host", eth(ip4(tcp(dport=22), dst="10.77.0.1")), "pass_not_ours"),
    Row("ssh to a virtual IP", eth(ip4(tcp(dport=22))), "pass_not_ours"),
    Row("the port by the other protocol", eth(ip4(udp(dport=443))), "pass_not_ours"),
    Row("the port on another address", eth(ip6(tcp(), dst="fd77::1")), "pass_not_ours"),
    Row(
        "IPv6 to a mapped virtual IP",
        eth(ip6(tcp(), dst=f"::ffff:{VIP4}", src=f"::ffff:{CLIENT4}")),
        "pass_not_ours",
    ),
    Row("GRE to a virtual IP", eth(ip4(Raw(bytes(8)), proto=47)), "pass_not_ours"),
    Row("ESP to a virtual IP", eth(ip6(Raw(bytes(16)), nh=50)), "pass_not_ours"),
    Row("no next header", eth(ip6(Raw(b""), nh=59)), "pass_not_ours"),
    Row("three VLAN tags", eth(Dot1Q() / Dot1Q() / Dot1Q() / ip4(tcp())), "pass_not_ours"),
    Row("LLDP", eth(Raw(bytes(46)))[:12] + b"\x88\xcc" + bytes(46), "pass_not_ours"),
    Row("IPv4 version 5", patched(SYN4, 14, b"\x55"), "pass_not_ours"),
    Row("IPv6 version 4", patched(SYN6, 14, b"\x40"), "pass_not_ours"),
    # -- broken
    Row("IPv4 header length 16", patched(SYN4, 14, b"\x44"), "drop_malformed"),
    Row("IPv4 total length 10", patched(SYN4, 16, b"\0\x0a"), "drop_malformed"),
    Row("IPv4 longer than its frame", patched(SYN4, 16, b"\x05\xdc"), "drop_malformed"),
    Row("IPv4 header cut", SYN4[:30], "pass_not_ours"),
    Row("IPv4 options cut", eth(ip4(tcp(), options=OPTIONS))[:36], "drop_malformed"),
    Row("IPv6 header cut", SYN6[:50], "pass_not_ours"),
    Row("IPv6 longer than its frame", patched(SYN6, 18, b"\xff\xff"), "drop_malformed"),
    Row(
        "IPv6 five extensions",
        eth(ip6(EXT4 / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / tcp())),
        "drop_malformed",
    ),
    Row(
        "IPv6 extension too long",
        patched(eth(ip6(IPv6ExtHdrHopByHop() / tcp())), 55, b"\xff"),
        "drop_malformed",
    ),
    Row("broken, to another", patched(eth(ip4(tcp(), dst="10.77.0.1")), 14, b"\x44"), "pass_not_ours"),
    Row("TCP cut", eth(ip4(Raw(bytes(tcp())[:19]), proto=6)), "drop_truncated"),
    Row(
        "TCP cut, padded by Ethernet", eth(ip4(Raw(bytes(tcp())[:19]), proto=6)) + bytes(20), "drop_truncated"
    ),
    Row("TCP cut, IPv6, padded", eth(ip6(Raw(bytes(tcp())[:19]), nh=6)) + bytes(20), "drop_truncated"),
    Row("UDP cut", eth(ip6(Raw(bytes(udp())[:7]), nh=17)), "drop_truncated"),
    Row("ICMP cut", eth(ip4(Raw(b"\x08\0\0"), proto=1)), "drop_truncated"),
    Row("NS cut", eth(ip6(Raw(bytes(NS_FOR_VIP)[:20]), nh=58)), "drop_truncated"),
    Row("TCP cut, to another", eth(ip4(Raw(b"x" * 8), proto=6, dst="10.77.0.1")), "pass_not_ours"),
    Row("Ethernet header alone", SYN4[:14], "pass_not_ours"),
    Row("VLAN tag cut", eth(Dot1Q() / ip4(tcp()))[:16], "pass_not_ours"),
)
