"""Messages from results and frames from messages, against OpenCV and numbers worked out by hand."""

from __future__ import annotations

import array
import importlib
import json
import math
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import make_output, road_image

from calibration.camera import Camera, Intrinsics, Mount
from calibration.ground import GroundPolygon
from perception.causes import Cause, Code
from perception.config import GroundConfig
from perception.errors import BadInput, FreespaceError
from perception.freespace import Freespace, Ground, Polygon, Scan
from perception.messages import ENCODINGS, Messages, image_from_message, intrinsics_from_message
from perception.metres import Metres
from perception.overlay import draw
from perception.sinks.base import Output
from perception.status import Status

typesys = pytest.importorskip("rosbags.typesys", reason="needs rosbags")
STORE = typesys.get_typestore(typesys.Stores.ROS2_JAZZY)
STAMP_NS = 1_700_000_000_123_456_789


def of_rclpy(name: str) -> Any:
    package, _, kind = name.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), kind)


@pytest.fixture(params=["rosbags", "rclpy"])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Messages:
    """Builders for the classes of rosbags and, where there are any, of a real ROS 2, which check every field they are given."""
    if request.param == "rosbags":
        return Messages(STORE.types.__getitem__)
    for package in ("std_msgs", "sensor_msgs", "geometry_msgs", "nav_msgs", "visualization_msgs", "diagnostic_msgs"):
        pytest.importorskip(f"{package}.msg", reason="needs ROS 2's messages")

    def checked(name: str) -> Any:
        kind = of_rclpy(name)

        def build(**fields: Any) -> Any:
            return kind(**fields, check_fields=True)

        for constant in (
            "OK",
            "WARN",
            "ERROR",
            "STALE",
            "LINE_STRIP",
            "DELETEALL",
            "TEXT_VIEW_FACING",
            "get_fields_and_field_types",
        ):
            if hasattr(kind, constant):
                setattr(build, constant, getattr(kind, constant))
        return build

    try:
        of_rclpy("std_msgs/msg/Header")(check_fields=True)
    except AssertionError:  # of a ROS 2 that always checks
        return Messages(of_rclpy)
    return Messages(checked)


def stamped(message: Any) -> tuple[int, str]:
    stamp = message.header.stamp
    return stamp.sec * 1_000_000_000 + stamp.nanosec, message.header.frame_id


def output(frame_id: str = "front_camera") -> Output:
    made = make_output(road_image())
    hole = np.array([[10.0, 10.0], [20.0, 10.0], [20.0, 20.0]])
    outer = np.array([[0.0, 50.0], [60.0, 50.0], [60.0, 5.5], [0.0, 5.5]])
    second = np.array([[70.0, 50.0], [80.0, 50.0], [80.0, 40.0]])
    polygons = [Polygon("freespace", True, 0.9, 2000.0, outer, [hole]), Polygon("freespace", False, 0.8, 50.0, second)]
    result = replace(made.result, stamp_ns=STAMP_NS, clock="ros", frame_id=frame_id, polygons=polygons)
    return replace(made, result=result, frame=replace(made.frame, stamp_ns=STAMP_NS, clock="ros", frame_id=frame_id))


def grounded() -> Output:
    """4 m by 2 m of free ground ahead, seen by a camera 1.5 m high."""
    bare = output()
    width, height = bare.frame.size
    camera = Camera(Intrinsics(100.0, 100.0, width / 2, height / 2 - 10, width, height), Mount(1.5, pitch=0.2, frame_id="base"))
    metres = Metres(camera, GroundConfig(max_range_m=20.0))
    square = np.array([[6.0, -1.0], [10.0, -1.0], [10.0, 1.0], [6.0, 1.0]])
    ranges = np.array([np.nan, 9.5, 20.0, 7.0])  # 7 m ahead the picture ends
    scan = Scan(-0.1, 0.1, 20.0, ranges, ranges, ranges, np.array([False, True, False, False]))
    polygons = [replace(bare.result.polygons[0], ground=[GroundPolygon(square, [], 8.0)]), bare.result.polygons[1]]
    result = replace(bare.result, polygons=polygons, ground=Ground("base", 8.0, None, scan, []))
    return replace(bare, result=result, metres=metres)


