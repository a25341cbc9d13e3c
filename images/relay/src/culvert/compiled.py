# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The compiled batch and system calls. Importing this raises ImportError where they were not built."""

from __future__ import annotations

from ._native import CompiledBatch, CompiledCalls

__all__ = ["CompiledBatch", "CompiledCalls"]
