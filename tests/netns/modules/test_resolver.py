# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Name servers of a host by host_network, with a file system of its own and the distribution's resolvconf
and openresolv. (systemd-resolved is in tests/e2e.)

    [ host: /etc and /usr as overlays; of /usr, the programs of one package on top ]
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.modules.host import PYTHON, REPOSITORY, Host, Result

NAME = "20-client-culvert0"
TUNNEL, TUNNEL6, UPLINK = "10.86.0.1", "fd86::1", "198.51.100.53"
WISH: dict[str, Any] = {
    "name": NAME,
    "devices": [{"name": "culvert0", "addresses": ["10.86.0.2/16"]}],
    "resolver": {"device": "culvert0", "servers": [TUNNEL, TUNNEL6], "search": ["office.example"]},
}
CONF = "/etc/resolv.conf"
OURS = f"nameserver {TUNNEL}\nnameserver {TUNNEL6}\nsearch office.example\n"
RECORD = "/var/lib/culvert/resolver/record.json"
UPLINKS = "/var/lib/culvert/uplink"
PACKAGES = REPOSITORY / ".cache" / "apart"
LAYERS = """
    set -e
    mount -t tmpfs none {folder}
    mkdir {folder}/upper {folder}/work
    mount -t overlay none -o lowerdir={etc}/etc,upperdir={folder}/upper,workdir={folder}/work /etc
    umount {conf} 2>/dev/null || true
    rm -f {conf}
"""
PROGRAMS = """
    set -e
    mount -t overlay none -o lowerdir={package}/usr:/usr /usr
    mount --bind {local} /usr/local/lib
    mount --bind {bin} /usr/local/bin
"""


@pytest.fixture
def package() -> str:
    """Whose programs the host has besides this machine's."""
    return ""


@pytest.fixture
def host(tmp_path: Path, package: str) -> Iterator[Host]:
    """A host that may do with /etc/resolv.conf what it likes."""
    machines = Path(CONF).read_bytes() if os.path.exists(CONF) else None
    directory = tmp_path / "host"
    directory.mkdir()
    host = Host(directory)
    try:
        (directory / "etc").mkdir()
        folder = PACKAGES / package
        lower = f"{folder}/etc:" if package else ""
        host.sh(
            LAYERS.format(folder=directory / "etc", etc=f"{lower}/etc", conf=CONF).replace(
                "/etc/etc,", "/etc,"
            )
        )
        if package:
            assert folder.is_dir(), "run tools/unpacked.sh"
            host.sh(PROGRAMS.format(package=folder, local=directory / "local", bin=directory / "bin"))
        yield host
    finally:
        host.close()
    if machines is not None:
        assert Path(CONF).read_bytes() == machines, "the machine's own file was written to"


def wish(host: Host, **more: Any) -> Result:
    return host.module("host_network", **{**WISH, "confirm": "never", **more})


def absent(host: Host, **more: Any) -> Result:
    return host.module("host_network", name=NAME, state="absent", confirm="never", **more)


