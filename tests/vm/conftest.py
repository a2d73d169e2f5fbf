# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests with guests: the image, a holder, and what the guest said when a test fails."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.leftovers import leftovers
from support.needs import require

pytest.register_assert_rewrite("vm.guest_rig")

from vm.guest_rig import Measured, holder_made  # noqa: E402

from pipeline.errors import HostError  # noqa: E402
from pipeline.host import images as guest_images  # noqa: E402
from pipeline.host.holder_client import HolderClient  # noqa: E402


@pytest.fixture(scope="session")
def image() -> guest_images.Image:
    """The guest image of this build. Made the first time, which takes some ten seconds."""
    return built(guest_images.GUEST)


@pytest.fixture(scope="session")
def crypto_image() -> guest_images.Image:
    """The one with DPDK."""
    require("dpdk")
    return built(guest_images.CRYPTO)


def built(name: str) -> guest_images.Image:
    require("qemu")
    try:
        return guest_images.build(guest_images.default_folder(), guest_images.Sources.find(name), name)
    except HostError as error:
        if "fetch" in str(error):
            pytest.skip(f"no guest image: {error}")
        raise


@pytest.fixture(scope="module")
def images(image: guest_images.Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of images in which `guest` can be another one for a while."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "guest").symlink_to(image.folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(guest_images.FOLDER_VARIABLE, str(folder))
        yield folder


@pytest.fixture(scope="module")
def vm_dir() -> Iterator[Path]:
    """As ``run_dir``, for all tests of a module."""
    folder = Path(tempfile.mkdtemp(prefix="slt-", dir="/tmp"))
    yield folder
    left = leftovers(folder)
    assert not left, "left behind:\n" + "\n".join(left)
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


@pytest.fixture(scope="module")
def holder(vm_dir: Path) -> Iterator[HolderClient]:
    with holder_made(vm_dir) as client:
        yield client


@pytest.fixture
def measured() -> Measured:
    """Notes a number: ``pytest -rP`` shows it."""
    return lambda name, value: print(f"measured {name} = {value}")
