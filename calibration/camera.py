"""The camera: its intrinsics with distortion, and where it sits on the vehicle.

Pixels: ``u`` right, ``v`` down, (0, 0) the centre of the top-left pixel. Camera optical frame: x right, y down, z
forward. ``base_link`` (REP-103): x forward, y left, z up, its origin on the ground.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import ArrayLike, NDArray

from calibration.covariance import Covariance

Array = NDArray[np.float64]
DistortionModel = Literal["plumb_bob", "rational_polynomial", "equidistant"]

PARAMETERS: dict[DistortionModel, tuple[str, ...]] = {
    "plumb_bob": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3"),
    "rational_polynomial": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
    "equidistant": ("fx", "fy", "cx", "cy", "k1", "k2", "k3", "k4"),
}
COEFFICIENTS = {model: len(names) - 4 for model, names in PARAMETERS.items()}
PINHOLE = ("fx", "fy", "cx", "cy")
POSE = ("height_m", "pitch", "roll", "yaw", "x_m", "y_m")  # what of a mount can be estimated, in this order
FOLD_MARGIN = 0.995  # of the radius at which a distortion folds back: its inverse is steep there
WIDEST = math.radians(80.0)  # off the optical axis: beyond it a pixel says little about a direction
ROUNDS = 25  # of Newton's method at most; it ends when nothing moves any more, mostly after three


@dataclass(frozen=True)
class Intrinsics:
    """How directions become pixels, in ROS's terms (``sensor_msgs/CameraInfo``).

    Attributes:
        fx, fy: focal lengths, pixels.
        cx, cy: principal point, pixels.
        width, height: image size, pixels.
        distortion_model: ``plumb_bob`` (Brown 1966: k1, k2, p1, p2, k3), ``rational_polynomial`` (k1, k2, p1, p2, k3, k4, k5,
            k6; the last three in the denominator) or ``equidistant`` (Kannala & Brandt 2006, OpenCV's fisheye: k1 to k4).
        distortion: its coefficients in that order; those left out at the end are zero.
        name: of the camera.
        sigma: standard deviation of each parameter by its name, as far as it is known; ``reprojection_px``, the RMS
            distance between seen and projected corners, too.
        covariance: of the parameters' errors, by the names in `PARAMETERS`; None where only ``sigma`` is known.

    Raises:
        ValueError: a focal length or the image size is not positive, or the coefficients do not fit the model.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    distortion_model: DistortionModel = "plumb_bob"
    distortion: tuple[float, ...] = ()
    name: str = "camera"
    sigma: Mapping[str, float] = field(default_factory=dict, hash=False)
    covariance: Covariance | None = None

    def __post_init__(self) -> None:
        for name in ("fx", "fy", "width", "height"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"camera {name} must be positive, not {value}")
        for name in ("cx", "cy"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"camera {name} must be a number, not {getattr(self, name)}")
        if self.distortion_model not in get_args(DistortionModel):
            raise ValueError(f"distortion_model must be one of {', '.join(COEFFICIENTS)}, not {self.distortion_model!r}")
        most = COEFFICIENTS[self.distortion_model]
        if len(self.distortion) > most or not all(map(math.isfinite, self.distortion)):
            raise ValueError(f"{self.distortion_model} has {most} finite coefficients, not {list(self.distortion)}")
        object.__setattr__(self, "distortion", tuple(self.distortion) + (0.0,) * (most - len(self.distortion)))

    @property
    def matrix(self) -> Array:
        """float64 ``(3, 3)``: the camera matrix."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    @property
    def distorted(self) -> bool:
        """Whether straight lines are bent in the image."""
        return any(self.distortion) or self.distortion_model == "equidistant"

    @property
    def uncertain(self) -> Covariance:
        """Of the parameters' errors; without ``covariance`` of focal lengths and principal point, as if independent."""
        if self.covariance is not None:
            return self.covariance
        return Covariance.independent({name: self.sigma[name] for name in PINHOLE if self.sigma.get(name)})

    def moved(self, by: Mapping[str, float]) -> Intrinsics:
        """With these added to the parameters, by the names in `PARAMETERS`; other names count for nothing. Raises ValueError as
        the class."""
        names = PARAMETERS[self.distortion_model]
        values = (self.fx, self.fy, self.cx, self.cy, *self.distortion)
        fx, fy, cx, cy, *bends = (value + by.get(name, 0.0) for name, value in zip(names, values, strict=True))
        return replace(self, fx=fx, fy=fy, cx=cx, cy=cy, distortion=tuple(bends))

    def fits(self, size: tuple[int, int]) -> bool:
        """Whether images of ``(width, height)`` may be resized ones of this camera: of its shape, but for a row or a column."""
        return abs(size[0] * self.height - size[1] * self.width) <= max(self.width, self.height)

    def scales(self, size: tuple[int, int]) -> dict[str, float]:
        """How many times itself each parameter in pixels is in images resized to ``(width, height)``."""
        sx, sy = size[0] / self.width, size[1] / self.height
        return {"fx": sx, "cx": sx, "fy": sy, "cy": sy, "reprojection_px": math.sqrt(sx * sy)}

    def scaled(self, size: tuple[int, int]) -> Intrinsics:
        """The same camera for images resized to ``(width, height)``; half a pixel stays half a pixel."""
        scale = self.scales(size)
        sx, sy = scale["fx"], scale["fy"]
        return replace(
            self,
            fx=self.fx * sx,
            fy=self.fy * sy,
            cx=(self.cx + 0.5) * sx - 0.5,
            cy=(self.cy + 0.5) * sy - 0.5,
            width=size[0],
            height=size[1],
            sigma={name: value * scale.get(name, 1.0) for name, value in self.sigma.items()},
            covariance=self.covariance and self.covariance.scaled(scale),
        )

    def project(self, points: ArrayLike) -> Array:
        """Pixels of points in the optical frame.

        Args:
            points: ``(N, 3)``, metres.

        Returns:
            float64 ``(N, 2)`` pixels (u, v), also outside the image; NaN for points not in front of the camera and for those
            so far off its axis that the distortion folds back: a polynomial would put them where something else is seen.
        """
        x, y, z = np.asarray(points, np.float64).reshape(-1, 3).T
        if self.distortion_model == "equidistant":
            off_axis = np.hypot(x, y)
            angle = np.arctan2(off_axis, z)
            scale = self._radial(angle) / np.where(off_axis > 0, off_axis, np.nan)
            scale = np.where(off_axis > 0, scale, np.where(z > 0, 0.0, np.nan))
            bent = np.where(angle < self.limit, np.stack([x * scale, y * scale]), np.nan)
        else:
            depth = np.where(z > 0, z, np.nan)
            flat = np.stack([x / depth, y / depth])
            bent = np.where(np.hypot(*flat) < self.limit, self._bend(flat), np.nan)
        return np.stack([self.cx + self.fx * bent[0], self.cy + self.fy * bent[1]], axis=1)

    def rays(self, pixels: ArrayLike) -> Array:
        """Directions in the optical frame in which pixels look.

        Args:
            pixels: ``(N, 2)`` pixels (u, v).

        Returns:
            float64 ``(N, 3)`` of length 1; NaN where the distortion gives a pixel no direction.
        """
        uv = np.asarray(pixels, np.float64).reshape(-1, 2)
        bent = np.stack([(uv[:, 0] - self.cx) / self.fx, (uv[:, 1] - self.cy) / self.fy])
        if self.distortion_model == "equidistant":
            radius = np.hypot(*bent)
            angle = self._unbend_radius(radius)
            off_axis = np.divide(np.sin(angle), radius, out=np.ones_like(radius), where=radius > 0)
            return np.stack([bent[0] * off_axis, bent[1] * off_axis, np.cos(angle)], axis=1)
        flat = self._unbend(bent)
        rays = np.stack([flat[0], flat[1], np.ones(len(uv))], axis=1)
        return np.asarray(rays / np.linalg.norm(rays, axis=1, keepdims=True))

    # The radial part: the distorted radius as a function of the tangent of the angle off the axis (pinhole), or of the
    # angle itself (equidistant).

    @cached_property
    def _polynomials(self) -> tuple[Polynomial, Polynomial]:
        """Numerator and denominator of the radial factor, in the square of the radius."""
        if self.distortion_model == "equidistant":
            return Polynomial([1.0, *self.distortion]), Polynomial([1.0])
        k1, k2, _, _, k3, *denominator = self.distortion
        return Polynomial([1.0, k1, k2, k3]), Polynomial([1.0, *denominator])

    def _factor(self, s: Array) -> tuple[Array, Array]:
        """The radial factor at the square of the radius, and its slope there."""
        above, below = (np.asarray(p.coef, np.float64) for p in self._polynomials)
        (n, dn), (d, dd) = horner(above, s), horner(below, s)
        return n / d, (dn * d - n * dd) / (d * d)

    def _radial(self, radius: Array) -> Array:
        return np.asarray(radius * self._factor(radius**2)[0])

    @cached_property
    def limit(self) -> float:
        """The radius, as `_radial` takes it, up to which the distortion can be inverted; at most that of a wide lens's rim."""
        above, below = self._polynomials
        s = Polynomial([0.0, 1.0])
        slope = above * below + 2 * s * (above.deriv() * below - above * below.deriv())
        # Tiny coefficients at the end change nothing in an image, and their division would overflow.
        roots = np.concatenate([slope.trim(1e-12).roots(), below.trim(1e-12).roots()])
        turns = [float(r.real) for r in roots if abs(r.imag) < 1e-9 and r.real > 1e-12]
        widest = math.pi if self.distortion_model == "equidistant" else math.inf
        return min([widest, *(FOLD_MARGIN * math.sqrt(turn) for turn in turns)])

    @property
    def widest(self) -> float:
        """How far off the axis directions are known, radians: up to the fold of the distortion, 80 degrees at most."""
        limit = self.limit if self.distortion_model == "equidistant" else math.atan(self.limit)
        return min(limit, WIDEST)

    @cached_property
    def _table(self) -> tuple[Array, Array]:
        """Distorted radii, ascending, and the radii they come from: a first guess for the inverse."""
        corners = np.array([(u, v) for u in (-1.0, self.width) for v in (-1.0, self.height)])
        needed = 1.5 * float(np.hypot(*((corners - (self.cx, self.cy)) / (self.fx, self.fy)).T).max())
        end = min(self.limit, 1.0)
        while end < self.limit and float(self._radial(np.array(end))) < needed and end < 1e6:
            end = min(2 * end, self.limit)
        radii = np.linspace(0.0, end, 2048)
        return self._radial(radii), radii

    def _unbend_radius(self, bent: Array) -> Array:
        """The inverse of `_radial`; NaN where there is none."""
        radius = np.interp(bent, *self._table)
        for _ in range(ROUNDS):
            s = radius**2
            factor, slope = self._factor(s)
            step = (radius * factor - bent) / (factor + 2 * s * slope)
            radius = np.clip(radius - step, 0.0, self.limit)
            if np.all(np.abs(step) < 1e-14):
                break
        good = (np.abs(self._radial(radius) - bent) < 1e-9 * (1 + bent)) & (radius < self.limit)
        return np.where(good, radius, np.nan)

    def _bend(self, flat: Array) -> Array:
        """``(2, N)`` where points of the plane at depth 1 appear (Brown's model, OpenCV's order of coefficients)."""
        if not any(self.distortion):
            return flat
        x, y = flat
        p1, p2 = self.distortion[2:4]
        s = x * x + y * y
        factor, xy = self._factor(s)[0], 2 * x * y
        return np.stack([x * factor + p1 * xy + p2 * (s + 2 * x * x), y * factor + p1 * (s + 2 * y * y) + p2 * xy])

    def _unbend(self, bent: Array) -> Array:
        """``(2, N)``: the inverse of `_bend` by Newton's method in both coordinates; NaN where there is none."""
        if not any(self.distortion):
            return bent
        radius = np.hypot(*bent)
        guess = np.interp(radius, *self._table)
        flat = bent * np.divide(guess, radius, out=np.ones_like(radius), where=radius > 0)
        p1, p2 = self.distortion[2:4]
        with np.errstate(all="ignore"):  # points without an answer run away; they are found out below
            for _ in range(ROUNDS):
                x, y = flat
                s = x * x + y * y
                factor, slope = self._factor(s)
                xx = factor + 2 * x * x * slope + 2 * p1 * y + 6 * p2 * x
                yy = factor + 2 * y * y * slope + 6 * p1 * y + 2 * p2 * x
                xy = 2 * x * y * slope + 2 * p1 * x + 2 * p2 * y
                off_x = x * factor + 2 * p1 * x * y + p2 * (s + 2 * x * x) - bent[0]
                off_y = y * factor + p1 * (s + 2 * y * y) + 2 * p2 * x * y - bent[1]
                step = np.stack([yy * off_x - xy * off_y, xx * off_y - xy * off_x]) / (xx * yy - xy * xy)
                flat = flat - step
                if np.nanmax(np.abs(step), initial=0.0) < 1e-13:
                    break
            good = (np.abs(self._bend(flat) - bent).max(axis=0) < 1e-9 * (1 + radius)) & (np.hypot(*flat) < self.limit)
        return np.where(good, flat, np.nan)


def horner(coefficients: Array, s: Array) -> tuple[Array, Array]:
    """A polynomial, lowest power first, and its derivative."""
    value, slope = np.full_like(s, coefficients[-1]), np.zeros_like(s)
    for c in coefficients[-2::-1]:
        slope = slope * s + value
        value = value * s + c
    return value, slope


@dataclass(frozen=True)
class Mount:
    """Where the camera sits on the vehicle: its pose in ``base_link``.

    Attributes:
        height_m: of the optical centre above the ground, metres.
        pitch, roll, yaw: of the camera about base_link's y, x and z axes, radians (REP-103, yaw applied last): a positive
            pitch looks down, a positive yaw looks left, a positive roll lowers the right side.
        x_m, y_m: of the optical centre ahead of and left of base_link's origin, metres.
        frame_id: the name of base_link.
        sigma: standard deviation of each of these by its name, as far as it is known.
        covariance: of the errors of these together with those of the intrinsics that it was calibrated with, by their names;
            None where only ``sigma`` is known.

    Raises:
        ValueError: the height is not positive, the pitch is beyond a quarter turn, or something is no number.
    """

    height_m: float
    pitch: float = 0.0
    roll: float = 0.0
    yaw: float = 0.0
    x_m: float = 0.0
    y_m: float = 0.0
    frame_id: str = "base_link"
    sigma: Mapping[str, float] = field(default_factory=dict, hash=False)
    covariance: Covariance | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.height_m) and self.height_m > 0):
            raise ValueError(f"camera height_m must be positive, not {self.height_m}")
        if not abs(self.pitch) < math.pi / 2:
            raise ValueError(f"camera pitch must lie within a quarter turn, in radians, not {self.pitch}")
        for name in ("roll", "yaw", "x_m", "y_m"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"camera {name} must be a number, not {getattr(self, name)}")

    @cached_property
    def base_from_camera(self) -> Array:
        """float64 ``(4, 4)``: homogeneous transform from the camera's optical frame to ``base_link``."""
        return pose_matrix(**{name: getattr(self, name) for name in POSE})

    def only(self, names: Sequence[str]) -> Mount:
        """The same mount with nothing known of how sure other attributes than these are."""
        sigma = {name: self.sigma[name] for name in names if name in self.sigma}
        known = self.covariance
        kept = known and known.only([name for name in known.names if name in names or name not in POSE])
        return replace(self, sigma=sigma, covariance=kept)

    @classmethod
    def from_transform(cls, base_from_camera: ArrayLike, **others: object) -> Mount:
        """The mount with this transform, ``(4, 4)``; ``others`` are further attributes. Raises ValueError as the class."""
        transform = np.asarray(base_from_camera, np.float64)
        forward, right, down = transform[:3, 2], transform[:3, 0], transform[:3, 1]
        x, y, z = (float(value) for value in transform[:3, 3])
        return cls(
            height_m=z,
            pitch=math.asin(min(1.0, max(-1.0, -float(forward[2])))),
            roll=math.atan2(-float(right[2]), -float(down[2])),
            yaw=math.atan2(float(forward[1]), float(forward[0])),
            x_m=x,
            y_m=y,
            **others,  # type: ignore[arg-type]
        )


