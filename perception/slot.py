"""Where one thread leaves an item for the next one, with a bounded number waiting."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """The other side is gone: nothing more will come, or nobody will take it."""


class Slot(Generic[T]):
    """A bounded hand-over between two threads in which nothing is lost: a full slot makes the giver wait."""

    def __init__(self, capacity: int) -> None:
        self._items: deque[T] = deque()
        self._capacity = capacity
        self._finished = False
        self._aborted = False
        self._changed = threading.Condition()

    def put(self, item: T) -> None:
        """Leave ``item``, waiting for room. Raises `Closed` once the taker is gone."""
        with self._changed:
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
            item = self._items.popleft()
            self._changed.notify_all()
            return item

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
