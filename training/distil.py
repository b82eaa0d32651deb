"""Distillation by views: a teacher's scores for ``ego`` on many crops of labelled images and of unlabelled footage.

The teacher and the network to be trained look at the same view of a scene (Beyer et al. 2022, "Knowledge distillation: a
good teacher is patient and consistent"). The teacher looks once and its scores are kept in a file, so that it costs nothing
while training; light and weather are varied afterwards, on the student's side only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.augment import random_view, take_view
from training.datasets import CERTAIN, FOOTAGE, IGNORE, PLANES, READERS, VIEWS_FILE, Sample, hard_targets, read_sample
from training.hints import HINT_SUFFIX, Moments
from training.splits import assignment_of

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

EGO = PLANES.index("ego")
VIEW_SIZE = (640, 360)
TEACHER_WEIGHT = 0.6  # of the teacher where a label says something as well; the label has the rest


class Teacher:
    """A road segmentation network as public ones are exported: float ``(1, 3, h, w)``, RGB / 255, in; its first output the
    logits ``(1, 2, h, w)`` of elsewhere and drivable."""

    def __init__(self, path: Path, layer: str | None = None) -> None:
        """``layer`` names a tensor of the file, ``(1, C, h, w)``: what it holds is kept as the hint of every score.

        Raises ValueError: no such network in the file, or no such tensor.
        """
        import openvino

        self.layer, self.hint = layer, np.zeros((0, 0, 0), np.float32)
        try:
            model: Any = openvino.Core().read_model(str(path))
            if layer:
                model.add_outputs(layer)
            shapes = [list(model.input(0).shape), list(model.output(0).shape)]
        except RuntimeError as error:
            raise ValueError(f"{path}: not a network with one fixed input: {str(error).strip().splitlines()[-1]}") from error
        if shapes[0][:2] != [1, 3] or shapes[1] != [1, 2, *shapes[0][2:]]:
            raise ValueError(f"{path}: wanted (1, 3, h, w) in and (1, 2, h, w) out, found {shapes[0]} and {shapes[1]}")
        self.identity = f"{path.name}, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
        self.size: tuple[int, int] = (shapes[0][3], shapes[0][2])
        compiled: Any = openvino.Core().compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
        self._request: Any = compiled.create_infer_request()

    def score(self, image: U8) -> F32:
        """Probability of drivable, float ``(h, w)``, for a BGR image of the teacher's size: the mean of what it says of the
        image and of its mirror image, which is better than either. The hint is the image's."""
        mirrored = self._ask(np.ascontiguousarray(image[:, ::-1]))[:, ::-1]
        return np.asarray((self._ask(image) + mirrored) / 2, np.float32)

    def _ask(self, image: U8) -> F32:
        planes = np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)[None], np.float32) / 255
        outputs = self._request.infer([planes])
        elsewhere, drivable = outputs[0][0]
        if self.layer:
            self.hint = np.array(outputs[len(outputs) - 1][0], np.float32)
            if self.hint.ndim != 3:
                raise ValueError(f"hints: {self.layer} is {self.hint.ndim + 1}-dimensional; wanted a feature map (1, C, h, w)")
        return np.asarray(1 / (1 + np.exp(elsewhere - drivable)), np.float32)


def write_views(
    teacher: Teacher, samples: Sequence[Sample], footage: Sequence[Path], views: dict[str, int], out: Path, seed: int = 1
) -> int:
    """Write ``<out>/<data set>/<number>.jpg`` and, beside each, its targets as ``.png`` (see `training.datasets`) and, where
    the teacher gives hints, these as ``.npy``, float16 ``(C, h, w)`` (see `training.hints`).

    At the end ``views.json`` says who the teacher was and how many views of what there are.

    Args:
        samples: labelled images, of the training split only.
        footage: videos without labels; one frame a second is taken.
        views: how many views of each image of a data set; ``footage`` is the name for footage.

    Returns:
        number of views.

    Raises:
        ValueError: an image or a video cannot be read.
    """
    counts: dict[str, int] = {}
    moments = Moments()
    for index, (name, image, planes) in enumerate(scenes(samples, footage)):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for turn in range(views.get(name, 0)):
            view, targets = look(teacher, image, planes, np.random.default_rng([seed, index, turn]))
            stem = f"{index:05d}-{turn:02d}"
            if teacher.layer:
                np.save(folder / f"{stem}{HINT_SUFFIX}", teacher.hint.astype(np.float16))
                moments.add(teacher.hint)
            save(folder / f"{stem}.png", np.dstack([*targets, np.zeros_like(targets[0])]))
            save(folder / f"{stem}.jpg", view)
            counts[name] = counts.get(name, 0) + 1
    if not counts:
        raise ValueError(f"no views: none of {', '.join(views)} is here, or each is asked for 0 times; see --views")
    origin: dict[str, Any] = {"teacher": teacher.identity, "footage": [path.name for path in footage], "views": counts}
    origin["sequences"] = assignment_of({"train": [s for s in samples if views.get(s.dataset)]})["train"]
    if teacher.layer:
        origin["hints"] = moments.origin(teacher.layer)
    (out / VIEWS_FILE).write_text(json.dumps(origin, indent=2) + "\n")
    return sum(counts.values())


