# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module host_network on a real kernel. What it does when a change has to be confirmed is in
test_transaction.py; here changes are made at once (confirm: never).

    host: up0 (198.51.100.7/24 and 2001:db8::7/64), rules and routes of somebody else's
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.plugin_utils._acl import ANSWERS, REFUSED, acl_chains
from ansible_collections.culvert.vpn.plugins.plugin_utils._acl import NAME as NAME_OF_ACL

from tests.netns.modules.documents import Led, assert_same
from tests.netns.modules.host import COLLECTIONS, Host, Result
from tests.netns.modules.test_host_network_interrupted import AFTER, BEFORE, BLANK, OTHERS

NAME = BLANK["name"]
_PATH = f"/var/lib/culvert/network.d/{NAME}.json"
# Programs that change something, and those that read by the same name: netlink is compared by the state.
_WRITERS = (
    "iptables-nft-restore",
    "ip6tables-nft-restore",
    "iptables-legacy-restore",
    "ip6tables-legacy-restore",
)


@pytest.fixture
def led(host: Host) -> Iterator[Led]:
    host.sh(OTHERS)
    led = Led(host)
    yield led
    led.close()


def run(host: Host, document: dict[str, Any], check: bool = False, **options: Any) -> Result:
    return host.module("host_network", check=check, **{"confirm": "never", **document, **options})


def stored(host: Host) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(host.run("cat", _PATH))
    return content


def test_check_mode_tells_the_plan_that_is_then_executed(led: Led) -> None:
    host = led.host
    for document in (BEFORE, AFTER, {**BLANK, "state": "previous"}, {**BLANK, "state": "absent"}):
        before = host.snapshot()
        foretold = run(host, document, check=True)
        assert foretold.changed
        assert not foretold["confirmed"]
        assert host.snapshot() == before, "check mode changes nothing"
        done = run(host, document)
        assert (done["plan"], done["diff"]) == (foretold["plan"], foretold["diff"])
        assert done["confirmed"]
        again = run(host, document if document.get("state") != "previous" else BEFORE, check=True)
        assert (again.changed, again["plan"], again["diff"]) == (False, [], {"before": {}, "after": {}})


def test_nothing_is_left_of_a_document_that_is_removed(led: Led) -> None:
    host = led.host
    before, files = led.state(), host.snapshot()
    run(host, BEFORE)
    run(host, AFTER)
    assert run(host, BLANK, state="absent").changed
    assert_same(led.state(), before)
    assert host.snapshot() == files
    assert not run(host, BLANK, state="absent").changed


def test_documents_count_their_generations_and_keep_the_one_before(led: Led) -> None:
    host = led.host
    assert run(host, BEFORE)["generation"] == 1
    first = stored(host)
    assert run(host, BEFORE)["generation"] == 1, "the same again is no change"
    led_before = led.state()
    assert run(host, AFTER)["generation"] == 2
    assert run(host, BLANK, state="previous")["generation"] == 3
    assert_same(led.state(), led_before)
    assert stored(host) == {**first, "generation": 3}
    # What is only for the checks is kept as well, though the kernel has nothing of it.
    told = run(host, {**BEFORE, "endpoints": ["198.51.100.9"]})
    assert (told["plan"], told["generation"]) == ([f"document {NAME}"], 4)


def test_leftovers_of_a_document_that_was_lost(led: Led) -> None:
    host = led.host
    before = led.state()
    run(host, AFTER)
    host.sh("rm -r /var/lib/culvert/network.d")
    lists = {kind: AFTER[kind] for kind in ("devices", "chains", "tables")}
    foretold = run(host, {**BLANK, **lists}, check=True, state="absent")
    assert run(host, {**BLANK, **lists}, state="absent")["plan"] == foretold["plan"]
    assert_same(led.state(), before)


