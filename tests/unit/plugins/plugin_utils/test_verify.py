# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which cause a verdict has, and what becomes of verdicts: a table and a JUnit file."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.plugin_utils._junit import junit, plain
from ansible_collections.culvert.vpn.plugins.plugin_utils._verify import verdict, verdict_lines
from hypothesis import given
from hypothesis import strategies as st

KEY = "K" * 43 + "="


def check(name: str, ok: bool | None = True, *reasons: str, value: Any = None) -> dict[str, Any]:
    return {"name": name, "ok": ok, "value": value, "reasons": list(reasons)}


def probe(*checks: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "checks": list(checks) or [check("device")],
        "explained": [],
        "rejections": [],
        "public_key": KEY,
        "device_addresses": ["10.86.0.2"],
        "outer_addresses": ["198.51.100.18"],
        "targets": [{"handshake_age_s": None}],
        **more,
    }


def stopped(stage: str, text: str, name: str = "") -> dict[str, Any]:
    cause = {"stage": stage, "name": name or stage, "text": text, "fix": "mend it"}
    return {"destination": "10.86.0.1", "ok": False, "cause": cause, "stages": []}


def rejection(reason: str, **more: Any) -> dict[str, Any]:
    whole = {"reason": reason, "endpoint": "", "public_key": "", "address": "", "count": 1, "age_s": 1}
    return {**whole, **more}


