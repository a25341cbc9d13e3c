# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``culvert run``: from an open device to a loop, giving up privileges on the way.

The order matters. As root: open the TUN, bind the control socket. Then become the user. Only then is anything
parsed, or a key file read, and only then do sockets face the network.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from dataclasses import dataclass

from .choose import AUTO, choose_batch
from .config import Config, load_config
from .control import DEFAULT_DIRECTORY, listen, socket_path
from .device import Device
from .errors import ConfigError, CulvertError
from .loop import Loop
from .offloads import format_offloads
from .privileges import drop_to, harden, parse_user
from .relay import Relay
from .transport.udp import UdpTransport
from .tun import LinuxTun, TunOptions

__all__ = ["RunOptions", "run"]

_log = logging.getLogger("culvert")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The command line of ``culvert run``."""

    name: str
    config: str | None = None
    user: str | None = None
    background: bool = False
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
    """
    user = parse_user(options.user) if options.user is not None else None
    tun = LinuxTun.open(TunOptions(options.name))
    control = listen(options.name, options.socket_directory)
    try:
        harden()
        if user is not None:
            drop_to(*user)
        config_path = None if options.config is None else os.path.abspath(options.config)
        config = None if config_path is None else _load(config_path)
        batch_name = options.batch_with(config)
        loop = Loop(boot_clock, control, lambda: _reload(relay, config_path, options, batch_name))
        batch, calls = choose_batch(batch_name)
        tun.calls = calls
        device = Device(time.time_ns, batch=batch)
        relay = Relay(
            device,
            tun,
            lambda port, mark: UdpTransport(port, mark, calls),
            boot_clock,
            loop.transport_changed,
        )
        relay.set_offloads(options.disabled_with(config))
        if config is not None:
            _configure(relay, tun, config)
        if tun.created:
            tun.bring_up()
        loop.attach(relay)
        relay.on_link_changed()
        loop.handle_signals()
        if options.background:
            _fork(loop)
        _log.info(
            "ready: UDP port %d, %d peers, batch %s, offloads %s",
            relay.listen_port,
            len(list(device.peers())),
            device.batch_name,
            format_offloads(relay.offloads),
        )
        loop.run()
        relay.close()
    finally:
        # First the name, then the socket: the other way round, a successor's name could be removed. After
        # a change of user the directory may not be ours; then the next start removes what is left.
        with contextlib.suppress(OSError):
            os.unlink(socket_path(options.name, options.socket_directory))
        control.close()
    return 0


def _load(path: str) -> Config:
    """:raises ConfigError: it is no configuration to run with."""
    config = load_config(path)
    if config.private_key is None:
        raise ConfigError(path, 0, "has no PrivateKey or PrivateKeyFile in [Interface]")
    return config


def _configure(relay: Relay, tun: LinuxTun, config: Config) -> None:
    if config.mtu_bytes is not None and tun.created:
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
        return
    off = options.disabled_with(config)
    if off != relay.disabled_offloads:
        relay.set_offloads(off)
    if options.batch_with(config) != batch_name:
        # Session keys are the old one's: they cannot be handed over without ending the sessions.
        _log.warning("Batch = %s needs a restart: %s until then", options.batch_with(config), batch_name)
    _log.info("configuration reloaded: %d peers", len(config.peers))


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
