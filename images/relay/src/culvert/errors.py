# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exceptions of the package, one for each kind of reader."""

from __future__ import annotations

__all__ = ["BadPacket", "ConfigError", "CulvertError", "RequestError"]


class BadPacket(Exception):
    """A datagram or packet that is dropped, whatever was wrong with it.

    One class and no text: a sender learns nothing from which check failed (WireGuard paper section 5.3,
    silence). What the owner of the device is told is in :mod:`culvert.rejections`.
    """


class CulvertError(Exception):
    """Something a person can put right; its text is one line that says what, where and what to do."""


class ConfigError(CulvertError):
    """A fault in a configuration file.

    :param path: the file as the user named it.
    :param line: line number from 1; 0 where the fault is in no one line.
    """

    def __init__(self, path: str, line: int, message: str) -> None:
        self.path = path
        self.line = line
        super().__init__(f"{path}:{line}: {message}" if line else f"{path}: {message}")


class RequestError(CulvertError):
    """A request on the control socket that is refused; ``code`` is the positive errno."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(message)
