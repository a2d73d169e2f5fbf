# SPDX-License-Identifier: Apache-2.0
"""Holder, process driver, tap, router client and namespaces together, with stand-ins for the C programs.

The stand-ins speak the real argv, handshake and messages, so that each failure of a program can be played.
"""

import asyncio
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

import pytest
from pipeline._native import ffi, lib

from pipeline.errors import HugepageError, InstanceError, LaunchError, NamespaceError, RouterError
from pipeline.host import holder_client, hugepages, namespaces, processes
from pipeline.host.assignment import Assignment, EdgeSeat, ServiceSeat
from pipeline.host.control import ControlRegion
from pipeline.host.doorbells import Doorbells
from pipeline.host.edges import EdgeMemory, Sizes, pages_needed
from pipeline.host.holder_client import HolderClient, InstanceFds
from pipeline.host.nic import Gateway, nic_facts
from pipeline.host.report import Report
from pipeline.host.router import Router, RouterSpec
from pipeline.host.tap import TapSpec, tap_create
from pipeline.instances.driver import EdgeGrant, InstanceSpec, Outfit, Running
from pipeline.instances.process import UID_BASE, ProcessDriver
from pipeline.policy.model import Edge, LayerId, Side, VmState
from pipeline.policy.settings import Nic

pytestmark = [pytest.mark.root, pytest.mark.netns]

MAC = bytes.fromhex("027700000001")
TINY = Edge(LayerId.HTTP, LayerId.APP, 1, 1)
SMALL = Sizes(ring_cap=64, nb_small=16, nb_big=4)

INSTANCE = r"""
import ctypes, fcntl, mmap, os, socket, struct, sys, time
mode = os.environ.get("SWARMLINE_FAKE", "")
options = dict(word[2:].split("=", 1) for word in sys.argv[1:])
vm_id, ivshmem, grants, pid_fd = (int(options[key]) for key in ("vm-id", "ivshmem-fd", "grants-fd", "pid-fd"))
print("vm", vm_id, "uid", options["uid"], "starts", mode, flush=True)
if mode == "exits":
    sys.exit("no such layer")
if mode == "hangs":
    time.sleep(1000)
if mode != "shares":
    assert ctypes.CDLL(None).unshare(0x40000000) == 0       # CLONE_NEWNET
pid = 1 if mode == "lies" else os.fork()
if pid:
    if mode == "dies":
        os.waitpid(pid, 0)
    os.write(pid_fd, b"%d\n" % pid)
    os._exit(0)
os.close(pid_fd)
if mode == "dies":
    os._exit(4)
server, sock = socket.socket(fileno=ivshmem), socket.socket(fileno=grants)
fds = {}
while vm_id not in fds:
    data, got, _, _ = socket.recv_fds(server, 8, 1)
    (value,) = struct.unpack("<q", data)
    if got:
        fds[value] = got[0]
region = mmap.mmap(fds[-1], 1 << 20)
assignment_off, _, status_off = struct.unpack_from("<3I", region, 16)
data, got, _, _ = socket.recv_fds(sock, 1000, 80)
number, count = struct.unpack_from("<2I", data)
assert number == struct.unpack_from("<I", region, assignment_off)[0] and count == len(got)
links = [os.readlink("/proc/self/fd/%d" % fd).split()[0].split(":[")[0] for fd in got]
names = ["%d/%d=%s" % (*struct.unpack_from("<2I", data, 8 + 8 * n), link) for n, link in enumerate(links)]
links = ",".join(name for _, name in socket.if_nameindex())
text = (" ".join(names) + " " + links).encode()
offset = status_off + int(os.environ["SWARMLINE_TEXT_OFF"])
region[offset:offset + len(text)] = text
struct.pack_into("<IHBB", region, status_off, 2, vm_id, 2, 1)                     # READY
os.eventfd_write(fds[0], 1)
while socket.recv_fds(server, 8, 1)[0]:
    pass
"""

