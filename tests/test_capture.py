"""Videos, images and folders as sources of frames."""

from __future__ import annotations

import os
import struct
import wave
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from conftest import (
    BLUE,
    FASTSTART,
    FRAGMENTED,
    GREEN,
    RED,
    STEP_MS,
    VARIABLE_MS,
    cut,
    number_of,
    numbered_image,
    numbered_video,
    write_image,
    write_video,
)

from perception.capture import Selection, Source, open_source
from perception.errors import BadInput, FreespaceError
from perception.frame import Frame


def read(path: Path | str, selection: Selection | None = None, image_fps: float = 10.0) -> tuple[list[Frame], Source]:
    with open_source(str(path), selection, image_fps) as source:
        return list(source.frames()), source


def stamps_ms(frames: list[Frame]) -> list[float]:
    return [f.stamp_ns / 1e6 for f in frames]


def seqs(frames: list[Frame]) -> list[int]:
    return [f.seq for f in frames]


# -- Videos ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "container", "encoder"),
    [
        ("clip.mp4", {}, {}),
        ("clip.mkv", {}, {}),
        ("clip.ts", {}, {}),
        ("fragments.mp4", FRAGMENTED, {}),
        ("reordered.mp4", {}, {"preset": "medium", "bf": "2"}),
        ("reordered.mkv", {}, {"preset": "medium", "bf": "2"}),
        ("reordered.ts", {}, {"preset": "medium", "bf": "2"}),
    ],
)
def test_every_frame_comes_in_order_with_its_own_stamp(
    tmp_path: Path, name: str, container: dict[str, str], encoder: dict[str, str]
) -> None:
    frames, source = read(numbered_video(tmp_path / name, 20, container=container, encoder=encoder))
    assert [number_of(f.image) for f in frames] == seqs(frames) == list(range(20))
    assert stamps_ms(frames) == [i * STEP_MS for i in range(20)]
    assert {(f.clock, f.source, f.size) for f in frames} == {("media", str(tmp_path / name), (64, 32))}
    assert source.fps == pytest.approx(10)
    assert (source.dropped, source.problems) == (0, [])


def test_variable_frame_rate_keeps_the_stamps(tmp_path: Path) -> None:
    frames, source = read(numbered_video(tmp_path / "variable.mp4", len(VARIABLE_MS), VARIABLE_MS))
    assert stamps_ms(frames) == VARIABLE_MS
    assert seqs(frames) == list(range(len(VARIABLE_MS)))
    assert (source.dropped, source.problems) == (0, [])


def test_stamps_count_from_the_beginning_of_the_file(tmp_path: Path) -> None:
    """MPEG-TS clocks start anywhere; media time starts at 0."""
    frames, _ = read(numbered_video(tmp_path / "late.ts", 4, [7000, 7100, 7200, 7300]))
    assert stamps_ms(frames) == [0, 100, 200, 300]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), list(range(20))),
        (Selection(every=3), [0, 3, 6, 9, 12, 15, 18]),
        (Selection(every=100), [0]),
        (Selection(duration_s=0.5), [0, 1, 2, 3, 4]),
        (Selection(start_s=0.7), list(range(7, 20))),
        (Selection(start_s=0.65), list(range(7, 20))),
        (Selection(start_s=0.7, duration_s=0.5), [7, 8, 9, 10, 11]),
        (Selection(start_s=0.7, duration_s=0.5, every=2), [7, 9, 11]),
        (Selection(start_s=1.0), list(range(10, 20))),
        (Selection(start_s=1.9), [19]),
    ],
)
def test_selection_of_a_video(tmp_path: Path, selection: Selection, expected: list[int]) -> None:
    """The numbers are those of the whole recording, whether its beginning was decoded or skipped by seeking."""
    frames, source = read(numbered_video(tmp_path / "clip.mp4", 20), selection)
    assert seqs(frames) == expected
    assert [number_of(f.image) for f in frames] == expected
    assert stamps_ms(frames) == [i * STEP_MS for i in expected]
    assert [f.name for f in frames] == [f"{i:06d}" for i in expected]
    assert source.fps == pytest.approx(10 / selection.every)
    assert source.total == pytest.approx(len(expected), abs=1)  # an estimate, for the progress bar
    assert (source.dropped, source.problems) == (0, [])


