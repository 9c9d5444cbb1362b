"""What a benchmark decides and computes without touching anything: order, samples, spans, statistics, tables."""

from __future__ import annotations

import json
import os
import statistics
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stager.core.bench.page_tables import Results, headline
from stager.core.bench.plan import (
    ALONE,
    ENDING_MAPPED,
    ENGINES,
    LOADED,
    METHODS,
    NAMES,
    OFFSETS,
    SAFETENSORS,
    Trial,
    in_round,
    methods_for,
    parse_loaders,
    parse_methods,
    spans_in_order,
    trials_of,
)
from stager.core.bench.quick import Sample, whole_sample
from stager.core.bench.reports import BenchCell, BenchRun, BenchStorage
from stager.core.bench.stats import make_cell, runs_of, spread, times_as_fast
from stager.core.bench.table import table
from stager.core.bench.wording import seconds_text, times_text
from stager.core.errors import UsageError
from stager.core.formats import safetensors
from stager.core.formats.source import Head
from stager.core.location import Location
from stager.core.select import selected
from stager.core.units import MIB
from stager.jobs.bench.children import Children, Ended
from stager.jobs.bench.ground import StoreGround, redacted
from stager.jobs.bench.methods import timeline
from stager.store.opening import StoreOptions
from tests import bench_samples

seconds = st.floats(min_value=1e-4, max_value=1e5)
REFERENCE = {"mean": statistics.fmean, "median": statistics.median, "min": min, "max": max}


def run(took: float = 1.0, **changes: object) -> BenchRun:
    body: dict[str, object] = {
        "storage": "/m", "filesystem": "ext4", "method": "read", "state": "cold", "loaders": 1, "round": 1, "run": "r001",
        "file": "", "bytes": 1000, "seconds": took, "loader_seconds": (took,), "files": (), "cpu_seconds": 0.5,
        "device_bytes": None, "resident_before": 0, "resident_after": 1000, "residency_by": "cachestat",
    }  # fmt: skip
    return BenchRun(**{**body, **changes})  # type: ignore[arg-type]


def storage(**changes: object) -> BenchStorage:
    body: dict[str, object] = {
        "path": "/m", "kind": "mount", "filesystem": "ext4", "mount_source": "/dev/vda", "mount_options": "rw", "read_ahead_kb": 128,
        "files": 2, "bytes": 1000, "of_files": 2, "of_bytes": 1000, "part": None, "keeps": "keeps", "residency_by": "cachestat",
        "device": "vda", "target": "",
    }  # fmt: skip
    return BenchStorage(**{**body, **changes})  # type: ignore[arg-type]


@given(st.lists(seconds, min_size=1, max_size=30))
def test_a_spread_is_what_the_textbook_says(values: list[float]) -> None:
    found = spread(values)
    for name, of in REFERENCE.items():
        assert getattr(found, name) == pytest.approx(of(values), rel=1e-12)
    assert found.min <= found.mean <= found.max
    if len(values) == 1:
        assert found.stdev is None  # a single number does not say how far apart numbers lie
    else:
        assert found.stdev == pytest.approx(statistics.stdev(values), abs=1e-9)


def test_a_spread_of_nothing_is_no_number() -> None:
    with pytest.raises(ValueError, match="no values"):
        spread([])


@given(st.lists(st.tuples(seconds, st.sampled_from(["good", "disturbed", "failed"])), max_size=20))
def test_a_cell_has_the_numbers_of_its_good_runs_and_counts_the_others(made: list[tuple[float, str]]) -> None:
    runs = [
        run(took, run=f"r{at}", disturbed=kind == "disturbed", failed="x" if kind == "failed" else "")
        for at, (took, kind) in enumerate(made)
    ]
    cell = make_cell("/m", "ext4", "read", "cold", 1, file="", runs=runs)
    good = [took for took, kind in made if kind == "good"]
    assert (cell.rounds, cell.disturbed + cell.failed) == (len(good), len(made) - len(good))
    assert len(cell.runs) == len(good)
    if good:
        assert cell.seconds is not None
        assert cell.seconds.median == statistics.median(good)
        assert cell.throughput == pytest.approx(1000 / statistics.median(good))
        assert not cell.unmeasured
    else:
        assert (cell.seconds, cell.throughput, cell.cpu_seconds) == (None, None, None)
        assert cell.unmeasured


