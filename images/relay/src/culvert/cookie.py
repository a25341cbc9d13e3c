# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""mac1, mac2 and cookies (WireGuard paper sections 5.3, 5.4.4 and 5.4.7): who may make us work."""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from typing import Any

from .constants import (
    COOKIE_LATENCY_S,
    COOKIE_NONCE_BYTES,
    COOKIE_SECRET_AGE_S,
    KEY_BYTES,
    MAC_BYTES,
)
from .document import number, octets
from .errors import BadPacket
from .messages import CookieReply
from .noise import hash_, mac
from .xchacha import open_, seal

__all__ = ["MacChecker", "MacStamper"]

_LABEL_MAC1 = b"mac1----"
_LABEL_COOKIE = b"cookie--"
_NO_MAC = bytes(MAC_BYTES)


class MacChecker:
    """The responder's side: checks the MACs of messages sent *to* the owner of ``public``, and hands out
    cookies.
    """

    __slots__ = ("_cookie_key", "_mac1_key", "_secret", "_secret_made_s")

    def __init__(self, public: bytes) -> None:
        self._mac1_key = hash_(_LABEL_MAC1, public)
        self._cookie_key = hash_(_LABEL_COOKIE, public)
        self._secret = os.urandom(KEY_BYTES)
        self._secret_made_s = float("-inf")

    def check_mac1(self, message: bytes) -> bool:
        """Whether the sender knows our public key: without it we stay silent (section 5.3)."""
        body = memoryview(message)[: -2 * MAC_BYTES]
        # Constant time: a forger must not learn a MAC byte by byte.
        return hmac.compare_digest(mac(self._mac1_key, body), message[-2 * MAC_BYTES : -MAC_BYTES])

    def _cookie(self, source: bytes, now: float) -> bytes:
        if now - self._secret_made_s > COOKIE_SECRET_AGE_S:
            self._secret = os.urandom(KEY_BYTES)
            self._secret_made_s = now
        return mac(self._secret, source)

    def check_mac2(self, message: bytes, source: bytes, now: float) -> bool:
        """Whether the sender received a cookie at ``source`` (packed address and port), that is, is really
        there.
        """
        if now - self._secret_made_s > COOKIE_SECRET_AGE_S:
            return False
        body = memoryview(message)[:-MAC_BYTES]
        return hmac.compare_digest(mac(self._cookie(source, now), body), message[-MAC_BYTES:])

    def reply(self, message: bytes, sender: int, source: bytes, now: float) -> bytes:
        """The cookie reply to ``message``; it is bound to that message's mac1, so that it cannot be forged
        blind.
        """
        nonce = os.urandom(COOKIE_NONCE_BYTES)
        mac1 = message[-2 * MAC_BYTES : -MAC_BYTES]
        return CookieReply(
            sender, nonce, seal(self._cookie_key, nonce, self._cookie(source, now), mac1)
        ).pack()

    def export(self) -> dict[str, Any]:
        """The secret of the cookies that are about, for another process."""
        if self._secret_made_s == float("-inf"):
            return {}
        return {"secret": self._secret.hex(), "made_s": self._secret_made_s}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Cookies that another process gave go on being good. :raises ValueError: no secret, or no age."""
        if values:
            self._secret = octets(values.get("secret"), KEY_BYTES)
            self._secret_made_s = number(values.get("made_s"))


class MacStamper:
    """The sender's side: puts the MACs on messages *to* the owner of ``public``, and remembers its cookie."""

    __slots__ = ("_cookie", "_cookie_key", "_cookie_since_s", "_last_mac1", "_mac1_key")

    def __init__(self, public: bytes) -> None:
        self._mac1_key = hash_(_LABEL_MAC1, public)
        self._cookie_key = hash_(_LABEL_COOKIE, public)
        self._cookie: bytes | None = None
        self._cookie_since_s = 0.0
        self._last_mac1: bytes | None = None

    def stamp(self, body: bytes, now: float) -> bytes:
        """``body`` with its two MACs; the second one is zero without a fresh cookie (section 5.4.4)."""
        mac1 = mac(self._mac1_key, body)
        self._last_mac1 = mac1
        message = body + mac1
        if self._cookie is None or now - self._cookie_since_s > COOKIE_SECRET_AGE_S - COOKIE_LATENCY_S:
            return message + _NO_MAC
        return message + mac(self._cookie, message)

    def consume_reply(self, reply: CookieReply, now: float) -> None:
        """Keep the cookie for the next message.

        :raises BadPacket: not an answer to the message stamped last, or answered already.
        """
        if self._last_mac1 is None:
            raise BadPacket
        self._cookie = open_(self._cookie_key, reply.nonce, reply.cookie, self._last_mac1)
        self._cookie_since_s = now
        # One message, one cookie: a replayed reply must not renew an old cookie.
        self._last_mac1 = None

    def export(self) -> dict[str, Any]:
        """The cookie we have, and what one on its way would answer."""
        values: dict[str, Any] = {}
        if self._cookie is not None:
            values |= {"cookie": self._cookie.hex(), "since_s": self._cookie_since_s}
        if self._last_mac1 is not None:
            values["last_mac1"] = self._last_mac1.hex()
        return values

    def restore(self, values: Mapping[str, Any]) -> None:
        """:raises ValueError: :meth:`export` did not write that."""
        if "cookie" in values:
            self._cookie = octets(values["cookie"], MAC_BYTES)
            self._cookie_since_s = number(values.get("since_s"))
        if "last_mac1" in values:
            self._last_mac1 = octets(values["last_mac1"], MAC_BYTES)
