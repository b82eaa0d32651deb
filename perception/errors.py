"""What a user can put right, as exceptions; the command line turns them into one sentence and an exit code."""

from __future__ import annotations


class FreespaceError(Exception):
    """Failed at run time: a full disk, a stream that broke off (exit code 1)."""


class BadInput(FreespaceError):
    """Cannot be done as asked: a missing file, an unknown key, a model that is none (exit code 2)."""
