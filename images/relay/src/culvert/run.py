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

from .config import Config, load_config
from .control import DEFAULT_DIRECTORY, listen, socket_path
from .device import Device
from .errors import ConfigError, CulvertError
from .loop import Loop
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
        loop = Loop(boot_clock, control, lambda: _reload(relay, config_path))
        relay = Relay(Device(time.time_ns), tun, UdpTransport, boot_clock, loop.transport_changed)
        if config_path is not None:
            _configure(relay, tun, load_config(config_path), config_path)
        if tun.created:
            tun.bring_up()
        loop.attach(relay)
        relay.on_link_changed()
        loop.handle_signals()
        if options.background:
            _fork(loop)
        _log.info("ready: UDP port %d, %d peers", relay.listen_port, len(list(relay.device.peers())))
        loop.run()
        relay.close()
    finally:
        # First the name, then the socket: the other way round, a successor's name could be removed. After
        # a change of user the directory may not be ours; then the next start removes what is left.
        with contextlib.suppress(OSError):
            os.unlink(socket_path(options.name, options.socket_directory))
        control.close()
    return 0


def _configure(relay: Relay, tun: LinuxTun, config: Config, path: str) -> None:
    if config.private_key is None:
        raise ConfigError(path, 0, "has no PrivateKey or PrivateKeyFile in [Interface]")
    if config.mtu_bytes is not None and tun.created:
        tun.set_mtu(config.mtu_bytes)
    relay.load(config)


def _reload(relay: Relay, path: str | None) -> None:
    """SIGHUP: the file is taken whole or not at all."""
    if path is None:
        _log.warning("SIGHUP ignored: started without --config")
        return
    try:
        config = load_config(path)
        if config.private_key is None:
            raise ConfigError(path, 0, "has no PrivateKey or PrivateKeyFile in [Interface]")
        relay.load(config)
    except CulvertError as error:
        _log.error("reload refused, nothing changed: %s", error)
        return
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
