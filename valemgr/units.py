# SPDX-License-Identifier: BSD-2-Clause
"""Quantities as people write them: `10ms`, `128M`, `100M` bit/s, `10k` frames a second, `1%`.

    duration    ns us ms s min h            a bare number is in seconds
    size        K M G T, KiB MiB GiB TiB    powers of 1024; a bare number is in bytes
    rate        k M G T, with a unit or none    powers of 1000; a bare number is per second
    percent     %                           a bare number is percent too

Each reader takes text or a number and returns an exact Fraction, or raises ValueError with a line
that says what is expected. Each writer is the inverse of its reader.
"""

import re
from decimal import Decimal
from fractions import Fraction

Quantity = str | int | float

NUMBER = r"[0-9]+(\.[0-9]+)?"
DURATION = rf"^{NUMBER} ?(ns|us|µs|ms|s|min|h)?$"
SIZE = rf"^{NUMBER} ?([KMGT](i?B)?|B)?$"
RATE = rf"^{NUMBER} ?[kMGT]?(bit/s|bps|pps|fps)?$"
PERCENT = rf"^{NUMBER} ?%?$"

_DURATIONS = {"ns": Fraction(1, 10**9), "us": Fraction(1, 10**6), "µs": Fraction(1, 10**6),
              "ms": Fraction(1, 1000), "": Fraction(1), "s": Fraction(1),
              "min": Fraction(60), "h": Fraction(3600)}  # fmt: skip
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_RATES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def duration(value: Quantity) -> Fraction:
    """Seconds."""
    amount, unit = _split(value, DURATION, "a duration, as 10ms, 5us or 2s")
    return amount * _DURATIONS[unit]


def size(value: Quantity) -> Fraction:
    """Bytes. `1MB` is refused: some mean 10^6 by it."""
    amount, unit = _split(value, SIZE, "a size, as 128M or 4MiB")
    if unit in ("KB", "MB", "GB", "TB"):
        raise ValueError(f"'{value}' has two meanings: write {unit[0]}iB, a power of 1024")
    return amount * _SIZES[unit[:1].replace("B", "")]


def rate(value: Quantity) -> Fraction:
    """Bits or frames a second."""
    amount, unit = _split(value, RATE, "a rate, as 100M or 10k")
    return amount * _RATES[unit[:1] if unit[:1] in _RATES else ""]


def percent(value: Quantity) -> Fraction:
    """Percent."""
    return _split(value, PERCENT, "a percentage, as 1% or 0.1")[0]


def number(value: Quantity) -> Fraction:
    """A number that is not negative."""
    return _split(value, NUMBER, "a number")[0]


def whole(amount: Fraction, value: Quantity, unit: str) -> int:
    """The amount, if it is whole; `value` is what was written."""
    if amount.denominator != 1:
        raise ValueError(f"'{value}' is not a whole number of {unit}")
    return amount.numerator


def write_duration(microseconds: int) -> str:
    """`10ms`; exact."""
    for unit, factor in (("s", 10**6), ("ms", 10**3)):
        if microseconds % factor == 0:
            return f"{microseconds // factor}{unit}"
    return f"{microseconds}us"


def write_seconds(seconds: float) -> str:
    """`0.5s`; exact."""
    return f"{_decimal(seconds)}s"


def write_percent(share: float) -> str:
    """`0.1%`; exact."""
    return f"{_decimal(share)}%"


def write_size(amount: int) -> str:
    """`128M`; exact."""
    return _largest(amount, _SIZES)


def write_rate(amount: int) -> str:
    """`100M`; exact."""
    return _largest(amount, _RATES)


def _split(value: Quantity, pattern: str, meant: str) -> tuple[Fraction, str]:
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(pattern, text):
        raise ValueError(f"'{value}' is not {meant}")
    digits = re.match(NUMBER, text)
    assert digits
    return Fraction(digits.group()), text[digits.end() :].strip(" %")


def _decimal(amount: float) -> str:
    """The shortest decimal without an exponent that reads as the same number."""
    text = f"{Decimal(repr(float(amount))):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _largest(amount: int, factors: dict[str, int]) -> str:
    fitting = [unit for unit, factor in factors.items() if amount and amount % factor == 0]
    unit = max(fitting, key=factors.__getitem__, default="")
    return f"{amount // factors[unit]}{unit}"
