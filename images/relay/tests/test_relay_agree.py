# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Agreeing on pre-shared keys: a fixed vector, what may not pass, and the command with its files."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

import culvert
from culvert.agree import (
    KEM_CIPHERTEXT_BYTES,
    KEM_PUBLIC_BYTES,
    Agreement,
    Wish,
    agree,
    derive,
    parse_request,
    serve,
)
from culvert.errors import BadPacket, CulvertError
from culvert.keys import Identity, encode_base64

VECTOR = json.loads((Path(__file__).parent / "agreement.json").read_text())
ONE, TWO = Identity(bytes(range(100, 132))), Identity(bytes(range(32)))
KEM = MLKEM768PrivateKey.from_seed_bytes(bytes(range(64)))
KEM_PUBLIC = KEM.public_key().public_bytes_raw()
# Points of low order (RFC 7748 section 6.1): nothing, one, and one of order eight.
LOW = [
    bytes(32),
    b"\1" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
]


def agreement() -> Agreement:
    return parse_request(json.dumps({"v": 1, "derive": [VECTOR["agreement"]]}).encode()).derive[0]


def hkdf(ikm: bytes, info: bytes) -> bytes:
    """RFC 5869 with a salt of zeros, one block: written down once more, independently."""
    return hmac.digest(hmac.digest(bytes(32), ikm, "sha256"), info + b"\1", "sha256")


def x25519(private: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def test_the_fixed_vector() -> None:
    made = agreement()
    info = b"culvert.vpn pre-shared key v1" + ONE.public + TWO.public
    info += hashlib.sha256(KEM_PUBLIC).digest() + hashlib.sha256(made.ciphertext).digest() + made.ephemeral
    assert VECTOR["agreement"]["id"] == hashlib.sha256(info).hexdigest()[:32] == made.id
    ikm = bytes.fromhex(VECTOR["kem_secret"])
    assert ikm == KEM.decapsulate(made.ciphertext)
    ikm += x25519(bytes(range(32)), made.ephemeral) + x25519(bytes(range(100, 132)), TWO.public)
    assert hkdf(ikm, info).hex() == VECTOR["preshared_key"]
    assert derive(TWO, KEM, made).hex() == VECTOR["preshared_key"]


def test_both_sides_have_the_same_key_and_no_two_agreements_do() -> None:
    keys = set()
    for _turn in range(3):
        made, key = agree(ONE, Wish(ONE.public, TWO.public, KEM_PUBLIC))
        assert derive(TWO, KEM, made) == key
        keys |= {key, bytes.fromhex(made.id)}
    assert len(keys) == 6


def changed(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("part", ["sender", "receiver", "kem", "ephemeral", "ciphertext"])
def test_every_byte_counts(part: str) -> None:
    made = agreement()
    values = {name: getattr(made, name) for name in Agreement.__dataclass_fields__}
    seen = {derive(TWO, KEM, made)}
    for place in range(0, len(values[part]), 1 if len(values[part]) < 100 else 64):
        other = Agreement(**{**values, part: changed(values[part], place)})
        assert other.id != made.id
        try:
            key = derive(TWO, KEM, other)
        except BadPacket:
            assert part in ("receiver", "kem")
            continue
        assert key not in seen
        seen.add(key)


def test_another_identity_or_kem_key_of_the_receiver_is_told_from_its_own() -> None:
    with pytest.raises(BadPacket):
        derive(Identity(bytes(32)), KEM, agreement())
    with pytest.raises(BadPacket):
        derive(TWO, MLKEM768PrivateKey.generate(), agreement())


@pytest.mark.parametrize("low", LOW)
def test_points_of_low_order_are_refused(low: bytes) -> None:
    made = agreement()
    for sender, ephemeral in ((low, made.ephemeral), (made.sender, low)):
        with pytest.raises(BadPacket):
            derive(TWO, KEM, Agreement(sender, made.receiver, made.kem, ephemeral, made.ciphertext))
    with pytest.raises(BadPacket):
        agree(ONE, Wish(ONE.public, low, KEM_PUBLIC))


def test_a_kem_key_with_coefficients_out_of_range_is_refused() -> None:
    # FIPS 203 section 7.2, the modulus check: all coefficients are 0xfff, greater than q = 3329.
    for public in (b"\xff" * KEM_PUBLIC_BYTES, KEM_PUBLIC[:-33] + b"\xff" + KEM_PUBLIC[-32:]):
        with pytest.raises(BadPacket):
            agree(ONE, Wish(ONE.public, TWO.public, public))


WHOLE = VECTOR["agreement"]


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"v": 2},
        {"v": True},
        {"v": 1.0},
        {"v": 1, "make": ["../kem"]},
        {"v": 1, "make": [["current"]]},
        {"v": 1, "other": 1},
        {"v": 1, "derive": [{**WHOLE, "more": "x"}]},
        {"v": 1, "derive": [{name: WHOLE[name] for name in WHOLE if name != "ct"}]},
        {"v": 1, "derive": [{**WHOLE, "id": "0" * 32}]},
        {"v": 1, "derive": [{**WHOLE, "id": "../../etc/passwd"}]},
        {"v": 1, "derive": [{**WHOLE, "kem": WHOLE["kem"].upper()}]},
        {"v": 1, "derive": [{**WHOLE, "eph": WHOLE["eph"][:-1]}]},
        {"v": 1, "derive": [{**WHOLE, "ct": encode_base64(bytes(KEM_CIPHERTEXT_BYTES - 1))}]},
        {"v": 1, "derive": [{**WHOLE, "from": 5}]},
        {"v": 1, "agree": [{"from": WHOLE["from"], "public_key": WHOLE["to"], "kem": "AAAA"}]},
        {"v": 1, "agree": ["x"]},
        {"v": 1, "agree": 5},
        [],
    ],
)
def test_what_is_no_request_is_refused_in_the_same_words(request_: Any) -> None:
    with pytest.raises(CulvertError, match=r"^agree: standard input is no request of version 1$"):
        parse_request(json.dumps(request_).encode())


