# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What the process may do on this host, and whether the host has IPv6."""

from __future__ import annotations

import os

from ._core import SpecError

CAP_NET_ADMIN = 12
_IPV6 = "/proc/sys/net/ipv6"


def need_net_admin() -> None:
    """:raises SpecError: the process may not change the network of its namespace."""
    if not _effective_capabilities() & 1 << CAP_NET_ADMIN:
        raise SpecError(
            "",
            "not root: changing the host's network needs root (CAP_NET_ADMIN), and this runs as "
            f"uid {os.geteuid()} without it; set become: true",
        )


def _effective_capabilities() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0


def kernel_has_ipv6() -> bool:
    return os.path.isdir(_IPV6)


def ipv6_disabled(device: str = "all") -> str:
    """Why IPv6 cannot be used on ``device`` (``all`` = on the host), or an empty text when it can.

    Kernel documentation: networking/ip-sysctl, ``disable_ipv6``.
    """
    if not kernel_has_ipv6():
        return "the kernel runs without IPv6"
    # Devices that do not exist yet are born with the value of "default".
    name = device if os.path.isdir(f"{_IPV6}/conf/{device}") else "default"
    path = f"{_IPV6}/conf/{name}/disable_ipv6"
    try:
        with open(path, encoding="ascii") as flag:
            disabled = flag.read().strip() == "1"
    except OSError:
        return ""
    return f"net.ipv6.conf.{name}.disable_ipv6 is 1" if disabled else ""
