# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Known answers for every primitive, and the handshake transcribed once more from the paper."""

from __future__ import annotations

import random

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from culvert import noise
from culvert.errors import BadPacket
from culvert.keys import (
    Identity,
    clamp,
    decode_base64,
    decode_hex,
    diffie_hellman,
    encode_base64,
    generate_private,
)
from culvert.tai64n import Tai64nClock, encode
from culvert.xchacha import hchacha20, open_, seal

SUNSCREEN = (
    b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
    b"sunscreen would be it."
)
ASSOCIATED = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
KEY_80 = bytes(range(0x80, 0xA0))

# RFC 7748 section 6.1; points of low order from https://cr.yp.to/ecdh.html#validate
LOW_ORDER = (
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
)


def test_blake2s_of_abc() -> None:
    """RFC 7693 appendix B."""
    expected = "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"
    assert noise.hash_(b"a", b"bc").hex() == expected


@pytest.mark.parametrize("count", [1, 2, 3])
def test_kdf_is_hkdf_of_another_implementation(count: int) -> None:
    key, material = bytes(range(32)), b"material of any length"
    other = HKDF(algorithm=hashes.BLAKE2s(32), length=32 * count, salt=key, info=b"").derive(material)
    assert b"".join(noise.kdf(count, key, material)) == other


def test_x25519_of_rfc_7748_section_5_2() -> None:
    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    expected = "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    assert diffie_hellman(X25519PrivateKey.from_private_bytes(scalar), point).hex() == expected


def test_x25519_of_rfc_7748_section_6_1() -> None:
    bob = Identity(bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    alice = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert bob.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert diffie_hellman(bob.private, alice).hex() == shared


@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda point: point.hex()[:8])
def test_points_of_low_order_are_refused(point: bytes) -> None:
    with pytest.raises(BadPacket):
        diffie_hellman(Identity(generate_private()).private, point)


def test_chacha20poly1305_of_rfc_8439_section_2_8_2() -> None:
    sealed = ChaCha20Poly1305(KEY_80).encrypt(
        bytes.fromhex("070000004041424344454647"), SUNSCREEN, ASSOCIATED
    )
    assert sealed[:16].hex() == "d31a8d34648e60db7b86afbc53ef7ec2"
    assert sealed[-16:].hex() == "1ae10b594f09e26a7e902ecbd0600691"


def test_hchacha20_of_the_draft_section_2_2_1() -> None:
    nonce = bytes.fromhex("000000090000004a0000000031415927")
    expected = "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"
    assert hchacha20(bytes(range(32)), nonce).hex() == expected


def test_xchacha20poly1305_of_the_draft_section_a_3_1() -> None:
    nonce = bytes(range(0x40, 0x58))
    sealed = seal(KEY_80, nonce, SUNSCREEN, ASSOCIATED)
    assert sealed[:16].hex() == "bd6d179d3e83d43b9576579493c0e939"
    assert sealed[-16:].hex() == "c0875924c1c7987947deafd8780acf49"
    assert open_(KEY_80, nonce, sealed, ASSOCIATED) == SUNSCREEN
    with pytest.raises(BadPacket):
        open_(KEY_80, nonce, sealed, b"other")


def test_tai64n_of_a_known_second() -> None:
    """https://cr.yp.to/libtai/tai64.html: 2^62 + 10 is the beginning of 1970 TAI, ten seconds before
    UTC's.
    """
    assert encode(0).hex() == "400000000000000a" + "00000000"
    assert encode(1_000_000_000).hex() == "400000000000000b" + "00000000"


def test_tai64n_rises_when_the_clock_falls() -> None:
    clock = Tai64nClock()
    stamps = [
        clock.stamp(moment) for moment in (5_000_000_000, 5_000_000_001, 4_000_000_000, 0, 9_000_000_000)
    ]
    assert stamps == sorted(set(stamps))
    assert stamps[-1] == encode(9_000_000_000)


def test_tai64n_hides_the_fine_clock() -> None:
    assert encode(1_000_000_000 + (1 << 24) - 1) == encode(1_000_000_000)


# --- The handshake, once more
# --------------------------------------------------------------------------------


