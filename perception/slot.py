"""Where one thread leaves an item for the next one, with a bounded number waiting."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """The other side is gone: nothing more will come, or nobody will take it."""


class Slot(Generic[T]):
    """A bounded hand-over between two threads.

    A full slot makes the giver wait, so that nothing is lost; with ``newest_wins`` it never does: the oldest item goes.

    Attributes:
        dropped: items that nobody took in time.
        dropped_before: of these, the ones that preceded the item taken last.
    """

    def __init__(self, capacity: int, newest_wins: bool = False) -> None:
        self.dropped = 0
        self.dropped_before = 0
        self._items: deque[T] = deque()
        self._capacity, self._newest_wins = capacity, newest_wins
        self._finished = False
        self._aborted = False
        self._changed = threading.Condition()

    def put(self, item: T) -> None:
        """Leave ``item``, waiting for room, or making it. Raises `Closed` once the taker is gone."""
        with self._changed:
            if self._newest_wins:
                while len(self._items) >= self._capacity:
                    self._items.popleft()
                    self.dropped += 1
            else:
                self._changed.wait_for(lambda: len(self._items) < self._capacity or self._aborted)
            if self._aborted:
                raise Closed
            self._items.append(item)
            self._changed.notify_all()

    def get(self, timeout_s: float | None = None) -> T:
        """Take the oldest item, waiting for one.

        Raises:
            Closed: the giver has finished and nothing is left, or the slot was aborted.
            TimeoutError: nothing came within ``timeout_s``.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._items or self._finished or self._aborted, timeout_s):
                raise TimeoutError
            if self._aborted or not self._items:
                raise Closed
            item, self.dropped_before = self._items.popleft(), self.dropped
            self._changed.notify_all()
            return item

    def drop(self) -> None:
        """Count the item taken last as one that there was no time for."""
        with self._changed:
            self.dropped += 1

    def finish(self) -> None:
        """Nothing more will come; what waits is still taken."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Drop what waits and wake both sides."""
        with self._changed:
            self._aborted = True
            self._items.clear()
            self._changed.notify_all()