# --- The command --------------------------------------------------------------------------------------------


class Place:
    """A host's files: its private key and its folder of pre-shared keys."""

    def __init__(self, path: Path, private_key: bytes) -> None:
        self.key, self.folder = path / "culvert0.key", path / "culvert0.psk"
        self.folder.mkdir(parents=True)
        self.key.write_text(encode_base64(private_key) + "\n")

    def ask(self, **wish: Any) -> dict[str, Any]:
        request = io.BytesIO(json.dumps({"v": 1, **wish}).encode())
        return serve(request, [str(self.key)], str(self.folder))

    def files(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.folder.iterdir()}


@pytest.fixture
def one(tmp_path: Path) -> Place:
    return Place(tmp_path / "one", bytes(range(100, 132)))


@pytest.fixture
def two(tmp_path: Path) -> Place:
    return Place(tmp_path / "two", bytes(range(32)))


def wish_of(kem: str) -> list[dict[str, str]]:
    return [{"from": encode_base64(ONE.public), "public_key": encode_base64(TWO.public), "kem": kem}]


def test_two_hosts_agree(one: Place, two: Place) -> None:
    public = two.ask(make=["current"])["kem"]["current"]
    assert two.ask(make=["current"])["kem"] == {"current": public}
    [made] = one.ask(agree=wish_of(public))["agreements"]
    assert two.ask(derive=[made])["derived"] == [made["id"]]
    assert two.ask(derive=[made])["derived"] == []
    mine, others = one.files(), two.files()
    assert list(mine) == [made["id"]]
    assert set(others) == {made["id"], "kem", "kem.pub"}
    assert mine[made["id"]] == others[made["id"]]
    assert others["kem.pub"] == public + "\n"
    modes = {path.name: path.stat().st_mode & 0o777 for path in two.folder.iterdir()}
    assert modes == {made["id"]: 0o400, "kem": 0o400, "kem.pub": 0o444}


def test_a_new_kem_key_stands_beside_the_old_one_and_both_are_derived_with(one: Place, two: Place) -> None:
    kems = two.ask(make=["current", "next"])["kem"]
    assert kems["current"] != kems["next"]
    made = one.ask(agree=wish_of(kems["current"]) + wish_of(kems["next"]))["agreements"]
    assert two.ask(derive=made)["derived"] == [item["id"] for item in made]
    assert all(two.files()[item["id"]] == one.files()[item["id"]] for item in made)


