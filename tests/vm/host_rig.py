# SPDX-License-Identifier: Apache-2.0
"""A virtual machine that plays the bare-metal host: an IOMMU, real functions behind root ports, the project in it.

Its kernel is that of the guest images; its programs (Python, QEMU, DPDK) are this machine's /usr, read only, by
virtiofs, as are the environment that swarmline is installed in, the source tree, both at their places, and a folder of
images. A Python there calls functions of ``vm/host_side.py``, or of another module of tests.

Its processor is one of AMD's with SVM, which QEMU emulates: KVM works there, and a machine inside it is not much slower
than the one around it.
"""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from support import ROOT

from pipeline.host import cpio, debs, images

VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
MODULES = ("virtio_pci", "virtio_net", "fuse", "virtiofs", "vfio_pci", "vfio_iommu_type1", "veth", "tun",
           "kvm_amd")
KERNEL_ARGUMENTS = ("console=ttyS0 quiet panic=-1 cryptomgr.notests mitigations=off nokaslr no_timer_check rodata=off "
                    "rdinit=/init")
BOOT_TIMEOUT = 120.0       # 5 s are usual; more than twenty times that were seen on a busy machine
CALL_TIMEOUT = 120.0

# The shell's part. /usr and other folders come by virtiofs; the rest is as in the archive, but in a file system that
# can be left by pivot_root(2), as a sandbox does: the first one can not.
INIT = """#!/bb/busybox sh
export PATH=/bb
if [ ! -e /new ]; then
	/bb/busybox --install -s /bb
	mkdir /new
	mount -t tmpfs root /new
	cp -a bb modules nested.elf init dev etc /new/
	cd /new
	mkdir new proc sys tmp usr run root images var
	exec switch_root /new /init </new/dev/console >/new/dev/console 2>&1
fi
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p /dev/hugepages /dev/shm; mount -t hugetlbfs huge /dev/hugepages; mount -t tmpfs shm /dev/shm
for m in /modules/*; do insmod $m || echo "no $m"; done
chgrp kvm /dev/kvm && chmod 660 /dev/kvm   # as udev does
mkdir -p {environment} {project}
for s in usr:/usr environment:{environment} project:{project} images:/images; do
	mount -t virtiofs -o ro ${{s%%:*}} ${{s#*:}} || echo "no share $s"
done
chmod 755 /; ln -s /run /var/run             # DPDK asks for both
for l in bin lib lib64 sbin; do ln -sfn usr/$l /$l; done
ip link set lo up
export LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu:/usr/lib/x86_64-linux-gnu/blas:/usr/lib/x86_64-linux-gnu/lapack
export PATH=/usr/bin:/usr/sbin:/bb HOME=/root
export SWARMLINE_IMAGES=/images PYTHONPATH={project}/tests PYTHONDONTWRITEBYTECODE=1
{python} -c "import {side}; from vm.host_side import serve; serve(vars({side}))"
echo "the agent ended"
poweroff -f
"""
ETC = {"passwd": "root:x:0:0:root:/root:/bin/sh\n", "group": "root:x:0:\nkvm:x:105:\n"}

QUEUES = ",max_ioqpairs=18,msix_qsize=17"      # enough that VFs can have some
# Root ports give each function a group and a reset of its own; behind the bridge to plain PCI they share one.
DEVICES = """
 -device intel-iommu,intremap=on,caching-mode=on
 -device pcie-root-port,id=rp1,slot=1,chassis=1 -device edu,bus=rp1
 -device pcie-root-port,id=rp2,slot=2,chassis=2 -device nvme-subsys,id=ss0
 -device nvme,id=pf,serial=x,subsys=ss0,bus=rp2,sriov_max_vfs=4,sriov_vq_flexible=8,sriov_vi_flexible=4{queues}
 -drive if=none,id=disk,format=raw,file={disk} -device nvme-ns,drive=disk,bus=pf
 -device pcie-root-port,id=rp3,slot=3,chassis=3 -object cryptodev-backend-builtin,id=c0
 -device virtio-crypto-pci,cryptodev=c0,disable-legacy=on,bus=rp3
 -device pcie-root-port,id=rp4,slot=4,chassis=4 -device pcie-pci-bridge,id=pci,bus=rp4
 -device edu,bus=pci,addr=1 -device virtio-net-pci,bus=pci,addr=2,romfile=,vectors=0
"""


