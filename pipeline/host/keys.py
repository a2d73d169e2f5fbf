# SPDX-License-Identifier: Apache-2.0
"""What swarmline keeps in the holder under which key. Notes are JSON, also in DIR/state.json; secrets are memfds
only.
"""

from __future__ import annotations

CONFIG = "config"                  # note: {"file", "text"} of the configuration that counts
HUGEPAGES = "hugepages"            # note: how many `up` added to the kernel's pools, by node or "any", to be given back
MANAGER_ERROR = "manager-error"    # note: why a manager gave up, for who waits for it
SWARM = "swarm"                    # memfd: the plan's state, for the next manager
GRANTS = "grants-{}"               # socket: over which a process instance is given descriptors, by VMID
TLS_SECRETS = "tls-secrets"        # memfd: throw-away key pairs, ticket keys, the pool's key