def test_runs_are_told_apart_by_all_that_makes_a_cell() -> None:
    runs = [run(), run(loaders=4), run(state="warm"), run(method="warm"), run(file="a"), run(storage="/n")]
    assert runs_of(runs, "/m", "read", "cold", 1, "") == runs[:1]
    assert runs_of(runs, "/m", "read", "cold", 1, "a") == [runs[4]]


@given(st.integers(1, 12), st.integers(1, 9))
def test_every_round_has_every_trial_once_and_every_second_one_runs_backwards(many: int, rounds: int) -> None:
    trials = [Trial(0, "read", number) for number in range(many)]
    for number in range(rounds):
        ordered = in_round(trials, number)
        assert sorted(one.loaders for one in ordered) == list(range(many))
        if number % 2:
            assert ordered == in_round(trials, number - 1)[::-1]
    assert in_round([], 3) == []


def test_only_loaders_come_in_several() -> None:
    trials = trials_of(0, METHODS, (1, 8), ["a", "b"])
    assert {one.method for one in trials if one.loaders == 8} == set(LOADED)
    assert {(one.method, one.file) for one in trials if one.file} == {(m, f) for m in ALONE for f in "ab"}
    assert len(set(trials)) == len(trials)


def test_rivals_before_a_load_have_the_fewest_loaders_unless_they_are_named() -> None:
    found = {
        named: [
            one
            for one in trials_of(0, METHODS, (2, 8), named=named)
            if one.method in ("recipe+mmap", "vmtouch+mmap")
        ]
        for named in (True, False)
    }
    assert [one.loaders for one in found[True]] == [2, 8, 2, 8]
    assert [one.loaders for one in found[False]] == [2, 2]


def test_the_headline_is_open_to_everybody_who_ends_mapped() -> None:
    def made(method: str, took: float, state: str = "cold") -> BenchCell:
        runs = [run(took, method=method, state=state)]
        return make_cell("/m", "ext4", method, state, 1, file="", runs=runs)

    place = bench_samples.storage("/m", "ext4")
    whole = bench_samples.realistic()
    for fastest in ("recipe+mmap", "vmtouch+mmap", "warm+mmap", "mmap-names"):
        others = [made(name, 9.0) for name in ENDING_MAPPED if name != fastest]
        cells = (
            made("read", 1.0),
            made("recipe", 1.0),
            made(fastest, 2.0),
            *others,
            made("read", 1.0, "warm"),
            made("mmap-offsets", 3.0, "warm"),
        )
        results = Results(
            replace(whole, cells=cells, runs=(), summary=replace(whole.summary, storages=(place,)))
        )
        plain, cold, second = headline(results, place)
        assert [one.method for one in (plain, cold, second) if one] == ["read", fastest, "mmap-offsets"]


def test_methods_are_those_that_mean_something() -> None:
    assert methods_for((), store=True, to="") == ("fetch", "fetch+mmap")
    assert not set(ENGINES) & set(methods_for((), store=False, to="cpu"))
    assert methods_for((), store=False, to="", engine=True) == ("warm", "engine", "warm+engine")
    assert methods_for((), store=True, to="", engine=True) == ("fetch", "fetch+engine")
    assert methods_for(("engine", "read"), store=False, to="", engine=True) == ("engine", "read")
    assert SAFETENSORS not in methods_for((), store=False, to="")
    assert SAFETENSORS in methods_for((), store=False, to="cpu")
    assert methods_for(("warm", "fetch"), store=False, to="") == ("warm",)
    assert parse_methods(" warm, read,warm") == ("warm", "read")
    assert parse_loaders("8,1, 4,8") == (1, 4, 8)
    for text in ("", "0", "1,x", "-1", "257", "1,,2"):
        with pytest.raises(UsageError):
            parse_loaders(text)


tensor = st.tuples(st.text(max_size=6), st.integers(0, 40))