def judged(client: dict[str, Any], answer: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return verdict(
        {"host": "c1", "role": "client", "probe": client, "server": "s1", "answer": answer or {}, **more}
    )


SILENT = stopped("handshake", "no answer", "endpoint_silent")
DEAD = (check("device"), check("round_trip", False, "10.86.0.1 does not answer"))


def test_the_table_shows_transports_where_one_is_not_udp() -> None:
    plain, stream = judged(probe(transports=["udp"])), judged(probe(transports=["tls"]))
    assert "transport" not in verdict_lines([plain])[0]
    lines = verdict_lines([plain, {**stream, "host": "c2"}, {**judged(probe()), "host": "c3"}])
    assert lines[0].split()[:4] == ["host", "role", "transport", "verdict"]
    assert [line.split()[2] for line in lines[2:5]] == ["udp", "tls", "\u2013"]


def test_a_host_that_is_well_has_no_cause() -> None:
    one = judged(probe(check("device"), check("clock", None), check("loss", value=0.0)))
    assert (one["verdict"], one["cause"], one["says"]) == ("ok", None, "")


def test_a_check_that_may_fail_does_not_count_and_is_marked() -> None:
    one = judged(probe(check("device"), check("dns_leak", False, "it leaks")), ignore=["dns_leak"])
    assert one["verdict"] == "ok"
    assert verdict_lines([one])[2].split() == ["c1", "client", "ok", "ok", "ignored"]


def test_what_stops_a_packet_on_the_host_itself_comes_first() -> None:
    client = probe(*DEAD, explained=[stopped("route", "the table is empty")])
    answer = probe(rejections=[rejection("unknown_peer", public_key=KEY)])
    assert judged(client, answer)["cause"]["text"] == "the table is empty"


def test_of_several_causes_the_one_that_says_most() -> None:
    causes = [
        SILENT,
        stopped("IPv6", "IPv6 leaks", "ipv6_leak"),
        stopped("route", "the table is empty", "table_emptied"),
    ]
    for number, name in ((3, "table_emptied"), (2, "ipv6_leak"), (1, "endpoint_silent")):
        assert judged(probe(*DEAD, explained=causes[:number]))["cause"]["name"] == name


def test_without_a_relay_nothing_else_is_asked() -> None:
    client = probe(check("device", False, "no relay is attached"), explained=[stopped("tunnel device", "x")])
    assert judged(client)["cause"]["stage"] == "device"


@pytest.mark.parametrize(
    ("refused", "word"),
    [
        (rejection("unknown_peer", public_key=KEY), "does not know the public key"),
        (rejection("mac1", endpoint="198.51.100.18:51820"), "wrong key"),
        # Behind a NAT: it has had no handshake, so it may well be this one.
        (rejection("mac1", endpoint="203.0.113.9:1024"), "wrong key"),
        (rejection("stale_timestamp", public_key=KEY), "clock"),
        (rejection("source", public_key=KEY, address="10.86.0.2"), "allowed IPs"),
        (rejection("no_allowed_ip", address="10.86.0.2"), "allowed IPs"),
    ],
)
def test_silence_is_explained_by_what_the_server_refused(refused: dict[str, Any], word: str) -> None:
    one = judged(probe(*DEAD, explained=[SILENT]), probe(rejections=[refused]))
    assert word in one["says"]
    assert one["cause"]["host"] == "s1"


@pytest.mark.parametrize(
    "refused",
    [
        rejection("unknown_peer", public_key="L" * 43 + "="),
        rejection("unknown_peer", public_key=KEY, age_s=600),
        rejection("no_allowed_ip", address="10.86.0.3"),
        rejection("send_error", public_key=KEY),
        rejection("source", public_key=KEY, address="198.51.100.18"),
    ],
)
def test_what_the_server_refused_of_others_or_long_ago_is_not_its_cause(refused: dict[str, Any]) -> None:
    one = judged(probe(*DEAD, explained=[SILENT]), probe(rejections=[refused]))
    assert one["cause"]["name"] == "endpoint_silent"


def test_a_wrong_key_is_not_blamed_on_a_client_that_has_a_handshake() -> None:
    client = probe(*DEAD, explained=[SILENT], targets=[{"handshake_age_s": 5}])
    answer = probe(rejections=[rejection("mac1", endpoint="203.0.113.9:1024")])
    assert judged(client, answer)["cause"]["name"] == "endpoint_silent"


def test_a_tunnel_that_works_is_followed_on_its_server() -> None:
    client = probe(check("egress", False, "could not be fetched"), explained=[])
    one = judged(client, probe(explained=[stopped("forward", "policy DROP")]))
    assert one["says"] == "forward: on s1: policy DROP (mend it)"
    # A leak is the host's own, whatever is wrong with its server.
    leaks = probe(check("ipv6_leak", False, "it leaks"))
    assert judged(leaks, probe(explained=[stopped("forward", "policy DROP")]))["cause"]["name"] == "ipv6_leak"


def test_what_a_server_does_now_comes_before_what_it_refused() -> None:
    client = probe(*DEAD, explained=[SILENT])
    refused = [rejection("unknown_peer", public_key=KEY)]
    dropped = probe(explained=[stopped("inbound port", "it drops it", "own_firewall")], rejections=refused)
    assert judged(client, dropped)["cause"]["name"] == "own_firewall"
    strange = probe(explained=[stopped("peer", "a stranger calls", "wrong_key")], rejections=refused)
    assert judged(client, strange)["cause"]["name"] == "unknown_peer"


def test_an_acl_is_the_cause_of_what_fails_beyond_the_server_and_of_nothing_else() -> None:
    kept = stopped("chains", "the ACL of 10.86.0.2 does not permit it", "acl")
    beyond = (check("device"), check("egress", False, "http://203.0.113.9 does not answer"))
    assert "on s1: the ACL of 10.86.0.2" in judged(probe(*beyond), probe(explained=[kept]))["says"]
    assert judged(probe(*DEAD), probe(explained=[kept]))["cause"]["stage"] == "round_trip"
    # Whatever is wrong with the server comes first.
    wrong = stopped("forwarding", "this host does not forward", "forwarding_off")
    assert "does not forward" in judged(probe(*beyond), probe(explained=[kept, wrong]))["says"]
    down = probe(check("relay", False, "no relay answers"), explained=[kept])
    assert "no relay answers" in judged(probe(*beyond), down)["says"]
    # Nor is it a fault of the server that has it.
    own = probe(check("device"), check("drift", False, "a rule is gone"), explained=[kept])
    assert judged(own, role="server", server="")["cause"]["stage"] == "drift"


def test_a_server_that_is_down_is_the_cause_of_silence() -> None:
    client = probe(*DEAD, explained=[SILENT])
    down = probe(check("relay", False, "no relay answers"))
    assert "on s1: no relay answers" in judged(client, down)["says"]
    assert "cannot be reached" in judged(client, {"unreachable": True, "msg": "no route"})["says"]


def test_a_clock_comes_before_its_effects() -> None:
    client = probe(*DEAD, check("clock", False, "2 days behind"))
    assert judged(client)["cause"]["stage"] == "clock"


def test_hosts_of_which_nothing_is_known() -> None:
    gone = judged({"unreachable": True, "msg": "timed out"})
    assert (gone["verdict"], gone["cause"]["stage"]) == ("unreachable", "connection")
    assert verdict({"host": "c1"})["verdict"] == "unreachable"
    failed = judged({"failed": True, "msg": "pyroute2 is missing"})
    assert failed["verdict"] == "FAIL"
    assert "pyroute2 is missing" in failed["says"]
    broken = judged({"failed": True, "exception": "Traceback ...\n  File ...\nTypeError: nobody"})
    assert "TypeError: nobody" in broken["says"]


def test_the_table_has_what_was_asked_of_any_host() -> None:
    server = verdict({"host": "s1", "role": "server", "probe": probe(check("device"), check("egress", None))})
    lines = verdict_lines([server, judged(probe(*DEAD)), verdict({"host": "c2"})])
    assert lines[0].split() == ["host", "role", "verdict", "device", "round_trip"]
    assert lines[2].split() == ["s1", "server", "ok", "ok", "\u2013"]
    assert lines[3].split() == ["c1", "client", "FAIL", "ok", "FAIL"]
    assert lines[4].split()[:2] == ["c2", "unreachable"]
    assert [line.partition(":")[0] for line in lines[6:]] == ["c1", "c2"]


def suites(*verdicts: dict[str, Any]) -> ET.Element:
    return ET.fromstring(junit(list(verdicts), "2026-11-23T03:00:00"))


def test_a_junit_file_counts_what_it_holds() -> None:
    """As Jenkins' schema has it: attributes, counts, and the order of what is in a suite and in a case."""
    client = judged(
        probe(
            check("device", value="up"), check("loss", None), check("dns_leak", False, "leaks <&>", "twice")
        )
    )
    root = suites(client, verdict({"host": "c2"}))
    assert {name: root.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
    }
    for suite in root:
        assert set(suite.attrib) == {
            *("name", "hostname", "tests", "failures", "errors", "skipped", "time", "timestamp")
        }
        assert [child.tag for child in suite] == sorted(
            (c.tag for c in suite), key=("testcase", "system-out").index
        )
        for case in suite.iter("testcase"):
            assert set(case.attrib) == {"classname", "name", "time"}
            assert [child.tag for child in case] in (
                [], ["failure"], ["error"], ["skipped"], ["system-out"],
            )  # fmt: skip
    failure = root.find(".//failure")
    assert failure is not None
    assert (failure.get("message"), failure.text) == ("leaks <&>", "leaks <&>\ntwice")
    assert root.find("./testsuite[@name='c2']/testcase/error") is not None


def test_a_check_that_may_fail_is_no_failure() -> None:
    root = suites(judged(probe(check("dns_leak", False, "it leaks")), ignore=["dns_leak"]))
    skipped = root.find(".//skipped")
    assert root.get("failures") == "0"
    assert skipped is not None
    assert skipped.get("message") == "ignored: it leaks"


@given(st.text(st.characters(codec=None)))
def test_whatever_a_host_says_is_xml(text: str) -> None:
    root = suites(judged(probe(check("relay", False, text, value=text))))
    failure = root.find(".//failure")
    assert failure is not None
    if text.isascii() and text.isprintable():
        assert (failure.get("message") or "") == (text or "relay failed")


def test_what_xml_cannot_hold_is_written_out() -> None:
    assert plain("\x1b[31mred\x00\ud800\ufffe") == "\\x1b[31mred\\x00\\ud800\\ufffe"
    assert plain("a\tb\n\U0001f600") == "a\tb\n\U0001f600"
