# SPDX-License-Identifier: Apache-2.0
"""What a process of a swarm can reach, read from /proc: mappings, and the private key in its memory."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path

from system.swarm_rig import OWN_KEY_FILE, Swarm

# of each layer, those that its instances may map
EDGES = {
    "tcp": {"tcp-tls", "tcp-http"},
    "tls": {"tcp-tls", "tls-http"},
    "http": {"tcp-http", "tls-http", "http-app"},
    "app": {"http-app"},
}


def memfds_mapped(pid: int) -> set[str]:
    return set(re.findall(r"/memfd:(\S+)", Path(f"/proc/{pid}/maps").read_text()))


def needles(swarm: Swarm) -> list[bytes]:
    """The private key as it may lie in memory: PEM, DER, and the number alone, as OpenSSL computes with it."""
    text = (swarm.folder / OWN_KEY_FILE).read_text()
    body = "".join(line for line in text.splitlines() if "-----" not in line)
    der = base64.b64decode(body)
    at = der.index(b"\x02\x01\x01\x04\x20") + 5  # ECPrivateKey of RFC 5915: version 1, OCTET STRING of 32 bytes
    secret = der[at : at + 32]
    # the PEM line that holds the secret's middle
    line = text.splitlines()[1]
    return [secret, secret[::-1], line.encode()]


def memory(pid: int, only: str = "", but: str = "nothing") -> Iterator[bytes]:
    """Each readable mapping of a process whose line in /proc/PID/maps contains ``only`` and not ``but``."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as mem:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, flags = line.split()[:2]
            special = line.endswith(("[vvar]", "[vvar_vclock]", "[vsyscall]"))
            if "r" not in flags or only not in line or but in line or special:
                continue
            start, end = (int(n, 16) for n in span.split("-"))
            mem.seek(start)
            data = b""
            while len(data) < end - start and (piece := mem.read(end - start - len(data))):
                data += piece
            yield data


def holds_key(pid: int, swarm: Swarm, only: str = "") -> bool:
    secrets = needles(swarm)
    return any(secret in data for data in memory(pid, only) for secret in secrets)
