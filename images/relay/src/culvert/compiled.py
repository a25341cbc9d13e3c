# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The compiled batch, where the extension module was built: importing this raises ImportError elsewhere."""

from __future__ import annotations

from ._native import CompiledBatch

__all__ = ["CompiledBatch"]
