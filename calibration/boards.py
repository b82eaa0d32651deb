"""Calibration boards, and where their corners lie in a picture."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Image = NDArray[np.uint8]

PATTERNS = ("chessboard", "charuco")
FEWEST_CORNERS = 8  # of a ChArUco board: four fix a pose, the others say something about the camera
BORDER_PX = 10.0  # a corner's place rests on what surrounds it: nearer to the border that is cut off
MOST_BLUR = 0.0025  # of the image's width: standard deviation of the blur at edges, above which corners are guesses
CELL_PART = 0.35  # of a square on each side of an edge is looked at
ENOUGH_PX = 1280  # of a picture's longer side, to count what can be seen
CONTRAST = 24.0  # grey levels: edges with less say nothing about blur


@dataclass(frozen=True)
class Board:
    """A flat calibration board. Its frame: x along a row, y along a column, z = 0, metres.

    Attributes:
        pattern: ``chessboard``, or ``charuco``, whose markers tell the corners apart also where a part of it is in view.
        columns, rows: of a chessboard, inner corners; of a ChArUco board, squares.
        square_m: side of a square, metres.
        marker_m: of a ChArUco board, side of a marker, metres.
        dictionary: of a ChArUco board, OpenCV's name of the markers' dictionary.

    Raises:
        ValueError: the pattern or dictionary is unknown, or a size is not possible.
    """

    pattern: str
    columns: int
    rows: int
    square_m: float
    marker_m: float | None = None
    dictionary: str = "DICT_5X5_100"

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise ValueError(f"pattern {self.pattern!r}: wanted {' or '.join(PATTERNS)}")
        least = 3 if self.pattern == "chessboard" else 4
        if min(self.columns, self.rows) < least or max(self.columns, self.rows) > 100:
            of = "inner corners" if self.pattern == "chessboard" else "squares"
            raise ValueError(f"board size {self.columns}x{self.rows}: wanted {least} to 100 {of} each way")
        if not 0 < self.square_m < 100:
            raise ValueError(f"square {self.square_m:g} m: wanted the side of a square in metres, such as 0.025")
        if self.pattern == "charuco":
            if self.marker_m is None or not 0 < self.marker_m < self.square_m:
                raise ValueError(f"marker {self.marker_m} m: a ChArUco board's markers are smaller than its squares")
            if not self.dictionary.startswith("DICT_") or not hasattr(cv2.aruco, self.dictionary):
                raise ValueError(f"dictionary {self.dictionary!r}: wanted one of OpenCV's, such as DICT_5X5_100")
            wanted, there = self.columns * self.rows // 2, len(self.markers.bytesList)
            if wanted > there:
                raise ValueError(f"a board of {self.columns}x{self.rows} has {wanted} markers, {self.dictionary} only {there}")

    @property
    def grid(self) -> tuple[int, int]:
        """Columns and rows of corners."""
        inner = 0 if self.pattern == "chessboard" else 1
        return self.columns - inner, self.rows - inner

    @property
    def count(self) -> int:
        """How many corners there are."""
        return self.grid[0] * self.grid[1]

    @property
    def free_part(self) -> float:
        """The part of a square's side, at each corner, that no marker comes into."""
        return 0.5 * (1 - (self.marker_m or 0.0) / self.square_m)

    @cached_property
    def points(self) -> Array:
        """float64 ``(count, 3)``: the corners in the board's frame, row by row; a corner's id is its index."""
        columns, rows = self.grid
        y, x = np.mgrid[0:rows, 0:columns].reshape(2, -1) * self.square_m
        return np.stack([x, y, np.zeros(self.count)], axis=1)

    @property
    def markers(self) -> cv2.aruco.Dictionary:
        """OpenCV's dictionary of the markers."""
        return cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, self.dictionary))

    @cached_property
    def charuco(self) -> cv2.aruco.CharucoDetector:
        """OpenCV's detector of this board."""
        return self.charuco_detector(False)

    @cached_property
    def old_charuco(self) -> cv2.aruco.CharucoDetector:
        """Of the board that OpenCV before 4.6 drew: with an even number of rows its top left square is white."""
        return self.charuco_detector(True)

    def charuco_detector(self, old: bool) -> cv2.aruco.CharucoDetector:
        board = cv2.aruco.CharucoBoard((self.columns, self.rows), self.square_m, self.marker_m or 0.0, self.markers)
        board.setLegacyPattern(old)
        return cv2.aruco.CharucoDetector(board)


