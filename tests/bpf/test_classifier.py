# SPDX-License-Identifier: Apache-2.0
"""The classifier's verdicts, by BPF_PROG_TEST_RUN: no interface, no traffic."""

import os
import random
import threading
from collections import Counter

import pytest
from bpf.bench import SERVICES, VMS, Bench, Seen, instance
from bpf.model import Model
from bpf.packets import (
    FLOW,
    ROWS,
    Row,
    eth,
    fragments4,
    fragments6,
    ip4,
    ip6,
    patched,
    quote4,
    quote6,
    tcp,
    udp,
)
from pipeline._native import lib
from scapy.layers.inet import ICMP, TCP
from scapy.layers.inet6 import ICMPv6PacketTooBig
from scapy.packet import Raw

from pipeline.errors import ClassifierError
from pipeline.host.classifier import MAGLEV_SIZE
from pipeline.policy.model import LayerId, VmState

pytestmark = pytest.mark.bpf

ETHERNET = 14
MUTATIONS = int(os.environ.get("SWARMLINE_MUTATIONS", "20000"))  # 3 s for 100,000


def meta_is_valid(seen: Seen, frame: bytes) -> bool:
    """Whether the router may believe what is in front of the frame."""
    meta = seen.run.meta
    if meta is None or meta.magic != lib.SL_META_MAGIC or not ETHERNET <= meta.l3_off < len(frame):
        return False
    if meta.kind == lib.SL_META_FLOW:
        return meta.vm_id in VMS and meta.layer == LayerId.TCP and meta.service in (0, 1)
    return meta.kind in (lib.SL_META_ARP, lib.SL_META_ND) and meta.vm_id == 0


def is_sound(seen: Seen, frame: bytes) -> bool:
    """Whether action, counter and metadata go together and the frame is as it was."""
    action = {"pass": "PASS", "drop": "DROP"}.get(seen.verdict.split("_")[0], "REDIRECT")
    if seen.run.action != action or seen.run.packet != frame:
        return False
    return meta_is_valid(seen, frame) if action == "REDIRECT" else seen.run.meta is None


# ---- the table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_verdict(bench: Bench, row: Row) -> None:
    seen = bench.send(row.frame)
    assert seen.verdict == row.verdict
    assert seen.run.action == row.action
    assert seen.run.packet == row.frame
    if row.action != "REDIRECT":
        return
    meta = seen.run.meta
    assert meta is not None
    assert (meta.magic, meta.kind, meta.service, meta.l3_off) == (
        lib.SL_META_MAGIC,
        row.kind,
        row.service,
        row.l3_off,
    )
    assert (meta.vm_id in VMS and meta.layer == LayerId.TCP) if row.kind == FLOW else meta.vm_id == 0


def test_every_verdict_has_a_row(bench: Bench) -> None:
    elsewhere = {"flow_known", "flow_moved", "frag_later", "drop_no_instance", "drop_no_socket"}
    unreachable = {"drop_no_headroom"}  # test runs have headroom
    assert {row.verdict for row in ROWS} | elsewhere | unreachable == set(bench.classifier.counters())


def test_the_model_agrees_with_the_table() -> None:
    for row in ROWS:
        assert Model(SERVICES).verdict(row.frame) == row.verdict, row.name


@pytest.mark.parametrize(
    "name",
    [
        "tcp4",
        "tcp6",
        "tcp6 three extensions",
        "echo4",
        "unreachable4",
        "later fragment alone, v4",
        "ARP request for a virtual IP",
        "NS for a virtual IP",
        "ssh to the host",
    ],
)
def test_repeated_runs_take_the_same_path(bench: Bench, name: str) -> None:
    """Else the time that a benchmark measures is that of another path."""
    frame = next(row.frame for row in ROWS if row.name == name)
    once = bench.send(frame)
    before = bench.classifier.counters()
    run = bench.classifier.test_run(frame, repeat=1000)
    after = bench.classifier.counters()
    assert run.action == once.run.action
    moved = {n: after[n] - before[n] for n in after if after[n] != before[n]}
    assert moved == {once.verdict.replace("flow_new", "flow_known"): 1000}


def test_metadata_of_a_driver_is_replaced(bench: Bench) -> None:
    frame = eth(ip4(tcp()))
    plain = bench.send(frame).run.meta
    assert bench.send(frame, meta=b"\xee" * 32).run.meta == plain
    assert bench.send(frame, meta=b"\xee" * 4).run.meta == plain