def eventually(check: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + 30
    while not check():
        assert time.monotonic() < give_up, what
        time.sleep(0.1)


def look(host: Host) -> str:
    """All about the file: what it is, whose it is, what is in it."""
    return host.sh(f"stat -c '%F %a %u %g %N' {CONF}; base64 {CONF} || true")


def servers(host: Host) -> list[str]:
    found = host.sh(f"grep --text ^nameserver {CONF} || true")
    return [line.split()[1] for line in found.splitlines()]


def boot(host: Host, verb: str = "resolver") -> str:
    """What the unit runs when it is time, or when the file has changed; with ``boot``, what comes before."""
    command = [PYTHON, "-IB", "/usr/local/lib/culvert/run.py", verb]
    done = subprocess.run(host.command(command), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


ORIGINALS = {
    "a file": f"printf 'nameserver {UPLINK}\\n# \\351\\n' >{CONF}; chmod 640 {CONF}; chown 3:4 {CONF}",
    "an empty file": f": >{CONF}",
    "a link": f"printf 'nameserver {UPLINK}\\n' >/run/somebodys.conf; ln -s ../run/somebodys.conf {CONF}",
    "a link to nowhere": f"ln -s /run/nobody/resolv.conf {CONF}",
    "a container's": (
        f"printf 'nameserver {UPLINK}\\n' >/run/engines.conf; chmod 600 /run/engines.conf; "
        f": >{CONF}; mount --bind /run/engines.conf {CONF}"
    ),
}


@pytest.mark.parametrize("original", ORIGINALS)
def test_the_file_and_back(host: Host, original: str) -> None:
    host.sh(ORIGINALS[original])
    before = look(host)
    checked = host.module("host_network", check=True, **WISH)
    assert checked.changed
    assert CONF in checked["plan"]
    assert checked["diff"]["after"][CONF].endswith(OURS)
    assert look(host) == before, "check mode"
    assert wish(host)["plan"] == checked["plan"]
    assert host.sh(f"cat {CONF}").endswith(OURS)
    assert host.sh(f"stat -c %F {CONF}") == "regular file\n"
    assert not wish(host).changed
    if original == "a link":
        assert host.sh("cat /run/somebodys.conf") == f"nameserver {UPLINK}\n", "what it led to"
    gone = absent(host)
    assert gone.changed
    assert not gone.values.get("warnings"), gone.text
    assert look(host) == before
    assert host.run("ls", "-A", "/var/lib/culvert", check=False).startswith("ls: cannot access")


def test_no_file_at_all(host: Host) -> None:
    assert wish(host).changed
    assert servers(host) == [TUNNEL, TUNNEL6]
    assert absent(host).changed
    assert host.sh(f"ls {CONF} 2>&1 || true").startswith("ls: cannot access")


def test_what_somebody_writes_meanwhile(host: Host) -> None:
    host.sh(ORIGINALS["a file"])
    wish(host)
    host.sh(f"echo nameserver 198.51.100.99 >{CONF}")
    assert wish(host)["plan"] == ["record of the resolver", CONF]
    assert servers(host) == [TUNNEL, TUNNEL6]
    host.sh(f"echo nameserver 198.51.100.98 >{CONF}")
    assert f"{CONF}: set" in boot(host)
    assert servers(host) == [TUNNEL, TUNNEL6]
    assert boot(host) == ""
    absent(host)
    assert servers(host) == ["198.51.100.98"], "the latest, which is truer than the first"


def test_what_somebody_wrote_last_stays(host: Host) -> None:
    host.sh(ORIGINALS["a file"])
    wish(host)
    host.sh(f"echo nameserver 198.51.100.99 >{CONF}")
    before = look(host)
    assert "left as it is" in absent(host).text
    assert look(host) == before


def test_no_more_name_servers_and_the_document_before(host: Host) -> None:
    host.sh(ORIGINALS["a link"])
    before = look(host)
    wish(host)
    assert wish(host, resolver=None).changed
    assert look(host) == before
    assert host.module("host_network", name=NAME, state="previous").changed
    assert servers(host) == [TUNNEL, TUNNEL6]
    assert wish(host, resolver={**WISH["resolver"], "servers": ["10.86.0.9"]}).changed
    assert servers(host) == ["10.86.0.9"]
    absent(host)
    assert look(host) == before


def test_a_step_that_fails_leaves_it_as_it_was(host: Host) -> None:
    host.sh(ORIGINALS["a file"])
    before = look(host)
    # The route has no way: the tables come before the name servers. Then a file that cannot be replaced.
    broken = wish(
        host, resolver={**WISH["resolver"], "device": "culvert0"}, sysctls={"net.ipv4.nothing": "1"}
    )
    assert broken.failed
    assert look(host) == before
    host.sh("mkdir /etc/locked; mount --bind /etc /etc; mount -o remount,ro,bind /etc")
    refused = wish(host)
    assert refused.failed
    assert CONF in refused.msg
    assert look(host) == before
    assert host.run("ls", RECORD, check=False).startswith("ls: cannot access")
    host.sh("umount /etc")
    assert wish(host).changed


@pytest.mark.parametrize("before_that", [False, True])
def test_a_change_that_nobody_confirms(host: Host, before_that: bool) -> None:
    host.sh(ORIGINALS["a file"])
    if before_that:
        wish(host, resolver={**WISH["resolver"], "servers": ["10.86.0.9"]})
    before = look(host)
    began = host.module("host_network", **{**WISH, "confirm": "always"})
    eventually(lambda: TUNNEL in servers(host), "the change is not made")
    if not before_that:
        # What is in force is not what is to be: neither is the other's business now.
        assert boot(host) == ""
        assert TUNNEL in servers(host)
    undone = host.module("network_commit", state="rolled_back", transaction=began["pending"])
    assert undone["commit"]["problems"] == []
    assert look(host) == before
    absent(host)
    assert servers(host) == [UPLINK]


def test_a_boot(host: Host) -> None:
    host.sh(ORIGINALS["a file"])
    before = look(host)
    wish(host)
    host.sh(f"ip link del culvert0; echo nameserver {UPLINK} >{CONF}")
    assert boot(host, "boot") == f"{NAME}: applied\n"
    assert servers(host) == [TUNNEL, TUNNEL6]
    assert boot(host) == ""
    absent(host)
    assert look(host) != before, "what was written at boot is newer"
    assert servers(host) == [UPLINK]


def test_a_lost_record(host: Host) -> None:
    host.sh(ORIGINALS["a file"])
    wish(host)
    host.sh(f"rm {RECORD}")
    assert wish(host)["plan"] == ["record of the resolver"]
    assert "not on record" in absent(host).text
    assert servers(host) == [TUNNEL, TUNNEL6]


def test_two_documents_of_one_host(host: Host) -> None:
    host.sh(ORIGINALS["a file"])
    wish(host)
    other = {**WISH, "name": "20-client-culvert1", "devices": [{"name": "culvert1"}]}
    host.module("host_network", **other).assert_refused("resolver", [NAME])


def test_relays_ask_the_uplinks(host: Host) -> None:
    host.sh(ORIGINALS["a file"])
    host.sh(f"mkdir -p {UPLINKS}; echo nameserver {TUNNEL} >{UPLINKS}/culvert0.conf")
    inode = host.sh(f"stat -c %i {UPLINKS}/culvert0.conf")
    wish(host)
    assert host.sh(f"cat {UPLINKS}/culvert0.conf") == f"nameserver {UPLINK}\n"
    host.sh(f"echo nameserver 198.51.100.99 >{CONF}")
    boot(host)
    assert host.sh(f"cat {UPLINKS}/culvert0.conf") == "nameserver 198.51.100.99\n"
    assert host.sh(f"stat -c %i {UPLINKS}/culvert0.conf") == inode, "a container has this very file"


@pytest.mark.parametrize("package", ["resolvconf"])
def test_debians_resolvconf(host: Host) -> None:
    host.sh(
        f"""
        mkdir -p /run/resolvconf/interface /etc/network
        ln -s ../run/resolvconf/resolv.conf {CONF}
        resolvconf --enable-updates
        echo nameserver {UPLINK} | resolvconf -a eth0.dhclient
        """
    )
    before = look(host)
    assert servers(host) == [UPLINK]
    checked = host.module("host_network", check=True, **WISH)
    assert look(host) == before
    assert wish(host)["plan"] == checked["plan"]
    assert servers(host) == [TUNNEL, TUNNEL6, UPLINK]
    assert host.sh(f"readlink {CONF}") == "../run/resolvconf/resolv.conf\n"
    assert not wish(host).changed
    host.sh("resolvconf -d tun.culvert0")
    assert wish(host).changed
    host.sh("echo nameserver 198.51.100.99 | resolvconf -a eth0.dhclient")
    assert servers(host)[:2] == [TUNNEL, TUNNEL6], "a DHCP client has other news"
    assert not wish(host).changed
    host.sh(f"echo nameserver {UPLINK} | resolvconf -a eth0.dhclient")
    assert not absent(host).values.get("warnings")
    assert look(host) == before
    assert host.sh("ls /run/resolvconf/interface") == "eth0.dhclient\n"


@pytest.mark.parametrize("package", ["openresolv"])
def test_openresolv(host: Host) -> None:
    host.sh(f"echo nameserver {UPLINK} | resolvconf -a eth0")
    before = look(host)
    assert servers(host) == [UPLINK]
    checked = host.module("host_network", check=True, **WISH)
    assert look(host) == before
    assert wish(host)["plan"] == checked["plan"]
    assert servers(host) == [TUNNEL, TUNNEL6], "and nobody else's"
    assert not wish(host).changed
    host.sh("echo nameserver 198.51.100.99 | resolvconf -a eth0")
    assert servers(host) == [TUNNEL, TUNNEL6]
    assert not wish(host).changed
    host.sh(f"echo nameserver 198.51.100.98 >{CONF}")
    assert wish(host).changed, "somebody who does not know resolvconf; it is nobody's file now"
    assert servers(host) == [TUNNEL, TUNNEL6]
    absent(host)
    assert host.sh(f"cat {CONF}") == "nameserver 198.51.100.98\n"
    host.sh(f"rm {CONF}; echo nameserver {UPLINK} | resolvconf -a eth0; resolvconf -u")
    assert look(host) == before


@pytest.mark.parametrize("package", ["resolvconf"])
def test_a_resolvconf_that_is_not_in_charge(host: Host) -> None:
    host.sh(ORIGINALS["a file"])
    before = look(host)
    wish(host)
    assert host.sh(f"cat {CONF}").endswith(OURS)
    assert host.sh("ls /run/resolvconf/interface 2>/dev/null || true") == ""
    absent(host)
    assert look(host) == before


@pytest.mark.parametrize("package", ["resolvconf"])
def test_a_mechanism_that_comes_later(host: Host) -> None:
    host.sh(ORIGINALS["a file"])
    wish(host)
    # As the package does when it is installed and asked to take over.
    host.sh(
        f"""
        mkdir -p /run/resolvconf/interface
        echo nameserver {UPLINK} | resolvconf -a original
        ln -sfn ../run/resolvconf/resolv.conf {CONF}
        resolvconf --enable-updates
        """
    )
    before = look(host)
    wish(host)
    assert servers(host) == [TUNNEL, TUNNEL6, UPLINK]
    assert '"file"' not in host.sh(f"cat {RECORD}")
    assert not wish(host).changed
    assert not absent(host).values.get("warnings")
    assert look(host) == before