def test_seeking_in_a_variable_frame_rate_invents_no_loss(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "variable.mp4", len(VARIABLE_MS), VARIABLE_MS)
    frames, source = read(path, Selection(start_s=2.5))
    assert stamps_ms(frames) == [3000, 3050, 3100, 3150, 3200]
    assert [number_of(f.image) for f in frames] == [7, 8, 9, 10, 11]
    assert np.all(np.diff(seqs(frames)) == 1)
    assert (source.dropped, source.problems) == (0, [])


@pytest.mark.parametrize("start_s", [2.0, 50.0])
def test_video_that_starts_after_its_end(tmp_path: Path, start_s: float) -> None:
    with pytest.raises(BadInput, match=r"starts after its end: it is 2\.00 s long"):
        read(numbered_video(tmp_path / "clip.mp4", 20), Selection(start_s=start_s))


def test_start_behind_the_last_frame_is_the_users_mistake(tmp_path: Path) -> None:
    """The last frame is stamped 1.9 s: nothing is broken, there is just nothing from 1.95 s on."""
    with pytest.raises(BadInput, match="after its end"):
        read(numbered_video(tmp_path / "clip.mp4", 20), Selection(start_s=1.95))


def test_the_shortest_stretch_of_a_video_holds_one_frame(tmp_path: Path) -> None:
    frames, _ = read(numbered_video(tmp_path / "clip.mp4", 20), Selection(start_s=0.05, duration_s=0.01))
    assert seqs(frames) == [1]


def test_video_colours_are_bgr(tmp_path: Path) -> None:
    picture = np.full((32, 64, 3), BLUE, np.uint8)
    (frame, *_), _ = read(write_video(tmp_path / "blue.mp4", [picture] * 2))
    assert frame.image.dtype == np.uint8
    assert frame.image.flags.c_contiguous
    assert np.abs(frame.image.reshape(-1, 3).mean(axis=0) - BLUE).max() < 12


