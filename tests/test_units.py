"""Sizes, percentages, durations and names: round trips, edges, and what is refused."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stager.core.errors import UsageError
from stager.core.units import (
    GIB,
    KIB,
    MIB,
    format_duration,
    format_percent,
    format_size,
    parse_duration,
    parse_percent,
    parse_rate,
    parse_size,
    parse_size_or_percent,
    shown,
)

SIZES = st.integers(min_value=0, max_value=1 << 60)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1048576", MIB),
        ("64GiB", 64 * GIB),
        ("64G", 64 * GIB),
        ("64Gi", 64 * GIB),
        ("64g", 64 * GIB),
        ("64 GiB", 64 * GIB),
        (" 64GiB ", 64 * GIB),
        ("64GB", 64 * 10**9),
        ("1.5K", 1536),
        ("0.1k", 102),
        ("512 b", 512),
        ("1P", 1 << 50),
        ("3TB", 3 * 10**12),
    ],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["2GiB/s", "2GiB", "2 GiB/S", "2GiB /s "])
def test_only_rates_are_per_second(text: str) -> None:
    assert parse_rate(text) == 2 * GIB
    for wrong in ("2GiB/s/s", "2GiB/m", "/s", "2GiB/"):
        with pytest.raises(UsageError):
            parse_rate(wrong)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "G",
            "-1",
            "+1",
            "1e3",
            "1,5G",
            "1.G",
            ".5G",
            "64 Q",
            "64GiBs",
            "0x10",
            "nan",
            "inf",
            "٣",
            "90%",
        ),
        *("9" * 400, "1" + "0" * 5000, "1." + "0" * 400, "64G\nx", "1 2", "1GiB/m", "2GiB/s"),
    ],
)
def test_what_is_not_a_size_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert caught.value.hint


@given(SIZES)
def test_a_plain_number_of_bytes_is_exact(size: int) -> None:
    assert parse_size(str(size)) == size


@given(SIZES, st.sampled_from(["K", "M", "G", "T", "P"]))
def test_binary_units_are_exact(size: int, unit: str) -> None:
    assert parse_size(f"{size}{unit}") == size * 1024 ** ("KMGTP".index(unit) + 1)
    assert (
        parse_size(f"{size}{unit}iB") == parse_size(f"{size}{unit}") == parse_size(f"{size}{unit}i".lower())
    )


@given(SIZES)
def test_a_formatted_size_reads_back_within_its_rounding(size: int) -> None:
    text = format_size(size)
    unit = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB"].index(text.split()[1])
    assert abs(parse_size(text) - size) <= 0.05 * unit + 1


@given(SIZES, SIZES)
def test_formatting_keeps_the_order(one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert parse_size(format_size(low)) <= parse_size(format_size(high))


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (KIB, "1.0 KiB"),
        (4096, "4.0 KiB"),
        (MIB - 1, "1.0 MiB"),  # never 1024.0 KiB
        (GIB - 1, "1.0 GiB"),
        (int(26.4 * GIB), "26.4 GiB"),
        (1 << 60, "1048576.0 TiB"),
        (-4096, "-4.0 KiB"),
        (2.1 * GIB, "2.1 GiB"),
    ],
)
def test_sizes_as_people_read_them(size: float, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("text", "fraction"),
    [("90%", 0.9), ("90", 0.9), (" 90 % ", 0.9), ("0%", 0.0), ("100%", 1.0), ("99.5%", 0.995)],
)
def test_percentages(text: str, fraction: float) -> None:
    assert parse_percent(text) == pytest.approx(fraction)


@pytest.mark.parametrize("text", ["", "%", "-1%", "101%", "100.1", "90%%", "nan", "1e1", "٩٠%", "9" * 400])
def test_what_is_not_a_percentage_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_percent(text)


def test_a_size_or_a_percentage() -> None:
    assert parse_size_or_percent("64GiB") == 64 * GIB
    assert parse_size_or_percent("25%") == 0.25
    assert parse_size_or_percent("25%", 1000) == 250
    assert parse_size_or_percent("90", 1000) == 90  # bytes: only the sign makes a percentage
    for text in ("x%", "120%", "x"):
        with pytest.raises(UsageError):
            parse_size_or_percent(text)


@given(st.integers(min_value=0, max_value=1 << 60), st.integers(min_value=0, max_value=1 << 60))
def test_a_percentage_never_claims_all_or_nothing_wrongly(part: int, whole: int) -> None:
    text = format_percent(part, whole)
    assert (text == "100%") == (part >= whole)
    assert (text == "0%") == (part <= 0 < whole)
    if text not in ("100%", "0%"):
        assert 0.1 <= float(text.removesuffix("%")) <= 99.9
        assert abs(parse_percent(text) - part / whole) <= 0.001


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 0, "100%"),
        (0, 1, "0%"),
        (1, 1, "100%"),
        (1, 10**15, "0.1%"),
        (10**15 - 1, 10**15, "99.9%"),
        (1, 3, "33.3%"),
        (9996, 10000, "99.9%"),
    ],
)
def test_percentages_as_people_read_them(part: int, whole: int, text: str) -> None:
    assert format_percent(part, whole) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("1.5s", 1.5),
        ("500ms", 0.5),
        ("10m", 600),
        ("1h30m", 5400),
        ("1H30M", 5400),
        ("1d", 86400),
        (" 2m ", 120),
        ("0", 0),
        ("1m500ms", 60.5),
    ],
)
def test_durations_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", " ", "s", "-1", "1x", "1h30", "30 1m", "1h 30m", "1.m", ".5s", "nan", "inf", "1e3", "٣s", "9" * 400],
)
def test_what_is_not_a_duration_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_duration(text)
    assert caught.value.hint


@given(st.floats(min_value=0, max_value=10**7))
def test_a_formatted_duration_reads_back_within_its_rounding(seconds: float) -> None:
    step = 0.05 if seconds < 9.95 else 0.5 if seconds < 3599.5 else 60.5
    assert abs(parse_duration(format_duration(seconds)) - seconds) <= step + 1e-9


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"),
        (0.4, "0.4s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (18, "18s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (250, "4m10s"),
        (3599.6, "1h00m"),
        (7500, "2h05m"),
        (float("inf"), "?"),
        (float("nan"), "?"),
    ],
)
def test_durations_as_people_read_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"model.safetensors", "model.safetensors"),
        ("模型 1.gguf".encode(), "模型 1.gguf"),
        (b"two\nlines", "two\\nlines"),
        (b"tab\there\rcr", "tab\\there\\rcr"),
        (b"\x1b[31mred", "\\x1b[31mred"),
        (b"latin-\xff\xfe", "latin-\\xff\\xfe"),
        (b"\xe6\xa8\xa1-\xff-\n", "模-\\xff-\\n"),
        ("left\u202eright".encode(), "left\\u202eright"),
        (b"del\x7f", "del\\x7f"),
    ],
)
def test_names_fit_on_one_line(name: bytes, text: str) -> None:
    assert shown(os.fsdecode(name)) == text


@given(st.binary(max_size=40))
def test_any_file_name_can_be_shown(name: bytes) -> None:
    text = shown(name.decode("utf-8", "surrogateescape"))
    assert text.isprintable()
    text.encode("utf-8")  # no surrogate is left


@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_any_string_from_a_json_index_can_be_shown(name: str) -> None:
    assert shown(name).isprintable()
