"""How the road runs: its heading and its slope by the arc length."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from perception.synthetic.chance import Purpose, scene_rng
from perception.synthetic.scene import Scene
from perception.synthetic.types import Array


class Waves(NamedTuple):
    """A sum of sines of the arc length, with its integral in closed form.

    Attributes:
        amplitudes, phases: of the sines, radians for the phases.
        numbers: angular wave numbers, 1/m.
    """

    amplitudes: Array
    numbers: Array
    phases: Array

    def value(self, s: Array) -> Array:
        return np.asarray(np.sin(np.multiply.outer(s, self.numbers) + self.phases) @ self.amplitudes)

    def integral(self, s: Array) -> Array:
        return np.asarray(-np.cos(np.multiply.outer(s, self.numbers) + self.phases) @ (self.amplitudes / self.numbers))


class Course(NamedTuple):
    """The course of a road.

    The curvature of summed sines comes and goes smoothly, as with the clothoids of real roads, and the heading stays
    within a quarter turn, so that the forward distance grows along the road.

    Attributes:
        heading: radians, by the arc length.
        slope: rise per run, by the arc length; its integral is the elevation, metres.
        start: arc length at which the drive begins, metres.
    """

    heading: Waves
    slope: Waves
    start: float


@lru_cache(maxsize=64)
def course_of(scene: Scene) -> Course:
    road, phases = scene.road, scene_rng(scene, Purpose.COURSE).uniform(0, 2 * np.pi, 4)
    heading = Waves(road.bends * np.array([0.30, 0.15]), 2 * np.pi / np.array([620.0, 340.0]), phases[:2])
    slope = Waves(road.hills * np.array([0.034, 0.018]), 2 * np.pi / np.array([420.0, 230.0]), phases[2:])
    # Drives are short: this one begins where the bends and the crests are.
    s = np.arange(0.0, 4000.0, 10.0)
    turn, crest = np.abs(heading.value(s + 200) - heading.value(s + 20)), slope.value(s + 30) - slope.value(s + 130)
    return Course(heading, slope, float(s[np.argmax(turn / 0.3 + crest / 0.034)]))
