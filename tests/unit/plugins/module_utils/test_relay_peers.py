# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay's file and the plan from the peers it has to those it should have; no host, no relay."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.culvert.vpn.plugins.module_utils import _x25519
from ansible_collections.culvert.vpn.plugins.module_utils._core import Change, SpecError, diff_of
from ansible_collections.culvert.vpn.plugins.module_utils._relay_file import (
    BATCHES,
    OFFLOADS,
    FileConfig,
    FilePeer,
    name_of,
    offloads_of,
    parse,
    render,
)
from ansible_collections.culvert.vpn.plugins.module_utils._relay_limits import PERIODS, Limits
from ansible_collections.culvert.vpn.plugins.module_utils._relay_peers import Observed, laid_open, plan
from ansible_collections.culvert.vpn.plugins.module_utils._relay_peers_spec import PeersSpec
from ansible_collections.culvert.vpn.plugins.module_utils._relay_ways import literal_address, split_endpoint
from ansible_collections.culvert.vpn.plugins.module_utils._uapi import Peer, Relay
from hypothesis import given
from hypothesis import strategies as st

SECRET = _x25519.SecretKey(b"\x40" * 32)
OTHER_SECRET = _x25519.SecretKey(b"\x48" * 32)
OWN = SECRET.public_key()
KEYS = [base64.b64encode(bytes([number]) * 32).decode() for number in range(1, 9)]
A, B, C, D = KEYS[:4]
PSK = {
    "/etc/culvert/a.psk": _x25519.SecretKey(b"\x01" * 32),
    "/etc/culvert/b.psk": _x25519.SecretKey(b"\x02" * 32),
}

WRITTEN = f"""\
# Managed by culvert.vpn: changes made here are lost at the next run.
[Interface]
PrivateKeyFile = /etc/culvert/culvert0.key
ListenPort = 51820
FwMark = 51820

[Peer]
# gate.example.net
PublicKey = {A}
PresharedKeyFile = /etc/culvert/a.psk
AllowedIPs = 10.86.0.0/16, fd86::/64
Endpoint = gate.example.net:51820
PersistentKeepalive = 25

[Peer]
PublicKey = {B}
"""
GATE = FilePeer(
    A, "gate.example.net", ("10.86.0.0/16", "fd86::/64"), "gate.example.net:51820", 25, "/etc/culvert/a.psk"
)


def spec_of(*peers: dict[str, Any], check_mode: bool = False, **params: Any) -> PeersSpec:
    return PeersSpec.from_params({"peers": list(peers), **params}, check_mode)


def wish(public_key: str, *allowed_ips: str, **more: Any) -> dict[str, Any]:
    return {"public_key": public_key, "allowed_ips": list(allowed_ips), **more}


def running(*peers: Peer, public_key: str | None = OWN) -> Relay:
    return Relay(public_key, 51820, 51820, peers)


def settled(spec: PeersSpec, relay: Relay | None = None, **more: Any) -> Observed:
    """A host whose file is the wanted one."""
    text = {"text": render(spec.config), "mode": 0o640}
    identity = relay.public_key if relay is not None else None
    return Observed(
        **{**text, "relay": relay, "key": SECRET, "public_key": OWN, "identity": identity, **more}
    )


def request(steps: list[Change]) -> list[str]:
    """The lines for the relay, pre-shared keys as they print."""
    return [f"{key}={value}" for step in steps if step.action == "set" for key, value in step.data]


def hexed(public_key: str) -> str:
    return base64.b64decode(public_key).hex()


# --- The file -----------------------------------------------------------------------------------------------


def test_the_file_is_as_the_roles_have_always_written_it() -> None:
    config = FileConfig("/etc/culvert/culvert0.key", 51820, 51820, (GATE, FilePeer(B)))
    assert render(config) == WRITTEN
    assert parse(WRITTEN) == config


