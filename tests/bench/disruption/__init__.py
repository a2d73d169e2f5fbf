# SPDX-License-Identifier: Apache-2.0
"""The disruption benchmark: clients that never stop asking, events that disturb, and a checker that reads what the
clients saw.

``clients`` writes a history, ``events`` and ``peers`` disturb a swarm, nginx or HAProxy, ``checker`` judges the
history, ``report`` shows it. Only the checker decides what is wrong; it is a pure function, so ``test_checker`` can
show it every kind of wrong history.
"""