def test_frame_of_several_buffers(bench: Bench) -> None:
    """MTU 9000: the readable part is not the whole frame, and its length field is right nevertheless."""
    for frame in (eth(ip4(tcp(flags="A") / Raw(bytes(8900)))), eth(ip6(tcp(flags="A") / Raw(bytes(8900))))):
        seen = bench.send(frame)
        assert (seen.verdict, seen.run.packet) == ("flow_new", frame)
        cut = bench.send(frame[:-1])
        assert cut.verdict == "drop_malformed"


# ---- flows -------------------------------------------------------------------------------------------------


def test_flow_keeps_its_instance_across_a_table_change(bench: Bench) -> None:
    frames = [eth(ip4(tcp(sport))) for sport in range(1000, 1100)]
    first = [bench.send(frame) for frame in frames]
    assert {seen.vm_id for seen in first} == set(VMS)
    bench.set_table([3])
    for frame, before in zip(frames, first, strict=True):
        again = bench.send(frame)
        assert (again.verdict, again.vm_id) == ("flow_known", before.vm_id)
        assert again.run.meta == before.run.meta
    assert {bench.send(eth(ip4(tcp(sport)))).vm_id for sport in range(2000, 2050)} == {3}


def test_flow_knows_what_its_client_expects(bench: Bench) -> None:
    for packet, ack in ((tcp(), 0), (TCP(sport=40000, dport=443, flags="A", ack=0xFFFF0001), 0xFFFF0001),
                        (TCP(sport=40000, dport=443, flags="PA", ack=7), 7),
                        (TCP(sport=40000, dport=443, flags="R", ack=9), 7)):
        seen = bench.send(eth(ip4(packet)))
        assert [flow.ack for flow in bench.classifier.flows()] == [ack]
        assert [flow.ack for flow in bench.classifier.connections_of(instance(seen.vm_id))] == [ack] * bool(ack)
    bench.send(eth(ip4(udp())))
    others = [flow for vm_id in VMS for flow in bench.classifier.connections_of(instance(vm_id, incarnation=99))]
    assert others == [], "of whoever had the number before"


def test_flow_without_entry_finds_its_instance_again(bench: Bench) -> None:
    """The entry may be pushed out by others: as long as the table is the same, nothing changes."""
    frames = [eth(ip4(tcp(sport, flags="A"))) for sport in range(1000, 1050)]
    first = [bench.send(frame).vm_id for frame in frames]
    bench.forget()
    assert [bench.send(frame).vm_id for frame in frames] == first


def test_hash_ignores_what_differs_within_a_flow(bench: Bench) -> None:
    syn, data = (
        bench.send(eth(ip4(tcp()))),
        bench.send(eth(ip4(tcp(flags="PA") / Raw(b"hello"), ttl=3, tos=4))),
    )
    assert syn.run.meta == data.run.meta
    other = bench.send(eth(ip4(tcp(40001))))
    assert other.run.meta is not None
    assert syn.run.meta is not None
    assert other.run.meta.hash != syn.run.meta.hash


def test_shares_follow_the_table(bench: Bench) -> None:
    """9000 flows over three equal instances: each share within 8 % of a third (5 sigma)."""
    syn = eth(ip4(tcp()))
    frames = (patched(syn, 34, sport.to_bytes(2, "big")) for sport in range(1000, 10_000))
    count = Counter(bench.send(frame).vm_id for frame in frames)
    assert count.keys() == set(VMS)
    assert all(abs(n - 3000) < 240 for n in count.values()), count


def test_dead_instance_is_left_at_once(bench: Bench) -> None:
    """One write of its state is enough: the table still names it."""
    frames = {sport: eth(ip4(tcp(sport, flags="A"))) for sport in range(1000, 1100)}
    home = {sport: bench.send(frame).vm_id for sport, frame in frames.items()}
    bench.set_vms(instance(1), instance(2, VmState.FAILED), instance(3))
    for sport, frame in frames.items():
        seen = bench.send(frame)
        if home[sport] == 2:
            assert (seen.verdict, seen.vm_id in (1, 3)) == ("flow_moved", True)
            assert bench.send(frame).verdict == "flow_known"
        else:
            assert (seen.verdict, seen.vm_id) == ("flow_known", home[sport])
    moved = [bench.send(frame).vm_id for sport, frame in frames.items() if home[sport] == 2]
    assert set(moved) == {1, 3}, "the flows of a dead instance are spread"
    fresh = [bench.send(eth(ip4(tcp(sport)))) for sport in range(3000, 3200)]
    assert {seen.vm_id for seen in fresh} == {1, 3}


