# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates of the TLS listener: what the command makes and keeps, and what a file may ask for."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from culvert import cli
from culvert.certificate import CERTIFICATE_FILE, KEY_FILE, Made, make
from culvert.config import Config, load_config
from culvert.errors import ConfigError, CulvertError
from culvert.keys import encode_base64

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def leaf(folder: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / CERTIFICATE_FILE).read_bytes())


def pin(folder: Path) -> str:
    key = leaf(folder).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(key).digest()).decode()


# --- Made
# ----------------------------------------------------------------------------------------------------


def test_what_is_made_is_an_ordinary_leaf_with_a_secret_key(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "tls"
    made = make(str(folder), "vpn.example.org", 90, NOW)
    assert made == Made(pin(folder), NOW + timedelta(days=90), True)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(folder)) == [CERTIFICATE_FILE, KEY_FILE]
    certificate = leaf(folder)
    certificate.verify_directly_issued_by(certificate)
    assert certificate.subject.rfc4514_string() == "CN=vpn.example.org"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["vpn.example.org"]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    assert certificate.not_valid_before_utc < NOW


def test_an_address_is_named_as_one(tmp_path: Path) -> None:
    make(str(tmp_path), "2001:db8::1")
    names = leaf(tmp_path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name) for name in names.get_values_for_type(x509.IPAddress)] == ["2001:db8::1"]


def test_what_is_good_stays_and_the_key_always_does(tmp_path: Path) -> None:
    folder = str(tmp_path)
    first = make(folder, "a.example.org", 365, NOW)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    late = NOW + timedelta(days=334)
    assert make(folder, None, 365, late) == make(folder, "a.example.org", 365, late)
    assert not make(folder, None, 365, late).changed
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files
    # 29 days are left: the name is kept, and so is the pin.
    renewed = make(folder, None, 365, NOW + timedelta(days=336))
    assert renewed == Made(first.pin, NOW + timedelta(days=336 + 365), True)
    assert leaf(tmp_path).subject.rfc4514_string() == "CN=a.example.org"
    renamed = make(folder, "b.example.org", 365, NOW)
    assert (renamed.pin, renamed.changed) == (first.pin, True)
    (tmp_path / CERTIFICATE_FILE).write_text("gone")
    assert make(folder, "b.example.org", 365, NOW) == Made(first.pin, renamed.expires_at, True)
    assert (tmp_path / KEY_FILE).read_bytes() == files[tmp_path / KEY_FILE]
    # A certificate without its key is worth nothing.
    (tmp_path / KEY_FILE).unlink()
    assert make(folder, None, 365, NOW).pin not in ("", first.pin)


def test_what_is_no_key_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).write_text("my only copy")
    with pytest.raises(CulvertError, match="does not hold a private key in PEM") as caught:
        make(str(tmp_path))
    assert "copy" not in str(caught.value)
    assert (tmp_path / KEY_FILE).read_text() == "my only copy"
    assert os.listdir(tmp_path) == [KEY_FILE]


