"""Labelled driving images, read as two target planes.

Every public data set labels one of two things, and says nothing of the other:

========  =================================  =======================================
data set  ``freespace`` (whole road)         ``ego`` (what the ego vehicle may use)
========  =================================  =======================================
CamVid    labelled                           0 off the road, unknown on it
IDD Lite  labelled                           0 off the road, unknown on it
BDD100K   1 where ego is 1, 0 far above the  labelled (seams between lanes unknown)
          road and on the bonnet
========  =================================  =======================================

Unknown is `IGNORE` and takes no part in loss or metrics.

Frames of one's own are any folder that holds ``images/`` and ``labels/``, and are called as that folder::

    mine/images/drive-a/000120.jpg          any depth of folders: they are the sequence
    mine/images/town_0007.png               or the name without its trailing frame number ("town")
    mine/labels/freespace/town_0007.png     by plane: 0, 1, or 255 for unknown; a plane without a file is unknown
    mine/labels/ego/town_0007.png
    mine/labels/town_0007.png               or one PNG an image: the plane freespace, or with classes.yaml indices
    mine/classes.yaml                       the indices' names, and where those are not the usual words ...
    mine/planes.yaml                        ... what they are on the planes (both as in training.annotations.classes)
    mine/night.txt                          optional: images of one condition, a name a line

These are the labels that ``freespace masks`` writes; it keeps the sub-folders of the images. A PNG with a palette of colours
holds the indices into it. Such folders called ``train``, ``dev`` and ``val`` side by side are the published splits of one
data set.

Targets for training are probabilities as uint8, 0 to `CERTAIN`, or `IGNORE`: hard ones from labels, soft ones from the views
that `training.distil` writes (``<views>/<data set>/*.jpg``, each with a ``.png`` whose first channels are the planes).
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.contract import KNOWN_PLANES
from training.annotations.base import IMAGE_SUFFIXES
from training.annotations.classes import DEFAULT_CLASSES, read_classes
from training.annotations.files import files_below, natural

PLANES = KNOWN_PLANES
IGNORE = 255
CERTAIN = 254  # the target that stands for probability 1
OUTSIDE = 254  # in tables from label values to planes: the value means nothing
FOOTAGE = "footage"  # views of videos without labels
VIEWS_FILE = "views.json"  # whose views they are; written last
SPLITS = ("train", "dev", "val")
FOLDERS = (
    ("camvid/train", "camvid"),
    ("camvid/val", "camvid"),
    ("idd_lite/train", "idd_lite"),
    ("bdd100k/train", "bdd100k"),
)
CLASSES_FILE, PLANES_FILE = "classes.yaml", "planes.yaml"
CACHE_BYTES = 4 << 30
PNG_START, PNG_TYPE, PNG_PALETTE = b"\x89PNG\r\n\x1a\n", 25, 3  # how a PNG begins, where it says what pixels are, and that

MASKS = (
    f"no label says 1, only 0 and {IGNORE}, which is unknown; if {IGNORE} means drivable, as in masks of 'freespace run', put "
    f"the labels straight into labels/ and beside it a {CLASSES_FILE}: {{background: 0, classes: {{road: {IGNORE}}}}}"
)
"""What is wrong with a data set whose labels seem to be masks, and what to do; see `check_meaning`."""

U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """One labelled image on disk.

    Attributes:
        dataset: a key of `READERS`, or the name of a folder of one's own.
        sequence: the drive it comes from.
        label: its label, or the first of its labels.
        condition: ``day`` or ``night`` where known, or what a list says (``night+rain``), else ``any``.
        published_split: where the data set itself says it, else None.
        view: the label holds targets for training, soft ones too.
        planes: for labels by plane, one file for each of `PLANES`, None where there is none.
        table: for labels of indices, the planes' values of each: uint8 ``(256, K)``, see `index_table`.
    """

    dataset: str
    sequence: str
    image: Path
    label: Path
    condition: str = "any"
    published_split: str | None = None
    view: bool = False
    planes: tuple[Path | None, ...] = ()
    table: U8 | None = field(default=None, compare=False, repr=False)


class Found(NamedTuple):
    """What lies in a folder: ``samples`` in a fixed order, images without a label, and folders with images but no labels."""

    samples: list[Sample]
    unlabelled: list[Path]
    bare: list[Path]


def find_samples(root: Path) -> list[Sample]:
    """Every labelled image of the data sets in ``root``, public ones and one's own, in a fixed order.

    Images of one's own that have no label are left out; `survey` says which.

    Raises:
        FileNotFoundError: there is no data set, an image of a public one has no label, or no image of one's own has.
        ValueError: labels are of no form that is known; see `survey` and `check_meaning`.
    """
    found = survey(root)
    public = [root / folder / "images" for folder, _ in FOLDERS]
    if lost := next((image for image in found.unlabelled if image.parent in public), None):
        raise FileNotFoundError(f"{lost} has no label {lost.parents[1] / 'labels' / lost.stem}.png")
    check_meaning(found.samples)
    return found.samples


def survey(root: Path) -> Found:
    """Everything in ``root`` that is an image of a data set, by name alone: no image and no label is opened.

    Raises:
        FileNotFoundError: there is no data set, or one of one's own of which no image has a label.
        ValueError: two data sets have one name, two images one label, or a mapping of classes is broken.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; give one that holds data sets")
    samples: list[Sample] = []
    unlabelled: list[Path] = []
    day, night = (read_names(root / f"bdd100k/train/{name}.txt") for name in ("day", "night"))
    for folder, name in FOLDERS:
        published = folder.split("/")[1] if name == "camvid" else None
        for image in sorted((root / folder / "images").glob("*.jpg")):
            label = root / folder / "labels" / f"{image.stem}.png"
            sequence = image.stem if name == "bdd100k" else image.stem.split("_")[0]
            condition = "day" if image.stem in day else "night" if image.stem in night else "any"
            if label.exists():
                samples.append(Sample(name, sequence, image, label, condition, published))
            else:
                unlabelled.append(image)
    sets, bare = own_sets(root)
    for name, folders in sets.items():
        for own in folders:
            found = survey_folder(own, name, own.name if len(folders) > 1 else None)
            samples += found.samples
            unlabelled += found.unlabelled
    if not samples and not unlabelled:
        raise FileNotFoundError(
            f"no labelled images below {root}: "
            + (
                f"{bare[0]} {without_labels(bare[0])}"
                if bare
                else "expected camvid/, idd_lite/ or bdd100k/, or folders with images/ and labels/"
            )
        )
    return Found(samples, unlabelled, bare)


