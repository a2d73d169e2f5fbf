# SPDX-License-Identifier: Apache-2.0
"""What the tests of test_host.py run on the machine of ``host_rig``, which calls these functions by name."""

import asyncio
import contextlib
import ctypes
import dataclasses
import faulthandler
import fcntl
import json
import mmap
import os
import re
import select
import struct
import subprocess
import time
import traceback
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import errors
from pipeline.host import passthrough
from pipeline.host.classifier import Classifier, mount_pins, umount_pins
from pipeline.host.hardware import inventory, pci_inventory
from pipeline.host.in_use import group_users
from pipeline.host.vfio import RECORD, Vfio
from pipeline.policy.hardware import Function, Machine

RUN_DIR = Path("/run/swarm")
EDU, NVME, CRYPTO, VIRTIO_NET = ("1234", "11e8"), ("1b36", "0010"), ("1af4", "1054"), ("1af4", "1000")
QEMU_USER = 700_001
PAGE_LEN = 2 << 20
SLOW = 100           # seconds for one call: a tenth is usual
PATIENCE = 60.0


def serve(functions: dict[str, Any]) -> None:
    """Answers calls of these functions on the second serial line, for ever. With ``SLOW`` among them."""
    RUN_DIR.mkdir(parents=True, exist_ok=True)
    line = os.open("/dev/ttyS1", os.O_RDWR)
    tty.setraw(line)
    out, answer = os.fdopen(os.dup(line), "w"), {"result": "ready"}
    requests = os.fdopen(line)
    while True:
        out.write(json.dumps(answer) + "\n")
        out.flush()
        name, *arguments = json.loads(requests.readline())
        # to the console: whoever waits for an answer shows it. It may be the end of us, if other threads run
        faulthandler.dump_traceback_later(functions["SLOW"])
        try:
            answer = {"result": functions[name](*arguments)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        faulthandler.cancel_dump_traceback_later()


# ---- helpers

def owner(*allow: str) -> Vfio:
    """With all the time that a busy machine may need."""
    return Vfio(RUN_DIR, allow, patience=PATIENCE)


def of(machine: Machine, numbers: tuple[str, str]) -> list[Function]:
    return [f for f in machine.functions if (f.vendor, f.device) == numbers]


def now(address: str) -> Function:
    found = pci_inventory().function(address)
    assert found
    return found


def edu_alone() -> str:
    """The one behind a port of its own."""
    machine = pci_inventory()
    return next(f.address for f in of(machine, EDU) if not machine.companions(f))


def refusal(action: Any, *arguments: Any) -> list[str]:
    """Class and text of the error that this ends with."""
    try:
        action(*arguments)
    except errors.HardwareError as error:
        return [type(error).__name__, str(error)]
    return ["", "nothing was refused"]


def log_of_kernel(pattern: str) -> list[str]:
    text = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    return [line for line in text.splitlines() if re.search(pattern, line)]


# ---- inventory

def machine_facts() -> dict[str, Any]:
    machine = inventory()
    return {"iommu": machine.iommu, "nodes": len(machine.nodes), "cpus": len(machine.cpus),
            "functions": [dataclasses.asdict(f) | {"isolation": machine.isolation(f), "kind": f.kind}
                          for f in machine.functions]}


# ---- the kernel

def classifier_loads() -> list[str]:
    """Names of the maps that the classifier has here."""
    root = mount_pins(RUN_DIR)
    try:
        Classifier.load(root).close()
        return sorted(pin.name for pin in root.iterdir())
    finally:
        umount_pins(RUN_DIR)


# ---- edu: DMA and MSI

class Device:
    """A function in a VFIO container, with one hugepage that it may reach at IOVA."""

    IOVA = 0x200000

    def __init__(self, address: str) -> None:
        group = now(address).group
        self._container = os.open("/dev/vfio/vfio", os.O_RDWR)
        self._group = os.open(f"/dev/vfio/{group}", os.O_RDWR)
        fcntl.ioctl(self._group, 0x3B68, struct.pack("i", self._container))     # VFIO_GROUP_SET_CONTAINER
        fcntl.ioctl(self._container, 0x3B66, 3)                                 # VFIO_SET_IOMMU, type 1 v2
        self.memory = mmap.mmap(-1, PAGE_LEN, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)     # MAP_HUGETLB
        self._pin = ctypes.c_char.from_buffer(self.memory)
        dma_map = struct.pack("IIQQQ", 32, 3, ctypes.addressof(self._pin), self.IOVA, PAGE_LEN)
        fcntl.ioctl(self._container, 0x3B71, dma_map)                           # VFIO_IOMMU_MAP_DMA
        self.fd = fcntl.ioctl(self._group, 0x3B6A, bytearray(address.encode() + b"\0"))     # ..._GET_DEVICE_FD
        info = bytearray(struct.pack("6I", 24, 0, 0, 0, 0, 0))
        fcntl.ioctl(self.fd, 0x3B6B, info)                                      # VFIO_DEVICE_GET_INFO
        self.can_reset = bool(struct.unpack("6I", info)[1] & 1)
        self._config = self._region(7)[0]
        os.pwrite(self.fd, struct.pack("<H", self.config_word(4) | 6), self._config + 4)     # memory, bus master

    def config_word(self, offset: int) -> int:
        return int(struct.unpack("<H", os.pread(self.fd, 2, self._config + offset))[0])

    def registers(self) -> mmap.mmap:
        offset, length = self._region(0)
        return mmap.mmap(self.fd, length, mmap.MAP_SHARED, offset=offset)

    def interrupts(self) -> int:
        """An eventfd for MSI 0."""
        event = os.eventfd(0, os.EFD_NONBLOCK)
        set_irqs = struct.pack("5Ii", 24, 1 << 2 | 1 << 5, 1, 0, 1, event)
        fcntl.ioctl(self.fd, 0x3B6E, set_irqs)                                  # VFIO_DEVICE_SET_IRQS
        return event

    def unmap(self) -> None:
        fcntl.ioctl(self._container, 0x3B72, bytearray(struct.pack("IIQQ", 24, 0, self.IOVA, PAGE_LEN)))

    def close(self) -> None:
        """Mappings of the device's memory must be gone as well: they hold it."""
        for fd in (self.fd, self._group, self._container):
            os.close(fd)

    def _region(self, index: int) -> tuple[int, int]:
        info = bytearray(struct.pack("4IQQ", 32, 0, index, 0, 0, 0))
        fcntl.ioctl(self.fd, 0x3B6C, info)                                      # VFIO_DEVICE_GET_REGION_INFO
        _, _, _, _, length, offset = struct.unpack("4IQQ", info)
        return offset, length


class Edu:
    """QEMU's teaching device (docs/specs/edu): a factorial, and DMA that takes 100 ms."""

    INSIDE = 0x40000

    def __init__(self, device: Device) -> None:
        self._device = device
        self._map = device.registers()
        self._event = device.interrupts()

    def close(self) -> None:
        os.close(self._event)
        self._map.close()

    def word(self, offset: int) -> ctypes.c_uint32:
        return ctypes.c_uint32.from_buffer(self._map, offset)

    def dma(self, source: int, target: int, length: int, *, to_ram: bool) -> bool:
        """True: its interrupt came."""
        for offset, value in ((0x80, source), (0x88, target), (0x90, length), (0x98, 1 | to_ram << 1 | 4)):
            ctypes.c_uint64.from_buffer(self._map, offset).value = value
        came = bool(select.select([self._event], [], [], 10)[0]) and os.eventfd_read(self._event) > 0
        self.word(0x64).value = self.word(0x24).value          # acknowledged
        return came


def edu_dma() -> dict[str, Any]:
    """The whole life of a passed device with one owner, who reads and writes through the IOMMU."""
    Path("/proc/sys/vm/nr_hugepages").write_text("4")
    address = edu_alone()
    vfio = owner(address)
    vfio.take(address)
    vfio.hand_over(address)
    device = Device(address)
    held = refusal(owner(address).take, address)
    edu, memory, found = Edu(device), device.memory, {"can_reset": device.can_reset, "held": held}
    edu.word(4).value = 0x12345678
    found["alive"] = edu.word(4).value == ~0x12345678 & 0xFFFFFFFF
    pattern = bytes((i * 7 + 3) & 0xFF for i in range(1024))
    memory[:1024], memory[8192:9216] = pattern, bytes(1024)
    found["interrupts"] = [edu.dma(device.IOVA, edu.INSIDE, 1024, to_ram=False),
                           edu.dma(edu.INSIDE, device.IOVA + 8192, 1024, to_ram=True)]
    found["copied"] = memory[8192:9216] == pattern
    memory[8192:9216] = bytes(1024)
    device.unmap()
    edu.dma(edu.INSIDE, device.IOVA + 8192, 1024, to_ram=True)
    found["blocked"] = memory[8192:9216] == bytes(1024)
    found["faults"] = log_of_kernel(r"DMAR:.*DMA Write.*fault addr 0x20[02]000")
    found["users"] = group_users(Path(f"/dev/vfio/{now(address).group}"), Path("/proc"))
    found["own_pid"] = os.getpid()
    edu.close()
    device.close()
    vfio.give_back(address)
    found["driver"], found["record"] = now(address).driver, (RUN_DIR / RECORD).exists()
    return found


# ---- SR-IOV

def sriov_life() -> dict[str, Any]:
    """VFs made, taken, used, and given back, once in order and once after a death."""
    (pf,) = (f for f in of(pci_inventory(), NVME) if f.total_vfs)
    vfio, found = owner(pf.address), {"total": pf.total_vfs, "driver": pf.driver}
    made = vfio.make_vfs(pf.address, 3)
    machine = pci_inventory()
    vfs = [f for f in machine.functions if f.physical == pf.address]
    found["made"], found["groups"] = [f.address for f in vfs] == list(made), len({f.group for f in vfs})
    found["drivers"] = [f.driver for f in vfs]
    found["isolation"] = [machine.isolation(f) for f in vfs]
    found["resets"] = [list(f.resets) for f in vfs]
    for address in made[:2]:
        vfio.take(address)
        vfio.hand_over(address)
    device = Device(made[0])
    found["vendor"] = device.config_word(0)          # of a VF always 0xffff: vfio fills the PF's in
    device.close()
    found["too_many"] = refusal(vfio.make_vfs, pf.address, 4)
    found["problems"] = [str(problem) for problem in vfio.restore()]
    found["left"] = len(now(pf.address).vfs)
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            vfio.take(vfio.make_vfs(pf.address, 2)[1])
            os._exit(9)                              # killed while it has them
        os._exit(1)
    found["died"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    found["orphans"] = [f.driver for f in pci_inventory().functions if f.physical == pf.address]
    found["problems"] += [str(problem) for problem in owner().restore()]
    found["left_then"] = len(now(pf.address).vfs)
    found["autoprobe"] = Path(f"/sys/bus/pci/devices/{pf.address}/sriov_drivers_autoprobe").read_text().strip()
    found["record"] = (RUN_DIR / RECORD).exists()
    return found


# ---- refusals

def refusals() -> dict[str, list[str]]:
    """What a real kernel shows of devices that must stay."""
    machine = pci_inventory()
    (nic,), (disk,) = of(machine, VIRTIO_NET), (f for f in of(machine, NVME) if f.total_vfs)
    beside = next(f for f in of(machine, EDU) if machine.companions(f))
    bridge = next(f for f in machine.functions if f.driver == "pcieport")
    subprocess.run(["mkswap", "/dev/nvme0n1"], check=True, capture_output=True)
    subprocess.run(["swapon", "/dev/nvme0n1"], check=True)
    try:
        found = {
            "bridge": refusal(owner(bridge.address).take, bridge.address),
            "not allowed": refusal(owner(disk.address).take, edu_alone()),
            "swap": refusal(owner(disk.address).take, disk.address),
            "shared": [*refusal(owner(beside.address).take, beside.address), nic.address],
            "only nic": refusal(owner(beside.address, nic.address).take, beside.address),
            "vanished": refusal(owner("0000:7f:00.0").take, "0000:7f:00.0"),
        }
    finally:
        subprocess.run(["swapoff", "/dev/nvme0n1"], check=True)
    found["record"] = [str((RUN_DIR / RECORD).exists())]
    return found


def vanishes() -> list[str]:
    """A VF is taken away by the kernel between the inventory and the bind."""
    (pf,) = (f for f in of(pci_inventory(), NVME) if f.total_vfs)
    vfio = owner(pf.address)
    (vf,) = vfio.make_vfs(pf.address, 1)
    before = vfio.machine()
    vfio.restore()
    vfio.machine = lambda: before          # type: ignore[method-assign]
    return [*refusal(vfio.take, vf), str((RUN_DIR / RECORD).exists())]


# ---- virtio-crypto by DPDK

def encrypt(vector: str) -> dict[str, Any]:
    """AES-128-CBC of 2000 buffers on the device, each compared with the vector."""
    Path("/proc/sys/vm/nr_hugepages").write_text("128")
    (function,) = of(pci_inventory(), CRYPTO)
    vfio = owner(function.address)
    vfio.take(function.address)
    vfio.hand_over(function.address)
    Path("/tmp/vector").write_text(vector)
    drivers = "/usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0/librte_{}.so.23"
    argv = ["dpdk-test-crypto-perf", "-l", "0,1", "--in-memory", "--no-telemetry", "--iova-mode=pa",
            "-a", function.address]
    for name in ("crypto_virtio", "bus_pci", "mempool_ring"):
        argv += ["-d", drivers.format(name)]
    argv += ["--", "--ptest", "verify", "--test-file", "/tmp/vector", "--devtype", "crypto_virtio"]
    argv += ["--optype", "cipher-only", "--cipher-algo", "aes-cbc", "--cipher-op", "encrypt", "--cipher-key-sz", "16"]
    argv += ["--cipher-iv-sz", "16", "--buffer-sz", "1024", "--total-ops", "2000", "--burst-sz", "16"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SLOW, check=False)
    vfio.give_back(function.address)
    Path("/proc/sys/vm/nr_hugepages").write_text("4")
    return {"status": done.returncode, "out": done.stdout[-3000:], "err": done.stderr[-1500:]}


# ---- a machine inside this one

class Nested:
    """QEMU as a user without rights, with the program of nested.c as its guest."""

    def __init__(self) -> None:
        folder = RUN_DIR / "nested"
        folder.mkdir(exist_ok=True)
        os.chown(folder, QEMU_USER, QEMU_USER)
        self.socket, self.console = folder / "qmp", folder / "com1"
        for path in (self.socket, self.console):
            path.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-M", "pc,usb=off,hpet=off", "-accel", "tcg", "-m", "32", "-display", "none",
             "-nodefaults", "-no-user-config", "-no-reboot", "-kernel", "/nested.elf",
             "-chardev", f"socket,id=com1,path={self.console},server=on,wait=on", "-serial", "chardev:com1",
             "-qmp", f"unix:{self.socket},server=on,wait=off"],
            stdin=subprocess.DEVNULL, user=QEMU_USER, group=QEMU_USER, extra_groups=[])
        self.said = ""

    async def connect(self) -> Any:
        from qemu.qmp import QMPClient
        await _there(self.console)
        self._reader, self._writer = await asyncio.open_unix_connection(str(self.console))
        await _there(self.socket)
        qmp = QMPClient("nested")
        await qmp.connect(str(self.socket))
        await self.until("up\n")
        return qmp

    async def until(self, words: str, patience: float = PATIENCE) -> None:
        """Reads its console until these words come. What was said before them is forgotten."""
        try:
            async with asyncio.timeout(patience):
                while words not in self.said:
                    self.said += (await self._reader.read(4096)).decode("latin1")
        except TimeoutError:
            raise AssertionError(f"the nested guest did not say {words!r}, but {self.said!r}") from None
        self.said = self.said.partition(words)[2]

    async def tell(self, letter: str) -> None:
        self._writer.write(letter.encode())
        await self._writer.drain()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def nested() -> dict[str, Any]:
    """Two devices into a running machine and out again; then one that it does not let go."""
    return asyncio.run(_nested())


