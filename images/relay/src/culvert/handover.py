# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Handing a running relay over to another process: TUN, sockets and every session. (Sockets that listen for
streams go along where the new one says that it knows what to do with them; connections do not, for nobody
could go on with what is half written: their far ends connect anew, and the sessions are there.)

The words, over a connection to the control socket (mode 0600: both processes have one owner), and what holds
between them::

    new   take_over=1, format=1      it is ready to begin: code loaded, configuration read, root given up;
          listeners=1                it takes sockets that listen, labelled in the state
    old   errno=0, the state, the descriptors (SCM_RIGHTS)
                                     from here on the old one reads nothing and sends nothing
    new   ready=1                    it has made a relay of all that, which has sent nothing
    old   yours=1                    from here on the sessions are the new one's, for good
    new   serving=1                  from here on the descriptors are, too; it begins to send
    old                              executes a process that only waits to be stopped

**No nonce is used twice.** A data message's nonce is its counter, and a session's counters are taken in one
process at a time:

1. The old process takes no counter after it wrote the state: :func:`give` runs in its only thread that sends,
   does not return to the loop before the matter is decided, and the engine's output was empty when it began.
2. The new process takes no counter before it received ``yours``: until then nothing calls its engine but
   :func:`~culvert.handover_state.restore_state`, which sends nothing.
3. The old process takes counters of these sessions again only if it is certain that ``yours`` was not
   received: it did not send it. If it was sent and ``serving`` does not come, the old process keeps the
   descriptors and goes on, but *without the sessions*: it forgets them and shakes hands anew, so that
   whatever the new one may have sealed, no key is used by both.
4. The new process starts every session with the counter in the state, which is the next one: a counter is
   taken before anything is sealed with it (:meth:`culvert.keypair.Keypair.take_counters`).

The same holds for what was received: replay windows and latest timestamps are in the state, and whoever goes
on without knowing what the other one accepted goes on without the session.

