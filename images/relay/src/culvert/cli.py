# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command ``culvert``."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence

from . import __version__
from .capture import LIMITS, MAXIMUM, CaptureRequest
from .capture_command import capture
from .capture_filter import CaptureFilter, parse_filter
from .choose import BATCHES
from .config import load_config, parse_prefix
from .constants import CERTIFICATE_DAYS, CERTIFICATE_MAX_DAYS
from .control import DEFAULT_DIRECTORY
from .errors import ConfigError, CulvertError
from .handover import NotTaken
from .keys import Identity, decode_base64, encode_base64, generate_preshared, generate_private
from .offloads import parse_offloads
from .privileges import harden
from .responder import DEFAULT_PORT
from .run import RunOptions, run
from .show import devices, query, render

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0, 1 for what went wrong, 2 for what was asked wrongly (usage, configuration file), 3
    for a handover that failed, so that the relay before goes on.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except ConfigError as error:
        print(f"culvert: {error}", file=sys.stderr)
        return 2
    except NotTaken as error:
        print(f"culvert: {error}", file=sys.stderr)
        return 3
    except CulvertError as error:
        print(f"culvert: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="culvert", description="A userspace WireGuard endpoint.")
    parser.add_argument("--version", action="version", version=f"culvert {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    _add_run(commands.add_parser("run", help="carry a device's packets until stopped"))

    for name, action, text in (
        ("genkey", _genkey, "print a new private key"),
        ("pubkey", _pubkey, "read a private key from standard input, print its public key"),
        ("genpsk", _genpsk, "print a new pre-shared key"),
    ):
        commands.add_parser(name, help=text).set_defaults(command=action)

    command = commands.add_parser("check", help="check a configuration file")
    command.add_argument("file", metavar="FILE")
    command.set_defaults(command=_check)

    command = commands.add_parser("show", help="print the state of devices, without secret keys")
    command.add_argument("name", metavar="NAME", nargs="?", help="all devices when not given")
    command.add_argument("--json", action="store_true", help="a JSON list with one object for each device")
    _add_directory(command)
    command.set_defaults(command=_show)

    _add_capture(commands.add_parser("capture", help="write what crosses the device as pcap, while it runs"))

    _add_certificate(commands.add_parser("certificate", help="make a key and a certificate for ListenTLS"))

    _add_respond(commands.add_parser("respond", help="answer those who test a tunnel, from inside it"))

    command = commands.add_parser(
        "agree", help="agree on pre-shared keys (JSON on standard input and output)"
    )
    command.description = "Nothing that comes in or goes out is secret; keys go into a folder."
    command.add_argument(
        "--identity", metavar="FILE", action="append", required=True, help="a private key of this host"
    )
    command.add_argument("--secrets", metavar="DIR", required=True, help="where pre-shared keys are kept")
    command.set_defaults(command=_agree)

    command = commands.add_parser("health", help="exit 0 when the device's process answers")
    command.add_argument("name", metavar="NAME")
    _add_directory(command)
    command.set_defaults(command=_health)
    return parser


def _add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", metavar="NAME", help="the TUN device: attached to, or created")
    command.add_argument("--config", metavar="FILE", help="what to load; without it, an empty device")
    command.add_argument("--user", metavar="UID[:GID]", help="become this user, keeping NET_ADMIN alone")
    command.add_argument("--background", action="store_true", help="fork once all is ready")
    command.add_argument(
        "--batch",
        choices=BATCHES,
        help="what seals and opens packets (default: the file's Batch, else auto: compiled if it is there)",
    )
    command.add_argument(
        "--disable-offloads",
        metavar="LIST",
        type=_offloads,
        help="kernel offloads not to use: tso,uso,gso,gro or none (default: the file's DisableOffloads)",
    )
    command.add_argument(
        "--take-over",
        action="store_true",
        help="if a relay serves the device now, take its sockets and sessions over; if it cannot hand them "
        "over, wait for its end and shake hands with its peers at once",
    )
    _add_directory(command)
    command.set_defaults(command=_run)


def _add_directory(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--socket-directory",
        metavar="DIR",
        default=DEFAULT_DIRECTORY,
        help=f"where control sockets are (default {DEFAULT_DIRECTORY}; `wg` looks there only)",
    )


def _add_capture(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Write inner packets of both directions as pcap (LINKTYPE_RAW, or LINKTYPE_ETHERNET for a TAP). "
        "What the kernel hands over uncut is written uncut. Ends with the first limit, or with Ctrl-C."
    )
    command.add_argument("name", metavar="NAME")
    command.add_argument(
        "--filter",
        metavar="EXPR",
        type=_filter,
        default="",
        help="terms joined by 'and', 'not' before any: host A, net N, port P, proto tcp|udp|icmp|icmp6|N, "
        "peer KEY, in, out",
    )
    command.add_argument(
        "--write",
        metavar="FILE",
        default="-",
        help="a new file (mode 0600), or - for standard output (the default)",
    )
    command.add_argument("--force", action="store_true", help="replace a file that exists")
    for name, what in (("packets", "so many packets"), ("bytes", "so many bytes"), ("seconds", "that time")):
        command.add_argument(
            f"--{name}",
            metavar="N",
            type=_up_to(MAXIMUM[name]),
            default=LIMITS[name],
            help=f"end after {what} (default {LIMITS[name]}; 0 for no limit)",
        )
    most = MAXIMUM["snaplen"]
    command.add_argument(
        "--snaplen", metavar="N", type=_up_to(most), default=most, help="bytes to keep of a packet"
    )
    _add_directory(command)
    command.set_defaults(command=_capture)


def _add_respond(command: argparse.ArgumentParser) -> None:
    command.description = (
        "HTTP/1.1 (GET /: your address; GET /bytes/N: N zeros; POST /bytes: takes them) and UDP replies of "
        "the length asked for, bounded. Waits for addresses that are not there yet."
    )
    command.add_argument(
        "--listen", metavar="ADDRESS", nargs="+", required=True, help="addresses inside the tunnel"
    )
    command.add_argument("--port", metavar="N", type=_up_to(65535), default=DEFAULT_PORT)
    command.add_argument(
        "--allow", metavar="PREFIX", nargs="+", default=[], help="answer these networks only"
    )
    command.add_argument("--user", metavar="UID[:GID]", help="become this user first")
    command.set_defaults(command=_respond)


def _add_certificate(command: argparse.ArgumentParser) -> None:
    command.description = (
        "See that a folder holds key.pem (0600) and a self-signed certificate.pem of it. What is good stays; "
        "a certificate that expires within 30 days is made anew for the same key, so that its pin stays. "
        "Prints one line of JSON: pin, expires_at, changed."
    )
    command.add_argument("--directory", metavar="DIR", required=True, help="made (0700) if need be")
    command.add_argument(
        "--name", metavar="CN", help="the host name or address that it names (default: as before, localhost)"
    )
    command.add_argument(
        "--days",
        metavar="N",
        type=_up_to(CERTIFICATE_MAX_DAYS),
        help=f"how long it lasts (default {CERTIFICATE_DAYS})",
    )
    command.set_defaults(command=_certificate)


def _filter(text: str) -> CaptureFilter:
    try:
        return parse_filter(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _up_to(maximum: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) <= maximum):
            raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a number from 0 to {maximum}")
        return int(text)

    return read


def _offloads(text: str) -> frozenset[str]:
    try:
        return parse_offloads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _run(options: argparse.Namespace) -> int:
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format=f"culvert {options.name}: %(levelname)s: %(message)s"
    )
    return run(
        RunOptions(
            name=options.name,
            config=options.config,
            user=options.user,
            background=options.background,
            socket_directory=options.socket_directory,
            batch=options.batch,
            disable_offloads=options.disable_offloads,
            take_over=options.take_over,
        )
    )


def _genkey(_: argparse.Namespace) -> int:
    print(encode_base64(generate_private()))
    return 0


def _genpsk(_: argparse.Namespace) -> int:
    print(encode_base64(generate_preshared()))
    return 0


def _pubkey(_: argparse.Namespace) -> int:
    try:
        private_key = decode_base64(sys.stdin.read(256).strip())
    except ValueError as error:
        raise CulvertError(f"standard input {error}") from None
    print(encode_base64(Identity(private_key).public))
    return 0


def _check(options: argparse.Namespace) -> int:
    config = load_config(options.file)
    if config.private_key is None:
        raise ConfigError(options.file, 0, "has no PrivateKey or PrivateKeyFile in [Interface]")
    print(f"{options.file}: good: {len(config.peers)} peers")
    return 0


def _show(options: argparse.Namespace) -> int:
    names = [options.name] if options.name else devices(options.socket_directory)
    found = [query(name, options.socket_directory) for name in names]
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n\n".join(render(device) for device in found))
    return 0


def _capture(options: argparse.Namespace) -> int:
    request = CaptureRequest(
        options.filter,
        packets=options.packets,
        bytes=options.bytes,
        seconds=options.seconds,
        snaplen=options.snaplen or MAXIMUM["snaplen"],
    )
    return capture(
        options.name, request, options.write, force=options.force, directory=options.socket_directory
    )


def _respond(options: argparse.Namespace) -> int:
    # Here, not above: asyncio takes longer to load than all the rest, and a health check loads this file.
    from .respond import RespondOptions, parse_listen, respond

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="culvert: %(levelname)s: %(message)s")
    try:
        listen = parse_listen(options.listen)
        allow = tuple(parse_prefix(prefix) for prefix in options.allow)
    except ValueError as error:
        raise CulvertError(f"respond: {error}") from None
    if not options.port:
        raise CulvertError("respond: --port 0 is no port")
    return respond(RespondOptions(listen, options.port, allow, options.user))


def _certificate(options: argparse.Namespace) -> int:
    from .certificate import make

    if options.days == 0:
        raise CulvertError("certificate: --days 0 is no time")
    harden()
    made = make(options.directory, options.name, options.days)
    expires_at = made.expires_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    print(json.dumps({"pin": made.pin, "expires_at": expires_at, "changed": made.changed}))
    return 0


def _agree(options: argparse.Namespace) -> int:
    from .agree import serve

    harden()
    print(json.dumps(serve(sys.stdin.buffer, options.identity, options.secrets)))
    return 0


def _health(options: argparse.Namespace) -> int:
    query(options.name, options.socket_directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
