# SPDX-License-Identifier: Apache-2.0
"""One guest for tests: a real holder, a control region, QEMU under TCG, and edges that are plugged in by QMP."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pipeline._native import lib

from pipeline.host.assignment import Assignment, EdgeSeat, struct_bytes
from pipeline.host.control import Command, ControlRegion
from pipeline.host.doorbells import ring
from pipeline.host.edges import EdgeMemory, Sizes
from pipeline.host.holder_client import HolderClient
from pipeline.host.images import Image
from pipeline.host.ivshmem import BELLS
from pipeline.host.report import Report
from pipeline.policy.model import Edge, LayerId, Side, VmState

T = TypeVar("T")
Measured = Callable[[str, float], None]

BOOT_TIMEOUT = 14.0
# Boots faster under TCG; nothing that an instance could notice.
KERNEL_ARGUMENTS = "console=ttyS0 quiet panic=-1 cryptomgr.notests mitigations=off nokaslr no_timer_check"
MACHINE = ("-M", "pc", "-accel", "tcg", "-cpu", "max", "-m", "128", "-nodefaults", "-display", "none", "-no-reboot")
SMALL = Sizes(nb_small=64, nb_big=16)        # an edge of 2 MiB: a PCI BAR is a power of two
HTTP_APP = Edge(LayerId.HTTP, LayerId.APP, 1, 1)


class Qmp:
    """QEMU's monitor: one command at a time, events kept for whoever waits for them."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lines = sock.makefile("r")
        self._events: list[dict[str, Any]] = []
        assert "QMP" in self._next()
        self("qmp_capabilities")

    def __call__(self, command: str, fd: int | None = None, **arguments: Any) -> Any:
        data = json.dumps({"execute": command, "arguments": arguments}).encode()
        ancillary = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))]
        self._sock.sendmsg([data], ancillary)
        while True:
            answer = self._next()
            if "event" in answer:
                self._events.append(answer)
                continue
            assert "return" in answer, f"{command}: {answer}"
            return answer["return"]

    def event(self, name: str) -> dict[str, Any]:
        """The next event of that name."""
        while True:
            for event in self._events:
                if event["event"] == name:
                    self._events.remove(event)
                    return event
            self._events.append(self._next())

    def _next(self) -> dict[str, Any]:
        line = self._lines.readline()
        assert line, "QEMU has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._lines.close()
        self._sock.close()


