"""Prediction sheets: image, label, prediction and errors side by side, a row per image and plane."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.files import write_whole
from training.datasets import CERTAIN, IGNORE, PLANES

CELL = 320  # width of a picture in a sheet, pixels
STRIP, FONT = 22, cv2.FONT_HERSHEY_SIMPLEX
TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE = (80, 175, 60), (60, 60, 225), (235, 125, 40)  # BGR: green, red, blue
UNKNOWN, MASK = (128, 128, 128), (200, 170, 40)

U8 = NDArray[np.uint8]


def prediction_sheet(
    images: U8,
    targets: U8,
    scores: NDArray[np.floating[Any]],
    path: Path,
    names: Sequence[str],
    planes: Sequence[str] = PLANES,
) -> None:
    """Write a JPEG with a row per image and plane: image, label, prediction, errors.

    In the errors found road is green, false road red, missed road blue and unknown grey.

    Args:
        images: uint8 ``(N, h, w, 3)`` BGR.
        targets: uint8 ``(N, K, h, w)`` of 0 to `CERTAIN`, or `IGNORE`, as the losses take them. A plane of which nothing is
            known has no row.
        scores: probabilities, float ``(N, K, h, w)``.
        names: of the images.
        planes: of the targets' channels.

    Raises:
        ValueError: shapes do not fit each other, or nothing is known of any image.
    """
    count, height, width = images.shape[:3]
    wanted = (count, len(planes), height, width)
    if images.shape[3:] != (3,) or targets.shape != wanted or scores.shape != wanted or len(names) != count:
        raise ValueError(
            f"images {images.shape}, targets {targets.shape}, scores {scores.shape} and {len(names)} names do not belong "
            f"together; targets and scores should be {wanted}"
        )
    rows = [
        sheet_row(images[i], targets[i, k], scores[i, k] > 0.5, f"{names[i]}  {planes[k]}")
        for i in range(count)
        for k in range(len(planes))
        if (targets[i, k] != IGNORE).any()
    ]
    if not rows:
        raise ValueError("no prediction sheet: nothing is known of any image; give labelled ones")
    head = np.full((STRIP, rows[0].shape[1], 3), 255, np.uint8)
    for column, title in enumerate(("image", "label", "prediction", "errors")):
        cv2.putText(head, title, (column * CELL + 6, STRIP - 7), FONT, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    path.parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(".jpg", np.vstack([head, *rows]), [cv2.IMWRITE_JPEG_QUALITY, 88])
    write_whole(path, np.asarray(data).tobytes())


def sheet_row(image: U8, target: U8, prediction: NDArray[np.bool_], name: str) -> U8:
    """A strip with the name and the IoU, and four pictures `CELL` pixels wide below it."""
    known, road = target != IGNORE, (target > CERTAIN // 2) & (target != IGNORE)
    found, false, missed = road & prediction, known & ~road & prediction, road & ~prediction
    union = int((found | false | missed).sum())
    score = f"IoU {found.sum() / union:.3f}" if union else "no road"
    grey = np.asarray(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR) // 2, np.uint8)
    pictures = [
        image,
        tinted(image, (road, MASK), (~known, UNKNOWN)),
        tinted(image, (prediction, MASK)),
        tinted(grey, (found, TRUE_POSITIVE), (false, FALSE_POSITIVE), (missed, FALSE_NEGATIVE), (~known, UNKNOWN)),
    ]
    size = (CELL, max(1, round(CELL * image.shape[0] / image.shape[1])))
    cells = np.hstack([cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in pictures])
    strip = np.full((STRIP, cells.shape[1], 3), 230, np.uint8)
    caption = f"{name}  {score}".encode("ascii", "replace").decode()
    cv2.putText(strip, caption, (6, STRIP - 7), FONT, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.asarray(np.vstack([strip, cells]), np.uint8)


def tinted(image: U8, *layers: tuple[NDArray[np.bool_], tuple[int, int, int]]) -> U8:
    """``image`` with each mask painted over it, colour and image half and half."""
    out: U8 = image.copy()
    for mask, colour in layers:
        out[mask] = (image[mask].astype(np.uint16) + np.array(colour, np.uint16)) // 2
    return out