def test_nonsense_gets_a_key_that_nobody_has_and_stops_no_one(one: Place, two: Place) -> None:
    public = two.ask(make=["current"])["kem"]["current"]
    [good] = one.ask(agree=wish_of(public))["agreements"]
    values = parse_request(json.dumps({"v": 1, "derive": [good]}).encode()).derive[0]
    bad = Agreement(
        values.sender, values.receiver, values.kem, bytes(32), bytes(KEM_CIPHERTEXT_BYTES)
    ).as_dict()
    answer = two.ask(derive=[bad, good])
    assert (answer["refused"], answer["derived"]) == ([bad["id"]], [good["id"]])
    assert len(set(two.files().values())) == 4


def test_keys_that_are_not_here_and_keys_that_are_none_are_told_and_stop_no_one(
    one: Place, two: Place
) -> None:
    public = two.ask(make=["current"])["kem"]["current"]
    [good] = one.ask(agree=wish_of(public))["agreements"]
    answer = two.ask(derive=[VECTOR["agreement"], good])
    assert (answer["missing"], answer["derived"]) == ([WHOLE["id"]], [good["id"]])
    assert two.ask(agree=wish_of(encode_base64(KEM_PUBLIC)))["unable"] == [WHOLE["to"]]
    assert set(two.files()) == {"kem", "kem.pub", good["id"]}
    answer = one.ask(agree=wish_of(encode_base64(b"\xff" * KEM_PUBLIC_BYTES)) + wish_of(public))
    assert answer["unable"] == [WHOLE["to"]]
    assert len(answer["agreements"]) == 1


def test_what_was_left_half_done_is_cleared_and_a_lost_public_half_comes_back(two: Place) -> None:
    public = two.ask(make=["current"])["kem"]["current"]
    (two.folder / "kem.pub").unlink()
    (two.folder / ".new-1234").write_text("half")
    assert two.ask()["kem"]["current"] == public
    (two.folder / "kem.pub").unlink()
    (two.folder / "kem.pub").write_text("another\n")
    assert two.ask()["kem"]["current"] == public
    assert two.files()["kem.pub"] == public + "\n"
    assert set(two.files()) == {"kem", "kem.pub"}


def test_a_damaged_file_is_named_and_not_shown(two: Place) -> None:
    (two.folder / "kem").write_text("c2VjcmV0\n")
    with pytest.raises(CulvertError, match="holds no seed") as caught:
        two.ask()
    assert "c2VjcmV0" not in str(caught.value)
    (two.folder / "kem").unlink()
    two.key.write_text("c2VjcmV0\n")
    with pytest.raises(CulvertError, match="does not hold one key") as caught:
        two.ask()
    assert "c2VjcmV0" not in str(caught.value)
    two.key.unlink()
    two.key.symlink_to("/etc/hostname")
    with pytest.raises(CulvertError, match="cannot read"):
        two.ask()


def test_the_process_says_nothing_secret(one: Place, two: Place) -> None:
    def command(place: Place, request: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        words = ["agree", "--identity", str(place.key), "--secrets", str(place.folder)]
        return subprocess.run(
            [sys.executable, "-m", "culvert", *words],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(culvert.__file__).parents[1])},
        )

    server = command(two, {"v": 1, "make": ["current"]})
    client = command(one, {"v": 1, "agree": wish_of(json.loads(server.stdout)["kem"]["current"])})
    again = command(two, {"v": 1, "derive": json.loads(client.stdout)["agreements"]})
    wrong = command(two, {"v": 1, "derive": [{**VECTOR["agreement"], "ct": "x"}]})
    assert (again.returncode, wrong.returncode) == (0, 1)
    said = "".join(done.stdout + done.stderr for done in (server, client, again, wrong))
    secrets = [*one.files().values(), two.files()["kem"], two.key.read_text(), one.key.read_text()]
    assert len(secrets) == 4
    for secret in secrets:
        raw = base64.b64decode(secret)
        assert secret.strip() not in said
        assert raw.hex() not in said
