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
from training.annotations.base import IMAGE_SUFFIXES, MALFORMED, Annotation, Entry, Region, counted, read_size
from training.annotations.classes import DEFAULT_CLASSES, IGNORE, Classes, default_classes, draw, regions_of
from training.annotations.files import (
    Images,
    Outputs,
    below,
    encode,
    files_below,
    find_json,
    led_to,
    must_exist,
    natural,
    read_image,
    read_label,
)
from training.annotations.formats import READERS, WRITERS, open_annotations, parse
from training.annotations.overlay import ContactSheet, overlay

SCHEMA = "freespace/1"  # of result files; see docs/architecture.md
CONTACT_SHEET = "contact-sheet"
LISTED = 5  # files by name of those with one and the same problem

U8 = NDArray[np.uint8]


class Problem(NamedTuple):
    """Something to know about ``file``; ``skipped`` where no label or annotation was written for it."""

    file: str
    reason: str
    skipped: bool = True


@dataclass
class Report:
    """What came of it.

    Attributes:
        written: images whose label or annotation was written.
        unmapped: objects by class that the mapping does not know; their pixels are unknown.
        examples: of each such class one file, and the line of a mapping that would name it.
        without_overlay: labels written whose image was not found, where overlays were asked for.
    """

    written: int = 0
    problems: list[Problem] = field(default_factory=list)
    unmapped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, tuple[str, str]] = field(default_factory=dict)
    without_overlay: int = 0

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for was written."""
        return not self.without_overlay and not any(problem.skipped for problem in self.problems)


def print_report(report: Report, what: str, out: Path) -> None:
    """How many of ``what`` (labels, annotations) were written, on stdout; on stderr a line for each thing to know.

    A line names the first `LISTED` files that it is about.
    """
    print(f"wrote {counted(report.written, what.removesuffix('s'))} in {out}")
    files: dict[tuple[bool, str], list[str]] = {}
    for file, reason, skipped in report.problems:
        files.setdefault((skipped, reason), []).append(file)
    for (skipped, reason), named in files.items():
        more = f" and {len(named) - LISTED} more" if len(named) > LISTED else ""
        print(f"{'skipped' if skipped else 'note'}: {', '.join(named[:LISTED])}{more}: {reason}", file=sys.stderr)
    for name, count in report.unmapped.most_common():
        file, line = report.examples[name]
        print(
            f"note: class {name!r} is not in the mapping: {counted(count, 'object')}, such as in {file}, left as unknown "
            f"({IGNORE}); say what it is in a --mapping file, beside all other classes:  {line}",
            file=sys.stderr,
        )
    if report.without_overlay:
        count = report.without_overlay
        whose = f"{counted(count, 'label')}: {'its image was' if count == 1 else 'their images were'} not found"
        print(f"note: no overlays for {whose}; give --images FOLDER", file=sys.stderr)


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

    A label is called as its image and lies in ``out``, or by plane in ``out/freespace`` and ``out/ego``; there in the same
    sub-folders as the image below ``images``, else as the JSON file below its input. An image whose annotation is broken in
    any place gets none.

    An image is where the JSON file's path to it leads, or else that of its name whose folders are most like the JSON file's.

    Args:
        images: where the images are, if not below ``inputs`` or in ``images`` beside ``out``, where training will look for
            them; needed for sizes that the JSON does not say and for overlays.
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
    folders = [p if p.is_dir() else p.parent for p in inputs]
    frames = images or out.parent / "images"
    held = {p.resolve() for p in (*folders, frames, *(file.parent for file in files))}
    for folder in labels + ([overlays] if overlays else []):
        if folder.resolve() in held:
            raise ValueError(f"{folder}: is taken by the inputs or by other outputs; choose another folder")
        held.add(folder.resolve())
    pictures = Images([images] if images else [*folders, frames], without=[*labels, *([overlays] if overlays else [])])
    planes = [Outputs(folder, ".png", overwrite) for folder in labels]
    views = [Outputs(overlays, suffix, overwrite) for suffix in (".jpg", ".png")] if overlays else []
    sheet = ContactSheet()
    report = Report()

    for path, where, name, entry in read_entries(files, format_name, report):
        mapping = classes or default_classes(name)
        try:
            annotation = entry.read()
            led = led_to(annotation.image, path)
            found = led or pictures.find(annotation.image, path)
            image = read_image(found) if found else None
            label = draw(annotation, size_of(annotation, image), mapping)
            place = place_of(annotation, found, frames, files[path], name)
            for output in (*planes, *views):
                if output.path(place) in pictures:  # all of them or none
                    raise ValueError(f"{output.path(place)} is an image; choose another folder")
        except MALFORMED as error:
            report.problems.append(Problem(where, reason_of(error)))
            continue
        for output, values in zip(planes, mapping.table[label.ranks].transpose(2, 0, 1), strict=True):
            output.write(place, encode(values, ".png"))
        report.written += 1
        report.unmapped += label.unmapped
        for unmapped in label.unmapped:
            report.examples.setdefault(unmapped, (where, mapping.line_for(unmapped)))
        report.problems += [Problem(where, remark, False) for remark in label.remarks]
        if not annotation.regions:
            report.problems.append(Problem(where, "has no objects: its label is all background", False))
        if found and not (led or entry.where) and strangers(Path(place), files[path]):
            report.problems.append(Problem(where, f"is taken to be about the image of its name in {found.parent}", False))
        if image is None and views:
            report.without_overlay += 1
        elif image is None and images:
            report.problems.append(Problem(where, f"its image is not in {images}", False))
        elif image is not None and views:
            picture = overlay(image, label.ranks, mapping)
            views[0].write(place, encode(picture, ".jpg"))
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
        FileNotFoundError, ValueError: as `masks_from_annotations`, or the first line of ``results`` is no result.
    """
    check_format(format_name, WRITERS)
    must_exist(results, images)
    report = Report()

    def annotations() -> Iterator[tuple[str, str, Annotation]]:
        frames = None
        are_results = False
        with open(results, "rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{results}:{number}"
                try:
                    data = parse_result(line)
                    are_results = True
                    if not frames or frames.source != Path(data["source"]):
                        frames = Frames(Path(data["source"]), images)
                    yield where, ".", read_result(data, frames)
                except (*MALFORMED, OSError) as error:
                    if not are_results:
                        raise ValueError(
                            f"{where} is no result of 'freespace run' ({reason_of(error)}); give the file of its --polygons"
                        ) from error
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
    """Write the labels that `masks_from_annotations` put into ``labels`` as one annotation an image, in the same sub-folders;
    the arguments are its, and images are looked for in ``images`` beside ``labels``, too.

    Outlines run along the borders of pixels, so the same labels come out of them again.

    Raises:
        FileNotFoundError, ValueError: as `masks_from_annotations`, or there are no labels for the mapping's planes.
    """
    check_format(format_name, WRITERS)
    mapping = classes or DEFAULT_CLASSES
    must_exist(labels, images)
    pictures = Images([images or labels.parent / "images"])
    first = labels / mapping.folders[0]
    files = sorted(files_below(first, {".png"}), key=natural)
    if not files:
        raise FileNotFoundError(f"no .png in {first}")
    report = Report()

    def annotations() -> Iterator[tuple[str, str, Annotation]]:
        for path in files:
            place = path.relative_to(first)
            try:
                planes = [read_label(labels / folder / place) for folder in mapping.folders]
                if len({plane.shape for plane in planes}) > 1:
                    raise ValueError("the planes differ in size")
                regions = regions_of(np.stack(planes), mapping)
                height, width = planes[0].shape
                image = name_of(pictures.find(place.with_suffix("").as_posix(), path), path.stem)
                yield str(path), place.parent.as_posix(), Annotation(image, (width, height), regions)
            except MALFORMED as error:
                report.problems.append(Problem(str(path), reason_of(error)))

    return write_annotations(annotations(), out, format_name, overwrite, report)


def write_annotations(
    annotations: Iterable[tuple[str, str, Annotation]],
    out: Path,
    format_name: str,
    overwrite: bool,
    report: Report,
) -> Report:
    """Write each annotation, given with the place it comes from and its sub-folder, into ``out``; LabelMe is told the way to
    the image.
    """
    output = Outputs(out, ".json", overwrite)
    labels: set[str] = set()
    for where, folder, annotation in annotations:
        image = Path(annotation.image)
        if format_name == "labelme" and image.is_file():
            way = os.path.relpath(image.resolve(), (out / folder).resolve())
            annotation = replace(annotation, image=Path(way).as_posix())
        name = image.name if format_name == "supervisely" else annotation.stem
        try:
            output.write(f"{folder}/{name}", WRITERS[format_name](annotation))
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


def parse_result(line: bytes) -> Any:
    """One line of a result file as data. Raises one of `MALFORMED`: it is none."""
    data = parse(line)
    if not isinstance(data, dict):
        raise ValueError("wanted a JSON object")
    if data.get("schema") != SCHEMA:
        raise ValueError(f"schema is {data.get('schema')!r}, wanted {SCHEMA!r}")
    return data


def read_result(data: Any, frames: Frames) -> Annotation:
    """One line of a result file. Raises one of `MALFORMED`: the result is not valid, the line broken, the image another one."""
    seq = data["seq"]
    if type(seq) is not int or seq < 0:
        raise ValueError(f"a frame's number is given as {seq}")
    if not data["valid"]:
        raise ValueError("the frame has no valid result")
    regions = [
        Region(str(p["plane"]), [np.array(ring, np.float64).reshape(-1, 2) for ring in (p["exterior"], *p["interiors"])])
        for p in data["polygons"]
    ]
    width, height = data["size"]
    annotation = Annotation(frames.name(seq), read_size(width, height), regions)
    if Path(annotation.image).is_file():
        size_of(annotation, read_image(Path(annotation.image)))
    return annotation


def place_of(annotation: Annotation, image: Path | None, frames: Path, by_json: Path, format_name: str) -> str:
    """Where a label lies in its folder, without suffix: as ``image`` below ``frames``, else as the JSON file, ``by_json``."""
    if image and (place := below(image, frames)):
        return place.with_suffix("").as_posix()
    folders = [part for part in by_json.parent.parts if (format_name, part) != ("supervisely", supervisely.FOLDER)]
    return "/".join([*folders, annotation.stem])


def strangers(place: Path, other: Path) -> bool:
    """Whether both lie in sub-folders and no folder of theirs has the same name."""
    folders, others = set(place.parent.parts), set(other.parent.parts)
    return bool(folders and others) and folders.isdisjoint(others)


def name_of(image: Path | None, stem: str) -> str:
    return str(image) if image else f"{stem}.jpg"


def check_format(name: str | None, known: Iterable[str]) -> None:
    if name is not None and name not in known:
        raise ValueError(f"no format {name!r}; there are {', '.join(known)}")


def read_entries(files: Iterable[Path], name: str | None, report: Report) -> Iterator[tuple[Path, str, str, Entry]]:
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
        raise ValueError("does not say the image's size, and its image was not found; give --images FOLDER")
    return annotation.size or size or (0, 0)


def reason_of(error: Exception) -> str:
    """One line for a user."""
    if isinstance(error, KeyError):
        return f"the key {error} is missing"
    if isinstance(error, ValueError | OSError):
        return " ".join(str(error).split())
    return f"is not of the form it should have: {' '.join(str(error).split())}"
