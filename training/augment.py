"""Augmentation for driving images: geometry on image and target together, then what light, weather and cameras do.

Every effect is a function of its own and happens with a probability of its own, see `Augmentation`. Effects of geometry say how
a view is taken; all others take an image, float32 ``(h, w, 3)`` BGR of about 0 to 1, and give another one of that kind, or the
same object where there is nothing to do. They never see the targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from training.datasets import IGNORE

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Effect = Callable[[F32, np.random.Generator], F32]

GREY = (114, 114, 114)
GEOMETRY = ("flip", "zoom", "aspect", "rotation", "shift")
LIMITS = ("least_zoom", "most_zoom", "most_stretch", "turn_deg")


@dataclass(frozen=True)
class Augmentation:
    """How often each effect happens, as probabilities, and how far geometry goes.

    Attributes:
        exposure, contrast: are drawn together, as one camera's tone curve: the rarer one only happens along with the other.
        night: of images that are not dark already.
        least_zoom, most_zoom: zoom factors, log-uniform between them.
        most_stretch: natural logarithm of the largest change of the aspect ratio.
        turn_deg: standard deviation of the rotation, degrees.

    Raises:
        ValueError: no probabilities, or limits that contradict each other.
    """

    flip: float = 0.5
    zoom: float = 1.0
    aspect: float = 1.0
    rotation: float = 1.0
    shift: float = 1.0
    exposure: float = 0.8
    contrast: float = 0.8
    colour: float = 0.6
    night: float = 0.12
    shadow: float = 0.2
    glare: float = 0.1
    haze: float = 0.15
    rain: float = 0.04
    blur: float = 0.25
    motion_blur: float = 0.06
    noise: float = 0.3
    cutout: float = 0.0
    jpeg: float = 0.25
    least_zoom: float = 0.8
    most_zoom: float = 1.8
    most_stretch: float = 0.2
    turn_deg: float = 2.0

    def __post_init__(self) -> None:
        given: dict[str, object] = asdict(self)
        wrong = [
            f"{k} is {v!r}, wanted a number" for k, v in given.items() if isinstance(v, bool) or not isinstance(v, int | float)
        ]
        if not wrong:
            wrong = [
                f"{k} is {v}, wanted a probability, 0 to 1" for k, v in asdict(self).items() if k in EFFECTS and not 0 <= v <= 1
            ]
            if not 0 < self.least_zoom <= self.most_zoom < np.inf:
                wrong.append(f"least_zoom is {self.least_zoom} and most_zoom {self.most_zoom}, wanted 0 < least <= most")
            wrong += [f"{k} is {v}, wanted 0 or more" for k in LIMITS[2:] if not 0 <= (v := getattr(self, k)) < np.inf]
        if wrong:
            raise ValueError(f"augmentation: {'; '.join(wrong)}")

    def gentle(self) -> Augmentation:
        """The same, but hardly zooming or turning: for images that are random views already."""
        return replace(self, least_zoom=0.95, most_zoom=1.15, most_stretch=0.05, turn_deg=0.5)


def parse_augmentation(given: object) -> Augmentation:
    """An augmentation as a recipe gives it: the name of a preset, or a mapping of names to probabilities and limits.

    In a mapping ``preset`` says what holds for all that is not named; without it that is ``default``.

    Raises:
        ValueError: an unknown name, or a value that does not fit.
    """
    settings = {"preset": given} if isinstance(given, str) else given
    if not isinstance(settings, Mapping):
        raise ValueError(f"augmentation: wanted {' or '.join(PRESETS)}, or names with probabilities, not {given!r}")
    rest = {str(k): v for k, v in settings.items() if k != "preset"}
    preset = settings.get("preset", "default")
    if preset not in PRESETS:
        raise ValueError(f"augmentation: no preset {preset!r}; there are {', '.join(PRESETS)}")
    known = [f.name for f in fields(Augmentation)]
    if unknown := [name for name in rest if name not in known]:
        raise ValueError(f"augmentation: no effect {', '.join(map(repr, unknown))}; there are {', '.join(known)}")
    return replace(PRESETS[preset], **rest)


def augment(
    image: U8,
    planes: U8,
    size: tuple[int, int],
    rng: np.random.Generator,
    gentle: bool = False,
    augmentation: Augmentation | None = None,
) -> tuple[U8, U8]:
    """A random view of a labelled image.

    Args:
        image: ``(H, W, 3)`` BGR.
        planes: ``(K, H, W)`` targets, or `IGNORE`.
        size: (width, height) of what comes back.
        gentle: hardly zoom or turn: the image is a random view already.

    Returns:
        image ``(h, w, 3)`` and planes ``(K, h, w)``; what lies outside the source is grey and `IGNORE`.
    """
    chosen = augmentation or DEFAULT
    names = choose(chosen, rng)
    matrix = view_matrix((image.shape[1], image.shape[0]), size, names, chosen.gentle() if gentle else chosen, rng)
    view, targets = take_view(image, planes, matrix, size)
    return apply_effects(view, names, rng)[0], targets


def choose(augmentation: Augmentation, rng: np.random.Generator) -> list[str]:
    """Names of the effects that one view gets, in the order in which they are applied."""
    drawn = dict(zip(EFFECTS, rng.random(len(EFFECTS)).tolist(), strict=True))
    drawn["contrast"] = drawn["exposure"]
    return [name for name in EFFECTS if drawn[name] < getattr(augmentation, name)]


# -- Geometry ----------------------------------------------------------------------------------------------------------


def take_view(image: U8, planes: U8, matrix: NDArray[np.float64], size: tuple[int, int]) -> tuple[U8, U8]:
    """Image and planes along an affine map source -> target pixels; what lies outside the source is `GREY` and `IGNORE`."""
    if np.hypot(matrix[0, 0], matrix[1, 0]) < 0.7:  # a bilinear warp that shrinks a lot skips pixels
        image = np.asarray(cv2.blur(image, (2, 2)), np.uint8)
    view = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderValue=GREY)
    targets = np.stack([cv2.warpAffine(p, matrix, size, flags=cv2.INTER_NEAREST, borderValue=IGNORE) for p in planes])
    return np.asarray(view, np.uint8), np.asarray(targets, np.uint8)


def random_view(
    source: tuple[int, int],
    target: tuple[int, int],
    rng: np.random.Generator,
    gentle: bool = False,
    augmentation: Augmentation | None = None,
) -> NDArray[np.float64]:
    """Affine map ``(2, 3)`` source -> target pixels of a random view; sizes are (width, height)."""
    chosen = augmentation or DEFAULT
    return view_matrix(source, target, choose(chosen, rng), chosen.gentle() if gentle else chosen, rng)


def view_matrix(
    source: tuple[int, int], target: tuple[int, int], names: Sequence[str], limits: Augmentation, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Affine map ``(2, 3)`` source -> target pixels: stretch to the target, then those of `GEOMETRY` that are in ``names``."""
    scale = np.ones(2)
    if "zoom" in names:
        scale = scale * zoom(rng, limits.least_zoom, limits.most_zoom)
    if "aspect" in names:
        scale = scale * aspect(rng, limits.most_stretch)
    turn = rotation(rng, limits.turn_deg) if "rotation" in names else np.eye(2)
    mirror = flip() if "flip" in names else np.eye(2)
    moved = shift(rng, scale, target) if "shift" in names else np.zeros(2)
    wide, high = np.array(source), np.array(target)
    linear = turn @ np.diag(high / wide * scale) @ mirror
    offset = (high - 1) / 2 + moved - linear @ ((wide - 1) / 2)  # (0, 0) is the centre of a pixel
    return np.column_stack([linear, offset])