@given(
    st.dictionaries(st.text(max_size=6), st.integers(0, 40), max_size=12), st.randoms(), st.integers(1, 2000)
)
def test_the_tensors_of_a_real_header_are_touched_in_order_and_each_byte_once(sizes, random, part) -> None:  # type: ignore[no-untyped-def]
    data = safetensors_file(sizes, random)
    tensors = safetensors.layout(Head(lambda _, at, n: data[at : at + n], 0, len(data), 1 << 20))
    assert {name: end - start for name, start, end in tensors} == sizes
    for order in (NAMES, OFFSETS):
        for most in (None, part):
            spans = spans_in_order(tensors, order, len(data), most)
            covered = sorted(at for start, end in spans for at in range(start, end))
            assert covered == list(range(len(data) if most is None else min(most, len(data))))
    if sizes:
        starts = {name: start for name, start, _ in tensors}
        by_names = [start for start, _ in spans_in_order(tensors, NAMES, len(data), None)][1:]
        assert by_names == [starts[name] for name in sorted(sizes) if sizes[name]]
        by_offsets = [start for start, _ in spans_in_order(tensors, OFFSETS, len(data), None)]
        assert by_offsets == sorted(by_offsets)


def safetensors_file(sizes, random) -> bytes:  # type: ignore[no-untyped-def]
    names, at, header = list(sizes), 0, {}
    random.shuffle(names)
    for name in names:
        header[name] = {"dtype": "U8", "shape": [sizes[name]], "data_offsets": [at, at + sizes[name]]}
        at += sizes[name]
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(at)


def test_a_file_without_tensors_is_touched_from_its_beginning() -> None:
    assert safetensors.layout(Head(lambda _, at, n: b"x" * n, 0, 100, 1000)) == []
    assert spans_in_order([], NAMES, 100, None) == [(0, 100)]
    assert spans_in_order([], NAMES, 100, 7) == [(0, 7)]
    assert spans_in_order([], NAMES, 0, None) == []


def test_the_table_tells_bytes_from_below_where_they_are_counted() -> None:
    counted = run(device_bytes=3 * MIB, device_bytes_by="counter")
    cells = [make_cell("/m", "ext4", "read", "cold", 1, file="", runs=[counted])]
    lines = table([storage(counter="/run/bytes")], cells).splitlines()
    assert lines[1].split()[-1] == "below"
    assert lines[2].split()[-2:] == ["3.0", "MiB"]
    assert "that /run/bytes counted" in lines[4]
    bare = table([storage()], [make_cell("/m", "ext4", "read", "cold", 1, file="", runs=[run()])])
    assert "below" not in bare


def test_the_table_compares_with_a_cold_read_and_says_what_is_missing() -> None:
    cells = [
        make_cell("/m", "ext4", "read", "cold", 1, file="", runs=[run(4.0)]),
        make_cell("/m", "ext4", "warm", "cold", 1, file="", runs=[run(1.0)]),
        make_cell("/m", "ext4", "warm", "warm", 1, file="", runs=[], unmeasured="nobody knows"),
        make_cell("/m", "ext4", "read", "cold", 4, file="", runs=[run(8.0)]),
    ]
    lines = table([storage()], cells).splitlines()
    assert lines[2].split()[:6] == ["read", "cold", "4.00s", "1.0x", "8.00s", "1.0x"]
    assert lines[3].split()[:4] == ["warm", "cold", "1.00s", "4.0x"]
    assert lines[4].split() == ["warm", "second", "unknown"]
    assert lines[-1] == "  not measured: warm second: nobody knows"
    assert times_as_fast(cells[2], cells[0]) is None
    assert "of each of 2 the first 8.0 MiB (1000 B) read" in table([storage(part=8 * MIB)], cells)


def test_storages_of_different_amounts_are_not_compared_without_a_word() -> None:
    def told(size: int) -> bool:
        places = [storage(), storage(path="/n", bytes=size)]
        cells = [make_cell(one.path, "ext4", "read", "cold", 1, file="", runs=[run()]) for one in places]
        return "different amounts are read (/m 1000 B, /n" in table(places, cells)

    assert [told(size) for size in (1000, 991, 989, 250, 4000)] == [False, False, True, True, True]
    assert "different" not in table(
        [storage()], [make_cell("/m", "ext4", "read", "cold", 1, file="", runs=[run()])]
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00s"),
        (0.000369, "0.000369s"),
        (0.0123, "0.0123s"),
        (0.09996, "0.100s"),
        (1.239, "1.24s"),
        (9.999, "10.0s"),
        (38.06, "38.1s"),
        (99.94, "99.9s"),
        (250.0, "4m10s"),
    ],
)
def test_seconds_have_three_places(value: float, text: str) -> None:
    assert seconds_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00334, "0.0033x"),
        (0.206, "0.21x"),
        (0.999, "1.0x"),
        (2.84, "2.8x"),
        (99.4, "99.4x"),
        (103.2, "103x"),
    ],
)
def test_a_comparison_is_never_nothing(value: float, text: str) -> None:
    assert times_text(value) == text


