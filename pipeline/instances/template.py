# SPDX-License-Identifier: Apache-2.0
"""Templates: a machine that has booted and waits for its doorbell device, saved so that others go on from there.

::

    FOLDER/template-DIGEST/ram      the guest's memory, sparse
                           state    everything else, as QEMU's migration writes it

A template is good for one image, initramfs, size of memory and QEMU, which its digest names. It lies beside the image,
so it is made once on a machine. All that is restored from it begins with the same random numbers: the first process of
the guest takes a fresh seed from the control region before anything else happens, and OpenSSL is seeded anew
(c/instance/guest.c).
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KEPT = 4                  # templates of one image: another site or size of memory makes another


@dataclass(frozen=True)
class Template:
    """A place for a template, or one that is there."""

    folder: Path

    @classmethod
    def of(cls, image_folder: Path, *made_of: bytes) -> Template:
        digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in made_of)).hexdigest()[:12]
        return cls(image_folder / f"template-{digest}")

    @property
    def ram(self) -> Path:
        return self.folder / "ram"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def there(self) -> bool:
        return self.state.exists()

    def keep(self, memory_fd: int, length: int, state_fd: int) -> None:
        """Takes what a machine left that was saved and has ended. Raises OSError."""
        draft = self.folder.with_suffix(f".{os.getpid()}")
        draft.mkdir(mode=0o700)
        try:
            with open(draft / "ram", "wb") as ram:
                ram.truncate(length)
                for begin, end in _filled(memory_fd):
                    ram.seek(begin)
                    while begin < end:
                        begin += os.sendfile(ram.fileno(), memory_fd, begin, end - begin)
            size = os.fstat(state_fd).st_size
            (draft / "state").write_bytes(os.pread(state_fd, size, 0))
            shutil.rmtree(self.folder, ignore_errors=True)
            draft.rename(self.folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self._prune()

    def pour(self, memory_fd: int, length: int) -> None:
        """Fills a new machine's memory. Raises OSError."""
        with open(self.ram, "rb") as ram, mmap.mmap(ram.fileno(), length, prot=mmap.PROT_READ) as source, \
                mmap.mmap(memory_fd, length) as target:
            for begin, end in _filled(ram.fileno()):
                target[begin:end] = source[begin:end]

    def remove(self) -> None:
        """It was of no use."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _prune(self) -> None:
        others = sorted(self.folder.parent.glob("template-*"), key=lambda path: path.stat().st_mtime)
        for old in others[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)


def _filled(fd: int) -> Iterator[tuple[int, int]]:
    """The ranges of a sparse file that hold something."""
    end = 0
    while True:
        try:
            begin = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(fd, begin, os.SEEK_HOLE)
        yield begin, end