def own_sets(root: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """Folders with ``images/`` and ``labels/`` that are no public data set, by name; several are one set's splits.

    Beside them folders that hold ``images/`` only.

    Raises:
        ValueError: two data sets have one name, or one that has a meaning already.
    """
    public = {root / folder.split("/")[0] for folder, _ in FOLDERS if (root / folder / "images").is_dir()}
    sets: dict[str, list[Path]] = {}
    bare: list[Path] = []
    seen: set[str] = set()  # links may lead in a circle
    for where, below, _ in os.walk(root, followlinks=True):
        folder, real = Path(where), os.path.realpath(where)
        if real in seen or folder in public:
            below.clear()
            continue
        seen.add(real)
        if {"images", "labels"} <= set(below):
            whole = folder.resolve()
            sets.setdefault((whole.parent if whole.name in SPLITS else whole).name, []).append(folder)
            below[:] = set(below) - {"images", "labels"}
        elif "images" in below:
            bare.append(folder)
        below[:] = sorted(name for name in below if not name.startswith("."))
    for name, folders in sets.items():
        if name in READERS or name == FOOTAGE:
            raise ValueError(f"{folders[0]}: {name!r} has a meaning of its own as a data set's name; rename the folder")
        if len(folders) > 1 and ({f.name for f in folders} - set(SPLITS) or len({f.parent for f in folders}) > 1):
            raise ValueError(f"{folders[0]} and {folders[1]} would both be called {name!r}; rename one of them")
    return dict(sorted(sets.items())), bare


def without_labels(folder: Path) -> str:
    """What is missing in a folder that has ``images/`` but no ``labels/``, and what to do."""
    others = sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "images")
    if found := next((path.name for path in others if any(files_below(path, frozenset({".png"})))), None):
        return f"has images/ but no labels/; if {found}/ holds the labels, rename it"
    return "has images/ but no labels/; 'freespace masks' writes them from polygons"


