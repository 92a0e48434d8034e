"""How to install what is missing, as a command that works wherever this package came from.

A clone, a wheel and an index are installed with different words. What is missing beside this package is named by the
packages themselves, as the metadata of this installation lists them. This package itself is named as `pip` recorded
it: by the folder, by the wheel or by its name. Knows extras. Does not know what they are for.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

DISTRIBUTION = "titans-deploy"
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)([^;\s]*)\s*(?:;.*\bextra\s*==\s*['\"]([^'\"]+)['\"])?")


def install(extras: str, options: str = "") -> str:
    """`pip install` of the packages of some extras, such as "cpu" or "export,tensorrt"."""
    wanted = extras.split(",")
    listed = _listed()
    if listed is None:  # run from its sources, without being installed
        return f"pip install '.[{extras}]' in a clone of {DISTRIBUTION}"
    return _pip(options, (name + bound for name, bound, extra in listed if extra in wanted))


def package(name: str) -> str:
    """`pip install` of one package, with the versions that this installation asks for."""
    return _pip("", (found + bound for found, bound, _ in _listed() or [(name, "", "")] if found == name))


def reinstall(source: bool = False) -> str:
    """How to install this package again, from where it came; `source`: compiled from a clone, not from a wheel."""
    url, place, editable = _origin()
    again = "pip install --force-reinstall --no-deps"
    if source and not (url and place.is_dir()):
        return f"run in a clone of {DISTRIBUTION}: {again} ."
    if not url:
        return f"install {DISTRIBUTION} again from where it came from"
    return f"run: {again} {'--editable ' if editable else ''}{shlex.quote(str(place))}"


def upgrade() -> str:
    """How to get a newer version of this package, the way it was installed."""
    url, place, _ = _origin()
    if not url:
        return f"get a newer {DISTRIBUTION} from where this one came from"
    if place.is_dir():
        return f"run: git -C {shlex.quote(str(place))} pull, and then {reinstall().removeprefix('run: ')}"
    return f"install a newer wheel than {place.name}"


def _pip(options: str, packages: Iterable[str]) -> str:
    named = dict.fromkeys(f"'{package}'" for package in packages)
    return " ".join(["pip install", *([options] if options else []), *named])


def _listed() -> list[tuple[str, str, str]] | None:
    """Name, versions and extra ("" for none) of every package that this one asks for; None if not installed."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return None
    return [(match[1], match[2], match[3] or "") for line in lines if (match := _REQUIREMENT.match(line))]


def _origin() -> tuple[str, Path, bool]:
    """Where pip took this package from, as it recorded it (PEP 610): URL, file or folder, and whether editable.

    The URL is "" for a package of an index, and for one that is not installed.
    """
    try:
        recorded = json.loads(metadata.distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
        url = str(recorded.get("url", ""))
        editable = bool(recorded.get("dir_info", {}).get("editable", False))
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        return "", Path(), False
    parts = urlsplit(url)
    place = Path(unquote(parts.path)) if parts.scheme == "file" else Path(url)
    return url, place, editable