def test_parts_of_acls_are_found_when_the_document_was_lost(led: Led) -> None:
    """Nobody knows their names by then. What only looks like one of them is somebody's own."""
    host = led.host
    host.sh("iptables -t mangle -N CULVERT-ACL-0123ABCDE; iptables -t mangle -N CULVERT-ACL-0123abcd")
    before = led.state()
    acls = {
        f"c{n}": {"addresses": [f"10.86.{n}.2/32"], "rules": [{"to": "10.20.0.0/16"}]} for n in range(100)
    }
    chains = acl_chains(acls, "culvert0", "0x7", ["ipv4"])
    names = [chain["name"] for chain in chains]
    assert len(names) > 3, "else nothing is cut"
    run(host, {**BLANK, "chains": chains})
    host.sh("rm -r /var/lib/culvert/network.d")
    # As the role lists them, which knows those that each server has.
    listed = [chain for chain in chains if chain["name"] in (REFUSED, ANSWERS, NAME_OF_ACL)]
    for _attempt in range(2):
        run(host, {**BLANK, "chains": listed}, state="absent")
        assert_same(led.state(), before)


def test_drift_is_put_right(led: Led) -> None:
    host = led.host
    run(host, AFTER)
    deployed = led.state()
    host.sh("""
        ip link del culvert1
        ip rule del priority 31900
        ip route del default dev up0
        ip route add default via 198.51.100.1
        ip addr del 10.86.0.2/16 dev culvert0
        iptables -F CULVERT-FORWARD
        echo 0 > /proc/sys/net/ipv4/conf/all/src_valid_mark
    """)
    assert run(host, AFTER).changed
    assert_same(led.state(), deployed)
    assert stored(host)["generation"] == 1


def test_a_run_without_a_change_changes_nothing(led: Led, tmp_path: Path) -> None:
    """No program that writes is started, and not even a time of a file or a number of a device is another."""
    host = led.host
    run(host, AFTER)
    everything = (
        "find /var/lib /etc/iproute2 /etc/sysctl.d /usr/local/lib -printf '%p %T@ %i\\n'; ip -d a; ip ru"
    )
    before = host.sh(everything)
    first = tmp_path / "first"
    first.mkdir()
    called = tmp_path / "called"
    for name in _WRITERS:
        trap = first / name
        trap.write_text(f'#!/bin/sh\necho "$0" >> {called}\nexit 1\n')
        trap.chmod(0o755)
    for check in (False, True):
        result = host.module("host_network", check=check, first=str(first), confirm="always", **AFTER)
        assert (result.changed, result["plan"]) == (False, [])
        assert "pending" not in result.values
    assert not called.exists()
    assert host.sh(everything) == before


def test_fifty_in_a_row_leave_one_of_everything(led: Led) -> None:
    led.apply(AFTER, None)
    other = led.state()
    led.apply(BEFORE, AFTER)
    once = led.state()
    for _round in range(25):
        assert led.apply(AFTER, BEFORE)
        assert led.apply(BEFORE, AFTER)
    assert_same(led.state(), once)
    for _round in range(50):
        assert led.apply(BEFORE, BEFORE) == []
    led.apply(AFTER, BEFORE)
    assert_same(led.state(), other)