def survey_folder(folder: Path, name: str, published: str | None) -> Found:
    """The images of one data set of one's own, with the labels that belong to them. Raises as `survey`."""
    labels = folder / "labels"
    by_plane = [plane for plane in PLANES if (labels / plane).is_dir()]
    table = None if by_plane else index_table(folder)
    lists = {p.stem: read_names(p) for p in sorted(folder.glob("*.txt"))}
    pictures = folder / "images"
    images = sorted(files_below(pictures, IMAGE_SUFFIXES), key=natural)
    found = Found([], [], [])
    taken: dict[Path, Path] = {}
    for image in images:
        place = image.relative_to(pictures).with_suffix("")
        folders = [labels / plane if plane in by_plane else None for plane in PLANES] if by_plane else [labels]
        files = [find_label(where, place) if where else None for where in folders]
        label = next((file for file in files if file), None)
        if label is None:
            found.unlabelled.append(image)
            continue
        for file in filter(None, files):
            if (other := taken.setdefault(file, image)) != image:
                raise ValueError(f"{other} and {image} share the label {file}; put labels into the same folders as images")
        named = {key for key, names in lists.items() if place.name in names or place.as_posix() in names}
        found.samples.append(
            Sample(
                name,
                sequence_of(place) or name,
                image,
                label,
                "+".join(sorted(named - set(SPLITS))) or "any",
                next((split for split in SPLITS if split in named), published),
                planes=() if table is not None else tuple(files) if by_plane else (label, *[None] * (len(PLANES) - 1)),
                table=table,
            )
        )
    if not found.samples:
        if not images:
            raise FileNotFoundError(f"{pictures} holds no images; wanted files such as {', '.join(sorted(IMAGE_SUFFIXES)[:4])}")
        example = f"{labels / by_plane[0] if by_plane else labels}/{images[0].stem}.png for {images[0].name}"
        stems = {image.stem for image in images}
        misfit = next((p for p in sorted(files_below(labels, IMAGE_SUFFIXES)) if p.suffix != ".png" and p.stem in stems), None)
        raise FileNotFoundError(
            f"{folder}: none of its {len(images)} images has a label, such as {example}"
            + (f"; {misfit} is there, but labels are .png, as JPEG changes the values of pixels" if misfit else "")
        )
    return found


def find_label(labels: Path, place: Path) -> Path | None:
    """The PNG for the image at ``place`` below ``images/``: in the same place, or by its name in ``labels`` itself."""
    for path in (labels / f"{place}.png", labels / f"{place.name}.png"):
        if path.exists():
            return path
    return None


def sequence_of(place: Path) -> str:
    """The folder that an image lies in, or its name without the frame's number; '' where nothing is left of it."""
    return place.parent.as_posix() if place.parent.name else re.sub(r"[\W_]*\d+$", "", place.name)


def index_table(folder: Path) -> U8 | None:
    """What each label value is on the planes, uint8 ``(256, K)``; `OUTSIDE` where it is nothing. None without a mapping.

    ``classes.yaml`` names the indices, ``planes.yaml`` says what the names are on the planes; without the latter the usual
    words are known. A value that no class has is the background if it is that one's, and unknown if it is `IGNORE`.

    Raises:
        ValueError: a mapping is broken or of the other kind, or a name is not known.
    """
    path = folder / CLASSES_FILE
    if not path.exists():
        return None
    indices = read_classes(path)
    if indices.planes:
        raise ValueError(
            f"{path}: gives values by plane, so labels lie in {folder / 'labels' / PLANES[0]}; for labels of indices give "
            f"each class its index there, and the planes in {PLANES_FILE}"
        )
    meaning = read_classes(folder / PLANES_FILE) if (folder / PLANES_FILE).exists() else DEFAULT_CLASSES
    if not meaning.planes:
        raise ValueError(f"{folder / PLANES_FILE}: gives indices; wanted values by plane")
    if strange := [name for name in indices.values if meaning.rank(name) is None]:
        raise ValueError(f"{path}: what is {', '.join(map(repr, strange))} on the planes? say it in {folder / PLANES_FILE}")
    table = np.full((256, len(PLANES)), OUTSIDE, np.uint8)
    table[IGNORE] = IGNORE
    table[indices.background] = meaning.background
    named: dict[int, str] = {}
    for name, (index,) in indices.values.items():
        values = meaning.table[meaning.rank(name) or 0]
        if index in named and np.any(table[index] != values):
            raise ValueError(f"{path}: {named[index]!r} and {name!r} share the index {index} but differ on the planes")
        table[index], named[index] = values, name
    return table


def check_meaning(samples: Iterable[Sample]) -> None:
    """See that labels by plane are not masks of 0 and 255, as programs write them, where 255 would be drivable.

    A label may well hold only what is not drivable and what is unknown; those of a whole data set do not. So labels are
    opened until one of each data set says 1.

    Raises:
        ValueError: such a data set, or a label that cannot be read.
    """
    values: dict[str, set[int]] = {}
    for sample in samples:
        seen = values.setdefault(sample.dataset, set())
        if sample.planes and 1 not in seen:
            seen |= {int(v) for path in sample.planes if path for v in np.unique(read_label(path))}
    if masks := [name for name, seen in values.items() if seen == {0, IGNORE}]:
        raise ValueError(f"{masks[0]}: {MASKS}")


