# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""A persistent TUN or TAP device, or a bridge for one: what is wished, what is there, and the pure plan
between the two.

Reading and changing the kernel is in ``_tun_kernel``. Kernel documentation: networking/tuntap.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Union

from . import _bridge
from ._accounts import account_number
from ._bridge import BridgeSpec, BridgeState
from ._core import Change, Plan, SpecError
from ._options import Options

Interface = Union[ipaddress.IPv4Interface, ipaddress.IPv6Interface]

# IFNAMSIZ is 16 with the final NUL (include/uapi/linux/if.h).
NAME_MAX_BYTES = 15
MODES = ("tun", "tap", "bridge")
MTU_MIN_BYTES, MTU_MAX_BYTES = 68, 65535
# drivers/net/tun.c, tun_net_init: ETH_DATA_LEN
MTU_DEFAULT_BYTES = 1500
# RFC 8200 section 5: a link that carries IPv6 has an MTU of at least this.
IPV6_MTU_MIN_BYTES = 1280


@dataclass(frozen=True)
class TunSpec:
    """The wish. ``None`` means: leave it as it is (of a new device: the kernel's default)."""

    name: str
    present: bool = True
    mode: str = "tun"
    owner: int | None = None
    group: int | None = None
    vnet_hdr: bool = False
    multi_queue: bool = False
    mtu_bytes: int | None = None
    addresses: tuple[Interface, ...] = ()
    exclusive: bool = True
    up: bool = True
    resets: frozenset[str] = frozenset()
    """Of owner, group, mtu and bridge, those given before and not now: back to the kernel's default. And mode
    where it was another one before: then the device is made anew."""
    bridging: BridgeSpec = field(default_factory=BridgeSpec)

    @property
    def kind(self) -> str:
        """The kernel's link kind."""
        return "bridge" if self.mode == "bridge" else "tun"

    @classmethod
    def from_params(cls, params: Mapping[str, Any], where: str = "") -> TunSpec:
        """:param where: the option that holds ``params``, for messages; empty for a module's own options.
        :raises SpecError: an option is malformed; none of these checks looks at the host's network.
        """
        options = Options(params, where)
        mode = options.required("mode", "tun", MODES)
        spec = cls(
            name=_device_name(options, options.required("name")),
            present=options.required("state", "present", ("present", "absent")) == "present",
            mode=mode,
            owner=account_number(options, "owner"),
            group=account_number(options, "group"),
            vnet_hdr=options.flag("vnet_hdr", False),
            multi_queue=options.flag("multi_queue", False),
            mtu_bytes=options.integer("mtu", MTU_MIN_BYTES, MTU_MAX_BYTES),
            addresses=_addresses(options),
            exclusive=options.flag("addresses_exclusive", True),
            up=options.flag("up", True),
            bridging=BridgeSpec.from_options(options, mode),
        )
        options.done()
        _check_mode(options, spec)
        if (
            spec.mtu_bytes
            and spec.mtu_bytes < IPV6_MTU_MIN_BYTES
            and any(a.version == 6 for a in spec.addresses)
        ):
            raise options.refuse(
                "mtu", f"{spec.mtu_bytes} is too small for the IPv6 addresses of {spec.name}; IPv6 needs 1280"
            )
        return spec


@dataclass(frozen=True)
class TunState:
    """What ``observe`` found. ``kind`` is the kernel's link kind, ``None`` when no device has the name."""

    kind: str | None = None
    index: int = 0
    mode: str = "tun"
    owner: int | None = None
    group: int | None = None
    vnet_hdr: bool = False
    multi_queue: bool = False
    packet_information: bool = False
    persistent: bool = True
    attached: bool = False
    "A program holds the device open; the kernel reports that as carrier."
    mtu_bytes: int = 1500
    up: bool = False
    addresses: tuple[Interface, ...] = ()
    "Without those the kernel gave the device itself."
    kernel_addresses: tuple[Interface, ...] = ()
    elsewhere: tuple[tuple[str, Interface], ...] = ()
    "Interface name and address (or connected network) of everything else on the host."
    tun_node: bool = True
    "/dev/net/tun is there."
    ipv6_disabled: str = ""
    keeps_ipv6_when_down: bool = False
    bridging: BridgeState = field(default_factory=BridgeState)
    promotes: bool = False
    "Removing the first IPv4 address of a network leaves the others (sysctl promote_secondaries)."

    @property
    def exists(self) -> bool:
        return self.kind is not None