async def _nested() -> dict[str, Any]:
    edu, (crypto,) = edu_alone(), of(pci_inventory(), CRYPTO)
    vfio, guest = owner(edu, crypto.address), Nested()
    found: dict[str, Any] = {}
    try:
        qmp = await guest.connect()
        with _taken(vfio, edu, crypto.address):
            begun = time.monotonic()
            facts = {"pid": guest.process.pid, "uid": QEMU_USER}
            await passthrough.attach(qmp, vfio, edu, **facts)
            await guest.until("1234:11e8\n")
            await guest.until("edu ok\n")
            found["seconds"] = time.monotonic() - begun
            await passthrough.attach(qmp, vfio, crypto.address, **facts)
            await guest.until("1af4:1054\n")
            found["held"] = refusal(Vfio(RUN_DIR, [edu], patience=0.1).give_back, edu)
            await passthrough.detach(qmp, vfio, edu, tell=_told(found), patience=PATIENCE)
            await guest.until("let go\n")
            await passthrough.attach(qmp, vfio, edu, **facts)
            await guest.until("edu ok\n")
            await guest.tell("k")
            await guest.until("keeps\n")
            try:
                await passthrough.detach(qmp, vfio, edu, patience=1)
            except errors.NotReleased as error:
                found["kept"] = str(error)
            guest.end()                    # as the error says
        found["drivers"] = [f.driver for f in pci_inventory().functions if f.address in (edu, crypto.address)]
        found["record"] = (RUN_DIR / RECORD).exists()
        with contextlib.suppress(Exception):
            await qmp.disconnect()
    finally:
        guest.end()
    return found


async def _there(path: Path) -> None:
    while not path.exists():       # noqa: ASYNC110  QEMU makes it at its start
        await asyncio.sleep(0.02)


def _told(found: dict[str, Any]) -> Any:
    async def tell() -> None:
        found["told"] = True
    return tell


@contextlib.contextmanager
def _taken(vfio: Vfio, *addresses: str) -> Iterator[None]:
    for address in addresses:
        vfio.take(address)
    try:
        yield
    finally:
        for address in addresses:
            vfio.give_back(address)