def find_views(root: Path) -> list[Sample]:
    """What `training.distil` wrote below ``root``, all of it for training. Raises FileNotFoundError: it is not all there."""
    if not (root / VIEWS_FILE).exists():
        raise FileNotFoundError(f"no {VIEWS_FILE} in {root}; 'freespace distil' writes views, and that file last")
    images = sorted(root.glob("*/*.jpg"))
    return [Sample(i.parent.name, i.stem, i, i.with_suffix(".png"), published_split="train", view=True) for i in images]


def read_names(path: Path) -> set[str]:
    """Images that a list names, one a line, without suffixes; none where there is no list."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()) if path.exists() else ()
    return {line[: -len(suffix)] if (suffix := Path(line).suffix).lower() in IMAGE_SUFFIXES else line for line in lines}


def split_of(sample: Sample) -> str:
    """``train``, ``dev`` (for choices) or ``val`` (for the report only) of a public data set, the same on every machine.

    `training.splits` splits data sets of one's own, and takes this for the public ones.

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
    """Image ``(h, w, 3)`` BGR and target planes ``(K, h, w)`` of 0, 1 and `IGNORE`.

    Args:
        max_width: shrink wider images to this width (area average; labels by nearest neighbour).
        strict: targets for evaluation: what the annotator drew, nothing inferred.

    Raises:
        ValueError: a file cannot be decoded, image and label differ in size, or a label holds a value without meaning.
    """
    image = cv2.imread(str(sample.image), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"cannot decode {sample.image}")
    planes = read_planes(sample, strict)
    height, width = planes.shape[1:]
    if image.shape[:2] != (height, width):
        raise ValueError(
            f"{sample.image} is {image.shape[1]}x{image.shape[0]} but its label is {width}x{height}: {sample.label}"
        )
    if max_width and width > max_width:
        size = (max_width, max(1, round(height * max_width / width)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        planes = np.stack([cv2.resize(p, size, interpolation=cv2.INTER_NEAREST_EXACT) for p in planes])
    return np.asarray(image, np.uint8), planes


def read_planes(sample: Sample, strict: bool = False) -> U8:
    """Planes ``(K, h, w)`` of 0, 1 and `IGNORE` out of a sample's labels. Raises ValueError as `read_sample`."""
    if sample.table is not None:
        label = read_label(sample.label)
        planes = sample.table[label].transpose(2, 0, 1)
        if strange := np.unique(label[planes[0] == OUTSIDE]).tolist():
            raise ValueError(f"{sample.label} holds {', '.join(map(str, strange))}, which no class in {CLASSES_FILE} has")
        return np.ascontiguousarray(planes)
    if sample.planes:
        return stack_planes(sample.planes)
    return (STRICT_READERS if strict else READERS)[sample.dataset](read_label(sample.label))


def stack_planes(paths: Sequence[Path | None]) -> U8:
    """Labels by plane as planes ``(K, h, w)``, `IGNORE` for those without. Raises ValueError as `read_sample`."""
    known = {path: read_label(path) for path in paths if path}
    for path, label in known.items():
        if strange := np.unique(label[(label > 1) & (label != IGNORE)]).tolist():
            raise ValueError(
                f"{path} holds {', '.join(map(str, strange))}, but a plane is 0, 1 or {IGNORE}; "
                f"indices of classes need a {CLASSES_FILE} beside labels/"
            )
    (first, shape), *others = ((path, label.shape) for path, label in known.items())
    for path, other in others:
        if other != shape:
            raise ValueError(f"{first} is {shape[1]}x{shape[0]} but {path} is {other[1]}x{other[0]}")
    return np.stack([known[path] if path else np.full(shape, IGNORE, np.uint8) for path in paths])


def read_label(path: Path) -> U8:
    """Values ``(h, w)`` of a label image. Raises ValueError: it cannot be decoded, or its pixels are colours."""
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if label is None:
        raise ValueError(f"cannot decode {path}")
    if label.dtype == np.uint8 and label.ndim == 3:
        label = read_indices(path.read_bytes(), label)
    if label.dtype != np.uint8 or (label.ndim == 3 and np.any(label[..., :3] != label[..., :1])):
        raise ValueError(
            f"{path} holds colours or more than 8 bits a pixel; wanted one channel of values, or a PNG whose palette has the "
            f"colours; 'freespace masks' writes such labels from polygons"
        )
    return np.asarray(label if label.ndim == 2 else label[..., 0], np.uint8)


def read_indices(data: bytes, image: NDArray[Any]) -> NDArray[Any]:
    """``image`` as it is, or indices ``(h, w, 3)`` if ``data``, what it was decoded from, is a PNG with a palette of colours.

    OpenCV gives an image with a palette as colours only, so it is decoded again with a palette whose colours are the indices.
    A palette of greys alone is what programs make of grey images to save space, and the greys are the values.
    """
    if not data.startswith(PNG_START) or data[PNG_TYPE] != PNG_PALETTE:
        return image
    start = data.index(b"PLTE") + 4
    end = start + int.from_bytes(data[start - 8 : start - 4], "big")
    palette = np.frombuffer(data[start:end], np.uint8).reshape(-1, 3)
    if np.all(palette == palette[:, :1]):
        return image
    plain = b"PLTE" + np.arange(len(palette), dtype=np.uint8).repeat(3).tobytes()
    changed = data[: start - 4] + plain + zlib.crc32(plain).to_bytes(4, "big") + data[end + 4 :]
    return np.asarray(cv2.imdecode(np.frombuffer(changed, np.uint8), cv2.IMREAD_UNCHANGED))


def hard_targets(planes: U8) -> U8:
    """Planes of 0, 1 and `IGNORE` as targets for training: 0, `CERTAIN` and `IGNORE`."""
    return np.where(planes == IGNORE, IGNORE, planes * CERTAIN).astype(np.uint8)


def read_targets(sample: Sample, max_width: int | None = None) -> tuple[U8, U8]:
    """Image ``(h, w, 3)`` BGR and targets for training ``(2, h, w)``: 0 to `CERTAIN`, or `IGNORE`.

    Raises:
        ValueError: a file cannot be decoded, or image and label differ in size.
    """
    if not sample.view:
        image, planes = read_sample(sample, max_width)
        return image, hard_targets(planes)
    view, targets = cv2.imread(str(sample.image)), cv2.imread(str(sample.label))
    if view is None or targets is None or view.shape != targets.shape:
        raise ValueError(f"cannot decode {sample.image} and {sample.label}, or they differ in size")
    return np.asarray(view, np.uint8), np.ascontiguousarray(targets.transpose(2, 0, 1)[: len(PLANES)], np.uint8)


class Cache:
    """Samples decoded once and kept in memory (about a megabyte each at ``max_width`` 576).

    Those that do not fit into ``max_bytes`` any more are decoded each time they are asked for.
    """

    def __init__(self, samples: Sequence[Sample], max_width: int, max_bytes: int = CACHE_BYTES) -> None:
        self.samples = list(samples)
        self.max_width = max_width
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self.decoded: dict[int, tuple[U8, U8]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[U8, U8]:
        if index in self.decoded:
            return self.decoded[index]
        image, targets = read_targets(self.samples[index], self.max_width)
        size = image.nbytes + targets.nbytes
        with self._lock:  # threads may ask for the same sample at the same time
            if index not in self.decoded and self.held_bytes + size <= self.max_bytes:
                self.decoded[index] = image, targets
                self.held_bytes += size
        return image, targets


def epoch_indices(samples: Sequence[Sample], shares: dict[str, float], count: int, rng: np.random.Generator) -> list[int]:
    """``count`` sample indices in random order, each data set taking its share; a set is gone through before it repeats.

    Of the data sets that ``shares`` does not name, public ones take nothing and one's own as much as one of many.

    Raises:
        ValueError: no data set takes anything.
    """
    present = sorted({s.dataset for s in samples})
    weights = {n: shares.get(n, 0.0 if n in READERS or n == FOOTAGE else 1 / len(present)) for n in present}
    total = sum(weights.values())
    if total <= 0:
        raise ValueError(f"shares {shares} give no weight to the data sets at hand: {', '.join(present)}")
    chosen: list[int] = []
    share = 0.0
    for name in present:
        own = [i for i, s in enumerate(samples) if s.dataset == name]
        share += weights[name] / total
        wanted = round(count * share) - len(chosen)  # rounded as a running total, so that all together are ``count``
        while wanted > 0:
            part = rng.permutation(own)[:wanted]
            chosen += part.tolist()
            wanted -= len(part)
    rng.shuffle(chosen)
    return chosen