@dataclass(frozen=True, eq=False)
class View:
    """A board in one picture.

    Attributes:
        name: of the picture.
        size: of the picture, (width, height).
        pixels: float64 ``(n, 2)`` of the corners (u, v).
        ids: int64 ``(n,)``: which corners they are, ascending.
        blur_px: of the board's edges, as the standard deviation of a Gaussian; NaN where it could not be measured.
        trouble: why the view cannot be used, a phrase; empty where it can.
        old_layout: whether it is a ChArUco board as OpenCV before 4.6 drew it.
    """

    name: str
    size: tuple[int, int]
    pixels: Array = field(default_factory=lambda: np.empty((0, 2)))
    ids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    blur_px: float = float("nan")
    trouble: str = ""
    old_layout: bool = False


def detect(board: Board, image: Image, name: str = "", thorough: bool = True) -> View:
    """Look for the board in a picture, uint8 ``(H, W)`` or BGR ``(H, W, 3)``.

    Chessboards are found by OpenCV's sector-based detector (Duda & Frese 2018, "Accurate Detection and Localization of
    Checkerboard Corners for Calibration") and located by its gradient-based one (Förstner & Gülch 1987). They must be in view
    as a whole: a plain chessboard does not say which part of it is seen.

    Args:
        thorough: look longer where the board is not found at once, and count what can be seen of it: for photographs. For
            videos there is the next picture.
    """
    grey: Image = image if image.ndim == 2 else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)
    view = View(name, (grey.shape[1], grey.shape[0]))
    if board.pattern == "chessboard":
        pixels, ids, seen = chessboard_corners(board, grey, thorough)
    else:
        (pixels, ids, seen), old = charuco_corners(board, grey)
        view = replace(view, old_layout=old)
    if not len(ids):
        return replace(view, trouble=f"{seen} of {board.count} corners" if seen else "no board")
    view = replace(view, pixels=pixels, ids=ids)
    kept = np.all((pixels >= BORDER_PX) & (pixels <= np.array(view.size) - 1 - BORDER_PX), axis=1)
    if board.pattern == "chessboard" and not kept.all():
        return replace(view, trouble=f"{kept.sum()} of {board.count} corners, the others within {BORDER_PX:g} px of the border")
    view = replace(view, pixels=pixels[kept], ids=ids[kept])
    if kept.sum() < FEWEST_CORNERS or in_a_line(board.points[view.ids]):
        return replace(view, trouble=f"{kept.sum()} of {board.count} corners" + ", in a line" * (kept.sum() >= FEWEST_CORNERS))
    view = replace(view, blur_px=edge_blur(board, grey, view))
    if view.blur_px > MOST_BLUR * view.size[0]:
        return replace(view, trouble=f"too blurred: edges are smeared over {2 * view.blur_px:.0f} px")
    return view


Found = tuple[Array, NDArray[np.int64], int]


def chessboard_corners(board: Board, grey: Image, thorough: bool) -> Found:
    """All corners and their ids, or none; and how many are in view."""
    found: Any
    corners: Any
    found, corners = cv2.findChessboardCornersSB(grey, board.grid, flags=0)
    if not found and thorough:
        found, corners = cv2.findChessboardCornersSB(
            grey, board.grid, flags=cv2.CALIB_CB_EXHAUSTIVE | cv2.CALIB_CB_NORMALIZE_IMAGE
        )
    if not found and thorough:  # the older detector wants no white border around the board
        flags = cv2.CALIB_CB_ADAPTIVE_THRESH | cv2.CALIB_CB_NORMALIZE_IMAGE | cv2.CALIB_CB_FAST_CHECK
        found, corners = cv2.findChessboardCorners(grey, board.grid, flags=flags)
    if not found:
        return np.empty((0, 2)), np.empty(0, np.int64), part_in_view(board, grey) if thorough else 0
    # The sector-based detector hardly ever misses a board, but puts the corners of small tilted squares up to 0.25 px off, all
    # to the same side: enough for 1 % of the focal length (measured on rendered boards; after `refine` it is 0.04 px).
    ids = np.arange(board.count)
    return refine(board, grey, corners.reshape(-1, 2).astype(np.float64), ids, 0.25), ids, board.count


