# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ways over the outer network; each carries datagrams between endpoints."""

from __future__ import annotations

from .base import Lost, Target, Transport, TransportFactory, Unsent

__all__ = ["Lost", "Target", "Transport", "TransportFactory", "Unsent"]
