# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine with its devices: moves bytes between TUN, engine and transport, and acts on what happens.

Knows no selector and no signal; :mod:`culvert.loop` calls it when a descriptor is ready or a timer due.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Mapping, Sequence

from . import __version__
from .about import bond_lines, format_about, format_process, group_state
from .about_streams import stream_lines
from .about_ways import way_lines
from .capture import Capture, CaptureRequest, Captures
from .config import Config
from .constants import HANDOVER_FORMAT, REJECT_AFTER_TIME_S, SILENT_AFTER_ATTEMPTS
from .context import Event, EventKind
from .device import Device
from .endpoint import UDP, Endpoint, EndpointName
from .errors import CulvertError, RequestError
from .keys import short_name
from .names import Names
from .outside import Doors, Outside, StreamFactory, close_datagrams
from .records import Records
from .reload import difference
from .transport import Transport, TransportFactory
from .transport.listening import Listener
from .tun_device import Tun
from .uapi import format_get
from .update import DeviceUpdate, apply_peers, check_peers

__all__ = ["Relay"]

# Moved before the other descriptors get their turn: so many frames, or datagrams and runs, as long as they
# are together not much more than the 512 KiB at which the devices stop by themselves.
_FRAMES = 128
_DATAGRAMS = 64

_log = logging.getLogger("culvert")


