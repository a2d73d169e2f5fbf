# SPDX-License-Identifier: Apache-2.0
"""A guest that can not load its driver: it maps the devices by sysfs and polls."""

from pathlib import Path

import pytest
from vm.guest_rig import guest_made

from pipeline.host.control import Command
from pipeline.host.holder_client import HolderClient
from pipeline.host.images import Image
from pipeline.policy.model import VmState

pytestmark = pytest.mark.qemu


def test_without_the_driver_it_polls(image: Image, vm_dir: Path, holder: HolderClient) -> None:
    with guest_made(image, vm_dir, holder, vm_id=7) as guest:
        edge = guest.edge()
        guest.assign(edge)
        guest.start(kernel_arguments="module_blacklist=sl_ivshmem")
        guest.plug(edge)
        guest.until_state(VmState.READY)
        assert [peer.vm_id for peer in edge.peers()] == [7]
        guest.rung_forget()
        guest.command(Command.RUN)
        assert guest.rung(1.0)            # it can ring, though it can not be rung
        guest.until_state(VmState.ACTIVE, timeout=2)