@pytest.mark.parametrize("name", ["a b", "ü.example.org", "x" * 65, "a\nb"])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(CulvertError, match="is no name for a certificate"):
        make(str(tmp_path), name)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CulvertError, match="file: File exists"):
        make(str(tmp_path / "file"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["certificate", "--directory", str(tmp_path), "--name", "vpn.example.org", "--days", "400"]
    assert cli.main(arguments) == 0
    said = json.loads(capsys.readouterr().out)
    expires_at = leaf(tmp_path).not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert said == {"pin": pin(tmp_path), "expires_at": expires_at, "changed": True}
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == said | {"changed": False}
    assert cli.main([*arguments[:-1], "0"]) == 1


def test_the_pin_is_that_of_openssl(tmp_path: Path) -> None:
    """As curl's manual has it."""
    made = make(str(tmp_path))
    path = tmp_path / CERTIFICATE_FILE
    public = subprocess.run(
        ["openssl", "x509", "-in", path, "-pubkey", "-noout"], capture_output=True, check=True
    ).stdout
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-outform", "der"], input=public, capture_output=True, check=True
    ).stdout
    assert base64.b64encode(hashlib.sha256(der).digest()).decode() == made.pin


# --- Asked for in a file
# -------------------------------------------------------------------------------------

HEAD = f"[Interface]\nPrivateKey = {encode_base64(bytes(range(32)))}\n"
FILES = f"TLSCertificateFile = {CERTIFICATE_FILE}\nTLSPrivateKeyFile = {KEY_FILE}\n"


def loaded(folder: Path, text: str) -> Config:
    path = folder / "wg.conf"
    path.write_text(HEAD + text)
    return load_config(str(path))


def test_a_listener(tmp_path: Path) -> None:
    assert loaded(tmp_path, "").tls_listener is None
    make(str(tmp_path))
    config = loaded(tmp_path, f"ListenTLS = 443\n{FILES}")
    assert config.tls_listener is not None
    assert config.tls_listener.port == 443
    assert config.tls_alpn == ("http/1.1",)
    assert loaded(tmp_path, "TLSAlpn = h2, http/1.1\n").tls_alpn == ("h2", "http/1.1")
    assert loaded(tmp_path, "TLSAlpn = none\n").tls_alpn == ()
    absolute = FILES.replace("= ", f"= {tmp_path}/")
    assert loaded(tmp_path, f"ListenTLS = 8443\n{absolute}").tls_listener is not None


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("ListenTLS = 0", 3, "ListenTLS: '0' is not a port from 1 to 65535"),
        ("ListenTLS = 65536", 3, "ListenTLS: '65536' is not a port"),
        ("ListenTLS = 443", 3, "ListenTLS needs TLSCertificateFile"),
        (f"ListenTLS = 443\nTLSCertificateFile = {CERTIFICATE_FILE}", 3, "ListenTLS needs TLSPrivateKeyFile"),
        (f"TLSPrivateKeyFile = {KEY_FILE}", 3, "TLSPrivateKeyFile says nothing without ListenTLS"),
        ("TLSAlpn = a b", 3, "TLSAlpn: 'a b' is not the name of a protocol"),
        ("TLSAlpn = h2,h2", 3, "TLSAlpn: takes at most 8 names, each once"),
        ("TLSAlpn = h2,", 3, "TLSAlpn: '' is not the name of a protocol"),
        (f"ListenTLS = 443\n{FILES.replace(KEY_FILE, 'other.pem')}", 5, "is not the key of the certificate"),
        (f"ListenTLS = 443\n{FILES.replace(KEY_FILE, 'none.pem')}", 5, "cannot be read: No such file"),
        (f"ListenTLS = 443\n{FILES.replace(KEY_FILE, 'locked.pem')}", 5, "is encrypted"),
        (f"ListenTLS = 443\n{FILES.replace(KEY_FILE, CERTIFICATE_FILE)}", 5, "does not hold a private key"),
        (f"ListenTLS = 443\n{FILES.replace(CERTIFICATE_FILE, KEY_FILE)}", 4, "does not begin with a cert"),
        (f"ListenTLS = 443\n{FILES.replace(CERTIFICATE_FILE, '/')}", 4, "cannot be read: Is a directory"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, line: int, message: str) -> None:
    make(str(tmp_path))
    other = ec.generate_private_key(ec.SECP256R1())
    for name, encryption in (("other", NoEncryption()), ("locked", BestAvailableEncryption(b"x"))):
        pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        (tmp_path / f"{name}.pem").write_bytes(pem)
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path}/wg.conf:{line}: ")
    assert message in str(caught.value)
    secret = (tmp_path / KEY_FILE).read_text().split()[3:-3]
    assert not any(word in str(caught.value) for word in secret)


def test_a_key_too_weak_for_openssl_is_refused(tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / KEY_FILE).write_bytes(pem)
    make(str(tmp_path))
    with pytest.raises(ConfigError, match=r":4: TLSCertificateFile: .* are refused by OpenSSL"):
        loaded(tmp_path, f"ListenTLS = 443\n{FILES}")


def test_an_expired_certificate_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(str(tmp_path), days=1, now=datetime(2020, 1, 1, tzinfo=UTC))
    assert loaded(tmp_path, f"ListenTLS = 443\n{FILES}").tls_listener is not None
    assert f"the certificate in {tmp_path}/{CERTIFICATE_FILE} has expired" in caplog.text
