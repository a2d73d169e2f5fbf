# SPDX-License-Identifier: Apache-2.0
"""Can this machine's KVM run a guest? /dev/kvm proves nothing: a KVM without the CPU's support opens as well, and the
guest then hangs in its firmware. So the image is booted once, until its kernel starts the first program, and the answer
is kept until the machine boots anew.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.host import processes
from pipeline.host.images import Image, cache_folder
from pipeline.instances.qemu_argv import PROGRAM, Accelerator

DEVICE = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PATIENCE = 5.0                          # seconds; a real KVM takes half of one
PROOF = b"Run /init as init process"    # the kernel's words


@dataclass(frozen=True)
class Choice:
    """``why``: what is wrong with KVM; empty if it is used."""

    accelerator: Accelerator
    why: str = ""


def accelerator(image: Image, device: Path = DEVICE, note: Path | None = None) -> Choice:
    """The fastest that works here. Takes some seconds when it is asked for the first time; ``note`` has the answer."""
    why = _refused(device) or _remembered(image, device, note or cache_folder() / "kvm.json")
    return Choice(Accelerator.TCG, why) if why else Choice(Accelerator.KVM)


def _refused(device: Path) -> str:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return f"there is no {device}: switch virtualisation on in the firmware, then `modprobe kvm_intel` or `kvm_amd`"
    except OSError as error:
        return f"{device}: {error.strerror}"
    return ""


def _remembered(image: Image, device: Path, note: Path) -> str:
    asked = {"boot": BOOT_ID.read_text().strip(), "kernel": image.manifest["kernel"], "device": str(device)}
    try:
        known = json.loads(note.read_text())
        if known["asked"] == asked:
            return str(known["why"])
    except (OSError, ValueError, KeyError, TypeError):
        pass                            # never tried
    why = _try(image)
    note.parent.mkdir(parents=True, exist_ok=True)
    new = note.with_suffix(f".{os.getpid()}.new")
    new.write_text(json.dumps({"asked": asked, "why": why}))
    new.rename(note)
    return why


def _try(image: Image) -> str:
    """What is wrong; empty if a guest booted."""
    argv = [str(processes.program(PROGRAM)), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-machine", "pc,accel=kvm", "-cpu", "host", "-m", "128", "-kernel", str(image.kernel),
            "-initrd", str(image.initramfs), "-append", "console=ttyS0 panic=-1", "-serial", "stdio"]
    said = b""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        assert child.stdout
        deadline = time.monotonic() + PATIENCE
        try:
            while PROOF not in said and (left := deadline - time.monotonic()) > 0:
                if not select.select([child.stdout], [], [], left)[0]:
                    continue
                if not (more := os.read(child.stdout.fileno(), 65536)):
                    break
                said += more
        finally:
            child.kill()
    if PROOF in said:
        return ""
    lines = said.decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip().isprintable() and line.strip()), "")
    return f"a guest does not boot with KVM here; it said {f'last: {last[:120]}' if last else 'nothing'}"
