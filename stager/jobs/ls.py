"""``stager ls``: the objects of a model in a store, and how it stands with the whole."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from stager.core.errors import AccessDenied, DeadlineExceeded
from stager.core.location import Scheme
from stager.core.store_reports import Listing, ManifestFacts, StoredFile
from stager.core.units import shown
from stager.engine import runtime
from stager.jobs import remote
from stager.store.opening import credentials_of

if TYPE_CHECKING:
    from stager.core.location import Location
    from stager.core.manifest import Manifest
    from stager.engine.report import Reporter
    from stager.jobs.remote import Completeness, Model
    from stager.store.base import Store
    from stager.store.opening import StoreOptions


async def ls(
    location: Location, options: StoreOptions, reporter: Reporter, timeout: float | None = None
) -> int:
    """Print every object and the total; 0. A model that is incomplete or being updated is shown like any other.

    Reads the listing, the manifest and the indexes, no headers. Raises `NotFound` when nothing is there, `DeadlineExceeded` after `timeout`
    seconds (None: never).
    """
    with runtime.deadline(timeout):
        return await _list(location, options, reporter)
    raise DeadlineExceeded("--timeout ran out", hint="give it longer, or name a folder further down")


async def _list(location: Location, options: StoreOptions, reporter: Reporter) -> int:
    where = shown(str(location))
    opened: list[Store] = []
    open_one = remote.opener(options, reporter)

    def open_at(at: Location) -> Store:
        opened.append(open_one(at))
        return opened[-1]

    try:
        store, model = await runtime.in_thread(
            f"listing {where}", partial(remote.open_model, location, open_at, refuse=False)
        )
    except AccessDenied as error:
        if opened and (whose := credentials_of(opened[0])):
            error.hint = "; ".join(
                part for part in (error.hint, f"the credentials are from: {whose}") if part
            )
        raise
    known = await runtime.in_thread(f"reading indexes in {where}", partial(_judge, store, model))
    classes = location.scheme is Scheme.OSS
    found = [
        StoredFile(one.name, one.size, one.storage_class if classes else "", "") for one in model.objects
    ]
    found += [StoredFile(one.path, one.size, "", one.reason) for one in model.skipped]
    for event in sorted(found, key=lambda event: event.name):
        reporter.emit(event)
    reporter.emit(
        Listing(
            location=model.location,
            files=len(model.objects),
            total=model.total,
            skipped=len(model.skipped),
            formats=known.formats,
            complete=known.answer,
            reasons=known.lines,
            manifest=facts(model.manifest),
            broken=model.manifest_problem is not None,
        )
    )
    return 0


def facts(manifest: Manifest | None) -> ManifestFacts | None:
    """What a report says of `manifest`."""
    if manifest is None:
        return None
    return ManifestFacts(manifest.source, manifest.revision, manifest.state, len(manifest.files))


def _judge(store: Store, model: Model) -> Completeness:
    with remote.ranges(store, model) as read:
        return remote.completeness(model, read)
