# SPDX-License-Identifier: Apache-2.0
"""Benchmarks with peers. ``harness`` knows how to compare, each other module what to compare."""
