# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which implementation of :class:`~culvert.batch.Batch` a process uses."""

from __future__ import annotations

import logging

from .batch import Batch
from .calls import Calls, PythonCalls
from .errors import CulvertError
from .pure import PureBatch

__all__ = ["AUTO", "BATCHES", "choose_batch", "parse_batch"]

AUTO = "auto"
BATCHES = (AUTO, "compiled", "python")

_log = logging.getLogger("culvert")


def parse_batch(text: str) -> str:
    """:raises ValueError: not a name of :data:`BATCHES`."""
    name = text.lower()
    if name not in BATCHES:
        raise ValueError(f"{text[:20]!r} is not one of {', '.join(BATCHES)}")
    return name


def choose_batch(name: str) -> tuple[Batch, Calls]:
    """The implementation called ``name``, with the system calls of its kind.

    ``auto`` is the compiled one, or, with a word in the log, Python.

    :raises CulvertError: ``compiled`` was asked for and is not there.
    """
    if name == "python":
        return PureBatch(), PythonCalls()
    try:
        # Here, not above: where the extension was not built, everything else works.
        from .compiled import CompiledBatch, CompiledCalls
    except ImportError as error:
        if name != AUTO:
            raise CulvertError(
                f"batch {name}: the extension module cannot be loaded ({error}): install culvert from a "
                "wheel for this platform, or run with --batch auto"
            ) from None
        _log.warning(
            "packets are sealed and opened in Python, at a fraction of the speed: the extension module "
            "cannot be loaded (%s). Install culvert from a wheel for this platform or with a C compiler at "
            "hand, or silence this with --batch python",
            error,
        )
        return PureBatch(), PythonCalls()
    return CompiledBatch(), CompiledCalls()
