# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of a configuration file that are about the TLS listener: read, and tried out, since a listener
that fails its first client is worse than a file that is refused.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from .constants import DEFAULT_ALPN

if TYPE_CHECKING:
    import ssl

__all__ = ["BadListener", "TlsListener", "read_alpn", "read_listen_port", "tls_listener"]

_FILES = {"tlscertificatefile": "TLSCertificateFile", "tlsprivatekeyfile": "TLSPrivateKeyFile"}
_MAX_PROTOCOLS = 8

_log = logging.getLogger("culvert")


class BadListener(Exception):
    """:param option: at whose line the fault is, in lower case."""

    def __init__(self, option: str, message: str) -> None:
        self.option = option
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class TlsListener:
    """A port, and what it shows to those who come there.

    :ivar digest: SHA-256 of the certificate's file, in hexadecimal.
    """

    port: int
    context: ssl.SSLContext
    digest: str


def read_listen_port(text: str) -> int:
    """A port that is one: clients have to know it."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise ValueError(f"{text[:20]!r} is not a port from 1 to 65535")
    return int(text)


def read_alpn(text: str) -> tuple[str, ...]:
    """Names of protocols (RFC 7301) after commas, the preferred one first; ``none`` for none."""
    if text.lower() == "none":
        return ()
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if not (name.isascii() and name.isprintable() and " " not in name and 1 <= len(name) <= 255):
            raise ValueError(f"{name[:40]!r} is not the name of a protocol, as http/1.1 is")
    if len(set(names)) != len(names) or len(names) > _MAX_PROTOCOLS:
        raise ValueError(f"takes at most {_MAX_PROTOCOLS} names, each once")
    return names


def tls_listener(values: Mapping[str, Any], folder: str) -> TlsListener | None:
    """The listener that an ``[Interface]`` asks for.

    :param folder: what relative names of files are relative to.
    :raises BadListener: it cannot be had like this. Nothing of the private key is in the message.
    """
    port = values.get("listentls")
    if port is None:
        for option, label in _FILES.items():
            if option in values:
                raise BadListener(option, f"{label} says nothing without ListenTLS")
        return None
    for option, label in _FILES.items():
        if option not in values:
            raise BadListener("listentls", f"ListenTLS needs {label}")
    if port == values.get("listentcp"):
        raise BadListener("listentls", f"ListenTLS: port {port} is that of ListenTCP")
    paths = {option: os.path.join(folder, values[option]) for option in _FILES}
    context = _context(paths, values.get("tlsalpn", DEFAULT_ALPN))
    return TlsListener(port, context, _digest(paths["tlscertificatefile"]))


def _digest(path: str) -> str:
    """:raises BadListener: the file has gone since it was loaded."""
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError as error:
        message = f"TLSCertificateFile: {path}: {error.strerror}"
        raise BadListener("tlscertificatefile", message) from None


def _context(paths: Mapping[str, str], alpn: tuple[str, ...]) -> ssl.SSLContext:
    """:raises BadListener: these are no certificate and its key."""
    # Here, not above: loading them takes as long as half of all the rest does, and a health check loads us.
    from .certificate import belongs, read_certificate, read_key
    from .transport.tls import server_context

    certificate_path, key_path = paths["tlscertificatefile"], paths["tlsprivatekeyfile"]
    try:
        certificate = read_certificate(certificate_path)
    except ValueError as error:
        raise BadListener("tlscertificatefile", f"TLSCertificateFile: {error}") from None
    try:
        key = read_key(key_path)
    except ValueError as error:
        raise BadListener("tlsprivatekeyfile", f"TLSPrivateKeyFile: {error}") from None
    if not belongs(certificate, key):
        message = f"TLSPrivateKeyFile: {key_path} is not the key of the certificate in {certificate_path}"
        raise BadListener("tlsprivatekeyfile", message)
    try:
        context = server_context(certificate_path, key_path, alpn)
    except (OSError, ValueError):
        # Not what OpenSSL says: it may quote.
        message = f"TLSCertificateFile: {certificate_path} and its key are refused by OpenSSL (too weak?)"
        raise BadListener("tlscertificatefile", message) from None
    if certificate.not_valid_after_utc < datetime.now(UTC):
        # Our clients go by its pin; web browsers do not.
        _log.warning("the certificate in %s has expired: visitors will notice", certificate_path)
    return context
