# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What a document must not do to a host, found before anything changes.

Five questions to the routing as it is and as it would be: do answers to the controller stay outside of the
tunnel, do the tunnel's own packets, do the host's other networks and its gateways stay where they are, and is
the mark free. What is so already is no refusal, so that the same document can be applied again. A sixth is to
the chains: what they let pass for containers must not be the way out of the host.

Where it depends on a rule with a selector that the model does not know (``_fib.outcomes``) whether answers
to the controller stay outside, there is a warning and no refusal: the confirmation of the change tells. The
other questions are asked for packets that such rules are not about.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._core import SpecError
from ._facts import Facts, MarkUse, observe
from ._fib import REFUSING, is_conditional, network_of, prefix_length
from ._forecast import Routing, afterwards, answer_mark, container_bridges, now, tunnels_of
from ._routes import PROTOCOL, ROUTE_TYPES, Network, Route

if TYPE_CHECKING:
    from ._document import Document

__all__ = ["ALLOWABLE", "Facts", "check", "observe"]

ALLOWABLE = ("controller_in_tunnel", "overlap", "gateway_hidden", "mark_taken")


@dataclass(frozen=True)
class _Finding:
    """:ivar allow: the name by which it can be overridden, empty when it cannot.
    :ivar warning: to be said only, not to be refused.
    """

    option: str
    message: str
    allow: str = ""
    warning: bool = False


@dataclass(frozen=True)
class _Case:
    """:ivar tunnels: the devices that lead into the document's tunnels.
    :ivar repeated: the document is the one in force.
    """

    document: Document
    previous: Document | None
    facts: Facts
    before: Routing
    after: Routing
    tunnels: set[str]
    repeated: bool

    def enters(self, route: Route | None) -> bool:
        return route is not None and route.device in self.tunnels

    def option_of(self, route: Route | None) -> str:
        """Where the document says what made this route, empty when it does not."""
        if route is None:
            return ""
        for table in self.document.tables:
            for wished in table.routes:
                if wished.route.key == route.key and wished.route.device == route.device:
                    return f"{wished.option}.destination"
        for option, network, device in _prefixes(self):
            if device == route.device and str(network) == route.destination:
                return option
        return "tables[0].rules" if self.document.tables else ""


def check(
    document: Document, previous: Document | None, facts: Facts, allow: Iterable[str] = ()
) -> list[str]:
    """The warnings, with the option that they are about.

    :param previous: the document of this name that is in force.
    :param allow: the refusals to override.
    :raises SpecError: the first refusal that is not overridden; nothing has been changed.
    """
    case = _Case(
        document=document,
        previous=previous,
        facts=facts,
        before=now(facts),
        after=afterwards(document, previous, facts),
        tunnels=tunnels_of(document, facts),
        repeated=previous == document,
    )
    allowed = set(allow)
    warnings = []
    for question in (_controller, _endpoints, _overlaps, _marks, _gateways, _bridges):
        for finding in question(case):
            if finding.allow and finding.allow in allowed:
                continue
            if not finding.warning:
                raise SpecError(finding.option, finding.message + _way_out(finding.allow))
            warnings.append(f"{finding.option}: {finding.message}" if finding.option else finding.message)
    return warnings


def _way_out(allow: str) -> str:
    return f". If this is what you want, say so: allow: [{allow}]" if allow else ""


def _is_lost(route: Route | None) -> bool:
    return route is None or route.type in REFUSING


def _words(route: Route | None) -> str:
    """A route as a part of a sentence."""
    if route is None:
        return "nowhere (no route)"
    if route.type in REFUSING:
        return f"nowhere (the route or rule {route})"
    via = f" via {route.gateway}" if route.gateway else ""
    return f"to {route.device or 'this host'}{via} (the route {route.destination})"


# -- 1. The controller


def _controller(case: _Case) -> Iterator[_Finding]:
    """Answers to the controller, with the mark that the document gives to connections from outside."""
    peer, local = case.facts.controller
    if not peer or not local or _is_near(peer):
        return
    addresses = ipaddress.ip_address(peer), ipaddress.ip_address(local)
    arrival = next((device for device, address in case.facts.addresses if address == local), "")
    former = case.previous.chains if case.previous else ()
    marks = [answer_mark(chains, *addresses, arrival) for chains in (former, case.document.chains)]
    before = case.before.outcomes(peer, local, marks[0])
    after = case.after.outcomes(peer, local, marks[1])
    if _is_lost(before[-1]):
        # The model misses something: the connection is there.
        return
    who = f"answers to the controller ({peer}, connected to {local})"
    cut_off = [route for route in after if _is_cut_off(case, before[-1], route)]
    if not cut_off and marks[1] and not _outlives(case, peer, local):
        yield _Finding(
            case.option_of(case.after.lookup(peer, local)),
            f"the connection by which the controller ({peer}) is here would end: answers are routed before "
            f"the chains can mark them, and without it go {_words(case.after.lookup(peer, local))}. New "
            "connections would work. Connect by the other address family, or let the tunnel carry this one",
            "controller_in_tunnel",
        )
    if cut_off == after:
        yield _Finding(
            case.option_of(after[-1]),
            f"{who} would go {_words(after[-1])}; they go {_words(before[-1])} now. Leave out this prefix, "
            "or keep the controller's network out of the tunnel by a rule before the tunnel's; the chains of "
            "the role culvert.vpn.client do that for all connections from outside, by a mark",
            "controller_in_tunnel",
        )
    elif any(route not in before for route in cut_off):
        unknown = "; ".join(str(rule) for rule in case.after.rules if is_conditional(rule))
        message = f"{who} may enter the tunnel: that depends on rules that cannot be judged here ({unknown})"
        yield _Finding("", message, "controller_in_tunnel", warning=True)


