# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m culvert``."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
