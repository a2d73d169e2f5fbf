# SPDX-License-Identifier: Apache-2.0
"""The router alone, between a stub classifier and an instance that is nothing but a network namespace."""

import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from support.lab import in_netns, netns_made
from support.needs import require
from system.router_rig import (
    ABI,
    ECHO,
    IFF_NO_PI,
    IFF_TAP,
    IFF_TUN,
    IFF_VNET_HDR,
    ROUTER_MAC,
    TALK,
    VIPS,
    WAIT,
    Rig,
    Wire,
    cast,
    eventually,
    ffi,
    rig_made,
    run,
    stub_built,
    tap_made,
)

pytestmark = [pytest.mark.netns, pytest.mark.bpf]
VIP4, VIP6 = VIPS
CLIENT_MAC = "02:00:00:00:00:77"  # a neighbour that only the test plays


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stub_built(tmp_path_factory.mktemp("stub"))


@pytest.fixture(scope="module", params=[1500, 9000], ids=["mtu1500", "mtu9000"])
def rig(request: pytest.FixtureRequest, stub: Path) -> Iterator[Rig]:
    require("netns", "bpf")
    with rig_made(stub, request.param) as made:
        yield made


@pytest.fixture
def client(rig: Rig) -> Iterator[Wire]:
    wire = Wire(rig.lab.client)
    yield wire
    wire.close()


@pytest.fixture
def instance(rig: Rig) -> Iterator[Wire]:
    """The instance, broken into: it can send any frame."""
    wire = Wire(rig.instance)
    yield wire
    wire.close()


# ---- neighbours ------------------------------------------------------------------------------------------


def test_arp_is_answered(rig: Rig, client: Wire) -> None:
    client.send(
        Ether(src=CLIENT_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=CLIENT_MAC, psrc="10.77.0.77", pdst=VIP4)
    )
    answer = client.receive(lambda frame: ARP in frame and frame.dst == CLIENT_MAC)
    assert (answer.src, answer[ARP].op, answer[ARP].hwsrc, answer[ARP].psrc) == (rig.mac, 2, rig.mac, VIP4)


def test_neighbour_solicitation_is_answered(rig: Rig, client: Wire) -> None:
    ask = ICMPv6ND_NS(tgt=VIP6) / ICMPv6NDOptSrcLLAddr(lladdr=CLIENT_MAC)
    client.send(
        Ether(src=CLIENT_MAC, dst="33:33:ff:00:00:10") / IPv6(src="fd77::77", dst="ff02::1:ff00:10") / ask
    )
    answer = client.receive(lambda frame: ICMPv6ND_NA in frame and frame.dst == CLIENT_MAC)
    advert = answer[ICMPv6ND_NA]
    assert (answer.src, answer[IPv6].hlim, advert.tgt, advert.S, advert.O) == (rig.mac, 255, VIP6, 1, 1)
    assert advert[ICMPv6NDOptDstLLAddr].lladdr == rig.mac
    received = advert.cksum
    del advert.cksum
    assert Ether(bytes(answer))[ICMPv6ND_NA].cksum == received


@pytest.mark.parametrize(
    ("counter", "message"),
    [
        ("DROP_BAD_ARP", ARP(pdst=VIP4, op=9)),
        ("DROP_BAD_ARP", ARP(pdst=VIP4, hwsrc="ff:ff:ff:ff:ff:ff")),
        ("DROP_UNWANTED", ARP(pdst=VIP4, psrc="10.77.0.66", op=2)),
        ("DROP_UNWANTED", ARP(pdst=VIP4, psrc=VIP4)),
        ("DROP_BAD_ND", IPv6(src="fd77::2", dst=VIP6, hlim=64) / ICMPv6ND_NS(tgt=VIP6)),
        ("DROP_BAD_ND", IPv6(src="fd77::2", dst=VIP6) / ICMPv6ND_NS(tgt=VIP6, cksum=1)),
        ("DROP_BAD_ND", IPv6(src="fd77::2", dst=VIP6) / ICMPv6ND_NS(tgt=VIP6) / Raw(b"\1\0" * 4)),
    ],
)
def test_bad_neighbour_message_is_dropped_by_name(
    rig: Rig, client: Wire, counter: str, message: Packet
) -> None:
    before = rig.count("ANSWERED")
    frame = Ether(src=CLIENT_MAC, dst=rig.mac) / message
    if ARP in frame and frame[ARP].hwsrc is None:
        frame[ARP].hwsrc = CLIENT_MAC
    with rig.counted(counter):
        client.send(frame)
    assert rig.count("ANSWERED") == before