LINES = st.text(st.characters(codec="utf-8"), max_size=30)
PREFIXES = st.ip_addresses().map(lambda address: f"{address}/{address.max_prefixlen}")
FILE_PEERS = st.builds(
    FilePeer,
    st.binary(min_size=32, max_size=32).map(lambda key: base64.b64encode(key).decode()),
    LINES.map(name_of),
    st.lists(PREFIXES, unique=True, max_size=4).map(tuple),
    st.sampled_from(["", "198.51.100.1:51820", "[2001:db8::1]:51820", "gate.example.net:443"]),
    st.integers(0, 65535),
    st.sampled_from(["", *PSK]),
    st.none() | st.integers(0, 65535),
    limits=st.just(Limits())
    | st.builds(
        Limits,
        st.sampled_from(["", "2027-06-30T22:00:00Z", "1970-01-01T00:00:01Z"]),
        st.just(0) | st.integers(8000, 10**11),
        st.integers(1, 2**63 - 1),
        st.sampled_from(PERIODS),
    ),
)


@given(
    st.integers(0, 65535),
    st.integers(0, 2**32 - 1),
    st.lists(FILE_PEERS, max_size=5, unique_by=lambda peer: peer.public_key),
    st.sampled_from(BATCHES),
    st.sets(st.sampled_from(OFFLOADS)).map(offloads_of),
)
def test_what_is_written_is_what_is_read(
    port: int, fwmark: int, peers: list[FilePeer], batch: str, offloads: tuple[str, ...]
) -> None:
    config = FileConfig("/etc/culvert/culvert0.key", port, fwmark, tuple(peers), batch, offloads)
    assert parse(render(config)) == config


def test_batch_and_offloads_are_written_where_they_are_not_the_default() -> None:
    spec = spec_of(batch="python", disable_offloads=["gro", "tso", "gro"])
    added = "FwMark = 51820\nBatch = python\nDisableOffloads = tso, gro\n"
    assert render(spec.config) == WRITTEN.partition("\n[Peer]")[0].replace("FwMark = 51820\n", added)

    (step,) = plan(spec, settled(spec_of(), running()))
    assert step.action == "write", "the running relay is told neither by its socket"
    assert step.after is not None
    assert step.after["interface"]["Batch"] == "python"
    assert step.after["interface"]["DisableOffloads"] == "tso, gro"
    assert plan(spec, settled(spec, running())) == []
    assert plan(spec_of(batch="auto", disable_offloads=[]), settled(spec_of(), running())) == []


@pytest.mark.parametrize(
    ("line", "batch", "offloads"),
    [
        ("batch=PYTHON", "python", ()),
        ("Batch = quick", "auto", ()),
        ("DisableOffloads = GRO,nonsense , tso", "auto", ("tso", "gro")),
        ("DisableOffloads = none", "auto", ()),
        ("DisableOffloads =", "auto", ()),
    ],
)
def test_batch_and_offloads_written_by_hand(line: str, batch: str, offloads: tuple[str, ...]) -> None:
    config = parse(f"[Interface]\n{line}\n")
    assert (config.batch, config.disable_offloads) == (batch, offloads)


@given(st.lists(LINES | st.sampled_from(WRITTEN.split("\n")), max_size=30))
def test_any_text_can_be_read(lines: list[str]) -> None:
    parse("\n".join(lines))


def test_a_file_edited_by_hand_is_understood() -> None:
    text = f"""
        [interface]
        privatekey = {base64.b64encode(b"@" * 32).decode()}
        LISTENPORT=443 # behind a firewall
        FwMark = 0xca6c
        Address = 10.0.0.1/24
        nonsense
        [Peer]
        # laptop
        # of somebody
        PublicKey = {A}
        AllowedIPs = 10.86.0.7/32
        AllowedIPs = 10.30.0.1/24, nonsense
        PresharedKey = {C}
        PersistentKeepalive = off
        [Peer]
        Endpoint = 198.51.100.1:51820
    """
    config = parse(text)
    assert config.inline_key == SECRET
    assert (config.listen_port, config.fwmark) == (443, 0xCA6C)
    (peer,) = config.peers
    assert (peer.name, peer.allowed_ips) == ("laptop", ("10.86.0.7/32", "10.30.0.0/24", "nonsense"))
    shown = json.dumps(config.shown()) + repr(config)
    assert "not shown" in shown
    assert C not in shown
    assert base64.b64encode(b"@" * 32).decode() not in shown


