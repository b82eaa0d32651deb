"""What a user is told: what can be put right, as exceptions that the command line turns into an exit code; and remarks."""

from __future__ import annotations

import sys
from contextlib import suppress


class FreespaceError(Exception):
    """Failed at run time: a full disk, a stream that broke off (exit code 1)."""


class BadInput(FreespaceError):
    """Cannot be done as asked: a missing file, an unknown key, a model that is none (exit code 2)."""


def tell(line: str) -> None:
    """A remark for the user, on stderr; where nobody reads that any more, nothing else suffers."""
    with suppress(OSError):
        print(f"freespace: {line}", file=sys.stderr)
