# SPDX-License-Identifier: Apache-2.0
"""Frames that no honest network stack sends."""

import json
import subprocess

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw
from support.lab import Lab


def frames_of(lab: Lab) -> list[bytes]:
    """Frames to the virtual IPs that no honest stack sends."""
    four, six = IP(src=lab.client_ip4, dst=lab.vip4), IPv6(src=lab.client_ip6, dst=lab.vip6)
    syn = TCP(sport=4444, dport=443, flags="S")
    inner = bytes(four / syn)
    wrong: list[Packet] = [
        four / TCP(sport=4444, dport=443, flags=""),
        four / TCP(sport=4444, dport=443, flags="FSRPAUEC"),
        four / TCP(sport=4444, dport=443, flags="SF"),
        four / TCP(sport=4444, dport=443, flags="A", seq=1, ack=1) / b"xxxxxxxxx",
        four / TCP(sport=0, dport=443, flags="S"),
        four / TCP(sport=4444, dport=443, dataofs=15),
        four / TCP(sport=4444, dport=443, dataofs=2),
        four / TCP(sport=4444, dport=443, chksum=1),
        IP(src=lab.client_ip4, dst=lab.vip4, ihl=4) / syn,
        IP(src=lab.client_ip4, dst=lab.vip4, ihl=15) / syn,
        IP(src=lab.client_ip4, dst=lab.vip4, len=9000) / syn,
        IP(src=lab.client_ip4, dst=lab.vip4, len=10) / syn,
        IP(src=lab.client_ip4, dst=lab.vip4, chksum=1) / syn,
        IP(src=lab.vip4, dst=lab.vip4) / syn,
        IP(src="255.255.255.255", dst=lab.vip4) / syn,
        IP(src="0.0.0.0", dst=lab.vip4) / syn,
        IP(src=lab.client_ip4, dst=lab.vip4, options=[IPOption(b"\x83\xff\x04")]) / syn,
        IP(src=lab.client_ip4, dst=lab.vip4, flags="MF", frag=0) / Raw(bytes(syn)[:8]),
        IP(src=lab.client_ip4, dst=lab.vip4, frag=8189, proto=6) / Raw(bytes(64)),
        four / UDP(sport=1, dport=443) / b"x",
        four / ICMP(type=3, code=4) / Raw(inner[:23]),
        four / ICMP(type=3, code=4, nexthopmtu=0) / Raw(inner),
        four / ICMP(type=3, code=1) / Raw(b"\x45"),
        six / syn,
        six / TCP(sport=4444, dport=443, dataofs=15),
        IPv6(src=lab.client_ip6, dst=lab.vip6, plen=9000) / syn,
        six / IPv6ExtHdrHopByHop(len=200) / syn,
        six / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting(segleft=9) / syn,
        six / IPv6ExtHdrFragment(offset=0, m=1, id=7) / Raw(b"\x11"),
        six / IPv6ExtHdrFragment(offset=8191, m=0, id=8) / Raw(bytes(80)),
        six / ICMPv6DestUnreach() / Raw(bytes(30)),
        six / ICMPv6ND_NS(tgt=lab.vip6),
    ]
    chain = six
    for _ in range(30):
        chain = chain / IPv6ExtHdrDestOpt()
    head = Ether(src="02:00:00:00:00:66", dst=mac_of(lab))
    frames = [bytes(head / packet) for packet in (*wrong, chain / syn)]
    frames += [bytes(head / Dot1Q(vlan=n) / four / syn) for n in (0, 7)]
    frames += [bytes(head / ARP(op=op, psrc=lab.vip4, pdst=lab.vip4, hwlen=n)) for op in (1, 2, 9) for n in (6, 200)]
    whole = [bytes(head / four / syn), bytes(head / six / syn)]
    return frames + [frame[:n] for frame in whole for n in range(14, len(frame))]


def mac_of(lab: Lab) -> str:
    shown = subprocess.run(
        ["ip", "-j", "-n", lab.host, "link", "show", "dev", lab.nic], capture_output=True, check=True
    )
    return str(json.loads(shown.stdout)[0]["address"])