def test_a_run_is_told_in_the_words_of_the_table() -> None:
    assert run(0.0271, state="warm").text() == "r001  /m: read, second, 1 loader: 0.0271s (36.0 KiB/s)"


def test_mount_options_are_shown_without_secrets() -> None:
    text = "rw,user_id=0,passwd_file=/a,password=hunter2,ak=LTAI,access_key_id=LTAI,url=x,kernel_cache"
    shown = redacted(text)
    assert "hunter2" not in shown
    assert "LTAI" not in shown
    assert shown.startswith("rw,user_id=0,")
    assert shown.endswith("kernel_cache")
    assert len(redacted("x" * 5000)) < 500


@given(
    st.text(st.sampled_from("ab/[]*?!-."), min_size=1, max_size=12),
    st.text(st.sampled_from("ab[]*?!-."), min_size=1, max_size=12),
)
def test_a_sampled_object_is_named_to_fetch_and_no_other(name: str, other: str) -> None:
    name = name.strip("/.") or "a"
    ground = store_ground((name, 5), (other, 7)).sampled(Sample((0,)))
    (glob,) = [word.removeprefix("--include=") for word in ground.words() if word.startswith("--include=")]
    assert selected(name, [glob], [])
    if "/" not in other and other != name:
        assert not selected(other, [glob], [])
    assert (ground.total, ground.storage.files) == (5, 1)


@given(st.integers(0, 1000))
def test_a_timeline_of_very_many_points_is_thinned_and_keeps_the_last(many: int) -> None:
    lines = [
        {
            "type": "progress",
            "verb": "warm",
            "elapsed": at / 10,
            "clock": 100.5 + at / 10,
            "done": at,
            "lanes": 1,
        }
        for at in range(many)
    ]
    out = "".join(f"{json.dumps(line)}\n" for line in [*lines, {"type": "note"}])
    found = timeline(Ended(1.0, 0.1, 0, out, "", began=100.0), "warm")
    assert len(found) <= 120
    assert len(found) >= min(many, 60)
    assert list(found) == sorted(found)
    assert not many or found[0] == (0.5, 0, 0)
    assert not many or found[-1] == (round(0.5 + (many - 1) / 10, 6), many - 1, 1)


def test_a_timeline_counts_from_the_start_of_the_command() -> None:
    slow = """if 1:
        import json, time
        time.sleep(0.3)
        for elapsed in (0.0, 0.1):
            now = time.monotonic() + elapsed
            print(json.dumps({"type": "progress", "verb": "warm", "elapsed": elapsed, "clock": now, "done": 1, "lanes": 2}))
    """
    ended = Children().command([sys.executable, "-c", slow], os.environ)
    (start, _, _), (first, *_), (last, *_) = timeline(ended, "warm")
    assert 0.3 <= start <= first
    assert last >= first + 0.1
    assert first <= ended.seconds


def test_no_part_of_an_object_is_fetched() -> None:
    ground = store_ground(("big", 100 * MIB)).sampled(whole_sample([100 * MIB], 8 * MIB))
    assert "--quick" in ground.why_not
    assert not store_ground(("big", 1)).why_not


def test_a_fetch_is_told_how_the_store_is_reached() -> None:
    options = StoreOptions(endpoint="http://x", anonymous=True, source_ips=("10.0.0.1", "10.0.0.2"))
    words = store_ground(("a", 1), options=options).words()
    assert {"--endpoint=http://x", "--anonymous", "--source-ip=10.0.0.1,10.0.0.2", "--signature=v4"} <= set(
        words
    )


def store_ground(*sizes: tuple[str, int], options: StoreOptions | None = None) -> StoreGround:
    total = sum(size for _, size in sizes)
    facts = storage(kind="store", files=len(sizes), of_files=len(sizes), bytes=total, of_bytes=total)
    return StoreGround(facts, Location.parse("oss://bucket/r1"), options or StoreOptions(), sizes, "/dev/shm")
