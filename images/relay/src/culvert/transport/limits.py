# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many connections a process may have."""

from __future__ import annotations

import contextlib
import resource

__all__ = ["descriptors"]

# For what else there is: devices, sockets, connections to the control socket, files that are read.
_OTHERS = 128
# As many as there are peers at most, each with one connection to come and one to go.
_MOST = 1 << 17


def descriptors() -> int:
    """Raise the soft limit as far as may be, and say how many connections that lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    most = _MOST if soft == resource.RLIM_INFINITY else min(soft, _MOST)
    return max(1, most - _OTHERS)