**One of the two serves**, whichever dies when. Whether ``serving`` came is decided by the kernel: the old
process gives up by shutting the connection's receiving side, after which a send fails (EPIPE), and looks once
more at what had arrived before that. So ``serving`` was either sent and is found, or was refused.
"""

from __future__ import annotations

import array
import contextlib
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

from . import __version__
from .constants import HANDOVER_FORMAT
from .errors import CulvertError
from .handover_state import read_listeners, read_state, write_state
from .outside import datagrams_of
from .relay import Relay
from .transport.listening import Listener

__all__ = ["GOES_ON", "OFFER", "REQUEST", "NotTaken", "Outcome", "Taken", "ask", "give", "wants"]

REQUEST = "take_over=1"
LISTENERS = "listeners=1"
OFFER = f"take_over={HANDOVER_FORMAT}"
"""The line of ``culvert=1`` that says that a process can hand over, and in which format."""
_READY, _YOURS, _SERVING = b"ready=1\n\n", b"yours=1\n\n", b"serving=1\n\n"
_GOOD = b"errno=0\n\n"
_HEAD = struct.Struct(">QH")
# The state of 100,000 peers takes 300 MB.
_MAX_STATE_BYTES = 1 << 30
_MAX_DESCRIPTORS = 16
_READ_BYTES = 1 << 20
# What the new process may take to make a relay of the state, while all is silent: it takes milliseconds, and
# a second for 5,000 peers, on a quiet machine.
_READ_STATE_S = 3.0
_READ_BYTES_PER_S = 4e6
_BEGIN_S = 2.0
# The old one decides; the new one only must not wait for ever.
_PATIENCE_S = 30.0

GOES_ON = "the relay before goes on"

_log = logging.getLogger("culvert")


class NotTaken(CulvertError):
    """The relay before goes on as if nothing had been."""


class Outcome(Enum):
    """What came of :func:`give`."""

    KEPT = "the old process goes on, with its sessions"
    RECLAIMED = "the old process goes on, and has to shake hands anew"
    GIVEN = "the new process serves"


def wants(lines: Sequence[str]) -> bool:
    """Whether what follows :data:`REQUEST` asks for the format that we write."""
    return f"format={HANDOVER_FORMAT}" in lines


# --- The old process ----------------------------------------------------------------------------------------


def give(
    sock: socket.socket, relay: Relay, control: socket.socket, now: float, request: Sequence[str] = ()
) -> Outcome:
    """Hand all of it over to whoever asked for it on ``sock``. Blocks, for seconds at most.

    :param control: the listening control socket.
    :param request: the lines that followed :data:`REQUEST`.
    """
    relay.pump()
    relay.before_handover()
    outcome = Outcome.KEPT
    try:
        # Older versions take every descriptor for a UDP socket.
        listeners = relay.outside.listeners if LISTENERS in request else ()
        size_bytes = _send_state(sock, relay, control, listeners, now)
        _expect(sock, _READY, _READ_STATE_S + size_bytes / _READ_BYTES_PER_S)
        # Certainly not received if this raises: it is too short to be sent in part.
        sock.settimeout(_BEGIN_S)
        sock.sendall(_YOURS)
        outcome = Outcome.RECLAIMED
        _expect(sock, _SERVING, _BEGIN_S)
        return Outcome.GIVEN
    except Exception as error:
        # Whatever it was, packets go on.
        if outcome is Outcome.RECLAIMED and _came_late(sock):
            return Outcome.GIVEN
        reason = _words(error) if isinstance(error, OSError) else type(error).__name__
        _log.warning("handover failed: %s: %s", reason, outcome.value)
        return outcome


def _send_state(
    sock: socket.socket,
    relay: Relay,
    control: socket.socket,
    listeners: Sequence[Listener],
    now: float,
) -> int:
    """:returns: the length of the state in bytes."""
    state = write_state(relay, __version__, now, [(one.scheme, one.port) for one in listeners])
    datagrams = () if relay.transport is None else datagrams_of(relay.transport).filenos()
    descriptors = [relay.tun.fileno(), control.fileno(), *datagrams]
    descriptors += [one.sock.fileno() for one in listeners]
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    sock.settimeout(_READ_STATE_S)
    sock.sendmsg([_GOOD + _HEAD.pack(len(state), relay.tun.created)], rights)
    sock.sendall(state)
    return len(state)


def _expect(sock: socket.socket, word: bytes, timeout_s: float) -> None:
    """:raises ValueError: something else came; TimeoutError, OSError: nothing did."""
    deadline = time.monotonic() + timeout_s
    received = b""
    while len(received) < len(word):
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        data = sock.recv(len(word) - len(received))
        if not data:
            raise ConnectionResetError("the new process hung up")
        received += data
    if received != word:
        raise ValueError("the new process says what it should not")


def _came_late(sock: socket.socket) -> bool:
    """Whether ``serving`` was sent after all; if not, it cannot be sent any more."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RD)
    try:
        _expect(sock, _SERVING, 0.0)
    except (OSError, ValueError):
        return False
    return True


# --- The new process ----------------------------------------------------------------------------------------


