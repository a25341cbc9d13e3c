# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random documents, a host that is led from one to another, and what of its state can be compared.

The documents are such that the host must not refuse them; refusals have tests of their own.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.netns.modules.host import COLLECTIONS, Host

NAME = "20-test-culvert0"
BLANK: dict[str, Any] = {"name": NAME}
_WORKER = Path(__file__).with_name("document_worker.py")

# All that a document can change. The devices' numbers, what the kernel draws at random, and what it notices
# of a device a moment later or keeps of one that was up once, are left out below.
_STATE = """
for family in -4 -6; do ip $family rule; ip $family route show table all; done; ip addr; ip -d link
for tool in iptables ip6tables; do $tool-nft-save; $tool-legacy-save; done; nft list tables; nft list chains
grep -r . /etc/iproute2/rt_tables.d /etc/sysctl.d
cd /proc/sys/net; grep . ipv4/ip_forward ipv[46]/conf/*/* | grep -v -e addr_gen_mode -e stable_secret
"""
_EXACT = """
for family in -4 -6; do ip $family rule; ip $family route show table all; done
for tool in iptables ip6tables; do $tool-nft-save; $tool-legacy-save; done
"""
_VOLATILE = re.compile(
    r"^\d+: |^# .*$|\[\d+:\d+\]|link/ether \S+|^.*(fe80::|ff00::/8).*$|^ +valid_lft.*$| detached"
    r"|addrgenmode \S+|(?<= )linkdown|NO-CARRIER,|(?<= )state \w+|(?<= )qdisc \S+|^grep: .*$",
    re.MULTILINE,
)


class Led:
    """A host with a worker that leads it from document to document."""

    def __init__(self, host: Host) -> None:
        self.host = host
        command = ["env", f"PYTHONPATH={COLLECTIONS}", sys.executable, "-B", str(_WORKER)]
        self._worker = subprocess.Popen(
            host.command(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def close(self) -> None:
        self._worker.kill()
        self._worker.communicate()

    def lead(self, document: Mapping[str, Any], previous: Mapping[str, Any] | None, **how: Any) -> Any:
        """The worker's answer; with ``stop`` in ``how``, it may be that it stopped before that step."""
        if self._worker.stdin is None or self._worker.stdout is None:
            raise RuntimeError("the worker has no pipes")
        self._worker.stdin.write(json.dumps({"document": document, "previous": previous, **how}) + "\n")
        self._worker.stdin.flush()
        answer = json.loads(self._worker.stdout.readline())
        assert "failed" not in answer, f"{answer}\n{json.dumps(document)}\n{json.dumps(previous)}"
        return answer

    def apply(self, document: Mapping[str, Any], previous: Mapping[str, Any] | None) -> list[Any]:
        """The steps that it took."""
        plan: list[Any] = self.lead(document, previous)["plan"]
        return plan

    def state(self) -> list[str]:
        """Every line that can be compared. The order of lines says something within our own chains alone:
        that of routes is the kernel's, and jumps to our own chains may be in any order among themselves.
        """
        text = _VOLATILE.sub("", self.host.run("sh", "-c", _STATE, check=False))
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        ordered = [line for line in lines if line.startswith("-A CULVERT-")]
        return ordered + sorted(line for line in lines if not line.startswith("-A CULVERT-"))

    def exact(self) -> str:
        """What has to be the same to the letter when a document is applied again, without the addresses that
        the kernel draws.
        """
        return _VOLATILE.sub("", self.host.sh(_EXACT))


def assert_same(found: list[str], expected: list[str]) -> None:
    """Two states; the lines that differ are what is said when they do not."""
    differences = [line for line in difflib.ndiff(expected, found) if line[:1] in "+-"]
    assert not differences, "\n".join(differences)


_ADDRESSES = (
    ("10.86.0.1/16", "10.86.0.2/16", "10.86.3.4/32", "fd86::1/64", "fd86::2/64"),
    ("10.87.0.1/24", "10.87.0.2/24", "10.87.9.9/32", "fd87::1/64"),
)
_DESTINATIONS = ("0.0.0.0/0", "198.51.100.0/24", "10.99.0.0/16", "::/0", "2001:db8:1::/48")
_RULES = (
    "-i culvert0 -j ACCEPT",
    "-p tcp --dport 22 -j ACCEPT",
    "-o culvert1 -m mark --mark 0x7 -j ACCEPT",
    "-j RETURN",
)
_ORIGINS = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "POSTROUTING"),
    "mangle": ("PREROUTING", "FORWARD", "OUTPUT"),
}


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    devices = [draw(_devices(number)) for number in (0, 1) if draw(st.booleans())]
    tables = _tables(devices)
    return {
        "name": NAME,
        "devices": devices,
        "sysctls": draw(_sysctls()),
        "chains": draw(_chains()),
        "tables": draw(tables),
    }


@st.composite
def _devices(draw: st.DrawFn, number: int) -> dict[str, Any]:
    """A device keeps its mode: the other one is refused."""
    addresses = draw(st.lists(st.sampled_from(_ADDRESSES[number]), unique=True))
    six = any(":" in address for address in addresses)
    return {
        "name": f"culvert{number}",
        "mode": ("tun", "tap")[number],
        "owner": draw(st.sampled_from((None, "51820", "51821"))),
        "multi_queue": draw(st.booleans()),
        "vnet_hdr": draw(st.booleans()),
        "mtu": draw(st.sampled_from((None, 1280, 1420) if six else (None, 1000, 1420))),
        "addresses": addresses,
        "up": draw(st.sampled_from((True, True, False))),
    }


