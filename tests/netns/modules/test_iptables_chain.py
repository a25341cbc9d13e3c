# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module iptables_chain on a real kernel, on both backends and for both address families."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.netns.modules.host import COLLECTIONS, Host

NAME = "CULVERT-FORWARD"
JUMP = f"-j {NAME}"
WISH: dict[str, Any] = {
    "name": NAME,
    "rules": [
        "-i culvert0 -p tcp --dport 22 -j ACCEPT",
        "-o culvert0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        '-m comment --comment "two words" -j RETURN',
    ],
    "jump": {"from": "FORWARD"},
}
BACKENDS = ["nft", "legacy"]
FAMILIES = ["ipv4", "ipv6"]


def load_legacy_tables(host: Host) -> None:
    """The legacy backend cannot unload a table, so those in use have to be there before we compare."""
    host.sh("for t in filter nat mangle raw; do iptables-legacy -t $t -S; ip6tables-legacy -t $t -S; done")


def jumps(host: Host, backend: str, family: str = "ipv4", name: str = NAME) -> list[str]:
    return [line for line in host.save(backend, family).splitlines() if line.endswith(f"-j {name}")]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_check_mode_then_run_then_again_then_absent(host: Host, backend: str, family: str) -> None:
    if backend == "legacy":
        load_legacy_tables(host)
    where = {"backend": backend, "family": family}
    before = host.snapshot()
    foretold = host.module("iptables_chain", check=True, **WISH, **where)
    assert foretold.changed
    assert host.snapshot() == before

    done = host.module("iptables_chain", **WISH, **where)
    assert done["diff"] == foretold["diff"]
    lines = host.save(backend, family).splitlines()
    assert [line for line in lines if line.startswith(f"-A {NAME} ")] == [
        f"-A {NAME} -i culvert0 -p tcp -m tcp --dport 22 -j ACCEPT",
        f"-A {NAME} -o culvert0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        f'-A {NAME} -m comment --comment "two words" -j RETURN',
    ]
    assert len(jumps(host, backend, family)) == 1
    assert jumps(host, backend, family)[0].startswith('-A FORWARD -m comment --comment "culvert ')

    deployed = host.snapshot()
    for check in (False, True):
        again = host.module("iptables_chain", check=check, **WISH, **where)
        assert again["diff"] == {"before": {}, "after": {}}
        assert not again.changed
    assert host.snapshot() == deployed

    gone = {"name": NAME, "state": "absent", **where}
    assert host.module("iptables_chain", check=True, **gone).changed
    assert host.snapshot() == deployed
    assert host.module("iptables_chain", **gone).changed
    assert host.snapshot() == before
    assert not host.module("iptables_chain", **gone).changed