class Transcript:
    """Paper section 5.4 written out with nothing of :mod:`culvert.noise` but the names."""

    def __init__(self, responder: bytes) -> None:
        self.c = self.h_of(b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s")
        self.h = self.h_of(self.c + b"WireGuard v1 zx2c4 Jason@zx2c4.com")
        self.mix(responder)

    @staticmethod
    def h_of(data: bytes) -> bytes:
        digest = hashes.Hash(hashes.BLAKE2s(32))
        digest.update(data)
        return digest.finalize()

    def mix(self, data: bytes) -> None:
        self.h = self.h_of(self.h + data)

    def derive(self, count: int, material: bytes) -> list[bytes]:
        out = HKDF(algorithm=hashes.BLAKE2s(32), length=32 * count, salt=self.c, info=b"").derive(material)
        parts = [out[start : start + 32] for start in range(0, len(out), 32)]
        self.c = parts[0]
        return parts

    def aead(self, key: bytes, plaintext: bytes) -> bytes:
        sealed = ChaCha20Poly1305(key).encrypt(bytes(12), plaintext, self.h)
        self.mix(sealed)
        return sealed


def dh(private: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def public_of(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


@pytest.mark.parametrize("preshared", [bytes(32), bytes(range(32))], ids=["no-psk", "psk"])
def test_handshake_is_the_paper_transcribed(preshared: bytes) -> None:
    rng = random.Random(7)
    s_i, s_r, e_i, e_r = (clamp(rng.randbytes(32)) for _ in range(4))
    stamp = encode(1_790_000_000_000_000_000)

    paper = Transcript(public_of(s_r))
    paper.derive(1, public_of(e_i))
    paper.mix(public_of(e_i))
    static = paper.aead(paper.derive(2, dh(e_i, public_of(s_r)))[1], public_of(s_i))
    timestamp = paper.aead(paper.derive(2, dh(s_i, public_of(s_r)))[1], stamp)

    one, two = Identity(s_i), Identity(s_r)
    secret = diffie_hellman(one.private, two.public)
    initiator = noise.InitiatorHandshake(
        one, two.public, secret, stamp, X25519PrivateKey.from_private_bytes(e_i)
    )
    assert initiator.message == (public_of(e_i), static, timestamp)

    paper.derive(1, public_of(e_r))
    paper.mix(public_of(e_r))
    paper.derive(1, dh(e_r, public_of(e_i)))
    paper.derive(1, dh(e_r, public_of(s_i)))
    _, tau, key = paper.derive(3, preshared)
    paper.mix(tau)
    nothing = paper.aead(key, b"")
    first, second = paper.derive(2, b"")

    responder = noise.ResponderHandshake(two, *initiator.message)
    assert responder.remote_static == one.public
    assert responder.read_timestamp(diffie_hellman(two.private, one.public)) == stamp
    answer = responder.create_response(preshared, X25519PrivateKey.from_private_bytes(e_r))
    assert answer[:2] == (public_of(e_r), nothing)
    assert (answer[2].send, answer[2].receive) == (second, first)
    keys = initiator.consume_response(answer[0], answer[1], preshared)
    assert (keys.send, keys.receive) == (first, second)


def test_a_bad_response_leaves_the_handshake_as_it_was() -> None:
    one, two = Identity(generate_private()), Identity(generate_private())
    secret = diffie_hellman(one.private, two.public)
    initiator = noise.InitiatorHandshake(one, two.public, secret, bytes(12))
    responder = noise.ResponderHandshake(two, *initiator.message)
    responder.read_timestamp(secret)
    ephemeral, nothing, keys = responder.create_response(bytes(32))
    with pytest.raises(BadPacket):
        initiator.consume_response(ephemeral, bytes(16), bytes(32))
    with pytest.raises(BadPacket):
        initiator.consume_response(ephemeral, nothing, bytes(range(32)))
    with pytest.raises(BadPacket):
        initiator.consume_response(bytes(32), nothing, bytes(32))
    assert initiator.consume_response(ephemeral, nothing, bytes(32)).send == keys.receive


# --- Keys as text
# --------------------------------------------------------------------------------------------


def test_keys_survive_their_spelling() -> None:
    key = generate_private()
    assert decode_base64(encode_base64(key)) == key
    assert decode_hex(key.hex()) == key
    assert clamp(key) == key


@pytest.mark.parametrize(
    "text",
    ["", "AAAA", "A" * 44, "A" * 43, "A" * 42 + "B=", "é" * 44, "A" * 43 + "==", " " + "A" * 43 + "="],
)
def test_what_is_no_base64_key(text: str) -> None:
    with pytest.raises(ValueError, match="is not") as caught:
        decode_base64(text)
    assert not text.strip() or text not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "00", "0" * 63, "0" * 65, "g" * 64, " " * 64, "0x" + "0" * 62, "é" * 64]
)
def test_what_is_no_hexadecimal_key(text: str) -> None:
    with pytest.raises(ValueError, match="is not a key"):
        decode_hex(text)


def test_identity_does_not_show_its_secret() -> None:
    raw = generate_private()
    shown = repr(Identity(raw))
    assert raw.hex() not in shown
    assert encode_base64(raw)[:8] not in shown
