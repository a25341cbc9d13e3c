# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The host's lock for a run that changes something, at the price of the lock alone as long as nothing is
pending: what a transaction needs is only loaded when there is one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ._core import Runner
from ._installed import PENDING
from ._lock import host_lock


@contextmanager
def alone(run: Runner) -> Iterator[None]:
    """Hold the host's lock with no transaction pending, as :func:`_transaction.exclusive`.

    :raises HostError: somebody else's transaction does not come to an end, or somebody keeps the lock.
    """
    with host_lock():
        # Only who holds the lock begins a transaction: if there is none now, there will be none.
        if not os.path.isdir(PENDING):
            yield
            return
    from ._transaction import exclusive

    with exclusive(run):
        yield
