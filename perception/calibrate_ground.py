"""``freespace calibrate ground`` as a person sees it: where the camera sits on the vehicle."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from calibration.camera import POSE, Camera, Intrinsics, Mount
from calibration.camera_file import other_keys, read_camera, write_camera
from calibration.extrinsics import TAPE_SIGMA_M, Placement, find_corners, from_board, from_points, read_points
from calibration.ground import horizon, pixels_from_ground
from calibration.motion import from_motion
from calibration.vanishing import from_lines
from perception.capture import Selection, open_source
from perception.errors import BadInput, FreespaceError, tell
from perception.options import board_of
from perception.sinks.base import check_output, write_whole

Array = NDArray[np.float64]
Image = NDArray[np.uint8]

GRID_M = 5.0
GRID_AHEAD_M, GRID_ASIDE_M = 50.0, 10.0
LABELLED_M = (5.0, 10.0, 20.0, 40.0)
GRID_COLOUR, HORIZON_COLOUR, SEEN_COLOUR, EXPECTED_COLOUR = (200, 200, 60), (60, 120, 255), (60, 230, 60), (40, 40, 255)  # BGR
MAGNIFIED = 20  # times that residuals are drawn longer
MOST_FRAMES = 3000
SELECTING = "--start, --duration and --every"
OPTIONS = {
    "--points": ("--image",),
    "--board": ("--size", "--square", "--board-at", "--position"),
    "--lines": ("--height", "--roll", "--position", SELECTING),
    "--motion": ("--height", "--roll", "--position", SELECTING),
}


def ground_command(
    camera: Path,
    out: Path,
    points: Path | None = None,
    board: str | None = None,
    size: str | None = None,
    square: float | None = None,
    board_at: str | None = None,
    lines: str | None = None,
    motion: str | None = None,
    height: float | None = None,
    roll: float | None = None,
    position: str | None = None,
    selection: Selection | None = None,
    image: str | None = None,
    picture: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Find the mount by one of four ways, print it, and write it with the camera's intrinsics to ``out``.

    Args:
        camera: camera file; height, roll and position in its mount hold where they are neither measured nor given.
        points: file of `calibration.extrinsics.PointsFile`, pixels as in ``image``, else as in the camera's own images.
        board, size, square, board_at: a picture of a chessboard on the ground, ``9x6``, metres, ``X,Y,YAW``.
        lines, motion: sources, as for 'run'.
        height, roll, position: metres, radians, ``X,Y`` metres: what a picture of a road does not show.
        selection: part of the recording to take.
        image: the picture that the points were read from.
        picture: check picture to write.

    Raises:
        BadInput: options that do not fit each other, or nothing can be found; a sentence says why.
        FreespaceError: a file cannot be written.
    """
    ways = {"--points": points, "--board": board, "--lines": lines, "--motion": motion}
    given: dict[str, object] = {"--size": size, "--square": square, "--board-at": board_at, "--height": height, "--roll": roll}
    given |= {"--position": position, "--image": image, SELECTING: selection}
    check_options(ways, given)
    for file in (out, picture):
        if file is not None:
            check_output(file, overwrite)
    if picture and picture.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise BadInput(f"{picture}: the check picture must be a .png or a .jpg")
    with mistakes(""):
        intrinsics, before = read_camera(camera)
    others = other_keys(camera)
    lens, shown = intrinsics, None
    if points is not None:
        if image is not None:
            shown = only_frame(image)
            lens = lens_of(shown, intrinsics, image)
        with mistakes(f"{points}: "):
            pixels, ground, pixel_sigma, tape_sigma_m = read_points(points)
            placement = from_points(lens, pixels, ground, pixel_sigma=pixel_sigma, tape_sigma_m=tape_sigma_m)
    elif board is not None:
        if size is None or square is None:
            raise BadInput("--board needs --size, inner corners such as 9x6, and --square, their distance in metres")
        chessboard = board_of("chessboard", size, square)
        place, at = numbers(board_at, "--board-at", "4.2,0,1.5708", 3), numbers(position, "--position", "1.7,0", 2)
        shown = only_frame(board)
        lens = lens_of(shown, intrinsics, board)
        with mistakes(f"{board}: "):
            corners = find_corners(shown, chessboard)
            placement = from_board(lens, corners, chessboard, place, at)  # type: ignore[arg-type]
    else:
        known = given_mount(before, height, roll, numbers(position, "--position", "1.7,0", 2))
        source = str(lines if lines is not None else motion)
        shown, frames = begin(source, selection or Selection(every=10 if lines is not None else 1))
        lens = lens_of(shown, intrinsics, source)
        known = Camera(intrinsics, known).scaled((lens.width, lens.height)).mount
        with mistakes(f"{source}: "):
            if lines is not None:
                placement = from_lines(lens, (frame for frame, _ in frames), known)
            else:
                placement = from_motion(lens, frames, known)
    mount = Camera(lens, placement.mount).scaled((intrinsics.width, intrinsics.height)).mount
    print(report(placement))
    for remark in placement.remarks:
        tell(remark)
    if picture is not None:
        done, data = cv2.imencode(picture.suffix.lower(), check_picture(shown, Camera(lens, placement.mount), placement))
        if not done:
            raise FreespaceError(f"{picture}: the check picture cannot be encoded")
        write_whole(picture, data.tobytes())
    try:
        write_camera(out, intrinsics, mount, others)
    except OSError as error:
        raise FreespaceError(f"{out}: cannot be written: {error.strerror}") from error
    print(f"{out}: the camera with its mount")