def save(path: Path, image: U8) -> None:
    """Raises ValueError: it cannot be written."""
    if not cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix == ".jpg" else []):
        raise ValueError(f"{path}: cannot be written; is the disk full?")


def parse_views(text: str, datasets: Collection[str] = ()) -> dict[str, int]:
    """``"bdd100k=16,footage=4"`` as a dictionary.

    Raises:
        ValueError: it is not of that form, or names neither a public data set, nor one of ``datasets``, nor ``footage``.
    """
    known = [*sorted({*READERS, *datasets}), FOOTAGE]
    try:
        views = {name: int(number) for name, number in (part.split("=") for part in text.split(","))}
        if min(views.values()) < 0 or not views.keys() <= set(known):
            raise ValueError(text)
        return views
    except ValueError as error:
        raise ValueError(f"views {text!r}: wanted {', '.join(known)}, each with =number, and commas between") from error


def scenes(samples: Sequence[Sample], footage: Sequence[Path]) -> Iterator[tuple[str, U8, U8]]:
    """Data set, BGR image and planes of 0, 1, `IGNORE` of everything there is to look at."""
    for sample in samples:
        yield sample.dataset, *read_sample(sample)
    for path in footage:
        video = cv2.VideoCapture(str(path))
        if not video.isOpened():
            raise ValueError(f"{path}: cannot be opened as a video")
        every = max(1, round(video.get(cv2.CAP_PROP_FPS)))
        number = 0
        while video.grab():
            found, image = video.retrieve() if number % every == 0 else (False, None)
            if found:
                frame = np.asarray(image, np.uint8)
                yield FOOTAGE, frame, np.full((len(PLANES), *frame.shape[:2]), IGNORE, np.uint8)
            number += 1
        video.release()


def look(teacher: Teacher, image: U8, planes: U8, rng: np.random.Generator) -> tuple[U8, U8]:
    """One random view, ``VIEW_SIZE``, and its targets ``(K, h, w)``: 0 to `CERTAIN`, or `IGNORE`.

    What the label says of ``ego`` is blended with what the teacher says, for cross-entropy is linear in its target; where
    the label is silent, the teacher's word is taken alone.
    """
    matrix = random_view((image.shape[1], image.shape[0]), teacher.size, rng)
    view, labels = take_view(image, planes, matrix, teacher.size)
    inside = cv2.warpAffine(np.ones(image.shape[:2], np.uint8), matrix, teacher.size, flags=cv2.INTER_NEAREST) > 0
    score = without_seams(teacher.score(view))

    targets = hard_targets(labels)
    ego = labels[EGO]
    blend = TEACHER_WEIGHT * score + (1 - TEACHER_WEIGHT) * ego
    settled = (ego == 0) & (labels[1 - EGO] == 0)  # off the road: no teacher is asked
    wanted = np.where(ego == IGNORE, score, np.where(settled, 0, blend))
    targets[EGO] = np.where(inside, np.rint(wanted * CERTAIN), IGNORE).astype(np.uint8)
    small = cv2.resize(view, VIEW_SIZE, interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8), np.stack([cv2.resize(t, VIEW_SIZE, interpolation=cv2.INTER_NEAREST) for t in targets])


def without_seams(score: F32) -> F32:
    """Lane markings belong to the drivable area: the thin gaps that BDD100K leaves at them are closed."""
    size = round(score.shape[1] * 0.012) | 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    return np.asarray(cv2.morphologyEx(score, cv2.MORPH_CLOSE, kernel), np.float32)
