# SPDX-License-Identifier: Apache-2.0
"""`swarmline images`: the kernel and initramfs of instances that are virtual machines."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.options import Json, print_json
from pipeline.cli.show import size
from pipeline.host import images

Folder = Annotated[Path | None, typer.Option(
    "--dir", help="Folder of the images. Default: /var/cache/swarmline, or ~/.cache/swarmline.")]

group = typer.Typer(no_args_is_help=True, help="Guest images: kernel and initramfs for instances that are VMs.")


@group.command()
def build(folder: Folder = None,
          debug: Annotated[bool, typer.Option("--debug", help="Add busybox; the image is called guest-debug.")] = False,
          crypto: Annotated[bool, typer.Option(
              "--crypto", help="With DPDK, to use an accelerator; the image is called guest-crypto.")] = False,
          force: Annotated[bool, typer.Option("--force", help="Also if nothing has changed.")] = False,
          as_json: Json = False) -> None:
    """Make the guest image from pinned Debian packages, if it is not up to date.

    Example: swarmline images build
    """
    begun = time.monotonic()
    if debug and crypto:
        raise typer.BadParameter("one image at a time: --debug or --crypto")
    name = images.DEBUG if debug else images.CRYPTO if crypto else images.GUEST
    image = images.build(folder or images.default_folder(), images.Sources.find(name), name, force=force)
    if as_json:
        print_json(facts(image))
    else:
        print(f"{line(image)}  ({time.monotonic() - begun:.1f} s)")


@group.command("list")
def list_(folder: Folder = None, as_json: Json = False) -> None:
    """Show the guest images of this machine.

    Example: swarmline images list
    """
    found = images.installed(folder or images.default_folder())
    if as_json:
        print_json([facts(image) for image in found])
        return
    for image in found:
        print(line(image))
    if not found:
        print("no guest image; make it: swarmline images build")


@group.command()
def lock(file: Annotated[Path, typer.Argument(help="The lock file.")] = Path("vm-images/packages.lock")) -> None:
    """Pin the versions of the packages that Debian offers now (after apt-get update).

    Example: swarmline images lock
    """
    text = images.lock()
    file.write_text(text)
    print(f"{file}: {text.count(chr(10)) - 3} packages")


def facts(image: images.Image) -> dict[str, Any]:
    """An image for machines."""
    return {"name": image.name, "digest": image.digest, "folder": str(image.folder), "kernel": image.manifest["kernel"],
            "kernel_len": image.kernel.stat().st_size, "initramfs_len": image.initramfs.stat().st_size}


def line(image: images.Image) -> str:
    """An image for people."""
    kernel, initramfs = size(image.kernel.stat().st_size), size(image.initramfs.stat().st_size)
    return f"{image.name:12} {image.digest}  Linux {image.manifest['kernel']}, {kernel} + {initramfs}  {image.folder}"


def register(cli: typer.Typer) -> None:
    cli.add_typer(group, name="images")
