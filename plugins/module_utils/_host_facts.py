# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""All that the roles have to know of a host before they decide what is to be done there, in one look.

It has to work on a bare host, on which none of the libraries is installed that the other modules need, and it
has to be cheap: it is asked of every host in every run. What cannot be read counts as not there.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import pwd
import shlex
import socket
import stat
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import _engine, _listeners, _relay_agreement, _uapi
from ._core import HostError, MissingLibrary, Runner
from ._iptables import find
from ._options import Options
from ._relay_key import KeyBackend, KeySpec

_LOCAL_PORTS_DEFAULT = "32768 60999"
# include/uapi/linux/route.h
_RTF_UP, _RTF_REJECT = 0x0001, 0x0200
# include/uapi/linux/sockios.h
_SIOCGIFADDR, _SIOCGIFNETMASK = 0x8915, 0x891B
_GLOBAL_SCOPE = "00"
_ANY_IPV6 = "0" * 32
_LOOPBACK_IPV6 = "0" * 31 + "1"
# Distributions as Ansible names them, by what they call themselves. Others are named as they call themselves.
_DISTRIBUTIONS = {
    "debian": "Debian",
    "ubuntu": "Ubuntu",
    "fedora": "Fedora",
    "rhel": "RedHat",
    "arch": "Archlinux",
}
_FAMILIES = {"debian": "Debian", "fedora": "RedHat", "rhel": "RedHat", "suse": "Suse", "arch": "Archlinux"}
# The line of the configuration's header in which it says which registry its peers are from.
_REGISTRY = "# Registry: "
_HEADER_MAX_LINES = 20
# Of what is not there, or may not be looked at.
_NO_PROTECTION = {"exists": False, "mode": "", "owner": -1, "group": -1}


@dataclass(frozen=True)
class FactsSpec:
    """:ivar image: empty for none to look at, as the other names."""

    name: str = "culvert0"
    config_dir: str = "/etc/culvert"
    packages: tuple[str, ...] = ()
    image: str = ""
    images: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    tcp_ports: tuple[int, ...] = ()

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> FactsSpec:
        """:raises SpecError: an option is malformed."""
        options = Options(params)
        spec = cls(
            # Whether it can be the name of an interface is for the roles to say, to whoever chose it.
            name=options.required("name", "culvert0"),
            config_dir=options.required("config_dir", "/etc/culvert"),
            packages=tuple(options.texts("packages")),
            image=options.text("image") or "",
            images=tuple(options.texts("images")),
            containers=tuple(options.texts("containers")),
            files=tuple(options.texts("files")),
            tcp_ports=tuple(options.raw("tcp_ports", [])),
        )
        options.done()
        return spec


def gather(params: Mapping[str, Any], run: Runner) -> dict[str, Any]:
    """What the module ``host_facts`` returns.

    :raises SpecError: an option is malformed.
    """
    spec = FactsSpec.from_params(params)
    return {"ansible_facts": {**system(spec.name), "culvert_host": culvert(spec, run)}}


def system(device: str, root: str = "") -> dict[str, Any]:
    """What Ansible's own facts say of the host, as far as the roles need it, under the same names.

    :param device: the tunnel's, which no default route of the host's own leaves by.
    :param root: folder that stands for ``/``.
    """
    return {
        **distribution(_release(root)),
        "ansible_service_mgr": _service_manager(root),
        "ansible_user_id": pwd.getpwuid(os.getuid()).pw_name,
        "ansible_effective_user_id": os.geteuid(),
        "ansible_default_ipv6": _default_ipv6(_text(f"{root}/proc/net/ipv6_route"), device),
        "ansible_all_ipv6_addresses": _ipv6_addresses(_text(f"{root}/proc/net/if_inet6")),
    }


