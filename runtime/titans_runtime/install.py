"""How to install what is missing, as a command that works wherever this package came from.

A clone, a copied wheel and an index are installed with different words, so a remedy names the packages themselves, as
the metadata of this installation lists them. Knows extras. Does not know what they are for.
"""

from __future__ import annotations

import re
from importlib import metadata

DISTRIBUTION = "titans-deploy"
_REQUIREMENT = re.compile(r"\s*([^;\s]+)\s*;.*\bextra\s*==\s*['\"]([^'\"]+)['\"]")


def install(extras: str, options: str = "") -> str:
    """`pip install` of the packages of some extras, such as "cpu" or "export,tensorrt"."""
    wanted = extras.split(",")
    try:
        listed = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # run from its sources, without being installed
        return f"pip install '.[{extras}]' in a clone of {DISTRIBUTION}"
    found = [match for line in listed if (match := _REQUIREMENT.match(line)) and match[2] in wanted]
    packages = dict.fromkeys(f"'{match[1]}'" for match in found)
    return " ".join(["pip install", *([options] if options else []), *packages])
