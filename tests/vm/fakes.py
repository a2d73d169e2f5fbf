# SPDX-License-Identifier: Apache-2.0
"""Images whose first program is another one: guests that misbehave."""

import json
import subprocess
from pathlib import Path

from pipeline.host import cpio, debs
from pipeline.host.images import Image, initramfs_with

C = Path(__file__).parents[2] / "c"


def fake(image: Image, folder: Path, end: str) -> Path:
    """An image whose first program does nothing but ``end``, which is C."""
    head = "#include <sys/reboot.h>\n#include <unistd.h>\n"
    return fake_of(image, folder, f"{head}int main(void) {{ for (;;) {end}; }}\n")


def fake_of(image: Image, folder: Path, source: str) -> Path:
    """An image whose first program is made of this C."""
    folder.mkdir()
    program = folder / "init"
    argv = ["gcc", "-static", "-O1", f"-I{C}", "-x", "c", "-o", program, "-"]
    subprocess.run(argv, input=source, text=True, check=True)
    entries = {"init": cpio.regular(program.read_bytes(), 0o755), "dev/console": cpio.character_device(5, 1)}
    program.unlink()
    (folder / "initramfs").write_bytes(cpio.archive(entries))
    (folder / "vmlinux").symlink_to(image.kernel)
    return _described(image, folder)


def _described(image: Image, folder: Path) -> Path:
    files = {name: {"sha256": debs.file_sha256(folder / name), "len": (folder / name).stat().st_size}
             for name in ("initramfs", "vmlinux")}
    (folder / "manifest.json").write_text(json.dumps({**image.manifest, "files": files}))
    return folder


def fake_with(image: Image, folder: Path, entries: dict[str, cpio.Entry]) -> Path:
    """An image with these files in the place of its own."""
    folder.mkdir()
    (folder / "initramfs").write_bytes(initramfs_with(image, entries))
    (folder / "vmlinux").symlink_to(image.kernel)
    return _described(image, folder)


def init_of(image: Image) -> bytes:
    """Its first program."""
    archive, at = image.initramfs.read_bytes(), 0
    while True:
        size, name_len = (int(archive[at + 6 + 8 * n:at + 14 + 8 * n], 16) for n in (6, 11))
        data = at + (110 + name_len + 3 & ~3)
        if archive[at + 110:at + 110 + name_len - 1] == b"init":
            return archive[data:data + size]
        at = data + (size + 3 & ~3)


def switch(images: Path, to: Path) -> None:
    """From now on this one is started."""
    new = images / "new"
    new.symlink_to(to)
    new.rename(images / "guest")
