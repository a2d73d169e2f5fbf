# SPDX-License-Identifier: Apache-2.0
"""A router under test: a lab, a stub classifier, and one instance that is nothing but a network namespace.

What the manager and a ``tcp`` instance do for the router (see c/abi/router.h) is done here by ``Rig``.
"""

import array
import json
import mmap
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cffi
from scapy.layers.l2 import Ether
from scapy.packet import Packet
from support import ROOT
from support.lab import Lab, in_netns, lab_made, netns_made
from support.leftovers import leftovers

from pipeline.host.vhost import admit, folder_make

INSTALLED = shutil.which("swarmline-router", path=Path(sys.executable).parent)
PROGRAM = os.environ.get("SWARMLINE_ROUTER") or INSTALLED
VM_ID = 1
VIPS = ("10.77.0.10", "fd77::10")
NEXT_HOPS = ("169.254.77.1", "fe80::1")
ROUTER_GID = 65534         # of a router that is told no other
ROUTER_MAC = "02:73:6c:00:00:01"

IFF_TUN, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x0002, 0x1000, 0x4000
ETH_P_ALL, SOL_PACKET, PACKET_AUXDATA = 3, 263, 8
TP_STATUS_VLAN_VALID = 0x10

ffi = cffi.FFI()
for bits in (8, 16, 32, 64):
    ffi.cdef(f"typedef uint{bits}_t __u{bits}; typedef int{bits}_t __s{bits};")
for header in ("base.h", "router.h"):
    ffi.cdef(re.sub(r"(?m)^\s*(#.*|_Static_assert.*;)$", "", (ROOT / "c/abi" / header).read_text()))
ABI = ffi.dlopen(None)
COUNTERS = {name: number for number, name in ffi.typeof("enum sl_rtr_counter").elements.items()}

# Each opens something in the namespace that it runs in, and sends it to its standard input.
OPEN_TAP = """
import fcntl, os, socket, struct, sys
fd = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", sys.argv[1].encode(), int(sys.argv[2])))
socket.send_fds(socket.socket(fileno=0), [b"tap"], [fd])
"""
OPEN_WIRE = """
import socket
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
socket.send_fds(socket.socket(fileno=0), [b"wire"], [wire.fileno()])
"""

SERVER = """
import socket, threading
def echo(conn):
    while data := conn.recv(1 << 16):
        conn.sendall(data)
    conn.close()
listener = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
print("listening", flush=True)
while True:
    threading.Thread(target=echo, args=listener.accept()[:1], daemon=True).start()
"""

# Sends bytes both ways at once; prints whether the same came back, and the segment size.
ECHO = """
import random, socket, sys, threading
body = random.Random(1).randbytes(int(sys.argv[2]))
conn = socket.create_connection((sys.argv[1], 80), timeout=20)
def send():
    conn.sendall(body)
    conn.shutdown(socket.SHUT_WR)
sender = threading.Thread(target=send)
sender.start()
back = b"".join(iter(lambda: conn.recv(1 << 16), b""))
sender.join()
print(back == body, conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))
"""

# A connection that stays: echoes each line of its input through it.
TALK = """
import socket, sys
conn = socket.create_connection((sys.argv[1], 80), timeout=20)
for line in sys.stdin:
    conn.sendall(line.encode())
    print(conn.makefile().readline(), end="", flush=True)
"""

# A connection that has had its answer and waits for more; prints how it ends.
WAIT = """
import socket, sys
conn = socket.create_connection((sys.argv[1], 80), timeout=20)
conn.sendall(b"hello")
print(len(conn.recv(5, socket.MSG_WAITALL)), conn.getsockname()[1], flush=True)
try:
    print("fin" if not conn.recv(1) else "data")
except ConnectionResetError:
    print("reset")
"""


def run(*argv: str, **options: Any) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, **options)
    assert done.returncode == 0, f"{argv}\n{done.stdout}{done.stderr}"
    return str(done.stdout)


def cast(address: str) -> bytes:
    """An address as it is on the control socket: 16 bytes, IPv4 mapped."""
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address)
    return b"\0" * 10 + b"\xff\xff" + socket.inet_aton(address)