def rotate_clockwise(path: Path) -> None:
    """Write a quarter turn into the track header, as a phone held upright does.

    The matrix ``a b u c d v x y w`` shows the point (x, y) of the stored picture at (a x + c y, b x + d y), up to a shift.
    """
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd")
    matrix = header + 4 + 40  # after the name: version 0 fields of 40 bytes
    one = 1 << 16
    assert struct.unpack(">9i", data[matrix : matrix + 36]) == (one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    data[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 32 << 16, 0, 1 << 30)
    path.write_bytes(data)


def test_rotated_video_comes_upright(tmp_path: Path) -> None:
    """Turned clockwise, what is stored on the left is shown at the top."""
    picture = np.full((32, 64, 3), GREEN, np.uint8)
    picture[:, :32] = BLUE
    path = write_video(tmp_path / "phone.mp4", [picture] * 2)
    rotate_clockwise(path)
    (frame, *_), _ = read(path)
    assert frame.size == (32, 64)
    assert np.abs(frame.image[4:28].reshape(-1, 3).mean(axis=0) - BLUE).max() < 20
    assert np.abs(frame.image[36:60].reshape(-1, 3).mean(axis=0) - GREEN).max() < 20


def test_truncated_mp4_without_its_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cut\.mp4: cannot be opened as a video"):
        read(cut(numbered_video(tmp_path / "cut.mp4"), 0.6))


@pytest.mark.parametrize(
    ("name", "options"),
    [("front.mp4", FASTSTART), ("fragments.mp4", FRAGMENTED), ("cut.mkv", {})],
    ids=["faststart", "fragmented", "matroska"],
)
def test_truncated_video_yields_what_is_there_and_says_so(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    """All three know that they are cut: by the index, by the unfinished fragment, by the length in the header."""
    path = cut(numbered_video(tmp_path / name, 20, container=options), 0.7)
    frames, source = read(path)
    assert 3 <= len(frames) < 20
    assert [number_of(f.image) for f in frames] == list(range(len(frames)))
    assert len(source.problems) == 1
    assert str(path) in source.problems[0]


def test_truncated_mp4_counts_the_missing_frames(tmp_path: Path) -> None:
    frames, source = read(cut(numbered_video(tmp_path / "front.mp4", 20, container=FASTSTART), 0.7))
    assert source.dropped == 20 - len(frames)


def test_truncated_transport_stream_yields_what_is_there(tmp_path: Path) -> None:
    """A transport stream promises no length, so there is nothing to report."""
    frames, _ = read(cut(numbered_video(tmp_path / "cut.ts", 20), 0.6))
    assert 3 <= len(frames) < 20
    assert [number_of(f.image) for f in frames][:-1] == list(range(len(frames) - 1))


def corrupt_packet(path: Path, index: int) -> None:
    """Overwrite one picture's bytes so that no decoder can make sense of them."""
    import av

    with av.open(str(path)) as file:
        packet = [p for p in file.demux(video=0) if p.size][index]
        position, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[position : position + size] = b"\xff" * size
    path.write_bytes(data)


def test_corrupted_packet_is_counted_and_not_fatal(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "bad.mp4", 20)
    corrupt_packet(path, 7)
    frames, source = read(path)
    assert source.dropped == 1
    assert stamps_ms(frames) == [i * STEP_MS for i in range(20) if i != 7]
    assert len(source.problems) == 1
    assert "bad.mp4: frame 7 could not be decoded" in source.problems[0]


def test_lost_frame_leaves_a_gap_in_the_numbers(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "bad.mp4", 20)
    corrupt_packet(path, 7)
    frames, _ = read(path)
    assert seqs(frames) == [i for i in range(20) if i != 7]


def test_video_without_one_good_frame_fails(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "bad.mp4", 3)
    for index in range(3):
        corrupt_packet(path, index)
    with pytest.raises(FreespaceError, match="no frame could be decoded"):
        read(path)


@pytest.mark.parametrize("name", ["text.mp4", "notes.txt", "notes", "README.md"])
def test_text_is_no_video(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("This is not a video.\n" * 50)
    with pytest.raises(BadInput, match=f"{name}: cannot be opened as a video"):
        read(path)


def test_empty_file_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "empty.mp4"
    path.touch()
    with pytest.raises(BadInput, match=r"empty\.mp4: "):
        read(path)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))
    with pytest.raises(BadInput, match="has no video stream"):
        read(path)


@pytest.mark.parametrize("name", ["Straße 1 (2).mp4", "2024-01-01T12:30:00.mp4", "100%d.mp4", "-dash.mp4"])
def test_any_file_name_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Relative, as it is typed: no part of a name may be taken for a protocol or a pattern."""
    numbered_video(tmp_path / name, 2)
    monkeypatch.chdir(tmp_path)
    frames, _ = read(name)
    assert len(frames) == 2


def test_source_can_be_closed_twice_and_half_read(tmp_path: Path) -> None:
    source = open_source(str(numbered_video(tmp_path / "clip.mp4", 5)))
    assert next(source.frames()).seq == 0
    source.close()
    source.close()


# -- Images ------------------------------------------------------------------------------------------------------------


def test_single_image(tmp_path: Path) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (30, 50, 3), np.uint8)
    path = write_image(tmp_path / "one.png", picture)
    frames, source = read(path)
    assert len(frames) == source.total == 1
    assert np.array_equal(frames[0].image, picture)
    assert (frames[0].seq, frames[0].stamp_ns, frames[0].name, frames[0].source) == (0, 0, "one", str(path))


def test_folder_in_natural_order(tmp_path: Path) -> None:
    names = ["1.png", "2.png", "10.png", "a2.png", "a10.png", "b.png"]
    for number in (3, 0, 5, 1, 4, 2):
        write_image(tmp_path / names[number], numbered_image(number))
    frames, source = read(tmp_path, image_fps=4.0)
    assert [f.name for f in frames] == ["1", "2", "10", "a2", "a10", "b"]
    assert [number_of(f.image) for f in frames] == seqs(frames) == list(range(6))
    assert stamps_ms(frames) == [i * 250 for i in range(6)]
    assert (source.fps, source.total) == (4.0, 6)


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(every=2), [0, 2, 4, 6, 8]),
        (Selection(start_s=0.3), [3, 4, 5, 6, 7, 8, 9]),
        (Selection(start_s=0.3, duration_s=0.4, every=3), [3, 6]),
        (Selection(duration_s=0.01), [0]),
        (Selection(start_s=0.12, duration_s=0.2), [2, 3]),
        (Selection(start_s=0.04), [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_selection_of_a_folder(tmp_path: Path, selection: Selection, expected: list[int]) -> None:
    """Exactly the images whose stamp lies in [start, start + duration), as with a video."""
    for number in range(10):
        write_image(tmp_path / f"{number}.png", numbered_image(number))
    frames, source = read(tmp_path, selection)
    assert seqs(frames) == [number_of(f.image) for f in frames] == expected
    assert stamps_ms(frames) == [i * 100 for i in expected]
    assert source.total == len(expected)


def test_folder_that_starts_after_its_end(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png", numbered_image(1))
    with pytest.raises(BadInput, match=r"starts after its end: 1 images at 10 per second, not 1 s"):
        read(tmp_path, Selection(start_s=1.0))


def test_grey_images_become_bgr(tmp_path: Path) -> None:
    grey = np.random.default_rng(2).integers(0, 256, (20, 30), np.uint8)
    (frame,), _ = read(write_image(tmp_path / "grey.png", grey))
    assert np.array_equal(frame.image, np.dstack([grey] * 3))


def test_transparency_is_dropped(tmp_path: Path) -> None:
    picture = np.zeros((8, 8, 4), np.uint8)
    picture[..., :3], picture[:4, :, 3] = GREEN, 255
    (frame,), _ = read(write_image(tmp_path / "alpha.png", picture))
    assert frame.image.shape == (8, 8, 3)
    assert np.all(frame.image == GREEN)


@pytest.mark.parametrize("name", ["deep.png", "deep.tiff"])
def test_sixteen_bits_become_eight(tmp_path: Path, name: str) -> None:
    deep = np.full((8, 8, 3), np.array(GREEN, np.uint16) * 257, np.uint16)
    (frame,), _ = read(write_image(tmp_path / name, deep))
    assert frame.image.dtype == np.uint8
    assert np.abs(frame.image.astype(int) - GREEN).max() <= 1


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".PNG", ".JpG"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    picture = np.full((16, 24, 3), RED, np.uint8)
    (frame,), _ = read(write_image(tmp_path / f"road{suffix}", picture).parent)
    assert (frame.size, frame.name) == ((24, 16), "road")
    assert np.abs(frame.image.astype(int) - RED).max() <= 8


@pytest.mark.parametrize("size", [(1, 1), (9, 31), (1, 40), (333, 1)])
def test_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    write_image(tmp_path / "x.png", numbered_image(3, *size))
    (frame,), _ = read(tmp_path / "x.png")
    assert frame.size == size


def test_sizes_may_vary_within_a_folder(tmp_path: Path) -> None:
    sizes = [(64, 32), (1, 1), (20, 50)]
    for number, size in enumerate(sizes):
        write_image(tmp_path / f"{number}.png", numbered_image(number, *size))
    assert [f.size for f in read(tmp_path)[0]] == sizes


def test_camera_orientation_is_applied(tmp_path: Path) -> None:
    """EXIF orientation 6: the stored picture is shown turned clockwise, its left side at the top."""
    picture = np.full((32, 64, 3), GREEN, np.uint8)
    picture[:, :32] = BLUE
    path = write_image(tmp_path / "phone.jpg", picture)
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0" + b"MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)
    jpeg = path.read_bytes()
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
    (frame,), _ = read(path)
    assert frame.size == (32, 64)
    assert np.abs(frame.image[4:28].reshape(-1, 3).mean(axis=0) - BLUE).max() < 20


def test_broken_images_are_skipped_counted_and_named(tmp_path: Path) -> None:
    for number in (0, 2, 4):
        write_image(tmp_path / f"{number}.png", numbered_image(number))
    (tmp_path / "1.png").touch()
    (tmp_path / "3.jpg").write_bytes(b"no picture at all")
    frames, source = read(tmp_path)
    assert seqs(frames) == [number_of(f.image) for f in frames] == [0, 2, 4]
    assert stamps_ms(frames) == [0, 200, 400]
    assert source.dropped == 2
    assert len(source.problems) == 2
    assert "1.png: is empty (0 bytes)" in source.problems[0]
    assert "3.jpg: cannot be decoded" in source.problems[1]


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_truncated_image_is_not_half_delivered(tmp_path: Path, suffix: str) -> None:
    """A picture whose lower half is missing would show black road: it is broken."""
    noise = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)
    cut(write_image(tmp_path / f"cut{suffix}", noise), 0.5)
    write_image(tmp_path / "whole.png", noise)
    frames, source = read(tmp_path)
    assert [f.name for f in frames] == ["whole"]
    assert source.dropped == 1


@pytest.mark.parametrize("data", [b"", b"no picture at all"])
def test_broken_single_image_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"broken\.png: (is empty|cannot be decoded)"):
        read(path)


def test_equal_stems_keep_their_suffix(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.png"):
        write_image(tmp_path / name, numbered_image(1))
    assert sorted(f.name for f in read(tmp_path)[0]) == ["a.jpg", "a.png", "b"]


def test_names_are_unique_whatever_the_files_are_called(tmp_path: Path) -> None:
    """Files made from the frames are called by their names; none may replace another."""
    for name in ("a.png", "a.jpg", "a.png.png"):
        write_image(tmp_path / name, numbered_image(1))
    assert len({f.name for f in read(tmp_path)[0]}) == 3


def test_only_visible_images_are_taken(tmp_path: Path) -> None:
    write_image(tmp_path / "road.png", numbered_image(1))
    write_image(tmp_path / ".hidden.png", numbered_image(2))
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "folder.png").mkdir()
    os.symlink(tmp_path / "gone.png", tmp_path / "dangling.png")
    frames, source = read(tmp_path)
    assert [f.name for f in frames] == ["road"]
    assert source.dropped == 0


def test_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(BadInput, match="no images in this folder"):
        read(tmp_path)


# -- What is no source -------------------------------------------------------------------------------------------------


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"gone\.mp4: no such file or folder"):
        read(tmp_path / "gone.mp4")


def test_overlong_name_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        read(tmp_path / ("x" * 300 + ".mp4"))


@pytest.mark.parametrize("uri", ["ftp://host/clip.mp4", "nonsense://x"])
def test_unknown_scheme(uri: str) -> None:
    with pytest.raises(BadInput, match="unknown kind of source"):
        read(uri)


def test_synthetic_drive_is_a_source() -> None:
    frames, _ = read("synthetic://drive?size=320x180&fps=10&seconds=1&seed=1", Selection(start_s=0.5, every=2))
    assert seqs(frames) == [5, 7, 9]
    assert stamps_ms(frames) == [500, 700, 900]
    assert {f.size for f in frames} == {(320, 180)}


def test_image_reader_agrees_with_opencv(tmp_path: Path) -> None:
    """A JPEG through the source has the pixels that OpenCV reads from the file itself."""
    picture = cv2.GaussianBlur(np.random.default_rng(4).integers(0, 256, (40, 60, 3), np.uint8), (0, 0), 3)
    path = write_image(tmp_path / "x.jpg", np.asarray(picture))
    (frame,), _ = read(path)
    assert np.array_equal(frame.image, cv2.imread(str(path)))


def test_start_in_an_open_group_of_pictures_loses_nothing(tmp_path: Path) -> None:
    """After a seek the first pictures may precede their key frame in time; they are no losses and shift no numbers."""
    path = tmp_path / "open.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"x264-params": "keyint=10:min-keyint=10:scenecut=0:bframes=3:b-adapt=0:open-gop=1"}
        for number in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_image(number % 20, 64, 48), "bgr24")))
        container.mux(stream.encode(None))
    for start_s in (1.0, 1.3, 2.9):
        frames, source = read(path, Selection(start_s=start_s))
        assert seqs(frames) == list(range(round(start_s * 10), 40))
        assert (source.dropped, source.problems) == (0, [])


def test_raw_stream_that_cannot_seek_is_read_up_to_the_start(tmp_path: Path) -> None:
    path = tmp_path / "raw.h264"
    with av.open(str(path), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_image(number, 64, 48), "bgr24")))
        container.mux(stream.encode(None))
    frames, _ = read(path, Selection(start_s=0.5))
    assert 0 < len(frames) < 20
    assert np.all(np.diff([f.seq for f in frames]) == 1)
