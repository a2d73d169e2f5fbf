# SPDX-License-Identifier: Apache-2.0
"""What an instance is made of: ``driver`` says what every kind can do, ``process`` is a sandboxed process."""