def stub_built(folder: Path) -> Path:
    """The stub classifier, compiled."""
    built = folder / "stub.o"
    multiarch = run("gcc", "-print-multiarch").strip()
    flags = f"-O2 -g -target bpf -mcpu=v3 -I{ROOT}/c -idirafter /usr/include/{multiarch} -c".split()
    run("clang", *flags, str(ROOT / "tests/system/stub.bpf.c"), "-o", str(built))
    return built


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until condition holds; fail after seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def opened_in(namespace: str, script: str, *argv: str) -> int:
    """The descriptor that a script opens in a namespace."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        run(*in_netns(namespace, sys.executable, "-c", script, *argv), stdin=theirs)
        return socket.recv_fds(ours, 16, 1)[1][0]


def tap_made(namespace: str, name: str = "eth0", flags: int = IFF_TAP | IFF_NO_PI) -> int:
    return opened_in(namespace, OPEN_TAP, name, str(flags))


class Wire:
    """Frames to and from eth0 of a namespace, past its kernel."""

    def __init__(self, namespace: str) -> None:
        self._socket = socket.socket(fileno=opened_in(namespace, OPEN_WIRE))
        self._socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self._socket.bind(("eth0", ETH_P_ALL))
        self._socket.settimeout(10)

    def send(self, frame: Packet) -> None:
        self._socket.send(bytes(frame))

    def receive(self, matches: Callable[[Packet], object]) -> Packet:
        """The next frame that matches; TimeoutError if there is none."""
        while True:
            data, ancillary, _, _ = self._socket.recvmsg(1 << 16, 256)
            for _, _, aux in ancillary:  # the kernel takes the outermost tag out of the frame
                status, _, _, _, _, tci, tpid = struct.unpack("IIIHHHH", aux)
                if status & TP_STATUS_VLAN_VALID:
                    data = data[:12] + struct.pack("!HH", tpid, tci) + data[12:]
            if matches(frame := Ether(data)):
                return frame

    def close(self) -> None:
        self._socket.close()


class Rig:
    """A lab with a router and one instance's namespace."""

    def __init__(self, lab: Lab, mtu: int, instance: str, run_dir: Path) -> None:
        self.lab, self.mtu, self.instance, self.run_dir = lab, mtu, instance, run_dir
        self.mac = json.loads(run("ip", "-j", "-n", lab.host, "link", "show", lab.nic))[0]["address"]
        size = ffi.sizeof("struct sl_rtr_counters")
        self.counters_fd = os.memfd_create("counters")
        os.ftruncate(self.counters_fd, size)
        self._memory = mmap.mmap(self.counters_fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        self.tap_fd = tap_made(instance)
        self.process: subprocess.Popen[str] | None = None

    def instance_configure(self) -> None:
        """The network set-up of an instance."""
        for command in (
            f"link set eth0 address {self.mac} mtu {self.mtu}",
            *(f"addr add {vip} dev eth0 {'nodad' if ':' in vip else ''}" for vip in VIPS),
            "link set eth0 up",
            *(f"neigh add {hop} lladdr {ROUTER_MAC} dev eth0 nud permanent" for hop in NEXT_HOPS),
            "route add 169.254.77.1 dev eth0",
            "route add default via 169.254.77.1",
            "-6 route add default via fe80::1 dev eth0",
        ):
            run("ip", "-n", self.instance, *command.split())

    def vhost_folder(self, vm_id: int, user: int | None = None) -> Path:
        """Where a QEMU that runs as this user listens, open for the router."""
        folder = folder_make(self.run_dir, vm_id, os.getuid() if user is None else user)
        admit(self.run_dir, vm_id, ROUTER_GID)
        return folder

    def classifier_attach(self, stub: Path) -> None:
        # below the mount point: where the folder of a pin is no bpffs, bpftool mounts one over it
        progs, maps = self.run_dir / "bpf/progs", self.run_dir / "bpf/maps"
        run("bpftool", "prog", "loadall", str(stub), str(progs), "pinmaps", str(maps))
        attach = ("bpftool", "net", "attach", "xdpdrv", "pinned", str(progs / "stub"), "dev", self.lab.nic)
        run(*in_netns(self.lab.host, *attach))

    @contextmanager
    def classifier_broken(self, how: int) -> Iterator[None]:
        """The stub gives wrong verdicts; how: see stub.bpf.c."""
        broken = str(self.run_dir / "bpf/maps/broken")
        update = ("bpftool", "map", "update", "pinned", broken, "key", *"0000", "value")
        run(*update, str(how), *"000")
        try:
            yield
        finally:
            run(*update, *"0000")

    def router_popen(self, *extra: str, ifname: str = "") -> subprocess.Popen[str]:
        argv = (
            str(PROGRAM),
            f"--run-dir={self.run_dir}",
            f"--ifname={ifname or self.lab.nic}",
            "--queues=1",
            f"--xskmap={self.run_dir}/bpf/maps/xsks",
            f"--counters-fd={self.counters_fd}",
            *extra,
        )
        command = in_netns(self.lab.host, *argv)
        return subprocess.Popen(command, pass_fds=[self.counters_fd], stderr=subprocess.PIPE, text=True)

    def router_start(self) -> None:
        self.process = self.router_popen()
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert "event=ready" in line, line + self.process.stderr.read()

    def router_configure(self) -> None:
        """Everything that a new router must be told."""
        for slot, vip in enumerate(VIPS):
            assert self.ask("VIP_ADD", slot=slot, addr=cast(vip)).status == 0
        for prefix, length, gateway in (
            ("10.77.0.0", 96 + 24, ""),
            ("fd77::", 64, ""),
            ("0.0.0.0", 96, self.lab.client_ip4),
            ("::", 0, self.lab.client_ip6),
        ):
            via = cast(gateway) if gateway else bytes(16)
            assert self.ask("NET_ADD", addr=cast(prefix), prefix_len=length, gateway=via).status == 0
        reply = self.port_add()
        assert (reply.status, reply.nb_port, reply.nb_vip, reply.nb_net) == (0, 1, 2, 4)

    def port_add(self, vips: int = 0b11) -> Any:
        return self.ask("PORT_ADD", fds=(self.tap_fd,), vm_id=VM_ID, vips=vips)

    def router_stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        assert self.process.stderr is not None
        self.process.send_signal(how)
        status = self.process.wait(timeout=10)
        self.process.stderr.close()
        (self.run_dir / "router.sock").unlink()
        return status

    def send(self, packet: bytes, fds: tuple[int, ...] = ()) -> Any:
        """Send a packet to the router's control socket; return its reply."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as conn:
            conn.settimeout(10)
            conn.connect(str(self.run_dir / "router.sock"))
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            conn.sendmsg([packet], rights)
            return ffi.from_buffer("struct sl_rtr_reply *", bytearray(conn.recv(4096)))

    def ask(self, request: str, fds: tuple[int, ...] = (), **fields: Any) -> Any:
        message = ffi.new("struct sl_rtr_request *")
        message.version, message.type, message.seq = ABI.SL_ABI_VERSION, getattr(ABI, f"SL_RTR_{request}"), 7
        for name, value in fields.items():
            setattr(message, name, value)
        reply = self.send(bytes(ffi.buffer(message)), fds)
        assert (reply.type, reply.seq) == (message.type, 7)
        return reply

    def count(self, name: str) -> int:
        return int(self._counters().total[COUNTERS[f"SL_RTR_{name}"]])

    def _counters(self) -> Any:
        return ffi.from_buffer("struct sl_rtr_counters *", self._memory)

    def port(self, vm_id: int = VM_ID) -> Any:
        """The counters of an instance's port."""
        return self._counters().port[vm_id]

    @contextmanager
    def counted(self, name: str) -> Iterator[None]:
        """The block makes a counter grow by one or more, at once or soon after."""
        before = self.count(name)
        yield
        eventually(lambda: self.count(name) > before)

    @contextmanager
    def server(self) -> Iterator[None]:
        """An echo server on port 80 of the instance."""
        command = in_netns(self.instance, sys.executable, "-c", SERVER)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == "listening\n"
                yield
            finally:
                process.kill()

    def close(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.router_stop()
        self._memory.close()
        os.close(self.tap_fd)
        os.close(self.counters_fd)


@contextmanager
def bpffs_mounted(folder: Path) -> Iterator[None]:
    folder.mkdir()
    run("mount", "-t", "bpf", "bpf", str(folder))
    try:
        yield
    finally:
        run("umount", str(folder))


@contextmanager
def rig_made(stub: Path, mtu: int) -> Iterator[Rig]:
    """A rig whose router is configured and whose instance serves; nothing is left of it afterwards."""
    run_dir = Path(tempfile.mkdtemp(prefix="slt-", dir="/tmp"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, run_dir)
        lab = stack.enter_context(lab_made(mtu=mtu, far=True))
        instance = stack.enter_context(netns_made("tcp"))
        stack.enter_context(bpffs_mounted(run_dir / "bpf"))
        rig = Rig(lab, mtu, instance, run_dir)
        stack.callback(rig.close)
        rig.instance_configure()
        rig.classifier_attach(stub)
        rig.router_start()
        rig.router_configure()
        stack.enter_context(rig.server())
        yield rig
    assert not leftovers(run_dir)
