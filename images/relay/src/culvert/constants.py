# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers of the protocol, and apart from them the numbers that are our own choice."""

from __future__ import annotations

import errno

# --- Specification: WireGuard paper section 6.1 -------------------------------------------------------------

REKEY_AFTER_MESSAGES = 2**60
REJECT_AFTER_MESSAGES = 2**64 - 2**13 - 1
REKEY_AFTER_TIME_S = 120.0
REJECT_AFTER_TIME_S = 180.0
REKEY_ATTEMPT_TIME_S = 90.0
REKEY_TIMEOUT_S = 5.0
KEEPALIVE_TIMEOUT_S = 10.0

# Section 6.4 says a sender waits REKEY_TIMEOUT "plus jitter"; a third of a second is what Linux uses.
REKEY_JITTER_S = 1 / 3

# Section 5.4.7: the cookie's secret changes every two minutes, and a cookie is of use for as long.
COOKIE_SECRET_AGE_S = 120.0
# A cookie that is about to expire is not worth sending: it would arrive stale.
COOKIE_LATENCY_S = 5.0

KEY_BYTES = 32
TAG_BYTES = 16
MAC_BYTES = 16
TIMESTAMP_BYTES = 12
COOKIE_NONCE_BYTES = 24

# --- Our own choices (Linux's where it has one) -------------------------------------------------------------

# Packets that wait for a handshake, per peer; the oldest goes first when there are more.
MAX_STAGED_PACKETS = 128
# And how long they may be together: superpackets are up to 64 KiB each.
MAX_STAGED_BYTES = 256 * 1024
# Section 5.4.6: payloads are padded to a multiple of 16 bytes.
PADDING_MULTIPLE = 16
# Counters that may arrive late and still be accepted (RFC 6479 ring, one block is always in use).
REPLAY_WINDOW_BITS = 8192
# Authenticated initiations a peer may have answered per second: one costs us four DH computations.
INITIATIONS_PER_SECOND = 50
# Per source address, once the mac2 of a message proved that address, while under load.
SOURCE_RATE_PER_S = 20.0
SOURCE_BURST = 5
# Sources remembered: memory must not grow with the number of (possibly forged) addresses.
MAX_SOURCES = 8192
# Handshake messages a second that we are glad to answer without asking for a cookie, and the burst of them.
HANDSHAKE_RATE_PER_S = 200.0
HANDSHAKE_BURST = 400
# Once under load, stay so for this long: no flapping.
UNDER_LOAD_S = 1.0
# ICMP errors to local senders.
ICMP_RATE_PER_S = 100.0
ICMP_BURST = 50
# What a socket says of an endpoint that there is no way to.
NO_ROUTE_ERRORS = frozenset(
    (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EAFNOSUPPORT)
)
# How long an endpoint without a route is taken for unreachable, and how many such endpoints are remembered.
UNREACHABLE_S = 1.0
MAX_UNREACHABLE = 1024
# Unanswered initiations after which the UDP source port is given up.
SILENT_AFTER_ATTEMPTS = 3
# Most peers one device takes: Linux's limit.
MAX_PEERS = 2**20

DEFAULT_MTU_BYTES = 1420

# Endpoints that a peer may have, and pins of the certificates behind them.
MAX_ENDPOINTS = 8
MAX_TLS_PINS = 4

# --- Failover groups (culvert.failover) ---------------------------------------------------------------------

# A server that says nothing for so long is given up for one that answers. TCP sends again 0.2, 0.6, 1.4 and
# 3.0 s after the loss: what is decided by 2.5 s carries the fourth of them, and new connections' second.
FAILOVER_TIMEOUT_S = 2.5
FAILOVER_TIMEOUT_RANGE_S = (1.0, 60.0)
# A server that is preferred gets the traffic back after it has answered for so long without a gap.
FAILOVER_RETURN_S = 30.0
FAILOVER_RETURN_RANGE_S = (0.0, 3600.0)
MAX_PRIORITY = 65535
# A UDP payload cannot be longer than this; no message of ours is.
MAX_DATAGRAM_BYTES = 65535

# --- One process after another (culvert.handover) -----------------------------------------------------------

# What the state of a relay looks like; goes up where an older version would misread a newer one.
HANDOVER_FORMAT = 1
# After a handover that failed, for so long none is offered.
NO_HANDOVER_S = 60.0

# --- TLS (culvert.transport.tls, culvert.certificate) -------------------------------------------------------

# What the ends of a connection say they want to speak (RFC 7301): what every web server speaks.
DEFAULT_ALPN = ("http/1.1",)
# How long a certificate of our own lasts, in days: as long as Debian's. Clients go by its pin.
CERTIFICATE_DAYS = 3650
CERTIFICATE_MAX_DAYS = 36500

# --- Layer 2 (culvert.layer2) -------------------------------------------------------------------------------

# Group frames, and frames for unknown stations, a second: from each port, and to each peer.
STORM_LIMIT_PER_S = 1000
STORM_LIMIT_MOST_PER_S = 1_000_000
# Addresses learnt behind a peer, and how long one is kept that is not heard (IEEE 802.1D section 7.9.2).
MAC_LIMIT = 1024
MAC_LIMIT_RANGE = (1, 65536)
MAC_AGEING_S = 300
MAC_AGEING_RANGE_S = (10, 86400)