def pose_matrix(height_m: float, pitch: float, roll: float, yaw: float, x_m: float, y_m: float) -> Array:
    """`Mount.base_from_camera` of a mount with these attributes, float64 ``(4, 4)``."""
    cp, sp = math.cos(pitch), math.sin(pitch)
    cr, sr = math.cos(roll), math.sin(roll)
    cy, sy = math.cos(yaw), math.sin(yaw)
    about_z = np.array([[cy, -sy, 0.0], [sy, cy, 0.0], [0.0, 0.0, 1.0]])
    about_y = np.array([[cp, 0.0, sp], [0.0, 1.0, 0.0], [-sp, 0.0, cp]])
    about_x = np.array([[1.0, 0.0, 0.0], [0.0, cr, -sr], [0.0, sr, cr]])
    optical = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # columns: right, down, forward
    transform = np.eye(4)
    transform[:3, :3] = about_z @ about_y @ about_x @ optical
    transform[:3, 3] = x_m, y_m, height_m
    return transform


def inverse_of(transform: Array) -> Array:
    """float64 ``(4, 4)``: of a rigid motion."""
    rotation = transform[:3, :3].T
    inverse = np.eye(4)
    inverse[:3, :3] = rotation
    inverse[:3, 3] = -rotation @ transform[:3, 3]
    return inverse