def _is_cut_off(case: _Case, before: Route | None, after: Route | None) -> bool:
    return _is_lost(after) or (case.enters(after) and not case.enters(before))


def _outlives(case: _Case, peer: str, local: str) -> bool:
    """Whether a connection that is there already goes on: its socket has no mark, and where packets without
    one are refused, none is made.
    """
    return _is_lost(case.before.lookup(peer, local)) or not _is_lost(case.after.lookup(peer, local))


def _is_near(address: str) -> bool:
    """What no route of a tunnel can be about: the host itself, and what is on the link by the link's name."""
    parsed = ipaddress.ip_address(address)
    return parsed.is_loopback or (parsed.version == 6 and parsed.is_link_local)


# -- 2. The tunnel's peers


def _endpoints(case: _Case) -> Iterator[_Finding]:
    for position, endpoint in enumerate(case.document.endpoints):
        option = f"endpoints[{position}]"
        addresses = case.facts.addresses_of(endpoint)
        if not addresses:
            message = f"{endpoint} has no address now, so its route was not checked"
            yield _Finding(option, message, warning=True)
            continue
        routes = {a: case.after.lookup(a, mark=case.document.fwmark) for a in addresses if not _is_near(a)}
        # One address that can be reached is enough for a name.
        if any(not _is_lost(route) and not case.enters(route) for route in routes.values()):
            continue
        yield from _unreachable(case, option, endpoint, routes)


def _unreachable(
    case: _Case, option: str, endpoint: str, routes: dict[str, Route | None]
) -> Iterator[_Finding]:
    mark = case.document.fwmark
    marked = f" with the mark {mark:#x}" if mark else ""
    entering = [address for address, route in routes.items() if case.enters(route)]
    for address in (entering or list(routes))[:1]:
        name = endpoint if endpoint == address else f"{endpoint} ({address})"
        where = _words(routes[address])
        if entering:
            advice = (
                "give the host a route to it outside of the tunnel, which the rules find before the tunnel's"
                if mark
                else "set fwmark to the relay's mark and have the rules pass over it (fwmark, invert)"
            )
            message = f"the tunnel's own packets to its peer {name}{marked} would enter the tunnel: {where}"
        else:
            advice = "give the host a route to it"
            message = f"the tunnel's own packets to its peer {name}{marked} would go {where}"
        # Nothing is lost that there was, where the host is to get its way out later.
        lost_already = not entering and _is_lost(case.before.lookup(address, mark=mark))
        yield _Finding(option, f"{message}; {advice}", warning=case.repeated or lost_already)


# -- 3. Networks


def _prefixes(case: _Case) -> Iterator[tuple[str, Network, str]]:
    """Option, network and device of all that goes into the tunnel by more than a default route."""
    for table in case.document.tables:
        for wished in table.routes:
            route = wished.route
            if route.device in case.tunnels and prefix_length(route):
                yield f"{wished.option}.destination", network_of(route.destination), route.device
    for number, device in enumerate(case.document.devices):
        for position, address in enumerate(device.addresses):
            if address.network.num_addresses > 1:
                yield f"devices[{number}].addresses[{position}]", address.network, device.name


def _overlaps(case: _Case) -> Iterator[_Finding]:
    """Addresses of other networks that would change to the tunnel's device."""
    networks = [
        (device, network)
        for device, network in case.facts.networks
        if device not in case.tunnels and not network.is_loopback and not network.is_link_local
    ]
    # A device that is down has its networks again as soon as it is up.
    down = [(device, network) for device, network in networks if not case.facts.is_up(device)]
    before, after = case.before.with_networks(down), case.after.with_networks(down)
    others = [(device, network, False) for device, network in networks]
    for route in _foreign_routes(case):
        tunnel = case.facts.is_tunnel(route.device)
        others.append((route.device, network_of(route.destination), not tunnel))
    for option, prefix, tunnel_device in _prefixes(case):
        for device, network, is_routed in others:
            if not _overlap(prefix, network):
                continue
            for address in _samples(min(prefix, network, key=lambda one: one.num_addresses)):
                was, will = before.lookup(address), after.lookup(address)
                if was is None or was.device != device or will is None:
                    continue
                if will.device == tunnel_device and will.destination == str(prefix):
                    yield _overlap_finding(case, option, prefix, will, was, network, is_routed)
                    break


