"""Structured log records: an event with its fields, in the message and as data.

Knows `logging`. Does not know what happens.
"""

from __future__ import annotations

import logging

logger = logging.getLogger("titans_runtime")
logger.addHandler(logging.NullHandler())  # an application that did not ask for logs has none on its stderr


def record(level: int, event: str, **fields: object) -> None:
    """Log `event` with its fields: in the message as key=value, and as the record's attribute `titans`."""
    if logger.isEnabledFor(level):
        text = " ".join(f"{key}={value}" for key, value in fields.items())
        logger.log(level, "%s %s", event, text, extra={"titans": {"event": event, **fields}})
