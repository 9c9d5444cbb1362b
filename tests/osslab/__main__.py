"""``python -m tests.osslab [--serve DIR] [--port N] ...``: serve OSS until SIGTERM.

One line of JSON on stdout says where and with which keys. The control path of the endpoint takes faults and tells the log:
POST and DELETE ``/_lab/faults`` (a list of faults as JSON), GET and DELETE ``/_lab/log``, GET ``/_lab/counters``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading
from contextlib import ExitStack

from tests.osslab.faults import KINDS
from tests.osslab.keys import AccessKey
from tests.osslab.metadata import Metadata
from tests.osslab.server import OssServer
from tests.osslab.sts import Sts
from tests.osslab.tls import certificates

_SIGNALS = {signal.SIGTERM, signal.SIGINT}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _named_size(text: str) -> tuple[str, int]:
    name, _, size = text.rpartition("=")
    digits = size.rstrip("KMGTiB")
    return name, int(digits) * _UNITS[size[len(digits) :].removesuffix("iB")]


def _folder(text: str) -> tuple[str, str]:
    folder, _, prefix = text.partition("=")
    return folder, prefix


def parser() -> argparse.ArgumentParser:
    """The options."""
    kinds = "\n".join(f"  {name:12} {what}" for name, (what, _) in KINDS.items())
    p = argparse.ArgumentParser(
        prog="python -m tests.osslab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f'faults, as in --faults \'[{{"kind": "reset", "times": 20}}]\':\n{kinds}',
    )
    add = p.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=0, help="default: a free one")
    add("--bucket", default="models")
    add("--region", default="cn-hangzhou")
    add("--acl", default="private", help="private, public-read, public-read-write")
    add(
        "--serve",
        action="append",
        default=[],
        type=_folder,
        metavar="DIR[=PREFIX]",
        help="its files are objects",
    )
    add(
        "--zeros",
        action="append",
        default=[],
        type=_named_size,
        metavar="KEY=SIZE",
        help="an object of zeros",
    )
    add("--room", metavar="DIR", help="where contents that come in are kept (default: in memory)")
    add("--access-key-id", help="default: a new one")
    add("--access-key-secret")
    add("--faults", default="[]", metavar="JSON", help="what is to go wrong, see below")
    add("--tls", metavar="DIR", help="https; the certificates and ca.pem are made there")
    add("--sts", action="store_true", help="also a look-alike STS")
    add("--metadata", action="store_true", help="also a look-alike metadata service of ECS")
    add("--lifeline", action="store_true", help="end when stdin ends, so that a killed test leaves nothing")
    return p


def _prepare(o: argparse.Namespace) -> tuple[OssServer, dict[str, object]]:
    made = certificates(o.tls) if o.tls else None
    server = OssServer(
        host=o.host,
        port=o.port,
        room=o.room,
        region=o.region,
        bucket=o.bucket,
        tls=made.context if made else None,
    )
    server.bucket.acl = o.acl
    if o.access_key_id:
        server.keys.forget(server.key.id)
        server.key = server.keys.add(AccessKey(o.access_key_id, o.access_key_secret or ""))
    count = sum(server.serve_folder(folder, prefix) for folder, prefix in o.serve)
    for name, size in o.zeros:
        server.put_zeros(name, size)
    server.faults.load(json.loads(o.faults))
    told: dict[str, object] = {
        "endpoint": server.endpoint,
        "bucket": o.bucket,
        "region": o.region,
        "access_key_id": server.key.id,
        "access_key_secret": server.key.secret,
        "objects": count + len(o.zeros),
        "pid": os.getpid(),
    }
    if made:
        told["ca"] = made.ca
    return server, told


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
    server, told = _prepare(o)
    with ExitStack() as stack:
        stack.enter_context(server)
        if o.sts:
            sts = stack.enter_context(Sts(server.keys, host=o.host))
            told |= {"sts": sts.endpoint, "role_arn": sts.role, "oidc_provider_arn": sts.provider}
            told["oidc_token"] = sts.issue(7 * 86400)
        if o.metadata:
            told["metadata"] = stack.enter_context(Metadata(server.keys, host=o.host)).endpoint
        print(json.dumps(told), flush=True)
        signal.sigwait(_SIGNALS)


if __name__ == "__main__":
    main()
