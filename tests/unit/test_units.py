# SPDX-License-Identifier: BSD-2-Clause
"""Quantities: exact both ways, and refused with a line that says what is meant."""

from collections.abc import Callable
from fractions import Fraction

import pytest

from valemgr import units

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (units.duration, "10ms", Fraction(1, 100)),
        (units.duration, "5us", Fraction(5, 10**6)),
        (units.duration, "5µs", Fraction(5, 10**6)),
        (units.duration, "3 ns", Fraction(3, 10**9)),
        (units.duration, "1.5s", Fraction(3, 2)),
        (units.duration, "2min", 120),
        (units.duration, "1h", 3600),
        (units.duration, 2, 2),
        (units.duration, 0.1, Fraction(1, 10)),
        (units.size, "128M", 128 << 20),
        (units.size, "4MiB", 4 << 20),
        (units.size, "1.5 G", 3 << 29),
        (units.size, "1T", 1 << 40),
        (units.size, "64K", 1 << 16),
        (units.size, "512B", 512),
        (units.size, 4096, 4096),
        (units.rate, "100M", 10**8),
        (units.rate, "10k", 10**4),
        (units.rate, "1.5Gbit/s", 15 * 10**8),
        (units.rate, "10kpps", 10**4),
        (units.rate, "7", 7),
        (units.percent, "1%", 1),
        (units.percent, "0.1 %", Fraction(1, 10)),
        (units.percent, 2.5, Fraction(5, 2)),
        (units.number, "0.5", Fraction(1, 2)),
    ],
)
def test_quantities(
    read: Callable[[units.Quantity], Fraction], text: units.Quantity, value: Fraction | int
) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text", "said"),
    [
        (units.duration, "10 parsecs", "as 10ms, 5us or 2s"),
        (units.duration, "-1s", "is not a duration"),
        (units.duration, "", "is not a duration"),
        (units.duration, "1e3", "is not a duration"),
        (units.duration, True, "'True' is not a duration"),
        (units.duration, float("nan"), "'nan' is not a duration"),
        (units.size, "128X", "as 128M or 4MiB"),
        (units.size, "256MB", "write MiB"),
        (units.size, "M", "is not a size"),
        (units.rate, "fast", "as 100M or 10k"),
        (units.rate, "1m", "is not a rate"),
        (units.percent, "half", "as 1% or 0.1"),
        (units.percent, "1%%", "is not a percentage"),
    ],
)
def test_what_is_none(
    read: Callable[[units.Quantity], Fraction], text: units.Quantity, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        read(text)


def test_whole_numbers_of_a_unit() -> None:
    assert units.whole(Fraction(6, 2), "3", "µs") == 3
    with pytest.raises(ValueError, match=r"'0.5us' is not a whole number of µs"):
        units.whole(Fraction(1, 2), "0.5us", "µs")


@pytest.mark.parametrize(
    "number", [0, 1, 999, 1000, 1024, 1500, 10**6, 25 * 10**5, 1 << 30, 10**12]
)
def test_what_is_written_reads_the_same(number: int) -> None:
    assert units.duration(units.write_duration(number)) * 10**6 == number
    assert units.size(units.write_size(number)) == number
    assert units.rate(units.write_rate(number)) == number


@pytest.mark.parametrize("number", [0.0, 0.1, 1 / 3, 1e-7, 1.5, 100.0, 86400.0])
def test_fractions_are_written_in_full(number: float) -> None:
    assert float(units.percent(units.write_percent(number))) == number
    assert float(units.duration(units.write_seconds(number))) == number


def test_the_largest_unit_that_is_exact() -> None:
    assert units.write_duration(10_000) == "10ms"
    assert units.write_duration(1_500) == "1500us"
    assert units.write_size(128 << 20) == "128M"
    assert units.write_rate(100 * 10**6) == "100M"
    assert units.write_percent(0.5) == "0.5%"
    assert units.write_seconds(60.0) == "60s"