def test_silent_neighbour_is_given_up(rig: Rig, instance: Wire) -> None:
    asked = rig.count("ASKED")
    with rig.counted("DROP_UNRESOLVED"), rig.counted("NEIGH_LOST"):
        instance.send(Ether(dst=ROUTER_MAC) / IP(src=VIP4, dst="10.77.0.200") / UDP(dport=9))
    assert rig.count("ASKED") >= asked + 3


# ---- traffic ---------------------------------------------------------------------------------------------


def ping(vip: str, size: int, source: str = "") -> Packet:
    """An echo request that is an IP packet of size bytes."""
    if ":" in vip:
        return IPv6(src=source or "fd77::2", dst=vip) / ICMPv6EchoRequest(
            data=random.Random(1).randbytes(size - 48)
        )
    return IP(src=source or "10.77.0.2", dst=vip) / ICMP() / Raw(random.Random(1).randbytes(size - 28))


@pytest.mark.parametrize("vip", VIPS, ids=["ip4", "ip6"])
@pytest.mark.parametrize("full", [False, True], ids=["small", "full"])
def test_ping_is_answered_by_the_instance(rig: Rig, client: Wire, vip: str, full: bool) -> None:
    request = ping(vip, rig.mtu if full else 64)
    client.send(Ether(dst=rig.mac) / request)
    reply = client.receive(lambda f: ICMPv6EchoReply in f or (ICMP in f and f[ICMP].type == 0))
    assert (reply.src, len(reply)) == (rig.mac, 14 + len(request))
    assert bytes(reply)[-16:] == bytes(request)[-16:]
    assert (
        (reply[ICMPv6EchoReply].data == request.data)
        if ":" in vip
        else (reply[Raw].load == request[Raw].load)
    )


@pytest.mark.parametrize("vip", VIPS, ids=["ip4", "ip6"])
@pytest.mark.parametrize("where", ["near", "far"])
def test_tcp_both_ways(rig: Rig, vip: str, where: str) -> None:
    namespace = rig.lab.client if where == "near" else rig.lab.far
    into, out = rig.port().in_bytes, rig.port().out_bytes
    output = run(*in_netns(namespace, sys.executable, "-c", ECHO, vip, str(3 << 20)))
    headers = 60 if ":" in vip else 40
    assert output.split() == ["True", str(rig.mtu - headers - 12)]  # 12: the timestamp option
    eventually(lambda: rig.port().in_bytes > into + (3 << 20) and rig.port().out_bytes > out + (3 << 20))


@pytest.mark.parametrize("tags", [Dot1Q(vlan=7), Dot1AD(vlan=8) / Dot1Q(vlan=9)], ids=["vlan", "qinq"])
@pytest.mark.parametrize("full", [False, True], ids=["small", "full"])
def test_answer_goes_back_tagged(rig: Rig, client: Wire, tags: Packet, full: bool) -> None:
    source = f"10.77.0.{tags.vlan + 70}"
    size = (
        (rig.mtu if len(tags) == 4 else rig.mtu - 8) if full else 64
    )  # one tag fits beyond the MTU, not two
    for packet in (ARP(hwsrc=CLIENT_MAC, psrc=source, pdst=VIP4), ping(VIP4, size, source)):
        frame = Ether(src=CLIENT_MAC, dst=rig.mac) / tags / packet
        client.send(frame)
        reply = client.receive(lambda f: f.dst == CLIENT_MAC and (ARP in f or ICMP in f))
        found = [(type(layer), layer.vlan) for layer in reply.iterpayloads() if isinstance(layer, Dot1Q)]
        assert found == [(type(layer), layer.vlan) for layer in tags.iterpayloads()]
        assert (ICMP in reply) == (ICMP in frame)
        assert ICMP not in reply or len(reply) == len(frame)