ROUTER = r"""
import os, socket, struct, sys, time
mode = os.environ.get("SWARMLINE_FAKE", "")
options = dict(word[2:].split("=", 1) for word in sys.argv[1:])
if mode == "exits":
    print("hint: load the classifier first", file=sys.stderr)
    sys.exit(3)
path = options["run-dir"] + "/router.sock"
if os.path.exists(path):
    os.unlink(path)
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(path)
listener.listen()
ports, vips, nets, start = {}, {}, {}, time.monotonic_ns()
os.pwrite(int(options["counters-fd"]), struct.pack("<Q", start), 64)              # total[0]
while True:
    conn, _ = listener.accept()
    while True:
        data, fds, _, _ = socket.recv_fds(conn, 100, 4)
        if not data:
            break
        version, kind, seq, vm_id, slot, length = struct.unpack_from("<HHIHBB", data)
        (mask,), addr, via = struct.unpack_from("<Q", data, 16), data[24:40], data[40:56]
        status = 0
        if kind == 2:
            ports[vm_id] = mask
        elif kind == 3:
            status = 0 if ports.pop(vm_id, None) is not None else -2
        elif kind == 4:
            status = -17 if addr in [a for n, a in vips.items() if n != slot] else 0
            if not status:
                vips[slot] = addr
        elif kind == 5:
            status = 0 if vips.pop(slot, None) else -2
        elif kind == 6:
            nets[addr, length] = via
        elif kind == 7:
            nets.clear()
        for fd in fds:
            os.close(fd)
        print(kind, vm_id, slot, length, mask, addr.hex(), via.hex(), len(fds), status, file=sys.stderr, flush=True)
        reply = struct.pack("<HHIiIQIHHHH6s22x", version, kind, seq, status, os.getpid(), start, len(ports),
                            len(vips), len(nets), 1500, int(options["queues"]), b"\2\0\0\0\0\1")
        try:
            conn.send(reply)
        except BrokenPipeError:
            break
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-ins in place of the real programs."""
    for name, script in (("swarmline-instance", INSTANCE), ("swarmline-router", ROUTER)):
        path = tmp_path / name
        path.write_text(f"#!{sys.executable} -P\n{script}")
        path.chmod(0o755)
    monkeypatch.setenv("SWARMLINE_BIN", str(tmp_path))
    monkeypatch.setenv("SWARMLINE_TEXT_OFF", str(ffi.offsetof("struct sl_vm_status", "text")))


@pytest.fixture
def holder(run_dir: Path) -> Iterator[HolderClient]:
    pid = holder_client.start(run_dir)
    with HolderClient(run_dir) as client:
        yield client
    processes.kill_all(run_dir)
    os.waitpid(pid, 0)
    processes.clean_up(run_dir)
    run_dir.mkdir(exist_ok=True)


class Place:
    """What the manager prepares for one instance: region, assignment, one edge."""

    def __init__(self, holder: HolderClient, run_dir: Path, vm_id: int, layer: LayerId) -> None:
        self.holder = holder
        self.fds: InstanceFds = holder.instance_add(vm_id)
        self.region = ControlRegion(self.fds.control, vm_id)
        self.region.format()
        tap = TapSpec(MAC, 1500) if layer is LayerId.TCP else None
        self.edge = EdgeMemory.create(holder, Edge(LayerId.TCP, LayerId.TLS, 2, 2), SMALL)
        side = Side.FRONT if layer is LayerId.TCP else Side.BACK
        seat = EdgeSeat(self.edge.edge_id, 1, 0, side, LayerId.TLS)
        service = ServiceSeat("https", (ip_address("192.0.2.1"), ip_address("2001:db8::1")), 443, 6, 0)
        assignment = Assignment(layer, (seat,), (service,), MAC, 1500)
        number = self.region.assign(assignment, [])
        self.spec = InstanceSpec(vm_id, run_dir, self.fds.facts.socket)
        self.outfit = Outfit(number, assignment, (EdgeGrant(self.edge.edge_id, self.edge.fd),), tap, 16)

    async def started(self, driver: ProcessDriver | None = None) -> Running:
        """Runs, and has what its assignment needs."""
        driver = driver or ProcessDriver()
        running = await driver.start(self.spec)
        try:
            await driver.plug(running, self.outfit)
        except BaseException:
            await driver.stop(running)
            raise
        return running

    async def ready(self) -> Report:
        """Waits for the instance's doorbell and returns what it said."""
        rung = asyncio.Event()
        bells = Doorbells(lambda _: rung.set())
        bells.add(self.spec.vm_id, self.fds.manager)
        asyncio.get_running_loop().add_reader(bells, bells.ready)
        async with asyncio.timeout(10):
            await rung.wait()
        asyncio.get_running_loop().remove_reader(bells)
        bells.close()
        report = self.region.report()
        assert report
        return report

    def close(self) -> None:
        self.region.close()
        self.edge.close()
        self.fds.close()


