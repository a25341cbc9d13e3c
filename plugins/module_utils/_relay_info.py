# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What a running relay says of itself, as the module ``relay_info`` returns it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ._files import read_text
from ._options import Options
from ._relay_failover import parse_failover
from ._relay_file import registry_id_of
from ._relay_limits import parse_usage
from ._relay_listeners import parse_layer, parse_listeners
from ._relay_succession import Standing, parse_succession
from ._relay_ways import Current, parse_ways
from ._uapi import about, interface_name, parse_rejections, query, socket_path_of


def info(params: Mapping[str, Any]) -> dict[str, Any]:
    """What the module ``relay_info`` returns.

    :raises SpecError, HostError: as above.
    """
    options = Options(params)
    name = interface_name(options, "name", "culvert0")
    path = socket_path_of(options, name)
    config_path = options.text("config_path")
    options.done()
    relay = query(path)
    said = about(path) if relay is not None else ""
    group, limited, succession = parse_failover(said), parse_usage(said), parse_succession(said)
    ways = parse_ways(said)
    text = read_text(config_path) if config_path else None
    now_s = time.time()
    return {
        "running": relay is not None,
        "public_key": relay.public_key if relay else None,
        "alternate_public_key": succession.alternate_key or None,
        "listen_port": relay.listen_port if relay else None,
        "fwmark": relay.fwmark if relay else None,
        "listeners": parse_listeners(said),
        "layer": parse_layer(said) if relay else None,
        "peers": [
            {
                "public_key": peer.public_key,
                "endpoint": peer.endpoint,
                "allowed_ips": list(peer.allowed_ips),
                "latest_handshake_s": peer.latest_handshake_s,
                "handshake_age_s": peer.handshake_age_s(now_s),
                "rx_bytes": peer.rx_bytes,
                "tx_bytes": peer.tx_bytes,
                "persistent_keepalive_s": peer.persistent_keepalive_s,
                **ways.get(peer.public_key, Current()).as_dict(peer.endpoint),
                **succession.peers.get(peer.public_key, Standing()).as_dict(),
                "limits": limited[peer.public_key].as_dict() if peer.public_key in limited else {},
            }
            for peer in (relay.peers if relay else ())
        ],
        "failover": group.as_dict() if group else {},
        "rejections": [rejection.as_dict() for rejection in parse_rejections(said) or ()],
        "registry_id": registry_id_of(text or "") or None,
    }
