"""One engine, several cameras: each gets what it would get alone, and none is forgotten."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RED, number_of, numbered_image, road_image
from numpy.typing import NDArray

import engine.shared
from engine import open_engine
from engine.base import Engine, Scores
from engine.contract import EngineError
from engine.preprocess import PixelFormat, Resampling
from engine.shared import Request, SharedEngine

SOON_S = 5.0  # longer than anything here takes; only a failing test waits for it


class Stepped(Engine):
    """Answers with the picture's number; with ``steps`` it computes a batch each time that is released.

    Attributes:
        served: numbers in each batch so far, in order.
        sizes: of the images it was handed.
        entered: released when a batch is begun.
    """

    name = "stepped"

    def __init__(self, contract: Any, steps: bool = False, batch: int = 1, fails_at: int | None = None) -> None:
        super().__init__(contract)
        self.batch, self.fails_at = batch, fails_at
        self.served: list[list[int]] = []
        self.sizes: list[tuple[int, ...]] = []
        self.closed = 0
        self.steps = threading.Semaphore(0) if steps else None
        self.entered = threading.Semaphore(0)

    def resamplings(self, images: Sequence[NDArray[np.uint8]], pixel_format: PixelFormat) -> tuple[Resampling, ...]:
        self.sizes += [image.shape[:2] for image in images]
        return super().resamplings(images, pixel_format)

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        numbers = [number_of(image) for image in batch]
        self.served.append(numbers)
        self.entered.release()
        if self.steps:
            assert self.steps.acquire(timeout=SOON_S)
        if self.fails_at == len(self.served) - 1:
            raise EngineError("the device is lost")
        scores = np.zeros((len(batch), 2, 32, 64), np.uint8)
        scores += np.array(numbers, np.uint8).reshape(-1, 1, 1, 1)
        return scores

    def start(self, batch: NDArray[np.uint8]) -> Any:
        return self.infer(batch), 0.0

    def close(self) -> None:
        self.closed += 1


class Device(Stepped):
    """Resamples by itself."""

    def submit(self, images: Sequence[NDArray[np.uint8]], pixel_format: PixelFormat = "bgr") -> None:
        super().submit(images, pixel_format)


class Asker(threading.Thread):
    """A camera that asks for pictures of its ``number``, one after the other; ``error`` is what ended it."""

    def __init__(self, share: Engine, number: int, count: int = 10**6, pause_s: float = 0.0) -> None:
        super().__init__(daemon=True)
        self.share, self.number, self.count, self.pause_s = share, number, count, pause_s
        self.got: list[int] = []
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            for _ in range(self.count):
                self.got.append(int(self.share.segment([numbered_image(self.number)]).values[0, 0, 0, 0]))
                time.sleep(self.pause_s)
        except BaseException as error:
            self.error = error


def until(state: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON_S
    while not state():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.001)


def waiting(shared: SharedEngine) -> int:
    return len(shared._waiting)


@pytest.fixture
def shared_steps(tiny_engine: Engine) -> Iterator[tuple[SharedEngine, Stepped]]:
    """An engine that computes one image at a time, when it is told to."""
    stepped = Stepped(tiny_engine.contract, steps=True)
    shared = SharedEngine(stepped)
    yield shared, stepped
    assert stepped.steps
    stepped.steps.release(1000)
    shared.close()


# -- The same answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backend", "most"), [("onnxruntime", 1), ("onnxruntime", 4), ("openvino", 1)])
def test_each_gets_what_it_would_get_alone(tiny_model: Path, backend: str, most: int) -> None:
    """Three cameras with pictures of their own sizes, at the same time."""
    rng = np.random.default_rng(3)
    sizes = [(128, 64), (100, 70), (320, 41)]
    pictures = [[road_image(*size) + rng.integers(0, 4, (size[1], size[0], 1), np.uint8) for _ in range(8)] for size in sizes]
    with open_engine(tiny_model, backend, threads=1) as alone:
        wanted = [[alone.segment([picture]) for picture in camera] for camera in pictures]
    got: dict[int, list[Scores]] = {}
    with SharedEngine(open_engine(tiny_model, backend, threads=1, throughput=True), most) as shared:
        shares = [shared.share() for _ in sizes]

        def work(number: int) -> None:
            got[number] = [shares[number].segment([picture]) for picture in pictures[number]]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON_S)
    for number, camera in enumerate(wanted):
        for one, other in zip(got[number], camera, strict=True):
            np.testing.assert_array_equal(one.values, other.values)
            assert (one.planes, one.resamplings) == (other.planes, other.resamplings)


def test_a_share_says_what_it_is_a_share_of(tiny_engine: Engine) -> None:
    with SharedEngine(tiny_engine) as shared, shared.share() as share:
        for name in ("contract", "name", "device", "precision", "reason", "depth", "input_size"):
            assert getattr(share, name) == getattr(tiny_engine, name), name
        two = np.stack([np.full((32, 64, 3), colour, np.uint8) for colour in (RED, (0, 200, 0))])
        assert share.infer(two)[:, 0, 0, 0].tolist() == pytest.approx([0, 255], abs=1)


def test_several_on_their_way_come_back_in_their_order(tiny_model: Path) -> None:
    with (
        SharedEngine(open_engine(tiny_model, "openvino", threads=1, throughput=True)) as shared,
        shared.share() as one,
        shared.share() as other,
    ):
        assert one.depth == 3
        pictures = [np.full((32, 64, 3), (0, green, 0), np.uint8) for green in (30, 40, 50)]
        for picture in pictures:
            one.submit([picture])
            other.submit([picture[:16]])
        with pytest.raises(RuntimeError, match="3 batches are on their way already"):
            one.submit([pictures[0]])
        levels = [round(255 / (1 + np.exp(8 - 0.2 * green))) for green in (30, 40, 50)]
        for share in (one, other):
            assert [int(share.collect().values[0, 0, 5, 5]) for _ in pictures] == pytest.approx(levels, abs=1)
        with pytest.raises(RuntimeError, match="nothing has been submitted"):
            one.collect()


def test_an_image_may_be_reused_once_it_is_taken(shared_steps: tuple[SharedEngine, Stepped]) -> None:
    shared, stepped = shared_steps
    assert stepped.steps
    busy = Asker(shared.share(), 9, count=1)
    assert stepped.entered.acquire(timeout=SOON_S)
    image, share, seen = numbered_image(3), shared.share(), list[int]()

    def reuse() -> None:
        share.submit([image])
        image[:] = 255
        seen.append(int(share.collect().values[0, 0, 0, 0]))

    thread = threading.Thread(target=reuse)
    thread.start()
    until(lambda: waiting(shared) == 1)
    assert number_of(image) == 3, "it waits for its turn, for the engine has not seen it yet"
    stepped.steps.release(2)
    thread.join(SOON_S)
    busy.join(SOON_S)
    assert seen == [3]


@pytest.mark.parametrize(("kind", "size"), [(Stepped, (32, 64)), (Device, (480, 640))])
def test_a_processor_resamples_in_the_cameras_thread(tiny_engine: Engine, kind: type[Stepped], size: tuple[int, int]) -> None:
    engine = kind(tiny_engine.contract)
    with SharedEngine(engine) as shared:
        scores = shared.share().segment([numbered_image(1, 640, 480)])
    assert engine.sizes == [size]
    assert scores.resamplings[0].frame_size == (640, 480)


def test_images_of_different_formats_do_not_share_a_batch(tiny_engine: Engine) -> None:
    stepped = Device(tiny_engine.contract, steps=True, batch=8)
    with SharedEngine(stepped) as shared:
        assert stepped.steps
        first = Asker(shared.share(), 1, count=1)
        assert stepped.entered.acquire(timeout=SOON_S)
        grey = np.full((32, 64, 2), (16 + 9 * 5, 128), np.uint8)
        shares = [shared.share() for _ in range(4)]
        threads = []
        for number, share in enumerate(shares):
            picture, pixel_format = (grey, "yuyv") if number == 2 else (numbered_image(number), "bgr")
            threads.append(threading.Thread(target=share.segment, args=([picture], pixel_format)))
            threads[-1].start()
            until(lambda number=number: waiting(shared) == number + 1)
        stepped.steps.release(10)
        for thread in [first, *threads]:
            thread.join(SOON_S)
        assert [len(numbers) for numbers in stepped.served] == [1, 2, 1, 1]
        assert [numbers for numbers in stepped.served if len(numbers) == 2 or numbers == [3]] == [[0, 1], [3]]


def test_what_one_waits_for_the_others_is_in_its_time(shared_steps: tuple[SharedEngine, Stepped]) -> None:
    shared, stepped = shared_steps
    assert stepped.steps
    busy = Asker(shared.share(), 1, count=1)
    assert stepped.entered.acquire(timeout=SOON_S)
    times: list[tuple[float, Scores]] = []

    def ask() -> None:
        share, began = shared.share(), time.perf_counter_ns()
        scores = share.segment([numbered_image(2)])
        times.append(((time.perf_counter_ns() - began) / 1e6, scores))

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.1)
    stepped.steps.release(2)
    thread.join(SOON_S)
    busy.join(SOON_S)
    ((wall_ms, scores),) = times
    assert scores.timings.infer_ms > 90
    assert scores.timings.preprocess_ms > 0
    assert scores.timings.preprocess_ms + scores.timings.infer_ms <= wall_ms


# -- Fairness ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "wanted"),
    [
        (1, [[0], [1], [2], [3], [0], [1], [2], [3], [0], [1]]),
        (2, [[0], [1, 2], [0, 3], [1, 2], [0, 3]]),  # of those served together either may be back first
    ],
)
def test_the_longest_waiting_is_served_first(tiny_engine: Engine, most: int, wanted: list[list[int]]) -> None:
    """Four cameras that want all they can get: after each batch those served are back before the next one is over."""
    stepped = Stepped(tiny_engine.contract, steps=True, batch=most)
    with SharedEngine(stepped) as shared:
        assert stepped.steps
        askers = []
        for number in range(4):
            askers.append(Asker(shared.share(), number))
            if not number:
                assert stepped.entered.acquire(timeout=SOON_S)
            until(lambda number=number: waiting(shared) == number)
        for step, batch in enumerate(wanted):
            assert sorted(stepped.served[step]) == batch
            stepped.steps.release()
            assert stepped.entered.acquire(timeout=SOON_S)
            following = len(stepped.served[step + 1])
            until(lambda following=following: waiting(shared) + following == 4)
        threading.Timer(0.0, lambda: stepped.steps and stepped.steps.release(1000)).start()
    for asker in askers:
        asker.join(SOON_S)
        assert set(asker.got) == {asker.number}


class Logged(SharedEngine):
    """Notes whose request comes and whose is served, in the order in which that happens."""

    def __init__(self, engine: Engine) -> None:
        self.log: list[tuple[str, int]] = []
        super().__init__(engine)

    def ask(self, request: Request) -> None:
        with self._changed:
            super().ask(request)
            self.log.append(("asks", number_of(request.images[0])))

    def _next(self, running: int) -> list[Request]:
        with self._changed:
            batch = super()._next(running)
            self.log += [("served", number_of(request.images[0])) for request in batch]
            return batch


@pytest.mark.parametrize("most", [1, 3])
def test_nobody_is_passed_over_twice(tiny_engine: Engine, most: int) -> None:
    """Cameras of very different appetite: while one waits, no other is served more than once."""
    with Logged(Stepped(tiny_engine.contract, batch=most)) as shared:
        pauses = (0.0, 0.0, 0.0, 0.002, 0.005, 0.02)
        askers = [Asker(shared.share(), number, pause_s=pause) for number, pause in enumerate(pauses)]
        until(lambda: len(askers[-1].got) >= 20)
    for asker in askers:
        asker.join(SOON_S)
    overtaken: dict[int, Counter[int]] = {}
    waits = 0
    for event, number in shared.log:
        if event == "asks":
            assert number not in overtaken, "at most one request of a share waits"
            overtaken[number] = Counter()
            continue
        waits += bool(overtaken.pop(number))
        for others in overtaken.values():
            others[number] += 1
            assert others[number] == 1, "passed over twice"
    assert waits > 50, "there was something to be fair about"
    assert len(askers[0].got) > len(askers[-1].got), "who wants little gets little"


# -- Ends --------------------------------------------------------------------------------------------------------------


def test_a_bad_image_is_nobody_elses_matter(tiny_engine: Engine) -> None:
    with SharedEngine(tiny_engine) as shared:
        other = Asker(shared.share(), 1)
        with shared.share() as share:
            for bad in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
                with pytest.raises(ValueError, match="uint8"):
                    share.segment([bad])
            with pytest.raises(ValueError, match="no images"):
                share.segment([])
            with pytest.raises(ValueError, match="2 images, but 1 are taken at a time"):
                share.segment([numbered_image(1)] * 2)
            assert share.segment([road_image()]).values.shape == (1, 2, 32, 64)
        seen = len(other.got)
        until(lambda: len(other.got) > seen + 10)
        assert other.error is None


def test_a_share_that_closes_while_it_waits_leaves_the_others_alone(shared_steps: tuple[SharedEngine, Stepped]) -> None:
    shared, stepped = shared_steps
    assert stepped.steps
    busy, leaving = Asker(shared.share(), 1, count=2), shared.share()
    assert stepped.entered.acquire(timeout=SOON_S)
    gone, last = Asker(leaving, 2), None
    until(lambda: waiting(shared) == 1)
    last = Asker(shared.share(), 3, count=2)
    until(lambda: waiting(shared) == 2)
    leaving.close()
    leaving.close()
    gone.join(SOON_S)
    assert isinstance(gone.error, EngineError)
    assert "closed" in str(gone.error)
    stepped.steps.release(4)
    busy.join(SOON_S)
    last.join(SOON_S)
    assert (busy.got, last.got, busy.error, last.error) == ([1, 1], [3, 3], None, None)
    assert [2] not in stepped.served, "nobody wants it any more"
    with pytest.raises(EngineError, match="closed"):
        leaving.submit([numbered_image(1)])


@pytest.mark.parametrize("most", [1, 2])
def test_an_engine_that_fails_has_failed_for_all(tiny_engine: Engine, most: int) -> None:
    stepped = Stepped(tiny_engine.contract, batch=most, fails_at=7)
    with SharedEngine(stepped) as shared:
        askers = [Asker(shared.share(), number) for number in range(4)]
        for asker in askers:
            asker.join(SOON_S)
            assert isinstance(asker.error, EngineError)
            assert str(asker.error) == "the device is lost"
        with pytest.raises(EngineError, match="the device is lost"):
            shared.share().segment([numbered_image(1)])
    assert stepped.closed == 1
    assert len(stepped.served) == 8, "it is not asked again"


def test_the_end_is_clean(tiny_engine: Engine) -> None:
    stepped = Stepped(tiny_engine.contract)
    shared = SharedEngine(stepped)
    askers = [Asker(shared.share(), number) for number in range(3)]
    until(lambda: all(len(asker.got) > 3 for asker in askers))
    shared.close()
    shared.close()
    for asker in askers:
        asker.join(SOON_S)
        assert isinstance(asker.error, EngineError)
    assert stepped.closed >= 1
    assert not any(thread.name == "engine" for thread in threading.enumerate())


def test_an_engine_that_hangs_is_left_behind(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.shared, "CLOSE_S", 0.1)
    stepped = Stepped(tiny_engine.contract, steps=True)
    shared = SharedEngine(stepped)
    asker, waits = Asker(shared.share(), 1), Asker(shared.share(), 2)
    assert stepped.entered.acquire(timeout=SOON_S)
    until(lambda: waiting(shared) == 1)
    began = time.monotonic()
    shared.close()
    assert time.monotonic() - began < 2
    assert stepped.closed == 0, "it is in use"
    late = next(a for a in (asker, waits) if a.number != stepped.served[0][0])
    late.join(SOON_S)
    assert isinstance(late.error, EngineError)
    assert stepped.steps
    stepped.steps.release(10)