@pytest.mark.parametrize(
    ("change", "before", "after"),
    [
        (("51820\nFwMark", "443\nFwMark"), {"ListenPort": "443"}, {"ListenPort": "51820"}),
        (("# Managed", "# mine"), "edited by hand", "as culvert.vpn writes it"),
        (("Keepalive = 25", "Keepalive = 9"), {"PersistentKeepalive": "9"}, {"PersistentKeepalive": "25"}),
    ],
    ids=["port", "comment", "keepalive"],
)
def test_drift_of_the_file_is_shown(change: tuple[str, str], before: Any, after: Any) -> None:
    spec = spec_of(
        wish(
            A,
            *GATE.allowed_ips,
            name=GATE.name,
            endpoint=GATE.endpoint,
            persistent_keepalive=25,
            preshared_key_file=GATE.preshared_key_file,
        ),
        wish(B),
    )
    assert render(spec.config) == WRITTEN
    (step,) = plan(spec, settled(spec, text=WRITTEN.replace(*change)))
    assert (step.item, step.action, step.data) == ("file /etc/culvert/culvert0.conf", "write", WRITTEN)
    (item,) = step.before
    for found, expected in ((step.before[item], before), (step.after[item], after)):
        assert found == expected if isinstance(expected, str) else expected.items() <= found.items()


def test_the_files_protection_is_kept() -> None:
    spec = spec_of(group="51820")
    (step,) = plan(spec, settled(spec, mode=0o644))
    assert step.before == {"protection": {"mode": "0644", "owner": 0, "group": 0}}
    assert step.after == {"protection": {"mode": "0640", "owner": 0, "group": 51820}}
    assert plan(spec, settled(spec, group=51820, owner=7)) == []


# --- The relay ----------------------------------------------------------------------------------------------

NEIGHBOUR = Peer(B, "198.51.100.9:1234", ("10.86.0.2/32",), 1, 2, 3)
NEIGHBOUR_WISH = wish(B, "10.86.0.2/32")

DIFFERENCES: dict[str, tuple[list[Peer], list[dict[str, Any]], list[str]]] = {
    "same": ([Peer(A, None, ("10.86.0.1/32",))], [wish(A, "10.86.0.1/32")], []),
    "order-of-prefixes": (
        [Peer(A, None, ("10.86.0.1/32", "fd86::/64"))],
        [wish(A, "fd86:0::/64", "10.86.0.1/32")],
        [],
    ),
    "new": (
        [],
        [wish(A, "10.86.0.1/32", "fd86::1/128", persistent_keepalive=25, endpoint="[2001:db8::1]:51820")],
        [
            f"public_key={hexed(A)}",
            "endpoint=[2001:db8::1]:51820",
            "persistent_keepalive_interval=25",
            "replace_allowed_ips=true",
            "allowed_ip=10.86.0.1/32",
            "allowed_ip=fd86::1/128",
        ],
    ),
    "gone": ([Peer(A)], [], [f"public_key={hexed(A)}", "remove=true"]),
    "prefixes": (
        [Peer(A, None, ("10.86.0.1/32",))],
        [wish(A, "10.86.0.3/32")],
        [f"public_key={hexed(A)}", "update_only=true", "replace_allowed_ips=true", "allowed_ip=10.86.0.3/32"],
    ),
    "no-prefixes": (
        [Peer(A, None, ("10.86.0.1/32",))],
        [wish(A)],
        [f"public_key={hexed(A)}", "update_only=true", "replace_allowed_ips=true"],
    ),
    "keepalive": (
        [Peer(A, persistent_keepalive_s=25)],
        [wish(A)],
        [f"public_key={hexed(A)}", "update_only=true", "persistent_keepalive_interval=0"],
    ),
    "preshared-key": (
        [Peer(A)],
        [wish(A, preshared_key_file="/etc/culvert/a.psk")],
        [f"public_key={hexed(A)}", "update_only=true", "preshared_key=SecretKey(not shown)"],
    ),
    "another-preshared-key": (
        [Peer(A, preshared_key=PSK["/etc/culvert/b.psk"])],
        [wish(A, preshared_key_file="/etc/culvert/a.psk")],
        [f"public_key={hexed(A)}", "update_only=true", "preshared_key=SecretKey(not shown)"],
    ),
    "same-preshared-key": (
        [Peer(A, preshared_key=PSK["/etc/culvert/a.psk"])],
        [wish(A, preshared_key_file="/etc/culvert/a.psk")],
        [],
    ),
    "no-preshared-key": (
        [Peer(A, preshared_key=PSK["/etc/culvert/a.psk"])],
        [wish(A)],
        [f"public_key={hexed(A)}", "update_only=true", "preshared_key=SecretKey(not shown)"],
    ),
    "moved-prefix": (
        [Peer(A, None, ("10.86.0.1/32", "10.30.0.0/24")), Peer(C, None, ("10.86.0.3/32",))],
        [wish(A, "10.86.0.1/32"), wish(C, "10.86.0.3/32", "10.30.0.0/24")],
        [
            f"public_key={hexed(A)}",
            "update_only=true",
            "replace_allowed_ips=true",
            "allowed_ip=10.86.0.1/32",
            f"public_key={hexed(C)}",
            "update_only=true",
            "replace_allowed_ips=true",
            "allowed_ip=10.86.0.3/32",
            "allowed_ip=10.30.0.0/24",
        ],
    ),
}