@dataclass(frozen=True)
class Camera:
    """A camera on a vehicle."""

    intrinsics: Intrinsics
    mount: Mount

    @cached_property
    def camera_from_base(self) -> Array:
        """float64 ``(4, 4)``: the inverse of ``mount.base_from_camera``."""
        return inverse_of(self.mount.base_from_camera)

    @property
    def uncertain(self) -> Covariance:
        """Of the errors of the mount and, where it is known how they go together, the intrinsics."""
        return self.mount.covariance or Covariance.independent(self.mount.sigma)

    def scaled(self, size: tuple[int, int]) -> Camera:
        """The same camera for images resized to ``(width, height)``, also in what the mount says of the intrinsics."""
        known = self.mount.covariance
        covariance = known and known.scaled(self.intrinsics.scales(size))
        return Camera(self.intrinsics.scaled(size), replace(self.mount, covariance=covariance))

    def measured(self, names: Sequence[str], slopes: ArrayLike, noise: ArrayLike) -> Mount:
        """The mount with another uncertainty: of attributes that were found in the image by means of these intrinsics.

        Args:
            names: of the attributes.
            slopes: ``(len(names), n)``: how they change with the n parameters of ``intrinsics.uncertain``.
            noise: ``(len(names), len(names))``: covariance of what does not come from the intrinsics.
        """
        lens = self.intrinsics.uncertain
        joint = self.uncertain.beside(lens).measured(names, lens.names, slopes, noise)
        return replace(self.mount, sigma={n: s for n, s in joint.sigma.items() if n in POSE}, covariance=joint)

    def project(self, points_base: ArrayLike) -> Array:
        """Pixels of points in ``base_link``: ``(N, 3)`` metres to float64 ``(N, 2)``; NaN as `Intrinsics.project`."""
        points = np.asarray(points_base, np.float64).reshape(-1, 3)
        return self.intrinsics.project(points @ self.camera_from_base[:3, :3].T + self.camera_from_base[:3, 3])

    def pixel_rays(self, pixels: ArrayLike) -> Array:
        """Directions in ``base_link`` in which pixels ``(N, 2)`` look: float64 ``(N, 3)`` of length 1; NaN where unknown."""
        return np.asarray(self.intrinsics.rays(pixels) @ self.mount.base_from_camera[:3, :3].T)