def invalid(given: Output) -> Output:
    causes = [Cause(Code.DARK, "The picture is dark.")]
    result = replace(given.result, valid=False, state="blind", polygons=[], ground=None, causes=causes)
    return replace(given, result=result, scores=np.zeros_like(given.scores))


def corners(message: Any) -> list[tuple[float, float]]:
    return [(p.x, p.y) for p in message.polygon.polygon.points]


def test_every_ring_is_a_polygon_in_pixels_with_the_id_of_its_region_and_place(make: Messages) -> None:
    given = output()
    messages = make.polygons(given)
    assert [m.polygon.id for m in messages] == [0, 1, 1_000_000]
    assert {stamped(m) for m in messages} == {(STAMP_NS, "front_camera")}
    assert corners(messages[1]) == [(10.0, 10.0), (20.0, 10.0), (20.0, 20.0)]


def test_polygons_are_in_metres_where_there_is_ground(make: Messages) -> None:
    (message,) = make.polygons(grounded())
    assert stamped(message) == (STAMP_NS, "base")
    assert corners(message) == [(6.0, -1.0), (10.0, -1.0), (10.0, 1.0), (6.0, 1.0)]


def test_a_result_that_is_not_valid_takes_back_what_was_free(make: Messages) -> None:
    given = invalid(grounded())
    (message,) = make.polygons(given)
    assert (message.polygon.id, corners(message), stamped(message)[0]) == (-1, [], STAMP_NS)
    assert len(make.scan(given).ranges) == 0
    assert set(make.occupancy(given, 0.5).data) == {-1}
    assert not np.any(make.mask(given).data)
    markers = make.markers(given).markers
    assert [(m.action, m.text) for m in markers] == [(3, ""), (0, "NOT VALID (blind). The picture is dark.")]
    assert json.loads(make.polygons_json(given).data)["polygons"] == []


def test_without_a_calibrated_camera_there_is_nothing_on_the_ground(make: Messages) -> None:
    given = output()
    assert make.scan(given) is None
    assert make.occupancy(given, 0.5) is None
    assert [m.action for m in make.markers(given).markers] == [3]


def test_the_json_is_the_result(make: Messages) -> None:
    given = grounded()
    assert Freespace.from_json(make.polygons_json(given).data).to_json() == given.result.to_json()


def test_mask_and_scores_are_images_of_the_frames_and_the_networks_size(make: Messages) -> None:
    scores = np.zeros((32, 64), np.uint8)
    scores[16:] = 255
    given = replace(output(), **{k: getattr(make_output(road_image(), scores=scores), k) for k in ("scores", "resampling")})
    mask, raw = make.mask(given), make.scores(given)
    assert (mask.height, mask.width, mask.step, mask.encoding) == (64, 128, 128, "mono8")
    expected = np.zeros((64, 128), np.uint8)
    expected[32:] = 255
    assert (np.frombuffer(mask.data, np.uint8).reshape(64, 128) == expected).all()
    assert (raw.height, raw.width, raw.step) == (32, 64, 64)
    assert bytes(raw.data) == scores.tobytes()
    assert stamped(mask) == stamped(raw) == (STAMP_NS, "front_camera")


def test_overlays_hold_what_is_drawn(make: Messages) -> None:
    given = output()
    drawn = draw(given.frame.image, given.result)
    message = make.overlay(given)
    assert (message.encoding, message.step) == ("bgr8", 3 * 128)
    assert (image_from_message(message) == drawn).all()
    compressed = make.overlay_compressed(given, 95)
    assert compressed.format == "bgr8; jpeg compressed bgr8"
    assert stamped(compressed) == (STAMP_NS, "front_camera")
    assert np.abs(image_from_message(compressed).astype(int) - drawn).mean() < 8