def check_options(ways: Mapping[str, object], given: Mapping[str, object]) -> None:
    """That there is one of the ways, and that the options given belong to it. Raises BadInput."""
    chosen = [name for name, value in ways.items() if value is not None]
    if len(chosen) != 1:
        raise BadInput(f"give one of {', '.join(ways)}: what shows where the camera sits; got {' and '.join(chosen) or 'none'}")
    (way,) = chosen
    used = [name for name, value in given.items() if value is not None]
    if others := [name for name in used if name not in OPTIONS[way]]:
        raise BadInput(f"{others[0]}: {way} has no use for that, only for {'; '.join(OPTIONS[way])}")
    if "--board-at" in used and "--position" in used:
        raise BadInput("--position: where the camera is follows from --board-at; give one of them")


@contextmanager
def mistakes(where: str) -> Iterator[None]:
    """What calibration refuses, as what a user is told."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        raise BadInput(text if where and text.startswith(where) else f"{where}{text}") from error


def numbers(text: str | None, option: str, example: str, count: int) -> tuple[float, ...] | None:
    """``count`` numbers between commas. Raises BadInput: something else."""
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count or not all(map(math.isfinite, values)):
        raise BadInput(f"{option} {text!r}: wanted {count} numbers such as {example}")
    return values


def given_mount(before: Mount | None, height: float | None, roll: float | None, position: tuple[float, ...] | None) -> Mount:
    """What lines and motion do not show: options win over the camera file's mount; a given height was measured with a tape.
    Raises BadInput: there is no height."""
    if before is None and height is None:
        raise BadInput("--lines and --motion need --height, metres from the ground to the lens: a picture has no scale")
    with mistakes(""):
        mount = before or Mount(height_m=height or 0.0)
        changes: dict[str, float] = {}
        if height is not None:
            changes["height_m"] = height
        if roll is not None:
            changes["roll"] = roll
        if position is not None:
            changes |= {"x_m": position[0], "y_m": position[1]}
        kept = mount.only([name for name in POSE if name not in changes])
        taped = {"height_m": TAPE_SIGMA_M} if height is not None else {}
        covariance = kept.covariance and kept.covariance.plus(taped)
        return replace(kept, **changes, sigma={**kept.sigma, **taped}, covariance=covariance)  # type: ignore[arg-type]


def begin(uri: str, selection: Selection) -> tuple[Image, Iterator[tuple[Image, int]]]:
    """The first image of a source, and all of them with their stamps. Raises BadInput: there is none, or they change size."""
    frames = images(uri, selection)
    first = next(frames, None)
    if first is None:
        raise BadInput(f"{uri}: no image")
    return first[0], chain([first], frames)


def images(uri: str, selection: Selection) -> Iterator[tuple[Image, int]]:
    """The images of a source, all of one size, with their stamps, a bar on the terminal meanwhile."""
    console, first = Console(stderr=True), None
    with open_source(uri, selection) as source:
        if source.live and selection.duration_s is None:
            tell(f"{MOST_FRAMES} images are looked at, fewer with --duration; Ctrl-C ends it without a result")
        total = min(source.total, MOST_FRAMES) if source.total else MOST_FRAMES
        frames = track(source.frames(), "looking", total, console=console, disable=not console.is_terminal)
        for count, frame in enumerate(frames, 1):
            first = first or frame.size
            if frame.size != first:
                sizes = " and ".join(f"{width}x{height}" for width, height in (first, frame.size))
                raise BadInput(f"{uri}: images of {sizes}; take a part of it that has one size")
            yield frame.image, frame.stamp_ns
            if count == MOST_FRAMES:
                tell(f"{uri}: the first {MOST_FRAMES} images were looked at; --start and --every take others")
                break
        for problem in source.problems:
            tell(problem)


def only_frame(uri: str) -> Image:
    """The first image of a source. Raises BadInput: there is none."""
    with open_source(uri) as source:
        for frame in source.frames():
            return frame.image
        problems = f": {source.problems[0]}" if source.problems else ""
    raise BadInput(f"{uri}: no image{problems}")


def lens_of(image: Image, intrinsics: Intrinsics, uri: str) -> Intrinsics:
    """The camera for images of this one's size. Raises BadInput: it is of another shape than those of the calibration."""
    size = image.shape[1], image.shape[0]
    if not intrinsics.fits(size):
        raise BadInput(
            f"{uri}: images of {size[0]}x{size[1]}, and the camera was calibrated at {intrinsics.width}x{intrinsics.height}: "
            "another shape needs another calibration"
        )
    return intrinsics.scaled(size)