def flip() -> NDArray[np.float64]:
    """Left and right swapped, as a matrix ``(2, 2)``."""
    return np.diag([-1.0, 1.0])


def zoom(rng: np.random.Generator, least: float, most: float) -> float:
    """A factor, log-uniform: above 1 a crop, below 1 a smaller image with a border."""
    return float(np.exp(rng.uniform(np.log(least), np.log(most))))


def aspect(rng: np.random.Generator, most: float) -> NDArray[np.float64]:
    """Factors for x and y with the product 1."""
    half = rng.uniform(-most, most) / 2
    return np.exp([half, -half])


def rotation(rng: np.random.Generator, deviation_deg: float) -> NDArray[np.float64]:
    """A turn about the centre, as a matrix ``(2, 2)``."""
    angle = np.deg2rad(rng.normal(0, deviation_deg))
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def shift(rng: np.random.Generator, scale: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """An offset in pixels, as far as an image of ``size`` that was scaled about its centre has to spare or leaves free."""
    return rng.uniform(-1, 1, 2) * np.abs(scale - 1) * size / 2


# -- Light, weather and cameras ----------------------------------------------------------------------------------------


def recolour(image: U8, rng: np.random.Generator, augmentation: Augmentation | None = None) -> U8:
    """A copy of ``image`` ``(h, w, 3)`` BGR in another light and weather, by another camera."""
    return apply_effects(image, choose(augmentation or DEFAULT, rng), rng)[0]


def apply_effects(image: U8, names: Sequence[str], rng: np.random.Generator) -> tuple[U8, list[str]]:
    """Those of ``names`` that are no geometry, in turn; with the image come the names of those that changed something."""
    x: F32 = image.astype(np.float32) / np.float32(255)
    applied = []
    for name in names:
        if name in PHOTOMETRIC:
            before = x
            x = PHOTOMETRIC[name](x, rng)
            applied += [] if x is before else [name]
    return to_bytes(x), applied


def to_bytes(x: F32) -> U8:
    levels: U8 = np.clip(x * np.float32(255) + np.float32(0.5), 0, 255).astype(np.uint8)
    return levels


def exposure(x: F32, rng: np.random.Generator) -> F32:
    """Shorter or longer: a gamma curve."""
    return np.asarray(np.clip(x, 0, 1) ** np.float32(np.exp(rng.uniform(-0.5, 0.5))), np.float32)


def contrast(x: F32, rng: np.random.Generator) -> F32:
    """About a middle grey, which moves as well."""
    factor, offset = rng.uniform(0.65, 1.35), rng.uniform(-0.12, 0.12)
    return np.asarray(x * np.float32(factor) + np.float32(0.45 - 0.45 * factor + offset), np.float32)


def colour(x: F32, rng: np.random.Generator) -> F32:
    """From grey to gaudy, with a cast."""
    saturation, cast = np.float32(rng.uniform(0.0, 1.6)), rng.uniform(0.85, 1.15, 3).astype(np.float32)
    grey = x.mean(axis=2, keepdims=True)
    return np.asarray((grey + (x - grey) * saturation) * cast, np.float32)


def night(x: F32, rng: np.random.Generator) -> F32:
    """Darkness with the headlamps' pool of light low in the middle, sodium or LED cast, and sensor noise.

    What is dark already stays as it is.
    """
    if x.mean() <= 0.3:
        return x
    h, w = x.shape[:2]
    v, u = np.mgrid[0:h, 0:w].astype(np.float32)
    pool = np.exp(-(((u / w - rng.uniform(0.4, 0.6)) / 0.35) ** 2) - ((v / h - rng.uniform(0.7, 0.95)) / 0.3) ** 2)
    light = rng.uniform(0.08, 0.3) + rng.uniform(0.2, 0.5) * pool
    cast = np.array([rng.uniform(0.6, 1.1), rng.uniform(0.85, 1.0), rng.uniform(0.95, 1.15)], np.float32)
    dark = np.clip(x, 0, 1) ** np.float32(1.3) * light[..., None].astype(np.float32) * cast
    return add_noise(dark, rng, rng.uniform(0.005, 0.03))


def shadow(x: F32, rng: np.random.Generator) -> F32:
    """Of something beside the road: a dark polygon with soft edges."""
    h, w = x.shape[:2]
    corners = rng.uniform([-0.2 * w, 0.3 * h], [1.2 * w, 1.1 * h], (int(rng.integers(3, 6)), 2)).astype(np.int32)
    shade = np.zeros((h, w), np.float32)
    cv2.fillPoly(shade, [cv2.convexHull(corners)], float(rng.uniform(0.3, 0.65)))
    return np.asarray(x * (1 - cv2.blur(shade, (5, 5)))[..., None], np.float32)


def glare(x: F32, rng: np.random.Generator) -> F32:
    """A low sun or a lamp: light that adds to everything around it."""
    h, w = x.shape[:2]
    v, u = np.mgrid[0:h, 0:w].astype(np.float32)
    distance = np.hypot((u - rng.uniform(0, w)) / w, (v - rng.uniform(0, 0.7 * h)) / h)
    light = rng.uniform(0.4, 1.0) * np.exp(-((distance / rng.uniform(0.1, 0.35)) ** 2))
    return np.asarray(x + light[..., None], np.float32)


def haze(x: F32, rng: np.random.Generator) -> F32:
    """Fog or a dirty lens: towards grey, more so in the upper (farther) part."""
    depth = np.linspace(1.0, rng.uniform(0.1, 0.6), x.shape[0], dtype=np.float32)[:, None, None]
    amount = rng.uniform(0.15, 0.6) * depth
    return np.asarray(x * (1 - amount) + rng.uniform(0.4, 0.85) * amount, np.float32)


def rain(x: F32, rng: np.random.Generator) -> F32:
    """Streaks of falling drops, all with one slant, and the veil of those too far away to be seen singly."""
    h, w = x.shape[:2]
    drops = np.zeros((h, w), np.float32)
    count = max(1, int(rng.uniform(0.004, 0.015) * h * w))
    drops[rng.integers(0, h, count), rng.integers(0, w, count)] = rng.uniform(0.3, 1.0, count)
    length = max(5, round(rng.uniform(0.03, 0.09) * h))
    streaks = cv2.filter2D(drops, -1, line_kernel(length, 90 + rng.normal(0, 10)) * length)
    veil = np.float32(rng.uniform(0.05, 0.25))
    light = np.minimum(streaks, 1)[..., None] * np.float32(rng.uniform(0.1, 0.35))
    return np.asarray(x * (1 - veil) + np.float32(0.6) * veil + light, np.float32)


def blur(x: F32, rng: np.random.Generator) -> F32:
    """Out of focus: Gaussian."""
    return np.asarray(cv2.GaussianBlur(x, (0, 0), rng.uniform(0.4, 1.6)), np.float32)


def motion_blur(x: F32, rng: np.random.Generator) -> F32:
    """Along a line: mostly sideways, as the vehicle turns, or up and down, as the road is rough."""
    length = max(3, round(rng.uniform(0.007, 0.025) * x.shape[1]))
    angle = rng.normal(90 if rng.random() < 0.3 else 0, 10)
    return np.asarray(cv2.filter2D(x, -1, line_kernel(length, angle)), np.float32)


def noise(x: F32, rng: np.random.Generator) -> F32:
    """Of the sensor: Gaussian."""
    return add_noise(x, rng, rng.uniform(0.005, 0.06))


def cutout(x: F32, rng: np.random.Generator) -> F32:
    """A grey rectangle whose content has to be guessed (DeVries & Taylor 2017); the target stays."""
    h, w = x.shape[:2]
    height, width = (max(1, round(rng.uniform(0.1, 0.35) * side)) for side in (h, w))
    top, left = int(rng.integers(0, h - height + 1)), int(rng.integers(0, w - width + 1))
    covered = np.array(x, np.float32)
    covered[top : top + height, left : left + width] = np.array(GREY, np.float32) / 255
    return covered


def jpeg(x: F32, rng: np.random.Generator) -> F32:
    """Compressed and decompressed."""
    _, packed = cv2.imencode(".jpg", to_bytes(x), [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 80))])
    decoded = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.float32)
    return np.asarray(decoded / np.float32(255), np.float32)