class Relay:
    """One device at work.

    :param clock: seconds; the ``now`` of everything below.
    :param on_transport: called after the transport was opened anew, with the old and the new one.
    :param open_streams: called as soon as something needs streams; None: there are none but those of the
        transport.
    """

    def __init__(
        self,
        device: Device,
        tun: Tun,
        open_transport: TransportFactory,
        clock: Callable[[], float],
        on_transport: Callable[[Transport | None, Transport], None] = lambda old, new: None,
        open_streams: StreamFactory | None = None,
    ) -> None:
        self.device = device
        self.tun = tun
        self.transport: Transport | None = None
        self.fwmark = 0
        self.names = Names(device)
        self.instance = ""
        "What whoever started the process calls it."
        self.no_handover_before_s = float("-inf")
        "A handover that failed is not tried again at once: its successor waits for our end instead."
        self.records = Records(device, tun.name, clock)
        self.outside = Outside(open_transport, open_streams)
        self._clock = clock
        self._on_transport = on_transport
        self._fixed_port = 0
        self._off: frozenset[str] = frozenset()
        self._configured_endpoints: dict[bytes, tuple[Endpoint | EndpointName, ...]] = {}
        self._captures = Captures(device.owner, layer2=device.layer2)
        device.mtu_bytes = tun.mtu_bytes
        device.coalesce = tun.coalesce
        device.addresses = tun.addresses()

    # --- Control --------------------------------------------------------------------------------------------

    @property
    def listen_port(self) -> int:
        """The UDP port in use, or 0."""
        return self.transport.port if self.transport is not None else 0

    def get(self) -> str:
        """The state, for the control socket."""
        return format_get(self.device, self.listen_port, self.fwmark)

    def about(self) -> str:
        """How packets are moved and which were refused, for the control socket."""
        now = self._clock()
        captures = [capture.state(now) for capture in self._captures.active]
        group = group_state(self.device, now)
        rejections = self.device.rejections()
        limits = self.device.warden.states()
        bonds = bond_lines(self.device)
        switch = None if self.device.layer2 is None else self.device.layer2.state(now)
        text = format_about(
            self.device.batch_name, self.offloads, rejections, captures, now, group, limits, bonds, switch
        )
        hands_over = HANDOVER_FORMAT if now >= self.no_handover_before_s else 0
        text += way_lines(self.device, now) + stream_lines(self.outside.streams)
        return text + format_process(__version__, self.instance, hands_over)

    def capture(self, request: CaptureRequest, on_change: Callable[[], None], who: str) -> Capture:
        """Begin a capture of inner packets, see :meth:`culvert.capture.Captures.start`.

        :raises RequestError: EBUSY: there are too many; ENOENT: the filter names a peer that there is not.
        """
        for public_key in request.filter.peers:
            if self.device.peer(public_key) is None:
                raise RequestError(errno.ENOENT, f"there is no peer {short_name(public_key)}")
        return self._captures.start(request, self._clock(), on_change, who)

    def stop_capture(self, capture: Capture) -> None:
        """Its reader wants no more."""
        self._captures.stop(capture, "reader")

    @property
    def offloads(self) -> frozenset[str]:
        """The kernel's offloads in effect now (names of :mod:`culvert.offloads`)."""
        outside = self.transport.offloads if self.transport is not None else frozenset[str]()
        return self.tun.offloads | outside

    def set_offloads(self, off: frozenset[str]) -> None:
        """Use all offloads but ``off``. Those that the kernel refused before are tried anew."""
        self._off = off
        self.tun.set_offloads(off)
        self.device.coalesce = self.tun.coalesce
        if self.transport is not None:
            self.transport.set_offloads(off)

    @property
    def disabled_offloads(self) -> frozenset[str]:
        """What :meth:`set_offloads` was told last."""
        return self._off

    def apply(self, update: DeviceUpdate) -> None:
        """Do what a request says.

        :raises RequestError: EADDRINUSE, EPERM, …: nothing was changed then.
        """
        now = self._clock()
        check_peers(self.device, update)
        try:
            self._apply_socket(update)
        except OSError as error:
            raise RequestError(error.errno or errno.EIO, f"UDP socket: {error.strerror}") from None
        before = self.records.before(update)
        gone = [self.device.peer(change.public_key) for change in update.peers if change.remove]
        endpoints = [peer.endpoint for peer in gone if peer is not None]
        apply_peers(self.device, update, now)
        self.outside.hang_up(endpoints)
        self.records.after(before)
        self.names.note(update, now)
        self._set_targets()
        self.pump()

    def _apply_socket(self, update: DeviceUpdate) -> None:
        """Port and mark, the two things that can fail. :raises OSError: nothing was changed then."""
        mark = self.fwmark if update.fwmark is None else update.fwmark
        port = update.listen_port
        # Port 0 asks for any, so what we have already is as good as another.
        if port is not None and (self.transport is None or port not in (0, self.transport.port)):
            self._open(port, mark)
        elif mark != self.fwmark and self.transport is not None:
            self.transport.set_mark(mark)
        self.fwmark = mark
        if port is not None:
            self._fixed_port = port

    def rebind(self, port: int) -> None:
        """Open the transport on another port (0 for any). :raises OSError: the old one stays open then."""
        self._open(port, self.fwmark)

    def _open(self, port: int, mark: int) -> None:
        old = self.transport
        self._use(self.outside.open(port, mark, self._off))
        self._set_targets()
        close_datagrams(old)

    def _use(self, transport: Transport) -> None:
        old, self.transport = self.transport, transport
        self._on_transport(old, transport)

    def _need_streams(self, mark: int) -> None:
        if self.outside.need_streams(mark) and self.transport is not None:
            self._use(self.outside.joined(self.transport))

    def _set_targets(self) -> None:
        """Tell the transport what it may dial."""
        targets = self.names.targets()
        if targets:
            self._need_streams(self.fwmark)
        if self.transport is not None:
            self.transport.set_targets(targets)

    def load(self, config: Config) -> None:
        """Make the device what a configuration file says, by difference.

        :raises CulvertError: the UDP socket, or a port to listen on, cannot be had; nothing was changed then.
        """
        if config.layer != self.device.layer:
            raise CulvertError(
                f"Layer = {config.layer} needs a restart: the device is of layer {self.device.layer}"
            )
        if config.stream_ports:
            self._need_streams(config.fwmark)
        self.records.prepare(config)
        with self.outside.doors(config) as doors:
            self._load(config, doors)

    def _load(self, config: Config, doors: Doors) -> None:
        update = difference(self.device, self._fixed_port, config, self._configured_endpoints)
        try:
            self.apply(update)
        except RequestError as error:
            wanted = f"ListenPort {config.listen_port or 'any'}, FwMark {config.fwmark:#x}"
            raise CulvertError(f"{wanted}: {error}") from None
        doors.listen()
        self._configured_endpoints = {peer.public_key: peer.endpoints for peer in config.peers}
        if self.device.layer2 is not None:
            self.device.layer2.configure(config.layer2, self._clock())
        self.records.follow(config)

    def ensure_transport(self) -> None:
        """Open the transport if nothing has so far. :raises CulvertError: it cannot be opened."""
        if self.transport is None:
            try:
                self.rebind(self._fixed_port)
            except OSError as error:
                raise CulvertError(f"UDP port {self._fixed_port}: {error.strerror}") from None

    # --- Traffic --------------------------------------------------------------------------------------------

    def on_tun_readable(self) -> None:
        """:raises DeviceGone: the device was deleted."""
        frames = self.tun.read(_FRAMES)
        if frames:
            if self._captures.active:
                self._captures.see(frames, outgoing=True)
            self.device.send_frames(frames, self._clock())
            self.pump()

    def on_transport_readable(self, fileno: int) -> None:
        """:raises DeviceGone: the device was deleted."""
        if self.transport is None:
            return
        received = self.transport.receive(fileno, _DATAGRAMS)
        if received:
            self.device.receive_datagrams(received, self._clock())
            self.pump()
        else:
            self._note_lost(self.transport)

    def _note_lost(self, transport: Transport) -> None:
        """Tell the engine of connections that ended."""
        for endpoint, retry_at_s in transport.lost():
            self.device.lost(endpoint, retry_at_s, self._clock())

    def on_link_changed(self) -> None:
        """The kernel's idea of the device changed: look again."""
        is_up = self.tun.refresh()
        self.device.mtu_bytes = self.tun.mtu_bytes
        self.device.addresses = self.tun.addresses()
        if is_up and self.transport is None:
            try:
                self.ensure_transport()
            except CulvertError as error:
                _log.error("%s", error)

    def pump(self) -> None:
        """Move what the engine has made to where it belongs."""
        frames = self.device.frames_to_write()
        if frames:
            if self._captures.active:
                self._captures.see(frames, outgoing=False)
            self.tun.write(frames)
            # It may have found out that it takes less than it promised.
            self.device.coalesce = self.tun.coalesce
        if self.transport is not None:
            self._note_lost(self.transport)
            for endpoint, before in self.device.arrivals():
                self.transport.trust(endpoint, before)
        runs = self.device.datagrams_to_send()
        if runs and self.transport is not None:
            for endpoint, code in self.transport.send(runs):
                self.device.send_failed(endpoint, code, self._clock())
            self._note_lost(self.transport)
        for event in self.device.events():
            self._on_event(event)

    # --- Time -----------------------------------------------------------------------------------------------

    def get_timer(self) -> float | None:
        """When to call :meth:`handle_timer`."""
        moment = self.device.get_timer()
        outside = None if self.transport is None else self.transport.get_timer()
        if outside is None and not self.names.resolve_at and not self._captures.active:
            return moment
        others = (moment, outside, self.names.get_timer(), self._captures.timer())
        return min((other for other in others if other is not None), default=None)

    def handle_timer(self) -> None:
        now = self._clock()
        self.device.handle_timer(now)
        if self.transport is not None:
            self.transport.handle_timer(now)
        if self._captures.active:
            self._captures.expire(now)
        self.names.handle_timer(now)
        self.pump()

    # --- What happens ---------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        now = self._clock()
        self.records.note(event, now)
        self.names.on_event(event, now)
        if event.kind is EventKind.HANDSHAKE_RETRIED:
            self._on_silence(event)

    def _on_silence(self, event: Event) -> None:
        """A peer does not answer: a NAT on the way may have forgotten us."""
        now = self._clock()
        if event.attempts % SILENT_AFTER_ATTEMPTS == 0 and self._may_change_port(event.public_key, now):
            try:
                self.rebind(0)
            except OSError as error:
                _log.warning("source port not changed: %s", os.strerror(error.errno or 0))
                return
            _log.info(
                "source port changed to %d: peer %s is silent", self.listen_port, short_name(event.public_key)
            )

    def _may_change_port(self, public_key: bytes, now: float) -> bool:
        """Only where nobody chose the port, and no other peer would be cut off by the change."""
        peer = self.device.peer(public_key)
        if self._fixed_port or self.transport is None or peer is None or not peer.is_at(UDP):
            return False
        return all(
            peer.public_key == public_key or now - peer.last_heard_s > REJECT_AFTER_TIME_S
            for peer in self.device.peers()
        )

    def on_resolved(self) -> None:
        """The resolver has results."""
        self.names.take(self._clock())
        self._set_targets()
        self.pump()

    # --- One relay after another ----------------------------------------------------------------------------

    def adopt(self, transport: Transport, listeners: Sequence[Listener] = ()) -> None:
        """Use a transport that another process had, and listen where it did."""
        self._use(transport)
        if listeners:
            self._need_streams(self.fwmark)
            self.outside.adopt(listeners)
        self._set_targets()

    def greet(self, endpoints: Mapping[bytes, Endpoint]) -> None:
        """Shake hands with peers that another relay heard of lately, where it did: they cannot know that
        their sessions are gone, and would notice late.
        """
        now = self._clock()
        for public_key, endpoint in endpoints.items():
            peer = self.device.peer(public_key)
            if peer is not None:
                peer.begin_at(endpoint)
                peer.initiate(now)
        self.pump()

    def start_anew(self) -> None:
        """Forget all sessions, for another process may have used them, and shake hands with those who are
        there.
        """
        now = self._clock()
        for peer in self.device.peers():
            is_there = now - peer.last_heard_s < REJECT_AFTER_TIME_S
            peer.identity_changed()
            if is_there:
                peer.initiate(now)
        self.pump()

    def before_handover(self) -> None:
        """Another process may be about to go on."""
        self.records.save()

    def leave(self) -> None:
        """Forget the keys, and leave the descriptors to another process."""
        self.device.close()
        self.outside.close(self.transport)
        self.tun.leave()

    def close(self) -> None:
        """Forget the keys, close the descriptors."""
        self.records.save()
        self.records.close()
        self.device.close()
        self.outside.close(self.transport)
        self.tun.close()
