"""Numbers as people and programs write them: what is certain is read, what can be read in two ways is not."""

import math
import re
from decimal import Decimal
from typing import Any

_HUGE = 10**300  # a float would not hold some whole numbers beyond
_GROUPED = re.compile(r"^[+-]?[0-9]{1,3}((,[0-9]{3}){2,}|(,[0-9]{3})+\.[0-9]+)$")  # 1,234,567 and 1,234.5
_COMMA = re.compile(r"^([+-]?)([0-9]*),([0-9]+)(e[+-]?[0-9]+)?$", re.IGNORECASE)
_THOUSANDS = re.compile(r"^[+-]?[1-9][0-9]{0,2},[0-9]{3}$")


def parse_number(value: Any) -> float | None:
    """Return a value as a number; None when it is none, or can be read in two ways (`1,234`).

    Text is read with space around it, with a decimal comma, with commas between thousands, and as per cent. NaN and
    infinities are numbers: those of a run that has diverged.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return float(value) if abs(value) < _HUGE else math.inf * (1 if value > 0 else -1)
    if isinstance(value, float | Decimal):
        return float(value)
    return _parse_text(value.strip()) if isinstance(value, str) else None


def _parse_text(text: str) -> float | None:
    if text.endswith("%"):
        number = None if text.endswith("%%") else _parse_text(text[:-1].rstrip())
        return None if number is None else number / 100
    if _GROUPED.match(text):
        text = text.replace(",", "")
    elif _COMMA.match(text) and not _THOUSANDS.match(text):
        text = text.replace(",", ".")
    try:
        return None if "_" in text or "," in text else float(text)
    except ValueError:
        return None
