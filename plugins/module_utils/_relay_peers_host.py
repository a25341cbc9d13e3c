# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The host's side of the relay's peers: the file, the keys, the control socket and the name server."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import stat
from typing import Any

from . import _x25519
from ._core import Change, HostError, PlainBackend, Plan, SpecError
from ._files import read_text, write_text
from ._relay_file import FileConfig, parse
from ._relay_peers import FILE_MODE, Line, Observed, endpoints_to_send, laid_open, plan
from ._relay_peers_spec import PeersSpec
from ._relay_ways import literal_address, split_endpoint
from ._uapi import Refused, Relay, configure, query_all

_KEY_FILE_MAX_BYTES = 4096
#: What relays of older images refuse, by the keys of the request.
_NEWER = {
    "failover groups": (
        "failover",
        "failover_timeout_ms",
        "failover_return_ms",
        "failover_allowed_ip",
        "replace_failover_allowed_ips",
    ),
    "a second identity": ("alternate_private_key", "local_key", "succeeds"),
    "streams (TCP, TLS) and lists of endpoints": (
        "endpoints",
        "tls_pin",
        "tls_server_name",
        "frame_messages",
    ),
    "limits of peers": ("expires_at", "rate_limit_bps", "quota_bytes", "quota_period"),
}


class PeersBackend(PlainBackend):
    """The peers of one relay."""

    def __init__(self, spec: PeersSpec, check_mode: bool = False) -> None:
        super().__init__(check_mode)
        self.spec = spec
        self._resolved: dict[str, str | None] = {}
        self._reload = False
        self._restart = False

    def blank(self) -> Observed:
        return Observed(owner=os.geteuid(), group=os.getegid())

    def observe(self) -> Observed:
        spec = self.spec
        text = read_text(spec.config_path)
        mode, owner, group = self._protection(text)
        config = parse(text or "")
        relay = query_all(spec.socket_path)
        key, alternate = self._own_key(), self._alternate_key()
        if relay is not None and (
            _of_the_file_alone(config) != _of_the_file_alone(spec.config) or self._listens_otherwise(relay)
        ):
            self._reload = True
        self._restart = relay is not None and relay.layer != spec.config.layer.number
        return Observed(
            text=text,
            mode=mode,
            owner=owner,
            group=group,
            relay=relay,
            key=key,
            public_key=key.public_key() if key else None,
            identity=relay.public_key if relay is not None else self._identity_of(config),
            alternate=alternate,
            known_alternate=relay.alternate_key if relay else _public_key(config.alternate_key_file),
            preshared=self._preshared_keys(),
            addresses=self._addresses(config, relay) if relay is not None else {},
        )

    def _listens_otherwise(self, relay: Relay) -> bool:
        """Whether it takes streams elsewhere than the file says, or shows another certificate than is there:
        a run that ended between writing and telling leaves it like that.
        """
        wanted = self.spec.config.listeners
        ports = {"tcp": wanted.tcp, "tls": wanted.tls}
        if relay.listeners != {name: port for name, port in ports.items() if port}:
            return True
        if not wanted.tls or not relay.certificate:
            return False
        path = os.path.join(os.path.dirname(self.spec.config_path), wanted.certificate_file)
        try:
            with open(path, "rb") as file:
                return hashlib.sha256(file.read()).hexdigest() != relay.certificate
        except OSError:
            # Nothing that it could read instead.
            return False

    def _protection(self, text: str | None) -> tuple[int, int, int]:
        if text is None:
            return 0, os.geteuid(), os.getegid()
        try:
            status = os.stat(self.spec.config_path)
        except OSError as error:
            raise HostError(f"cannot look at {self.spec.config_path}: {error.strerror}") from None
        return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid

    def _own_key(self) -> _x25519.SecretKey | None:
        path = self.spec.config.private_key_file
        key = _read_key("private_key_file", path)
        if key is None and not self.check_mode:
            raise SpecError(
                "private_key_file", f"{path} does not exist: the module culvert.vpn.relay_key makes it"
            )
        return key

    def _alternate_key(self) -> _x25519.SecretKey | None:
        path = self.spec.config.alternate_key_file
        key = _read_key("alternate_private_key_file", path) if path else None
        if path and key is None and not self.check_mode:
            raise SpecError("alternate_private_key_file", f"{path} does not exist")
        return key

    def _identity_of(self, config: FileConfig) -> str | None:
        """Who a relay started with the file as it is would be, where that names another key than ours."""
        if config.inline_key is not None:
            return config.inline_key.public_key()
        if config.private_key_file in ("", self.spec.config.private_key_file):
            return None
        return _public_key(config.private_key_file)

    def _preshared_keys(self) -> dict[str, _x25519.SecretKey]:
        keys = {}
        for position, peer in enumerate(self.spec.config.peers):
            path = peer.preshared_key_file
            option = f"peers[{position}].preshared_key_file"
            key = _read_key(option, path) if path else None
            if key is not None:
                keys[path] = key
            elif path and not self.check_mode:
                raise SpecError(option, f"{path} does not exist")
        return keys

    def _addresses(self, config: FileConfig, relay: Relay) -> dict[str, str | None]:
        """Resolves, once each, the names among the endpoints that have to be sent."""
        peers = endpoints_to_send(self.spec, config, relay)
        for endpoint in [peer.endpoint for peer in peers]:
            if endpoint not in self._resolved:
                self._resolved[endpoint] = literal_address(endpoint) or resolve(endpoint)
        self._reload = self._reload or any(literal_address(peer.endpoint) is None for peer in peers)
        return self._resolved

    def plan(self, observed: Observed) -> Plan:
        directory = os.path.dirname(self.spec.config_path)
        if not os.path.isdir(directory):
            message = f"the directory {directory} does not exist"
            if not self.check_mode:
                raise SpecError("config_path", f"{message}; make it first")
            self.warnings.append(f"config_path: {message} yet")
        steps = plan(self.spec, observed)
        self.warnings += [
            f"endpoint {endpoint} cannot be resolved on the host; that is left to the relay"
            for endpoint, address in observed.addresses.items()
            if address is None
        ]
        self.warnings += [
            f"{name} had a pre-shared key and has none any more; if nobody has meant that, somebody else may "
            "have changed what the two agreed on"
            for name in laid_open(self.spec, observed)
        ]
        return steps

    def apply(self, change: Change) -> None:
        if change.action == "set":
            self._configure(change.data)
            return
        owner = -1 if self.spec.owner is None else self.spec.owner
        group = -1 if self.spec.group is None else self.spec.group
        write_text(self.spec.config_path, change.data, FILE_MODE, *self._kept(owner, group))

    def _configure(self, lines: list[Line]) -> None:
        try:
            configure(self.spec.socket_path, lines)
        except Refused as refusal:
            unknown = [what for what, keys in _NEWER.items() if any(key in keys for key, _value in lines)]
            if refusal.code != errno.EINVAL or not unknown:
                raise
            if self.spec.replaced:
                self.warnings.append(
                    f"the relay {self.spec.name} is left as it is until it is replaced: {refusal}"
                )
                return
            raise HostError(
                f"{refusal}. Its image does not know {' and '.join(unknown)}: upgrade that (of the role, "
                "relay_image), or do without. Nothing was changed"
            ) from None

    def _kept(self, owner: int, group: int) -> tuple[int, int]:
        """A file that is replaced keeps the owner and the group that nobody asks to change."""
        try:
            status = os.stat(self.spec.config_path)
        except FileNotFoundError:
            return owner, group
        return (status.st_uid if owner < 0 else owner), (status.st_gid if group < 0 else group)

    def report(self, observed: Observed) -> dict[str, Any]:
        return {
            "running": observed.relay is not None,
            "public_key": observed.public_key,
            "reload": self._reload,
            "restart": self._restart,
        }


