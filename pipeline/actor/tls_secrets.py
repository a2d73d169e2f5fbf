# SPDX-License-Identifier: Apache-2.0
"""Keys: files are read anew each time; what was made for this swarm is in the holder's memory, never on a disk."""

from __future__ import annotations

import os
import pickle
from hashlib import sha256
from pathlib import Path

from pipeline.actor.kept import keep, kept
from pipeline.errors import SwarmlineError
from pipeline.host import keys
from pipeline.host.certs import POOL_KEY_LEN, KeyPair, TicketKey, self_signed
from pipeline.host.holder_client import HolderClient
from pipeline.instances.conf import Secrets
from pipeline.policy.config import Config


def load(holder: HolderClient, config: Config) -> Secrets:
    """What tls instances are to have by this configuration. Raises SwarmlineError if a file can not be read."""
    pairs = [KeyPair(_file(c.cert, "certificate"), _file(c.key, "key")) for c in config.tls.certificates]
    made: tuple[dict[str, KeyPair], list[TicketKey], bytes] = ({}, [TicketKey.fresh()], os.urandom(POOL_KEY_LEN))
    memory = kept(holder, keys.TLS_SECRETS)
    if memory is not None:
        made = pickle.loads(memory)         # written below
    missing = [name for name in config.tls.self_signed if name not in made[0]]
    made[0].update({name: self_signed([name]) for name in missing})
    if missing or memory is None:
        keep(holder, keys.TLS_SECRETS, pickle.dumps(made))
    return Secrets((*pairs, *(made[0][name] for name in config.tls.self_signed)), made[1], made[2])


def digest(secrets: Secrets) -> str:
    """Of keys and certificates: instances that were given others have another."""
    return sha256(b"".join(pair.cert + pair.key for pair in secrets.key_pairs)).hexdigest()[:12]


def _file(path: object, what: str) -> bytes:
    try:
        return Path(str(path)).read_bytes()
    except OSError as error:
        raise SwarmlineError(f"cannot read the {what} {path}: {error.strerror}",
                             hint="see `certificates` in [layer.tls]") from error
