"""The result for one frame, and its JSON form: one object per line, schema ``freespace/1``."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import orjson
from numpy.typing import NDArray

from perception.causes import Cause, Code, encodable
from perception.frame import Clock

if TYPE_CHECKING:
    from calibration.ground import GroundPolygon

SCHEMA = "freespace/1"

State = Literal["starting", "running", "degraded", "stale", "blind", "error"]
Ring = NDArray[np.float64]


@dataclass(frozen=True)
class Polygon:
    """One drivable region of one plane, in source pixels.

    x right, y down, (0, 0) the centre of the top-left pixel. Rings are simple, their first point is not repeated;
    exteriors run counter-clockwise as seen on the screen, interiors clockwise, inside the exterior.

    Attributes:
        plane: ``freespace`` or ``ego``.
        ego: whether the vehicle stands on this region.
        confidence: the share of its pixels that are truly drivable, as far as the model knows: `calibration.confidence`.
        area_px: area without the holes, in square pixels.
        exterior: float ``(n, 2)``.
        interiors: holes (a car on the road is one), each float ``(n, 2)``.
        ground: its parts on the ground within range, largest first; None without a calibrated camera.
    """

    plane: str
    ego: bool
    confidence: float
    area_px: float
    exterior: Ring
    interiors: list[Ring] = field(default_factory=list)
    ground: list[GroundPolygon] | None = None

    @property
    def rings(self) -> list[Ring]:
        """The exterior, then the interiors."""
        return [self.exterior, *self.interiors]


@dataclass(frozen=True)
class Scan:
    """How far free ground reaches in each direction, from base_link's origin, as a laser scan (``sensor_msgs/LaserScan``).

    Attributes:
        angle_min: direction of the first range, radians, positive to the left.
        angle_increment: from each range to the next, radians.
        range_max_m: how far was looked: free ground with this range may go on.
        ranges_m: float64 ``(n,)``; NaN in directions in which no ground is seen.
        near_m, far_m: float64 ``(n,)``: the ranges lie between these with a probability of 95 %; 0 and infinity where nobody
            knows; NaN as ``ranges_m``.
        ends: bool ``(n,)``: whether free ground is seen to end there; else only the view ends, and what comes is not known.
    """

    angle_min: float
    angle_increment: float
    range_max_m: float
    ranges_m: Ring
    near_m: Ring
    far_m: Ring
    ends: NDArray[np.bool_]


@dataclass(frozen=True)
class Distance:
    """A distance in metres, and between which it lies with a probability of 95 %; 0 and infinity where nobody knows."""

    m: float
    near_m: float
    far_m: float


@dataclass(frozen=True)
class Width:
    """How far ground is free to either side of the line straight ahead, at the forward distance ``x_m``. Offsets are y, metres.

    Attributes:
        right_m, left_m: between which offsets it is free; both 0 where that line is not free there, NaN where it is not seen.
        right_near_m, right_far_m, left_near_m, left_far_m: the offsets lie between these with a probability of 95 %, the near
            one nearer the line; 0 and infinity (to the right minus infinity) where nobody knows; NaN as ``right_m``.
        right_ends, left_ends: whether free ground is seen to end there; else only the view ends, or nothing is known.
    """

    x_m: float
    right_m: float
    left_m: float
    right_near_m: float
    right_far_m: float
    left_near_m: float
    left_far_m: float
    right_ends: bool
    left_ends: bool


@dataclass(frozen=True)
class Ground:
    """What the polygons mean on the ground, in ``frame_id`` (``base_link``: x forward, y left), metres.

    Attributes:
        area_m2: of all polygons within range, square metres.
        ahead: from the bumper to where free ground first ends across the vehicle's width; None where not all of that is seen.
        scan: the boundary of free ground all around.
        widths: free width at the forward distances asked for.
    """

    frame_id: str
    area_m2: float
    ahead: Distance | None
    scan: Scan
    widths: list[Width]


DISTANCE, WIDTH = (tuple(field.name for field in fields(kind)) for kind in (Distance, Width))


@dataclass(frozen=True)
class Freespace:
    """Everything that is known about one frame. Identification fields are those of its `Frame`, untouched.

    ``valid`` is False where the result must not be used; then there are no polygons, and ``causes`` says why. ``state``:

    - ``starting``: no frame has come yet;
    - ``running``: all is well;
    - ``degraded``: the result may be used, but something is wrong: ``causes``;
    - ``stale``: nothing new enough: the source, or the loop, is late;
    - ``blind``: the picture cannot be trusted (dark, covered, overexposed, frozen, defocused, not the calibrated shape);
    - ``error``: the network or the source failed for good.

    ``dropped`` counts the frames lost so far, those that the source lost and those for which there was no time.

    ``latency_ms`` holds milliseconds by stage: ``decode``, ``preprocess``, ``infer``, ``postprocess`` and ``total``, their
    sum with what lies between, without the time the frame waited for its turn. Of a live source there is ``age``, too: from
    the moment the frame was grabbed to that at which its result was handed to the outputs. ``published_ns`` is when that was,
    Unix time in nanoseconds (0: unknown): the only time that goes on in results without a frame.

    ``ground`` is None without a calibrated camera, and where the result is not valid.
    """

    seq: int
    source: str
    frame_id: str
    stamp_ns: int
    clock: Clock
    size: tuple[int, int]
    valid: bool
    state: State
    model: str
    backend: str
    dropped: int
    polygons: list[Polygon]
    latency_ms: dict[str, float]
    causes: list[Cause] = field(default_factory=list)
    published_ns: int = 0
    ground: Ground | None = None

    def __post_init__(self) -> None:
        if not self.valid and (self.polygons or self.ground):
            raise ValueError("an invalid result carries no polygons")

    def to_json(self) -> str:
        """One line of JSON without the line end."""
        data = {
            "schema": SCHEMA,
            "seq": self.seq,
            "source": encodable(self.source),
            "frame_id": encodable(self.frame_id),
            "stamp_ns": self.stamp_ns,
            "clock": self.clock,
            "size": self.size,
            "valid": self.valid,
            "state": self.state,
            "model": self.model,
            "backend": self.backend,
            "dropped": self.dropped,
            "polygons": [
                {
                    "plane": p.plane,
                    "ego": p.ego,
                    "confidence": round(p.confidence, 4),
                    "area_px": round(p.area_px, 2),
                    "exterior": p.exterior,
                    "interiors": p.interiors,
                    **({"ground": [part_to_dict(part) for part in p.ground]} if p.ground is not None else {}),
                }
                for p in self.polygons
            ],
            **({"ground": ground_to_dict(self.ground)} if self.ground else {}),
            "latency_ms": {k: round(v, 3) for k, v in self.latency_ms.items()},
            "causes": [cause.to_dict() for cause in self.causes],
            "published_ns": self.published_ns,
        }
        return orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY).decode()

    @classmethod
    def from_json(cls, line: str) -> Freespace:
        """Read a line written by `to_json`.

        Raises:
            ValueError: no JSON, another schema, a key is missing, or a value is of another kind than `to_json` writes.
        """
        data: Any = orjson.loads(line)
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != SCHEMA:
            raise ValueError(f"schema is {schema!r}, this program reads {SCHEMA!r}")
        try:
            polygons = [
                Polygon(
                    typed(p, "plane", str),
                    typed(p, "ego", bool),
                    typed(p, "confidence", float, int),
                    typed(p, "area_px", float, int),
                    np.array(p["exterior"], np.float64).reshape(-1, 2),
                    [np.array(r, np.float64).reshape(-1, 2) for r in typed(p, "interiors", list)],
                    [part_from_dict(part) for part in typed(p, "ground", list)] if "ground" in p else None,
                )
                for p in typed(data, "polygons", list)
            ]
            rings = [r for p in polygons for r in (*p.rings, *(r for part in p.ground or [] for r in part.rings))]
            if not all(np.isfinite(r).all() for r in rings):
                raise ValueError("a corner of a polygon is no number")
            width, height = typed(data, "size", list)
            latency = typed(data, "latency_ms", dict)
            return cls(
                seq=typed(data, "seq", int),
                source=typed(data, "source", str),
                frame_id=typed(data, "frame_id", str),
                stamp_ns=typed(data, "stamp_ns", int),
                clock=chosen(data, "clock", get_args(Clock)),
                size=(operator.index(width), operator.index(height)),
                valid=typed(data, "valid", bool),
                state=chosen(data, "state", get_args(State)),
                model=typed(data, "model", str),
                backend=typed(data, "backend", str),
                dropped=typed(data, "dropped", int),
                polygons=polygons,
                latency_ms={stage: typed(latency, stage, float, int) for stage in latency},
                causes=[Cause(Code(c["code"]), typed(c, "text", str)) for c in data.get("causes", [])],
                published_ns=typed(data, "published_ns", int) if "published_ns" in data else 0,
                ground=ground_from_dict(typed(data, "ground", dict)) if "ground" in data else None,
            )
        except KeyError as error:
            raise ValueError(f"a {SCHEMA} line needs the key {error}") from error
        except TypeError as error:
            raise ValueError(f"a {SCHEMA} line cannot hold this: {error}") from error


def part_to_dict(part: GroundPolygon) -> dict[str, Any]:
    return {"area_m2": round(part.area_m2, 3), "exterior": part.exterior, "interiors": part.interiors}


def part_from_dict(data: Any) -> GroundPolygon:
    from calibration.ground import GroundPolygon  # only where there are metres

    exterior, *interiors = (np.array(r, np.float64).reshape(-1, 2) for r in (data["exterior"], *typed(data, "interiors", list)))
    return GroundPolygon(exterior, interiors, typed(data, "area_m2", float, int))


def ground_to_dict(ground: Ground) -> dict[str, Any]:
    """JSON knows neither infinity nor NaN: both become null."""
    scan, ahead = ground.scan, ground.ahead
    return {
        "frame_id": encodable(ground.frame_id),
        "area_m2": round(ground.area_m2, 3),
        "ahead": ahead and {"m": round(ahead.m, 3), "near_m": round(ahead.near_m, 3), "far_m": round(ahead.far_m, 3)},
        "widths": [{name: rounded(getattr(w, name)) for name in WIDTH} for w in ground.widths],
        "scan": {
            "angle_min": scan.angle_min,
            "angle_increment": scan.angle_increment,
            "range_max_m": scan.range_max_m,
            **{name: np.round(getattr(scan, name), 3) for name in ("ranges_m", "near_m", "far_m")},
            "ends": scan.ends.tolist(),
        },
    }


def ground_from_dict(data: Any) -> Ground:
    scan, ahead = typed(data, "scan", dict), data["ahead"]
    ranges, near, far = (np.array(typed(scan, name, list), np.float64) for name in ("ranges_m", "near_m", "far_m"))
    angle_min, step, reach = (typed(scan, name, float, int) for name in ("angle_min", "angle_increment", "range_max_m"))
    far = np.where(np.isnan(far) & ~np.isnan(ranges), np.inf, far)
    return Ground(
        typed(data, "frame_id", str),
        typed(data, "area_m2", float, int),
        ahead and Distance(*(math.inf if ahead[name] is None else typed(ahead, name, float, int) for name in DISTANCE)),
        Scan(angle_min, step, reach, ranges, near, far, np.array(typed(scan, "ends", list), bool)),
        [width_from_dict(w) for w in typed(data, "widths", list)],
    )


def width_from_dict(data: Any) -> Width:
    unseen = data["right_m"] is None

    def number(name: str) -> float:
        if data[name] is None and (unseen or name.endswith("_far_m")):
            return math.nan if unseen else -math.inf if name.startswith("right") else math.inf
        return float(typed(data, name, float, int))

    offsets: dict[str, Any] = {name: number(name) for name in WIDTH[1:-2]}
    return Width(typed(data, "x_m", float, int), **offsets, **{name: typed(data, name, bool) for name in WIDTH[-2:]})


def rounded(value: float | bool) -> float | bool:
    return value if isinstance(value, bool) else round(value, 3)


def typed(data: Any, key: str, *kinds: type) -> Any:
    """``data[key]``, which must be of one of ``kinds``."""
    if type(data[key]) not in kinds:
        raise ValueError(f"{key} is {data[key]!r:.40}, and must be of type {kinds[0].__name__}")
    return data[key]


def chosen(data: Any, key: str, choices: tuple[Any, ...]) -> Any:
    """``data[key]``, which must be one of ``choices``."""
    if data[key] not in choices:
        raise ValueError(f"{key} is {data[key]!r:.40}, and must be one of {', '.join(choices)}")
    return data[key]
