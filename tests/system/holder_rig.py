# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the C programs, and what a manager prepares for an instance.

The stand-ins speak the real argv, handshake and messages, so that each failure of a program can be played.
"""

import asyncio
from ipaddress import ip_address
from pathlib import Path

from pipeline.host.assignment import Assignment, EdgeSeat, ServiceSeat
from pipeline.host.control import ControlRegion
from pipeline.host.doorbells import Doorbells
from pipeline.host.edges import EdgeMemory, Sizes
from pipeline.host.holder_client import HolderClient, InstanceFds
from pipeline.host.report import Report
from pipeline.host.tap import TapSpec
from pipeline.instances.driver import EdgeGrant, InstanceSpec, Outfit, Running
from pipeline.instances.process import ProcessDriver
from pipeline.policy.model import Edge, LayerId, Side

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