def test_a_scan_says_infinity_where_free_ground_goes_on_and_nan_where_none_is_seen(make: Messages) -> None:
    scan = make.scan(grounded())
    assert stamped(scan) == (STAMP_NS, "base")
    assert math.isnan(scan.ranges[0])
    assert list(scan.ranges[1:3]) == [9.5, math.inf]
    assert math.isnan(scan.ranges[3]), "no obstacle, and not free as far as the range either"
    assert (scan.angle_min, scan.angle_increment, scan.range_max) == (-0.1, 0.1, 20.0)
    assert scan.angle_max == pytest.approx(0.2)


def test_the_cell_under_a_point_of_free_ground_is_free(make: Messages) -> None:
    message = make.occupancy(grounded(), 0.5)
    info = message.info
    given = grounded()
    assert given.metres is not None
    least_x, least_y, greatest_x, greatest_y = given.metres.view.seen.bounds
    corner = info.origin.position
    assert (corner.x, corner.y) == (math.floor(least_x * 2) / 2, math.floor(least_y * 2) / 2)
    assert (info.width, info.height) == (math.ceil((greatest_x - corner.x) * 2), math.ceil((greatest_y - corner.y) * 2))
    assert (info.resolution, info.origin.orientation.w) == (0.5, 1.0)
    cells = np.array(message.data).reshape(info.height, info.width)
    assert stamped(message) == (STAMP_NS, "base")

    def at(x: float, y: float) -> int:
        row, column = math.floor((y - info.origin.position.y) / 0.5), math.floor((x - info.origin.position.x) / 0.5)
        return int(cells[row, column])

    assert (at(8.2, 0.7), at(8.2, -0.7), at(8.2, 4.0), at(corner.x + 0.1, 0.2)) == (0, 0, -1, -1)
    assert (cells == 0).sum() == 8 * 4


def test_markers_are_closed_lines_that_replace_those_before(make: Messages) -> None:
    old, line = make.markers(grounded()).markers
    assert (old.action, line.action, line.type, stamped(line)) == (3, 0, 4, (STAMP_NS, "base"))
    points = [(p.x, p.y) for p in line.points]
    assert points == [(6.0, -1.0), (10.0, -1.0), (10.0, 1.0), (6.0, 1.0), (6.0, -1.0)]
    assert line.color.a == 1.0
    assert line.scale.x > 0


@pytest.mark.parametrize(
    ("state", "level"), [("running", 0), ("degraded", 1), ("starting", 1), ("blind", 2), ("error", 2), ("stale", 3)]
)
def test_diagnostics_say_how_it_is_going(make: Messages, state: Any, level: int) -> None:
    cause = Cause(Code.SLOW, "Inference is slow.")
    status = Status(state, (cause,), frames=7, dropped={"slot": 2}, fps=29.97, latency_ms={"total": {50: 8.44}}, source="cam")
    message = make.diagnostics(status, STAMP_NS)
    (one,) = message.status
    assert (one.level if isinstance(one.level, int) else one.level[0]) == level
    assert (one.name, one.message, one.hardware_id) == ("freespace", f"{state}: Inference is slow.", "cam")
    values = {v.key: v.value for v in one.values}
    assert values["frames"] == "7"
    assert values["dropped.slot"] == "2"
    assert values["fps"] == "30.0"
    assert values["latency_ms.total.p50"] == "8.4"
    assert "age_ms" not in values
    assert stamped(message)[0] == STAMP_NS


def test_everything_can_be_serialised_for_a_bag() -> None:
    make, given = Messages(STORE.types.__getitem__), grounded()
    messages = [*make.polygons(given), make.occupancy(given, 1.0), make.scan(given), make.markers(given), make.float(1.5)]
    messages += [make.mask(given), make.overlay_compressed(given), make.polygons_json(given), make.diagnostics(Status())]
    messages += [make.transform(given.metres.camera, "front_camera", STAMP_NS), make.markers(invalid(given))]
    for message in messages:
        kind = message.__msgtype__
        raw = STORE.serialize_cdr(message, kind)
        assert bytes(STORE.serialize_cdr(STORE.deserialize_cdr(raw, kind), kind)) == bytes(raw)


