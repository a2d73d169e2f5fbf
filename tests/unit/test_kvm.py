# SPDX-License-Identifier: Apache-2.0
"""Whether KVM is used: only if a guest boots with it; and every other answer has its reason."""

from pathlib import Path

import pytest

from pipeline.host.images import Image
from pipeline.instances import kvm
from pipeline.instances.qemu_argv import Accelerator

QEMU = """#!/bin/sh
echo x >>"$0.calls"
{}
"""


@pytest.fixture
def image(tmp_path: Path) -> Image:
    folder = tmp_path / "images/guest-1"
    folder.mkdir(parents=True)
    return Image("guest", folder, {"kernel": "6.1"})


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the program; ``write_text`` makes it do something."""
    program = tmp_path / kvm.PROGRAM
    program.touch(0o755)
    monkeypatch.setenv("SWARMLINE_BIN", str(tmp_path))
    return program


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "kvm"
    path.touch()
    return path


def test_no_device(image: Image, tmp_path: Path) -> None:
    choice = kvm.accelerator(image, tmp_path / "none")
    assert choice.accelerator is Accelerator.TCG
    assert "there is no " in choice.why and "modprobe kvm_intel" in choice.why


def test_a_guest_that_boots_is_believed_and_remembered(image: Image, qemu: Path, device: Path) -> None:
    qemu.write_text(QEMU.format('echo "[    0.5] Run /init as init process"; exec sleep 100'))
    for _ in range(2):
        assert kvm.accelerator(image, device, device.with_suffix(".json")) == kvm.Choice(Accelerator.KVM)
    assert qemu.with_name(f"{qemu.name}.calls").read_text() == "x\n"


def test_a_guest_that_does_not_boot(image: Image, qemu: Path, device: Path) -> None:
    qemu.write_text(QEMU.format("echo 'Booting from ROM..'; exit 1"))
    for _ in range(2):
        choice = kvm.accelerator(image, device, device.with_suffix(".json"))
        assert choice.accelerator is Accelerator.TCG
        assert "said last: Booting from ROM" in choice.why
    assert qemu.with_name(f"{qemu.name}.calls").read_text() == "x\n"


def test_a_guest_that_hangs(image: Image, qemu: Path, device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "PATIENCE", 0.2)
    qemu.write_text(QEMU.format("exec sleep 100"))
    assert "said nothing" in kvm.accelerator(image, device, device.with_suffix(".json")).why


def test_another_boot_asks_again(image: Image, qemu: Path, device: Path, monkeypatch: pytest.MonkeyPatch,
                                 tmp_path: Path) -> None:
    qemu.write_text(QEMU.format("exit 1"))
    kvm.accelerator(image, device, device.with_suffix(".json"))
    boot = tmp_path / "boot_id"
    boot.write_text("another\n")
    monkeypatch.setattr(kvm, "BOOT_ID", boot)
    kvm.accelerator(image, device, device.with_suffix(".json"))
    assert qemu.with_name(f"{qemu.name}.calls").read_text() == "x\nx\n"
