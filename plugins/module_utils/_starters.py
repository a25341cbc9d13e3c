# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What starts the installed code: units of systemd, or a script for the init systems that have those.

Kernel state has to be there before the network. Name servers can be set only when those are up that keep
them, and again when somebody has written over them, so systemd has a second service and a watch for that.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Callable

SERVICE = "culvert-network"
UNIT_NAME = f"{SERVICE}.service"
RESOLVER_NAME = "culvert-resolver.service"
WATCH_NAME = "culvert-resolver.path"
UNITS = "/etc/systemd/system"
SCRIPT_PATH = f"/etc/init.d/{SERVICE}"
HEADER = "# Managed by culvert.vpn: changes made here are lost at the next run.\n"

#: Before the network, so that nothing leaves past the tunnel in between; after what loads rule sets and would
#: wipe ours.
UNIT = """\
[Unit]
Description=TUN devices, routes and firewall chains of the culvert.vpn tunnel
DefaultDependencies=no
After=local-fs.target systemd-sysctl.service systemd-tmpfiles-setup-dev.service
After=netfilter-persistent.service nftables.service ufw.service firewalld.service
# firewalld removes all rules of iptables when it starts, ours among them.
PartOf=firewalld.service
Before=network-pre.target docker.service shutdown.target
Wants=network-pre.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=@COMMAND@

[Install]
WantedBy=multi-user.target
"""

#: After whatever writes /etc/resolv.conf, and before containers get a copy of it. Does nothing where there
#: are neither name servers of a tunnel nor a relay that looks up names.
RESOLVER_UNIT = """\
[Unit]
Description=Name servers of the culvert.vpn tunnel
After=culvert-network.service systemd-resolved.service resolvconf.service
After=networking.service NetworkManager.service systemd-networkd.service dhcpcd.service
Before=docker.service
ConditionDirectoryNotEmpty=|/var/lib/culvert/resolver
ConditionDirectoryNotEmpty=|/var/lib/culvert/uplink
# Somebody who writes the file again and again is not fought without end.
StartLimitIntervalSec=60
StartLimitBurst=30

[Service]
Type=oneshot
ExecStart=@COMMAND@

[Install]
WantedBy=multi-user.target
"""

RESOLVER_WATCH = """\
[Unit]
Description=Watch for changes of the name servers, for the culvert.vpn tunnel

[Path]
PathChanged=/etc/resolv.conf
PathChanged=/run/systemd/resolve/resolv.conf

[Install]
WantedBy=multi-user.target
"""

#: The same order in the words of the LSB. Nothing is done at stop: the kernel's state ends with the kernel.
LSB_SCRIPT = f"""\
### BEGIN INIT INFO
# Provides:          {SERVICE}
# Required-Start:    $local_fs
# Required-Stop:
# Should-Start:      procps kmod netfilter-persistent nftables ufw firewalld
# X-Start-Before:    networking docker
# Default-Start:     S
# Default-Stop:
# Short-Description: TUN devices, routes and firewall chains of the culvert.vpn tunnel
### END INIT INFO

PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH

case "$1" in
start | restart | reload | force-reload) exec @COMMAND@ ;;
stop | status) exit 0 ;;
*)
    echo "usage: $0 start|stop|restart|force-reload|status" >&2
    exit 2
    ;;
esac
"""

OPENRC_SCRIPT = """\
description="TUN devices, routes and firewall chains of the culvert.vpn tunnel"

depend() {
    need localmount
    after sysctl modules iptables ip6tables nftables ufw firewalld
    before net docker
}

start() {
    ebegin "Applying the documents of culvert.vpn"
    @COMMAND@
    eend $?
}
"""


def init_system() -> str:
    """``systemd``, ``openrc``, ``sysv``, or empty when nothing is known that starts things at boot."""
    if os.path.isdir("/run/systemd/system"):
        return "systemd"
    if shutil.which("rc-update") and shutil.which("openrc-run"):
        return "openrc"
    # Debian has update-rc.d everywhere; only sysv-rc has something that runs the scripts.
    if shutil.which("update-rc.d") and os.path.exists("/etc/init.d/rc"):
        return "sysv"
    return ""


@dataclass(frozen=True)
class Starter:
    """How one init system is told: the files it wants, by path, and the commands.

    :ivar links: patterns; all of them match something when it is enabled.
    """

    files: Mapping[str, str]
    mode: int
    links: tuple[str, ...]
    enable: tuple[list[str], ...]
    disable: tuple[list[str], ...]
    forget: tuple[list[str], ...] = ()
    stop: tuple[list[str], ...] = ()


def starters(command: Callable[[str], str]) -> dict[str, Starter]:
    """:param command: the command line that starts the code, from its verb."""
    boot, resolver = command("boot"), command("resolver")
    return {
        "systemd": _systemd(boot, resolver),
        "sysv": Starter(
            {SCRIPT_PATH: "#!/bin/sh\n" + HEADER + LSB_SCRIPT.replace("@COMMAND@", boot)},
            0o755,
            (f"/etc/rc?.d/S??{SERVICE}",),
            (["update-rc.d", SERVICE, "defaults"],),
            (["update-rc.d", "-f", SERVICE, "remove"],),
        ),
        "openrc": Starter(
            {SCRIPT_PATH: "#!/sbin/openrc-run\n" + HEADER + OPENRC_SCRIPT.replace("@COMMAND@", boot)},
            0o755,
            (f"/etc/runlevels/*/{SERVICE}",),
            (["rc-update", "add", SERVICE, "boot"],),
            (["rc-update", "delete", SERVICE, "boot"],),
        ),
    }


def _systemd(boot: str, resolver: str) -> Starter:
    units = {
        UNIT_NAME: UNIT.replace("@COMMAND@", boot),
        RESOLVER_NAME: RESOLVER_UNIT.replace("@COMMAND@", resolver),
        WATCH_NAME: RESOLVER_WATCH,
    }
    return Starter(
        {f"{UNITS}/{name}": HEADER + text for name, text in units.items()},
        0o644,
        tuple(f"{UNITS}/multi-user.target.wants/{name}" for name in units),
        # The first one reloads as well. The watch is for now, too.
        (["systemctl", "enable", *units], ["systemctl", "restart", WATCH_NAME]),
        (["systemctl", "disable", *units],),
        (["systemctl", "daemon-reload"],),
        (
            ["systemctl", "stop", WATCH_NAME],
            ["systemctl", "stop", RESOLVER_NAME],
            ["systemctl", "reset-failed", WATCH_NAME, RESOLVER_NAME],
        ),
    )
