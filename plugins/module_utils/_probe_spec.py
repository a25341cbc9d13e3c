# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What a probe is asked: the options of the module ``tunnel_probe``, read and checked."""

from __future__ import annotations

import ipaddress
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._core import SpecError
from ._options import Options
from ._probe import Address
from ._uapi import interface_name, socket_path_of

_COUNT_MAX = 100
RESPONDER_PORT = 51821
_DNS_NAME = "example.com"
#: Packets between the host and its containers are not on their way out; ``+`` stands for any end of a name.
CONTAINER_DEVICES = ("docker0", "br-+", "veth+", "virbr+", "podman+", "cni+", "lxdbr+", "lxcbr+")


@dataclass(frozen=True)
class Target:
    """:ivar optional: left out where the device has no address of this IP version."""

    name: str
    address: Address
    optional: bool = False


@dataclass(frozen=True)
class Responder:
    """Where ``culvert respond`` listens, inside the tunnel."""

    address: Address
    port: int = RESPONDER_PORT

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


@dataclass(frozen=True)
class Question:
    """One destination to be explained.

    :ivar source: where the packet comes from, for one that this host forwards or that comes in.
    :ivar may_be_silent: that no answer comes from there is no fault of this host's.
    """

    destination: str
    source: str | None = None
    protocol: str | None = None
    port: int | None = None
    may_be_silent: bool = False


@dataclass(frozen=True)
class ProbeSpec:
    """What is ``None`` is not asked for.

    :ivar leak_targets: empty for those that the probe chooses.
    :ivar throughput_floor_mbit: 0 for no measurement.
    """

    device: str
    socket_path: str
    targets: tuple[Target, ...] = ()
    count: int = 3
    timeout_s: float = 2.0
    egress_url: str = ""
    egress_expect: tuple[Address, ...] = ()
    full_tunnel: bool | None = None
    kill_switch: bool | None = None
    dns_servers: tuple[Address, ...] = ()
    dns_name: str = _DNS_NAME
    leak_targets: tuple[Address, ...] = ()
    container_devices: tuple[str, ...] = CONTAINER_DEVICES
    responder: Responder | None = None
    path_mtu: bool = False
    throughput_floor_mbit: float = 0.0
    explain: tuple[Question, ...] = ()
    drift: bool = False
    reference_time_s: float | None = None
    clock_offset_max_s: float = 30.0
    handshake_max_age_s: int | None = None
    loss_max: float | None = None

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> ProbeSpec:
        """:raises SpecError: an option is malformed."""
        options = Options(params)
        device = interface_name(options, "device", "culvert0")
        spec = cls(
            device=device,
            socket_path=socket_path_of(options, device),
            targets=tuple(_target(item) for item in options.mappings("targets")),
            count=options.integer("count", 1, _COUNT_MAX, 3) or 3,
            timeout_s=_number(options, "timeout_s", 60, 2.0, exclusive=True) or 2.0,
            egress_url=_url(options),
            egress_expect=_addresses(options, "egress_expect"),
            full_tunnel=options.raw("full_tunnel"),
            kill_switch=options.raw("kill_switch"),
            dns_servers=_addresses(options, "dns_servers"),
            dns_name=_name(options),
            leak_targets=_addresses(options, "leak_targets"),
            container_devices=tuple(options.texts("container_devices")) or CONTAINER_DEVICES,
            responder=_responder(options),
            path_mtu=options.flag("path_mtu", False),
            throughput_floor_mbit=_number(options, "throughput_floor_mbit", 1e6, 0.0) or 0.0,
            explain=tuple(_question(item) for item in options.mappings("explain")),
            drift=options.flag("drift", False),
            reference_time_s=_number(options, "reference_time_s", 1e11),
            clock_offset_max_s=_number(options, "clock_offset_max_s", 1e9, 30.0) or 0.0,
            handshake_max_age_s=options.integer("handshake_max_age_s", 1, 10**9),
            loss_max=_number(options, "loss_max", 1),
        )
        options.done()
        _need_responder(spec)
        return spec


def _need_responder(spec: ProbeSpec) -> None:
    if spec.throughput_floor_mbit and spec.responder is None:
        raise SpecError(
            "throughput_floor_mbit", "is measured with the server's responder: give its address as responder"
        )


def _target(options: Options) -> Target:
    text = options.required("address")
    target = Target(
        options.text("name") or text, _address(options, "address", text), options.flag("optional", False)
    )
    options.done()
    return target


def _address(options: Options, option: str, text: str) -> Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise options.refuse(option, f"{text!r} is not an address") from None


def _addresses(options: Options, option: str) -> tuple[Address, ...]:
    texts = options.texts(option)
    return tuple(_address(options, f"{option}[{number}]", text) for number, text in enumerate(texts))


def _number(
    options: Options, option: str, most: float, default: float | None = None, exclusive: bool = False
) -> float | None:
    """From 0, or more than 0 when ``exclusive``."""
    value = options.raw(option, default)
    if value is None:
        return None
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= most
    if not fits or (exclusive and not value):
        least = "more than 0" if exclusive else "from 0"
        raise options.refuse(option, f"must be a number, {least} and up to {most:g}, not {value!r}")
    return float(value)


def _url(options: Options) -> str:
    url = options.text("egress_url", "") or ""
    if url and urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise options.refuse("egress_url", f"{url!r} is not a web address")
    return url


def _name(options: Options) -> str:
    name = (options.text("dns_name", _DNS_NAME) or _DNS_NAME).strip(".")
    labels = name.split(".")
    # A random label of 16 letters comes before it, and a name has at most 253 (RFC 1035, section 2.3.4).
    plain = name.replace("-", "").replace(".", "").replace("_", "")
    good = name.isascii() and plain.isalnum() and all(0 < len(label) < 64 for label in labels)
    if not good or len(name) > 230:
        raise options.refuse("dns_name", f"{name!r} is not the name of a domain")
    return name


def _responder(options: Options) -> Responder | None:
    inner = options.mapping("responder")
    if inner is None:
        return None
    text = inner.required("address")
    responder = Responder(
        _address(inner, "address", text), inner.integer("port", 1, 65535, RESPONDER_PORT) or RESPONDER_PORT
    )
    inner.done()
    return responder


def _question(options: Options) -> Question:
    source = options.text("source")
    question = Question(
        destination=options.required("destination"),
        source=str(_address(options, "source", source)) if source else None,
        protocol=options.text("protocol", None, ("tcp", "udp", "icmp")),
        port=options.integer("port", 1, 65535),
        may_be_silent=options.flag("may_be_silent", False),
    )
    options.done()
    return question
