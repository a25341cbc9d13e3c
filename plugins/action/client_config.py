# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Writes configurations of devices, on the controller. Their keys are in the files, and in no result."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.culvert.vpn.plugins.module_utils import _x25519
from ansible_collections.culvert.vpn.plugins.modules.client_config import ARGUMENTS
from ansible_collections.culvert.vpn.plugins.plugin_utils import _fleet, _registry, _vaulted
from ansible_collections.culvert.vpn.plugins.plugin_utils._device_config import (
    DeviceConfig,
    NoPainter,
    painted,
    private_key_in,
    show_on_terminal,
)
from ansible_collections.culvert.vpn.plugins.plugin_utils._devices import (
    Device,
    device_problems,
    devices_listed,
    devices_of,
    is_address,
    plain_devices,
    prefixes_of,
)
from ansible_collections.culvert.vpn.plugins.plugin_utils._registry import Entry, Registry, RegistryError
from ansible_collections.culvert.vpn.plugins.plugin_utils._ways import offered


class Refused(Exception):
    """It cannot be as it is wished; the message says why, and holds no key."""


@dataclass(frozen=True)
class Kept:
    """A file that is there.

    :ivar text: what is in it, decrypted; ``None`` without a file.
    :ivar vaulted: whether it is encrypted.
    """

    text: bytes | None = field(default=None, repr=False)
    vaulted: bool = False
    mode: int | None = None


