# SPDX-License-Identifier: Apache-2.0
"""A guest behind the router's vhost-user port: QEMU's virtio-net device and Linux's driver, a client at the NIC."""

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.lab import in_netns
from support.needs import require
from system.router_rig import ECHO, TALK, VIPS, VM_ID, Rig, eventually, rig_made, run, stub_built
from vm.guest_rig import KERNEL_ARGUMENTS

from pipeline.host import cpio, images
from pipeline.host.images import Image

pytestmark = [pytest.mark.qemu, pytest.mark.netns, pytest.mark.bpf]
SERVER = Path(__file__).with_name("net_echo.c")
KILLS = int(os.environ.get("SWARMLINE_VHOST_KILLS", "20")) // 10
LINK_BACK_S, LOST_S = 1.0, 5.0
MUCH = 16 << 20

# Sends a datagram each 5 ms until one comes back; prints how long that took.
PULSE = """
import socket, sys, time
begun = time.monotonic()
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((sys.argv[1], 80))
sock.settimeout(0.005)
while time.monotonic() < begun + 10:
    try:
        sock.send(b"there?")
        sock.recv(100)
        break
    except OSError:
        pass
print(time.monotonic() - begun)
"""


class Guest:
    """QEMU, which listens for the router, with a server in it."""

    def __init__(self, rig: Rig, image: Image, folder: Path, stack: ExitStack, options: str, queues: int) -> None:
        program, initramfs, self.console = folder / "server", folder / "initramfs", folder / "console"
        flags = ("-static", "-O2", "-Wall", "-Wextra", "-Werror")
        subprocess.run(["gcc", *flags, "-o", program, SERVER], check=True)
        initramfs.write_bytes(images.initramfs_with(image, {"init": cpio.regular(program.read_bytes(), 0o755)}))
        place = rig.vhost_folder(VM_ID)
        options += f",mac={rig.mac},mq={'on' if queues > 1 else 'off'}"
        argv = [
            *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", str(queues), "-nodefaults"),
            *("-display", "none", "-no-reboot", "-M", "pc,memory-backend=mem", "-m", "128"),
            *("-object", "memory-backend-memfd,id=mem,size=128M,share=on"),
            *("-kernel", str(image.kernel), "-initrd", str(initramfs)),
            *("-append", f"{KERNEL_ARGUMENTS} sl_net={VIPS[0]}"),
            *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
            *("-chardev", "socket,id=vh0,path=net,server=on,wait=off"),
            *("-netdev", f"vhost-user,id=n0,chardev=vh0,queues={queues}", "-device",
              f"virtio-net-pci,netdev=n0,romfile=,vectors=0{options}"),
        ]
        with self.console.open("wb") as out:
            self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=out, cwd=place, umask=0)
        stack.callback(self.end)
        eventually(lambda: self.said("serving"), 20)

    def said(self, text: str) -> bool:
        assert self.process.poll() is None, "QEMU has ended"
        return text in self.console.read_text(errors="replace")

    def driver_again(self) -> None:
        """The guest lets go of the device and takes it again."""
        assert self.process.stdin
        self.process.stdin.write(b"again\n")
        self.process.stdin.flush()
        eventually(lambda: self.said("bound anew"))

    def end(self) -> None:
        assert self.process.stdin
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stub_built(tmp_path_factory.mktemp("stub"))


@pytest.fixture
def rig(stub: Path) -> Iterator[Rig]:
    require("netns", "bpf")
    with rig_made(stub, 1500) as made:
        yield made


def echoed(rig: Rig) -> str:
    return run(*in_netns(rig.lab.client, sys.executable, "-c", ECHO, VIPS[0], str(1 << 20))).split()[0]


def answered(rig: Rig) -> float:
    """Seconds until the guest answers a datagram of the client."""
    return float(run(*in_netns(rig.lab.client, sys.executable, "-c", PULSE, VIPS[0])))


@contextmanager
def sending(rig: Rig) -> Iterator[None]:
    """The client sends and receives without end; at the end of the block all must come back, unchanged."""
    command = in_netns(rig.lab.client, sys.executable, "-c", ECHO, VIPS[0], str(MUCH))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield
            assert process.communicate(timeout=60)[0].startswith("True")
        finally:
            process.kill()


@contextmanager
def talking(rig: Rig) -> Iterator[Callable[[str], float]]:
    """A connection of the client to the guest; says something and returns after how long the echo came."""
    command = in_netns(rig.lab.client, sys.executable, "-c", TALK, VIPS[0])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        stdin, stdout = process.stdin, process.stdout

        def say(what: str) -> float:
            begun = time.monotonic()
            stdin.write(what + "\n")
            stdin.flush()
            assert stdout.readline() == what + "\n"
            return time.monotonic() - begun

        try:
            yield say
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("options", "queues"), [("", 2), (",packed=on,mrg_rxbuf=off", 1)],
    ids=["split-2", "packed"])
def test_a_guest_keeps_its_link(rig: Rig, image: Image, tmp_path: Path, options: str, queues: int) -> None:
    """Bytes both ways; then the router is killed while the guest sends, again and again, and the connection lives."""
    with ExitStack() as stack:
        assert rig.ask("PORT_ADD_VHOST", vm_id=VM_ID, vips=1).status == 0
        guest = Guest(rig, image, tmp_path, stack, options, queues)
        assert echoed(rig) == "True"
        say = stack.enter_context(talking(rig))
        say("hello")
        took = []
        with sending(rig):
            for number in range(KILLS):
                time.sleep(random.Random(number).random() / 10)          # somewhere under traffic
                rig.router_stop(signal.SIGKILL)
                rig.router_start()
                rig.router_configure()
                assert rig.ask("PORT_ADD_VHOST", vm_id=VM_ID, vips=1).status == 0
                took.append(answered(rig))
        assert statistics.median(took) < LINK_BACK_S          # a busy machine may delay some,
        assert max(took) < LOST_S, f"a link did not come back: {took}"        # but loses none
        say("still there")
        guest.driver_again()
        assert echoed(rig) == "True"