class Taken:
    """What was handed over, as long as it is not certain that it is ours.

    :attr:`tun`, :attr:`control` and :attr:`udp` are descriptors, and :attr:`listeners` has some behind scheme
    and port. They belong to whoever takes them out by :meth:`keep`.
    """

    def __init__(self, sock: socket.socket, state: Mapping[str, Any], fds: list[int], created: bool) -> None:
        self._sock = sock
        self._fds = fds
        self._state = state
        self._began_s = float(state["now_s"])
        labels = read_listeners(state, len(fds) - 2)
        self.tun, self.control, *sockets = fds
        self.udp = sockets[: len(sockets) - len(labels)]
        found = sockets[len(sockets) - len(labels) :]
        self.listeners = [(*label, fd) for label, fd in zip(labels, found, strict=True)]
        self.tun_created = created

    def take_state(self) -> Mapping[str, Any]:
        """The document, once: nothing here keeps the session keys in it for longer than the sessions last."""
        state, self._state = self._state, {}
        return state

    def keep(self) -> None:
        """The descriptors are somebody else's now, and no longer closed here."""
        self._fds = []

    def ready(self) -> None:
        """Say that all is made of it, and wait for the word that it is ours. :raises NotTaken: it is not."""
        try:
            self._sock.settimeout(_BEGIN_S)
            self._sock.sendall(_READY)
            _expect(self._sock, _YOURS, _PATIENCE_S)
        except (OSError, ValueError) as error:
            raise NotTaken(f"not taken over: {_words(error)}: {GOES_ON}") from None

    def serving(self, now: float) -> float:
        """Say that we serve from now on; the seconds for which nobody did. :raises NotTaken: too late."""
        try:
            self._sock.sendall(_SERVING)
        except OSError as error:
            raise NotTaken(f"not taken over: too late ({error.strerror}): {GOES_ON}") from None
        self._sock.close()
        return max(0.0, now - self._began_s)

    def close(self) -> None:
        """Want none of it."""
        _close_all(self._fds)
        self._fds = []
        self._sock.close()


def ask(sock: socket.socket, clock: Callable[[], float]) -> Taken:
    """Take over from the process at the other end, which offered it.

    :param clock: that which the old process uses.
    :raises NotTaken: it refuses, does not answer in time, or says what we do not understand.
    """
    fds: list[int] = []
    try:
        sock.settimeout(_PATIENCE_S)
        sock.sendall(f"{REQUEST}\nformat={HANDOVER_FORMAT}\n{LISTENERS}\n\n".encode("ascii"))
        answer, rest = _receive_until(sock, b"\n\n", fds)
        if answer + b"\n\n" != _GOOD:
            raise ValueError(f"the relay before refuses ({answer[:40]!r})")
        length, created = _HEAD.unpack(_receive(sock, _HEAD.size, rest, fds))
        if length > _MAX_STATE_BYTES:
            raise ValueError("the state is too long")
        state = read_state(bytes(_receive(sock, length, rest, fds)), clock())
        if not 3 <= len(fds) + 1 <= _MAX_DESCRIPTORS:
            raise ValueError("descriptors are missing")
        return Taken(sock, state, fds, bool(created))
    except (OSError, ValueError) as error:
        _close_all(fds)
        sock.close()
        raise NotTaken(f"not taken over: {_words(error)}: {GOES_ON}") from None


def _receive_until(sock: socket.socket, end: bytes, fds: list[int]) -> tuple[bytes, bytearray]:
    received = bytearray()
    while end not in received:
        if len(received) > _READ_BYTES:
            raise ValueError("the answer is too long")
        received += _receive_some(sock, fds)
    answer, _, rest = bytes(received).partition(end)
    return answer, bytearray(rest)


def _receive(sock: socket.socket, length: int, rest: bytearray, fds: list[int]) -> bytearray:
    """``length`` bytes, of which the first may be in ``rest``; what is not asked for stays there."""
    while len(rest) < length:
        rest += _receive_some(sock, fds)
    wanted = rest[:length]
    del rest[:length]
    return wanted


def _receive_some(sock: socket.socket, fds: list[int]) -> bytes:
    room = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)
    data, ancillary, flags, _ = sock.recvmsg(_READ_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            received = array.array("i")
            received.frombytes(content[: len(content) - len(content) % received.itemsize])
            fds.extend(received)
    if flags & socket.MSG_CTRUNC:
        raise ValueError("too many descriptors")
    if not data:
        raise ConnectionResetError("the relay before hung up")
    return data


def _words(error: Exception) -> str:
    """What an error says; some say nothing."""
    return str(error) or type(error).__name__


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
