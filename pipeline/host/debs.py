# SPDX-License-Identifier: Apache-2.0
"""Debian packages, pinned: a lock file names each with its version and the sha256 of its file.

They are fetched by apt's own client, checked, kept in a cache, and unpacked into a folder: nothing is installed.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import HostError

ROLES = ("kernel", "build", "library", "debug", "crypto")


@dataclass(frozen=True)
class Package:
    """One line of the lock file. ``role``: what the image needs it for."""

    role: str
    name: str
    version: str
    sha256: str


def lock_read(text: str) -> list[Package]:
    """The packages of a lock file."""
    packages = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if len(words) != 4 or words[0] not in ROLES or not re.fullmatch("[0-9a-f]{64}", words[3]):
            raise HostError(f"the lock of the image's packages is broken in line {number}",
                            hint="make it anew: swarmline images lock")
        packages.append(Package(*words))
    return packages


def lock_text(packages: Iterable[Package]) -> str:
    """A lock file, in the order given."""
    lines = ["# SPDX-License-Identifier: Apache-2.0",
             "# The Debian packages that guest images are made of. Made by: swarmline images lock",
             "# role package version sha256"]
    lines += [f"{p.role} {p.name} {p.version} {p.sha256}" for p in packages]
    return "\n".join(lines) + "\n"


def candidate(name: str) -> dict[str, str]:
    """What apt knows of the version of a package that it would install: the fields of its control file."""
    found = run(["apt-cache", "--no-all-versions", "show", name], f"apt knows no package {name}")
    return dict(re.findall(r"^([A-Z][\w-]*): (.*)$", found, re.MULTILINE))


def pin(role: str, name: str) -> Package:
    """The candidate version of a package, as a line of the lock. apt has checked the signature over its sha256."""
    fields = candidate(name)
    return Package(role, name, fields["Version"], fields["SHA256"])


def fetch(packages: Sequence[Package], cache: Path) -> dict[str, Path]:
    """The files of the packages by name, from the cache or from the archive, checked either way."""
    cache.mkdir(parents=True, exist_ok=True)
    return {package.name: _fetch_one(package, cache) for package in packages}


def unpack(file: Path, folder: Path) -> None:
    """Puts the contents of a package below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    run(["dpkg-deb", "--extract", str(file), str(folder)], f"can not unpack {file.name}")


def run(argv: Sequence[str], otherwise: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Runs a program to its end and returns what it printed. HostError(otherwise), with its last words, if it
    failed."""
    try:
        done = subprocess.run(argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              errors="replace", check=False)
    except FileNotFoundError:
        raise HostError(f"{otherwise}: there is no program {argv[0]}",
                        hint="install the packages of the group vm in packages/debian-12.txt") from None
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
        raise HostError(f"{otherwise}: {words[-1]}")
    return done.stdout


def _fetch_one(package: Package, cache: Path) -> Path:
    kept = cache / f"{package.name}_{package.sha256[:16]}.deb"
    if kept.exists() and file_sha256(kept) == package.sha256:
        return kept
    with tempfile.TemporaryDirectory(dir=cache, prefix=".new-") as folder:
        try:
            run(["apt-get", "-q", "download", f"{package.name}={package.version}"],
                f"can not fetch {package.name} {package.version}", cwd=Path(folder))
        except HostError as error:
            raise HostError(str(error), hint="refresh apt's lists (apt-get update); if the archive has only a newer "
                                             "version, pin that: swarmline images lock") from None
        file = next(Path(folder).glob("*.deb"))
        if file_sha256(file) != package.sha256:
            raise HostError(f"{package.name} {package.version} is not the file that was pinned",
                            hint="do not use it unless you know why; to pin it: swarmline images lock")
        file.rename(kept)
    return kept


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
