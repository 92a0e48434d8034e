"""The JSON file in which a user writes how a model of another code base was constructed.

Knows files and JSON. Does not know any code base; each importer checks the names and values itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from titans_export.titans_pytorch.arguments import ConfigError
from titans_format.files import MIB, read_regular, shown

_MOST_CONFIG = 16 * MIB


def read_json_config(path: Path) -> dict[str, Any]:
    """What the file holds, not checked yet: whoever reads it next has to refuse all but an object.

    Raises:
        ConfigError: it cannot be read, is larger than 16 MiB, or is no JSON.
    """
    try:
        found: dict[str, Any] = json.loads(read_regular(path, _MOST_CONFIG).decode("utf-8"))
    except OSError as error:
        raise ConfigError(shown(path, error), "name the file with the configuration") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON ({error})", "write the constructor's arguments as JSON") from error
    return found