@pytest.mark.parametrize(
    ("counter", "packet"),
    [
        ("DROP_SPOOFED", IP(src="10.77.0.11", dst="10.77.0.2") / UDP()),
        ("DROP_SPOOFED", IPv6(src="fd77::11", dst="fd77::2") / UDP()),
        ("DROP_REFUSAL", IP(src="10.77.0.10", dst="10.77.0.2") / TCP(sport=443, dport=4000, seq=0, ack=5, flags="RA")),
        ("DROP_REFUSAL", IPv6(src="fd77::10", dst="fd77::2") / TCP(sport=443, dport=4000, seq=0, ack=5, flags="RA")),
        ("DROP_SPOOFED", IPv6(src="::ffff:10.77.0.10", dst="fd77::2") / UDP()),
        ("DROP_FORGED_ND", IPv6(src=VIP6, dst="fd77::2") / ICMPv6ND_NA(tgt="fd77::1")),
        ("DROP_NOT_IP", ARP(psrc="10.77.0.1", pdst="10.77.0.2", op=2)),
        ("DROP_NOT_IP", Dot1Q(vlan=1) / IP(src=VIP4, dst="10.77.0.2")),
        ("DROP_MALFORMED", IP(src=VIP4, dst="10.77.0.2", len=999) / UDP()),
        ("DROP_MALFORMED", IPv6(src=VIP6, dst="fd77::2", plen=999) / UDP()),
        ("DROP_NO_ROUTE", IP(src=VIP4, dst="224.0.0.9") / UDP()),
        ("DROP_NO_ROUTE", IPv6(src=VIP6, dst="::ffff:10.77.0.2") / UDP()),
    ],
)
def test_hostile_frame_is_dropped_by_name(rig: Rig, instance: Wire, counter: str, packet: Packet) -> None:
    before = rig.port().out_dropped
    with rig.counted(counter):
        instance.send(Ether(dst=ROUTER_MAC) / packet)
    assert rig.port().out_dropped > before


def test_link_layer_multicast_is_noise(rig: Rig, instance: Wire) -> None:
    with rig.counted("DROP_NOISE"):
        instance.send(Ether(dst="33:33:00:00:00:16") / IPv6(src=VIP6, dst="ff02::16"))


def test_longer_than_the_mtu_is_dropped(rig: Rig, instance: Wire) -> None:
    run("ip", "-n", rig.instance, "link", "set", "eth0", "mtu", str(rig.mtu + 600))
    try:
        for size in (rig.mtu + 1, rig.mtu + 600):
            with rig.counted("DROP_TOO_BIG"):
                instance.send(
                    Ether(dst=ROUTER_MAC) / IP(src=VIP4, dst="10.77.0.2") / UDP() / Raw(bytes(size - 28))
                )
    finally:
        run("ip", "-n", rig.instance, "link", "set", "eth0", "mtu", str(rig.mtu))


@pytest.mark.parametrize(
    ("how", "counter"),
    [(1, "DROP_NO_META"), (2, "DROP_BAD_META"), (3, "DROP_BAD_META"), (4, "DROP_BAD_META")],
    ids=["none", "kind", "offset", "vm"],
)
def test_wrong_verdict_is_dropped(rig: Rig, client: Wire, how: int, counter: str) -> None:
    with rig.classifier_broken(how), rig.counted(counter):
        client.send(Ether(dst=rig.mac) / ping(VIP4, 64))


# ---- control ---------------------------------------------------------------------------------------------


def test_ping_tells_the_link(rig: Rig) -> None:
    reply = rig.ask("PING")
    assert rig.process is not None
    assert (reply.version, reply.status, reply.pid) == (ABI.SL_ABI_VERSION, 0, rig.process.pid)
    assert (bytes(reply.mac).hex(":"), reply.mtu, reply.nb_queue) == (rig.mac, rig.mtu, 1)