DAMAGES = [
    "{t} -D {n} 2",
    "{t} -R {n} 1 -j DROP",
    "{t} -A {n} -j DROP",
    "{t} -F {n}",
    "{t} -F FORWARD",
    "{t} -F FORWARD; {t} -F {n}; {t} -X {n}",
    "{t} -A FORWARD -j {n}",
    "{t} -A INPUT -i eth9 -j {n}",
    "{t} -I FORWARD 1 -j DROP",
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_changes_by_hand_are_put_right(host: Host, backend: str) -> None:
    host.module("iptables_chain", **WISH, backend=backend)
    deployed = host.save(backend)
    for damage in DAMAGES:
        host.sh(damage.format(t=f"iptables-{backend}", n=NAME))
        assert host.save(backend) != deployed
        assert host.module("iptables_chain", **WISH, backend=backend).changed, damage
        host.sh(f"iptables-{backend} -D FORWARD -j DROP || true")
        assert host.save(backend) == deployed, damage
    assert not host.module("iptables_chain", **WISH, backend=backend).changed


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_jump_edited_by_hand_is_put_right(host: Host, backend: str) -> None:
    host.module("iptables_chain", **WISH, backend=backend)
    deployed = host.save(backend)
    jump = jumps(host, backend)[0]
    words = shlex.split(jump)
    comment = words[words.index("--comment") + 1]
    host.sh(f"""
        iptables-{backend} -F FORWARD
        iptables-{backend} -A FORWARD -i eth9 -m comment --comment "{comment}" -j {NAME}
    """)
    assert host.module("iptables_chain", **WISH, backend=backend).changed
    assert host.save(backend) == deployed


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_changed_wish_is_seen(host: Host, backend: str) -> None:
    host.module("iptables_chain", **WISH, backend=backend)
    changes: list[dict[str, Any]] = [
        {"rules": WISH["rules"][:1]},
        {"rules": []},
        {"jump": {"from": "INPUT"}},
        {"jump": {"from": "FORWARD", "match": "-i eth0", "position": "last"}},
        {"comment": "another"},
        {"jump": None},
    ]
    for change in changes:
        wish = {**WISH, **change, "backend": backend}
        assert host.module("iptables_chain", **wish).changed
        assert len(jumps(host, backend)) == (1 if wish["jump"] else 0)
        assert not host.module("iptables_chain", **wish).changed
    host.sh(f"iptables-{backend} -A {NAME} -j DROP")
    assert host.module("iptables_chain", **wish).changed, "a chain without a jump has its mark inside"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hundred_runs_leave_one_jump(host: Host, backend: str) -> None:
    """Ninety-eight of them by the backend alone, with no interpreter to start each time."""
    assert host.module("iptables_chain", **WISH, backend=backend).changed
    loop = """
        import json, sys
        from ansible_collections.culvert.vpn.plugins.module_utils._chain import ChainSpec
        from ansible_collections.culvert.vpn.plugins.module_utils._chain_host import ChainBackend
        from ansible_collections.culvert.vpn.plugins.module_utils._processes import run_command
        spec = ChainSpec.from_params(json.load(sys.stdin))
        backends = (ChainBackend(spec, run_command) for _ in range(98))
        print(sum(len(backend.plan(backend.observe())) for backend in backends))
    """
    script = "\n".join(line.strip() for line in loop.splitlines())
    params = json.dumps({**WISH, "backend": backend})
    assert host.run(sys.executable, "-c", script, stdin=params, PYTHONPATH=str(COLLECTIONS)) == "0\n"
    assert not host.module("iptables_chain", **WISH, backend=backend).changed
    assert len(jumps(host, backend)) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_runs_at_the_same_time_leave_one_jump(host: Host, backend: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(host.module, "iptables_chain", **WISH, backend=backend) for _ in range(4)]
        assert sorted(run.result().changed for run in runs) == [False, False, False, True]
    assert len(jumps(host, backend)) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_belongs_to_others_stays(host: Host, backend: str) -> None:
    host.sh(f"""
        iptables-{backend} -N THEIRS
        iptables-{backend} -A THEIRS -p udp -m multiport --dports 1,2 -j LOG --log-prefix 'a "quoted" one'
        iptables-{backend} -A FORWARD -i br0 -j THEIRS
        iptables-{backend} -A FORWARD -o br0 -j ACCEPT
        iptables-{backend} -P FORWARD DROP
        iptables-{backend} -t nat -A POSTROUTING -s 198.51.100.0/24 -j MASQUERADE
    """)
    before = host.snapshot()
    last = {**WISH, "name": "CULVERT-LAST", "jump": {"from": "FORWARD", "position": "last"}}
    nat = {"name": "CULVERT-NAT", "table": "nat", "rules": ["-j MASQUERADE"], "jump": {"from": "POSTROUTING"}}
    for wish in (WISH, last, nat):
        assert host.module("iptables_chain", **wish).changed, "the backend is the one that has rules"
    forward = [line for line in host.save(backend).splitlines() if line.startswith("-A FORWARD")]
    assert [line.split()[-1] for line in forward] == [NAME, "THEIRS", "ACCEPT", "CULVERT-LAST"]
    for wish in (WISH, last, nat):
        assert not host.module("iptables_chain", **wish).changed
        assert host.module("iptables_chain", **{**wish, "state": "absent"}).changed
    assert host.snapshot() == before


def test_two_chains_that_want_to_be_first_do_not_fight(host: Host) -> None:
    other = {**WISH, "name": "CULVERT-OTHER"}
    assert host.module("iptables_chain", **WISH).changed
    assert host.module("iptables_chain", **other).changed
    for wish in (WISH, other, WISH):
        assert not host.module("iptables_chain", **wish).changed


def test_nft_tables_of_others_are_never_removed(host: Host) -> None:
    """Only what was not there before, is empty, and accepts everything goes away with our chain."""
    host.module("iptables_chain", **WISH, backend="nft")
    host.sh("iptables-nft -A INPUT -j ACCEPT; iptables-nft -P OUTPUT DROP")
    host.module("iptables_chain", name=NAME, state="absent", backend="nft")
    assert "-A INPUT -j ACCEPT" in host.save("nft")
    host.sh("iptables-nft -F INPUT")
    assert ":OUTPUT DROP" in host.save("nft")
    host.module("iptables_chain", name=NAME, state="absent", backend="nft")
    assert ":OUTPUT DROP" in host.save("nft")
    host.sh("iptables-nft -P OUTPUT ACCEPT; iptables-nft -X INPUT; iptables-nft -X OUTPUT")
    assert host.module("iptables_chain", name=NAME, state="absent", backend="nft").changed
    assert not host.run("nft", "list", "ruleset")
    assert not Path(host.directory, "lib/culvert").exists()

    host.sh("nft add table ip filter")
    before = host.snapshot()
    host.module("iptables_chain", **WISH, backend="nft")
    host.module("iptables_chain", name=NAME, state="absent", backend="nft")
    assert host.snapshot() == before, "a table that was there before us stays, even empty"


@pytest.mark.parametrize("default", BACKENDS)
def test_the_backend_is_the_default_on_an_empty_host(host: Host, tmp_path: Path, default: str) -> None:
    for tool in ("iptables", "ip6tables"):
        for suffix in ("", "-save", "-restore"):
            (tmp_path / f"{tool}{suffix}").symlink_to(f"/usr/sbin/{tool}-{default}{suffix}")
    done = host.module("iptables_chain", first=str(tmp_path), **WISH)
    assert done["backend"] == default
    assert len(jumps(host, default)) == 1
    again = host.module("iptables_chain", **WISH)
    assert (again["backend"], again.changed) == (default, False), "and stays where it is"


def test_the_backend_is_where_docker_is_and_a_copy_elsewhere_goes(host: Host) -> None:
    assert host.module("iptables_chain", **WISH)["backend"] == "nft"
    host.sh("""
        iptables-nft -A INPUT -j ACCEPT
        iptables-legacy -N DOCKER-USER
        iptables-legacy -A FORWARD -j DOCKER-USER
    """)
    moved = host.module("iptables_chain", **WISH)
    assert moved["backend"] == "legacy"
    assert (len(jumps(host, "nft")), len(jumps(host, "legacy"))) == (0, 1)
    assert NAME not in host.save("nft")
    assert not host.module("iptables_chain", **WISH).changed
    # Of the other address family, too.
    assert host.module("iptables_chain", **WISH, family="ipv6")["backend"] == "legacy"


def test_looking_loads_no_legacy_table(host: Host) -> None:
    for check in (True, False):
        host.module("iptables_chain", check=check, **WISH)
    host.module("iptables_chain", check=True, **WISH, backend="legacy")
    assert host.run("cat", "/proc/net/ip_tables_names") == ""


REFUSALS: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"rules": ["-j ACCEPT", "--bogus"]}, "rules[1]", ["--bogus"]),
    ({"rules": ["-j ACCEPT", "-s 10.86.0.0/99 -j ACCEPT"]}, "rules[1]", ["99"]),
    ({"jump": {"from": "FORWARD", "match": "--bogus"}}, "jump", ["--bogus"]),
    ({"rules": ["-A INPUT -j ACCEPT"]}, "rules[0]", ["-A"]),
    ({"rules": ["-j ACCEPT\nCOMMIT"]}, "rules[0]", ["one line"]),
    ({"rules": ['-m comment --comment "open']}, "rules[0]", ["quotation"]),
    ({"name": "INPUT"}, "name", ["CULVERT-"]),
    ({"name": "CULVERT-" + "X" * 21}, "name", ["29 bytes", "28"]),
    ({"name": "CULVERT-A B"}, "name", ["letters"]),
    ({"jump": {"from": "NOWHERE"}}, "jump.from", ["NOWHERE"]),
    ({"jump": {"from": "CULVERT-X"}}, "jump.from", ["CULVERT-X"]),
    ({"jump": {"from": "FORWARD", "match": "-j ACCEPT"}}, "jump.match", ["-j"]),
    ({"comment": 'with "quotes"'}, "comment", ["quotes"]),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_refusals_name_the_option_and_change_nothing(host: Host, backend: str) -> None:
    if backend == "legacy":
        load_legacy_tables(host)
    before = host.snapshot()
    # What the tools refuse is for each backend to say, the rest is the same for both.
    for wish, option, words in REFUSALS if backend == "nft" else REFUSALS[:3]:
        refused = host.module("iptables_chain", **{**WISH, **wish, "backend": backend})
        refused.assert_refused(option, words)
    assert host.snapshot() == before


