"""What a fetch leaves beside the model: the manifest, which says complete last, and the journal of what is whole."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from stager import __version__
from stager.core.errors import StagerError
from stager.core.journal import Journal
from stager.core.manifest import COMPLETE, PATH, UPDATING, Manifest
from stager.jobs.reckoning import origin_of, read_manifest

if TYPE_CHECKING:
    from stager.jobs.options import FetchOptions
    from stager.jobs.reckoning import Reckoning
    from stager.node.parts import Target


class Imprint:
    """Writes into `target` what a fetch with `options` has made of it. All methods block."""

    def __init__(self, target: Target, options: FetchOptions) -> None:
        self._target = target
        self._selection = options.warm.selection
        self._origin = origin_of(options)

    def begin(self, reckoning: Reckoning) -> None:
        """Say that the folder is being changed: from now on nobody takes it for a model."""
        self._write(self._manifest(reckoning, UPDATING))

    def conclude(self, reckoning: Reckoning, *, changed: bool) -> None:
        """The journal with nothing in it but whole files, then the manifest: complete, and last."""
        journal = self._target.read_journal()
        whole = {one.path: one for one in reckoning.whole.values()}
        kept = {path: one for path, one in journal.whole.items() if self._there(path)}
        if changed or journal.parts or journal.whole != {**kept, **whole}:
            self._target.rewrite(Journal(whole={**kept, **whole}))
        manifest = self._manifest(reckoning, COMPLETE)
        if read_manifest(self._target.folder) != manifest:
            self._write(manifest)

    def _write(self, manifest: Manifest) -> None:
        self._target.write_small(PATH, manifest.dump(time=time.time(), version=__version__))

    def _manifest(self, reckoning: Reckoning, state: str) -> Manifest:
        model, selection = reckoning.model, self._selection
        crcs = {whole.path: whole.crc64 for whole in reckoning.whole.values()}
        entries = {
            entry.path: replace(entry, crc64=crcs.get(entry.path, entry.crc64)) for entry in reckoning.entries
        }
        before = read_manifest(self._target.folder)
        source = model.manifest.source if model.manifest else model.location
        partial = bool(selection.include or selection.exclude or model.single)
        if before is not None and before.source == source and partial:
            # What an earlier fetch with another selection brought is still there.
            there = (e for e in before.files if e.path in reckoning.names and self._there(e.path))
            entries = {**{entry.path: entry for entry in there}, **entries}
        files = tuple(entries[path] for path in sorted(entries))
        revision = model.manifest.revision if model.manifest else ""
        return Manifest(source, revision, state, files, self._origin)

    def _there(self, path: str) -> bool:
        """Whether a file has this name; what cannot be looked up is nothing of ours."""
        try:
            return self._target.stat(path) is not None
        except StagerError:
            return False
