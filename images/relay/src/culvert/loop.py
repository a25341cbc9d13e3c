# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The process's one loop: waits for descriptors, timers and signals, and calls the relay."""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
from collections.abc import Callable
from types import FrameType

from .constants import NO_HANDOVER_S
from .control import ControlClient
from .handover import Outcome, give, wants
from .linkwatch import LinkWatch
from .relay import Relay
from .resolve import Resolver
from .transport import Transport
from .tun_device import DeviceGone

__all__ = ["Loop"]

# Connections to the control socket at one time; the oldest is closed for a new one.
_MAX_CLIENTS = 32

_Handler = Callable[[int, int], None]
"""Called with the descriptor and the events on it."""

_log = logging.getLogger("culvert")


class Loop:
    """Runs one relay until :meth:`stop`, a signal, or the end of its device.

    :param reload: called on SIGHUP.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        control: socket.socket | None = None,
        reload: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._control = control
        self._reload = reload
        self._selector = selectors.DefaultSelector()
        self._clients: dict[int, ControlClient] = {}
        self._signals: list[int] = []
        self._stopping = False
        self.handed_over = False
        "Whether another process serves in our place: then all that is left to do is to end."
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._relay: Relay | None = None
        self._watch: LinkWatch | None = None

    # --- Before it runs -------------------------------------------------------------------------------------

    def attach(self, relay: Relay, *, watch_links: bool = True) -> None:
        """Take a relay on. Threads are started later, so a fork between this and :meth:`run` is safe."""
        self._relay = relay
        relay.names.resolver = Resolver(self.wake)
        self._register(relay.tun.fileno(), self._on_tun)
        self._register(self._wake_fd, self._on_wake)
        if self._control is not None:
            self._register(self._control.fileno(), self._on_connection)
        if watch_links:
            self._watch = LinkWatch()
            self._register(self._watch.fileno(), self._on_link)

    def after_fork(self) -> None:
        """An epoll descriptor is shared with the parent: make our own."""
        old = self._selector
        self._selector = selectors.DefaultSelector()
        for key in old.get_map().values():
            self._selector.register(key.fd, key.events, key.data)
        old.close()

    def _register(self, fileno: int, handler: _Handler) -> None:
        self._selector.register(fileno, selectors.EVENT_READ, handler)

    def transport_changed(self, old: Transport | None, new: Transport) -> None:
        """To be given to the relay as ``on_transport``."""
        for fileno in old.filenos() if old is not None else ():
            self._selector.unregister(fileno)
        for fileno in new.filenos():
            self._register(fileno, self._on_transport)

    def handle_signals(self) -> None:
        """SIGTERM and SIGINT stop, SIGHUP reloads. (PID 1 of a container gets only signals it handles.)"""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        self.wake()

    @property
    def told_to_stop(self) -> bool:
        """Whether a signal that ends us has come, be it that nothing has come of it so far."""
        return self._stopping or any(number != signal.SIGHUP for number in self._signals)

    # --- While it runs --------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Make the loop look around; may be called from any thread or signal handler."""
        os.eventfd_write(self._wake_fd, 1)

    def stop(self) -> None:
        self._stopping = True
        self.wake()

    def run(self) -> None:
        """Return when stopped, or when the device is gone."""
        relay = self._relay
        if relay is None:
            raise RuntimeError("attach a relay first")
        try:
            relay.pump()
            moment = relay.get_timer()
            while not self._stopping:
                timeout_s = None if moment is None else max(0.0, moment - self._clock())
                for key, events in self._selector.select(timeout_s):
                    key.data(key.fd, events)
                    if self.handed_over:
                        # What else is ready now is our successor's, and so are the sessions.
                        return
                moment = relay.get_timer()
                if moment is not None and moment <= self._clock():
                    relay.handle_timer()
                    moment = relay.get_timer()
        except DeviceGone:
            _log.info("the interface was deleted: stopping")
        finally:
            self._close()

    def _on_tun(self, fd: int, events: int) -> None:
        if self._relay is not None:
            self._relay.on_tun_readable()

    def _on_transport(self, fd: int, events: int) -> None:
        relay = self._relay
        # A descriptor reported before the transport was replaced in this very round is nobody's now.
        if relay is not None and relay.transport is not None and fd in relay.transport.filenos():
            relay.on_transport_readable(fd)

    def _on_link(self, fd: int, events: int) -> None:
        if self._watch is not None and self._relay is not None:
            self._watch.drain()
            self._relay.on_link_changed()

    def _on_wake(self, fd: int, events: int) -> None:
        os.eventfd_read(self._wake_fd)
        while self._signals:
            if self._signals.pop(0) == signal.SIGHUP:
                self._reload()
            else:
                self._stopping = True
        if self._relay is not None:
            self._relay.on_resolved()

    # --- Control socket -------------------------------------------------------------------------------------

    def _on_connection(self, fd: int, events: int) -> None:
        if self._control is None or self._relay is None:
            return
        try:
            sock, _ = self._control.accept()
        except OSError:
            return
        sock.setblocking(False)
        if len(self._clients) >= _MAX_CLIENTS:
            # A capture is no connection that was forgotten; there are fewer of them than connections.
            clients = self._clients.values()
            self._close_client(next(client for client in clients if not client.is_capturing))
        client = ControlClient(sock, self._relay)
        client.on_change = lambda: self._after_client(client, True)
        self._clients[sock.fileno()] = client
        self._register(sock.fileno(), self._on_client)

    def _on_client(self, fd: int, events: int) -> None:
        client = self._clients.get(fd)
        if client is None:
            # Closed earlier in this very round, to make room for another.
            return
        readable = events & selectors.EVENT_READ
        self._after_client(client, client.on_readable() if readable else client.on_writable())
        if client.take_over is not None:
            self._hand_over(client, client.take_over)

    def _hand_over(self, client: ControlClient, request: list[str]) -> None:
        """Somebody wants to serve in our place. Nothing else happens meanwhile."""
        relay, control = self._relay, self._control
        if relay is None or control is None or client.socket.fileno() not in self._clients:
            return
        now = self._clock()
        outcome = Outcome.KEPT
        if wants(request) and now >= relay.no_handover_before_s:
            outcome = give(client.socket, relay, control, now, request)
            relay.no_handover_before_s = self._clock() + NO_HANDOVER_S
        if outcome is Outcome.GIVEN:
            self.handed_over = True
            # Should anything be called after this in spite of it all, there is nothing that it could use.
            relay.leave()
            return
        self._close_client(client)
        if outcome is Outcome.RECLAIMED:
            relay.start_anew()

    def _after_client(self, client: ControlClient, alive: bool) -> None:
        if not alive:
            self._close_client(client)
            return
        reading = selectors.EVENT_READ if client.wants_to_read else 0
        events = reading | (selectors.EVENT_WRITE if client.wants_to_write else 0)
        self._selector.modify(client.socket, events, self._on_client)

    def _close_client(self, client: ControlClient) -> None:
        del self._clients[client.socket.fileno()]
        self._selector.unregister(client.socket)
        client.on_change = lambda: None
        client.close_capture()
        client.socket.close()

    def _close(self) -> None:
        for client in tuple(self._clients.values()):
            self._close_client(client)
        if self._watch is not None:
            self._watch.close()
        self._selector.close()
        os.close(self._wake_fd)
