"""``python -m tests.hublab [--serve DIR=OWNER/NAME] [--port N] ...``: serve a hub and its CDN until SIGTERM.

One line of JSON on stdout says where and with which token. The control path of the endpoint takes faults and tells the log:
POST and DELETE ``/_lab/faults`` (a list of faults as JSON), GET and DELETE ``/_lab/log``, GET ``/_lab/counters``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading

from tests.hublab.faults import KINDS
from tests.hublab.repos import Zeros
from tests.hublab.server import HubServer
from tests.osslab.throttle import Link

_SIGNALS = {signal.SIGTERM, signal.SIGINT}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _bytes(text: str) -> int:
    digits = text.rstrip("KMGTiB")
    return int(digits) * _UNITS[text[len(digits) :].removesuffix("B").removesuffix("i")]


def _zeros(text: str) -> tuple[str, str, Zeros]:
    place, _, size = text.rpartition("=")
    owner, name, path = place.split("/", 2)
    told, _, sha256 = size.partition(":")
    return f"{owner}/{name}", path, Zeros(_bytes(told), sha256)


def _folder(text: str) -> tuple[str, str]:
    folder, _, name = text.rpartition("=")
    return folder, name


def parser() -> argparse.ArgumentParser:
    """The options."""
    kinds = "\n".join(f"  {name:12} {what}" for name, (what, _) in KINDS.items())
    p = argparse.ArgumentParser(
        prog="python -m tests.hublab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f'faults, as in --faults \'[{{"kind": "reset", "host": "cdn", "times": 20}}]\':\n{kinds}',
    )
    add = p.add_argument
    add("--host", default="127.0.0.1")
    add("--cdn-host", default="127.0.0.2")
    add("--internal-host", default="127.0.0.3")
    add("--port", type=int, default=0, help="the hub's; default: a free one")
    add(
        "--serve",
        action="append",
        default=[],
        type=_folder,
        metavar="DIR=OWNER/NAME",
        help="a repository of its files",
    )
    add(
        "--zeros",
        action="append",
        default=[],
        type=_zeros,
        metavar="OWNER/NAME/PATH=SIZE[:SHA256]",
        help="a file of zeros",
    )
    add("--private", action="append", default=[], metavar="OWNER/NAME", help="only with the token")
    add("--gated", action="append", default=[], metavar="OWNER/NAME", help="files only with the token")
    add("--token", help="default: a new one")
    add("--rate", type=_bytes, help="bytes per second of all bodies together")
    add("--latency", type=float, default=0.0, metavar="SECONDS", help="before each answer")
    add("--connection-rate", type=_bytes, help="bytes per second of each connection")
    add("--region", help="the region whose clients are sent to the internal address")
    add("--url-lifetime", type=float, default=3600.0, metavar="SECONDS", help="of the CDN's URLs")
    add(
        "--direct-below",
        type=_bytes,
        default=1 << 20,
        metavar="SIZE",
        help="smaller files come from the hub itself",
    )
    add("--listing-limit", type=int, default=3000, help="entries that a list of ModelScope's has at most")
    add("--faults", default="[]", metavar="JSON", help="what is to go wrong, see below")
    add("--lifeline", action="store_true", help="end when stdin ends, so that a killed test leaves nothing")
    return p


def _prepare(o: argparse.Namespace) -> HubServer:
    server = HubServer(
        host=o.host,
        cdn_host=o.cdn_host,
        internal_host=o.internal_host,
        port=o.port,
        rate=o.rate,
        link=Link(o.latency, o.connection_rate),
    )
    if o.token:
        server.token = o.token
        server.tokens = {o.token}
    for name in (*o.private, *o.gated):
        server.repo(name, private=name in o.private, gated=name in o.gated)
    for folder, name in o.serve:
        server.serve_folder(folder, name)
    for name, path, zeros in o.zeros:
        server.repo(name).commit({path: zeros})
    server.region, server.url_lifetime = o.region, o.url_lifetime
    server.direct_below, server.listing_limit = o.direct_below, o.listing_limit
    server.faults.load(json.loads(o.faults))
    return server


def main() -> None:
    """Serve, say so on stdout, wait for a signal, clean up."""
    p = parser()
    o = p.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # threads inherit this; the main thread waits for them
    main_thread = threading.get_ident()

    def watch() -> None:
        os.read(0, 1)
        signal.pthread_kill(main_thread, signal.SIGTERM)

    if o.lifeline:
        threading.Thread(target=watch, daemon=True).start()
    with _prepare(o) as server:
        told = {
            "endpoint": server.endpoint,
            "cdn": server.cdn_endpoint,
            "internal": server.internal_endpoint,
            "token": server.token,
            "repos": {name: repo.branches.get("master", "") for name, repo in server.repos.items()},
            "pid": os.getpid(),
        }
        print(json.dumps(told), flush=True)
        signal.sigwait(_SIGNALS)


if __name__ == "__main__":
    main()
