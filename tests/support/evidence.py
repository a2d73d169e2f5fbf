# SPDX-License-Identifier: Apache-2.0
"""What a test that fails shows beside its own words, by title. Whoever runs something that says things adds it here
for as long as it lasts.
"""

from collections.abc import Callable

EVIDENCE: dict[str, Callable[[], str]] = {}
