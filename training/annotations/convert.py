"""Folders of annotations to folders of labels, and back. What fails is listed and skipped, the rest is done."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.annotations import supervisely
from training.annotations.base import IMAGE_SUFFIXES, MALFORMED, Annotation, Entry, Region, read_size
from training.annotations.classes import DEFAULT_CLASSES, Classes, default_classes, draw, regions_of
from training.annotations.files import Images, Outputs, encode, find_json, must_exist, natural, read_image, read_label
from training.annotations.formats import READERS, WRITERS, open_annotations, parse
from training.annotations.overlay import ContactSheet, overlay

SCHEMA = "freespace/1"  # of result files; see docs/architecture.md
CONTACT_SHEET = "contact-sheet"

U8 = NDArray[np.uint8]


class Problem(NamedTuple):
    """Something to know about ``file``; ``skipped`` where what it says is not in the output."""

    file: str
    reason: str
    skipped: bool = True


@dataclass
class Report:
    """What came of it.

    Attributes:
        written: images whose label or annotation was written.
        unknown: objects by class that the mapping does not know; they are background now.
    """

    written: int = 0
    problems: list[Problem] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)

    @property
    def complete(self) -> bool:
        """Whether nothing was skipped."""
        return not self.unknown and not any(problem.skipped for problem in self.problems)


def print_report(report: Report, what: str, out: Path) -> None:
    """How much was written, on stdout; every problem and every unknown class, on stderr."""
    print(f"wrote {report.written} {what} in {out}")
    for file, reason, skipped in report.problems:
        print(f"{'skipped' if skipped else 'note'}: {file}: {reason}", file=sys.stderr)
    for name, count in report.unknown.most_common():
        print(f"skipped: class {name!r} is not in the mapping: {count} objects left as background", file=sys.stderr)


def masks_from_annotations(
    inputs: Sequence[Path],
    out: Path,
    *,
    images: Path | None = None,
    classes: Classes | None = None,
    format_name: str | None = None,
    overlays: Path | None = None,
    overwrite: bool = False,
) -> Report:
    """Write a label PNG for every image that is annotated in ``inputs`` (JSON files, or folders of such at any depth).

    A label is called as its image and lies in ``out``, or by plane in ``out/freespace`` and ``out/ego``. An image whose
    annotation is broken in any place gets none.

    Args:
        images: where the images are, if not below ``inputs``; needed for sizes that the JSON does not say and for overlays.
        classes: mapping of class names; by default one of the usual words for both planes.
        format_name: a key of `formats.READERS`; by default as each file's content says.
        overlays: folder for each label on its image (.jpg) and a page of them.

    Raises:
        FileNotFoundError: an input is not there.
        ValueError: no JSON file among them, no such format, or outputs that exist and ``overwrite`` is off.
    """
    check_format(format_name, READERS)
    must_exist(*inputs, images)
    files = find_json(inputs)
    labels = [out / name for name in (classes or DEFAULT_CLASSES).folders]
    folders = [*(p if p.is_dir() else p.parent for p in inputs), *([images] if images else [])]
    held = {p.resolve() for p in (*folders, *(file.parent for file in files))}
    for folder in labels + ([overlays] if overlays else []):
        if folder.resolve() in held:
            raise ValueError(f"{folder}: is taken by the inputs or by other outputs; choose another folder")
        held.add(folder.resolve())
    pictures = Images(folders, without=[*labels, *([overlays] if overlays else [])])
    planes = [Outputs(folder, ".png", overwrite) for folder in labels]
    views = [Outputs(overlays, suffix, overwrite) for suffix in (".jpg", ".png")] if overlays else []
    sheet = ContactSheet()
    report = Report()

    for path, where, name, entry in read_entries(files, format_name, report):
        mapping = classes or default_classes(name)
        try:
            annotation = entry.read()
            found = pictures.find(annotation.image, path)
            image = read_image(found) if found else None
            label = draw(annotation, size_of(annotation, image), mapping)
            for output in (*planes, *views):
                output.path(annotation.stem)  # all of them or none
        except MALFORMED as error:
            report.problems.append(Problem(where, reason_of(error)))
            continue
        for output, values in zip(planes, mapping.table[label.ranks].transpose(2, 0, 1), strict=True):
            output.write(annotation.stem, encode(values, ".png"))
        report.written += 1
        report.unknown += label.unknown
        report.problems += [Problem(where, *remark) for remark in label.remarks]
        if not annotation.regions:
            report.problems.append(Problem(where, "has no objects: its label is all background", False))
        if image is None and (images or views):
            report.problems.append(Problem(where, f"no image called {annotation.stem}", bool(views)))
        if image is not None and views:
            picture = overlay(image, label.ranks, mapping)
            views[0].write(annotation.stem, encode(picture, ".jpg"))
            sheet.add(picture)
    page = sheet.page()
    if page is not None:
        views[1].write(CONTACT_SHEET, encode(page, ".png"))
    return report


def annotations_from_polygons(
    results: Path, out: Path, *, images: Path | None = None, format_name: str = "labelme", overwrite: bool = False
) -> Report:
    """Write the polygons of a result file of ``freespace run`` as one annotation a frame, for a labelling tool to correct.

    A polygon's class is its plane. Files are called as the masks of ``freespace run``: as the image that was run, or of the
    folder that was run, else as the frame's number from 0, six digits.

    Args:
        images: where the folder that was run is now, under its old name; or the frames of a video, called by their numbers.
        format_name: a key of `formats.WRITERS`.

    Raises:
        FileNotFoundError, ValueError: as `masks_from_annotations`.
    """
    check_format(format_name, WRITERS)
    must_exist(results, images)
    report = Report()

    def annotations() -> Iterator[tuple[str, Annotation]]:
        frames = None
        with open(results, "rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{results}:{number}"
                try:
                    data = parse(line)
                    if data.get("schema") != SCHEMA:
                        raise ValueError(f"schema is {data.get('schema')!r}, wanted {SCHEMA!r}")
                    if not frames or frames.source != Path(data["source"]):
                        frames = Frames(Path(data["source"]), images)
                    yield where, read_result(data, frames)
                except (*MALFORMED, OSError) as error:
                    report.problems.append(Problem(where, reason_of(error)))

    return write_annotations(annotations(), out, format_name, overwrite, report)


def annotations_from_masks(
    labels: Path,
    out: Path,
    *,
    images: Path | None = None,
    classes: Classes | None = None,
    format_name: str = "labelme",
    overwrite: bool = False,
) -> Report:
    """Write the labels that `masks_from_annotations` put into ``labels`` as one annotation an image; the arguments are its.

    Outlines run along the borders of pixels, so the same labels come out of them again.

    Raises:
        FileNotFoundError, ValueError: as `masks_from_annotations`, or there are no labels for the mapping's planes.
    """
    check_format(format_name, WRITERS)
    mapping = classes or DEFAULT_CLASSES
    must_exist(labels, images)
    pictures = Images([images] if images else [])
    files = sorted((labels / mapping.folders[0]).glob("[!.]*.png"), key=natural)
    if not files:
        raise FileNotFoundError(f"no .png in {labels / mapping.folders[0]}")
    report = Report()

    def annotations() -> Iterator[tuple[str, Annotation]]:
        for path in files:
            try:
                planes = [read_label(labels / folder / path.name) for folder in mapping.folders]
                if len({plane.shape for plane in planes}) > 1:
                    raise ValueError("the planes differ in size")
                regions = regions_of(np.stack(planes), mapping)
                height, width = planes[0].shape
                yield str(path), Annotation(name_of(pictures.find(path.stem, path), path.stem), (width, height), regions)
            except MALFORMED as error:
                report.problems.append(Problem(str(path), reason_of(error)))

    return write_annotations(annotations(), out, format_name, overwrite, report)


def write_annotations(
    annotations: Iterable[tuple[str, Annotation]],
    out: Path,
    format_name: str,
    overwrite: bool,
    report: Report,
) -> Report:
    """Write each annotation, given with the place it comes from, into ``out``; LabelMe is told the way to the image."""
    output = Outputs(out, ".json", overwrite)
    labels: set[str] = set()
    for where, annotation in annotations:
        image = Path(annotation.image)
        if format_name == "labelme" and image.is_file():
            annotation = replace(annotation, image=Path(os.path.relpath(image.resolve(), out.resolve())).as_posix())
        try:
            output.write(image.name if format_name == "supervisely" else annotation.stem, WRITERS[format_name](annotation))
        except ValueError as error:
            report.problems.append(Problem(where, reason_of(error)))
            continue
        report.written += 1
        labels |= {region.label for region in annotation.regions}
    if format_name == "supervisely" and report.written:
        output.write(supervisely.META, supervisely.write_meta(sorted(labels)))
    return report


class Frames:
    """The images that the frames of ``source`` were, or were made into, by their numbers."""

    def __init__(self, source: Path, images: Path | None) -> None:
        self.source = source
        folder = images or source
        whole = sorted(folder.iterdir() if folder.is_dir() else [source], key=natural)
        paths = [p for p in whole if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
        self._as_run = dict(enumerate(paths)) if folder.name == source.name else {}
        self._by_number = {} if self._as_run else {p.stem: p for p in paths}

    def name(self, seq: int) -> str:
        """The image's path, or what its name would be."""
        path = self._as_run.get(seq) or self._by_number.get(f"{seq:06d}")
        return name_of(path, f"{seq:06d}")


