# SPDX-License-Identifier: Apache-2.0
"""Guest images: pinned, reproducible, complete or not there."""

import stat
from pathlib import Path

import pytest
from support import ROOT

from pipeline.errors import HostError
from pipeline.host import cpio, debs, images
from pipeline.host.images import Image, Sources

LOCK = ROOT / "vm-images/packages.lock"


def files_of(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """An independent reader: mode and contents by path."""
    found, at = {}, 0
    while True:
        assert archive[at:at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n:at + 14 + 8 * n], 16) for n in range(13)]
        name = archive[at + 110:at + 110 + fields[11] - 1].decode()
        data = at + (110 + fields[11] + 3 & ~3)
        if name == "TRAILER!!!":
            return found
        found[name] = fields[1], archive[data:data + fields[6]]
        at = data + (fields[6] + 3 & ~3)


def test_an_archive_has_its_folders_before_its_files() -> None:
    made = cpio.archive({"a/b/file": cpio.regular(b"12345", 0o755), "link": cpio.symlink("a/b"),
                         "dev/null": cpio.character_device(1, 3)})
    files = files_of(made)
    assert list(files) == ["a", "a/b", "a/b/file", "dev", "dev/null", "link"]
    assert files["a/b/file"] == (stat.S_IFREG | 0o755, b"12345")
    assert files["link"] == (stat.S_IFLNK | 0o777, b"a/b")
    assert stat.S_ISCHR(files["dev/null"][0])
    assert len(made) % 512 == 0


def test_a_tree_keeps_inside_its_folder(tmp_path: Path) -> None:
    root = tmp_path / "www"
    (root / "sub").mkdir(parents=True)
    (root / "sub/page").write_text("yes")
    (tmp_path / "secret").write_text("no")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "in").symlink_to("sub/page")
    found = {name: entry.data for name, entry in cpio.tree(root, "srv").items()}
    assert found == {"srv/sub/page": b"yes", "srv/in": b"yes"}


def test_the_lock_pins_all_that_is_needed() -> None:
    packages = debs.lock_read(LOCK.read_text())
    assert {p.role for p in packages} == set(debs.ROLES)
    assert {*images.LIBRARIES, *images.DPDK_PACKAGES} <= {p.name for p in packages}
    (kernel,) = (p for p in packages if p.role == "kernel")
    assert {p.version for p in packages if p.role == "build"} == {kernel.version}
    assert debs.lock_text(packages) == LOCK.read_text()


@pytest.mark.parametrize("line", ["kernel a 1", "other a 1 " + "0" * 64, "kernel a 1 abc", "kernel a 1 " + "g" * 64])
def test_a_broken_lock_is_refused(line: str) -> None:
    with pytest.raises(HostError, match="line 2"):
        debs.lock_read(f"# comment\n{line}\n")


def test_a_package_that_is_not_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str], otherwise: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
        assert cwd
        (cwd / "a_1_amd64.deb").write_bytes(b"something else")
        return ""

    monkeypatch.setattr(debs, "run", run)
    with pytest.raises(HostError, match="not the file that was pinned"):
        debs.fetch([debs.Package("kernel", "a", "1", "0" * 64)], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_image_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        images.load(tmp_path)
    assert "no guest image" in str(caught.value)
    assert "swarmline images build" in caught.value.hint


def test_a_damaged_image_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "guest-0123456789ab"
    folder.mkdir()
    (folder / "vmlinux").write_bytes(b"short")
    (folder / "manifest.json").write_text('{"files": {"vmlinux": {"len": 6}}}')
    (tmp_path / "guest").symlink_to(folder.name)
    with pytest.raises(HostError, match="damaged"):
        images.load(tmp_path)


@pytest.mark.qemu
def test_the_image_holds_what_it_says_and_no_shell(image: Image) -> None:
    files = files_of(image.initramfs.read_bytes())
    assert {name: {"mode": f"{mode:o}", "len": len(data)} for name, (mode, data) in files.items()
            if not stat.S_ISDIR(mode)} == {name: about for name, about in image.manifest["initramfs"].items()   # type: ignore[attr-defined]
                                           if not about["mode"].startswith("40")}
    assert {Path(name).name for name in files} & {"sh", "bash", "busybox"} == set()
    assert image.kernel.read_bytes()[:4] == b"\x7fELF"


@pytest.mark.qemu
@pytest.mark.parametrize("which", ["image", pytest.param("crypto_image", marks=pytest.mark.dpdk)])
def test_the_same_inputs_make_the_same_bytes(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    image: Image = request.getfixturevalue(which)
    other = tmp_path / "a folder of another length"
    other.mkdir()
    (other / "packages").symlink_to(images.default_folder() / "packages")
    again = images.build(other, Sources.find(image.name), image.name)
    assert again.digest == image.digest
    for name in ("vmlinux", "initramfs", "manifest.json"):
        assert debs.file_sha256(again.folder / name) == debs.file_sha256(image.folder / name)
    assert [path.name for path in sorted(other.iterdir())] == [image.name, f"{image.name}-{again.digest}", "packages"]


@pytest.mark.qemu
@pytest.mark.dpdk
def test_only_the_image_for_accelerators_has_dpdk(image: Image, crypto_image: Image) -> None:
    def dpdk(of: Image) -> set[str]:
        return {Path(name).name.partition(".")[0] for name in files_of(of.initramfs.read_bytes()) if "librte_" in name}

    assert dpdk(image) == set()
    assert {f"librte_{driver}" for driver in images.DPDK_DRIVERS} <= dpdk(crypto_image)

