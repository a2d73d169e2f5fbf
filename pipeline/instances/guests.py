# SPDX-License-Identifier: Apache-2.0
"""What virtual machines need of this machine, looked at before anything is started, and the files that they get."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from pipeline.errors import HostError
from pipeline.host import cpio, images
from pipeline.host.images import Image
from pipeline.host.memory import HUGE_PAGE_LEN, sealed_memfd
from pipeline.instances.driver import InstanceSpec
from pipeline.instances.kvm import Choice, accelerator
from pipeline.instances.qemu_argv import PROGRAM, Accelerator
from pipeline.policy.model import Driver, Layer, LayerId

MEMINFO = Path("/proc/meminfo")
FILES = PurePath("/srv")      # where a guest has the folder that its layer serves
BESIDE = 160 << 20       # bytes of QEMU beside the guest's memory: the image, and under TCG the translated code


@dataclass(frozen=True)
class Guests:
    """``pages``: hugepages that the guests' memory takes."""

    pages: int
    choice: Choice

    @property
    def remark(self) -> str:
        if self.choice.accelerator is Accelerator.KVM:
            return "virtual machines run with KVM"
        return f"virtual machines run without KVM (TCG), which is much slower: {self.choice.why}"


def check(layers: Iterable[Layer], files: PurePath | None, folder: Path | None = None, *,
          warm: int = 0) -> Guests | None:
    """None: there are no virtual machines. ``files``: what `app` serves. ``warm``: machines without a layer. Raises
    HostError for what is missing. Takes some seconds at the first time.
    """
    machines = [layer for layer in layers if layer.driver is Driver.QEMU]
    if not machines and not warm:
        return None
    if not shutil.which(PROGRAM):
        raise HostError(f"the program {PROGRAM} is not installed",
                        hint="apt-get install qemu-system-x86, or driver = \"process\"")
    names = {images.CRYPTO if layer.wants else images.GUEST for layer in machines} or {images.GUEST}
    found = [images.load(folder or images.default_folder(), name) for name in sorted(names)]
    for image in found:
        images.verify(image)
    for layer in machines:
        if layer.id is LayerId.APP and files:
            files_fit(Path(files), layer.memory)
    # a warm one can become any of them
    memory = (sum(layer.instances * layer.memory for layer in machines)
              + warm * max((layer.memory for layer in machines), default=Layer.memory))
    number = warm + sum(layer.instances for layer in machines)
    needed, there = memory + number * BESIDE, _available()
    if needed > there:
        raise HostError(f"{number} virtual machines need {needed >> 20} MiB of memory, {there >> 20} MiB are available",
                        hint="lower `memory` or `instances` of the layers, or `vms` in [pool]")
    return Guests(memory // HUGE_PAGE_LEN, accelerator(found[0]))


def initramfs(image: Image, spec: InstanceSpec) -> int:
    """Opens the image's, with the files that the layer serves behind it, as they are now. Raises HostError."""
    if spec.files is None:
        return os.open(image.initramfs, os.O_RDONLY | os.O_CLOEXEC)
    files_fit(spec.files, spec.memory)
    data = images.initramfs_with(image, cpio.tree(spec.files, FILES.name))
    fd = sealed_memfd(f"sl-initramfs-{spec.vm_id}", len(data))
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    return fd


def files_fit(folder: Path, memory: int) -> None:
    """A machine holds the files that it serves, twice while it boots. Raises HostError if they are too many."""
    length = sum(Path(place, name).stat().st_size for place, _, names in os.walk(folder) for name in names
                 if Path(place, name).is_file())
    if length > memory // 4:
        raise HostError(f"{folder} with {length >> 20} MiB does not fit into a machine of {memory >> 20} MiB",
                        hint="give layer app more `memory`, four times as much as its files need")


def _available() -> int:
    """Bytes. Free hugepages are not in MemAvailable, but guests can have them."""
    numbers = {line.split(":")[0]: int(line.split()[1]) for line in MEMINFO.read_text().splitlines()}
    pages = max(0, numbers.get("HugePages_Free", 0) - numbers.get("HugePages_Rsvd", 0))
    return (numbers["MemAvailable"] << 10) + pages * HUGE_PAGE_LEN