def test_the_transform_is_the_mount() -> None:
    make, camera = (
        Messages(STORE.types.__getitem__),
        Camera(Intrinsics(100, 100, 50, 50, 101, 101), Mount(1.5, 0.2, -0.1, 0.4, 2.0, 0.3)),
    )
    (one,) = make.transform(camera, "front_camera", STAMP_NS).transforms
    assert (one.header.frame_id, one.child_frame_id) == ("base_link", "front_camera")
    q = one.transform.rotation
    x, y, z, w = q.x, q.y, q.z, q.w
    assert x * x + y * y + z * z + w * w == pytest.approx(1.0)
    # The matrix of a unit quaternion, by its definition.
    turn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    assert np.allclose(turn, camera.mount.base_from_camera[:3, :3], atol=1e-12)
    t = one.transform.translation
    assert (t.x, t.y, t.z) == (2.0, 0.3, 1.5)


# -- From messages -----------------------------------------------------------------------------------------------------

HEIGHT, WIDTH = 12, 16
SCENE = cv2.GaussianBlur(np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), (5, 5), 0)
BAYER = {"rggb": ("r", "g", "g", "b"), "bggr": ("b", "g", "g", "r"), "gbrg": ("g", "b", "r", "g"), "grbg": ("g", "r", "b", "g")}