class ActionModule(ActionBase):
    """Action plugin of ``culvert.vpn.client_config``."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        _checked, options = self.validate_argument_spec(argument_spec=ARGUMENTS)
        options, variables = plain_devices(options), task_vars or {}
        try:
            if options["external_peers"] is None:
                host = variables["hostvars"][str(variables["inventory_hostname"])]
                options["external_peers"] = devices_listed(host)
            with _registry.locked(options["path"]):
                result.update(self._write(options, variables))
        except (Refused, RegistryError) as refusal:
            result.update(failed=True, msg=str(refusal))
        except _vaulted.NoVaultPassword:
            result.update(
                failed=True,
                msg="device_vault needs a vault password: --vault-password-file, or --ask-vault-pass.",
            )
        except OSError as error:
            result.update(failed=True, msg=f"{error.filename or options['dest']}: {error.strerror}")
        return result

    def _write(self, options: dict[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
        registry = _registry.read(options["path"]) or Registry()
        device = _device(options, registry)
        entry = registry.hosts[device.name]
        server = _server(options, device, registry)
        path = os.path.join(options["dest"], f"{device.name}.conf")
        kept = self._kept(path)
        wanted = _qr_wanted(options, bool(device.public_key))
        key, made = _key(device, entry, kept, path, options["new_key"], self._task.check_mode)
        public = _public_key(key) or device.public_key
        if public in {barred["public_key"] for barred in registry.revoked}:
            raise Refused(
                f"The key of {device.name} was revoked: have another one made with -e device_new_key=true, "
                "or, where the device has made it, put another public key into external_peers."
            )
        config = _config(
            options, device, registry, server, self._dns(options, device, server, registry, variables)
        )
        config = replace(config, public_key=public, private_key=key, preshared_key=device.preshared_key)
        files = {path: config.text().encode()} | {
            os.path.join(options["dest"], f"{device.name}.{kind}"): _picture(config, kind)
            for kind in wanted
            if kind != "terminal"
        }
        changed = [
            name
            for name, content in files.items()
            if not self._is_there(name, content, options["vault"] and name == path)
        ]
        result = {
            "changed": bool(changed) or public != entry.public_key,
            "diff": {"before": "", "after": "".join(f"{name}: written\n" for name in changed)},
            "device": device.name,
            "server": server,
            "file": path,
            "public_key": public,
            "key_made": made,
            "images": [name for name in files if name != path],
        }
        if not self._task.check_mode:
            os.makedirs(options["dest"], mode=0o700, exist_ok=True)
            # The key's file first: a run that ends here finds it, and writes down its public key then.
            for name in changed:
                vaulted = options["vault"] and name == path
                content = _vaulted.encrypt(self._loader, files[name]) if vaulted else files[name]
                _vaulted.write_secret(name, content)
            if public != entry.public_key:
                hosts = {**registry.hosts, device.name: replace(entry, public_key=public)}
                _registry.write(options["path"], registry.with_hosts(hosts))
            if "terminal" in wanted and not show_on_terminal(_picture(config, "terminal")):
                result["warnings"] = ["There is no terminal to show the QR code on: see the file."]
        return result

    def _kept(self, path: str) -> Kept:
        try:
            found = _vaulted.read_secret(path)
            if found is None:
                return Kept()
            vaulted = _vaulted.is_vaulted(found)
            text = _vaulted.decrypt(self._loader, found) if vaulted else found
        except _vaulted.Unreadable as error:
            raise Refused(f"{path} is there, and cannot be read: {error}.") from None
        return Kept(text, vaulted, _vaulted.mode_of(path))

    def _is_there(self, path: str, content: bytes, vaulted: bool) -> bool:
        kept = self._kept(path)
        return kept == Kept(content, vaulted, _vaulted.SECRET_MODE)

    def _dns(
        self,
        options: dict[str, Any],
        device: Device,
        server: str,
        registry: Registry,
        variables: Mapping[str, Any],
    ) -> list[str]:
        given = device.dns if device.dns is not None else options["dns"]
        if given is not None:
            wrong = [text for text in given if not is_address(text)]
            if wrong:
                raise Refused(f"device_dns: {wrong[0]!r} is not an address.")
            return list(given)
        host = variables.get("hostvars", {}).get(server, {})
        if str(host.get("server_resolver", "none")) == "none":
            return []
        return [address.partition("/")[0] for address in registry.hosts[server].addresses]


def _device(options: dict[str, Any], registry: Registry) -> Device:
    """:raises Refused: there is no such device, or it has no place in the fleet yet."""
    name, networks = options["device"], (options["network"], options["network6"])
    found = device_problems(options["external_peers"], networks=networks)
    if found:
        raise Refused(" ".join(found))
    devices = {device.name: device for device in devices_of(options["external_peers"], networks)}
    if name not in devices:
        known = ", ".join(sorted(devices)) or "nobody"
        raise Refused(f"{name!r} is none of external_peers ({known}).")
    entry = registry.hosts.get(name)
    if entry is None or entry.role != "external" or not entry.addresses:
        raise Refused(f"{name} is not in the registry {options['path']} yet: run culvert.vpn.site first.")
    return devices[name]


def _server(options: dict[str, Any], device: Device, registry: Registry) -> str:
    servers = {
        name: e
        for name, e in registry.hosts.items()
        if e.server and e.public_key and e.endpoint and "udp" in offered(e)
    }
    wished = list(device.device.get("servers") or [])
    if options["server"]:
        if options["server"] not in servers or (wished and options["server"] not in wished):
            known = ", ".join(name for name in (wished or sorted(servers)) if name in servers) or "none"
            raise Refused(
                f"device_server: {options['server']} is no server of {device.name} in the registry; these "
                f"are: {known}."
            )
        return str(options["server"])
    order = wished or _fleet.server_order(servers, device.name, registry.hosts)
    usable = sorted((name for name in order if name in servers), key=lambda name: servers[name].drain)
    if not usable:
        raise Refused(f"No server of {device.name} is in the registry yet: run culvert.vpn.site first.")
    return usable[0]


def _key(
    device: Device, entry: Entry, kept: Kept, path: str, new: bool, check_mode: bool
) -> tuple[bytes | None, bool]:
    """The private key that goes into the file, and whether it was made now. ``None`` for the device's own.

    :raises Refused: there is one somewhere else.
    """
    found = private_key_in(kept.text or b"")
    if device.public_key:
        # Who has put it there by hand finds it again.
        return (found if _public_key(found) == device.public_key else None), False
    if not new and found is not None and entry.public_key in ("", _public_key(found)):
        return found, False
    if not new and entry.public_key:
        what = "holds another key than that" if found else "is not there, or without it"
        raise Refused(
            f"The key of {device.name} was made before, and is in the file that was written then; {path} "
            f"{what}. Give the folder of that file (device_dir), or have another key made with "
            "-e device_new_key=true: the old one is refused as soon as the servers know the new one."
        )
    return (None, True) if check_mode else (_x25519.generate_private_key(), True)


def _public_key(key: bytes | None) -> str:
    return "" if key is None else _x25519.to_base64(_x25519.public_key_of(key))


def _config(
    options: dict[str, Any], device: Device, registry: Registry, server: str, dns: list[str]
) -> DeviceConfig:
    inside = [options["network"], options["network6"]]
    inside += _fleet.networks_behind_others(registry.hosts, device.name)
    entry = registry.hosts[server]
    try:
        wish = options["prefixes"] if device.prefixes is None else device.prefixes
        prefixes = prefixes_of(wish.split(",") if isinstance(wish, str) and "/" in wish else wish, inside)
    except (TypeError, ValueError) as error:
        raise Refused(f"device_prefixes: {error}. Say full, split, or a list of prefixes.") from None
    addresses = registry.hosts[device.name].addresses
    return DeviceConfig(
        name=device.name,
        public_key="",
        addresses=tuple(addresses),
        server=server,
        server_key=entry.public_key,
        endpoint=entry.endpoint,
        prefixes=tuple(prefixes),
        dns=tuple(dns),
        mtu=options["mtu"] if device.mtu is None else device.mtu,
        keepalive=int(device.device.get("keepalive") or 0),
    )


def _qr_wanted(options: dict[str, Any], given_key: bool) -> list[str]:
    if options["qr"] is None:
        return [] if given_key or options["vault"] else ["png", "svg"]
    if options["vault"] and set(options["qr"]) & {"png", "svg"}:
        raise Refused(
            "device_vault leaves no file that can be read, so no image: device_qr may be [terminal]."
        )
    return list(options["qr"])


def _picture(config: DeviceConfig, kind: str) -> bytes:
    try:
        return painted(config.text(), kind)
    except NoPainter:
        raise Refused(
            "QR codes need segno where Ansible runs: pip install segno. Without one: "
            "-e '{\"device_qr\": []}'."
        ) from None
    except ValueError as error:
        raise Refused(f"The configuration of {config.name} cannot be a QR code: {error}.") from None