def report(placement: Placement) -> str:
    """The mount as a table, angles in radians and degrees; what was not measured has no standard deviation."""
    mount, lines = placement.mount, []
    for name in POSE:
        value, sigma = getattr(mount, name), mount.sigma.get(name)
        if name.endswith("_m"):
            label, unit, text = name[:-2], "m", f"{value:9.4f}"
            spread, more = f"{sigma:.4f}" if sigma is not None else "", ""
        else:
            label, unit, text = name, "rad", f"{value:9.5f}"
            spread = f"{sigma:.5f}" if sigma is not None else ""
            more = f" = {math.degrees(value):.3f} {f'± {math.degrees(sigma):.3f} ' if sigma is not None else ''}degrees"
        lines.append(f"{label:7}{text} {f'± {spread}' if spread else '(not measured)'} {unit}{more}")
    lines.append(f"residual {placement.residual_px:.2f} px (RMS)")
    lines.append(f"assumed: {placement.assumed}")
    return "\n".join(lines)


def check_picture(image: Image | None, camera: Camera, placement: Placement) -> Image:
    """The image, or a grey one, with the horizon, a grid on the ground every 5 m, and the points with their residuals drawn
    20 times as long. uint8 ``(H, W, 3)`` BGR."""
    k = camera.intrinsics
    canvas: Image = np.full((k.height, k.width, 3), 90, np.uint8) if image is None else image.copy()
    thickness = max(1, round(k.height / 540))
    ahead = np.arange(0.0, GRID_AHEAD_M + 1e-6, GRID_M)
    aside = np.arange(-GRID_ASIDE_M, GRID_ASIDE_M + 1e-6, GRID_M)
    along, across = np.linspace(0, GRID_AHEAD_M, 400), np.linspace(-GRID_ASIDE_M, GRID_ASIDE_M, 100)
    for y in aside:
        draw_line(canvas, pixels_from_ground(camera, np.column_stack([along, np.full_like(along, y)])), GRID_COLOUR, thickness)
    for x in ahead:
        line = pixels_from_ground(camera, np.column_stack([np.full_like(across, x), across]))
        draw_line(canvas, line, GRID_COLOUR, thickness)
        u, v = line[len(line) // 2]
        if x in LABELLED_M and np.isfinite(u) and 0 <= u < k.width and 0 <= v < k.height:
            where = (round(u) + 3, round(v) - 3)
            cv2.putText(
                canvas, f"{x:g} m", where, cv2.FONT_HERSHEY_SIMPLEX, k.height / 1200, GRID_COLOUR, thickness, cv2.LINE_AA
            )
    columns = np.linspace(0, k.width - 1, 200)
    draw_line(canvas, np.column_stack([columns, horizon(camera, columns)]), HORIZON_COLOUR, thickness)
    for seen, expected in zip(placement.seen, placement.expected, strict=True):
        centre = tuple(int(value) for value in np.round(seen))
        cv2.circle(canvas, centre, 4 * thickness, SEEN_COLOUR, thickness, cv2.LINE_AA)
        draw_line(canvas, np.stack([seen, seen + MAGNIFIED * (expected - seen)]), EXPECTED_COLOUR, thickness)
    return canvas


def draw_line(canvas: Image, line: Array, colour: tuple[int, int, int], thickness: int) -> None:
    """A line through points in pixels; pieces with an end that has no pixel, or far outside, are left out."""
    good = np.isfinite(line).all(axis=1) & (np.abs(line) < 4 * max(canvas.shape)).all(axis=1)
    points = np.round(np.where(good[:, None], line, 0) * 16).astype(np.int32)
    for i, (start, end) in enumerate(pairwise(points)):
        if good[i] and good[i + 1]:
            cv2.line(canvas, start.tolist(), end.tolist(), colour, thickness, cv2.LINE_AA, 4)
