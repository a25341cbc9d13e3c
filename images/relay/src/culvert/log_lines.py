# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the log, on standard error, says of the engine's events: lines for people. Events for programs are in
:mod:`culvert.events`.
"""

from __future__ import annotations

import logging

from .context import Event, EventKind
from .keys import short_name
from .ratelimit import TokenBucket

__all__ = ["EventLines"]

_LOG_EVERY_ATTEMPTS = 12
# Log lines that a peer can cause at will, by handshakes and by moving about: as many at once, and a second.
_LOG_BURST = 500
_LOG_RATE_PER_S = 5.0

_FAILOVER = frozenset(
    (EventKind.FAILED_OVER, EventKind.ALL_SILENT, EventKind.RETURNED, EventKind.MOVED),
)
_AT_WILL = _FAILOVER | {EventKind.HANDSHAKE_COMPLETED, EventKind.ENDPOINT_CHANGED, EventKind.WAY_CHANGED}
# What is said elsewhere, or not.
_UNTOLD = frozenset((EventKind.REFUSED,))

_log = logging.getLogger("culvert")


class EventLines:
    """Writes them, and not too many."""

    def __init__(self, now: float) -> None:
        self._budget = TokenBucket(_LOG_RATE_PER_S, _LOG_BURST, now)

    def write(self, event: Event, now: float) -> None:
        if event.kind in _UNTOLD or (event.kind in _AT_WILL and not self._budget.allow(now)):
            return
        peer, other = short_name(event.public_key), short_name(event.other)
        if event.kind is EventKind.HANDSHAKE_COMPLETED:
            _log.info("handshake completed with peer %s at %s", peer, event.endpoint)
        elif event.kind is EventKind.HANDSHAKE_RETRIED:
            # The first one, and then about one a minute: many dead peers must not fill a disk.
            if event.attempts % _LOG_EVERY_ATTEMPTS == 1:
                _log.info("handshake with peer %s not answered (%d), trying again", peer, event.attempts)
        elif event.kind is EventKind.HANDSHAKE_GAVE_UP:
            _log.warning("handshake with peer %s given up until there is traffic for it", peer)
        elif event.kind is EventKind.ENDPOINT_CHANGED:
            _log.info("peer %s is at %s now", peer, event.endpoint)
        elif event.kind is EventKind.WAY_CHANGED:
            _log.info("peer %s: sending over %s now, no longer over %s", peer, event.endpoint, event.before)
        elif event.kind in _FAILOVER:
            _failover(event, peer, other)
        elif event.kind is EventKind.SUCCEEDED:
            _log.info("peer %s has a session: it succeeds peer %s", peer, other)
        elif event.kind is EventKind.TOOK_BACK:
            _log.warning("peer %s is silent: sending through its predecessor, peer %s, again", other, peer)
        elif event.kind is EventKind.EXPIRED:
            _log.warning("peer %s: its time is up, its sessions are over", peer)
        elif event.kind is EventKind.QUOTA_EXCEEDED:
            _log.warning("peer %s: its quota is used up, its sessions are over", peer)
        elif event.kind is EventKind.READMITTED:
            _log.info("peer %s may come back", peer)
        else:
            _log.info("session keys of peer %s forgotten", peer)


def _failover(event: Event, peer: str, other: str) -> None:
    if event.kind is EventKind.FAILED_OVER:
        _log.warning("peer %s is silent (for %.1f s): sending through peer %s", peer, event.silent_s, other)
    elif event.kind is EventKind.ALL_SILENT:
        _log.warning("peer %s is silent (for %.1f s), and so is every other: staying", peer, event.silent_s)
    elif event.kind is EventKind.RETURNED:
        _log.info("peer %s answers again: sending through it, no longer through peer %s", peer, other)
    elif event.other:
        _log.info("sending through peer %s, no longer through peer %s, as configured", peer, other)
    else:
        _log.info("sending through peer %s, as configured", peer)
