# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Stages of the relay: does it run, whose is the destination, and is there a session with that peer."""

from __future__ import annotations

from ._explain_facts import Facts, Stage, split_endpoint
from ._uapi import Peer, Rejection

# A session is refused for sending when its handshake is older than this: REJECT_AFTER_TIME, WireGuard paper,
# section 6.1. Without traffic none is made, so an old one alone is no fault.
REJECT_AFTER_TIME_S = 180


def relay_stage(facts: Facts) -> Stage:
    name = facts.device.name
    named = facts.container_name or f"culvert-{name}"
    start = f"start its container: docker start {named} (why it ended: docker logs {named})"
    container = f"; {facts.container}" if facts.container else ""
    if not facts.device.carrier:
        return Stage(
            "tunnel device",
            False,
            f"{name} has no carrier: no relay holds it{container}",
            "relay_down",
            start,
        )
    if facts.relay_problem:
        return Stage(
            "tunnel device",
            None,
            f"a program holds {name}, and does not say what it does: {facts.relay_problem}",
        )
    if facts.relay is None:
        return Stage(
            "tunnel device",
            False,
            f"a program holds {name}, but no relay answers on its control socket{container}",
            "relay_down",
            start,
        )
    return Stage("tunnel device", True, f"a relay holds {name}{container}")


def allowed_ips_stage(facts: Facts, peer: Peer | None) -> Stage:
    destination = str(facts.destination)
    if peer is None:
        return _nobodys(facts)
    wrong = _from_another(facts, peer)
    if wrong:
        return Stage(
            "allowed IPs",
            False,
            f"{destination} is in the allowed IPs of {who(peer)}, but it is {_key(wrong.public_key)} that "
            f"sends from it ({_times(wrong)}), which the relay drops",
            "allowed_ips",
            f"give {destination} to the peer {_key(wrong.public_key)} alone",
        )
    return Stage("allowed IPs", True, f"{destination} is in the allowed IPs of {who(peer)}")


def _nobodys(facts: Facts) -> Stage:
    destination = str(facts.destination)
    text = f"{destination} is in no peer's allowed IPs, so the relay drops what is sent there"
    sender = next((r for r in _said(facts, "source") if r.address == destination), None)
    if sender:
        return Stage(
            "allowed IPs",
            False,
            f"{text}; and what {_key(sender.public_key)} sends from it ({_times(sender)})",
            "allowed_ips",
            f"add {destination} to the allowed IPs of the peer {_key(sender.public_key)}",
        )
    stranger = next(iter(_said(facts, "unknown_peer")), None)
    if stranger and facts.document("server"):
        return _stranger(stranger, text)
    return Stage(
        "allowed IPs",
        False,
        text,
        "allowed_ips",
        f"add it to the allowed IPs of the peer that is to get it (wg show {facts.device.name} allowed-ips)",
    )


def _from_another(facts: Facts, peer: Peer) -> Rejection | None:
    """A packet from the destination's address that came from another peer, lately."""
    if facts.answered:
        return None
    for rejection in _said(facts, "source"):
        other = rejection.public_key != peer.public_key
        if rejection.address == str(facts.destination) and other and _is_newer(facts, rejection, peer):
            return rejection
    return None


def session_stage(facts: Facts, peer: Peer) -> Stage:
    """``None`` as long as it cannot be told why there is no session."""
    age_s = peer.handshake_age_s(facts.now_s)
    refused = _refused(facts, peer)
    if refused:
        return refused
    if age_s is not None and age_s <= REJECT_AFTER_TIME_S:
        return Stage("peer", True, f"there is a session with {who(peer)}, {age_s} s old")
    if age_s is not None:
        return Stage("peer", None, f"the latest handshake with {who(peer)} was {age_s} s ago")
    return Stage("peer", None, f"there was no handshake with {who(peer)} yet")


def endpoint_stage(facts: Facts, peer: Peer) -> Stage:
    if peer.endpoint:
        return Stage("endpoint", True, f"{who(peer, short=True)} is at {peer.endpoint}")
    lost = [r for r in _said(facts, "no_endpoint") if r.public_key in ("", peer.public_key)]
    dropped = f"; until then what is sent to it is dropped ({_times(lost[0])})" if lost else ""
    return Stage("endpoint", None, f"{who(peer, short=True)} has no endpoint: it has to call first{dropped}")


def has_session(facts: Facts, peer: Peer) -> bool:
    age_s = peer.handshake_age_s(facts.now_s)
    return age_s is not None and age_s <= REJECT_AFTER_TIME_S


def answer_stage(facts: Facts, peer: Peer) -> Stage | None:
    """What remains when all that can be seen from here is in order."""
    destination = facts.destination
    if facts.answered:
        return Stage("answer", True, f"{destination} answers")
    if not has_session(facts, peer):
        return _no_session(facts, peer)
    if facts.answered is None:
        return None
    if facts.heard:
        text = f"{destination} does not answer an echo request; its peer is there, and sends"
        return _unanswered(facts, text, "other_side")
    text = f"{destination} does not answer an echo request, and nothing else came from {who(peer)} meanwhile"
    return _unanswered(facts, text, "endpoint_silent")


