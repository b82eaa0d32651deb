"""Labelled driving images, read as two target planes.

Every data set labels one of two things, and says nothing of the other:

========  =================================  =======================================
data set  ``freespace`` (whole road)         ``ego`` (what the ego vehicle may use)
========  =================================  =======================================
CamVid    labelled                           0 off the road, unknown on it
IDD Lite  labelled                           0 off the road, unknown on it
BDD100K   1 where ego is 1, 0 far above the  labelled (seams between lanes unknown)
          road and on the bonnet
========  =================================  =======================================

Unknown is `IGNORE` and takes no part in loss or metrics.

Targets for training are probabilities as uint8, 0 to `CERTAIN`, or `IGNORE`: hard ones from labels, soft ones from the views
that `training.distil` writes (``<views>/<data set>/*.jpg``, each with a ``.png`` whose first channels are the planes).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.contract import KNOWN_PLANES

PLANES = KNOWN_PLANES
IGNORE = 255
CERTAIN = 254  # the target that stands for probability 1
FOOTAGE = "footage"  # views of videos without labels
VIEWS_FILE = "views.json"  # whose views they are; written last
SPLITS = ("train", "dev", "val")
FOLDERS = (
    ("camvid/train", "camvid"),
    ("camvid/val", "camvid"),
    ("idd_lite/train", "idd_lite"),
    ("bdd100k/train", "bdd100k"),
)

U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """One labelled image on disk.

    Attributes:
        dataset: a key of `READERS`.
        sequence: the drive it comes from.
        condition: ``day`` or ``night`` where known, else ``any``.
        published_split: where the data set itself says it, else None.
        view: the label holds targets for training, soft ones too.
    """

    dataset: str
    sequence: str
    image: Path
    label: Path
    condition: str = "any"
    published_split: str | None = None
    view: bool = False


def find_samples(root: Path) -> list[Sample]:
    """Every labelled image of the data sets below ``root`` (``camvid``, ``idd_lite``, ``bdd100k``), in a fixed order.

    Raises:
        FileNotFoundError: no known data set lies there, or an image has no label.
    """
    samples: list[Sample] = []
    day, night = (read_names(root / f"bdd100k/train/{name}.txt") for name in ("day", "night"))
    for folder, name in FOLDERS:
        published = folder.split("/")[1] if name == "camvid" else None
        for image in sorted((root / folder / "images").glob("*.jpg")):
            label = root / folder / "labels" / f"{image.stem}.png"
            if not label.exists():
                raise FileNotFoundError(f"{image} has no label {label}")
            sequence = image.stem if name == "bdd100k" else image.stem.split("_")[0]
            condition = "day" if image.stem in day else "night" if image.stem in night else "any"
            samples.append(Sample(name, sequence, image, label, condition, published))
    if not samples:
        raise FileNotFoundError(f"no labelled images below {root}: expected camvid/, idd_lite/ or bdd100k/")
    return samples


def find_views(root: Path) -> list[Sample]:
    """What `training.distil` wrote below ``root``, all of it for training. Raises FileNotFoundError: it is not all there."""
    if not (root / VIEWS_FILE).exists():
        raise FileNotFoundError(f"no {VIEWS_FILE} in {root}; 'freespace distil' writes views, and that file last")
    images = sorted(root.glob("*/*.jpg"))
    return [Sample(i.parent.name, i.stem, i, i.with_suffix(".png"), published_split="train", view=True) for i in images]


def read_names(path: Path) -> set[str]:
    return set(path.read_text().split()) if path.exists() else set()


def split_of(sample: Sample) -> str:
    """``train``, ``dev`` (for choices) or ``val`` (for the report only), the same on every machine.

    CamVid keeps its published split, though its validation images come from a drive that also gave training images.
    Elsewhere a hash of the sequence's name puts a fifth into ``val`` and a twentieth into ``dev``; BDD100K has one image
    a sequence.
    """
    if sample.published_split:
        return sample.published_split
    digest = hashlib.sha256(f"{sample.dataset}/{sample.sequence}".encode()).digest()
    bucket = int.from_bytes(digest[:4], "big") % 100
    return "val" if bucket < 20 else "dev" if bucket < 25 else "train"


def camvid_planes(label: U8) -> U8:
    road, void = label == 3, label == 11
    return road_planes(road, void)


def idd_planes(label: U8) -> U8:
    return road_planes(label == 0, label == 255)


def road_planes(road: NDArray[np.bool_], void: NDArray[np.bool_]) -> U8:
    freespace = np.where(void, IGNORE, road).astype(np.uint8)
    ego = np.where(road | void, IGNORE, 0).astype(np.uint8)
    return np.stack([freespace, ego])


def bdd_planes(label: U8) -> U8:
    """``ego`` as labelled, with the thin seams between lanes unknown; ``freespace`` only where ego settles it."""
    drivable = (label == 1).astype(np.uint8)
    size = max(3, round(label.shape[1] * 0.012)) | 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    closed = np.asarray(cv2.morphologyEx(drivable, cv2.MORPH_CLOSE, kernel), np.uint8)
    seams = (closed == 1) & (drivable == 0)
    ego = np.where(seams, IGNORE, drivable).astype(np.uint8)
    freespace = np.where(closed == 1, 1, IGNORE).astype(np.uint8)
    rows = np.flatnonzero(drivable.any(axis=1))
    if rows.size:  # nothing far above the highest drivable row is road
        freespace[: max(0, rows[0] - round(0.08 * label.shape[0]))] = 0
    freespace[own_vehicle(closed)] = 0
    return np.stack([freespace, ego])


def own_vehicle(drivable: U8) -> NDArray[np.bool_]:
    """Pixels that show the bonnet: in the middle of the image, well below where the drivable area ends for good."""
    height, width = drivable.shape
    rows = np.arange(height)[:, None]
    lowest = np.where(drivable == 1, rows, -1).max(axis=0)
    bonnet = (rows > lowest + round(0.05 * height)) & (lowest > 0.6 * height)
    bonnet[:, : round(0.35 * width)] = bonnet[:, round(0.65 * width) :] = False
    return np.asarray(bonnet)


READERS: dict[str, Callable[[U8], U8]] = {"camvid": camvid_planes, "idd_lite": idd_planes, "bdd100k": bdd_planes}
STRICT_READERS: dict[str, Callable[[U8], U8]] = {
    **READERS,
    "bdd100k": lambda label: np.stack([np.full_like(label, IGNORE), (label == 1).astype(np.uint8)]),
}


def read_sample(sample: Sample, max_width: int | None = None, strict: bool = False) -> tuple[U8, U8]:
    """Image ``(h, w, 3)`` BGR and target planes ``(2, h, w)`` of 0, 1 and `IGNORE`.

    Args:
        max_width: shrink wider images to this width (area average; labels by nearest neighbour).
        strict: targets for evaluation: what the annotator drew, nothing inferred.

    Raises:
        ValueError: a file cannot be decoded, or image and label differ in size.
    """
    image = cv2.imread(str(sample.image), cv2.IMREAD_COLOR)
    label = cv2.imread(str(sample.label), cv2.IMREAD_UNCHANGED)
    if image is None or label is None:
        raise ValueError(f"cannot decode {sample.image if image is None else sample.label}")
    if label.ndim == 3:
        label = label[..., 0]
    if image.shape[:2] != label.shape:
        raise ValueError(
            f"{sample.image} is {image.shape[1]}x{image.shape[0]} but its label is {label.shape[1]}x{label.shape[0]}"
        )
    planes = (STRICT_READERS if strict else READERS)[sample.dataset](np.asarray(label, np.uint8))
    height, width = label.shape
    if max_width and width > max_width:
        size = (max_width, round(height * max_width / width))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        planes = np.stack([cv2.resize(p, size, interpolation=cv2.INTER_NEAREST) for p in planes])
    return np.asarray(image, np.uint8), planes


def read_targets(sample: Sample, max_width: int | None = None) -> tuple[U8, U8]:
    """Image ``(h, w, 3)`` BGR and targets for training ``(2, h, w)``: 0 to `CERTAIN`, or `IGNORE`.

    Raises:
        ValueError: a file cannot be decoded, or image and label differ in size.
    """
    if not sample.view:
        image, planes = read_sample(sample, max_width)
        return image, np.where(planes == IGNORE, IGNORE, planes * CERTAIN).astype(np.uint8)
    view, targets = cv2.imread(str(sample.image)), cv2.imread(str(sample.label))
    if view is None or targets is None or view.shape != targets.shape:
        raise ValueError(f"cannot decode {sample.image} and {sample.label}, or they differ in size")
    return np.asarray(view, np.uint8), np.ascontiguousarray(targets.transpose(2, 0, 1)[: len(PLANES)], np.uint8)


class Cache:
    """Samples decoded once and kept in memory (about a megabyte each at ``max_width`` 576)."""

    def __init__(self, samples: Sequence[Sample], max_width: int) -> None:
        self.samples = list(samples)
        self.max_width = max_width
        self.decoded: dict[int, tuple[U8, U8]] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[U8, U8]:
        if index not in self.decoded:
            self.decoded[index] = read_targets(self.samples[index], self.max_width)
        return self.decoded[index]


def epoch_indices(samples: Sequence[Sample], shares: dict[str, float], count: int, rng: np.random.Generator) -> list[int]:
    """``count`` sample indices in random order, each data set taking its share; a set is gone through before it repeats."""
    present = {s.dataset for s in samples}
    total = sum(v for k, v in shares.items() if k in present)
    if total <= 0:
        raise ValueError(f"shares {shares} give no weight to the data sets at hand: {', '.join(sorted(present))}")
    chosen: list[int] = []
    for name in sorted(present):
        own = [i for i, s in enumerate(samples) if s.dataset == name]
        wanted = round(count * shares.get(name, 0.0) / total)
        while wanted > 0:
            part = rng.permutation(own)[:wanted]
            chosen += part.tolist()
            wanted -= len(part)
    rng.shuffle(chosen)
    return chosen