def add_noise(x: F32, rng: np.random.Generator, deviation: float) -> F32:
    return np.asarray(x + rng.standard_normal(x.shape, np.float32) * np.float32(deviation), np.float32)


def line_kernel(length: int, angle_deg: float) -> F32:
    """Weights ``(n, n)`` with the sum 1 along a line of ``length`` pixels through the centre, 0 degrees being level."""
    side = length | 1
    line = np.zeros((side, side), np.float32)
    line[side // 2] = 1
    turn = cv2.getRotationMatrix2D((side // 2, side // 2), angle_deg, 1.0)
    turned = cv2.warpAffine(line, turn, (side, side), flags=cv2.INTER_LINEAR)
    return np.asarray(turned / turned.sum(), np.float32)


PHOTOMETRIC: dict[str, Effect] = {
    "exposure": exposure,
    "contrast": contrast,
    "colour": colour,
    "night": night,
    "shadow": shadow,
    "glare": glare,
    "haze": haze,
    "rain": rain,
    "blur": blur,
    "motion_blur": motion_blur,
    "noise": noise,
    "cutout": cutout,
    "jpeg": jpeg,
}
EFFECTS = (*GEOMETRY, *PHOTOMETRIC)
DEFAULT = Augmentation()
NONE = replace(DEFAULT, **dict.fromkeys(EFFECTS, 0.0))
PRESETS = {"default": DEFAULT, "none": NONE}