def _sysctls() -> st.SearchStrategy[dict[str, str]]:
    values = {
        "net.ipv4.ip_forward": "1",
        "net.ipv6.conf.all.forwarding": "1",
        "net.ipv4.conf.all.src_valid_mark": "1",
        "net.ipv4.conf.all.rp_filter": "2",
    }
    return st.sets(st.sampled_from(sorted(values))).map(
        lambda keys: {key: values[key] for key in sorted(keys)}
    )


@st.composite
def _chains(draw: st.DrawFn) -> list[dict[str, Any]]:
    places = [(f, t, n) for f in ("ipv4", "ipv6") for t in _ORIGINS for n in ("CULVERT-A", "CULVERT-B")]
    chains = []
    for family, table, name in draw(st.lists(st.sampled_from(places), unique=True, max_size=4).map(sorted)):
        rules = draw(st.lists(st.sampled_from(_RULES), max_size=3))
        if any(c["name"] != name and (c["family"], c["table"]) == (family, table) for c in chains):
            rules += draw(st.sampled_from(([], ["-j CULVERT-A"])))
        chain: dict[str, Any] = {"name": name, "family": family, "table": table, "rules": rules}
        if draw(st.booleans()):
            position = draw(st.sampled_from(("first", "last")))
            origin = draw(st.sampled_from([o for o in _ORIGINS[table] if _takes(o, rules)] or [""]))
            chain["jump"] = {"from": origin, "position": position} if origin else None
        chains.append(chain)
    return chains


def _takes(origin: str, rules: list[str]) -> bool:
    """iptables refuses devices that there cannot be yet, or no longer."""
    words = " ".join(rules)
    without_in, without_out = origin in ("OUTPUT", "POSTROUTING"), origin in ("INPUT", "PREROUTING")
    return not (without_in and "-i " in words) and not (without_out and "-o " in words)


def _tables(devices: list[dict[str, Any]]) -> st.SearchStrategy[list[dict[str, Any]]]:
    one = _table("vpn", devices, (31820, 31825, 31850))
    other = _table("vpn1", devices, (31835, 31900))
    return st.tuples(one, other, st.sampled_from(((), (0,), (0, 1), (1, 0)))).map(_chosen)


def _chosen(drawn: tuple[dict[str, Any], dict[str, Any], tuple[int, ...]]) -> list[dict[str, Any]]:
    tables = [drawn[position] for position in drawn[2]]
    ids = [table["id"] for table in tables]
    priorities = [table["rule_priority"] for table in tables]
    apart = len(set(ids)) == len(ids) and max(priorities, default=0) - min(priorities, default=0) >= 16
    return tables if apart else tables[:1]


@st.composite
def _table(
    draw: st.DrawFn, name: str, devices: list[dict[str, Any]], priorities: tuple[int, ...]
) -> dict[str, Any]:
    routes: dict[tuple[str, int], dict[str, Any]] = {}
    for destination in draw(st.lists(st.sampled_from(_DESTINATIONS), max_size=5)):
        route = draw(_route(destination, devices))
        routes[destination, route["metric"]] = route
    rules = draw(st.lists(_rule(), max_size=4))
    number = draw(st.sampled_from((51820, 51821)))
    priority = draw(st.sampled_from(priorities))
    return {
        "name": name,
        "id": number,
        "rule_priority": priority,
        "routes": list(routes.values()),
        "rules": rules,
    }


@st.composite
def _route(draw: st.DrawFn, destination: str, devices: list[dict[str, Any]]) -> dict[str, Any]:
    version = ipaddress.ip_network(destination).version
    usable = [d for d in devices if d["up"] and (version == 4 or (d["mtu"] or 1500) >= 1280)]
    metric = draw(st.sampled_from((10, 65535)))
    if not usable or draw(st.booleans()):
        kind = draw(st.sampled_from(("unreachable", "blackhole", "prohibit")))
        return {"destination": destination, "type": kind, "metric": metric}
    device = draw(st.sampled_from(usable))
    # An IPv6 address of a TAP device is not usable before the kernel has looked for others that have it.
    own = [a.split("/")[0] for a in device["addresses"] if ipaddress.ip_interface(a).version == version]
    source = draw(st.sampled_from([None, *(own if version == 4 or device["mode"] == "tun" else [])]))
    mtu = draw(st.sampled_from((None, 1300)))
    return {
        "destination": destination,
        "device": device["name"],
        "metric": metric,
        "source": source,
        "mtu": mtu,
    }


def _rule() -> st.SearchStrategy[dict[str, Any]]:
    some: dict[str, st.SearchStrategy[Any]] = {
        "fwmark": st.sampled_from((7, "0xca6c", "0x1/0xff")),
        "from": st.sampled_from(("10.86.0.0/16", "fd86::/64")),
        "iif": st.sampled_from(("lo", "culvert0")),
        "oif": st.just("culvert1"),
        "table": st.just("main"),
        "suppress_prefixlength": st.sampled_from((0, 8)),
        "invert": st.just(True),
    }
    return st.fixed_dictionaries({}, optional=some)
