"""The result for one frame, and its JSON form: one object per line, schema ``freespace/1``."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import orjson
from numpy.typing import NDArray

from perception.causes import Cause, Code, encodable
from perception.frame import Clock

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
        confidence: mean score inside, 0 to 1.
        area_px: area without the holes, in square pixels.
        exterior: float ``(n, 2)``.
        interiors: holes (a car on the road is one), each float ``(n, 2)``.
    """

    plane: str
    ego: bool
    confidence: float
    area_px: float
    exterior: Ring
    interiors: list[Ring] = field(default_factory=list)

    @property
    def rings(self) -> list[Ring]:
        """The exterior, then the interiors."""
        return [self.exterior, *self.interiors]


@dataclass(frozen=True)
class Freespace:
    """Everything that is known about one frame. Identification fields are those of its `Frame`, untouched.

    ``valid`` is False where the result must not be used; then there are no polygons, and ``causes`` says why. ``state``:

    - ``starting``: no frame has come yet;
    - ``running``: all is well;
    - ``degraded``: the result may be used, but something is wrong: ``causes``;
    - ``stale``: nothing new enough: the source, or the loop, is late;
    - ``blind``: the picture cannot be trusted (dark, covered, overexposed, frozen, defocused);
    - ``error``: the network or the source failed for good.

    ``dropped`` counts the frames lost so far, those that the source lost and those for which there was no time.

    ``latency_ms`` holds milliseconds by stage: ``decode``, ``preprocess``, ``infer``, ``postprocess`` and ``total``, their
    sum with what lies between, without the time the frame waited for its turn. Of a live source there is ``age``, too: from
    the moment the frame was grabbed to that at which its result was handed to the outputs. ``published_ns`` is when that was,
    Unix time in nanoseconds (0: unknown): the only time that goes on in results without a frame.
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

    def __post_init__(self) -> None:
        if not self.valid and self.polygons:
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
                }
                for p in self.polygons
            ],
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
                )
                for p in typed(data, "polygons", list)
            ]
            if not all(np.isfinite(r).all() for p in polygons for r in p.rings):
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
            )
        except KeyError as error:
            raise ValueError(f"a {SCHEMA} line needs the key {error}") from error
        except TypeError as error:
            raise ValueError(f"a {SCHEMA} line cannot hold this: {error}") from error


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
