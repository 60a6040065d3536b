"""Numbers of bytes in and out of words: `24GiB` in a rule file, `570.8 GB` in a table."""

import re

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def parse_size(text: str) -> int:
    """`24GiB`, `24 GB` or `1073741824` -> bytes; raises ValueError saying what is expected."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]{0,3})", text.strip())
    if not match or match[2].upper() not in _UNITS:
        raise ValueError(f"{text[:40]!r} is not a size; write for example 24GiB or 512GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def format_size(num_bytes: int) -> str:
    """Bytes in the unit that leaves one to four digits before the point, decimal as on a disk."""
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if num_bytes >= (10 * scale if unit == "TB" else scale):
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes} B"
