# SPDX-License-Identifier: Apache-2.0
"""What tests share. Import it as ``support``: pytest puts the folder ``tests`` on the path."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The source tree. Tests read sources and run tools from here; they import the *installed* package."""
