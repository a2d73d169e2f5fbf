# SPDX-License-Identifier: Apache-2.0
"""swarmline's control plane: the Swarm Manager and its command line.

Folders show the direction of imports: ``cli -> api -> manager -> actor -> instances -> host -> _native``. All of
them may import ``policy`` and ``errors``, which do no I/O. A test checks it.
"""
