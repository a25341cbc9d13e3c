# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Reads and changes TUN and TAP devices: links and addresses by rtnetlink, what only a descriptor can set by
ioctl.

The kernel refuses to create or reconfigure these devices by rtnetlink (drivers/net/tun.c, tun_validate), so
pyroute2 itself uses the ioctls of ``/dev/net/tun`` for it. Here they are used directly, as pyroute2 cannot
change the owner.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import platform
import stat
import struct
from typing import Any

from . import _bridge_kernel, _tun
from ._core import Change, PlainBackend, Plan
from ._files import read_text
from ._host import ipv6_disabled, need_net_admin
from ._netlink import FAMILIES, IFF_UP, rtnetlink, step

TUN_NODE = "/dev/net/tun"

# include/uapi/linux/if_tun.h
IFF_TUN, IFF_TAP, IFF_NO_PI, IFF_TUN_EXCL = 0x0001, 0x0002, 0x1000, 0x8000
IFF_MULTI_QUEUE, IFF_VNET_HDR = 0x0100, 0x4000
# _IOW('T', n, int): the direction bits differ on these machines (their asm/ioctl.h).
_IOW_INT = 0x80045400 if platform.machine().startswith(("ppc", "mips", "sparc", "alpha")) else 0x40045400
TUNSETIFF, TUNSETPERSIST, TUNSETOWNER, TUNSETGROUP = (_IOW_INT | n for n in (202, 203, 204, 206))
_IFREQ = struct.Struct("16sH22x")

IFA_F_PERMANENT = 0x80
_UNSET = 0xFFFFFFFF


class TunBackend(PlainBackend):
    """One device."""

    def __init__(self, spec: _tun.TunSpec, check_mode: bool = False) -> None:
        super().__init__(check_mode)
        need_net_admin()
        self.spec = spec
        self._index = 0

    def blank(self) -> _tun.TunState:
        return _tun.TunState(tun_node=_tun_node_exists(), ipv6_disabled=ipv6_disabled(self.spec.name))

    def observe(self) -> _tun.TunState:
        with rtnetlink() as ipr, step("read the host's devices and addresses"):
            links = list(ipr.get_links())
            addresses = list(ipr.get_addr())
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in links}
        mine = next((link for link in links if link.get_attr("IFLA_IFNAME") == self.spec.name), None)
        self._index = mine["index"] if mine else 0
        own, kernels, elsewhere = [], [], []
        for message in addresses:
            address = _address_of(message)
            if message["index"] != self._index:
                elsewhere.append((names.get(message["index"], "?"), _connected(message, address)))
            elif _is_kernels(message, address):
                kernels.append(address)
            else:
                own.append(address)
        return _tun.TunState(
            **_link_state(mine),
            bridging=_bridge_kernel.state_of(mine, links),
            addresses=tuple(own),
            kernel_addresses=tuple(kernels),
            elsewhere=tuple(elsewhere),
            tun_node=_tun_node_exists(),
            ipv6_disabled=ipv6_disabled(self.spec.name),
            keeps_ipv6_when_down=_is_set("ipv6/conf/all/keep_addr_on_down"),
            promotes=_is_set(
                f"ipv4/conf/{self.spec.name}/promote_secondaries", "ipv4/conf/all/promote_secondaries"
            ),
        )

    def plan(self, observed: _tun.TunState) -> Plan:
        return _tun.plan(self.spec, observed)

    def report(self, observed: _tun.TunState) -> dict[str, Any]:
        device = _tun.describe(observed)
        return {"device": None if device is None else {"name": self.spec.name, **device}}

    def apply(self, change: Change) -> None:
        verbs = {
            "create": self._create,
            "reattach": self._reattach,
            "bridge": self._set_bridge,
            "isolate": self._isolate,
            "stp": self._set_stp,
            "delete": self._delete,
            "mtu": self._set_mtu,
            "up": self._set_up,
            "add": self._add_address,
            "remove": self._remove_address,
        }
        with step(f"change {change.item} from {change.before} to {change.after}"):
            verbs[change.action](change)

    def _create(self, change: Change) -> None:
        if self.spec.mode == "bridge":
            self._index = _bridge_kernel.make(self.spec.name, self.spec.bridging.stp)
            return
        self._attach_and_set(IFF_TUN_EXCL)
        with rtnetlink() as ipr:
            self._index = ipr.link_lookup(ifname=self.spec.name)[0]

    def _set_bridge(self, change: Change) -> None:
        _bridge_kernel.join(self.spec.name, self._index, change.after)

    def _isolate(self, change: Change) -> None:
        _bridge_kernel.isolate(self._index, change.after)

    def _set_stp(self, change: Change) -> None:
        _bridge_kernel.set_stp(self._index, change.after)

    def _reattach(self, change: Change) -> None:
        self._attach_and_set(0)

    def _attach_and_set(self, extra_flags: int) -> None:
        """Open the device for a moment, set what only its holder may set, and let it go again."""
        spec = self.spec
        flags = IFF_NO_PI | extra_flags | (IFF_TUN if spec.mode == "tun" else IFF_TAP)
        flags |= (IFF_VNET_HDR if spec.vnet_hdr else 0) | (IFF_MULTI_QUEUE if spec.multi_queue else 0)
        descriptor = os.open(TUN_NODE, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, TUNSETIFF, _IFREQ.pack(spec.name.encode(), flags))
            if spec.owner is not None:
                fcntl.ioctl(descriptor, TUNSETOWNER, spec.owner)
            if spec.group is not None:
                fcntl.ioctl(descriptor, TUNSETGROUP, spec.group)
            fcntl.ioctl(descriptor, TUNSETPERSIST, 1)
        finally:
            os.close(descriptor)

    def _delete(self, change: Change) -> None:
        with rtnetlink() as ipr, step(f"remove {self.spec.name}", ignore=(errno.ENODEV,)):
            ipr.link("del", index=self._index)

    def _set_mtu(self, change: Change) -> None:
        with rtnetlink() as ipr:
            ipr.link("set", index=self._index, mtu=change.after)

    def _set_up(self, change: Change) -> None:
        with rtnetlink() as ipr:
            ipr.link("set", index=self._index, state="up" if change.after else "down")

    def _add_address(self, change: Change) -> None:
        with rtnetlink() as ipr, step(f"add {change.item}", ignore=(errno.EEXIST,)):
            ipr.addr("add", index=self._index, **_address_arguments(change.data))

    def _remove_address(self, change: Change) -> None:
        # Removing a primary IPv4 address takes its secondaries with it: they may be gone already.
        with rtnetlink() as ipr, step(f"remove {change.item}", ignore=(errno.EADDRNOTAVAIL,)):
            ipr.addr("del", index=self._index, **_address_arguments(change.data))