def yuyv(image: np.ndarray, order: str) -> np.ndarray:
    """``image`` BGR as ``(H, W, 2)``, by OpenCV's own conversion to planar YUV, colours of even rows and columns."""
    planar = cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420).ravel()
    area = HEIGHT * WIDTH
    u, v = (planar[area + k * area // 4 : area + (k + 1) * area // 4].reshape(HEIGHT // 2, WIDTH // 2) for k in (0, 1))
    packed = np.empty((HEIGHT, WIDTH, 2), np.uint8)
    luma, chroma = (0, 1) if order == "yuyv" else (1, 0)
    packed[..., luma] = planar[:area].reshape(HEIGHT, WIDTH)
    packed[:, 0::2, chroma], packed[:, 1::2, chroma] = np.repeat(u, 2, 0), np.repeat(v, 2, 0)
    return packed


def semiplanar(image: np.ndarray, order: str) -> np.ndarray:
    planar = cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420).ravel()
    area = HEIGHT * WIDTH
    u, v = planar[area : area + area // 4], planar[area + area // 4 :]
    pairs = np.stack([u, v] if order == "nv12" else [v, u], axis=1).ravel()
    return np.concatenate([planar[:area], pairs]).reshape(HEIGHT * 3 // 2, WIDTH)


def mosaic(image: np.ndarray, pattern: str) -> np.ndarray:
    """What a sensor with that pattern (its top-left two by two cells) measures of ``image``."""
    cells = np.empty(image.shape[:2], np.uint8)
    for n, colour in enumerate(BAYER[pattern]):
        cells[n // 2 :: 2, n % 2 :: 2] = image[n // 2 :: 2, n % 2 :: 2, "bgr".index(colour)]
    return cells


def encoded(encoding: str, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of memory, and what OpenCV makes of them."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    if encoding in ("bgr8", "8UC3"):
        return image, image
    if encoding in ("rgb8", "rgba8", "bgra8"):
        return cv2.cvtColor(image, getattr(cv2, f"COLOR_BGR2{encoding[:-1].upper()}")), image
    if encoding in ("mono8", "8UC1"):
        return grey, cv2.merge([grey] * 3)
    if encoding in ("mono16", "16UC1"):
        return grey.astype("<u2") * 257, cv2.merge([grey] * 3)
    if encoding in ("yuv422", "uyvy"):
        return (rows := yuyv(image, "uyvy")), cv2.cvtColor(rows, cv2.COLOR_YUV2BGR_UYVY)
    if encoding in ("yuv422_yuy2", "yuyv"):
        return (rows := yuyv(image, "yuyv")), cv2.cvtColor(rows, cv2.COLOR_YUV2BGR_YUYV)
    if encoding in ("nv12", "nv21"):
        return (rows := semiplanar(image, encoding)), cv2.cvtColor(rows, getattr(cv2, f"COLOR_YUV2BGR_{encoding.upper()}"))
    pattern = encoding[6:10]
    rows = mosaic(image, pattern)
    # OpenCV's older names are those of the second row's second and third cells.
    code = {
        "rggb": cv2.COLOR_BayerBG2BGR,
        "bggr": cv2.COLOR_BayerRG2BGR,
        "gbrg": cv2.COLOR_BayerGR2BGR,
        "grbg": cv2.COLOR_BayerGB2BGR,
    }
    return rows, cv2.cvtColor(rows, code[pattern])


def image_message(encoding: str, rows: np.ndarray, padding: int = 0, big: bool = False, **changes: Any) -> Any:
    raw = rows.reshape(len(rows), -1).view(np.uint8)
    padded = np.pad(raw, ((0, 0), (0, padding)), constant_values=77)
    fields: dict[str, Any] = {
        "height": HEIGHT,
        "width": WIDTH,
        "encoding": encoding,
        "is_bigendian": int(big),
        "step": padded.shape[1],
        "data": padded.ravel(),
    }
    return STORE.types["sensor_msgs/msg/Image"](header=Messages(STORE.types.__getitem__).header("", 0), **{**fields, **changes})


@pytest.mark.parametrize("padding", [0, 7])
@pytest.mark.parametrize("encoding", list(ENCODINGS))
def test_every_encoding_is_read_as_opencv_reads_it(encoding: str, padding: int) -> None:
    rows, expected = encoded(encoding, SCENE)
    image = image_from_message(image_message(encoding, rows, padding))
    assert (image.dtype, image.shape, image.flags.c_contiguous, image.flags.writeable) == (np.uint8, SCENE.shape, True, True)
    assert (image == expected).all()


@pytest.mark.parametrize("encoding", [e for e in ENCODINGS if e.startswith(("yuv", "uyvy", "yuyv", "nv", "bayer"))])
def test_the_colours_are_those_of_the_scene(encoding: str) -> None:
    # Independent of any name of a conversion: a plain colour survives all of them.
    plain = np.full((HEIGHT, WIDTH, 3), (40, 90, 200), np.uint8)
    image = image_from_message(image_message(encoding, encoded(encoding, plain)[0]))
    assert np.abs(image.astype(int) - plain).max() <= 3


def test_sixteen_bits_come_in_either_order_of_bytes() -> None:
    values = np.array([[0, 128, 129, 257 * 200, 65535, 65000]], np.uint16)
    expected = [0, 0, 1, 200, 255, 253]  # value / 257, rounded
    for big in (False, True):
        rows = values.astype(">u2" if big else "<u2")
        message = image_message("mono16", rows, big=big, height=1, width=6)
        assert image_from_message(message)[0, :, 1].tolist() == expected


def test_pictures_come_as_any_buffer_and_the_last_row_may_lack_its_padding() -> None:
    message = image_message("bgr8", SCENE, padding=5)
    message.data = array.array("B", message.data[:-5].tobytes())
    assert (image_from_message(message) == SCENE).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"step": 47}, "at least 48 bytes a row"),
        ({"height": 13}, "has 624 bytes, and 576 came"),
        ({"width": 0}, "there must be pixels"),
        ({"encoding": "yuv422", "width": 15, "step": 48}, "an even number of columns"),
        ({"encoding": "nv12", "height": 11}, "even numbers of rows and columns"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FreespaceError, match=words) as caught:
        image_from_message(image_message(**{"encoding": "bgr8", "rows": SCENE, **changes}))
    assert not isinstance(caught.value, BadInput)


def test_an_unknown_encoding_names_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"'32FC1' cannot be read.*bayer_rggb8"):
        image_from_message(image_message("32FC1", SCENE))


def compressed(form: str, data: np.ndarray) -> Any:
    header = Messages(STORE.types.__getitem__).header("", 0)
    return STORE.types["sensor_msgs/msg/CompressedImage"](header=header, format=form, data=data)


def test_compressed_pictures_are_decoded() -> None:
    png, jpeg = (cv2.imencode(suffix, SCENE)[1] for suffix in (".png", ".jpg"))
    assert (image_from_message(compressed("rgb8; png compressed bgr8", png.ravel())) == SCENE).all()
    assert (image_from_message(compressed("jpeg", jpeg.ravel())) == cv2.imdecode(jpeg, cv2.IMREAD_COLOR)).all()
    for broken in (jpeg.ravel()[:20], np.empty(0, np.uint8)):
        with pytest.raises(FreespaceError, match="cannot be decoded"):
            image_from_message(compressed("jpeg", broken))
    with pytest.raises(BadInput, match="depth"):
        image_from_message(compressed("16UC1; compressedDepth", png.ravel()))


def camera_info(**changes: Any) -> Any:
    roi = STORE.types["sensor_msgs/msg/RegionOfInterest"](
        **{"x_offset": 0, "y_offset": 0, "height": 0, "width": 0, "do_rectify": False, **changes.pop("roi", {})}
    )
    fields: dict[str, Any] = {
        "height": 480,
        "width": 640,
        "distortion_model": "plumb_bob",
        "d": np.array([-0.3, 0.1, 0.001, -0.002, 0.0]),
        "k": np.array([500.0, 0, 319.5, 0, 510.0, 239.5, 0, 0, 1]),
        "r": np.eye(3).ravel(),
        "p": np.zeros(12),
        "binning_x": 0,
        "binning_y": 0,
    }
    header = Messages(STORE.types.__getitem__).header("", 0)
    return STORE.types["sensor_msgs/msg/CameraInfo"](header=header, roi=roi, **{**fields, **changes})


def test_camera_info_is_the_camera() -> None:
    k = intrinsics_from_message(camera_info())
    assert (k.fx, k.fy, k.cx, k.cy, k.width, k.height) == (500.0, 510.0, 319.5, 239.5, 640, 480)
    point = np.array([[0.4, -0.2, 2.0]])
    expected, _ = cv2.projectPoints(point, np.zeros(3), np.zeros(3), k.matrix, camera_info().d)
    assert np.allclose(k.project(point), expected.reshape(-1, 2), atol=1e-9)
    fisheye = intrinsics_from_message(camera_info(distortion_model="fisheye", d=np.array([0.1, 0.0, 0.0, 0.01])))
    assert (fisheye.distortion_model, fisheye.distortion) == ("equidistant", (0.1, 0.0, 0.0, 0.01))
    many = intrinsics_from_message(
        camera_info(distortion_model="rational_polynomial", d=np.array([*range(1, 9), 0, 0, 0, 0, 0, 0.0]))
    )
    assert many.distortion == (1, 2, 3, 4, 5, 6, 7, 8)


def test_a_region_of_interest_and_binning_move_the_pixels() -> None:
    # The lower half, two by two pixels summed: the middle of full pixels 0 and 1 is the middle of the first binned one.
    k = intrinsics_from_message(camera_info(roi={"y_offset": 240, "height": 240, "width": 640}, binning_x=2, binning_y=2))
    assert (k.width, k.height, k.fx, k.fy) == (320, 120, 250.0, 255.0)
    assert k.cx == pytest.approx((319.5 - 0.5) / 2)
    assert k.cy == pytest.approx((239.5 - 240 - 0.5) / 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": np.zeros(9)}, "no calibration"),
        ({"distortion_model": "thin_prism"}, "thin_prism"),
        ({"d": np.ones(8)}, "plumb_bob has 5"),
        ({"width": 0}, "width must be positive"),
    ],
)
def test_a_camera_info_that_is_none_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        intrinsics_from_message(camera_info(**changes))
