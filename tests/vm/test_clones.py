# SPDX-License-Identifier: Apache-2.0
"""Guests restored from one snapshot: fast, independent of each other, and with random numbers of their own."""

import re
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from vm.guest_rig import Guest, Measured, guest_made

from pipeline.host import cpio, images
from pipeline.host.control import Command
from pipeline.host.holder_client import HolderClient
from pipeline.host.images import Image
from pipeline.policy.model import VmState

pytestmark = pytest.mark.qemu

PROBE = Path(__file__).with_name("random_probe.c")


def probed(image: Image, folder: Path) -> Path:
    """The image's initramfs with the probe behind it: the kernel unpacks one archive after the other."""
    library = folder / "probe.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", library, PROBE, "-lcrypto"], check=True)
    out = folder / "initramfs"
    out.write_bytes(images.initramfs_with(image, {"probe.so": cpio.regular(library.read_bytes(), 0o755)}))
    return out


def memory(folder: Path, share: str) -> tuple[str, ...]:
    backend = f"memory-backend-file,id=ram0,size=128M,mem-path={folder}/ram,share={share}"
    return ("-object", backend, "-machine", "memory-backend=ram0")


def random_of(guest: Guest, when: str) -> str:
    found = re.findall(rf"random {when} ([0-9a-f]{{64}})", guest.said())
    assert len(found) == 1, guest.said()
    return str(found[0])


def test_clones_are_fast_and_share_no_randomness(image: Image, vm_dir: Path, holder: HolderClient, tmp_path: Path,
                                                 measured: Measured) -> None:
    with guest_made(image, vm_dir, holder, vm_id=10) as template:
        template.start(*memory(tmp_path, "on"), initramfs=probed(image, tmp_path),
                       kernel_arguments="LD_PRELOAD=/probe.so")
        deadline = time.monotonic() + 10
        while "random at start" not in template.said():        # it waits for its doorbell device from then on
            assert time.monotonic() < deadline, template.said()
            time.sleep(0.05)
        time.sleep(0.1)
        template.template_save(tmp_path / "state")
    with ExitStack() as stack:
        clones = [stack.enter_context(guest_made(image, vm_dir, holder, vm_id)) for vm_id in (11, 12)]
        for clone in clones:
            begun = time.monotonic()
            clone.start(*memory(tmp_path, "off"), "-incoming", "defer", initramfs=tmp_path / "initramfs")
            clone.template_load(tmp_path / "state")
            clone.plug_doorbell()
            clone.until_warm()
            measured(f"restore_to_warm_ms_{clone.vm_id}", round((time.monotonic() - begun) * 1e3))
        before, after = ([random_of(clone, when) for clone in clones] for when in ("before", "after"))
        assert before[0] == before[1], "these are no twins, so the test proves nothing"
        assert after[0] != after[1]
        for clone in clones:
            edge = clone.edge() if clone is clones[0] else None
            begun = time.monotonic()
            if edge:
                clone.plug(edge)
                clone.assign(edge)
            else:
                clone.assign()
            clone.ring()
            clone.until_state(VmState.READY)
            measured(f"warm_to_ready_ms_{clone.vm_id}", round((time.monotonic() - begun) * 1e3))
            clone.command(Command.RUN)
            clone.until_state(VmState.ACTIVE)