def _unanswered(facts: Facts, text: str, name: str) -> Stage:
    """Not every host answers echo requests. Those in the tunnel do, and somebody may know better."""
    known = facts.failed("round_trip") or facts.failed("handshake")
    if not known and not any(
        facts.destination in address.network
        for document in facts.documents
        for device in document.devices
        if device.name == facts.device.name
        for address in device.addresses
    ):
        return Stage("answer", None, f"{text}; the way to it is in order here")
    ask = f"culvert explain {facts.own_address or 'ADDRESS'}"
    fix = (
        f"look on the other side, with {ask} there; and whether a firewall on the way drops the tunnel's UDP"
    )
    return Stage("answer", False, f"{text}, although the way to it is in order here", name, fix)


def _no_session(facts: Facts, peer: Peer) -> Stage:
    age_s = peer.handshake_age_s(facts.now_s)
    since = f"for {age_s} s" if age_s is not None else "yet"
    key = facts.relay.public_key if facts.relay else None
    if not peer.endpoint:
        return Stage(
            "answer",
            False,
            f"{who(peer)} has not called {since}, and it has no endpoint by which it could be called",
            "endpoint_silent",
            "look there (culvert explain with this host's tunnel address), and whether a firewall on the way "
            f"drops UDP port {facts.relay.listen_port if facts.relay else ''}",
        )
    return Stage(
        "answer",
        False,
        f"no answer from {peer.endpoint} {since}, and no error either: packets are dropped on the way, by "
        "the firewall there, or by its relay, as it does not know this host's key or has another one itself",
        "endpoint_silent",
        f"there: culvert explain {facts.own_address or 'ADDRESS'}; is its public key {peer.public_key}, has "
        f"it a peer with the key {key}, and does its firewall let UDP port "
        f"{split_endpoint(peer.endpoint)[1]} in?",
    )


def _refused(facts: Facts, peer: Peer) -> Stage | None:
    """What the relay has refused since the latest handshake, if it may have been this peer's."""
    if facts.answered:
        return None
    for rejection in facts.rejections or ():
        if not _is_newer(facts, rejection, peer):
            continue
        own = rejection.public_key == peer.public_key
        if rejection.reason == "stale_timestamp" and own:
            return Stage(
                "peer",
                False,
                f"{who(peer)} calls from {rejection.endpoint}, with a time that is before that of its latest "
                f"call ({_times(rejection)}): its clock went back",
                "clock",
                "set the clock of that host right (timedatectl); until it is past the old time again, "
                "restarting the relay here makes it forget that time",
            )
        if rejection.reason == "bad_response" and own:
            return Stage(
                "peer",
                False,
                f"what {who(peer)} answers is not authentic ({_times(rejection)}): pre-shared keys differ",
                "wrong_key",
                "run culvert.vpn.site for both hosts; where the keys are set by hand, give both the same "
                "pre-shared key for each other",
            )
        if rejection.reason in ("expired", "quota") and own:
            return _barred(rejection, peer)
        if rejection.reason == "unknown_peer" and _may_be(facts, rejection, peer):
            return _stranger(rejection, f"no session with {who(peer)}")
        if rejection.reason == "mac1" and _may_be(facts, rejection, peer):
            key = facts.relay.public_key if facts.relay else None
            return Stage(
                "peer",
                False,
                f"{rejection.endpoint} sends handshakes that are made for another key than this relay's "
                f"({_times(rejection)}): it has a wrong public key for this host",
                "wrong_key",
                f"there, the public key of this peer has to be {key}",
            )
    return None


def _barred(rejection: Rejection, peer: Peer) -> Stage:
    limit = "time" if rejection.reason == "expired" else "quota"
    return Stage(
        "peer",
        False,
        f"{who(peer)} is refused: its {limit} is up ({_times(rejection)})",
        "barred",
        f"give it {'a later date' if limit == 'time' else 'a higher quota'}, if it is to be let in "
        "(expires_at and quota of external_peers)",
    )


def _stranger(rejection: Rejection, text: str) -> Stage:
    return Stage(
        "peer",
        False,
        f"{text}; and {rejection.endpoint} calls with the public key {rejection.public_key}, which no "
        f"peer here has ({_times(rejection)})",
        "wrong_key",
        "if that is the peer, give it that public key here, or have it use the key pair that is known here",
    )


def _said(facts: Facts, reason: str) -> list[Rejection]:
    return [rejection for rejection in facts.rejections or () if rejection.reason == reason]


def _is_newer(facts: Facts, rejection: Rejection, peer: Peer) -> bool:
    """Whether it is of after the latest handshake. That succeeded, so what was before it does not matter."""
    age_s = peer.handshake_age_s(facts.now_s)
    if age_s == rejection.age_s:
        # Both in whole seconds: which came first is told by whether there is an answer now.
        return not facts.answered
    return age_s is None or rejection.age_s < age_s


def _may_be(facts: Facts, rejection: Rejection, peer: Peer) -> bool:
    """Whether somebody whose name is not known may be this peer: it is where the peer was, which is silent
    now, or the peer has not been anywhere.
    """
    if not peer.endpoint or not rejection.endpoint:
        return not has_session(facts, peer)
    if has_session(facts, peer) and (facts.answered is not False or facts.heard):
        return False
    return split_endpoint(peer.endpoint)[0] == split_endpoint(rejection.endpoint)[0]


def who(peer: Peer, short: bool = False) -> str:
    where = "" if short or not peer.endpoint else f" at {peer.endpoint}"
    return f"the peer {_key(peer.public_key)}{where}"


def _key(public_key: str) -> str:
    return f"{public_key[:8]}..." if public_key else "of unknown key"


def _times(rejection: Rejection) -> str:
    often = "once" if rejection.count == 1 else f"{rejection.count} times"
    return f"{often}, {rejection.age_s} s ago"
