"""What llguidance's formats let through that their standards do not."""

from __future__ import annotations

from typing import Any

__all__ = ["FORMATS", "narrower"]

FORMATS = (
    *("date", "date-time", "duration", "email", "hostname"),
    *("ipv4", "ipv6", "time", "uri", "uuid"),
)

# 29 February needs a leap year: of the Gregorian calendar, as RFC 3339 says.
_LEAP_YEAR = (
    "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
)
_DATE = f"(?:{_LEAP_YEAR}-..-..|....-(?:0[13-9]|1[0-2])-..|....-02-(?:[01].|2[0-8]))"
# Which minutes may have a leap second depends on the offset; all may go without.
_TIME = "..:..:[0-5]"
# Two hyphens there are for names in other alphabets (RFC 5891), which have rules of their own.
_LABEL = r"(?:[^.]{1,3}|[^.]{2}(?:[^.-][^.]|-[^.-])[^.]*)"

_NARROWER: dict[str, dict[str, Any]] = {
    "date": {"pattern": f"^{_DATE}$"},
    "date-time": {"pattern": f"^{_DATE}.{_TIME}"},
    "time": {"pattern": f"^{_TIME}"},
    "hostname": {"pattern": rf"^{_LABEL}(?:\.{_LABEL})*$", "maxLength": 253},
}


def narrower(name: str) -> dict[str, Any] | None:
    """Return a schema to be met beside a format, if it needs one."""
    return _NARROWER.get(name)
