# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking a running relay (or any WireGuard userspace device) for its state, over the control socket."""

from __future__ import annotations

import base64
import os
import socket
import time
from typing import Any

from .about import read_about
from .about_streams import show_streams
from .about_ways import show_way
from .control import DEFAULT_DIRECTORY, socket_path
from .errors import CulvertError
from .keys import Identity
from .limits import format_moment

__all__ = ["devices", "query", "render"]

_TIMEOUT_S = 5.0


def devices(directory: str = DEFAULT_DIRECTORY) -> list[str]:
    """Names of the devices whose control socket somebody listens on.

    A socket may outlive its process, which had no right to remove it after its change of user.
    """
    try:
        names = sorted(entry[:-5] for entry in os.listdir(directory) if entry.endswith(".sock"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CulvertError(f"{directory}: {error.strerror}") from None
    return [name for name in names if _is_alive(socket_path(name, directory))]


def _is_alive(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(_TIMEOUT_S)
        try:
            sock.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            # Somebody is there and we may not talk to them: let the query say so.
            return True
    return True


def query(name: str, directory: str = DEFAULT_DIRECTORY) -> dict[str, Any]:
    """The state of one device, without any secret key.

    ``batch`` and ``offloads`` are None where the device is another program's.

    :raises CulvertError: nobody answers.
    """
    path = socket_path(name, directory)
    text, about = _exchange(path)
    told = read_about(about)
    limits, bonds, ports = told.pop("limits"), told.pop("bonds"), told.pop("ports")
    ways = told.pop("ways")
    device: dict[str, Any] = {
        "name": name,
        "public_key": None,
        "listen_port": 0,
        "fwmark": 0,
        **told,
        "peers": [],
    }
    peer: dict[str, Any] = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key == "private_key":
            device["public_key"] = _base64(Identity(bytes.fromhex(value)).public.hex())
        elif key in ("listen_port", "fwmark"):
            device[key] = int(value)
        elif key == "public_key":
            peer = _new_peer(value)
            peer["limits"] = limits.get(peer["public_key"])
            peer |= {} if bonds is None else {"local_key": "primary", **bonds.get(peer["public_key"], {})}
            peer |= (ports or {}).get(peer["public_key"], {})
            peer |= ways.get(peer["public_key"], {})
            device["peers"].append(peer)
        elif key in _PEER_KEYS:
            name_of, read = _PEER_KEYS[key]
            peer[name_of] = read(value)
        elif key == "allowed_ip":
            peer["allowed_ips"].append(value)
        elif key == "errno" and value != "0":
            raise CulvertError(f"{path}: the device answers errno {value}")
    return device


_PEER_KEYS: dict[str, tuple[str, Any]] = {
    "endpoint": ("endpoint", str),
    "last_handshake_time_sec": ("latest_handshake_s", int),
    "rx_bytes": ("rx_bytes", int),
    "tx_bytes": ("tx_bytes", int),
    "persistent_keepalive_interval": ("persistent_keepalive_s", int),
}


def _new_peer(public_key: str) -> dict[str, Any]:
    return {
        "public_key": _base64(public_key),
        "endpoint": None,
        "allowed_ips": [],
        "latest_handshake_s": 0,
        "rx_bytes": 0,
        "tx_bytes": 0,
        "persistent_keepalive_s": 0,
        "limits": None,
        "way": None,
        "frame_messages": False,
        "tls_pins": [],
        "tls_server_name": None,
        "local_key": None,
        "succeeds": None,
        "succession": None,
        "mac_addresses": None,
        "dropped_frames": None,
    }


def _base64(hexadecimal: str) -> str:
    return base64.b64encode(bytes.fromhex(hexadecimal)).decode("ascii")


def _exchange(path: str) -> tuple[str, str]:
    """The answers to ``get=1`` and, if there is one, to ``culvert=1``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(_TIMEOUT_S)
        try:
            sock.connect(path)
            sock.sendall(b"get=1\n\n")
            state = _receive(sock)
        except FileNotFoundError:
            raise CulvertError(f"{path}: there is no such control socket: is the relay running?") from None
        except TimeoutError:
            raise CulvertError(f"{path}: no answer in {_TIMEOUT_S:.0f} s") from None
        except OSError as error:
            raise CulvertError(f"{path}: {error.strerror}") from None
        if state is None:
            raise CulvertError(f"{path}: the device hung up")
        try:
            sock.sendall(b"culvert=1\n\n")
            about = _receive(sock)
        except OSError:
            # Hung up on, or left without an answer: it is not one of ours.
            about = None
    return state, about or ""


def _receive(sock: socket.socket) -> str | None:
    """One answer, to the empty line that ends it; None when the other side hung up before that."""
    received = bytearray()
    while not received.endswith(b"\n\n"):
        data = sock.recv(1 << 16)
        if not data:
            return None
        received += data
    return received.decode("ascii", errors="replace")


def render(device: dict[str, Any]) -> str:
    """For a person, much as ``wg show`` prints it."""
    lines = [f"interface: {device['name']}", f"  public key: {device['public_key'] or '(none)'}"]
    if device.get("alternate_public_key"):
        lines.append(f"  alternate public key: {device['alternate_public_key']}")
    if device["listen_port"]:
        lines.append(f"  listening port: {device['listen_port']}")
    if device["fwmark"]:
        lines.append(f"  fwmark: {device['fwmark']:#x}")
    lines += show_streams(device)
    if device["batch"] is not None:
        lines.append(f"  batch: {device['batch']}")
        lines.append(f"  offloads: {', '.join(device['offloads']) or 'none'}")
    lines += _layer2(device.get("layer2"))
    for capture in device["captures"]:
        text = f"{capture['packets']} packets, {capture['bytes']} B in {capture['age_s']} s"
        lines.append(f"  capture: running, {text}, filter {capture['filter'] or '(none)'}")
    group = device["failover"]
    if group is not None:
        text = f"after {group['timeout_s']:g} s of silence, back after {group['return_s']:g} s"
        lines.append(f"  failover: {', '.join(group['allowed_ips']) or '(nothing)'}: {text}")
    members = {member["public_key"]: member for member in group["members"]} if group is not None else {}
    for peer in device["peers"]:
        lines += ["", f"peer: {peer['public_key']}"]
        if peer["endpoint"]:
            lines.append(f"  endpoint: {peer['endpoint']}")
        lines += show_way(peer.get("way"))
        if peer.get("mac_addresses") is not None:
            dropped = f", {peer['dropped_frames']} frames dropped" if peer["dropped_frames"] else ""
            lines.append(f"  mac addresses: {peer['mac_addresses']}{dropped}")
        else:
            lines.append(f"  allowed ips: {', '.join(peer['allowed_ips']) or '(none)'}")
        if peer["public_key"] in members:
            member = members[peer["public_key"]]
            lines.append(f"  failover: {member['state']}, priority {member['priority'] or '0 (never)'}")
        lines += _bonds(peer)
        if peer["latest_handshake_s"]:
            age_s = max(0, int(time.time()) - peer["latest_handshake_s"])
            lines.append(f"  latest handshake: {age_s} s ago")
        lines.append(f"  transfer: {peer['rx_bytes']} B received, {peer['tx_bytes']} B sent")
        if peer["persistent_keepalive_s"]:
            lines.append(f"  persistent keepalive: every {peer['persistent_keepalive_s']} s")
        if peer.get("limits") is not None:
            lines.append(f"  limits: {_limits(peer['limits'])}")
    if device["rejections"]:
        lines += ["", "refused lately:"]
        lines += [f"  {_refused(entry)}" for entry in device["rejections"]]
    return "\n".join(lines)


def _layer2(switch: dict[str, Any] | None) -> list[str]:
    """The switch of a device at layer 2."""
    if switch is None:
        return []
    storm = f"{switch['storm_limit']} frames/s" if switch["storm_limit"] else "none"
    isolation = "on" if switch["client_isolation"] else "off"
    lines = [f"  layer: 2, client isolation {isolation}, storm limit {storm}"]
    ageing = f"at most {switch['mac_limit']} behind a peer, for {switch['mac_ageing_s']} s"
    lines.append(
        f"  mac addresses: {switch['addresses']}, {switch.get('host_addresses', 0)} on this side ({ageing})"
    )
    dropped = [f"{count} {why}" for why, count in switch["dropped"].items() if count]
    return [*lines, f"  dropped frames: {', '.join(dropped)}"] if dropped else lines


_SUCCESSION = {
    "waiting": "waiting for its first session",
    "active": "active",
    "silent": "silent, so that one is used again",
}


def _bonds(peer: dict[str, Any]) -> list[str]:
    lines = []
    if peer.get("local_key") == "alternate":
        lines.append("  local key: alternate")
    if peer.get("succeeds"):
        lines.append(f"  succeeds: {peer['succeeds']} ({_SUCCESSION.get(peer['succession'], '?')})")
    return lines


def _limits(limits: dict[str, Any]) -> str:
    """In words; all of it in one line."""
    parts = []
    if limits["expires_at"]:
        parts.append(f"until {format_moment(limits['expires_at'])}")
    if limits["rate_limit_bps"]:
        parts.append(
            f"{limits['rate_limit_bps'] / 1e6:g} Mbit/s, {limits['dropped_packets']} packets dropped"
        )
    if limits["quota_bytes"]:
        of = f"{limits['quota_used_bytes']} of {limits['quota_bytes']} B used"
        period = {"month": "this month", "day": "today"}.get(limits["quota_period"], "in all")
        again = f" (anew at {format_moment(limits['quota_resets_at'])})" if limits["quota_resets_at"] else ""
        parts.append(f"{of} {period}{again}")
    barred = {"expired": "NO ACCESS: its time is up", "quota": "NO ACCESS: its quota is used up"}
    return "; ".join([barred[limits["barred"]]] * (limits["barred"] in barred) + parts)


# What is refused, in words; the reasons themselves are explained in culvert.rejections.
_REASONS = {
    "mac1": "handshakes that were not made for our public key",
    "unknown_peer": "initiations by a public key that no peer has",
    "stale_timestamp": "initiations older than the peer's last one (its clock went back, or a replay)",
    "bad_response": "answers to our initiation that do not fit (the pre-shared keys differ)",
    "source": "packets out of the tunnel from an address that is not the peer's",
    "frame_message": "frame messages, which are not to come from that peer (FrameMessages)",
    "expired": "attempts of or packets for a peer whose time is up",
    "quota": "attempts of or packets for a peer that has used up its quota",
    "no_allowed_ip": "packets for an address that no peer has",
    "no_endpoint": "packets for a peer without an endpoint",
    "send_error": "datagrams that the socket did not take",
}


def _refused(entry: dict[str, Any]) -> str:
    """One line: how many of what, from whom or for whom, when."""
    who = (
        ("from" if entry["reason"] not in ("send_error", "no_endpoint") else "for", entry["endpoint"]),
        ("peer", entry["public_key"]),
        ("source" if entry["reason"] == "source" else "destination", entry["address"]),
        ("error", entry["detail"]),
    )
    what = _REASONS.get(entry["reason"], str(entry["reason"]))
    known = "".join(f", {name} {value}" for name, value in who if value)
    return f"{entry['count']} {what}{known}, last {entry['age_s']} s ago"
