# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The "internet" of a lab: HTTP on port 80, whose whole answer is the caller's address as one line."""

from __future__ import annotations

import http.server
import ipaddress
import socket


class CallerAddress(http.server.BaseHTTPRequestHandler):
    """Answers every GET with the address that the request came from."""

    def do_GET(self) -> None:
        address = ipaddress.ip_address(self.client_address[0].partition("%")[0])
        # One socket serves both families, so IPv4 callers look like ::ffff:198.51.100.7.
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        body = f"{mapped or address}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class BothFamilies(http.server.ThreadingHTTPServer):
    """Listens on IPv6 and, through the same socket, on IPv4."""

    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


if __name__ == "__main__":
    BothFamilies(("::", 80), CallerAddress).serve_forever()
