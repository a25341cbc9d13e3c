# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Dates, rates and quotas of peers: from what people write to the file and the socket, and back."""

from __future__ import annotations

import base64
import datetime
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils import _relay_info, _uapi, _x25519
from ansible_collections.culvert.vpn.plugins.module_utils._core import SpecError
from ansible_collections.culvert.vpn.plugins.module_utils._relay_file import parse, render
from ansible_collections.culvert.vpn.plugins.module_utils._relay_limits import (
    Limits,
    Usage,
    amount,
    expiry,
    limits_of,
    parse_usage,
    seconds_of,
    text_of,
)
from ansible_collections.culvert.vpn.plugins.module_utils._relay_peers import Observed, plan
from ansible_collections.culvert.vpn.plugins.module_utils._relay_peers_spec import PeersSpec
from ansible_collections.culvert.vpn.plugins.module_utils._uapi import Peer, Relay
from hypothesis import given
from hypothesis import strategies as st

A = base64.b64encode(b"\1" * 32).decode()
OWN = _x25519.SecretKey(b"\x40" * 32)
WISH = {"expires_at": "2027-06-30T22:00:00Z", "rate_limit": "20M", "quota": "50G", "quota_period": "day"}
LIMITS = Limits("2027-06-30T22:00:00Z", 20_000_000, 50_000_000_000, "day")
TOLD = f"""\
instance=x
limited_peer={"01" * 32}
expires_at=1814392800
rate_limit_bps=20000000
quota_bytes=50000000000
quota_period=day
quota_used_bytes=1234
quota_resets_at=1795392000
barred=quota
dropped_packets=7
limited_peer={"02" * 32}
expires_at=0
errno=0

"""


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("8000", 8000),
        ("10M", 10**7),
        ("1.5G", 1_500_000_000),
        ("10 Mi", 10 * 2**20),
        ("0.5k", 500),
        ("50Gi", 50 * 2**30),
        (" 2t ", 2 * 10**12),
        (7, 7),
    ],
)
def test_amounts(text: Any, number: int) -> None:
    assert amount(text) == number


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "M", "10MB", "1e9", "10 000", "9999999T", True, "\u06610", "0.0k"]
)
def test_what_is_no_amount(text: Any) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        amount(text)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2027-06-30T22:00:00Z", "2027-06-30T22:00:00Z"),
        ("2027-06-30t22:00:00.750z", "2027-06-30T22:00:00Z"),
        ("2027-07-01 00:00:00+02:00", "2027-06-30T22:00:00Z"),
        ("2027-07-01", "2027-07-01T00:00:00Z"),
        # What YAML makes of dates without quotes.
        (datetime.date(2027, 7, 1), "2027-07-01T00:00:00Z"),
        (datetime.datetime(2027, 7, 1, 1, tzinfo=datetime.UTC), "2027-07-01T01:00:00Z"),
    ],
)
def test_moments(text: Any, moment: str) -> None:
    assert expiry(text) == moment
    assert text_of(seconds_of(moment)) == moment


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2027-06-30T22:00:00", "no time zone"),
        (datetime.datetime(2027, 7, 1), "no time zone"),
        ("2027-02-30", "is not a date"),
        ("2027-06-30T25:00:00Z", "is not a date"),
        ("tomorrow", "is not a date"),
        ("1969-12-31", "before 1970"),
    ],
)
def test_what_is_no_moment(text: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        expiry(text)


def test_limits_are_numbers_and_utc() -> None:
    assert limits_of(WISH) == LIMITS
    assert limits_of(LIMITS.as_dict()) == LIMITS
    assert limits_of({"expires_at": "", "quota": None}) == Limits()
    assert not Limits()
    for wrong in ({"rate_limit": "1k"}, {"rate_limit": "1T"}, {"quota_period": "day"}, {"quota": "x"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            limits_of(wrong)


def spec_of(**limits: str) -> PeersSpec:
    return PeersSpec.from_params({"peers": [{"public_key": A, "allowed_ips": ["10.86.0.9/32"], **limits}]})


def test_the_file_has_them_and_the_relay_is_told_what_differs() -> None:
    wish = spec_of(**WISH)
    text = render(wish.config)
    assert "ExpiresAt = 2027-06-30T22:00:00Z\nRateLimit = 20000000\n" in text
    assert "TransferQuota = 50000000000\nQuotaPeriod = day\n" in text
    assert parse(text).peers == wish.config.peers
    peer = Peer(A, allowed_ips=("10.86.0.9/32",))
    host = Observed(text, 0o640, relay=Relay(OWN.public_key(), 51820, 51820, (peer,)), key=OWN)
    host = replace(host, public_key=OWN.public_key(), identity=OWN.public_key())

    def told(spec: PeersSpec, limits: Limits) -> list[str]:
        running = replace(host, relay=Relay(OWN.public_key(), 51820, 51820, (replace(peer, limits=limits),)))
        steps = [step for step in plan(spec, running) if step.action == "set"]
        return [f"{key}={value}" for step in steps for key, value in step.data][2:]

    assert told(wish, Limits()) == [
        "expires_at=1814392800",
        "rate_limit_bps=20000000",
        "quota_bytes=50000000000",
        "quota_period=day",
    ]
    assert told(wish, LIMITS) == []
    assert told(wish, replace(LIMITS, rate_limit_bps=9000)) == ["rate_limit_bps=20000000"]
    # Written by hand in other words, it is the same.
    assert told(spec_of(**{**WISH, "quota": "50000M"}), LIMITS) == []
    assert told(spec_of(), LIMITS) == ["expires_at=0", "rate_limit_bps=0", "quota_bytes=0"]


def test_a_malformed_one_is_refused_by_its_name() -> None:
    with pytest.raises(SpecError, match=r"50 apples") as refused:
        spec_of(quota="50 apples")
    assert refused.value.option == "peers[0].quota"


def test_what_a_relay_says_of_its_limited_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = parse_usage(TOLD)
    assert found[A] == Usage(LIMITS, 1234, "2026-11-23T00:00:00Z", "quota", 7)
    assert found[base64.b64encode(b"\2" * 32).decode()] == Usage()
    assert parse_usage("errno=0\n\n") == {}
    relay = _uapi.with_limits(Relay(peers=(Peer(A), Peer("other"))), found)
    assert [peer.limits for peer in relay.peers] == [LIMITS, Limits()]
    answers = {b"get=1\n\n": f"public_key={'01' * 32}\nerrno=0\n\n", b"culvert=1\n\n": TOLD}
    monkeypatch.setattr(_uapi, "_exchange", lambda path, request, timeout_s: answers[request].encode())
    (shown,) = _relay_info.info({"name": "culvert0"})["peers"]
    assert shown["limits"]["barred"] == "quota"
    assert shown["limits"]["quota_resets_at"] == "2026-11-23T00:00:00Z"


@given(st.text(max_size=300) | st.lists(st.sampled_from(TOLD.splitlines()), max_size=12).map("\n".join))
def test_whatever_a_relay_says(reply: str) -> None:
    for usage in parse_usage(reply).values():
        usage.as_dict()