@pytest.mark.parametrize(("has", "wants", "lines"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_the_relay_is_told_the_difference_alone(
    has: list[Peer], wants: list[dict[str, Any]], lines: list[str]
) -> None:
    spec = spec_of(*wants, NEIGHBOUR_WISH)
    addresses = {"[2001:db8::1]:51820": "[2001:db8::1]:51820"}
    steps = plan(spec, settled(spec, running(NEIGHBOUR, *has), preshared=PSK, addresses=addresses))
    assert request(steps) == lines
    assert [step.action for step in steps] == (["set"] if lines else [])
    shown = json.dumps(diff_of(steps))
    assert B not in shown, "who stays as he is is not mentioned"
    assert ("relay culvert0" in shown) == bool(lines)


def test_who_loses_a_pre_shared_key_is_named() -> None:
    had = [wish(key, preshared_key_file="/etc/culvert/a.psk") for key in (A, B, C)]
    before = settled(spec_of(*had, wish(D)), preshared=PSK)
    # One goes, one gets another key, one never had any.
    after = spec_of(wish(A, name="gate"), wish(B), wish(C, preshared_key_file="/etc/culvert/b.psk"), wish(D))
    assert laid_open(after, before) == ["gate", B]
    assert laid_open(after, settled(after)) == []


def test_the_diff_of_a_peer_says_what_a_person_wants_to_know() -> None:
    psk = {"preshared_key_file": "/etc/culvert/a.psk"}
    spec = spec_of(wish(A, "10.86.0.1/32", name="laptop", persistent_keepalive=25, **psk))
    relay = running(Peer(A, "198.51.100.9:7", ("10.86.0.9/32",), preshared_key=PSK["/etc/culvert/b.psk"]))
    (step,) = plan(spec, settled(spec, relay, preshared=PSK))
    before = {
        "name": "laptop",
        "AllowedIPs": "10.86.0.9/32",
        "Endpoint": "198.51.100.9:7",
        "PersistentKeepalive": 0,
        "PresharedKey": "yes",
    }
    after = {**before, "AllowedIPs": "10.86.0.1/32", "PersistentKeepalive": 25, "PresharedKey": "another"}
    assert step.before == {f"peer {A}": before}
    assert step.after == {f"peer {A}": after}


ENDPOINTS = {
    "roamed": ("198.51.100.1:51820", "203.0.113.9:4444", "198.51.100.1:51820", None),
    "configured-anew": ("198.51.100.2:51820", "203.0.113.9:4444", "198.51.100.1:51820", "198.51.100.2:51820"),
    "there-already": ("198.51.100.2:51820", "198.51.100.2:51820", "198.51.100.1:51820", None),
    "configured-first": ("gate.example.net:443", None, "", "198.51.100.7:443"),
    "unknown-name": ("nowhere.example.net:443", None, "", None),
    "lost": ("198.51.100.1:51820", None, "198.51.100.1:51820", "198.51.100.1:51820"),
    "name-left-to-the-relay": ("gate.example.net:443", None, "gate.example.net:443", None),
    "no-longer-configured": ("", "203.0.113.9:4444", "198.51.100.1:51820", None),
}


@pytest.mark.parametrize(("wanted", "live", "in_file", "sent"), ENDPOINTS.values(), ids=ENDPOINTS)
def test_an_endpoint_is_sent_when_the_configured_one_changes(
    wanted: str, live: str | None, in_file: str, sent: str | None
) -> None:
    spec = spec_of(wish(A, endpoint=wanted))
    before = replace(spec.config, peers=(FilePeer(A, endpoint=in_file),))
    addresses = {
        wanted: literal_address(wanted),
        "gate.example.net:443": "198.51.100.7:443",
        "nowhere.example.net:443": None,
    }
    observed = settled(spec, running(Peer(A, live)), text=render(before), addresses=addresses)
    lines = request(plan(spec, observed))
    assert lines == ([f"public_key={hexed(A)}", "update_only=true", f"endpoint={sent}"] if sent else [])


def test_port_and_mark_are_changed_in_the_running_relay() -> None:
    spec = spec_of(listen_port=443, fwmark=0)
    (step,) = plan(spec, settled(spec, running()))
    assert request([step]) == ["listen_port=443", "fwmark=0"]
    assert step.before == {"interface": {"ListenPort": 51820, "FwMark": 51820}}
    any_port = spec_of(listen_port=0)
    assert plan(any_port, settled(any_port, running())) == []


def test_without_a_relay_the_file_alone_is_written() -> None:
    spec = spec_of(wish(A, "10.86.0.1/32"))
    (step,) = plan(spec, Observed(key=SECRET, public_key=OWN))
    assert (step.action, step.before, step.data) == ("write", None, render(spec.config))
    assert step.after is not None
    assert set(step.after) == {"interface", f"peer {A}", "protection"}


def test_the_relay_comes_before_the_file() -> None:
    """The other way round, an interrupted run would hide that an endpoint was not sent."""
    spec = spec_of(wish(A, "10.86.0.1/32"))
    steps = plan(spec, Observed(relay=running(), key=SECRET, public_key=OWN, identity=OWN))
    assert [step.action for step in steps] == ["set", "write"]


def test_check_mode_takes_keys_that_are_not_made_yet() -> None:
    wishes = [wish("", "10.86.0.1/32", name="one"), wish("", "10.86.0.2/32", name="two")]
    with pytest.raises(SpecError, match=r"^peers\[0\].public_key: is required"):
        spec_of(*wishes)
    spec = spec_of(*wishes, check_mode=True)
    (step,) = plan(spec, Observed())
    assert step.after is not None
    assert step.after["peer one (its key is not made yet)"] == {"name": "one", "AllowedIPs": "10.86.0.1/32"}
    assert step.after["interface"]["PrivateKeyFile"] == "/etc/culvert/culvert0.key"
    relay, _file = plan(spec, Observed(relay=running(), key=SECRET, public_key=OWN, identity=OWN))
    assert len(relay.after) == 2


# --- Refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file_peers", "relay_peers", "wanted", "refused"),
    [
        (KEYS[:5], KEYS[:5], KEYS[:2], "3 of the 5 peers"),
        (KEYS[:6], KEYS[:6], KEYS[:3], None),
        (KEYS[:2], KEYS[:2], [], None),
        (KEYS[:3], KEYS[:3], [], "3 of the 3 peers"),
        (KEYS[:3], [], [], "3 of the 3 peers"),
        ([], KEYS[:4], KEYS[4:], "4 of the 4 peers"),
        ([], [], KEYS, None),
    ],
)
def test_most_peers_do_not_vanish_by_accident(
    file_peers: list[str], relay_peers: list[str], wanted: list[str], refused: str | None
) -> None:
    def attempt(**params: Any) -> list[Change]:
        spec = spec_of(*(wish(key) for key in wanted), **params)
        file = replace(spec.config, peers=tuple(FilePeer(key) for key in file_peers))
        relay = running(*(Peer(key) for key in relay_peers))
        return plan(spec, settled(spec, relay, text=render(file)))

    if refused is None:
        assert attempt() == attempt(allow_removal=True)
        return
    with pytest.raises(SpecError, match=f"^allow_removal: {refused}.*relay_allow_peer_removal.*Nothing was"):
        attempt()
    assert attempt(allow_removal=True)


def test_the_identity_does_not_change_by_accident() -> None:
    spec, former = spec_of(), OTHER_SECRET.public_key()
    observed = settled(spec, running(public_key=former))
    with pytest.raises(SpecError, match=r"^allow_identity_change: .*relay_allow_identity_change") as caught:
        plan(spec, observed)
    assert former in caught.value.message
    assert OWN in caught.value.message
    with pytest.raises(SpecError, match="does not exist"):
        plan(spec, replace(observed, key=None, public_key=None))
    with pytest.raises(SpecError, match="known to its peers as"):
        plan(spec, settled(spec, None, identity=former))

    (step,) = plan(replace(spec, allow_identity_change=True), observed)
    assert request([step]) == ["private_key=SecretKey(not shown)"]
    assert step.before == {"interface": {"public key": former}}
    assert step.after == {"interface": {"public key": OWN}}
    (first,) = plan(spec, settled(spec, running(public_key=None)))
    assert request([first]) == ["private_key=SecretKey(not shown)"], "a relay without a key may get one"


REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"peers": [wish(A), wish("short")]}, "peers[1].public_key", "is not a WireGuard key"),
    ({"peers": [wish(A), wish(A)]}, "peers[1].public_key", "is that of peers[0] too"),
    ({"peers": [wish(A, "10.86.0.300/32")]}, "peers[0].allowed_ips", "10.86.0.300"),
    ({"peers": [wish(A, "10.86.0.1/24")]}, "peers[0].allowed_ips", "host bits"),
    ({"peers": [wish(A, "10.86.0.0/24"), wish(B, "10.86.0.0/24")]}, "peers[1].allowed_ips", "peers[0]"),
    ({"peers": [wish(A, endpoint="gate")]}, "peers[0].endpoint", "is not host:port"),
    ({"peers": [wish(A, endpoint="gate:0")]}, "peers[0].endpoint", "port"),
    ({"peers": [wish(A, endpoint="2001:db8::1:51820")]}, "peers[0].endpoint", "brackets"),
    ({"peers": [wish(A, endpoint="[gate]:51820")]}, "peers[0].endpoint", "brackets"),
    ({"peers": [wish(A, endpoint="10.1.2:51820")]}, "peers[0].endpoint", "neither an address"),
    ({"peers": [wish(A, endpoint="gate\nPublicKey:1")]}, "peers[0].endpoint", "neither an address"),
    ({"peers": [wish(A, persistent_keepalive=70000)]}, "peers[0].persistent_keepalive", "70000"),
    ({"peers": [wish(A, preshared_key_file="a.psk")]}, "peers[0].preshared_key_file", "absolute"),
    ({"peers": [wish(A, preshared_key_file="/a\n[Peer]")]}, "peers[0].preshared_key_file", "white space"),
    ({"peers": [{**wish(A), "psk": "x"}]}, "peers[0].psk", "not an option"),
    ({"private_key_file": "/etc/#1"}, "private_key_file", "'#'"),
    ({"config_path": "culvert0.conf"}, "config_path", "absolute"),
    ({"listen_port": 65536}, "listen_port", "65536"),
    ({"batch": "quick"}, "batch", "auto, compiled, python"),
    ({"disable_offloads": ["tso", "lro"]}, "disable_offloads", "'lro' is not one of tso, uso, gso, gro"),
    ({"name": "sixteen-bytes-xx"}, "name", "sixteen-bytes-xx"),
]


