"""What is written: whole files under their final names, or nothing that looks like one."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from conftest import (
    STEP_MS,
    VARIABLE_MS,
    Image,
    cli_environment,
    make_output,
    number_of,
    numbered_image,
    parts_in,
    road_image,
    road_video,
    stamps_of,
    write_image,
)
from test_birdseye import calibrated, grounded

from perception.birdseye import BirdsEye
from perception.config import OutputConfig
from perception.errors import BadInput
from perception.freespace import Freespace
from perception.overlay import draw
from perception.sinks import check_outputs
from perception.sinks.base import Output, Sink, part_of
from perception.sinks.contact_sheet import ContactSheetSink
from perception.sinks.jsonl import JsonlSink
from perception.sinks.masks import MaskSink
from perception.sinks.video import VideoSink, rewrite_plain


def feed(sink: Sink, outputs: list[Output]) -> Sink:
    for output in outputs:
        sink.write(output)
    sink.close()
    return sink


def noise_image(seed: int, width: int = 128, height: int = 96) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def clip(pictures: list[Image], stamps_ms: list[int] | None = None) -> list[Output]:
    stamps_ms = stamps_ms or [i * STEP_MS for i in range(len(pictures))]
    return [make_output(p, i, s) for i, (p, s) in enumerate(zip(pictures, stamps_ms, strict=True))]


def boxes(path: Path) -> list[str]:
    """Names of an MP4's top-level boxes in their order."""
    data, position, names = path.read_bytes(), 0, []
    while position < len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        names.append(data[position + 4 : position + 8].decode("latin-1"))
        position += size
    return names


# -- The overlay -------------------------------------------------------------------------------------------------------


def test_overlay_is_a_plain_mp4_that_browsers_play(tmp_path: Path) -> None:
    path = tmp_path / "overlay.mp4"
    sink = feed(VideoSink(path, 10), clip([road_image()] * 12))
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.frames) == (128, 64, 12)
    names = boxes(path)
    assert names.count("moov") == names.count("mdat") == 1
    assert names.index("moov") < names.index("mdat")
    assert "moof" not in names
    assert str(path) in sink.made
    assert parts_in(tmp_path) == []


def test_overlay_shows_what_was_drawn(tmp_path: Path) -> None:
    outputs = clip([cv2.resize(road_image(), (320, 160))] * 3)
    feed(VideoSink(tmp_path / "overlay.mp4", 10), outputs)
    with av.open(str(tmp_path / "overlay.mp4")) as file:
        shown = [f.to_ndarray(format="bgr24").astype(int) for f in file.decode(video=0)]
    for picture, output in zip(shown, outputs, strict=True):
        wanted = draw(output.frame.image, output.result).astype(int)
        assert np.abs(picture - wanted).mean() < 8
        assert np.abs(wanted - output.frame.image).mean() > 20, "the polygon must be visible in the first place"


@pytest.mark.parametrize("moving", [False, True], ids=["still", "moving"])
@pytest.mark.parametrize("stamps", [[i * 100 for i in range(12)], VARIABLE_MS], ids=["constant", "variable"])
def test_overlay_keeps_the_stamps(tmp_path: Path, stamps: list[int], moving: bool) -> None:
    """Whoever pairs the overlay with the polygons or with the source by time must find the same picture."""
    pictures = [noise_image(i) if moving else road_image() for i in range(12)]
    feed(VideoSink(tmp_path / "overlay.mp4", 10), clip(pictures, stamps))
    assert stamps_of(tmp_path / "overlay.mp4") == pytest.approx([s / 1000 for s in stamps])


def test_overlay_of_a_part_keeps_the_distances(tmp_path: Path) -> None:
    stamps = [5000 + s for s in VARIABLE_MS]
    feed(VideoSink(tmp_path / "overlay.mp4", 10), clip([noise_image(i) for i in range(12)], stamps))
    shown = stamps_of(tmp_path / "overlay.mp4")
    assert np.diff(shown) == pytest.approx(np.diff(stamps) / 1000)


