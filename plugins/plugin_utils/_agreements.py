# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""What hosts have told each other to agree on pre-shared keys: public, kept in a folder beside the registry.

One file for each host that has agreed with others. The registry names agreements by their ids, which are
hashes of them: a file that was damaged, or put back from another time, is noticed and counts as lost.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import typing as t
import urllib.parse

from ansible_collections.culvert.vpn.plugins.plugin_utils import _kept_files
from ansible_collections.culvert.vpn.plugins.plugin_utils._kept_files import RegistryError

FORMAT = 1
# FIPS 203, table 3, and RFC 7748.
KEM_PUBLIC_BYTES, CIPHERTEXT_BYTES, KEY_BYTES = 1184, 1088, 32
# As in the relay's culvert/agree.py, which says what it is for.
_LABEL = b"culvert.vpn pre-shared key v1"
FIELDS = ("id", "from", "to", "kem", "eph", "ct")

Agreement = dict[str, str]


def decoded(text: t.Any, size: int) -> bytes | None:
    """Return the bytes of canonical base64, ``None`` if it is something else or of another length."""
    if not isinstance(text, str):
        return None
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if len(data) == size and base64.b64encode(data).decode() == text else None


def kem_hash(kem: t.Any) -> str:
    """Return by what an agreement names an ML-KEM-768 public key; empty if it is none."""
    data = decoded(kem, KEM_PUBLIC_BYTES)
    return hashlib.sha256(data).hexdigest() if data else ""


def agreement_of(data: t.Any) -> Agreement | None:
    """Return an agreement that comes from a file or a host; ``None`` if it is none, or its id another's."""
    if not isinstance(data, dict) or not all(isinstance(data.get(name), str) for name in FIELDS):
        return None
    sender, receiver, ephemeral = (decoded(data[name], KEY_BYTES) for name in ("from", "to", "eph"))
    ciphertext = decoded(data["ct"], CIPHERTEXT_BYTES)
    kem = data["kem"]
    if sender is None or receiver is None or ephemeral is None or ciphertext is None:
        return None
    if len(kem) != 64 or not set(kem) <= set("0123456789abcdef"):
        return None
    hashed = bytes.fromhex(kem) + hashlib.sha256(ciphertext).digest()
    id = hashlib.sha256(_LABEL + sender + receiver + hashed + ephemeral).hexdigest()[:32]
    return {name: str(data[name]) for name in FIELDS} if id == data["id"] else None


# --- Files --------------------------------------------------------------------------------------------------


def folder(registry: str) -> str:
    """Return the folder that belongs to the registry of that path."""
    return f"{registry.removesuffix('.txt')}_agreements"


def path_of(registry: str, name: str) -> str:
    """Return the file of one host, whatever it is called."""
    return os.path.join(folder(registry), f"{urllib.parse.quote(name, safe='')}.txt")


def read(registry: str, name: str) -> dict[str, Agreement]:
    """Return what a host has agreed with others, by id. What is damaged is left out.

    :raises RegistryError: the file cannot be read at all.
    """
    path = path_of(registry, name)
    try:
        with open(path, encoding="utf-8") as stream:
            data = json.load(stream)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError:
        return {}  # a half, or one with conflicts of a merge: what is not needed any more matters to nobody
    except OSError as error:
        raise RegistryError(f"The agreements {path} cannot be read: {error.strerror}.") from None
    if not isinstance(data, dict):
        return {}
    if isinstance(data.get("format"), int) and data["format"] > FORMAT:
        raise RegistryError(
            f"The agreements {path} were written by a newer version of culvert.vpn (format "
            f"{data['format']}, this one knows {FORMAT}): update the collection. Nothing was changed."
        )
    listed = data.get("agreements")
    found = [agreement_of(item) for item in (listed if isinstance(listed, list) else [])]
    return {item["id"]: item for item in found if item is not None}


def write(registry: str, name: str, agreements: t.Mapping[str, Agreement]) -> None:
    """Replace what a host has agreed; without any, the file goes. Under the registry's lock.

    :raises RegistryError: the file system refuses.
    """
    path = path_of(registry, name)
    if not agreements:
        if os.path.exists(path):
            _kept_files.unlink(path, "file of agreements")
            _drop_empty(folder(registry))
        return
    try:
        os.makedirs(folder(registry), 0o755, exist_ok=True)
    except OSError as error:
        raise RegistryError(f"The folder {folder(registry)} cannot be made: {error.strerror}.") from None
    lines = ",\n".join("  " + json.dumps(agreements[id]) for id in sorted(agreements))
    text = f'{{"format": {FORMAT},\n "agreements": [\n{lines}\n ]}}\n'
    _kept_files.replace(path, text, "file of agreements")


def keep_only(registry: str, wanted: t.Mapping[str, t.Collection[str]]) -> None:
    """Leave in the files what hosts still have agreed: by name, the ids. Under the registry's lock."""
    try:
        files = os.listdir(folder(registry))
    except OSError:
        return
    for file in files:
        name, ending = urllib.parse.unquote(file[: -len(".txt")]), file[-len(".txt") :]
        if ending != ".txt" or file.startswith("."):
            continue
        found = read(registry, name)
        left = {id: item for id, item in found.items() if id in wanted.get(name, ())}
        if left != found or not left:
            write(registry, name, left)
    _drop_empty(folder(registry))


def _drop_empty(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        return  # there is something left in it
