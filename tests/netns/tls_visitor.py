# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stranger on a TLS port, run as a script inside a host of the lab.

    tls_visitor.py ask ADDRESS PORT SECONDS HEX...    a connection for each of these: TLS, these bytes, and
                                                      then nothing more; "-" in front of one: before TLS
    tls_visitor.py serve PORT CERTIFICATE KEY SECONDS  a web server that is not the one that was meant

Both print JSON: what was answered and whether the other end hung up; what the server was told, if anything.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import time
from typing import Any


def _everything(sock: socket.socket) -> dict[str, Any]:
    received, ended = bytearray(), False
    started = time.monotonic()
    try:
        while not ended:
            data = sock.recv(65536)
            received += data
            ended = not data
    except TimeoutError:
        pass
    except OSError:
        ended = True
    text = received.decode("latin-1")
    return {"answer": text, "ended": ended, "seconds": round(time.monotonic() - started, 3)}


def ask(address: str, port: int, seconds: float, words: list[str]) -> list[dict[str, Any]]:
    """One connection after the other."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    answers = []
    for word in words:
        with socket.create_connection((address, port), timeout=5) as sock:
            sock.settimeout(seconds)
            if word.startswith("-"):
                sock.sendall(bytes.fromhex(word[1:]))
                answers.append(_everything(sock))
                continue
            with context.wrap_socket(sock, server_hostname="www.example.org") as tls:
                if word:
                    tls.sendall(bytes.fromhex(word))
                answers.append(
                    {**_everything(tls), "version": tls.version(), "alpn": tls.selected_alpn_protocol()}
                )
    return answers


def serve(port: int, certificate: str, key: str, seconds: float) -> list[dict[str, Any]]:
    """Take whoever comes within this time."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    told = []
    with socket.create_server(("", port)) as listener:
        print("listens", file=sys.stderr, flush=True)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            listener.settimeout(left)
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                break
            sock.settimeout(2)
            with sock:
                try:
                    with context.wrap_socket(sock, server_side=True) as tls:
                        told.append({"handshake": True, "bytes": len(tls.recv(65536))})
                except OSError as error:
                    told.append({"handshake": False, "bytes": 0, "error": type(error).__name__})
    return told


def main() -> None:
    what, *words = sys.argv[1:]
    if what == "ask":
        print(json.dumps(ask(words[0], int(words[1]), float(words[2]), words[3:])))
    else:
        print(json.dumps(serve(int(words[0]), words[1], words[2], float(words[3]))), flush=True)


if __name__ == "__main__":
    main()