def test_overlay_lasts_as_long_as_its_frames(tmp_path: Path) -> None:
    feed(VideoSink(tmp_path / "overlay.mp4", 10), clip([road_image()] * 20))
    with av.open(str(tmp_path / "overlay.mp4")) as file:
        assert file.duration / 1e6 == pytest.approx(2.0, abs=0.02)


def test_equal_stamps_do_not_break_the_overlay(tmp_path: Path) -> None:
    feed(VideoSink(tmp_path / "overlay.mp4", 10), clip([road_image()] * 4, [0, 100, 100, 200]))
    shown = stamps_of(tmp_path / "overlay.mp4")
    assert len(shown) == 4
    assert np.all(np.diff(shown) > 0)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (51, 33), (50, 33), (33, 120), (641, 2)])
def test_overlay_of_any_size(tmp_path: Path, width: int, height: int) -> None:
    feed(VideoSink(tmp_path / "overlay.mp4", 10), clip([noise_image(i, width, height) for i in range(3)]))
    with av.open(str(tmp_path / "overlay.mp4")) as file:
        frames = list(file.decode(video=0))
    assert len(frames) == 3
    assert {(f.width, f.height) for f in frames} == {(width + width % 2, height + height % 2)}


def test_frames_of_other_sizes_are_fitted_into_the_overlay(tmp_path: Path) -> None:
    """A portrait picture stands in the middle of a landscape one with black beside it, not stretched."""
    bright = [np.full((h, w, 3), 200, np.uint8) for w, h in ((128, 64), (32, 64), (1, 1), (2000, 1000))]
    feed(VideoSink(tmp_path / "overlay.mp4", 10), clip(bright))
    with av.open(str(tmp_path / "overlay.mp4")) as file:
        shown = [f.to_ndarray(format="bgr24") for f in file.decode(video=0)]
    assert [s.shape for s in shown] == [(64, 128, 3)] * 4
    assert shown[1][:, :40].max() < 40
    assert shown[1][:, 88:].max() < 40
    assert shown[1][8:56, 56:72].min() > 60
    assert shown[3][8:56, 8:120].min() > 60


def test_overlay_survives_a_crash_up_to_the_last_seconds(tmp_path: Path) -> None:
    """While it is written the file already plays: of six seconds at most two are missing."""
    sink = VideoSink(tmp_path / "overlay.mp4", 25)
    for output in clip([road_image()] * 150, [i * 40 for i in range(150)]):
        sink.write(output)
    (part,) = tmp_path.iterdir()
    copy = tmp_path / "crashed.mp4"
    copy.write_bytes(part.read_bytes())
    sink.close()
    assert copy.stat().st_size > 0
    assert len(stamps_of(copy)) >= 100


@pytest.mark.parametrize("name", ["overlay.mp4", "sheet.png"])
def test_pictures_show_the_ground_from_above(tmp_path: Path, name: str) -> None:
    """Of a calibrated camera, in the top-right corner; without one the corner is the frame's."""
    metres = calibrated()
    made, shown = grounded(metres), []
    for n, output in enumerate((made, replace(made, metres=None))):
        path = tmp_path / f"{n}-{name}"
        feed(VideoSink(path, 10) if name.endswith("mp4") else ContactSheetSink(path), [output])
        if name.endswith("mp4"):
            with av.open(str(path)) as file:
                shown.append(next(file.decode(video=0)).to_ndarray(format="bgr24"))
        else:
            shown.append(cv2.imread(str(path))[:360, :640])
    view = BirdsEye(metres, (640, 360), (192, 198)).draw(made.frame.image, made.result)
    height, width = view.shape[:2]
    corner = [picture[6 : 6 + height, 640 - 6 - width : 640 - 6].astype(int) for picture in shown]
    assert np.abs(corner[0] - view).mean() < 8
    assert np.abs(corner[1] - view).mean() > 40
    assert np.abs(corner[1] - made.frame.image[:height, :width]).mean() < 4


