# SPDX-License-Identifier: Apache-2.0
"""Guest images: a kernel and an initramfs, in which the program swarmline-instance is the first and only one.

Made of pinned Debian packages (``debs``), of the program and of the guest driver, without special rights, and bit
for bit the same from the same inputs. GUEST serves all layers. CRYPTO is for machines that may be given an accelerator:
its program is the one with DPDK, beside DPDK's drivers. DEBUG has a shell.

::

    DIR/NAME -> NAME-DIGEST/     vmlinux         ELF, booted by PVH, which is faster than bzImage
                                 initramfs       cpio: see below
                                 manifest.json   what it is made of
    DIR/packages/                cache of package files

    initramfs:  /init  /modules/NN-NAME.ko  /lib/x86_64-linux-gnu/*.so.*  /lib64/ld-linux-x86-64.so.2  /dev/console
                and empty folders to mount on; DEBUG: /bin/busybox; CRYPTO: /usr/lib/x86_64-linux-gnu/dpdk/pmds-*/*.so.*
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import HostError
from pipeline.host import cpio, debs
from pipeline.host.debs import Package, run
from pipeline.host.processes import program

FORMAT = 1                     # of what this module makes: a new one makes images anew
GUEST, DEBUG, CRYPTO = "guest", "guest-debug", "guest-crypto"
PROGRAM, PROGRAM_DPDK = "swarmline-instance", "swarmline-instance-dpdk"
FOLDER_VARIABLE = "SWARMLINE_IMAGES"
DRIVER = "sl_ivshmem"
DRIVER_FILES = ("Kbuild", "device.c", "device.h", "lines.c", "lines.h", "vectors.c")
MODULES = ("virtio_pci", "virtio_net")     # with what they need; the driver comes last
COMPILER = "gcc-12"            # the kernel's own
LIBRARY_FOLDER = "lib/x86_64-linux-gnu"
LOADER = "lib64/ld-linux-x86-64.so.2"
META_KERNEL, META_HEADERS = "linux-image-cloud-amd64", "linux-headers-cloud-amd64"
LIBRARIES = ("libc6", "libmnl0", "libseccomp2", "libssl3")
ROLES = {DEBUG: "debug", CRYPTO: "crypto"}       # of the packages that only this image has
BUILD_HINT = {GUEST: "swarmline images build", DEBUG: "swarmline images build --debug",
              CRYPTO: "swarmline images build --crypto"}
# What DPDK opens by name: drivers of accelerators that seal TLS records, and what those stand on. What these need is
# found; so is ipsec_mb's library, which QAT's driver needs, and which a processor can use too.
UIO = "uio_pci_generic"
DPDK_DRIVERS = ("bus_pci", "bus_vdev", "mempool_ring", "common_qat", "crypto_ccp", "crypto_ipsec_mb", "crypto_nitrox",
                "crypto_virtio")
DPDK_PACKAGES = (*(f"librte-{name}23" for name in (
    "bus-pci", "bus-vdev", "common-qat", "compressdev", "crypto-ccp", "crypto-ipsec-mb", "crypto-nitrox",
    "crypto-virtio", "cryptodev", "eal", "kvargs", "mbuf", "mempool", "mempool-ring", "net", "pci", "rcu", "ring",
    "security", "telemetry")), "libbsd0", "libfdt1", "libipsec-mb1", "libmd0", "libnuma1")


@dataclass(frozen=True)
class Image:
    """A guest image, ready to boot."""

    name: str
    folder: Path
    manifest: Mapping[str, object]

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinux"

    @property
    def initramfs(self) -> Path:
        return self.folder / "initramfs"

    @property
    def digest(self) -> str:
        """Of all its bytes: a template made of it is good for exactly this."""
        return self.folder.name.removeprefix(f"{self.name}-")


@dataclass(frozen=True)
class Sources:
    """What of the project itself an image is made of."""

    lock: Path
    driver: tuple[Path, ...]
    header: Path
    program: Path

    @classmethod
    def find(cls, name: str = GUEST) -> Sources:
        """For the image of that name: as installed beside this package, or as they lie in the source tree."""
        binary = program(PROGRAM_DPDK if name == CRYPTO else PROGRAM)
        package = Path(__file__).resolve().parents[1]
        installed, tree = package / "vm-images", package.parent
        if installed.exists():
            return cls(installed / "packages.lock", tuple(installed / file for file in DRIVER_FILES),
                       installed / "ivshmem.h", binary)
        folder = tree / "vm-images"
        return cls(folder / "packages.lock", tuple(folder / "driver" / file for file in DRIVER_FILES),
                   tree / "c/abi/ivshmem.h", binary)


def default_folder() -> Path:
    """Where images live if nothing else is said."""
    said = os.environ.get(FOLDER_VARIABLE)
    return Path(said) if said else cache_folder()


def cache_folder() -> Path:
    """What is worth keeping of this machine."""
    return Path("/var/cache/swarmline") if os.geteuid() == 0 else Path.home() / ".cache/swarmline"


def load(folder: Path, name: str = GUEST) -> Image:
    """The image of that name; HostError if there is none."""
    try:
        place = (folder / name).resolve(strict=True)
        manifest = json.loads((place / "manifest.json").read_text())
        for file, digest in manifest["files"].items():
            if (place / file).stat().st_size != digest["len"]:
                raise HostError(f"image {name}: {file} is damaged", hint=f"make it anew: {BUILD_HINT[name]} --force")
    except (OSError, ValueError, KeyError) as error:
        raise HostError(f"there is no guest image {name} in {folder} ({error})",
                        hint=f"make it: {BUILD_HINT[name]}") from None
    return Image(name, place, manifest)


def verify(image: Image) -> None:
    """Whether its files are still what was built; HostError if not. Some tenths of a second."""
    files = image.manifest["files"]
    assert isinstance(files, Mapping)
    for name, about in files.items():
        if debs.file_sha256(image.folder / name) != about["sha256"]:
            raise HostError(f"image {image.name}: {name} is damaged",
                            hint=f"make it anew: {BUILD_HINT[image.name]} --force")


def initramfs_with(image: Image, files: Mapping[str, cpio.Entry]) -> bytes:
    """The image's initramfs with more files, such as the folder that an app serves: ``cpio.tree(root, "srv")``.
    The kernel unpacks one archive after the other; a file of the later one replaces that of the former."""
    return image.initramfs.read_bytes() + cpio.archive(dict(files))


def installed(folder: Path) -> list[Image]:
    """All images, by name."""
    names = sorted(path.name for path in folder.glob("*") if path.is_symlink()) if folder.exists() else []
    return [load(folder, name) for name in names]


def lock() -> str:
    """A new lock file: the versions that apt would install now."""
    kernel = _dependency(META_KERNEL, r"linux-image-\S+")
    headers = _dependency(META_HEADERS, r"linux-headers-\S+")
    common, kbuild = _dependency(headers, r"linux-headers-\S+-common"), _dependency(headers, r"linux-kbuild-\S+")
    roles = [("kernel", kernel), *(("build", name) for name in (headers, common, kbuild)),
             *(("library", name) for name in LIBRARIES), ("debug", "busybox-static"),
             *(("crypto", name) for name in DPDK_PACKAGES)]
    return debs.lock_text(debs.pin(role, name) for role, name in roles)


def build(folder: Path, sources: Sources, name: str = GUEST, *, force: bool = False) -> Image:
    """Makes the image if its inputs have changed. It is complete or not there: a running build is invisible."""
    others = {role for owner, role in ROLES.items() if owner != name}
    wanted = [p for p in debs.lock_read(sources.lock.read_text()) if p.role not in others]
    inputs = _inputs(name, sources, wanted)
    if not force:
        try:
            image = load(folder, name)
            if image.manifest["inputs"] == inputs:
                return image
        except HostError:
            pass                   # none yet
    folder.mkdir(parents=True, exist_ok=True)
    files = debs.fetch(wanted, folder / "packages")
    # the kernel's Makefiles can not live below a path with spaces, as the folder may be
    with (tempfile.TemporaryDirectory(prefix="sl-image-") as work,
          tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as new):
        made = Path(new, "image")
        _make(Path(work), made, sources, wanted, files, inputs)
        return _publish(folder, name, made)


# ---- inputs and outputs


def _dependency(package: str, pattern: str) -> str:
    found = re.search(rf"(?:^|[, ])({pattern}) ?(?:\(|,|$)", debs.candidate(package).get("Depends", ""))
    if not found:
        raise HostError(f"package {package} depends on nothing like {pattern}: its names have changed")
    return found[1]


def _inputs(name: str, sources: Sources, packages: Iterable[Package]) -> dict[str, object]:
    compiler = run([COMPILER, "--version"], "can not build the guest driver").splitlines()[0]
    own = (*sources.driver, sources.header)
    return {"format": FORMAT, "name": name, "compiler": compiler,
            "packages": {p.name: {"version": p.version, "sha256": p.sha256} for p in packages},
            "sources": {path.name: debs.file_sha256(path) for path in own},
            "program": hashlib.sha256(_stripped(sources.program)).hexdigest()}


def _publish(folder: Path, name: str, made: Path) -> Image:
    digest = hashlib.sha256()
    for path in sorted(made.iterdir()):
        digest.update(f"{path.name} {debs.file_sha256(path)}\n".encode())
    final = folder / f"{name}-{digest.hexdigest()[:12]}"
    if final.exists():             # the same bytes, unless they were damaged
        shutil.rmtree(final)
    made.rename(final)
    link = folder / f".{name}.new"
    link.unlink(missing_ok=True)
    link.symlink_to(final.name)
    link.rename(folder / name)
    for old in folder.glob(f"{name}-{'?' * 12}"):
        if old != final and old.is_dir():
            shutil.rmtree(old, ignore_errors=True)     # whoever boots it has read it; a template may just come or go
    return load(folder, name)


def _make(work: Path, made: Path, sources: Sources, packages: Sequence[Package], files: Mapping[str, Path],
          inputs: Mapping[str, object]) -> None:
    root = work / "root"
    for role in debs.ROLES:
        for package in (p for p in packages if p.role == role):
            debs.unpack(files[package.name], root)
    made.mkdir(mode=0o755)
    modules_root = next((root / "lib/modules").iterdir())
    (made / "vmlinux").write_bytes(_vmlinux((root / f"boot/vmlinuz-{modules_root.name}").read_bytes()))
    more = (UIO,) if inputs["name"] == CRYPTO else ()
    entries = _modules(modules_root, (*MODULES, *more), _driver(work, root, modules_root.name, sources))
    entries["init"] = cpio.regular(_stripped(sources.program), 0o755)
    entries |= {name: cpio.directory() for name in ("dev", "mnt", "proc", "sys", "tmp")}
    entries["dev/console"] = cpio.character_device(5, 1)       # the kernel opens it before /init can mount anything
    binaries = [sources.program]
    if inputs["name"] == DEBUG:
        entries["bin/busybox"] = cpio.regular((root / "bin/busybox").read_bytes(), 0o755)
    if inputs["name"] == CRYPTO:
        drivers = [_dpdk_driver(root, driver) for driver in DPDK_DRIVERS]
        entries |= {str(path.relative_to(root)): cpio.regular(path.read_bytes(), 0o755) for path in drivers}
        entries["run"] = cpio.directory()              # DPDK makes a folder in it
        binaries += drivers
    entries |= _libraries(binaries, root)
    (made / "initramfs").write_bytes(cpio.archive(entries))
    about = {path.name: {"sha256": debs.file_sha256(path), "len": path.stat().st_size}
             for path in sorted(made.iterdir())}
    contents = {path: {"mode": f"{entry.mode:o}", "len": len(entry.data)} for path, entry in sorted(entries.items())}
    manifest = {"kernel": modules_root.name, "inputs": inputs, "files": about, "initramfs": contents}
    (made / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


# ---- contents


def _vmlinux(image: bytes) -> bytes:
    """The ELF kernel inside a bzImage, whose header says where the payload lies (Documentation/x86/boot.rst)."""
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (image[0x1F1] + 1) * 512 + offset
    payload = image[start:start + length]
    by_magic = {b"\x02\x21\x4c\x18": "lz4", b"\xfd7zX": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x8b\x08\x00": "gzip"}
    tool = by_magic.get(payload[:4])
    if image[0x202:0x206] != b"HdrS" or tool is None:
        raise HostError("the kernel is packed in a way that is not known here")
    try:                           # the last four bytes are the unpacked length, which is not the tool's business
        done = subprocess.run([tool, "-dc"], input=payload[:-4], capture_output=True, check=False)
    except FileNotFoundError:
        raise HostError(f"can not unpack the kernel: there is no program {tool}",
                        hint="install the packages of the group vm in packages/debian-12.txt") from None
    expected = int.from_bytes(payload[-4:], "little")
    if done.stdout[:4] != b"\x7fELF" or len(done.stdout) != expected:
        raise HostError(f"can not unpack the kernel: {tool} gave {len(done.stdout)} of {expected} bytes")
    return done.stdout


def _driver(work: Path, root: Path, release: str, sources: Sources) -> bytes:
    """The guest driver's module, without what tells where it was built."""
    headers, folder = root / f"usr/src/linux-headers-{release}", work / "driver"
    (folder / "abi").mkdir(parents=True)
    for source in sources.driver:
        shutil.copyfile(source, folder / source.name)
    shutil.copyfile(sources.header, folder / "abi/ivshmem.h")
    makefile = headers / "Makefile"
    makefile.write_text(makefile.read_text().replace(" /usr/src/", f" {root}/usr/src/"))
    run(["make", "-C", str(headers), f"M={folder}", f"SL_INCLUDE={folder}", f"CC={COMPILER}",
         f"KCFLAGS=-ffile-prefix-map={folder}=. -ffile-prefix-map={root}=.", "modules"],
        "can not build the guest driver", env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"})
    module = folder / f"{DRIVER}.ko"
    run(["strip", "--strip-debug", "--remove-section=.note.gnu.build-id", str(module)],
        "can not strip the guest driver")
    return module.read_bytes()


def _modules(modules_root: Path, names: Iterable[str], driver: bytes) -> dict[str, cpio.Entry]:
    """The modules in the order in which they can be loaded, told by their names."""
    order = modules_with_needs(modules_root, names)
    order[DRIVER] = driver
    return {f"modules/{number:02}-{name}.ko": cpio.regular(data) for number, (name, data) in enumerate(order.items())}


def modules_with_needs(modules_root: Path, names: Iterable[str]) -> dict[str, bytes]:
    """These modules and those that they need, which come first. HostError if one is missing."""
    by_name = {path.stem.replace("-", "_"): path for path in sorted(modules_root.rglob("*.ko"))}
    order: dict[str, bytes] = {}

    def need(name: str) -> None:
        if name in order:
            return
        if name not in by_name:
            raise HostError(f"kernel {modules_root.name} has no module {name}")
        data = by_name[name].read_bytes()
        found = re.search(rb"\0depends=([\w,-]*)\0", data)
        for other in filter(None, (found[1].decode() if found else "").split(",")):
            need(other.replace("-", "_"))
        order[name] = data

    for name in names:
        need(name)
    return order


def _dpdk_driver(root: Path, name: str) -> Path:
    """The file itself, in the folder where DPDK looks for it: its link beside other libraries is what programs need."""
    found = sorted((root / "usr" / LIBRARY_FOLDER / "dpdk").glob(f"pmds-*/librte_{name}.so.*.*"))
    if not found:
        raise HostError(f"there is no driver {name} in the pinned packages of DPDK")
    return found[0]


def _libraries(binaries: Iterable[Path], root: Path) -> dict[str, cpio.Entry]:
    """The shared libraries that programs need, and their loader, out of the pinned packages: not this machine's."""
    entries: dict[str, cpio.Entry] = {}
    todo = list(binaries)
    while todo:
        binary = todo.pop()
        dynamic = run(["readelf", "--dynamic", "--wide", str(binary)], "can not read a program's dynamic section")
        for name in re.findall(r"\(NEEDED\)\s+Shared library: \[([^\]]+)\]", dynamic):
            place = f"{LIBRARY_FOLDER}/{name}"
            if place in entries or name == Path(LOADER).name:
                continue
            found = next((path for path in (root / place, root / "usr" / place) if path.exists()), None)
            if found is None:
                raise HostError(f"{binary.name} needs {name}, which is in none of the pinned packages",
                                hint="name its package in pipeline/host/images.py: swarmline images lock")
            driver = found.resolve().relative_to(root.resolve())
            linked = driver.parent.name.startswith("pmds-")    # DPDK must not open it twice by two names
            entries[place] = cpio.symlink(f"/{driver}") if linked else cpio.regular(found.read_bytes(), 0o755)
            todo.append(found)
    if entries:
        entries[LOADER] = cpio.regular((root / LIBRARY_FOLDER / Path(LOADER).name).resolve().read_bytes(), 0o755)
    return entries


def _stripped(binary: Path) -> bytes:
    """The program without symbols, and without the build id, which depends on where it was built."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, binary.name)
        run(["strip", "--strip-all", "--remove-section=.note.gnu.build-id", "-o", str(out), str(binary)],
            f"can not strip {binary.name}")
        return out.read_bytes()