def culvert(
    spec: FactsSpec, run: Runner, root: str = "", engine: _engine.Engine | None = None
) -> dict[str, Any]:
    """What of ours the host has, and what there is for it."""
    engine = engine or _engine.Engine()
    code, error = _engine.state(engine, run)
    contained = _contained(spec, engine) if code == _engine.ANSWERS else _nothing(())
    default = _text(f"{root}/proc/sys/net/ipv6/conf/default/disable_ipv6")
    config = _text(f"{root}{spec.config_dir}/{spec.name}.conf")
    return {
        "name": spec.name,
        "tun": _is_character_device(f"{root}/dev/net/tun"),
        "engine": {"rc": code, "error": error},
        "ipv6": default.strip() == "0",
        "kernel_ipv6": os.path.isdir(f"{root}/proc/sys/net/ipv6"),
        "local_ports": _text(f"{root}/proc/sys/net/ipv4/ip_local_port_range").split()
        or _LOCAL_PORTS_DEFAULT.split(),
        "packages_missing": _missing(spec.packages, run),
        **contained,
        "config_dir": _protection(f"{root}{spec.config_dir}"),
        "key": _key(f"{root}{spec.config_dir}/{spec.name}.key"),
        "relay": _relay(f"{root}{_uapi.SOCKET_DIRECTORY}/{spec.name}.sock"),
        "addresses": [
            *_ipv4_addresses(spec.name),
            *_global_ipv6(_text(f"{root}/proc/net/if_inet6"), spec.name),
        ],
        "agreement": _agreement(f"{root}{spec.config_dir}", spec.name, config),
        "registry_id": registry_id(config),
        "files": {path: os.path.exists(f"{root}{path}") for path in spec.files},
        "tcp_ports": _listeners.others(spec.tcp_ports, spec.name, root),
    }


def distribution(release: Mapping[str, str]) -> dict[str, str]:
    """Of the assignments of an ``os-release`` file."""
    name = release.get("ID", "")
    likes = [name, *release.get("ID_LIKE", "").split()]
    own = (release.get("NAME", "").split() or ["Linux"])[0]
    family = next((_FAMILIES[like] for like in likes if like in _FAMILIES), own)
    facts = {
        "ansible_distribution": _DISTRIBUTIONS.get(name, own),
        "ansible_distribution_version": release.get("VERSION_ID", ""),
        "ansible_distribution_major_version": release.get("VERSION_ID", "").split(".")[0],
        "ansible_distribution_release": release.get("VERSION_CODENAME", ""),
        "ansible_os_family": family,
    }
    # For a task that installs a package; of another family, that finds out by itself.
    return {**facts, **({"ansible_pkg_mgr": "apt"} if family == "Debian" else {})}


def registry_id(text: str) -> str | None:
    """Of a relay's configuration: which registry its peers are from, ``None`` if it does not say."""
    for line in text.splitlines()[:_HEADER_MAX_LINES]:
        if line.startswith(_REGISTRY):
            return line[len(_REGISTRY) :].strip() or None
        if line and not line.startswith("#"):
            break
    return None


def _release(root: str) -> dict[str, str]:
    text = _text(f"{root}/etc/os-release") or _text(f"{root}/usr/lib/os-release")
    release = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not name.startswith("#"):
            try:
                release[name.strip()] = "".join(shlex.split(value))
            except ValueError:
                continue
    return release


def _service_manager(root: str) -> str:
    if os.path.isdir(f"{root}/run/systemd/system"):
        return "systemd"
    if os.path.exists(f"{root}/sbin/openrc"):
        return "openrc"
    return "sysvinit" if os.path.isdir(f"{root}/etc/init.d") else "service"


def _default_ipv6(routes: str, tunnel: str) -> dict[str, str]:
    """The device and the router of the best default route outside the tunnel; empty without one."""
    best: tuple[int, dict[str, str]] | None = None
    for line in routes.splitlines():
        words = line.split()
        if len(words) < 10 or words[0] != _ANY_IPV6 or words[1] != "00":
            continue
        metric, flags, device = int(words[5], 16), int(words[8], 16), words[9]
        usable = flags & _RTF_UP and not flags & _RTF_REJECT and device not in ("lo", tunnel)
        if usable and (best is None or metric < best[0]):
            best = metric, {"interface": device, "gateway": _colons(words[4])}
    return best[1] if best else {}


