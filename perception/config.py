"""One YAML file, one typed tree. Every command-line option has a key here; unknown keys and wrong types are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from engine.settings import Section, read_settings
from perception.errors import BadInput

LONGEST_S = 1e9
HOUR_S = 3600.0
LARGEST_PX = 65_535

Fraction = Annotated[float, Field(ge=0, le=1)]
Wait = Annotated[float, Field(gt=0, le=HOUR_S)]
Side = Annotated[int, Field(gt=0, le=LARGEST_PX)]
BagTopic = Literal[
    "polygons",
    "polygons_json",
    "scan",
    "markers",
    "occupancy",
    "mask",
    "scores",
    "overlay",
    "overlay/compressed",
    "diagnostics",
    "tf_static",
]
SMALL_TOPICS: tuple[BagTopic, ...] = ("polygons", "polygons_json", "scan", "markers", "occupancy", "diagnostics")


class CaptureConfig(Section):
    """What is taken from the source."""

    # As SOURCE on the command line; a password in it is not in the list of processes here.
    source: Annotated[str | None, Field(repr=False)] = None
    frame_id: str = "camera"  # name of the camera's coordinate frame, where the source has none of its own
    topic: str | None = None  # of a ROS 2 bag: the one with the pictures, where there are several
    start_s: Annotated[float, Field(ge=0, le=LONGEST_S)] = 0.0
    duration_s: Annotated[float, Field(gt=0, le=LONGEST_S)] | None = None
    every: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    image_fps: Annotated[float, Field(ge=1e-6, le=1000)] = 10.0  # rate at which a folder of images is played
    loop: bool = False  # begin a recording again when it ends
    realtime: bool = False  # play a recording at its own pace, as a live source: what comes too late is dropped
    # What a camera is asked for; None takes what it gives.
    width: Side | None = None
    height: Side | None = None
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    pixel_format: str | None = None  # such as MJPG or YUYV
    exposure_ms: Annotated[float, Field(gt=0, le=60_000)] | None = None
    transport: Literal["tcp", "udp"] = "tcp"  # of RTSP
    hardware: bool = True  # decode by hardware where the system can
    open_timeout_s: Wait = 5.0
    read_timeout_s: Wait = 1.0  # without a frame for so long a live source is opened again
    retry_first_s: Wait = 0.25  # between attempts to open it: doubled each time, with jitter
    retry_longest_s: Wait = 1.5
    give_up_s: Annotated[float, Field(ge=0, le=LONGEST_S)] = 0.0  # end after so long without a source; 0 never does


class EngineConfig(Section):
    """The network and what runs it."""

    model: str | None = None  # None: the model that ships with the package
    backend: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"  # as `engine.open_engine`
    threads: Annotated[int, Field(ge=0, le=1024)] = 0  # 0: the backend's choice
    input_size: Annotated[str, Field(pattern=r"^[1-9]\d*x[1-9]\d*$")] | None = (
        None  # such as 640x384; None: the model file's own
    )


class PolygonConfig(Section):
    """How scores become polygons."""

    plane: Literal["freespace", "ego"] = "freespace"
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    tolerance_px: Annotated[float, Field(ge=0, le=1000)] = 0.5  # how far a simplified outline may lie off, source pixels
    min_region: Fraction = 5e-4  # smaller regions are left out, as a fraction of the image's area
    min_hole: Fraction = 5e-5  # smaller holes are filled, likewise


class LoopConfig(Section):
    """How the loop keeps up."""

    policy: Literal["auto", "all", "latest"] = "auto"  # auto: latest for what is live, all for recordings
    budget_ms: Annotated[float, Field(gt=0, le=HOUR_S * 1e3)] = 250.0  # of a live source: an older result is not valid
    invalid_hz: Annotated[float, Field(ge=0.01, le=100)] = 5.0  # while there is no valid result, say so at this rate
    state: str | None = None  # file that the next start goes on from: frames are numbered on


class HealthConfig(Section):
    """When a picture is not to be trusted."""

    enabled: bool = True
    dark_level: Annotated[float, Field(ge=0, le=255)] = 8.0  # grey level of 255 that the brightest hundredth must reach
    bright_fraction: Fraction = 0.6  # of the picture that may be saturated
    covered_fraction: Fraction = 0.72  # of the picture that may show nothing
    least_sharpness: Annotated[float, Field(ge=0, le=10)] = 0.12  # finest details relative to coarse contrast; by day about 0.9
    defocus_fraction: Fraction = 0.15  # of the sharpness the camera used to have
    blind_after: Annotated[int, Field(ge=1, le=100_000)] = 3  # pictures in a row that are less sharp than that
    frozen_s: Wait | None = 0.25  # identical pictures for so long, live sources only; None: never
    clear_s: Annotated[float, Field(ge=0, le=HOUR_S)] = 0.3  # good pictures for so long before they are trusted again


class StabiliseConfig(Section):
    """How results are steadied over time."""

    enabled: bool | None = None  # None: for video, not for separate images
    # A drivable pixel is held while its score is less than this below the threshold, as a fraction of the threshold.
    hold_drivable: Annotated[float, Field(ge=0, lt=1)] = 0.4
    # A pixel that is not drivable is held while its score is less than this above the threshold, as a fraction of the rest.
    hold_blocked: Fraction = 0.9
    settle_s: Wait = 0.25  # time constant with which what is held is let go
    gap_s: Wait = 0.5  # begin anew after so long without a frame


class GroundConfig(Section):
    """How results are brought to the ground, in metres."""

    calibration: str | None = None  # YAML file of the camera with its mount, from 'calibrate'; None: pixels only
    max_range_m: Annotated[float, Field(gt=0, le=500)] = 60.0  # from base_link's origin
    min_range_m: Annotated[float, Field(ge=0, le=100)] = 0.0  # nearer ground is not looked at: a bonnet may hide it
    scan_step: Annotated[float, Field(ge=1e-3, le=0.5)] = 0.0175  # radians between the ranges of the scan
    vehicle_width_m: Annotated[float, Field(gt=0, le=10)] = 2.0
    bumper_m: Annotated[float, Field(ge=0, le=20)] = 0.0  # how far the front bumper is ahead of base_link's origin
    widths_at_m: Annotated[list[Annotated[float, Field(gt=0, le=500)]], Field(max_length=100)] = Field(
        default_factory=lambda: [5.0, 10.0, 20.0, 30.0]
    )
    # What makes metres uncertain, beside the calibration itself, as standard deviations.
    pixel_sigma: Fraction = 0.01  # of an outline in the image, of the image's height (measured: benchmarks/outlines.py)
    pitch_sigma: Annotated[float, Field(ge=0, le=0.2)] = 0.005  # of pitch and roll against the road, radians: the vehicle nods
    refine_pitch: bool = False  # correct the calibrated pitch slowly, by the direction in which the vehicle moves


class OutputConfig(Section):
    """What is written. Paths; None writes nothing."""

    video: str | None = None
    polygons: str | None = None
    masks: str | None = None
    contact_sheet: str | None = None
    mcap: str | None = None  # for Foxglove
    bag: str | None = None  # folder of a ROS 2 bag
    bag_topics: list[BagTopic] = Field(default_factory=lambda: list(SMALL_TOPICS))  # what is written to it
    view: Literal["rerun"] | None = None
    rerun: str | None = None  # .rrd
    serve: str | None = None  # HOST:PORT of the web page
    metrics: str | None = None  # HOST:PORT of Prometheus metrics
    # Asked of whoever wants the web page or metrics; needed unless they are for this machine alone.
    token: Annotated[str | None, Field(repr=False)] = None
    image_width: Side | None = 640  # of the pictures in MCAP and Rerun; None keeps the frame's
    image_quality: Annotated[int, Field(ge=1, le=100)] = 75  # of these, as JPEG
    append: bool = False  # go on where the run before ended
    rotate_mb: Annotated[float, Field(gt=0, le=1_000_000)] | None = None  # begin a new polygon file after so many megabytes
    overwrite: bool = False
    show: bool = False


class Config(Section):
    """Everything that can be set."""

    capture: CaptureConfig = CaptureConfig()
    engine: EngineConfig = EngineConfig()
    polygons: PolygonConfig = PolygonConfig()
    loop: LoopConfig = LoopConfig()
    health: HealthConfig = HealthConfig()
    stabilise: StabiliseConfig = StabiliseConfig()
    ground: GroundConfig = GroundConfig()
    output: OutputConfig = OutputConfig()


class CameraConfig(Section):
    """What one of several cameras has of its own; in everything else it is as the others."""

    capture: CaptureConfig = CaptureConfig()
    polygons: PolygonConfig = PolygonConfig()
    health: HealthConfig = HealthConfig()
    stabilise: StabiliseConfig = StabiliseConfig()
    ground: GroundConfig = GroundConfig()


class RigConfig(Config):
    """Settings of several cameras that share a process and its engine, by their names."""

    cameras: dict[str, CameraConfig] = Field(default_factory=dict)


C = TypeVar("C", bound=Config)


def load_config(path: Path | None, overrides: dict[str, Any]) -> Config:
    """The defaults, then the YAML file, then ``overrides`` (``"engine.backend": "openvino"``; None means not given).

    Raises:
        BadInput: the file is missing or no YAML, or a key is unknown or has a value of the wrong type or range; the
            message names the key by its path.
    """
    return load_settings(Config, path, overrides)


def load_rig(path: Path | None, overrides: dict[str, Any]) -> RigConfig:
    """As `load_config`, with what each camera has of its own under ``cameras``."""
    return load_settings(RigConfig, path, overrides)


def load_settings(kind: type[C], path: Path | None, overrides: dict[str, Any]) -> C:
    """As `load_config`, for settings of this ``kind``."""
    try:
        return read_settings(kind, path, {key: value for key, value in overrides.items() if value is not None})
    except ValueError as error:
        from perception.capture.uri import redacted  # its package reads settings itself

        raise BadInput(redacted(str(error), whole=False)) from error