@pytest.mark.parametrize(("params", "option", "words"), REFUSALS)
def test_refusals_name_the_option(params: dict[str, Any], option: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        PeersSpec.from_params(params)
    assert caught.value.option == option
    assert words in caught.value.message


def test_a_relay_is_not_its_own_peer() -> None:
    spec = spec_of(wish(A), wish(OWN))
    with pytest.raises(SpecError, match=r"^peers\[1\]\.public_key: is the relay's own"):
        plan(spec, settled(spec))


@pytest.mark.parametrize(
    ("text", "host", "literal"),
    [
        ("198.51.100.1:51820", "198.51.100.1", "198.51.100.1:51820"),
        ("[2001:DB8:0::1]:51820", "2001:DB8:0::1", "[2001:db8::1]:51820"),
        ("[fe80::1%eth0]:51820", "fe80::1%eth0", "[fe80::1%eth0]:51820"),
        ("gate.example.net:51820", "gate.example.net", None),
    ],
)
def test_endpoints(text: str, host: str, literal: str | None) -> None:
    assert split_endpoint(text) == (host, 51820)
    assert literal_address(text) == literal


# --- All of it together -------------------------------------------------------------------------------------


def told(relay: Relay, lines: list[tuple[str, Any]]) -> Relay:
    """What a relay is after a request, as the API's page describes it."""
    peers = {peer.public_key: peer for peer in relay.peers}
    key = ""
    for name, value in lines:
        if name == "public_key":
            key = base64.b64encode(bytes.fromhex(value)).decode()
            peers.setdefault(key, Peer(key))
        elif name == "remove":
            del peers[key]
        elif name == "replace_allowed_ips":
            peers[key] = replace(peers[key], allowed_ips=())
        elif name == "allowed_ip":
            for other, peer in peers.items():
                rest = tuple(prefix for prefix in peer.allowed_ips if prefix != value)
                peers[other] = replace(peer, allowed_ips=(*rest, value) if other == key else rest)
        elif name == "persistent_keepalive_interval":
            peers[key] = replace(peers[key], persistent_keepalive_s=int(value))
        elif name == "endpoint":
            peers[key] = replace(peers[key], endpoint=value)
        elif name == "preshared_key":
            peers[key] = replace(peers[key], preshared_key=value or None)
        else:
            assert name == "update_only"
    return replace(relay, peers=tuple(peers.values()))


@st.composite
def wishes(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Peers among few keys and few prefixes, so that prefixes often move."""
    owners = draw(
        st.dictionaries(st.sampled_from([f"10.86.0.{n}/32" for n in range(6)]), st.sampled_from(KEYS))
    )
    keys = draw(st.lists(st.sampled_from(KEYS), unique=True))
    return [
        wish(
            key,
            *(prefix for prefix, owner in owners.items() if owner == key),
            endpoint=draw(st.sampled_from([None, "198.51.100.1:1", "198.51.100.2:2"])),
            persistent_keepalive=draw(st.sampled_from([0, 25])),
            preshared_key_file=draw(st.sampled_from([None, *PSK])),
        )
        for key in keys
    ]


@given(wishes(), wishes())
def test_one_run_is_enough_and_touches_nobody_else(
    before: list[dict[str, Any]], after: list[dict[str, Any]]
) -> None:
    addresses = {f"198.51.100.{n}:{n}": f"198.51.100.{n}:{n}" for n in (1, 2)}
    relay = running()
    text: str | None = None
    for wanted in (before, after):
        spec = spec_of(*wanted, allow_removal=True)
        same = Observed(text, 0o640, 0, 0, relay, SECRET, OWN, OWN, PSK, addresses)
        steps = plan(spec, same)
        lines = [line for step in steps if step.action == "set" for line in step.data]
        was, relay = relay, told(relay, lines)
        text = render(spec.config)
        assert {peer.public_key: set(peer.allowed_ips) for peer in relay.peers} == {
            entry["public_key"]: set(entry["allowed_ips"]) for entry in wanted
        }
        changed = {peer.public_key for peer in set(was.peers) ^ set(relay.peers)}
        named = {
            base64.b64encode(bytes.fromhex(value)).decode() for key, value in lines if key == "public_key"
        }
        assert named == changed
        assert plan(spec, replace(same, text=text, relay=relay)) == []