def refine(board: Board, grey: Image, pixels: Array, ids: NDArray[np.int64], part: float) -> Array:
    """Corners where all gradients around them point past them (Förstner & Gülch 1987), within ``part`` of a square."""
    grid = on_grid(board, pixels, ids)
    sides = [np.hypot(*np.diff(grid, axis=axis).reshape(-1, 2).T) for axis in (0, 1)]
    nearest = np.nanmin(np.concatenate(sides), initial=40.0)
    half = int(np.clip(part * nearest, 2, 11))
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-4)
    corners = cv2.cornerSubPix(grey, pixels.astype(np.float32).reshape(-1, 1, 2), (half, half), (-1, -1), stop)
    return corners.reshape(-1, 2).astype(np.float64)


def on_grid(board: Board, pixels: Array, ids: NDArray[np.int64]) -> Array:
    """float64 ``(rows, columns, 2)``: corners in their places, NaN for those not seen."""
    columns, rows = board.grid
    grid = np.full((rows, columns, 2), np.nan)
    grid.reshape(-1, 2)[ids] = pixels
    return grid


def part_in_view(board: Board, grey: Image) -> int:
    """How many corners of a chessboard that is not wholly in view are seen, in a full rectangle of them; 0 for none."""
    shrink = min(1.0, ENOUGH_PX / max(grey.shape))
    small = cv2.resize(grey, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    columns, rows = board.grid
    sizes = [(c, r) for c in range(columns, columns - 3, -1) for r in range(rows, rows - 3, -1) if min(c, r) >= 3]
    for size in sorted(sizes, key=lambda size: -size[0] * size[1])[1:]:
        if cv2.findChessboardCornersSB(small, size, flags=0)[0]:
            return size[0] * size[1]
    return 0


def charuco_corners(board: Board, grey: Image) -> tuple[Found, bool]:
    """The corners in view, their ids, and how many these are; and whether the board is one of OpenCV before 4.6, which is
    looked for where there are markers and no corners between them."""
    corners, ids, _, markers = board.charuco.detectBoard(grey)
    old = ids is None and markers is not None and board.rows % 2 == 0
    if old:
        corners, ids, _, _ = board.old_charuco.detectBoard(grey)
    if ids is None or not len(ids):
        return (np.empty((0, 2)), np.empty(0, np.int64), 0), False
    order = np.argsort(ids.ravel())
    known = ids.ravel()[order].astype(np.int64)
    pixels = corners.reshape(-1, 2)[order].astype(np.float64)
    return (refine(board, grey, pixels, known, min(0.25, board.free_part)), known, len(known)), old


def in_a_line(points: ArrayLike) -> bool:
    """Whether points ``(n, d)`` all lie on one line, so that they fix no pose."""
    points = np.asarray(points, np.float64)
    return bool(np.linalg.matrix_rank(points - points.mean(axis=0), tol=1e-9) < 2)


def edge_blur(board: Board, grey: Image, view: View) -> float:
    """How far the edges between squares are smeared, pixels: the standard deviation of a Gaussian that does the same.

    A profile across each edge between two neighbouring corners; the steepest slope of a step blurred by a Gaussian is its
    height over ``sqrt(2 pi)`` deviations. Edges of the two directions are told apart, for motion smears only one of them, and
    the worse one counts. An ideal pixel gives 0.4. NaN where no edge has contrast.
    """
    grid = on_grid(board, view.pixels, view.ids)
    part = min(CELL_PART, 0.9 * board.free_part)
    worst = float("nan")
    for corners in (grid, grid.transpose(1, 0, 2)):
        middles = ((corners[:, 1:] + corners[:, :-1]) / 2)[:-1]
        across = part * np.diff(corners, axis=0)
        across = (across[:, 1:] + across[:, :-1]) / 2
        ends = np.isfinite(middles).all(axis=2) & np.isfinite(across).all(axis=2)
        middles, across = middles[ends], across[ends]
        if not len(middles):
            continue
        steps = np.linspace(-1, 1, 41)
        lines = (middles[:, None] + across[:, None] * steps[:, None]).astype(np.float32)
        u, v = lines[..., 0], lines[..., 1]
        profiles = cv2.remap(grey, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(np.float64)
        height = np.ptp(profiles, axis=1)
        slope = np.abs(np.diff(profiles, axis=1)).max(axis=1) / (np.hypot(*across.T) * (steps[1] - steps[0]))
        clear = height > CONTRAST
        if clear.any():
            blur = float(np.median(height[clear] / slope[clear])) / np.sqrt(2 * np.pi)
            worst = float(np.fmax(worst, blur))
    return worst