def _check_mode(options: Options, spec: TunSpec) -> None:
    """:raises SpecError: an option does not go with the mode."""
    if spec.bridging.port_of and spec.addresses:
        raise options.refuse("addresses", f"belong to the bridge {spec.bridging.port_of}, not to its port")
    if spec.mode != "bridge":
        return
    given = {
        "owner": spec.owner is not None,
        "group": spec.group is not None,
        "vnet_hdr": spec.vnet_hdr,
        "multi_queue": spec.multi_queue,
    }
    for option in [option for option, is_given in given.items() if is_given]:
        raise options.refuse(option, "is for mode tun or tap: nobody attaches to a bridge")


def _device_name(options: Options, name: str) -> str:
    length = len(name.encode())
    if length > NAME_MAX_BYTES:
        raise options.refuse(
            "name",
            f"{name!r} is {length} bytes long; the kernel takes device names of up to {NAME_MAX_BYTES} bytes",
        )
    if name in (".", "..", "all", "default") or any(
        c in "/:%" or c.isspace() or not c.isprintable() for c in name
    ):
        raise options.refuse("name", f"{name!r} is not a name that a network device can have")
    return name


def _addresses(options: Options) -> tuple[Interface, ...]:
    addresses: list[Interface] = []
    for position, text in enumerate(options.texts("addresses")):
        option = f"addresses[{position}]"
        try:
            address = ipaddress.ip_interface(text)
        except ValueError:
            raise options.refuse(
                option, f"{text!r} is not an address with prefix length, such as 10.86.0.1/16"
            ) from None
        if address.ip.is_multicast or address.ip.is_unspecified:
            raise options.refuse(option, f"{text!r} is not an address that a device can have")
        for other in addresses:
            if address.ip == other.ip:
                raise options.refuse(option, f"{address} is the same address as {other} in this list")
            if _clash_within(address, other):
                raise options.refuse(option, f"{address} overlaps with {other} in this list")
        addresses.append(address)
    return tuple(addresses)


def _clash_within(one: Interface, other: Interface) -> bool:
    """Two addresses of one device may share a network, or one may be a host address in the other's."""
    host_address = 32 if one.version == 4 else 128
    lengths = (one.network.prefixlen, other.network.prefixlen)
    return _overlap(one, other) and lengths[0] != lengths[1] and host_address not in lengths


def _overlap(one: Interface, other: Interface) -> bool:
    if one.version != other.version or one.ip.is_link_local or other.ip.is_link_local:
        return False
    return bool(one.network.overlaps(other.network))


def check(spec: TunSpec, state: TunState) -> None:
    """Refuse what cannot or must not be done on this host.

    :raises SpecError: names the option; nothing has been changed.
    """
    if state.exists and state.kind != spec.kind:
        what = "bridge" if spec.mode == "bridge" else "TUN or TAP device"
        raise SpecError("name", f"{spec.name} exists and is no {what} but of kind {state.kind}")
    if not spec.present:
        return
    _bridge.check(spec.name, spec.mode, state.exists, spec.bridging, state.bridging)
    _check_addresses(spec, state)
    if spec.mode == "bridge":
        return
    if state.exists:
        _check_existing(spec, state)
    elif not state.tun_node:
        raise SpecError(
            "",
            "/dev/net/tun is missing on the host: load the kernel module with 'modprobe tun', "
            "or in a container pass the device (--device /dev/net/tun)",
        )


