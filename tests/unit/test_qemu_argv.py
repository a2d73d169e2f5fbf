# SPDX-License-Identifier: Apache-2.0
"""The command line of a virtual machine: what it must have, and what it must not."""

from dataclasses import replace
from pathlib import Path

from pipeline.instances.qemu_argv import Accelerator, Machine, qemu_argv

MACHINE = Machine(7, Path("/run/x"), Accelerator.TCG, 128 << 20, memory_fd=20, kernel_fd=21, initramfs_fd=22,
                  monitor_fd=23, ivshmem_fd=24)


def options(machine: Machine) -> dict[str, list[str]]:
    """Option -> its values."""
    found: dict[str, list[str]] = {}
    words = qemu_argv(Path("/usr/bin/qemu"), machine)[1:]
    for n, word in enumerate(words):
        if word.startswith("-") and not word.startswith("--"):
            found.setdefault(word, []).append(words[n + 1] if n + 1 < len(words) else "")
    return found


def test_it_is_known_by_its_words() -> None:
    """By these `down` finds it after any crash."""
    assert {"--run-dir=/run/x", "--vm-id=7"} <= set(qemu_argv(Path("/usr/bin/qemu"), MACHINE))


def test_it_has_nothing_that_was_not_asked_for() -> None:
    found = options(MACHINE)
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= found.keys()
    (sandbox,) = found["-sandbox"]
    assert sandbox.startswith("on,")
    assert all(f"{what}=deny" in sandbox for what in ("obsolete", "elevateprivileges", "spawn", "resourcecontrol"))
    assert found["-device"] == ["ivshmem-doorbell,id=doorbell,chardev=holder,vectors=16"]


def test_files_and_sockets_are_descriptors() -> None:
    """A user that owns nothing could not open them."""
    found = options(MACHINE)
    assert found["-kernel"] == ["/proc/self/fd/21"]
    assert found["-initrd"] == ["/proc/self/fd/22"]
    assert "path=" not in " ".join(found["-chardev"]).replace("mem-path=", "")
    for fd in MACHINE.fds:
        words = " ".join(qemu_argv(Path("/q"), MACHINE))
        assert f"fd={fd}" in words or f"/proc/self/fd/{fd}" in words


def test_memory_is_shared() -> None:
    (ram,) = options(MACHINE)["-object"]
    assert "share=on" in ram
    assert f"size={128 << 20}," in ram
    assert options(MACHINE)["-m"] == ["128"]


def test_defences_against_speculation_are_left_out_under_tcg_only() -> None:
    kvm = options(replace(MACHINE, accelerator=Accelerator.KVM))
    assert "mitigations" not in kvm["-append"][0]
    assert kvm["-cpu"] == ["host"]
    assert kvm["-accel"] == ["kvm"]
    tcg = options(MACHINE)
    assert "mitigations=off" in tcg["-append"][0]
    assert tcg["-accel"][0].startswith("tcg,")
