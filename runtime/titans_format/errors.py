"""The root of every error that these packages raise on purpose, and the one of a bundle that is not sound.

Knows the three parts of a message and how they make one line. Does not know what can go wrong: each package has its
own subclasses, and the command line shows every one of them in the same way.
"""

from __future__ import annotations

import os

MOST_LETTERS = 2000  # of a finding that is shown; a stranger's file may have names of a megabyte


class TitansError(Exception):
    """An error with its message in parts: `where: what; remedy`.

    what: what was found, and what was expected.
    remedy: what to do about it, in the imperative.
    where: the file, field or argument at fault, for a `what` that does not name it; "" otherwise.
    """

    def __init__(self, what: str, remedy: str, *, where: str | os.PathLike[str] = "") -> None:
        super().__init__(what, remedy)
        self.what, self.remedy, self.where = what, remedy, os.fspath(where)

    @property
    def finding(self) -> str:
        """The message without its remedy."""
        what = self.what if len(self.what) <= MOST_LETTERS else f"{self.what[:MOST_LETTERS]}…"
        return f"{self.where}: {what}" if self.where else what

    def __str__(self) -> str:
        return f"{self.finding}; {self.remedy}"


class BundleError(TitansError):
    """A bundle that is missing, truncated, altered, malformed or of a newer format."""
