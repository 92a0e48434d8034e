"""Names that become files: what a name from outside may be before it is joined to a directory.

Every graph, engine and profile is kept under its graph's name, and every file of a bundle under the name that the
manifest gives it. This is the one place that says which names are plain. Does not know what they are for.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_LONGEST = 128  # characters; file systems take 255 bytes, and a name gets an ending
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
# Devices on Windows, with any ending
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)

PLAIN = f"a plain name: letters, digits, '_', '-' and '.', at most {_LONGEST}, not beginning with '-' or '.'"
INSIDE = "a relative path of plain names that stays inside the bundle"


def is_plain(name: str) -> bool:
    """Whether a name is that of a file in one directory, on every system, whatever is appended to it."""
    return len(name) <= _LONGEST and _PLAIN.fullmatch(name) is not None and _RESERVED.fullmatch(name) is None


def stays_inside(path: str) -> bool:
    """Whether a path, with `/` between folders, is made of plain names."""
    return bool(path) and str(PurePosixPath(path)) == path and all(is_plain(part) for part in path.split("/"))
