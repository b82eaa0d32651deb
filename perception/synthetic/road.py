"""Cross-sections of roads, and the roads there are to choose from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LightName = Literal["day", "dusk", "night"]
LIGHTS: tuple[LightName, ...] = ("day", "dusk", "night")
LANE_M = 3.5


@dataclass(frozen=True)
class Road:
    """The cross-section and the shape of a road.

    Attributes:
        lanes: number of lanes in the ego vehicle's direction; it drives in the rightmost one.
        oncoming: number of lanes of the other carriageway; 0 for a one-way road.
        bends: how winding, 0 straight to 1 (radii down to 170 m).
        hills: how hilly, 0 flat to 1 (slopes up to 5 percent).
        speed: of the ego vehicle, m/s.
        verge: what lies beside the asphalt: ``gravel``, ``pavement`` (with a kerb) or ``grass``.
        margin: asphalt outside the edge lines, metres.
        cars: number of other vehicles unless the scene says otherwise.
        light: unless the scene says otherwise.
    """

    lanes: int = 1
    oncoming: int = 1
    bends: float = 0.0
    hills: float = 0.0
    speed: float = 19.0
    verge: Literal["gravel", "pavement", "grass"] = "gravel"
    margin: float = 0.35
    cars: int = 0
    light: LightName = "day"

    @property
    def right(self) -> float:
        """Offset of the right road edge, metres (negative)."""
        return -(self.lanes * LANE_M + self.margin)

    @property
    def left(self) -> float:
        """Offset of the left road edge, metres."""
        return self.oncoming * LANE_M + self.margin

    @property
    def ego_left(self) -> float:
        """Offset of the left end of the own carriageway, metres: the centre line, or a one-way road's left edge."""
        return 0.0 if self.oncoming else self.left

    def lane(self, index: int) -> float:
        """Offset of a lane's centre, metres: 0 is the ego lane, 1 the next to its left, and so on."""
        return (index - self.lanes + 0.5) * LANE_M


ROADS: dict[str, Road] = {
    "drive": Road(bends=0.8, hills=0.6, cars=5),
    "straight": Road(),
    "curve": Road(bends=1.0, cars=2, verge="grass"),
    "hills": Road(bends=0.25, hills=1.0, cars=3, verge="grass"),
    "traffic": Road(lanes=2, oncoming=2, bends=0.3, speed=13.0, verge="pavement", cars=10),
    "cut-in": Road(lanes=3, oncoming=0, bends=0.2, speed=26.0, margin=1.6, cars=3),
    "dusk": Road(bends=0.6, hills=0.3, cars=4, light="dusk"),
    "night": Road(bends=0.4, hills=0.2, speed=17.0, cars=3, light="night"),
}