def _tun_node_exists() -> bool:
    try:
        return stat.S_ISCHR(os.stat(TUN_NODE).st_mode)
    except OSError:
        return False


def _is_set(*settings: str) -> bool:
    """Whether one of these below /proc/sys/net is 1."""
    return any((read_text(f"/proc/sys/net/{setting}") or "").strip() == "1" for setting in settings)


def _link_state(link: Any) -> dict[str, Any]:
    if link is None:
        return {}
    info = link.get_attr("IFLA_LINKINFO")
    kind = (info.get_attr("IFLA_INFO_KIND") if info else None) or "ethernet"
    data = info.get_attr("IFLA_INFO_DATA") if info and kind == "tun" else None
    state = {
        "kind": kind,
        "index": link["index"],
        "mtu_bytes": link.get_attr("IFLA_MTU"),
        "up": bool(link["flags"] & IFF_UP),
        "attached": bool(link.get_attr("IFLA_CARRIER")),
    }
    if kind == "bridge":
        state["mode"] = "bridge"
    if data is not None:
        state.update(
            mode="tap" if data.get_attr("IFLA_TUN_TYPE") == IFF_TAP else "tun",
            owner=_account(data.get_attr("IFLA_TUN_OWNER")),
            group=_account(data.get_attr("IFLA_TUN_GROUP")),
            vnet_hdr=bool(data.get_attr("IFLA_TUN_VNET_HDR")),
            multi_queue=bool(data.get_attr("IFLA_TUN_MULTI_QUEUE")),
            packet_information=bool(data.get_attr("IFLA_TUN_PI")),
            persistent=bool(data.get_attr("IFLA_TUN_PERSIST")),
        )
    return state


def _account(number: int | None) -> int | None:
    return None if number in (None, _UNSET) else number


def _address_of(message: Any) -> _tun.Interface:
    # On a point-to-point link IFA_LOCAL is ours and IFA_ADDRESS the other side's
    # (include/uapi/linux/if_addr.h).
    local = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    return ipaddress.ip_interface(f"{local}/{message['prefixlen']}")


def _connected(message: Any, address: _tun.Interface) -> _tun.Interface:
    """The network that the address makes reachable: the other side's, where there is one."""
    return ipaddress.ip_interface(f"{message.get_attr('IFA_ADDRESS') or address.ip}/{message['prefixlen']}")


def _is_kernels(message: Any, address: _tun.Interface) -> bool:
    """Link-local and autoconfigured IPv6 addresses come and go by the kernel's own doing."""
    flags = message.get_attr("IFA_FLAGS") or message["flags"]
    return address.version == 6 and (address.ip.is_link_local or not flags & IFA_F_PERMANENT)


def _address_arguments(address: _tun.Interface) -> dict[str, Any]:
    return {
        "family": FAMILIES[address.version],
        "address": str(address.ip),
        "prefixlen": address.network.prefixlen,
    }