@pytest.mark.parametrize("name", ["overlay.avi", "overlay", "overlay.png"])
def test_overlay_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match=r"end its name with \.mp4"):
        VideoSink(tmp_path / name, 10)


def test_overlay_may_be_called_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative and with colons, as people write times into names."""
    monkeypatch.chdir(tmp_path)
    feed(VideoSink(Path("drive 12:30.mp4"), 10), clip([road_image()] * 2))
    assert len(stamps_of(tmp_path / "drive 12:30.mp4")) == 2


# -- Polygons ----------------------------------------------------------------------------------------------------------


def test_lines_can_be_read_back(tmp_path: Path) -> None:
    outputs = clip([road_image()] * 3)
    feed(JsonlSink(tmp_path / "polygons.jsonl"), outputs)
    lines = (tmp_path / "polygons.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    for line, output in zip(lines, outputs, strict=True):
        back, result = Freespace.from_json(line), output.result
        assert json.loads(line)["schema"] == "freespace/1"
        assert (back.seq, back.stamp_ns, back.size, back.valid) == (result.seq, result.stamp_ns, (128, 64), True)
        assert np.array_equal(back.polygons[0].exterior, result.polygons[0].exterior)
        assert back.polygons[0].ego is True
        assert back.to_json() == line
    assert parts_in(tmp_path) == []


def test_line_of_another_schema_is_refused() -> None:
    line = make_output(road_image()).result.to_json()
    with pytest.raises(ValueError, match="freespace/2"):
        Freespace.from_json(line.replace("freespace/1", "freespace/2"))
    with pytest.raises(ValueError, match="seq"):
        Freespace.from_json(line.replace('"seq"', '"number"'))


def test_nothing_written_leaves_no_file(tmp_path: Path) -> None:
    for sink in (JsonlSink(tmp_path / "p.jsonl"), VideoSink(tmp_path / "o.mp4", 10), ContactSheetSink(tmp_path / "c.png")):
        sink.close()
        assert sink.made == ""
    assert list(tmp_path.iterdir()) == []


def test_lines_are_on_disk_as_soon_as_they_are_reported(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "polygons.jsonl")
    sink.write(make_output(road_image()))
    (part,) = tmp_path.iterdir()
    assert part.name != "polygons.jsonl"
    assert part.read_text(encoding="utf-8").endswith("}\n")
    sink.close()


def test_source_name_in_any_encoding_can_be_written(tmp_path: Path) -> None:
    """File names on Linux are bytes; Python shows those that are no UTF-8 as lone surrogates."""
    output = make_output(road_image())
    object.__setattr__(output.result, "source", os.fsdecode(b"stra\xdfe.mp4"))
    feed(JsonlSink(tmp_path / "polygons.jsonl"), [output])
    (line,) = (tmp_path / "polygons.jsonl").read_text(encoding="utf-8").splitlines()
    assert Freespace.from_json(line).seq == 0


# -- Masks -------------------------------------------------------------------------------------------------------------


def half_scores(height: int = 32, width: int = 64) -> Image:
    scores = np.zeros((height, width), np.uint8)
    scores[height // 2 :] = 255
    return scores


def test_masks_are_black_and_white_in_the_size_of_the_source(tmp_path: Path) -> None:
    sizes = [(128, 64), (256, 128), (33, 70)]
    outputs = [make_output(road_image(*size), i, scores=half_scores()) for i, size in enumerate(sizes)]
    sink = feed(MaskSink(tmp_path, False), outputs)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000.png", "000001.png", "000002.png"]
    for output in outputs:
        width, height = output.frame.size
        mask = cv2.imread(str(tmp_path / f"{output.frame.name}.png"), cv2.IMREAD_UNCHANGED)
        assert (mask.shape, mask.dtype) == ((height, width), np.uint8)
        expected = np.zeros((height, width), np.uint8)
        expected[height // 2 :] = 255
        assert np.array_equal(mask, expected)
    assert sink.made == f"3 masks in {tmp_path}"


def test_mask_of_no_road_is_black(tmp_path: Path) -> None:
    feed(MaskSink(tmp_path, False), [make_output(road_image(), scores=np.zeros((32, 64), np.uint8))])
    mask = cv2.imread(str(tmp_path / "000000.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (64, 128)
    assert not mask.any()


def test_existing_mask_is_replaced_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "000000.png").write_bytes(b"precious")
    with pytest.raises(BadInput, match=r"000000\.png: exists already"):
        MaskSink(tmp_path, False).write(make_output(road_image()))
    assert (tmp_path / "000000.png").read_bytes() == b"precious"
    feed(MaskSink(tmp_path, True), [make_output(road_image())])
    assert cv2.imread(str(tmp_path / "000000.png"), cv2.IMREAD_UNCHANGED).all()


def test_masks_do_not_replace_one_another(tmp_path: Path) -> None:
    """The name under which one is being written may be the final name of another."""
    outputs = [make_output(road_image(), i, name=name) for i, name in enumerate(["a.part", "a"])]
    feed(MaskSink(tmp_path, False), outputs)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.part.png", "a.png"]


# -- The contact sheet -------------------------------------------------------------------------------------------------


def sheet_numbers(path: Path) -> list[int]:
    """Which of the numbered images stand on the sheet, tile by tile; -1 is an empty tile."""
    sheet = cv2.imread(str(path))
    assert sheet.shape[1] == 3 * 640
    tiles = [t for row in np.split(sheet, sheet.shape[0] // 320) for t in np.split(row, 3, axis=1)]
    return [number_of(t) if t.any() else -1 for t in tiles]


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [0, -1, -1]), (5, [0, 1, 2, 3, 4, -1]), (12, list(range(12)))], ids=["one", "few", "a dozen"]
)
def test_contact_sheet_of_few_frames_shows_all(tmp_path: Path, count: int, expected: list[int]) -> None:
    outputs = [make_output(numbered_image(i), i) for i in range(count)]
    for output in outputs:
        output.result.polygons.clear()
    feed(ContactSheetSink(tmp_path / "sheet.png"), outputs)
    assert sheet_numbers(tmp_path / "sheet.png") == expected
    assert parts_in(tmp_path) == []


@pytest.mark.parametrize("count", [13, 24, 25, 100, 1000])
def test_contact_sheet_of_many_frames_is_spread_over_the_run(tmp_path: Path, count: int) -> None:
    outputs = [make_output(numbered_image(i * 24 // count), i) for i in range(count)]
    for output in outputs:
        output.result.polygons.clear()
    feed(ContactSheetSink(tmp_path / "sheet.png"), outputs)
    numbers = sheet_numbers(tmp_path / "sheet.png")
    assert len(numbers) == 12
    assert numbers[0] == 0
    assert numbers[-1] >= 21
    assert all(0 < gap <= 4 for gap in np.diff(numbers))


def test_contact_sheet_takes_frames_of_any_size(tmp_path: Path) -> None:
    sizes = [(64, 32), (1, 1), (1, 500), (500, 1), (720, 1280)]
    feed(ContactSheetSink(tmp_path / "sheet.png"), [make_output(numbered_image(5, *s), i) for i, s in enumerate(sizes)])
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (2 * 320, 3 * 640, 3)


def test_contact_sheet_is_what_its_name_says(tmp_path: Path) -> None:
    """A page called .jpg holds a JPEG, or the name is refused as that of an overlay would be."""
    path = tmp_path / "sheet.jpg"
    try:
        feed(ContactSheetSink(path), [make_output(road_image())])
    except BadInput:
        return
    assert path.read_bytes()[:2] == b"\xff\xd8"


# -- What is refused before any work -----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["video", "polygons", "contact_sheet"])
def test_existing_output_is_refused_and_left_alone(tmp_path: Path, key: str) -> None:
    target = tmp_path / "result.mp4"
    target.write_bytes(b"precious")
    with pytest.raises(BadInput, match=r"result\.mp4: exists already; give --overwrite"):
        check_outputs(OutputConfig(**{key: str(target)}), "source.mp4")
    assert target.read_bytes() == b"precious"
    check_outputs(OutputConfig(**{key: str(target)}, overwrite=True), "source.mp4")


@pytest.mark.parametrize("key", ["video", "polygons", "contact_sheet"])
def test_output_that_is_a_folder_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(BadInput, match="is a folder"):
        check_outputs(OutputConfig(**{key: str(tmp_path)}, overwrite=True), "source.mp4")


def test_mask_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "masks").touch()
    with pytest.raises(BadInput, match="is a file; --masks wants a folder"):
        check_outputs(OutputConfig(masks=str(tmp_path / "masks")), "source.mp4")


def test_folders_for_outputs_are_made(tmp_path: Path) -> None:
    check_outputs(OutputConfig(video=str(tmp_path / "a/b/o.mp4"), masks=str(tmp_path / "c/d")), "source.mp4")
    assert (tmp_path / "a/b").is_dir()
    assert (tmp_path / "c/d").is_dir()


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot make this folder"):
        check_outputs(OutputConfig(video=str(tmp_path / "file/o.mp4")), "source.mp4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("key", ["video", "masks"])
def test_folder_that_cannot_be_written_is_refused(tmp_path: Path, key: str) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    with pytest.raises(BadInput, match="cannot be written"):
        check_outputs(OutputConfig(**{key: str(folder / "o.mp4") if key == "video" else str(folder)}), "source.mp4")


@pytest.mark.parametrize("alias", ["same", "dotted", "symlink", "hardlink"])
def test_source_is_never_replaced(tmp_path: Path, alias: str) -> None:
    source = tmp_path / "clip.mp4"
    source.write_bytes(b"precious")
    target = {"same": source, "dotted": tmp_path / ".." / tmp_path.name / "clip.mp4"}.get(alias, tmp_path / "alias.mp4")
    if alias == "symlink":
        target.symlink_to(source)
    if alias == "hardlink":
        os.link(source, target)
    with pytest.raises(BadInput, match="is the source itself"):
        check_outputs(OutputConfig(video=str(target), overwrite=True), str(source))


def test_masks_never_replace_the_source_image(tmp_path: Path) -> None:
    """The mask of ``road.png`` is called ``road.png``, too."""
    path = write_image(tmp_path / "road.png", road_image())
    with pytest.raises(BadInput):
        check_outputs(OutputConfig(masks=str(tmp_path), overwrite=True), str(path))


def test_contact_sheet_never_replaces_an_image_of_the_source_folder(tmp_path: Path) -> None:
    path = write_image(tmp_path / "road.png", road_image())
    with pytest.raises(BadInput):
        check_outputs(OutputConfig(contact_sheet=str(path), overwrite=True), str(tmp_path))


def test_unfinished_output_never_replaces_the_source(tmp_path: Path) -> None:
    """A failed run leaves ``.overlay.part.mp4``; who looks at it with a second run must not lose it."""
    source = part_of(tmp_path / "overlay.mp4")
    source.write_bytes(b"precious")
    with pytest.raises(BadInput):
        check_outputs(OutputConfig(video=str(tmp_path / "overlay.mp4")), str(source))


def test_two_outputs_cannot_share_a_file(tmp_path: Path) -> None:
    target = str(tmp_path / "result.mp4")
    with pytest.raises(BadInput):
        check_outputs(OutputConfig(video=target, polygons=target), "source.mp4")


# -- The disk is full --------------------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from perception.cli import main
sys.argv = ["freespace", *sys.argv[2:]]
main()
"""