def test_next_owner_of_a_vmid_gets_no_flow_of_the_former(bench: Bench) -> None:
    bench.set_table([1])
    frame = eth(ip4(tcp(flags="A")))
    bench.send(frame)
    bench.set_vms(instance(1, incarnation=99))
    assert bench.send(frame).verdict == "flow_moved"
    assert bench.send(frame).verdict == "flow_known"


def test_draining_instance_keeps_old_connections_only(bench: Bench) -> None:
    bench.set_table([1])
    old, syn = eth(ip4(tcp(flags="A"))), eth(ip4(tcp()))
    bench.send(old)
    bench.set_vms(instance(1, VmState.DRAINING), instance(2))
    bench.set_table([2])
    seen = bench.send(old)
    assert (seen.verdict, seen.vm_id) == ("flow_known", 1)
    seen = bench.send(syn)
    assert (seen.verdict, seen.vm_id) == ("flow_moved", 2)
    seen = bench.send(old)
    assert (seen.verdict, seen.vm_id) == ("flow_known", 2)


@pytest.mark.parametrize("state", [s for s in VmState if s is not VmState.ACTIVE])
def test_new_flows_go_to_active_instances_only(bench: Bench, state: VmState) -> None:
    bench.set_vms(*(instance(vm_id, state) for vm_id in VMS))
    for frame in (eth(ip4(tcp())), eth(ip4(ICMP())), eth(ip4(ICMP(type=3) / quote4()))):
        assert bench.send(frame).verdict == "drop_no_instance"


def test_no_table_is_no_instance(bench: Bench) -> None:
    bench.classifier.set_table(0, [0] * MAGLEV_SIZE)
    assert bench.send(eth(ip4(tcp()))).verdict == "drop_no_instance"
    bench.classifier.set_services(SERVICES[1:])
    bench.classifier.set_services(SERVICES)  # its table went with the service
    assert bench.classifier.table(0) is None
    assert bench.send(eth(ip4(tcp()))).verdict == "drop_no_instance"


def test_without_a_router_what_is_ours_is_dropped(bench: Bench) -> None:
    """The kernel would answer it with a reset."""
    bench.unplug()
    ours = [row for row in ROWS if row.action == "REDIRECT"]
    assert {bench.send(row.frame).verdict for row in ours} == {"drop_no_socket"}
    assert bench.send(eth(ip4(tcp(dport=22)))).run.action == "PASS"


def test_service_that_is_gone_goes_to_the_kernel(bench: Bench) -> None:
    frame = eth(ip4(tcp()))
    bench.send(frame)
    bench.send(eth(ip4(udp())))
    bench.classifier.set_services(SERVICES[1:])
    assert bench.send(frame).verdict == "pass_not_ours"
    assert [flow.service for flow in bench.classifier.flows()] == [1]


def test_icmp_error_follows_its_flow(bench: Bench) -> None:
    """Same instance, same hash; also when the table has changed since."""
    for flow, error in (
        (eth(ip4(tcp())), eth(ip4(ICMP(type=3, code=4) / quote4(), src="192.0.2.1"))),
        (eth(ip6(tcp())), eth(ip6(ICMPv6PacketTooBig() / quote6(), src="2001:db8::1"))),
    ):
        before = bench.send(error)
        seen = bench.send(flow)
        assert (before.verdict, before.run.meta) == ("icmp_error", seen.run.meta)
        bench.set_table([vm_id for vm_id in VMS if vm_id != seen.vm_id])
        assert bench.send(error).run.meta == seen.run.meta
        bench.set_table(VMS)
    assert len(bench.classifier.flows()) == 2  # errors make no entries


@pytest.mark.parametrize(
    ("first", "later"),
    [fragments4(udp()), fragments6(udp(), 17), fragments4(ICMP())],
    ids=["v4", "v6", "echo"],
)
def test_fragments_stay_together(bench: Bench, first: bytes, later: bytes) -> None:
    assert bench.send(later).verdict == "drop_frag_miss"
    head = bench.send(first)
    tail = bench.send(later)
    assert (tail.verdict, tail.run.meta) == ("frag_later", head.run.meta)
    bench.set_vms(*(instance(vm_id, incarnation=9) for vm_id in VMS))
    assert bench.send(later).verdict == "drop_frag_miss"


def test_fragments_of_another_datagram_are_not_mixed_in(bench: Bench) -> None:
    bench.send(fragments4(udp(), identity=7)[0])
    assert bench.send(fragments4(udp(), identity=8)[1]).verdict == "drop_frag_miss"
    assert bench.send(fragments4(ICMP(), identity=7)[1]).verdict == "drop_frag_miss"