@pytest.mark.parametrize(
    ("request_", "fields", "status"),
    [
        ("PING", {"slot": 1}, errno.EINVAL),
        ("PING", {"pad": b"\1"}, errno.EINVAL),
        ("PING", {"tcp_seq": 1}, errno.EINVAL),
        ("PING", {"version": 99}, errno.EINVAL),
        ("PING", {"type": 99}, errno.EINVAL),
        ("PORT_ADD", {"vm_id": 2}, errno.EINVAL),  # no descriptor
        ("PORT_ADD_VHOST", {"vm_id": 0}, errno.EINVAL),
        ("PORT_ADD_VHOST", {"vm_id": 2, "slot": 1}, errno.EINVAL),
        ("PORT_DEL", {"vm_id": 2}, errno.ENOENT),
        ("PORT_DEL", {"vm_id": 1024}, errno.EINVAL),
        ("VIP_ADD", {"slot": 64, "addr": cast("10.77.0.11")}, errno.EINVAL),
        ("VIP_ADD", {"slot": 3, "addr": cast("224.0.0.1")}, errno.EINVAL),
        ("VIP_ADD", {"slot": 3, "addr": cast(VIP4)}, errno.EEXIST),
        ("VIP_DEL", {"slot": 3}, errno.ENOENT),
        ("TABLE_SET", {"slot": 0}, errno.EINVAL),  # no descriptor
        ("RESET", {"slot": 64, "addr": cast("10.77.0.2")}, errno.EINVAL),
        ("RESET", {"slot": 0, "addr": cast("fd77::2")}, errno.EINVAL),  # the other family
        ("RESET", {"slot": 0, "addr": cast("224.0.0.1")}, errno.EINVAL),
        ("RESET", {"slot": 3, "addr": cast("10.77.0.2")}, errno.ENOENT),
        ("RESET", {"slot": 0, "addr": cast("192.0.2.1"), "vm_id": 1}, errno.EINVAL),
        ("NET_ADD", {"addr": cast("10.77.0.1"), "prefix_len": 120}, errno.EINVAL),
        ("NET_ADD", {"addr": cast("fd77::"), "prefix_len": 129}, errno.EINVAL),
        ("NET_ADD", {"addr": cast("fd99::"), "prefix_len": 64, "gateway": cast("10.77.0.2")}, errno.EINVAL),
    ],
)
def test_wrong_request_is_refused(rig: Rig, request_: str, fields: dict[str, Any], status: int) -> None:
    message = ffi.new("struct sl_rtr_request *")
    message.version, message.type = ABI.SL_ABI_VERSION, getattr(ABI, f"SL_RTR_{request_}")
    for name, value in fields.items():
        setattr(message, name, value)
    with rig.counted("BAD_REQUEST"):
        assert rig.send(bytes(ffi.buffer(message))).status == -status
    assert rig.ask("PING").status == 0


def test_wrong_packet_is_refused(rig: Rig) -> None:
    ping_ = ffi.new("struct sl_rtr_request *")
    ping_.version, ping_.type = ABI.SL_ABI_VERSION, ABI.SL_RTR_PING
    good = bytes(ffi.buffer(ping_))
    for packet, nb_fd in ((good[:-1], 0), (good + b"\0", 0), (good, 1), (good, 30)):
        assert rig.send(packet, (rig.tap_fd,) * nb_fd).status == -errno.EINVAL
    assert rig.send(good).status == 0
    assert rig.process is not None
    assert len(list(Path(f"/proc/{rig.process.pid}/fd").iterdir())) < 20  # the refused ones were closed


