# SPDX-License-Identifier: Apache-2.0
"""Throw-away certificates for a first try, and the keys of session tickets. Keys are made in memory or in
folders that only root can open."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from pipeline.errors import HostError

DAYS = 30


POOL_KEY_LEN = 32      # bytes of struct sl_pool_key


@dataclass(frozen=True)
class KeyPair:
    """A PEM certificate chain and its PEM private key. The key stays out of every repr."""

    cert: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"KeyPair({len(self.cert)} bytes of certificate)"


@dataclass(frozen=True)
class TicketKey:
    """One key for TLS session tickets, in the parts of struct sl_ticket_key."""

    name: bytes          # 16 bytes: tells the pool's instances which key a ticket was made with
    hmac_key: bytes      # 32
    aes_key: bytes       # 32

    def __repr__(self) -> str:
        return f"TicketKey({self.name.hex()})"

    @classmethod
    def fresh(cls) -> TicketKey:
        return cls(os.urandom(16), os.urandom(32), os.urandom(32))

    def packed(self) -> bytes:
        """As struct sl_ticket_key."""
        return self.name + self.hmac_key + self.aes_key


def self_signed(names: Sequence[str]) -> KeyPair:
    """A certificate for these host names and addresses, EC P-256, signed by itself, valid for 30 days."""
    if not names:
        raise ValueError("a certificate needs a name")
    with tempfile.TemporaryDirectory(prefix="sl-cert-") as folder:      # mode 0700
        key, cert = Path(folder, "key.pem"), Path(folder, "cert.pem")
        _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc",
                 "-sha256", "-days", str(DAYS), "-subj", f"/CN={_common_name(names[0])}",
                 "-addext", f"subjectAltName={','.join(map(_alternative, names))}",
                 "-addext", "basicConstraints=critical,CA:FALSE", "-addext", "extendedKeyUsage=serverAuth",
                 "-keyout", str(key), "-out", str(cert))
        return KeyPair(cert.read_bytes(), key.read_bytes())


def _alternative(name: str) -> str:
    try:
        return f"IP:{ip_address(name)}"
    except ValueError:
        pass
    labels = name.split(".")
    if not name.isascii() or not all(label == "*" or label.replace("-", "a").isalnum() for label in labels):
        raise HostError(f"{name!r} is no host name", hint="write it as it stands in a URL, in ASCII")
    return f"DNS:{name}"


def _common_name(name: str) -> str:
    return name[:64]       # upper bound of RFC 5280 appendix A.1; clients look at subjectAltName


def _openssl(*arguments: str) -> None:
    try:
        done = subprocess.run(("openssl", *arguments), stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=30)
    except FileNotFoundError as error:
        raise HostError("the program openssl is not installed", hint="apt install openssl") from error
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise HostError(f"openssl made no certificate: {''.join(last)}")