def test_a_chain_that_others_lead_to_is_not_removed(host: Host) -> None:
    host.module("iptables_chain", **WISH)
    host.module("iptables_chain", name="CULVERT-OTHER", rules=[JUMP], jump={"from": "INPUT"})
    before = host.snapshot()
    refused = host.module("iptables_chain", name=NAME, state="absent")
    assert refused.failed
    assert host.snapshot() == before


def test_not_root_and_no_iptables(host: Host) -> None:
    refused = host.module("iptables_chain", wrap=("setpriv", "--bounding-set=-net_admin"), **WISH)
    assert refused.failed
    assert "not root" in refused.msg
    # An iptables that exists on no backend: the tools hidden behind an empty directory.
    hidden = 'for d in /usr/sbin /usr/local/sbin; do mount -t tmpfs none $d; done; exec "$@"'
    wrap = ("unshare", "--mount", "sh", "-c", hidden, "sh")
    missing = host.module("iptables_chain", wrap=wrap, **WISH)
    assert missing.failed
    assert "install iptables" in missing.msg
    foretold = host.module("iptables_chain", check=True, wrap=wrap, **WISH)
    assert foretold.changed
    assert any("install iptables" in str(warning) for warning in foretold["warnings"])


def test_the_rules_are_in_force(host: Host) -> None:
    """Not only printed: a packet meets them."""
    host.module("iptables_chain", name="CULVERT-IN", rules=["-p icmp -j DROP"], jump={"from": "INPUT"})
    dropped = subprocess.run(
        host.command(["ping", "-c1", "-W1", "127.0.0.1"]), capture_output=True, check=False
    )
    assert dropped.returncode == 1
    host.module("iptables_chain", name="CULVERT-IN", state="absent")
    host.run("ping", "-c1", "-W1", "127.0.0.1")
