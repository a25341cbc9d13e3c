# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``culvert run``: from an open device to a loop, giving up privileges on the way.

The order matters. As root: open the TUN, bind the control socket (or connect to that of the relay which is to
hand over). Then become the user. Only then is anything parsed, or a key file read, and only then do sockets
face the network.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from . import __version__
from .choose import AUTO, choose_batch
from .config import Config, load_config
from .constants import DEFAULT_MTU_BYTES, REJECT_AFTER_TIME_S
from .control import DEFAULT_DIRECTORY, listen, socket_path
from .device import Device
from .errors import ConfigError, CulvertError
from .events import text_of
from .handover import GOES_ON, NotTaken, ask
from .handover_state import restore_state
from .loop import Loop
from .offloads import format_offloads
from .predecessor import find, read_endpoints
from .privileges import drop_to, harden, keep_low_ports, parse_user
from .relay import Relay
from .tap import TAP_MTU_BYTES, LinuxTap
from .transport.listening import Listener
from .transport.stream import StreamTransport
from .transport.udp import UdpTransport
from .tun import LinuxTun
from .tun_device import KernelDevice, Opening

__all__ = ["RunOptions", "run"]

# A relay that has just been stopped closes its descriptors within milliseconds.
_FREE_S = 10.0

_log = logging.getLogger("culvert")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The command line of ``culvert run``."""

    name: str
    config: str | None = None
    user: str | None = None
    background: bool = False
    take_over: bool = False
    "Take over from the relay that serves the device now, if there is one."
    socket_directory: str = DEFAULT_DIRECTORY
    batch: str | None = None
    "A name of :data:`culvert.choose.BATCHES`; None leaves it to the file."
    disable_offloads: frozenset[str] | None = None
    "Names of :data:`culvert.offloads.OFFLOADS`; None leaves it to the file."

    def batch_with(self, config: Config | None) -> str:
        """What is to seal and open packets: the command line's word goes before the file's."""
        return self.batch or (config.batch if config is not None else None) or AUTO

    def disabled_with(self, config: Config | None) -> frozenset[str]:
        """The offloads not to be used: the command line's word goes before the file's."""
        if self.disable_offloads is not None:
            return self.disable_offloads
        return (config.disable_offloads if config is not None else None) or frozenset()


def boot_clock() -> float:
    """Seconds that also pass while the machine sleeps, so that sessions age as their peers' do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def run(options: RunOptions) -> int:
    """Serve until a signal or the end of the device; the exit status.

    :raises CulvertError: the start failed.
    :raises NotTaken: a handover that began was not completed: the relay before goes on.
    """
    user = parse_user(options.user) if options.user is not None else None
    instance = _instance()
    before = find(options.name, options.socket_directory) if options.take_over else None
    if before is not None and before.offers and before.socket is not None:
        start = _take_over(options, user, before.socket)
    else:
        state = None if before is None else before.wait_for_its_end()
        start = _begin(options, user, state)
    relay, loop = start.relay, start.loop
    try:
        relay.instance = instance
        loop.handle_signals()
        if options.background:
            _fork(loop)
        start.go(start)
        _log.info(
            "ready: UDP port %d, %d peers, batch %s, offloads %s",
            relay.listen_port,
            len(list(relay.device.peers())),
            relay.device.batch_name,
            format_offloads(relay.offloads),
        )
        loop.run()
        if loop.handed_over:
            _wait_for_the_end(options.name, start)
        else:
            relay.close()
    finally:
        start.remove_socket(options)
    return 0


@dataclass(slots=True)
class _Start:
    """A relay that is about to serve."""

    relay: Relay
    loop: Loop
    control: socket.socket
    go: Callable[[_Start], None]
    "What is left to do before the loop runs; may raise."
    is_ours: bool
    "Whether the name of the control socket is ours to remove."

    def remove_socket(self, options: RunOptions) -> None:
        # First the name, then the socket: the other way round, a successor's name could be removed. After
        # a change of user the directory may not be ours; then the next start removes what is left.
        if self.is_ours and not self.loop.handed_over:
            with contextlib.suppress(OSError):
                os.unlink(socket_path(options.name, options.socket_directory))
        self.control.close()


def _instance() -> str:
    """What whoever started us calls us. :raises CulvertError: it could be mistaken for something else."""
    instance = os.environ.get("CULVERT_INSTANCE", "")
    if len(instance) > 64 or any(not "!" <= char <= "~" for char in instance):
        raise CulvertError("CULVERT_INSTANCE: must be at most 64 printable ASCII characters without spaces")
    return instance