class Guest:
    """A booted or booting guest, its control region, and the manager's ends of its doorbells."""

    def __init__(self, image: Image, run_dir: Path, holder: HolderClient, vm_id: int, stack: ExitStack) -> None:
        self.image, self.run_dir, self.holder, self.vm_id = image, run_dir, holder, vm_id
        self.fds = holder.instance_add(vm_id)
        stack.callback(self.fds.close)
        self.control = ControlRegion(self.fds.control, vm_id)
        stack.callback(self.control.close)
        self.control.format()
        self.console = run_dir / f"console-{vm_id}.log"
        self._stack = stack
        self._rung = select.epoll()
        stack.callback(self._rung.close)
        self._rung.register(self.fds.manager, select.EPOLLIN | select.EPOLLET)

    # ---- the machine

    def start(self, *more: str, kernel_arguments: str = "", initramfs: Path | None = None) -> None:
        """Boots; with the doorbell device, unless ``more`` says otherwise."""
        ours, theirs = socket.socketpair()
        ours.settimeout(BOOT_TIMEOUT)
        argv = ["qemu-system-x86_64", *MACHINE, "-kernel", str(self.image.kernel),
                "-initrd", str(initramfs or self.image.initramfs),
                "-append", f"{KERNEL_ARGUMENTS} {kernel_arguments}", "-serial", f"file:{self.console}",
                "-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control",
                *(more or ("-chardev", f"socket,id=iv,path={self.fds.facts.socket}",
                           "-device", f"ivshmem-doorbell,chardev=iv,vectors={BELLS}"))]
        self.started = time.monotonic()
        self.qemu = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        self._stack.callback(self._end)
        theirs.close()
        self.qmp = Qmp(ours)
        self._stack.callback(self.qmp.close)

    def _end(self) -> None:
        self.qemu.kill()
        self.qemu.wait()

    def template_save(self, state: Path) -> None:
        """Saves the running guest, whose memory is a shared file and is not saved with it, and ends it."""
        self._ignore_shared()
        self.qmp("migrate", uri=f"exec:cat > {state}")
        while (status := self.qmp("query-migrate")["status"]) != "completed":
            assert status in {"setup", "active", "device"}, status
            time.sleep(0.005)
        self._end()

    def template_load(self, state: Path) -> None:
        """Of a guest started with ``-incoming defer``: goes on where the template was saved."""
        self._ignore_shared()
        self.qmp("migrate-incoming", uri=f"exec:cat {state}")
        self.qmp.event("RESUME")

    def _ignore_shared(self) -> None:
        self.qmp("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])

    def plug_doorbell(self) -> None:
        """For a guest that was started without. Once for its life."""
        address = {"type": "unix", "data": {"path": str(self.fds.facts.socket)}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        self.qmp("chardev-add", id="iv", backend=backend)
        self.qmp("device_add", driver="ivshmem-doorbell", id="iv0", chardev="iv", vectors=BELLS)

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.qemu.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> dict[str, int]:
        """Of QEMU: kB by the names of /proc/PID/smaps_rollup."""
        lines = Path(f"/proc/{self.qemu.pid}/smaps_rollup").read_text().splitlines()[1:]
        return {line.split(":")[0]: int(line.split()[1]) for line in lines}

    # ---- the instance

    def assign(self, *edges: EdgeMemory) -> int:
        seats = tuple(EdgeSeat(e.edge_id, 7 + n, 0, Side.BACK, LayerId(e.edge.front)) for n, e in enumerate(edges))
        conf = struct_bytes("sl_app_conf", echo=1, max_requests=64)
        return self.control.assign(Assignment(LayerId.APP, seats), [(lib.SL_CONF_APP, conf)])

    def edge(self, edge: Edge = HTTP_APP, sizes: Sizes = SMALL) -> EdgeMemory:
        """Makes an edge. Whoever has the holder's number can plug it."""
        memory = EdgeMemory.create(self.holder, edge, sizes)
        self._stack.callback(self.holder.edge_remove, memory.edge_id)
        self._stack.callback(memory.close)
        return memory

    def plug(self, memory: EdgeMemory, name: str = "edge0") -> None:
        """QEMU gets the memfd itself and opens it by its own number: it needs no path and no rights."""
        fdset = self.qmp("add-fd", fd=memory.fd)
        self.qmp("object-add", **{"qom-type": "memory-backend-file", "id": f"m-{name}", "share": True,
                                  "size": memory.length, "mem-path": f"/proc/self/fd/{fdset['fd']}"})
        self.qmp("remove-fd", **{"fdset-id": fdset["fdset-id"]})
        self.qmp("device_add", driver="ivshmem-plain", id=name, memdev=f"m-{name}")

    def unplug(self, name: str = "edge0") -> None:
        self.qmp("device_del", id=name)

    def command(self, command: Command) -> int:
        seq = self.control.command(command)
        ring(self.fds.doorbell)
        return seq

    def ring(self) -> None:
        ring(self.fds.doorbell)

    def until(self, wanted: Callable[[Report], T], what: str, timeout: float = BOOT_TIMEOUT) -> T:
        """What ``wanted`` makes of the first report for which it is true. Looks when the guest rings, and every
        20 ms."""
        deadline = time.monotonic() + timeout
        while True:
            report = self.control.report()
            if report is not None and (found := wanted(report)):
                return found
            assert self.qemu.poll() is None, f"QEMU ended: {self.said()}"
            late = f"not within {timeout:g} s: {what}; {report and report.text}\n{self.said()}"
            assert time.monotonic() < deadline, late
            self._rung.poll(0.02)

    def until_state(self, state: VmState, timeout: float = BOOT_TIMEOUT) -> Report:
        """Of the present assignment."""
        def reached(r: Report) -> Report | None:
            return r if r.status.state is state and r.assignment_seen == self.control.assigned else None

        return self.until(reached, f"state {state.name}", timeout)

    def until_warm(self) -> Report:
        """Ready, and without a layer."""
        def warm(r: Report) -> Report | None:
            return r if r.status.state is VmState.READY and not r.status.protocol_layers else None

        return self.until(warm, "warm")

    def rung(self, timeout: float) -> bool:
        """Waits until the guest rings the manager."""
        return bool(self._rung.poll(timeout))

    def rung_forget(self) -> None:
        self._rung.poll(0)

    def said(self) -> str:
        return self.console.read_text(errors="replace")[-3000:] if self.console.exists() else ""


@contextmanager
def holder_made(run_dir: Path) -> Iterator[HolderClient]:
    """A holder of its own, until the end of the block."""
    argv = [sys.executable, "-P", "-m", "pipeline.host.holder", f"--run-dir={run_dir}"]
    with (run_dir.with_suffix(".log")).open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
    try:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        with HolderClient(run_dir) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
        run_dir.with_suffix(".log").unlink()


@contextmanager
def guest_made(image: Image, run_dir: Path, holder: HolderClient, vm_id: int = 5) -> Iterator[Guest]:
    """A guest that is not started yet."""
    with ExitStack() as stack:
        guest = Guest(image, run_dir, holder, vm_id, stack)
        stack.callback(holder.instance_remove, vm_id)
        yield guest