def read_result(data: Any, frames: Frames) -> Annotation:
    """One line of a result file. Raises one of `MALFORMED`: the result is not valid, the line broken, the image another one."""
    seq = data["seq"]
    if type(seq) is not int or seq < 0:
        raise ValueError(f"a frame's number is given as {seq}")
    if not data["valid"]:
        raise ValueError(f"frame {seq} has no valid result")
    regions = [
        Region(str(p["plane"]), [np.array(ring, np.float64).reshape(-1, 2) for ring in (p["exterior"], *p["interiors"])])
        for p in data["polygons"]
    ]
    width, height = data["size"]
    annotation = Annotation(frames.name(seq), read_size(width, height), regions)
    if Path(annotation.image).is_file():
        size_of(annotation, read_image(Path(annotation.image)))
    return annotation


def name_of(image: Path | None, stem: str) -> str:
    return str(image) if image else f"{stem}.jpg"


def check_format(name: str | None, known: Iterable[str]) -> None:
    if name is not None and name not in known:
        raise ValueError(f"no format {name!r}; there are {', '.join(known)}")


def read_entries(files: Sequence[Path], name: str | None, report: Report) -> Iterator[tuple[Path, str, str, Entry]]:
    """Every image that ``files`` are about: the file, the place to name to a user, the format, and how to read it."""
    for path in files:
        try:
            found, entries = open_annotations(path, name)
        except OSError as error:
            report.problems.append(Problem(str(path), f"cannot be read: {error.strerror}"))
            continue
        except MALFORMED as error:
            report.problems.append(Problem(str(path), reason_of(error)))
            continue
        for entry in entries:
            yield path, f"{path}: {entry.where}" if entry.where else str(path), found, entry


def size_of(annotation: Annotation, image: U8 | None) -> tuple[int, int]:
    """(width, height) of the label. Raises ValueError: nothing says it, or image and JSON say different things."""
    size = (image.shape[1], image.shape[0]) if image is not None else None
    if size and annotation.size and size != annotation.size:
        raise ValueError(f"is for {'x'.join(map(str, annotation.size))} pixels, the image has {'x'.join(map(str, size))}")
    if not (size or annotation.size):
        raise ValueError(f"does not say the image's size, and there is no image called {annotation.image}; give --images")
    return annotation.size or size or (0, 0)


def reason_of(error: Exception) -> str:
    """One line for a user."""
    if isinstance(error, KeyError):
        return f"the key {error} is missing"
    if isinstance(error, ValueError | OSError):
        return " ".join(str(error).split())
    return f"is not of the form it should have: {' '.join(str(error).split())}"