def test_runs_at_the_same_time_take_turns(led: Led) -> None:
    host = led.host
    states = {}
    for document in (BEFORE, AFTER):
        run(host, document)
        states[document["tables"][0]["id"]] = led.state()
    results: list[Result] = []

    def apply(document: dict[str, Any]) -> None:
        results.append(run(host, document))

    threads = [threading.Thread(target=apply, args=(document,)) for document in (BEFORE, AFTER) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert not [result.msg for result in results if result.failed]
    last = stored(host)["document"]
    assert_same(led.state(), states[last["tables"][0].get("id")])
    assert not run(host, BEFORE if last["tables"][0]["id"] == 51820 else AFTER).changed


REFUSALS: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"devices": [{"name": "x" * 16}]}, "devices[0].name", ["15 bytes"]),
    ({"devices": [{"name": "t0", "addresses": ["198.51.100.9/24"]}]}, "devices[0].addresses[0]", ["up0"]),
    ({"devices": [{"name": "t0"}, {"name": "t0"}]}, "devices[1].name", ["devices[0]"]),
    ({"sysctls": {"net.ipv4.no_such": "1"}}, "sysctls.net.ipv4.no_such", ["kernel"]),
    (
        {"chains": [{"name": "CULVERT-A"}, {"name": "CULVERT-B", "rules": ["-j ACCEPT", "--no-such"]}]},
        "chains[1].rules[1]",
        ["--no-such"],
    ),
    (
        {"tables": [{"name": "a", "id": 5, "routes": [{"destination": "10.9.0.0/16", "device": "t9"}]}]},
        "tables[0].routes[0].device",
        ["no device t9"],
    ),
    ({"tables": [{"name": "a", "id": 77}]}, "tables[0].id", ["somebody else"]),
    (
        {"tables": [{"name": "a", "id": 5, "rules": [{"fwmark": "x"}]}]},
        "tables[0].rules[0].fwmark",
        ["0xca6c"],
    ),
    (
        {"tables": [{"name": n, "id": i, "rule_priority": i} for n, i in (("a", 300), ("b", 310))]},
        "tables[1].rule_priority",
        ["16"],
    ),
    ({"fwmark": "mark"}, "fwmark", ["0xca6c"]),
    ({"endpoints": ["a:b c"]}, "endpoints[0]", ["neither"]),
    ({"confirm_timeout_s": 5}, "confirm_timeout_s", ["from 10 to 3600"]),
    ({"state": "previous"}, "state", ["before the last change"]),
    ({"name": "../x"}, "name", ["file"]),
]


def test_refusals_name_the_whole_option_and_change_nothing(led: Led) -> None:
    before = led.host.snapshot()
    for wish, option, words in REFUSALS:
        refused = run(led.host, {**BLANK, **wish})
        refused.assert_refused(option, words)
    assert led.host.snapshot() == before


def test_what_another_document_has_is_refused(led: Led) -> None:
    run(led.host, BEFORE)
    for kind in ("devices", "chains", "tables"):
        wish = {
            "name": "30-other",
            kind: [{**BEFORE[kind][0], "addresses": []} if kind == "devices" else BEFORE[kind][0]],
        }
        run(led.host, wish).assert_refused(f"{kind}[0].name", [NAME])


def test_a_damaged_document_is_not_half_understood(led: Led) -> None:
    host = led.host
    run(host, BEFORE)
    host.sh(f"sed -i s/10.99.0.0/10.98.0.0/ {_PATH}")
    for state in ("present", "absent"):
        refused = run(host, {**BEFORE, "state": state})
        assert refused.failed
        assert _PATH in refused.msg
        assert "checksum" in refused.msg


def test_a_change_that_can_cut_off_is_not_made_by_the_module_itself(led: Led) -> None:
    """It ends with the change pending; that nobody confirms it is the subject of test_transaction.py."""
    host = led.host
    device = {**BLANK, "devices": BEFORE["devices"]}
    assert "pending" not in run(host, device, confirm="auto").values, "a new device cuts nobody off"
    before = led.state()
    pending = run(host, BEFORE, confirm="auto", confirm_timeout_s=10)
    assert pending.changed
    assert pending["pending"]
    assert not pending["confirmed"]
    undone = host.module("network_commit", transaction=pending["pending"], state="rolled_back")
    assert not undone.failed, undone.msg
    assert_same(led.state(), before)
    assert stored(host)["generation"] == 1


def test_not_root(led: Led) -> None:
    refused = led.host.module(
        "host_network", wrap=("setpriv", "--bounding-set=-net_admin"), confirm="never", **AFTER
    )
    assert refused.failed
    assert "not root" in refused.msg


def test_check_mode_before_anything_is_installed(led: Led, tmp_path: Path) -> None:
    """A library that another task would install first is a warning in check mode and a failure otherwise."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "pyroute2.py").write_text("raise ImportError('not here')\n")
    arguments = {"ANSIBLE_MODULE_ARGS": {"_ansible_check_mode": True, **AFTER}}
    done = subprocess.run(
        led.host.command(led.host.module_command("host_network")),
        input=json.dumps(arguments),
        env={**os.environ, "PYTHONPATH": f"{broken}:{COLLECTIONS}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    result = Result(json.loads(done.stdout), done.stdout)
    assert result.changed
    assert any("pyroute2" in str(warning) for warning in result["warnings"])