def _overlap_finding(
    case: _Case, option: str, prefix: Network, will: Route, was: Route, network: Network, is_routed: bool
) -> _Finding:
    if is_routed:
        message = f"{prefix} goes into {will.device} from now on; until now it goes {_words(was)}"
        return _Finding(option, message, warning=True)
    return _Finding(
        option,
        f"{prefix} would take addresses of {network}, which belongs to {case.facts.owner_of(was.device)}, "
        f"into {will.device}; choose a network for the tunnel that is not in use here",
        "overlap",
    )


def _foreign_routes(case: _Case) -> Iterator[Route]:
    """Routes of all tables to networks elsewhere, through a gateway or another tunnel."""
    for routes in case.facts.routes.values():
        for route in routes:
            if route.type != ROUTE_TYPES["unicast"] or not prefix_length(route) or not route.device:
                continue
            network = network_of(route.destination)
            if route.device in case.tunnels or network.is_link_local or network.is_multicast:
                continue
            if route.gateway or case.facts.is_tunnel(route.device):
                yield route


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and bool(one.overlaps(other))


def _samples(network: Network) -> list[str]:
    """A few addresses: some of them are the host's own or a gateway's, which may be kept by other routes."""
    size = network.num_addresses
    places = {place for place in (0, 1, 2, size // 2, size - 2, size - 1) if 0 <= place < size}
    return [str(network[place]) for place in sorted(places)]


# -- 4. The mark


def _marks(case: _Case) -> Iterator[_Finding]:
    mark = case.document.fwmark
    if not mark:
        return
    own = {table.id for table in case.document.tables}
    uses = [
        MarkUse(f"the rule {rule}", rule.mark, rule.mask)
        for rule in case.facts.rules
        if rule.protocol != PROTOCOL and rule.table not in own
    ]
    known = case.previous is not None and case.previous.fwmark == mark
    for use in (*uses, *case.facts.marks):
        if _is_taken(mark, use):
            yield _Finding(
                "fwmark",
                f"{mark:#x} is in use by somebody else on this host: {use.where}; choose another mark "
                "(relay_fwmark)",
                "mark_taken",
                warning=known,
            )
            return


def _is_taken(mark: int, use: MarkUse) -> bool:
    """Whether our packets would be taken for theirs, or theirs for ours."""
    if not use.mark & use.mask:
        # For packets without a mark, which ours are not.
        return False
    if use.sets:
        return use.mark & use.mask == mark
    return (use.mark ^ mark) & use.mask == 0


# -- 5. Gateways


def _gateways(case: _Case) -> Iterator[_Finding]:
    seen: set[tuple[str, str]] = set()
    for routes in case.facts.routes.values():
        for route in routes:
            if not route.gateway or prefix_length(route) or (route.gateway, route.device) in seen:
                continue
            seen.add((route.gateway, route.device))
            if route.device in case.tunnels or _is_near(route.gateway):
                continue
            before, after = case.before.lookup(route.gateway), case.after.lookup(route.gateway)
            if before is None or before.device != route.device:
                continue
            if after is not None and (after.device == route.device or _is_by_default(before, after)):
                continue
            yield _Finding(
                case.option_of(after),
                f"the default gateway {route.gateway} on {route.device} would be hidden: packets to it would "
                f"go {_words(after)}; leave its address out of the tunnel's prefixes",
                "gateway_hidden",
            )


def _is_by_default(before: Route, after: Route) -> bool:
    """A gateway without a route of its own (onlink) is not reached by routes, and none hides it."""
    return not prefix_length(before) and not prefix_length(after)


# -- 6. Bridges of containers


def _bridges(case: _Case) -> Iterator[_Finding]:
    """Devices that chains let pass for containers although the host's default route leads there."""
    uplinks = {
        route.device
        for routes in case.facts.routes.values()
        for route in routes
        if route.type == ROUTE_TYPES["unicast"] and route.device and not prefix_length(route)
    }
    seen: set[str] = set()
    for option, pattern in container_bridges(case.document.chains):
        for device in sorted(uplinks - case.tunnels):
            if not _fits_pattern(device, pattern) or pattern in seen:
                continue
            seen.add(pattern)
            yield _Finding(
                option,
                f"{pattern} is let pass as a bridge of containers, but this host's default route leads to "
                f"{device}: private addresses there could be reached beside the tunnel. Leave {pattern} out "
                "of client_container_devices, and list the bridges of containers by their names",
            )


def _fits_pattern(device: str, pattern: str) -> bool:
    """As iptables takes names of devices."""
    return device.startswith(pattern[:-1]) if pattern.endswith("+") else device == pattern