def _check_addresses(spec: TunSpec, state: TunState) -> None:
    for position, address in enumerate(spec.addresses):
        option = f"addresses[{position}]"
        if address.version == 6 and state.ipv6_disabled:
            raise SpecError(option, f"{address} cannot be set: {state.ipv6_disabled}")
        for device, other in state.elsewhere:
            if _overlap(address, other):
                raise SpecError(
                    option,
                    f"{address} of {spec.name} overlaps with {other} of {device} on this host; "
                    "choose a tunnel network that is not in use here",
                )


def _check_existing(spec: TunSpec, state: TunState) -> None:
    if state.mode != spec.mode and "mode" not in spec.resets:
        raise SpecError(
            "mode",
            f"{spec.name} exists as a {state.mode} device and cannot become {spec.mode}; "
            "remove it first (state: absent)",
        )
    if not state.attached:
        return
    if not state.persistent:
        raise SpecError(
            "name",
            f"{spec.name} was made by a running program and would vanish with it; stop that program first",
        )
    for option in _held_back(spec, state):
        raise SpecError(
            option,
            f"cannot be changed on {spec.name} while a program is attached to it; stop the relay first",
        )


def _held_back(spec: TunSpec, state: TunState) -> list[str]:
    """Options that differ and need the device to be opened, which only one program at a time may do.

    ``vnet_hdr`` is not among them: each program that attaches chooses it anew.
    """
    differs = {
        "owner": spec.owner != state.owner and (spec.owner is not None or "owner" in spec.resets),
        "group": spec.group != state.group and (spec.group is not None or "group" in spec.resets),
        "multi_queue": spec.multi_queue != state.multi_queue,
        "mode": spec.mode != state.mode,
    }
    return [option for option, different in differs.items() if different]


def plan(spec: TunSpec, state: TunState) -> Plan:
    """Pure. What leads from ``state`` to ``spec``, in an order that the kernel accepts.

    :raises SpecError: as :func:`check`.
    """
    check(spec, state)
    device = f"device {spec.name}"
    if not spec.present:
        gone = state.exists and (spec.mode != "bridge" or state.bridging.made_here)
        return [Change(device, describe(state), None, "delete")] if gone else []
    changes: Plan = []
    if state.exists and _needs_a_new_one(spec, state):
        # Nobody is attached, check() saw to it.
        changes.append(Change(device, describe(state), None, "delete"))
        state = _without_device(state)
    fresh = not state.exists
    if fresh:
        state = _created(spec, state)
        changes.append(Change(device, None, _settings(state), "create"))
    elif spec.mode == "bridge":
        changes += _bridge.plan_stp(spec.name, spec.bridging, state.bridging)
    else:
        changes += _reattach(spec, state)
    released = "bridge" in spec.resets
    changes += _bridge.plan(spec.name, spec.bridging, state.bridging, fresh, released)
    mtu_bytes = spec.mtu_bytes or (MTU_DEFAULT_BYTES if "mtu" in spec.resets else state.mtu_bytes)
    if mtu_bytes != state.mtu_bytes:
        changes.append(Change(f"{device} mtu", None if fresh else state.mtu_bytes, mtu_bytes, "mtu"))
        if mtu_bytes < IPV6_MTU_MIN_BYTES:
            state = _without_ipv6(state)  # the kernel's doing (net/ipv6/addrconf.c, NETDEV_CHANGEMTU)
    if spec.up != state.up:
        changes.append(Change(f"{device} up", None if fresh else state.up, spec.up, "up"))
        state = _after_link_change(spec, state)
    return changes + _plan_addresses(spec, state)


def _needs_a_new_one(spec: TunSpec, state: TunState) -> bool:
    """The kernel fixes the queues at creation and gives no way to take an owner away (drivers/net/tun.c)."""
    differs = _held_back(spec, state)
    return bool({"multi_queue", "mode"} & set(differs)) or any(
        option in differs and getattr(spec, option) is None for option in ("owner", "group")
    )


def _without_device(state: TunState) -> TunState:
    return TunState(
        elsewhere=state.elsewhere,
        tun_node=state.tun_node,
        keeps_ipv6_when_down=state.keeps_ipv6_when_down,
        bridging=BridgeState(there=state.bridging.there),
    )