# ---- the swap ----------------------------------------------------------------------------------------------


def test_swap_under_load_loses_nothing(bench: Bench) -> None:
    """Echo requests always ask the table: each must get an instance of the old one or of the new one."""
    frame, stop, answers = eth(ip4(ICMP())), threading.Event(), set()
    before = bench.classifier.counters()

    def reader() -> None:
        while not stop.is_set():
            run = bench.classifier.test_run(frame, repeat=2000)
            answers.add((run.action, run.meta.vm_id if run.meta else 0))

    thread = threading.Thread(target=reader)
    thread.start()
    try:
        for i in range(40):
            bench.set_table([1 + i % 2])
    finally:
        stop.set()
        thread.join()
    after = bench.classifier.counters()
    assert answers <= {("REDIRECT", 1), ("REDIRECT", 2), ("REDIRECT", 3)}
    moved = {name for name in after if after[name] != before[name]}
    assert moved == {"icmp_echo"}


def test_swap_is_seen_when_it_returns(bench: Bench) -> None:
    frame = eth(ip4(ICMP()))
    for i in range(20):
        bench.set_table([1 + i % 3])
        assert bench.send(frame).vm_id == 1 + i % 3


def test_table_reads_back(bench: Bench) -> None:
    table = bench.classifier.table(0)
    assert table is not None
    assert len(table) == MAGLEV_SIZE
    assert set(table) == set(VMS)
    with pytest.raises(ValueError, match="slots"):
        bench.classifier.set_table(0, [1, 2, 3])
    with pytest.raises(ClassifierError, match="maglev"):
        bench.classifier.set_table(lib.SL_SERVICE_MAX, table)


# ---- hostile packets ---------------------------------------------------------------------------------------


class Oracle:
    """Compares the classifier with the model; both forget now and then, before an LRU map must."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.model, self.runs = bench, Model(SERVICES), 0
        self.verdicts: Counter[str] = Counter()

    def check(self, frame: bytes) -> None:
        if self.runs % 2000 == 0:
            self.bench.forget()
            self.model.forget()
        self.runs += 1
        seen = self.bench.send(frame)
        assert is_sound(seen, frame), f"{frame.hex()}: {seen}"
        assert seen.verdict == self.model.verdict(frame), frame.hex()
        self.verdicts[seen.verdict] += 1


def test_every_length_of_every_packet(bench: Bench) -> None:
    oracle = Oracle(bench)
    for row in ROWS:
        for length in range(ETHERNET, len(row.frame) + 1):
            oracle.check(row.frame[:length])
    assert oracle.verdicts["drop_truncated"] + oracle.verdicts["drop_malformed"] > 1000


def mutated(frame: bytes, chance: random.Random) -> bytes:
    """One to four small changes, most of them in the headers."""
    data = bytearray(frame)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 4))):
        at = chance.randrange(12, max(min(len(data), 100), 13))
        match chance.randrange(7):
            case 0:
                data[at : at + 1] = bytes([data[at] ^ 1 << chance.randrange(8)]) if at < len(data) else b""
            case 1:
                data[at : at + 1] = chance.choice(
                    (b"\0", b"\x01", b"\x2c", b"\x3a", b"\x45", b"\x60", b"\x7f", b"\xff")
                )
            case 2:
                data[at : at + 2] = chance.choice(
                    (b"\0\0", b"\xff\xff", b"\x08\0", b"\x81\0", b"\x86\xdd", b"\0\x14")
                )
            case 3:
                del data[chance.randrange(12, len(data) + 1) :]
            case 4:
                data[at:at] = chance.randbytes(chance.choice((1, 4, 8)))
            case 5:
                del data[at : at + chance.choice((1, 4, 8))]
            case 6:
                data += chance.randbytes(chance.randrange(64))
    return bytes(data.ljust(ETHERNET, b"\0"))


def test_mutated_packets(bench: Bench) -> None:
    """Never aborted, never a wrong action or false metadata, and always the verdict of the model."""
    oracle, chance = Oracle(bench), random.Random(20)
    frames = [row.frame for row in ROWS]
    for _ in range(MUTATIONS):
        oracle.check(mutated(chance.choice(frames), chance))
    rare = set(bench.classifier.counters()) - set(oracle.verdicts)
    assert rare <= {"flow_moved", "drop_no_instance", "drop_no_socket", "drop_no_headroom"}
