# SPDX-License-Identifier: Apache-2.0
"""Writes the C source of ``pipeline._native`` from the headers themselves.

Usage: ``_native_build.py OUT ROOT HEADER...``. HEADER is every data header of ``c/abi`` and every header of
functions that Python calls. The declarations are read from the very text that gcc and clang compile, so there
is no second copy to keep in step: this file only drops what cffi's parser does not know (preprocessor lines,
static assertions) and orders the headers.

Build-time only: it is not installed.
"""

import re
import sys
from pathlib import Path

import cffi

# <linux/types.h>, in the words that cffi knows
KERNEL_TYPES = """
typedef unsigned char __u8; typedef unsigned short __u16; typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8; typedef short __s16; typedef int __s32; typedef long long __s64;
typedef __u16 __be16; typedef __u32 __be32; typedef __u64 __be64;
"""

_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_NOT_DECLARATIONS = re.compile(r"^[ \t]*(#(?:.*\\\n)*.*|_Static_assert\b.*;)[ \t]*$", re.MULTILINE)


def in_include_order(headers: list[Path]) -> list[Path]:
    """The headers with each one after those that it includes."""
    by_name = {header.name: header for header in headers}
    if len(by_name) != len(headers):
        raise SystemExit("two headers of pipeline._native have the same name")
    done: dict[str, Path] = {}

    def visit(header: Path, above: tuple[str, ...]) -> None:
        if header.name in above:
            raise SystemExit(f"#include cycle: {' -> '.join((*above, header.name))}")
        for included in _INCLUDE.findall(header.read_text()):
            name = Path(included).name
            if name in by_name and name not in done:
                visit(by_name[name], (*above, header.name))
        done[header.name] = header

    for header in headers:
        if header.name not in done:
            visit(header, ())
    return list(done.values())


def declarations(header: Path) -> str:
    """What the header declares, without comments, preprocessor lines and static assertions."""
    return _NOT_DECLARATIONS.sub("", _COMMENT.sub(" ", header.read_text()))


def builder(root: Path, headers: list[Path]) -> cffi.FFI:
    """The cffi description of the module ``pipeline._native``."""
    ordered = in_include_order(headers)
    ffi = cffi.FFI()
    ffi.cdef(KERNEL_TYPES)
    for header in ordered:
        try:
            ffi.cdef(declarations(header))
        except (cffi.CDefError, cffi.FFIError) as error:
            raise SystemExit(f"{header}: cffi can not read this header: {error}") from error
    includes = "".join(f'#include "{header.relative_to(root)}"\n' for header in ordered)
    ffi.set_source("pipeline._native", includes)
    return ffi


def main(out: str, root: str, *headers: str) -> None:
    top = Path(root).resolve()
    builder(top, [Path(header).resolve() for header in headers]).emit_c_code(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