def _public_key(path: str) -> str | None:
    """That of the private key in a file; ``None`` where there is none that a relay could start with."""
    try:
        key = _read_key("", path) if path else None
    except (SpecError, HostError):
        return None
    return key.public_key() if key else None


def _of_the_file_alone(config: FileConfig) -> tuple[object, ...]:
    """What a relay cannot be told on its control socket. Names of peers are in its events."""
    names = {peer.public_key: peer.name for peer in config.peers} if config.records.events else {}
    return config.disable_offloads, config.records, config.listeners, config.layer.ethernet, names


def _read_key(option: str, path: str) -> _x25519.SecretKey | None:
    """The key in a file; ``None`` when there is no such file. What is in it is in no message.

    :raises SpecError: there is something else in it.
    :raises HostError: it cannot be read.
    """
    try:
        # Not blocking: a named pipe must not hold the run up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}; are you root?") from None
    try:
        content = os.read(descriptor, _KEY_FILE_MAX_BYTES)
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from None
    finally:
        os.close(descriptor)
    key = _x25519.from_base64(content.strip())
    if key is None:
        raise SpecError(option, f"{path} does not hold one key in base64 (its content is not shown)")
    return _x25519.SecretKey(key)


def resolve(endpoint: str) -> str | None:
    """``address:port`` of an endpoint given by name, the first of several; ``None`` when there is none."""
    host, port = split_endpoint(endpoint)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return None
    for family, _type, _protocol, _name, address in found:
        text = str(address[0])
        return literal_address(f"[{text}]:{port}" if family == socket.AF_INET6 else f"{text}:{port}")
    return None
