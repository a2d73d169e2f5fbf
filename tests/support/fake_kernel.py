# SPDX-License-Identifier: Apache-2.0
"""A kernel whose sysfs is a folder: it answers writes as Linux does, or as a test wants it to."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from pipeline.host.kernel import Kernel

Answer = Callable[[str], None]


class FakeKernel(Kernel):
    """``answers``: by the name of a file, what is done instead of what Linux does; it may raise OSError. ``die_at``:
    the process ends at the write of this number, as if it were killed, before or after the write was done.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root / "sys", root / "dev", root / "proc")
        self.answers: dict[str, Answer] = {}
        self.writes: list[tuple[str, str]] = []
        self.busy: set[int] = set()          # groups that somebody holds
        self.group_error = 0
        self.die_at = -1
        self.die_after = False
        (root / "sys/bus/pci/drivers/vfio-pci").mkdir(parents=True, exist_ok=True)
        (root / "dev/vfio").mkdir(parents=True, exist_ok=True)

    def write(self, path: Path, value: str) -> None:
        dies = len(self.writes) == self.die_at
        if dies and not self.die_after:
            os._exit(9)
        self.writes.append((path.name, value))
        answer = self.answers.get(path.name)
        if answer:
            answer(value)
        else:
            self._write(path, value)
        if dies:
            os._exit(9)

    def _write(self, path: Path, value: str) -> None:
        if path.parent.name != "driver" and not path.parent.is_dir():
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        match path.name:
            case "unbind":
                (path.parent.parent / "driver").unlink()
            case "bind":
                self.bind(value, path.parent.name)
            case "drivers_probe":
                override = (self.device(value) / "driver_override").read_text().strip()
                if override and not (self.device(value) / "driver").is_symlink():
                    self.bind(value, override)
            case "sriov_numvfs":
                self._vfs_set(path.parent, int(value))
            case _:
                path.write_text(value)

    def device(self, address: str) -> Path:
        return self.sysfs / "bus/pci/devices" / address

    def bind(self, address: str, driver: str) -> None:
        if not (self.sysfs / "bus/pci/drivers" / driver).is_dir():
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        (self.device(address) / "driver").symlink_to(f"../../drivers/{driver}")

    def try_group(self, group: int) -> bool:
        if group in self.busy or self.group_error:
            raise OSError(self.group_error or errno.EBUSY, os.strerror(self.group_error or errno.EBUSY))
        members = [d for d in (self.sysfs / "bus/pci/devices").iterdir()
                   if (d / "iommu_group").is_symlink() and (d / "iommu_group").readlink().name == str(group)]
        kept = [d for d in members if (d / "driver").is_symlink() and "0x0604" not in (d / "class").read_text()]
        return all((d / "driver").readlink().name == "vfio-pci" for d in kept)

    def _vfs_set(self, pf: Path, count: int) -> None:
        """00.0 has its VFs at 01.0 and on, each alone in its group."""
        for link in pf.glob("virtfn*"):
            shutil.rmtree(pf.parent / link.readlink().name)
            link.unlink()
        for number in range(count):
            vf = pf.parent / f"{pf.name[:8]}{1 + number // 8:02x}.{number % 8}"
            vf.mkdir()
            for name in ("vendor", "class", "numa_node"):
                (vf / name).write_text((pf / name).read_text())
            (vf / "device").write_text(f"{int((pf / 'device').read_text(), 16) + 1:#06x}\n")
            (vf / "driver_override").write_text("(null)\n")
            (vf / "reset").write_text("")
            (vf / "physfn").symlink_to(f"../{pf.name}")
            (vf / "iommu_group").symlink_to(f"../iommu_groups/{300 + number}")
            (pf / f"virtfn{number}").symlink_to(f"../{vf.name}")
            if (pf / "sriov_drivers_autoprobe").read_text().strip() == "1":
                (vf / "driver").symlink_to("../../drivers/c6xxvf")
        (pf / "sriov_numvfs").write_text(f"{count}\n")


def contents(folder: Path) -> dict[str, str]:
    """Every file and link below it, as comparable text."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = f"-> {path.readlink().name}"
        elif path.is_file() and path.name != "reset":
            found[str(path.relative_to(folder))] = path.read_text().strip().removeprefix("(null)")
    return found