class Host:
    """The machine, booted."""

    def __init__(self, image: images.Image, folder: Path, stack: ExitStack, side: str, memory: int,
                 inside: Path | None) -> None:
        self.console = folder / "console.log"
        self._log = folder / "qemu.log"
        self._folder, self._stack = folder, stack
        if inside is None:
            inside = folder / "images"
            inside.mkdir()
        shares = [self._share(*share) for share in (("usr", Path("/usr")), ("environment", Path(sys.prefix)),
                                                    ("project", ROOT), ("images", inside))]
        initramfs = folder / "initramfs"
        initramfs.write_bytes(_initramfs(folder, side))
        disk = folder / "disk"
        disk.write_bytes(bytes(4 << 20))
        agent = folder / "agent.sock"
        argv = ["qemu-system-x86_64", "-M", "q35,memory-backend=ram", "-accel", "tcg", "-cpu", "max", "-smp", "2",
                "-m", str(memory), "-object", f"memory-backend-memfd,id=ram,size={memory}M,share=on", "-nodefaults",
                "-display", "none", "-no-reboot", "-kernel", str(image.kernel), "-initrd", str(initramfs),
                "-append", KERNEL_ARGUMENTS, "-serial", f"file:{self.console}",
                "-chardev", f"socket,id=agent,path={agent},server=on,wait=off", "-serial", "chardev:agent",
                *DEVICES.format(disk=disk, queues=QUEUES).split(), *(word for share in shares for word in share)]
        with self._log.open("wb") as log:
            self._qemu = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        stack.callback(_kill, self._qemu)
        self._agent = self._connect(agent)
        stack.callback(self._agent.close)
        self._lines = self._agent.makefile("r")
        stack.callback(self._lines.close)

    def wait(self) -> None:
        """Until it can be called."""
        self._answer("ready", BOOT_TIMEOUT)

    def call(self, function: str, *arguments: Any, timeout: float = CALL_TIMEOUT) -> Any:
        """Runs this function of the module there. What it raises there is an AssertionError here."""
        self._agent.sendall(json.dumps([function, *arguments]).encode() + b"\n")
        return self._answer(function, timeout)

    def said(self) -> str:
        """What QEMU said, and the end of the machine's console."""
        return "".join(f"\n--- {path.name}\n{path.read_text(errors='replace')[-4000:]}"
                       for path in (self._log, self.console) if path.exists())

    def _answer(self, what: str, timeout: float) -> Any:
        self._agent.settimeout(timeout)
        try:
            line = self._lines.readline()
        except OSError:
            line = ""
        assert line, f"{what}: no answer within {timeout:g} s{self.said()}"
        answer = json.loads(line)
        assert "error" not in answer, f"{what}:\n{answer['error']}{self.said()}"
        return answer["result"]

    def _share(self, name: str, folder: Path) -> list[str]:
        path = self._folder / f"{name}.sock"
        log = self._stack.enter_context((self._folder / f"{name}.log").open("wb"))
        daemon = subprocess.Popen([VIRTIOFSD, f"--socket-path={path}", "-o", f"source={folder}", "-o", "cache=always"],
                                  stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._stack.callback(_kill, daemon)
        return ["-chardev", f"socket,id={name},path={path}", "-device",
                f"vhost-user-fs-pci,chardev={name},tag={name}"] if _there(path, daemon) else []

    def _connect(self, path: Path) -> socket.socket:
        assert _there(path, self._qemu), f"QEMU did not start{self.said()}"
        sock = socket.socket(socket.AF_UNIX)
        while True:
            try:
                sock.connect(str(path))
                return sock
            except ConnectionRefusedError:       # it has the name, and does not listen yet
                assert self._qemu.poll() is None, f"QEMU ended{self.said()}"
                time.sleep(0.01)


def _there(path: Path, process: subprocess.Popen[bytes]) -> bool:
    """Waits for a socket that a program makes at its start."""
    deadline = time.monotonic() + 10
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return path.exists()


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _initramfs(folder: Path, side: str) -> bytes:
    """A shell, the modules, and what the tests run there."""
    wanted = {p.name: p for p in debs.lock_read((ROOT / "vm-images/packages.lock").read_text())
              if p.role in ("kernel", "debug")}
    root = folder / "root"
    for file in debs.fetch(list(wanted.values()), images.default_folder() / "packages").values():
        debs.unpack(file, root)
    modules = images.modules_with_needs(next((root / "lib/modules").iterdir()), MODULES)
    entries = {f"modules/{n:02}-{name}.ko": cpio.regular(data) for n, (name, data) in enumerate(modules.items())}
    init = INIT.format(environment=sys.prefix, project=ROOT, python=sys.executable, side=side)
    entries["init"] = cpio.regular(init.encode(), 0o755)
    entries["bb/busybox"] = cpio.regular((root / "bin/busybox").read_bytes(), 0o755)
    entries |= {name: cpio.directory() for name in ("dev", "etc", "etc/ssl")}
    entries |= {f"etc/{name}": cpio.regular(text.encode()) for name, text in ETC.items()}
    entries["etc/ssl/openssl.cnf"] = cpio.regular(Path("/etc/ssl/openssl.cnf").read_bytes())
    entries["dev/console"] = cpio.character_device(5, 1)
    entries["nested.elf"] = cpio.regular(_nested(folder).read_bytes())
    shutil.rmtree(root)
    return cpio.archive(entries)


def _nested(folder: Path) -> Path:
    """The machine inside the machine: 6 kB without an operating system."""
    out = folder / "nested.elf"
    debs.run(["gcc", "-m32", "-O1", "-ffreestanding", "-fno-pic", "-fno-stack-protector", "-nostdlib", "-static",
              "-no-pie", "-Wall", "-Wextra", "-Werror", "-Wl,-n,--build-id=none,-Ttext=0x100000",
              str(ROOT / "tests/vm/nested.c"), "-o", str(out)], "can not build the nested guest")
    return out


@contextmanager
def host_made(image: images.Image, folder: Path, *, side: str = "vm.host_side", memory: int = 1024,
              inside: Path | None = None) -> Iterator[Host]:
    """Boots it with so many MiB, and ends it. ``inside``: the folder of images there."""
    with ExitStack() as stack:
        host = Host(image, folder, stack, side, memory, inside)
        host.wait()
        yield host