@pytest.fixture
def place(holder: HolderClient, run_dir: Path) -> Iterator[Callable[..., Place]]:
    made = []

    def make(vm_id: int = 3, layer: LayerId = LayerId.TLS) -> Place:
        made.append(Place(holder, run_dir, vm_id, layer))
        return made[-1]

    yield make
    for each in made:
        each.close()


# ---- instances


@pytest.mark.usefixtures("programs")
def test_instance_starts_with_its_edges(place: Callable[..., Place], holder: HolderClient) -> None:
    mine = place()

    async def run() -> None:
        running = await mine.started()
        report = await mine.ready()
        assert (report.status.state, report.text) == (VmState.READY, "1/258=/memfd:sl-edge-tcp-tls lo")
        assert holder.instance_get(3).facts.connected
        assert f"uid {UID_BASE + 3} starts" in running.log_path.read_text()
        assert running.alive
        adopted = await ProcessDriver().adopt(mine.spec, running.pid, os.dup(running.grants))
        assert adopted
        adopted.close()
        assert await ProcessDriver().adopt(mine.spec, os.getpid(), os.dup(running.grants)) is None
        await ProcessDriver().stop(running)

    asyncio.run(run())
    assert mine.edge.intact()
    assert processes.find(mine.spec.run_dir) == [process for process in processes.find(mine.spec.run_dir)
                                                 if "pipeline.host.holder" in process.argv]


@pytest.mark.usefixtures("programs")
def test_death_of_an_instance_is_known_in_every_way(place: Callable[..., Place], holder: HolderClient) -> None:
    """By its pidfd and by the closing of its connection. (The holder reaps it only if it started the manager.)"""
    mine = place()

    async def run() -> list[str]:
        events: asyncio.Queue[dict[str, object]] = asyncio.Queue()
        stop = holder.subscribe(events.put_nowait)
        running = await mine.started()
        await mine.ready()
        os.kill(running.pid, signal.SIGSEGV)
        async with asyncio.timeout(10):
            await running.wait()
            names = [str((await events.get())["event"]) for _ in range(2)]
        stop()
        running.close()
        return names

    assert asyncio.run(run()) == ["instance.connected", "instance.gone"]