def _created(spec: TunSpec, state: TunState) -> TunState:
    return TunState(
        kind=spec.kind,
        bridging=BridgeState(there=state.bridging.there, stp=spec.bridging.stp),
        mode=spec.mode,
        owner=spec.owner,
        group=spec.group,
        vnet_hdr=spec.vnet_hdr,
        multi_queue=spec.multi_queue,
        keeps_ipv6_when_down=state.keeps_ipv6_when_down,
    )


def _reattach(spec: TunSpec, state: TunState) -> Plan:
    """Owner, group and vnet_hdr are set through an open descriptor: one change opens once and sets all."""
    if state.attached:
        return []
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    wishes = (
        ("owner", state.owner, spec.owner),
        ("group", state.group, spec.group),
        ("vnet_hdr", state.vnet_hdr, spec.vnet_hdr),
        ("packet_information", state.packet_information, False),
        ("persistent", state.persistent, True),
    )
    for name, is_, wished in wishes:
        if wished is not None and is_ != wished:
            before[name], after[name] = is_, wished
    return [Change(f"device {spec.name} settings", before, after, "reattach")] if after else []


def _after_link_change(spec: TunSpec, state: TunState) -> TunState:
    """Taking a link down drops its IPv6 addresses, unless keep_addr_on_down is set (networking/ip-sysctl)."""
    if spec.up or state.keeps_ipv6_when_down:
        return state
    return _without_ipv6(state)


def _without_ipv6(state: TunState) -> TunState:
    remaining = tuple(address for address in state.addresses if address.version == 4)
    return replace(state, addresses=remaining, kernel_addresses=())


def _plan_addresses(spec: TunSpec, state: TunState) -> Plan:
    changes: Plan = []
    left = state.addresses
    unwanted = [address for address in left if spec.exclusive and address not in spec.addresses]
    for address in [*unwanted, *_out_of_order(spec, state, unwanted)]:
        if address in left:
            changes.append(Change(f"address {address} on {spec.name}", str(address), None, "remove", address))
            left = without_address(left, address, state.promotes)
    for address in spec.addresses:
        if address not in left + state.kernel_addresses:
            changes.append(Change(f"address {address} on {spec.name}", None, str(address), "add", address))
    return changes


def without_address(
    addresses: tuple[Interface, ...], gone: Interface, promotes: bool
) -> tuple[Interface, ...]:
    """What is left: the first IPv4 address of a network takes the others along (net/ipv4/devinet.c)."""
    group = [address for address in addresses if address.network == gone.network]
    if gone.version == 4 and not promotes and group[0] == gone:
        return tuple(address for address in addresses if address not in group)
    return tuple(address for address in addresses if address != gone)


def _out_of_order(spec: TunSpec, state: TunState, unwanted: list[Interface]) -> list[Interface]:
    """IPv4 addresses that have to be added anew, because another one of their network should be the first:
    the first is the one that the host sends from.
    """
    moved: list[Interface] = []
    left = [address for address in state.addresses if address not in unwanted]
    for network in {address.network for address in left if address.version == 4 and spec.exclusive}:
        there = [address for address in left if address.network == network]
        first = next(address for address in spec.addresses if address.network == network)
        if there[0] != first:
            # The others before the first, so that none goes along with it.
            moved += reversed(there)
    return moved


def describe(state: TunState) -> dict[str, Any] | None:
    """The device as the module returns it and as the diff shows it; ``None`` when there is none."""
    if not state.exists:
        return None
    return {
        **_settings(state),
        "mtu": state.mtu_bytes,
        "up": state.up,
        "carrier": state.attached,
        "addresses": [str(address) for address in state.addresses + state.kernel_addresses],
    }


def _settings(state: TunState) -> dict[str, Any]:
    return {
        "mode": state.mode,
        "owner": state.owner,
        "group": state.group,
        "vnet_hdr": state.vnet_hdr,
        "multi_queue": state.multi_queue,
        **_bridge.describe(state.mode, state.bridging),
    }