def run_limited(folder: Path, largest_file: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line where no file can grow beyond ``largest_file`` bytes, as on a disk with no more room."""
    command = [sys.executable, "-c", LIMITED, str(largest_file), *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=cli_environment(folder), capture_output=True, text=True, timeout=60, check=False
    )


def assert_failed_with_one_sentence(done: subprocess.CompletedProcess[str], name: str) -> None:
    sentences = [line for line in done.stderr.splitlines() if line.startswith("freespace: ")]
    assert done.returncode == 1, done.stderr
    assert len(sentences) == 1, done.stderr
    assert name in sentences[0]
    assert "cannot be written" in sentences[0]
    assert "Traceback" not in done.stderr


def test_full_disk_leaves_whole_lines_only(tmp_path: Path, tiny_model: Path) -> None:
    road_video(tmp_path / "clip.mp4", 40)
    done = run_limited(tmp_path, 4000, "run", "clip.mp4", "--polygons", "polygons.jsonl", "--model", tiny_model)
    assert_failed_with_one_sentence(done, "polygons.jsonl")
    assert not (tmp_path / "polygons.jsonl").exists()
    data = (tmp_path / ".polygons.part.jsonl").read_text(encoding="utf-8")
    assert data.endswith("\n")
    assert [Freespace.from_json(line).seq for line in data.splitlines()] == list(range(data.count("\n")))
    assert 0 < data.count("\n") < 40
    assert "kept what could be written of the polygons: .polygons.part.jsonl" in done.stderr


def test_full_disk_leaves_no_half_overlay_and_keeps_the_polygons(tmp_path: Path, tiny_model: Path) -> None:
    """Grey noise holds no road, so the lines stay short while the video grows."""
    (tmp_path / "images").mkdir()
    for number in range(40):
        write_image(tmp_path / f"images/{number}.png", noise_image(number, 256, 192)[..., 0])
    outputs = ["--out", "overlay.mp4", "--polygons", "polygons.jsonl"]
    done = run_limited(tmp_path, 200_000, "run", "images", *outputs, "--model", tiny_model)
    assert_failed_with_one_sentence(done, "overlay.mp4")
    assert not (tmp_path / "overlay.mp4").exists()
    for line in (tmp_path / "polygons.jsonl").read_text(encoding="utf-8").splitlines():
        Freespace.from_json(line)


@contextmanager
def room_for(largest_file: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("count", [40, 320], ids=["found when closing", "found while writing"])
def test_overlay_that_does_not_fit_is_an_error_and_gets_no_final_name(tmp_path: Path, count: int) -> None:
    """The encoder hands the file its data late, and a short clip's all at the end."""
    sink = VideoSink(tmp_path / "overlay.mp4", 10)
    outputs = clip([noise_image(i % 8, 64, 48) for i in range(count)])

    def write_and_close() -> None:
        try:
            for output in outputs:
                sink.write(output)
        finally:
            sink.close()

    with room_for(20_000), pytest.raises(OSError, match="File too large"):
        write_and_close()
    assert not (tmp_path / "overlay.mp4").exists()


def test_full_disk_while_the_index_is_moved_loses_no_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step copies the file; where there is no room for a copy the overlay stays as it was: whole."""

    def rewrite_without_room(path: Path) -> None:
        with room_for(path.stat().st_size // 2):
            rewrite_plain(path)

    monkeypatch.setattr("perception.sinks.video.rewrite_plain", rewrite_without_room)
    feed(VideoSink(tmp_path / "overlay.mp4", 10), clip([noise_image(i) for i in range(30)]))
    assert len(stamps_of(tmp_path / "overlay.mp4")) == 30
    assert parts_in(tmp_path) == []


@pytest.mark.parametrize(("option", "name"), [("--masks", "masks"), ("--contact-sheet", "sheet.png")])
def test_full_disk_leaves_no_half_picture(tmp_path: Path, tiny_model: Path, option: str, name: str) -> None:
    write_image(tmp_path / "road.png", road_image())
    done = run_limited(tmp_path, 60, "run", "road.png", option, name, "--model", tiny_model)
    assert_failed_with_one_sentence(done, name)
    assert [p.name for p in tmp_path.rglob("*.png")] == ["road.png"]