@pytest.mark.usefixtures("programs")
def test_first_layer_gets_an_interface(place: Callable[..., Place]) -> None:
    mine = place(layer=LayerId.TCP)

    async def run() -> None:
        running = await mine.started()
        report = await mine.ready()
        assert report.text == "1/258=/memfd:sl-edge-tcp-tls 2/0=socket 2/0=socket lo,eth0"
        facts = nic_facts(running.pid, "eth0")
        assert (facts.mac, facts.mtu, facts.up, facts.kind) == (MAC, 1500, True, "tun")
        tap = running.take_tap()
        assert tap is not None
        assert running.take_tap() is None
        listening = namespaces.spawn_in(running.pid, ["ss", "-ltnH"], stdout=subprocess.PIPE).communicate()[0].decode()
        assert {line.split()[3] for line in listening.splitlines()} == {"[::ffff:192.0.2.1]:443", "[2001:db8::1]:443"}
        namespaces.spawn_in(running.pid, ["ip", "addr", "add", "192.0.2.1/24", "dev", "eth0"]).wait()
        ping = namespaces.spawn_in(running.pid, ["ip", "neigh", "get", "192.0.2.9", "dev", "eth0"],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ping.wait()
        namespaces.run_in(running.pid, lambda: _send_udp("192.0.2.9"))
        async with asyncio.timeout(10):
            await processes.readable(tap)
        frame = os.read(tap, 2000)
        assert frame[6:12] == MAC                          # whole frames, no header in front
        os.close(tap)
        await ProcessDriver().stop(running)

    asyncio.run(run())
    assert "eth0" not in [name for _, name in socket.if_nameindex() if name == "eth0" and _mac_of(name) == MAC]


def _send_udp(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", (address, 9))


def _mac_of(name: str) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return fcntl.ioctl(sock, 0x8927, struct.pack("16s24x", name.encode()))[18:24]


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize(("mode", "layer", "words", "status"), [
    ("exits", LayerId.TLS, "no such layer", 1),
    ("hangs", LayerId.TLS, "did not say its pid within 0.5 s", None),
    ("dies", LayerId.TLS, "ended at once", None),
    ("lies", LayerId.TLS, "process 1 is not instance 3", None)])
def test_instance_that_does_not_start(place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch, mode: str,
                                      layer: LayerId, words: str, status: int | None) -> None:
    """One clear error, and nothing left: neither process nor descriptor nor interface."""
    monkeypatch.setenv("SWARMLINE_FAKE", mode)
    mine = place(layer=layer)
    before, links = set(os.listdir("/proc/self/fd")), socket.if_nameindex()
    with pytest.raises(LaunchError) as caught:
        asyncio.run(mine.started(ProcessDriver(start_timeout=0.5 if mode == "hangs" else 10)))
    error = caught.value
    assert words in str(error)
    assert error.exit_status == status
    assert error.vm_id == 3
    assert "--vm-id=3" in error.argv
    assert error.log_lines
    assert [p for p in processes.find(mine.spec.run_dir) if "--vm-id=3" in p.argv] == []
    assert set(os.listdir("/proc/self/fd")) == before
    assert socket.if_nameindex() == links


@pytest.mark.usefixtures("programs")
def test_no_interface_in_the_namespace_of_others(place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARMLINE_FAKE", "shares")
    mine, links = place(layer=LayerId.TCP), socket.if_nameindex()
    with pytest.raises(InstanceError, match="no network namespace of its own"):
        asyncio.run(mine.started())
    assert socket.if_nameindex() == links


def test_instance_without_a_program_or_a_holder(place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch,
                                                tmp_path: Path, holder: HolderClient) -> None:
    mine = place()
    broken = tmp_path / "swarmline-instance"
    broken.write_text("#!/nonexistent/interpreter\n")
    broken.chmod(0o755)
    monkeypatch.setenv("SWARMLINE_BIN", str(tmp_path))
    with pytest.raises(LaunchError, match="cannot run"):
        asyncio.run(ProcessDriver().start(mine.spec))
    holder.instance_remove(3)
    with pytest.raises(LaunchError, match="cannot be connected"):
        asyncio.run(ProcessDriver().start(mine.spec))


# ---- edges


def test_manager_sees_who_sits_on_an_edge(place: Callable[..., Place], holder: HolderClient) -> None:
    edge = place().edge
    table = ffi.cast("__u8 *", edge._buffer) + 4096
    rows = ffi.cast("struct sl_peer *", table)
    rows[1].incarnation, rows[1].vm_id, rows[1].state, rows[1].load, rows[1].sleeping = 7, 11, 3, 100, 1
    ffi.memmove(rows + 2, b"\xff" * 128, 128)              # hostile
    front, back = edge.peers()
    assert (front.side, front.slot, front.vm_id, front.incarnation) == (Side.FRONT, 1, 11, 7)
    assert (front.state, front.load, front.sleeping) == (VmState.ACTIVE, 100, True)
    assert (back.side, back.slot, back.state, back.load) == (Side.BACK, 0, VmState.FAILED, 1000)
    adopted = EdgeMemory.adopt(holder, edge.edge, SMALL)
    assert adopted.intact()
    assert adopted.peers()[0] == front
    ffi.cast("struct sl_region *", edge._buffer).nb_front = 60
    assert not adopted.intact()
    adopted.close()


@pytest.fixture
def free_pages() -> Iterator[None]:
    """Enough free hugepages for the smallest edge; given back at the end."""
    try:
        added = hugepages.reserve(pages_needed(TINY, SMALL))
    except HugepageError as error:
        pytest.skip(f"no hugepages to be had: {error}")
    yield
    hugepages.restore(added)


@pytest.mark.usefixtures("free_pages")
def test_edge_of_hugepages(holder: HolderClient) -> None:
    before = hugepages.pool()
    memory = EdgeMemory.create(holder, TINY, SMALL)
    assert memory.huge
    assert memory.intact()
    assert hugepages.pool().available == before.available - pages_needed(TINY, SMALL)     # all of it is reserved
    huge = Edge(LayerId.TCP, LayerId.HTTP, 64, 64)
    if pages_needed(huge) > hugepages.pool().available:
        other = EdgeMemory.create(holder, huge)
        assert not other.huge                              # none of it, rather than a part
        other.close()
    memory.close()
    holder.edge_remove(memory.edge_id)
    assert hugepages.pool().available == before.available


# ---- namespaces and interfaces


def test_function_runs_inside_the_namespace(netns: Callable[[], str]) -> None:
    name = netns()
    assert [link for _, link in namespaces.run_in(name, socket.if_nameindex)] == ["lo"]
    assert namespaces.identity(name) != namespaces.identity("")
    assert namespaces.identity(os.getpid()) == namespaces.identity("")
    assert name in namespaces.names()
    with pytest.raises(ZeroDivisionError):
        namespaces.run_in(name, lambda: 1 // 0)


@pytest.mark.parametrize("name", ["slt-none", "../x", "."])
def test_namespace_that_is_none(name: str) -> None:
    with pytest.raises(NamespaceError, match=r"no network namespace|no name"):
        namespaces.run_in(name, lambda: None)


def test_facts_of_an_interface(netns: Callable[[], str]) -> None:
    name = netns()
    script = """
        link add sl-nic0 mtu 9000 address 02:00:00:00:00:11 numrxqueues 4 type veth peer name other
        link set sl-nic0 up
        link set other up
        addr add 10.77.0.1/24 dev sl-nic0
        addr add fd77::1/64 dev sl-nic0 nodad
        route add 10.78.0.0/16 via 10.77.0.2
        route add default via 10.77.0.3
        """
    subprocess.run(["ip", "-n", name, "-b", "-"], input=script, text=True, check=True)
    facts = nic_facts(name, "sl-nic0")
    assert (facts.mac, facts.mtu, facts.kind, facts.up) == (bytes.fromhex("020000000011"), 9000, "veth", True)
    assert facts.rx_queues == 4
    assert facts.routes == (
        Gateway(ip_network("10.77.0.0/24"), None), Gateway(ip_network("10.78.0.0/16"), IPv4Address("10.77.0.2")),
        Gateway(ip_network("0.0.0.0/0"), IPv4Address("10.77.0.3")), Gateway(ip_network("fd77::/64"), None))
    assert facts.networks == (ip_network("10.77.0.0/24"), ip_network("fd77::/64"))
    assert facts.native_xdp in (True, None)
    with pytest.raises(NamespaceError, match=r"no interface 'eth7'.*there are: other, sl-nic0"):
        nic_facts(name, "eth7")
    with pytest.raises(NamespaceError, match="no Ethernet"):
        nic_facts(name, "lo")


def test_taps_that_cannot_be(netns: Callable[[], str]) -> None:
    name = netns()
    tap = tap_create(name, TapSpec(MAC, 9000))
    with pytest.raises(NamespaceError, match="cannot make the tap eth0"):
        tap_create(name, TapSpec(MAC, 1500))               # the name is taken
    with pytest.raises(NamespaceError, match="MTU 1000000"):
        tap_create(name, TapSpec(MAC, 1_000_000, "eth1"))
    os.close(tap)
    assert [link for _, link in namespaces.run_in(name, socket.if_nameindex)] == ["lo"]


# ---- router


@pytest.fixture
def router(holder: HolderClient, run_dir: Path, netns: Callable[[], str],
           monkeypatch: pytest.MonkeyPatch) -> Iterator[Router]:
    made = Router(RouterSpec(run_dir, Nic("sl-nic0", netns()), 2, Path("/nonexistent")), holder)
    monkeypatch.setattr("pipeline.host.router_link.ANSWER_TIMEOUT", 0.2)
    yield made
    made.close()


def requests_of(router: Router) -> list[list[str]]:
    """What the stand-in was asked, since the last call."""
    path = router._spec.log_path
    lines = [line.split() for line in path.read_text().splitlines()]
    path.write_text("")
    return lines


@pytest.mark.usefixtures("programs")
def test_router_learns_and_learns_again(router: Router, holder: HolderClient, netns: Callable[[], str]) -> None:
    """After a restart it is told everything, without anybody asking for it; the holder keeps the taps meanwhile."""
    tap = tap_create(netns(), TapSpec(MAC, 1500))

    async def run() -> None:
        facts = await router.start()
        assert router.process
        assert (facts.queues, facts.mtu, facts.pid) == (2, 1500, router.process.pid)
        assert namespaces.identity(facts.pid) == namespaces.identity(router._spec.nic.netns)
        router.vips_set({0: IPv4Address("10.77.0.10"), 3: IPv6Address("fd77::10")})
        router.nets_set([Gateway(ip_network("10.77.0.0/24"), None),
                         Gateway(ip_network("0.0.0.0/0"), IPv4Address("10.77.0.1"))])
        router.port_add(5, tap, [0, 3])
        os.close(tap)
        facts = router.ping()
        assert (facts.ports, facts.vips, facts.nets) == (1, 2, 2)
        told = {tuple(words[:-1]) for words in requests_of(router) if words[0] not in "17"}
        assert ("2", "5", "0", "0", "9", "00" * 16, "00" * 16, "1") in told
        assert ("6", "0", "0", "120", "0", "00" * 10 + "ffff0a4d0000", "00" * 16, "0") in told
        router.process.kill()
        await asyncio.wait_for(router.wait(), 10)
        with pytest.raises(RouterError):
            router.ping()
        facts = await router.start()
        assert (facts.ports, facts.vips, facts.nets) == (1, 2, 2)
        assert {tuple(words[:-1]) for words in requests_of(router) if words[0] not in "17"} == told
        router.vips_set({0: IPv4Address("10.77.0.10")})
        assert router.ping().vips == 1
        router.port_remove(5)
        assert (router.ping().ports, holder.fd_list()) == (0, ["router-counters"])
        totals, ports = router.counters()
        assert totals["in"] > 0
        assert ports == {}
        await router.stop()

    asyncio.run(run())


@pytest.mark.usefixtures("programs")
def test_what_is_declared_without_a_router_waits(router: Router, netns: Callable[[], str]) -> None:
    a, b = IPv4Address("10.77.0.10"), IPv4Address("10.77.0.11")
    taps = [tap_create(netns(), TapSpec(MAC, 1500)) for _ in range(2)]

    async def run() -> None:
        router.vips_set({0: a, 1: b})
        router.port_add(5, taps[0], [0])
        with pytest.raises(RouterError, match="no router at"):
            router.ping()
        facts = await router.start()
        assert (facts.ports, facts.vips) == (1, 2)
        router.vips_set({0: b, 1: a})                      # no address may be in two slots meanwhile
        assert router.process
        os.kill(router.process.pid, signal.SIGSTOP)        # alive, but it does not answer in time
        router.port_add(6, taps[1], [0])
        router.port_remove(5)
        os.kill(router.process.pid, signal.SIGCONT)
        router.nets_set([Gateway(ip_network("10.77.0.0/24"), None)])
        facts = router.ping()
        assert (facts.ports, facts.vips, facts.nets) == (1, 2, 1)
        await router.stop()

    asyncio.run(run())
    for tap in taps:
        os.close(tap)


@pytest.mark.usefixtures("programs")
def test_router_is_adopted_by_the_next_manager(router: Router, holder: HolderClient,
                                               netns: Callable[[], str]) -> None:
    async def run() -> None:
        await router.start()
        for vm_id in (5, 6):
            tap = tap_create(netns(), TapSpec(MAC, 1500))
            router.port_add(vm_id, tap, [0])
            os.close(tap)
        router.close()
        after = Router(router._spec, holder)
        after.port_restore(5, [0])                         # 6 died meanwhile
        adopted = after.adopt()
        assert adopted
        assert router.process
        assert adopted.pid == router.process.pid
        assert after.ping().ports == 1
        assert holder.fd_list() == ["router-counters", "tap-5"]
        await after.stop()
        assert after.adopt() is None

    asyncio.run(run())


@pytest.mark.usefixtures("programs")
def test_router_that_does_not_start(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARMLINE_FAKE", "exits")
    with pytest.raises(RouterError, match=r"exit status 3\).*load the classifier first"):
        asyncio.run(router.start())
    assert lib.SL_RTR_COUNTER_NB > 0


def test_running_closes_what_it_owns(netns: Callable[[], str]) -> None:
    process = processes.Process.of(os.getpid())
    assert process
    pidfd = process.open()
    assert pidfd is not None
    tap = tap_create(netns(), TapSpec(MAC, 1500))
    running = Running(1, process, pidfd, Path("/dev/null"), tap)
    running.close()
    running.close()
    for fd in (pidfd, tap):
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