def _become(options: RunOptions, user: tuple[int, int] | None) -> tuple[str | None, Config | None]:
    """Give up root; then, and not before, read the configuration."""
    harden()
    if user is not None:
        drop_to(*user)
    path = None if options.config is None else os.path.abspath(options.config)
    config = None if path is None else _load(path)
    if user is not None:
        keep_low_ports(() if config is None else config.ports)
    return path, config


class _Parts:
    """What every relay is put together from, wherever its descriptors come from."""

    def __init__(self, options: RunOptions, path: str | None, config: Config | None) -> None:
        self._options = options
        self._path = path
        self._batch_name = options.batch_with(config)
        batch, self.calls = choose_batch(self._batch_name)
        self.device = Device(time.time_ns, batch=batch, layer=3 if config is None else config.layer)

    def assemble(self, tun: KernelDevice, control: socket.socket) -> tuple[Relay, Loop]:
        def reload() -> None:
            _reload(relay, self._path, self._options, self._batch_name)

        def open_transport(port: int, mark: int) -> UdpTransport:
            return UdpTransport(port, mark, self.calls)

        def open_streams(mark: int) -> StreamTransport:
            # Whoever uses no streams does not pay for what TLS takes.
            from .transport.tls import TlsOpener

            streams = StreamTransport(boot_clock, mark, openers=[TlsOpener()])
            streams.reception.recognises = self.device.recognises
            return streams

        loop = Loop(boot_clock, control, reload)
        tun.calls = self.calls
        relay = Relay(self.device, tun, open_transport, boot_clock, loop.transport_changed, open_streams)
        return relay, loop


# --- From nothing -------------------------------------------------------------------------------------------


def _begin(options: RunOptions, user: tuple[int, int] | None, state: bytes | None) -> _Start:
    """A relay whose sessions are all to be made.

    :param state: what the relay before said of its peers, for a quick handshake with them; None: there was
        none.
    """
    opening, control = _open(options, 0.0 if state is None else _FREE_S)
    try:
        path, config = _become(options, user)
        tun = _device(opening, config)
        relay, loop = _Parts(options, path, config).assemble(tun, control)
        relay.set_offloads(options.disabled_with(config))
        if config is not None:
            _configure(relay, tun, config)
        if tun.created:
            tun.bring_up()
        loop.attach(relay)
        relay.on_link_changed()
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(socket_path(options.name, options.socket_directory))
        control.close()
        raise

    def go(start: _Start) -> None:
        if state is not None:
            endpoints = read_endpoints(state, time.time(), REJECT_AFTER_TIME_S)
            _log.info("the relay before has ended: %d endpoints are known from it", len(endpoints))
            relay.greet(endpoints)
        relay.records.emit("relay_started", _started(relay))

    return _Start(relay, loop, control, go, True)


def _started(relay: Relay) -> dict[str, str | int]:
    """Fields of the event."""
    peers = sum(1 for _ in relay.device.peers())
    return {"version": __version__, "listen_port": relay.listen_port, "peers": peers}


def _device(opening: Opening, config: Config | None) -> KernelDevice:
    """What the configuration is for. :raises CulvertError: the device is another one, or cannot be made."""
    if config is not None and config.layer == 2:
        return LinuxTap.made_of(opening, TAP_MTU_BYTES)
    return LinuxTun.made_of(opening, DEFAULT_MTU_BYTES)