def _ipv6_addresses(addresses: str) -> list[str]:
    found = [line.split()[0] for line in addresses.splitlines() if line.strip()]
    return [_colons(address) for address in found if address != _LOOPBACK_IPV6]


def _global_ipv6(addresses: str, device: str) -> list[str]:
    """Of one device, with prefix length."""
    rows = [line.split() for line in addresses.splitlines()]
    return [
        f"{_colons(row[0])}/{int(row[2], 16)}"
        for row in rows
        if len(row) == 6 and row[5] == device and row[3] == _GLOBAL_SCOPE
    ]


def _ipv4_addresses(device: str) -> list[str]:
    """The first one of a device, with prefix length: asked by ioctl, for which no library is needed."""
    request = struct.pack("256s", device.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            address, netmask = (
                socket.inet_ntoa(fcntl.ioctl(asking, what, request)[20:24])
                for what in (_SIOCGIFADDR, _SIOCGIFNETMASK)
            )
        except OSError:
            return []
    return [ipaddress.IPv4Interface(f"{address}/{netmask}").with_prefixlen]


def _colons(digits: str) -> str:
    return str(ipaddress.IPv6Address(bytes.fromhex(digits)))


def _missing(packages: Sequence[str], run: Runner) -> list[str]:
    """Those that are not installed, of Debian's; on another distribution, all of them."""
    query = find("dpkg-query")
    if not packages or query is None:
        return list(packages)
    form = "${Package} ${db:Status-Status}\\n"
    _code, out, _err = run([query, "--show", "--showformat", form, *packages], "")
    installed = {line.split()[0] for line in out.splitlines() if line.endswith(" installed")}
    return [package for package in packages if package not in installed]


def _contained(spec: FactsSpec, engine: _engine.Engine) -> dict[str, Any]:
    try:
        return {
            "image": engine.image(spec.image) if spec.image else {},
            "images": {name: engine.image(name) for name in spec.images},
            "containers": {name: engine.container(name) for name in spec.containers},
        }
    except HostError:
        # An engine that is somewhere else. Those who change something there find out.
        return _nothing(spec.containers)


def _nothing(containers: Sequence[str]) -> dict[str, Any]:
    return {"image": {}, "images": {}, "containers": {name: {} for name in containers}}


def _key(path: str) -> dict[str, Any]:
    """Of the key pair what may be known: never the private key."""
    try:
        state = KeyBackend(KeySpec(path, present=False)).observe()
    except HostError as error:
        return {**_NO_PROTECTION, "exists": True, "problem": str(error), "public_key": None}
    return {
        "exists": state.exists,
        "problem": state.problem,
        "mode": f"{state.mode:04o}",
        "owner": state.owner,
        "group": state.group,
        "public_key": state.public_key,
    }


def _agreement(config_dir: str, name: str, config: str) -> dict[str, Any]:
    """Which pre-shared keys there are, by their ids. One text, as a server may have ten thousand."""
    kept = _relay_agreement.look(_relay_agreement.folder_of(config_dir, name))
    return {
        "kem": kept.kem.get("current", ""),
        "next_kem": kept.kem.get("next", ""),
        "ids": " ".join(sorted(kept.ids)),
        "called": _relay_agreement.called(config),
        "next_public_key": _key(f"{config_dir}/{name}.next.key").get("public_key") or "",
    }


def _relay(path: str) -> dict[str, Any]:
    try:
        relay = _uapi.query(path)
    except MissingLibrary:
        return {"running": True, "public_key": None, "error": ""}
    except HostError as error:
        return {"running": True, "public_key": None, "error": str(error)}
    return {"running": relay is not None, "public_key": relay.public_key if relay else None, "error": ""}


def _protection(path: str) -> dict[str, Any]:
    try:
        status = os.stat(path)
    except OSError:
        return _NO_PROTECTION
    return {
        "exists": True,
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
        "owner": status.st_uid,
        "group": status.st_gid,
    }


def _is_character_device(path: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except OSError:
        return False


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""
