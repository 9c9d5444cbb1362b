"""Counting pages after warming: by PATH, what was lost once and not again, and never at the price of pages."""

from __future__ import annotations

import os

import pytest

from stager.core.model import FileEntry, Known, LocalFile, Residency
from stager.jobs.survey import MountFacts, Survey
from stager.jobs.vigil import Vigil, by_path
from stager.node import filesystems, mounts
from stager.node.canary import Keeps
from stager.node.files import Found, identity_of
from tests.harness import MIB, Box, cold


def survey_of(*paths: str, keeps: Keeps = Keeps.YES) -> Survey:
    """A survey of files on the disk, each found below its own folder."""
    table = mounts.read()
    survey = Survey(Found())
    for path in paths:
        stat = os.stat(path)
        root, name = os.path.split(path)
        number = mounts.mount_id(path)
        entry = FileEntry(name, stat.st_size)
        survey.files.append(
            LocalFile(entry, path, root, identity_of(stat), number, stat.st_uid, stat.st_blocks * 512)
        )
        mount = table[number]
        survey.mounts[number] = MountFacts(mount, filesystems.traits_of(mount, table), keeps)
    return survey


def warm(path: str) -> None:
    with open(path, "rb") as file:
        file.read()


def found(*sizes: int) -> list[Residency]:
    return [Residency(size, size, Known.CACHESTAT) for size in sizes]


def test_what_is_lost_is_lost_once_and_may_be_lost_again(box: Box) -> None:
    path = box.file("m/a.data", 4 * MIB)
    vigil = Vigil(survey_of(path), [box.path("m")], found(4 * MIB))
    lost = []
    for act in (warm, lambda _: None, cold, lambda _: None, warm, cold):
        act(path)
        vigil.look_at_all()
        lost.append(vigil.lost // MIB)
    assert lost == [0, 0, 4, 4, 4, 8]
    (row,) = vigil.rows()
    assert (row.path, row.files, row.residency.resident, row.lost) == (box.path("m"), 1, 0, 8 * MIB)


def test_a_loss_is_news_once(box: Box) -> None:
    path = box.file("a.data", MIB, chill=False)
    vigil = Vigil(survey_of(path), [path], found(MIB))
    warm(path)
    vigil.look_at_all()
    cold(path)
    vigil.look_at_all()
    assert [vigil.report(tell=tell).news for tell in (False, True, True)] == [0, MIB, 0]


@pytest.mark.parametrize("keeps", Keeps)
def test_only_where_opening_costs_no_pages_files_are_opened(box: Box, keeps: Keeps) -> None:
    path = box.file("a.data", MIB)
    vigil = Vigil(survey_of(path, keeps=keeps), [path], found(MIB))
    os.unlink(path)  # who opens it finds out
    vigil.look_at_all()
    assert vigil.rows()[0].residency.resident == (None if keeps is Keeps.YES else MIB)


def test_each_path_has_its_own_figures_and_a_file_that_was_named_is_one(box: Box) -> None:
    a, b = box.file("m/a.data", MIB), box.file("m/b.data", 2 * MIB)
    c = box.file("n/c.data", 3 * MIB)
    survey = survey_of(a, b, c)
    rows = by_path(survey.files, found(MIB, 2 * MIB, 3 * MIB), [box.path("m"), c])
    assert [(row.path, row.files, row.residency.total) for row in rows] == [
        (box.path("m"), 2, 3 * MIB),
        (c, 1, 3 * MIB),
    ]