def test_port_must_be_a_plain_tap(rig: Rig) -> None:
    wrong = [os.open("/dev/null", os.O_RDWR)]
    kinds = (IFF_TUN | IFF_NO_PI, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
    wrong += [tap_made(rig.instance, f"wrong{flags}", flags) for flags in kinds]
    statuses = [rig.ask("PORT_ADD", fds=(fd,), vm_id=2, vips=1).status for fd in wrong]
    for fd in wrong:
        os.close(fd)
    assert statuses == [-errno.EINVAL] * 3
    assert rig.ask("PORT_ADD", fds=(rig.tap_fd,) * 2, vm_id=2, vips=1).status == -errno.EINVAL
    assert rig.ask("PING").nb_port == 1


def test_port_may_only_send_from_its_own_virtual_ips(rig: Rig, instance: Wire) -> None:
    assert rig.port_add(vips=0b10).nb_port == 1
    try:
        with rig.counted("DROP_SPOOFED"):
            instance.send(Ether(dst=ROUTER_MAC) / IP(src=VIP4, dst="10.77.0.2") / UDP())
    finally:
        assert rig.port_add().nb_port == 1


def test_frames_for_a_removed_port_are_dropped(rig: Rig, client: Wire) -> None:
    assert rig.ask("PORT_DEL", vm_id=1).nb_port == 0
    with rig.counted("DROP_NO_PORT"):
        client.send(Ether(dst=rig.mac) / ping(VIP4, 64))
    assert rig.port_add().status == 0


def test_vanished_tap_loses_its_port_only(rig: Rig) -> None:
    with netns_made("gone") as gone:
        fd = tap_made(gone)
        assert rig.ask("PORT_ADD", fds=(fd,), vm_id=2, vips=0).nb_port == 2
        with rig.counted("PORT_LOST"):
            run("ip", "-n", gone, "link", "del", "eth0")
        os.close(fd)
    assert rig.ask("PING").nb_port == 1


# ---- life and death --------------------------------------------------------------------------------------


def test_no_privilege_is_left(rig: Rig) -> None:
    assert rig.process is not None
    lines = Path(f"/proc/{rig.process.pid}/status").read_text().splitlines()
    status = {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}
    assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4
    assert status["Groups"] == ""
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_connection_survives_the_death_of_the_router(rig: Rig) -> None:
    command = in_netns(rig.lab.client, sys.executable, "-c", TALK, VIP4)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as talk:
        assert talk.stdin is not None
        assert talk.stdout is not None
        talk.stdin.write("before\n")
        assert talk.stdout.readline() == "before\n"
        counted = rig.count("IN_FLOW")
        assert rig.router_stop(signal.SIGKILL) == -signal.SIGKILL
        talk.stdin.write("meanwhile\n")
        rig.router_start()
        rig.router_configure()
        assert talk.stdout.readline() == "meanwhile\n"
        talk.stdin.close()
        assert talk.wait(timeout=10) == 0
    assert rig.count("IN_FLOW") > counted  # a new router goes on counting


@pytest.mark.parametrize("slot", [0, 1])
def test_a_reset_in_an_instances_name(rig: Rig, client: Wire, slot: int) -> None:
    """A client believes it that its connection is over, and no other number than the next one."""
    vip = VIPS[slot]
    command = in_netns(rig.lab.client, sys.executable, "-c", WAIT, vip)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
        first = client.receive(lambda f: TCP in f and f[TCP].flags == "SA" and f[TCP].sport == 80)[TCP]
        assert waiting.stdout is not None
        length, port = map(int, waiting.stdout.readline().split())
        assert first.dport == port
        address = rig.lab.client_ip4 if slot == 0 else rig.lab.client_ip6
        to = {"slot": slot, "addr": cast(address), "client_port": port, "service_port": 80}
        with rig.counted("RESETS"):
            assert rig.ask("RESET", **to, tcp_seq=(first.seq + length) % 2**32).status == 0
        sent = client.receive(lambda f: TCP in f and f[TCP].flags == "R" and f[TCP].dport == port)
        open_ones = run(*in_netns(rig.lab.client, "ss", "-tnH", "state", "established"))
        assert f":{port} " in open_ones, "one byte too early"
        assert rig.ask("RESET", **to, tcp_seq=(first.seq + length + 1) % 2**32).status == 0
        assert waiting.stdout.read() == "reset\n"
    wrong = sent.copy()
    del wrong[TCP].chksum
    if slot == 0:
        del wrong[IP].chksum
    assert bytes(wrong) == bytes(sent), "other checksums"
    assert sent.src == rig.mac


def test_second_router_is_refused_the_queue(rig: Rig) -> None:
    with tempfile.TemporaryDirectory(prefix="slt-", dir="/tmp") as other:
        second = rig.router_popen(f"--run-dir={other}")
        assert "another program has this queue" in second.communicate(timeout=20)[1]
        assert second.returncode == 1
    assert rig.ask("PING").status == 0


def test_wrong_interface_is_named(rig: Rig) -> None:
    process = rig.router_popen(ifname="nosuch0")
    assert "step=interface" in process.communicate(timeout=20)[1]
    assert process.returncode == 1


def test_router_ends_when_its_interface_is_gone(stub: Path) -> None:
    require("netns", "bpf")
    with rig_made(stub, 1500) as rig:
        run("ip", "-n", rig.lab.host, "link", "del", rig.lab.nic)
        instance = Wire(rig.instance)
        instance.send(Ether(dst=ROUTER_MAC) / IP(src=VIP4, dst="10.77.0.2") / UDP())
        instance.close()
        assert rig.process is not None
        assert "the interface is gone" in rig.process.communicate(timeout=20)[1]
        assert rig.process.returncode == 1