def _open(options: RunOptions, patience_s: float) -> tuple[Opening, socket.socket]:
    """The two things that take root. :raises CulvertError: somebody else has them."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            opening = Opening(options.name)
            try:
                return opening, listen(options.name, options.socket_directory)
            except BaseException:
                opening.close()
                raise
        except CulvertError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.01)


# --- From another process -----------------------------------------------------------------------------------


def _take_over(options: RunOptions, user: tuple[int, int] | None, sock: socket.socket) -> _Start:
    """The relay that another process has. All that takes time is done before that one falls silent."""
    path, config = _become(options, user)
    parts = _Parts(options, path, config)
    if config is not None:
        _warm_up(parts.device, config)
    taken = ask(sock, boot_clock)
    try:
        kind: type[KernelDevice] = LinuxTap if parts.device.layer == 2 else LinuxTun
        tun = kind.adopt(taken.tun, options.name, created=taken.tun_created)
        control = socket.socket(fileno=taken.control)
        sockets = [socket.socket(fileno=fd) for fd in taken.udp]
        listeners = [Listener(name, port, socket.socket(fileno=fd)) for name, port, fd in taken.listeners]
        taken.keep()
        relay, loop = parts.assemble(tun, control)
        sessions = restore_state(relay, taken.take_state(), boot_clock())
        if sockets:
            port = int(sockets[0].getsockname()[1])
            relay.adopt(UdpTransport(port, relay.fwmark, parts.calls, sockets), listeners)
        loop.attach(relay)
    except Exception as error:
        # Whatever it was, packets go on there. (What other exceptions say may hold a value.)
        reason = (
            str(error) if isinstance(error, (OSError, ValueError, CulvertError)) else type(error).__name__
        )
        taken.close()
        raise NotTaken(f"not taken over: {reason}: {GOES_ON}") from None
    taken.ready()

    def go(start: _Start) -> None:
        silent_s = taken.serving(boot_clock())
        start.is_ours = True
        peers = len(list(relay.device.peers()))
        _log.info(
            "serves since now: taken over from the relay before: %d peers, %d sessions, silent for %.1f ms",
            peers,
            sessions,
            1000 * silent_s,
        )
        relay.set_offloads(options.disabled_with(config))
        if config is not None:
            try:
                _configure(relay, tun, config)
            except CulvertError as error:
                _log.error("the configuration could not be loaded, all is as it was before: %s", error)
        silent_ms = round(1000 * silent_s, 1)
        relay.records.emit("taken_over", {"peers": peers, "sessions": sessions, "silent_ms": silent_ms})
        relay.on_link_changed()

    return _Start(relay, loop, control, go, False)


def _warm_up(device: Device, config: Config) -> None:
    """The peers' Diffie-Hellman computations, most likely: they take a second for 10,000 of them."""
    device.set_private_key(config.private_key)
    for peer in config.peers:
        device.add_peer(peer.public_key)


# A process without keys and descriptors: all that is left of a relay that has a successor. It does not end
# by itself, for whoever started it would start it again.
_WAITS = """
import signal
signal.sigwait((signal.SIGTERM, signal.SIGINT))
"""


def _wait_for_the_end(name: str, start: _Start) -> None:
    """Until somebody stops us. The memory, with every key that was in it, is the kernel's to clear."""
    signals = (signal.SIGTERM, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _log.info("handed over: waiting to be stopped")
    if start.loop.told_to_stop:
        return
    python = sys.executable
    with contextlib.suppress(OSError):
        os.execv(python, [python, "-I", "-S", "-c", _WAITS, "culvert", name, "handed-over"])  # noqa: S606
    start.control.close()
    signal.sigwait(signals)


def _load(path: str) -> Config:
    """:raises ConfigError: it is no configuration to run with."""
    config = load_config(path)
    if config.private_key is None:
        raise ConfigError(path, 0, "has no PrivateKey or PrivateKeyFile in [Interface]")
    return config


def _configure(relay: Relay, tun: KernelDevice, config: Config) -> None:
    if config.mtu_bytes not in (None, tun.mtu_bytes) and tun.created:
        tun.set_mtu(config.mtu_bytes)
    relay.load(config)


def _reload(relay: Relay, path: str | None, options: RunOptions, batch_name: str) -> None:
    """SIGHUP: the file is taken whole or not at all.

    :param batch_name: what the process was started with.
    """
    if path is None:
        _log.warning("SIGHUP ignored: started without --config")
        return
    try:
        config = _load(path)
        relay.load(config)
    except CulvertError as error:
        _log.error("reload refused, nothing changed: %s", error)
        relay.records.emit("config_refused", {"error": text_of(error)})
        return
    off = options.disabled_with(config)
    if off != relay.disabled_offloads:
        relay.set_offloads(off)
    if options.batch_with(config) != batch_name:
        # Session keys are the old one's: they cannot be handed over without ending the sessions.
        _log.warning("Batch = %s needs a restart: %s until then", options.batch_with(config), batch_name)
    _log.info("configuration reloaded: %d peers", len(config.peers))
    relay.records.emit("config_reloaded", {"peers": len(config.peers)})


def _fork(loop: Loop) -> None:
    """Go on in a child without a terminal; the parent ends with success, for everything is ready."""
    if os.fork() != 0:
        os._exit(0)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fileno in (0, 1, 2):
        os.dup2(null, fileno)
    os.close(null)
    loop.after_fork()
