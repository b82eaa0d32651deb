"""Labelled frames of one's own: how they are found and read, split, and checked."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.annotations.classes import read_classes
from training.annotations.convert import masks_from_annotations
from training.check import ADVICE, NEAR, Problem, Report, Shares, check_data, fingerprint, hamming, leaks, print_report
from training.datasets import (
    CERTAIN,
    IGNORE,
    Cache,
    Sample,
    epoch_indices,
    find_samples,
    read_label,
    read_sample,
    read_targets,
    sequence_of,
    split_of,
    survey,
)
from training.splits import (
    FRACTIONS,
    MANY,
    assignment_of,
    describe,
    quotas,
    read_splits,
    split_samples,
    split_sequences,
    write_splits,
)

SIZE = (64, 48)  # width, height
HALF: NDArray[np.uint8] = np.repeat([[0], [1]], SIZE[1] // 2, 0).repeat(SIZE[0], 1).astype(np.uint8)  # road below


def put(path: Path, image: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def photo(seed: int = 0, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """A picture that no other seed gives, nor nearly."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, size, interpolation=cv2.INTER_NEAREST), np.uint8)


def own_set(folder: Path, *names: str, plane: str = "freespace", label: NDArray[np.uint8] = HALF) -> Path:
    """Images called ``names``, below ``images/``, with labels by plane; each image looks different."""
    for name in names:
        put(folder / "images" / name, photo(len(list(folder.rglob("*")))))
        put((folder / "labels" / plane / name).with_suffix(".png"), label)
    return folder


# -- Finding and reading -----------------------------------------------------------------------------------------------


def test_what_freespace_masks_writes_is_a_data_set(tmp_path: Path) -> None:
    mine = tmp_path / "data/mine"
    for i in range(2):
        put(mine / f"images/drive_{i:04d}.jpg", photo(i))
        shapes = [
            {"label": "road", "shape_type": "polygon", "points": [[0, 24], [0, 48], [64, 48], [64, 24]]},
            {"label": "car", "shape_type": "polygon", "points": [[10, 30], [10, 40], [20, 40], [20, 30]]},
        ]
        annotation = {"shapes": shapes, "imagePath": f"drive_{i:04d}.jpg", "imageWidth": 64, "imageHeight": 48}
        (tmp_path / "labelled").mkdir(exist_ok=True)
        (tmp_path / f"labelled/drive_{i:04d}.json").write_text(json.dumps(annotation))
    truth = HALF.copy()
    truth[30:40, 10:20] = 0

    assert masks_from_annotations([tmp_path / "labelled"], mine / "labels").complete
    samples = find_samples(tmp_path / "data")
    assert [(s.dataset, s.sequence, s.image.name) for s in samples] == [
        ("mine", "drive", "drive_0000.jpg"),
        ("mine", "drive", "drive_0001.jpg"),
    ]
    freespace, ego = read_sample(samples[0])[1]
    assert np.array_equal(freespace, truth)
    assert np.array_equal(ego, np.where(truth == 1, IGNORE, 0)), "what of a road is ego is unknown"


def test_indices_are_read_through_their_names(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (tmp_path / "indices.yaml").write_text(
        "background: 0\nclasses: {road: 3, lane marking: 3, ego lane: 4, car: 8, void: 11}\n"
    )
    mine.mkdir()
    (mine / "classes.yaml").write_text((tmp_path / "indices.yaml").read_text())
    (mine / "planes.yaml").write_text(
        "background: {freespace: 0, ego: 0}\n"
        "classes: {road: {freespace: 1}, Lane_Marking: {freespace: 1}, ego lane: {freespace: 1, ego: 1}, "
        "car: {freespace: 0, ego: 0}, void: {}}\n"
    )
    shapes = [{"label": "Road", "shape_type": "polygon", "points": [[0, 24], [0, 48], [64, 48], [64, 24]]}]
    (tmp_path / "labelled").mkdir()
    (tmp_path / "labelled/a.json").write_text(
        json.dumps({"shapes": shapes, "imagePath": "a.png", "imageWidth": 64, "imageHeight": 48})
    )
    put(mine / "images/a.png", photo())
    assert masks_from_annotations(
        [tmp_path / "labelled"], mine / "labels", classes=read_classes(tmp_path / "indices.yaml")
    ).complete
    label = cv2.imread(str(mine / "labels/a.png"), cv2.IMREAD_UNCHANGED)
    assert set(np.unique(label)) == {0, 3}
    label[0, :5] = (4, 8, 11, IGNORE, 0)
    put(mine / "labels/a.png", label)

    [sample] = find_samples(tmp_path)
    planes = read_sample(sample)[1]
    assert planes[0, 0, :5].tolist() == [1, 0, IGNORE, IGNORE, 0]
    assert planes[1, 0, :5].tolist() == [1, 0, IGNORE, IGNORE, 0]
    assert np.all(planes[0, 24:] == 1)
    assert np.all(planes[1, 24:] == IGNORE)

    label[5, 5] = 7
    put(mine / "labels/a.png", label)
    with pytest.raises(ValueError, match=r"a\.png holds 7, which no class"):
        read_sample(sample)


def test_usual_words_need_no_file_of_planes(tmp_path: Path) -> None:
    put(tmp_path / "images/a.png", photo())
    put(tmp_path / "labels/a.png", np.where(HALF, 5, 2).astype(np.uint8))
    (tmp_path / "classes.yaml").write_text("background: 0\nclasses: {drivable area: 5, sky: 2}\n")
    freespace, ego = read_sample(find_samples(tmp_path)[0])[1]
    assert np.array_equal(freespace, HALF)
    assert np.array_equal(ego, np.where(HALF, IGNORE, 0))


@pytest.mark.parametrize(
    ("classes", "planes", "message"),
    [
        ("background: 0\nclasses: {tarmac: 5}\n", None, r"'tarmac' on the planes\? say it in .*planes\.yaml"),
        ("background: 0\nclasses: {road: 5, car: 5}\n", None, "'road' and 'car' share the index 5"),
        ("background: {freespace: 0}\nclasses: {road: {freespace: 1}}\n", None, "gives values by plane"),
        ("background: 0\nclasses: {road: 5}\n", "background: 0\nclasses: {road: 1}\n", r"planes\.yaml: gives indices"),
        ("background: 0\nclasses: [road]\n", None, "a mapping has two keys"),
    ],
)
def test_mappings_that_say_nothing_are_refused(classes: str, planes: str | None, message: str, tmp_path: Path) -> None:
    put(tmp_path / "images/a.png", photo())
    put(tmp_path / "labels/a.png", HALF)
    (tmp_path / "classes.yaml").write_text(classes)
    if planes:
        (tmp_path / "planes.yaml").write_text(planes)
    with pytest.raises(ValueError, match=message):
        find_samples(tmp_path)


def test_one_label_an_image_is_the_plane_freespace(tmp_path: Path) -> None:
    label = HALF.copy()
    label[0, 0] = IGNORE
    put(tmp_path / "mine/images/a.webp", photo())
    put(tmp_path / "mine/labels/a.png", cv2.merge([label] * 3))  # grey in three channels is grey
    freespace, ego = read_sample(find_samples(tmp_path)[0])[1]
    assert np.array_equal(freespace, label)
    assert np.all(ego == IGNORE)


def test_masks_of_0_and_255_are_refused_until_it_is_said_what_255_means(tmp_path: Path) -> None:
    for i in range(3):
        put(tmp_path / f"mine/images/{i}.jpg", photo(i))
        put(tmp_path / f"mine/labels/{i}.png", HALF * np.uint8(255))
    with pytest.raises(ValueError, match="mine: no label says 1, only 0 and 255, which is unknown") as error:
        find_samples(tmp_path)
    report = check_data(tmp_path)
    assert not report.ok
    assert [(p.file, p.reason) for p in report.problems if p.serious] == [("mine", "seems to hold masks")]
    assert report.problems[0].detail.removeprefix(": ") == str(error.value).removeprefix("mine: "), "one remedy, in one place"
    assert {p.file for p in report.problems} == {"mine", "train", "dev", "val"}, "and no note for each image"
    assert not any("drivable" in p.reason or "says" in p.reason for p in report.problems)
    (tmp_path / "mine/classes.yaml").write_text(str(error.value).split(f"{'classes.yaml'}: ")[1])
    assert np.array_equal(read_sample(find_samples(tmp_path)[0])[1][0], HALF)

    own_set(tmp_path / "other", "a.jpg", label=HALF * np.uint8(255))
    own_set(tmp_path / "other", "b.jpg")
    assert len(find_samples(tmp_path)) == 5, "one image may well have nothing drivable in it"


def test_sequences_are_folders_or_names_without_numbers(tmp_path: Path) -> None:
    names = ("one/left/000001.jpg", "one/right/000001.jpg", "two/a.png", "town_0001.bmp", "town-2.jpeg", "0003.jpg")
    own_set(tmp_path / "mine", *names)
    sequences = {s.image.relative_to(tmp_path / "mine/images").as_posix(): s.sequence for s in find_samples(tmp_path)}
    assert sequences == dict(zip(names, ("one/left", "one/right", "two", "town", "town", "mine"), strict=True))
    assert sequence_of(Path("frame0012")) == "frame"
    assert sequence_of(Path("a7_left")) == "a7_left"


def test_labels_may_lie_in_one_folder_if_names_differ(tmp_path: Path) -> None:
    for i, name in enumerate(("one/a", "two/b")):
        put(tmp_path / f"images/{name}.jpg", photo(i))
        put(tmp_path / f"labels/ego/{Path(name).name}.png", HALF)
    samples = find_samples(tmp_path)
    assert [s.label.name for s in samples] == ["a.png", "b.png"]
    freespace, ego = read_sample(samples[0])[1]
    assert np.all(freespace == IGNORE), "a plane without labels is unknown"
    assert np.array_equal(ego, HALF)
    put(tmp_path / "images/two/a.jpg", photo(3))
    with pytest.raises(ValueError, match=r"one/a\.jpg and .*two/a\.jpg share the label"):
        find_samples(tmp_path)


def test_images_without_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    own_set(tmp_path / "mine", "a_1.jpg", "a_2.jpg")
    (tmp_path / "mine/labels/freespace/a_2.png").unlink()
    samples, unlabelled, bare = survey(tmp_path)
    assert not bare
    assert [s.image.name for s in samples] == ["a_1.jpg"]
    assert [p.name for p in unlabelled] == ["a_2.jpg"]
    assert len(find_samples(tmp_path)) == 1
    (tmp_path / "mine/labels/freespace/a_1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"none of its 2 images has a label, such as .*a_1\.png for a_1\.jpg"):
        find_samples(tmp_path)


def test_data_sets_are_found_wherever_they_lie(tmp_path: Path) -> None:
    own_set(tmp_path / "mine", "a.jpg")
    own_set(tmp_path / "by/someone", "a.jpg")
    own_set(tmp_path / ".hidden", "a.jpg")
    own_set(tmp_path / "pack/train", "a.jpg")
    own_set(tmp_path / "pack/val", "a.jpg")
    own_set(tmp_path / "camvid/train", "0001_1.jpg")
    put(tmp_path / "camvid/train/labels/0001_1.png", np.full(SIZE[::-1], 3, np.uint8))
    (tmp_path / "circle").symlink_to(tmp_path)
    found = [(s.dataset, s.published_split) for s in find_samples(tmp_path)]
    assert found == [("camvid", "train"), ("mine", None), ("pack", "train"), ("pack", "val"), ("someone", None)]
    assert [s.dataset for s in find_samples(tmp_path / "mine")] == ["mine"], "the folder itself may be one"

    own_set(tmp_path / "by/mine", "a.jpg")
    with pytest.raises(ValueError, match="would both be called 'mine'"):
        find_samples(tmp_path)


def test_names_of_public_data_sets_are_taken(tmp_path: Path) -> None:
    own_set(tmp_path / "idd_lite", "a.jpg")
    with pytest.raises(ValueError, match="'idd_lite' has a meaning of its own"):
        find_samples(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_samples(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no labelled images"):
        find_samples(tmp_path / "empty")


def test_lists_name_conditions_and_splits(tmp_path: Path) -> None:
    own_set(tmp_path, "a_1.jpg", "a_2.jpg", "b/1.jpg", "b/2.jpg")
    (tmp_path / "night.txt").write_text("a_1\nb/1\n")
    (tmp_path / "rain.txt").write_text("a_1.jpg\n\n")
    (tmp_path / "val.txt").write_text("a_2\n")
    (tmp_path / "readme.txt").write_text("these are mine\n")
    assert [(s.condition, s.published_split) for s in find_samples(tmp_path)] == [
        ("night+rain", None),
        ("any", "val"),
        ("night", None),
        ("any", None),
    ]


def test_images_without_labels_are_told_what_is_missing(tmp_path: Path) -> None:
    put(tmp_path / "mine/images/a.jpg", photo())
    with pytest.raises(FileNotFoundError, match=r"mine has images/ but no labels/; 'freespace masks' writes them"):
        find_samples(tmp_path)
    put(tmp_path / "mine/masks/a.png", HALF)
    with pytest.raises(FileNotFoundError, match=r"mine has images/ but no labels/; if masks/ holds the labels, rename it"):
        find_samples(tmp_path)
    own_set(tmp_path / "other", *(f"{name}/{i}.jpg" for name in "ab" for i in range(2)))
    assert {s.dataset for s in find_samples(tmp_path)} == {"other"}
    [problem] = [p for p in check_data(tmp_path).problems if "no labels/" in p.reason]
    assert (problem.file, problem.serious) == (str(tmp_path / "mine"), False)

    (tmp_path / "mine/masks").rename(tmp_path / "mine/labels")
    assert {s.dataset for s in find_samples(tmp_path)} == {"mine", "other"}


@pytest.mark.parametrize("place", ["labels/a.jpg", "labels/freespace/a.JPG", "labels/freespace/a.bmp"])
def test_labels_of_another_kind_are_pointed_out(place: str, tmp_path: Path) -> None:
    put(tmp_path / "mine/images/a.jpg", photo())
    put(tmp_path / "mine" / place, HALF)
    with pytest.raises(FileNotFoundError, match=rf"a\.png for a\.jpg; .*{place} is there, but labels are \.png"):
        find_samples(tmp_path)
    (tmp_path / "mine/images/a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="images holds no images"):
        find_samples(tmp_path)


def paletted(path: Path, indices: NDArray[np.uint8], palette: NDArray[np.uint8], bits: int = 8, alpha: bytes = b"") -> Path:
    """Write a PNG with a palette ``(n, 3)`` of RGB, after the specification, as OpenCV cannot."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = indices.shape
    rows = np.packbits(np.unpackbits(indices[..., None], axis=2)[..., -bits:].reshape(height, -1), axis=1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 3, 0, 0, 0)), (b"PLTE", palette.tobytes())]
    parts += [(b"tRNS", alpha)] if alpha else []
    parts += [(b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 40), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_labels_with_a_palette_are_their_indices(bits: int, width: int, height: int, clear: bool, seed: int) -> None:
    import tempfile

    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 256, (2**bits, 3), np.uint8)
    palette[0] = (128, 64, 128)  # the colour of roads in many a data set; one that is no grey
    indices = rng.integers(0, 2**bits, (height, width), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = paletted(Path(folder) / "l.png", indices, palette, bits, b"\x00\x80" if clear else b"")
        assert np.array_equal(read_label(path), indices)


def test_a_palette_of_greys_holds_values(tmp_path: Path) -> None:
    """What programs make of a grey image that they save as small as they can: the same label."""
    greys = np.array([[0] * 3, [1] * 3, [IGNORE] * 3], np.uint8)
    indices = np.random.default_rng(0).integers(0, 3, (6, 8), np.uint8)
    path = paletted(tmp_path / "l.png", indices, greys, 2)
    assert np.array_equal(read_label(path), greys[indices, 0])


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.full((48, 63), 1, np.uint8), r"a\.jpg is 64x48 but its label is 63x48: .*a\.png"),
        (np.full((48, 64), 3, np.uint8), r"a\.png holds 3, but a plane is 0, 1 or 255; .* classes\.yaml"),
        (np.full((48, 64), 1, np.uint16), "more than 8 bits"),
        (np.dstack([HALF, HALF, 1 - HALF]), "holds colours"),
    ],
)
def test_bad_labels_are_named(label: NDArray[np.uint8], message: str, tmp_path: Path) -> None:
    own_set(tmp_path / "mine", "a.jpg", label=label)
    [sample] = survey(tmp_path).samples
    with pytest.raises(ValueError, match=message):
        read_sample(sample)
    report = check_data(tmp_path)
    assert not report.ok
    assert [Path(p.file).name for p in report.problems if p.serious] == ["a.jpg"]


def test_planes_of_one_image_have_one_size(tmp_path: Path) -> None:
    own_set(tmp_path, "a.jpg")
    put(tmp_path / "labels/ego/a.png", HALF[:40])
    with pytest.raises(ValueError, match=r"freespace/a\.png is 64x48 but .*ego/a\.png is 64x40"):
        read_sample(find_samples(tmp_path)[0])


@given(st.integers(2, 60), st.integers(2, 40), st.integers(1, 59))
def test_shrunk_labels_hold_the_value_under_each_pixel(width: int, height: int, max_width: int) -> None:
    import tempfile

    label = np.random.default_rng(width * height).choice(np.array([0, 1, IGNORE], np.uint8), (height, width))
    with tempfile.TemporaryDirectory() as folder:
        image = put(Path(folder) / "i.png", cv2.merge([label] * 3))
        path = put(Path(folder) / "l.png", label)
        _, planes = read_sample(Sample("mine", "a", image, path, planes=(path, None)), max_width)
    new_height, new_width = planes.shape[1:]
    rows, columns = (
        np.minimum(np.floor((np.arange(n) + 0.5) * of / n + 1e-9), of - 1).astype(int)
        for n, of in ((new_height, height), (new_width, width))
    )
    exact = [(2 * np.arange(n) + 1) * of % (2 * n) != 0 for n, of in ((new_height, height), (new_width, width))]
    same = planes[0] == label[np.ix_(rows, columns)]
    assert new_width == min(width, max_width)
    assert np.all(same[np.ix_(*exact)]), "a centre between two pixels may take either"


def test_cache_keeps_what_fits(tmp_path: Path) -> None:
    own_set(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    samples = find_samples(tmp_path)
    one = 64 * 48 * 5  # three channels and two planes
    cache = Cache(samples, 64, max_bytes=2 * one)
    first = [cache[i] for i in range(3)]
    again = [cache[i] for i in range(3)]
    assert [a[0] is b[0] for a, b in zip(first, again, strict=True)] == [True, True, False]
    assert all(np.array_equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))
    assert cache.held_bytes == 2 * one
    assert set(np.unique(first[0][1])) == {0, CERTAIN, IGNORE}
    assert np.array_equal(first[0][1], read_targets(samples[0], 64)[1])


def test_data_sets_without_a_share_of_their_own_take_part() -> None:
    def count(names: list[str], shares: dict[str, float]) -> list[int]:
        samples = [Sample(name, "", Path(), Path()) for name in names]
        chosen = epoch_indices(samples, shares, 120, np.random.default_rng(0))
        return np.bincount(chosen, minlength=len(names)).tolist()

    assert count(["camvid", "mine"], {"camvid": 0.5}) == [60, 60]
    assert count(["camvid", "idd_lite", "mine"], {"camvid": 1.0}) == [90, 0, 30], "public ones are asked for by name"
    assert count(["mine", "other"], {"camvid": 0.5}) == [60, 60]


# -- Splits ------------------------------------------------------------------------------------------------------------


def samples_of(dataset: str, **sequences: int) -> list[Sample]:
    return [
        Sample(dataset, name, Path(f"{dataset}/{name}_{i:03d}.jpg"), Path(f"{i}.png"))
        for name, count in sequences.items()
        for i in range(count)
    ]


def where(splits: dict[str, list[Sample]]) -> dict[Sample, str]:
    return {sample: name for name, samples in splits.items() for sample in samples}


@given(st.integers(0, 5), st.integers(2, 40))
def test_sequences_stay_whole_and_train_and_val_are_never_empty(seed: int, count: int) -> None:
    samples = samples_of("mine", **{f"s{i}": 1 + i % 3 for i in range(count)})
    splits = split_samples(samples, seed)
    assert sorted(map(id, samples)) == sorted(id(s) for part in splits.values() for s in part)
    assert splits["train"]
    assert splits["val"]
    found: dict[str, set[str]] = {}
    for sample, split in where(splits).items():
        found.setdefault(sample.sequence, set()).add(split)
    assert all(len(names) == 1 for names in found.values())


def test_splits_follow_their_fractions_and_their_seed() -> None:
    names = [f"s{i}" for i in range(2000)]
    one, other = (split_sequences("mine", names, seed, FRACTIONS) for seed in (1, 2))
    for split, fraction in FRACTIONS.items():
        deviation = (fraction * (1 - fraction) / 2000) ** 0.5  # of a fair draw
        assert list(one.values()).count(split) / 2000 == pytest.approx(fraction, abs=4 * deviation)
    agreed = np.mean([one[name] == other[name] for name in names])
    assert agreed == pytest.approx(sum(f * f for f in FRACTIONS.values()), abs=0.03), "as if by chance"


@given(st.integers(0, 50), st.integers(MANY, 90), st.integers(0, 60))
def test_more_sequences_move_none_of_many(seed: int, count: int, more: int) -> None:
    names = [f"s{i}" for i in range(count + more)]
    fractions = {"train": 0.6, "dev": 0.2, "val": 0.2}  # of which no split of 40 stays empty, by any chance that matters
    before, after = (split_sequences("mine", names[:n], seed, fractions) for n in (count, count + more))
    assert before == {name: after[name] for name in before}


@given(st.integers(0, 50), st.integers(2, 60), st.integers(1, 5))
def test_more_images_move_no_sequence(seed: int, count: int, images: int) -> None:
    before = split_samples(samples_of("mine", **{f"s{i}": 1 for i in range(count)}), seed)
    after = split_samples(samples_of("mine", **{f"s{i}": images for i in range(count)}), seed)
    for name in before:
        assert {s.sequence for s in before[name]} == {s.sequence for s in after[name]}


@given(st.integers(0, 50), st.integers(3, MANY - 1))
def test_one_more_sequence_moves_few(seed: int, count: int) -> None:
    names = [f"s{i}" for i in range(count)]
    before, after = (split_sequences("mine", names[:n], seed, FRACTIONS) for n in (count - 1, count))
    assert sum(before[name] != after[name] for name in before) <= 2, "at most one at each border"


@given(st.integers(2, 39), st.integers(0, 100), st.integers(0, 100))
def test_quotas(count: int, dev: int, val: int) -> None:
    dev = min(dev, 100 - val)
    percent = {"train": 100 - dev - val, "dev": dev, "val": val}
    held = quotas(count, {name: value / 100 for name, value in percent.items()})
    assert sum(held.values()) == count
    for name, images in held.items():
        if percent[name] > 0 and (name != "dev" or count >= 4):
            assert images > 0, "what is wanted is not empty"
        assert percent[name] > 0 or images == 0, "nothing where nothing is wanted"
        assert abs(images - count * percent[name] / 100) < 2
    if percent["train"] >= percent["val"]:
        assert held["train"] >= held["val"]


def test_quotas_by_hand() -> None:
    counts = {n: tuple(quotas(n, FRACTIONS)[name] for name in ("train", "dev", "val")) for n in (2, 3, 4, 5, 10, 30)}
    assert counts == {2: (1, 0, 1), 3: (2, 0, 1), 4: (2, 1, 1), 5: (3, 1, 1), 10: (7, 1, 2), 30: (22, 2, 6)}


def test_of_many_sequences_each_split_gets_one_at_least() -> None:
    fractions = {"train": 0.998, "dev": 0.001, "val": 0.001}
    for seed in range(20):
        split = split_sequences("mine", [f"s{i}" for i in range(50)], seed, fractions)
        assert set(split.values()) == {"train", "dev", "val"}


def test_splits_in_a_line() -> None:
    splits = {"train": samples_of("a", x=3, y=1) + samples_of("b", x=1), "dev": samples_of("a", z=1), "val": []}
    assert describe(splits) == "train 5 images (3 sequences), dev 1 (1), val 0 (0)"
    assert describe({"train": samples_of("a", x=1)}) == "train 1 image (1 sequence)"


def test_a_single_sequence_is_cut_in_time(capsys: pytest.CaptureFixture[str]) -> None:
    samples = samples_of("mine", drive=20)
    rng = np.random.default_rng(0)
    splits = split_samples([samples[i] for i in rng.permutation(20)])
    held = {name: sorted(int(s.image.stem[-3:]) for s in part) for name, part in splits.items()}
    assert held == {"train": list(range(15)), "dev": [15], "val": list(range(16, 20))}
    assert "mine: 'drive' is its only sequence, which is split in time" in capsys.readouterr().err
    counts = [[len(p) for p in split_samples(samples_of("m", d=n)).values()] for n in (1, 2, 3, 4, 5)]
    assert counts == [[1, 0, 0], [1, 0, 1], [2, 0, 1], [3, 0, 1], [3, 1, 1]]


def test_public_and_published_splits_stay() -> None:
    public = [Sample("idd_lite", str(i), Path(f"{i}.jpg"), Path()) for i in range(50)]
    published = [Sample("mine", "a", Path("a.jpg"), Path(), published_split="dev")]
    view = [Sample("bdd100k", "7", Path("v.jpg"), Path(), published_split="train", view=True)]
    split = where(split_samples(public + published + view, seed=9))
    assert all(split[s] == split_of(s) for s in public)
    assert split[published[0]] == "dev"
    assert split[view[0]] == "train"


@pytest.mark.parametrize("name", ["splits.yaml", "splits.json"])
def test_splits_survive_a_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = [
        *samples_of("mine", **{f"s{i}": 3 for i in range(12)}, **{"0001": 2, "a @ b": 1}),
        *samples_of("single", drive=20),
        Sample("camvid", "0016E5", Path("1.jpg"), Path(), published_split="train"),
        Sample("camvid", "0016E5", Path("2.jpg"), Path(), published_split="val"),
        Sample("footage", "x", Path("3.jpg"), Path(), published_split="train", view=True),
    ]
    splits = split_samples(samples, 3)
    write_splits(tmp_path / name, assignment_of(splits))
    assert [p.name for p in tmp_path.iterdir()] == [name]
    capsys.readouterr()
    assert split_samples(samples, 99, file=tmp_path / name) == splits, "the seed has no say"
    assert not capsys.readouterr().err
    assignment = read_splits(tmp_path / name)
    assert assignment == assignment_of(splits)
    assert assignment["val"]["single"] == ["drive @ drive_016 .. drive_019"]
    assert assignment["train"]["camvid"] == ["train/0016E5"]
    assert "footage" not in assignment["train"]


def test_a_file_must_know_every_sequence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "splits.yaml"
    path.write_text("train: {mine: [a]}\nval: {mine: [b, c @ c_000 .. c_001]}\n")
    splits = split_samples(samples_of("mine", a=2, b=1, c=2), file=path)
    assert [len(splits[name]) for name in ("train", "dev", "val")] == [2, 0, 3]
    with pytest.raises(ValueError, match=r"splits\.yaml: does not say in which split mine/d is"):
        split_samples(samples_of("mine", a=2, d=1), file=path)
    with pytest.raises(ValueError, match="mine/c @ c_002"):
        split_samples(samples_of("mine", c=3), file=path)
    assert not capsys.readouterr().err
    path.write_text("train: {mine: [a, zebra]}\nval: {mine: [b, c @ c_000 .. c_001, c @ c_007 .. c_009], yours: [a]}\n")
    split_samples(samples_of("mine", a=2, b=1, c=2), file=path)
    assert capsys.readouterr().err == (
        f"note: {path}: no image is meant by train: mine/zebra, val: mine/c @ c_007 .. c_009, val: yours/a\n"
    )
    with pytest.raises(ValueError, match="and 15 more"):
        split_samples(samples_of("mine", **{f"x{i}": 1 for i in range(20)}), file=path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {mine: [a, b]}\nval: {mine: [b]}\n", "mine: 'b' is in train and in val"),
        ("train: {mine: [a]}\nval: {mine: ['a @ a_1 .. a_3']}\n", "'a' is in train and in val"),
        ("train: {mine: ['a @ a_1 .. a_3']}\nval: {mine: ['a @ a_02 .. a_9']}\n", "'a' is in train and in val"),
        ("train: {mine: [0001]}\n", "put 1 in quotes"),
        ("train: {mine: a}\n", "wanted a list of sequences, not 'a'"),
        ("test: {mine: [a]}\n", "wanted train, dev, val"),
        ("train: [a]\n", "train: wanted data sets"),
        ("- a\n", "wanted train, dev, val"),
        ("{", "broken YAML or JSON"),
        ("", "wanted train, dev, val"),
    ],
)
def test_broken_files_of_splits_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "splits.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_splits(path)


def test_splits_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file of splits"):
        read_splits(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="'a' is in"):
        write_splits(tmp_path / "s.yaml", {"train": {"m": ["a"]}, "val": {"m": ["a"]}})
    assert not list(tmp_path.iterdir())
    for fractions in ({"train": 0.5}, {"train": 0.9, "test": 0.1}, {"train": 1.5, "val": -0.5}):
        with pytest.raises(ValueError, match="add up to 1"):
            split_samples(samples_of("mine", a=1, b=1), fractions=fractions)
    everything = split_samples(samples_of("mine", a=1, b=1), fractions={"val": 1.0})
    assert len(everything["val"]) == 2, "what has no fraction may stay empty"


# -- The check ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A data set in which nothing is wrong: three sequences, one in each split."""
    own_set(tmp_path / "mine", *(f"{name}/{i}.png" for name in "abc" for i in range(10)))
    (tmp_path / "splits.yaml").write_text("train: {mine: [a]}\ndev: {mine: [b]}\nval: {mine: [c]}\n")
    return tmp_path


def check(root: Path) -> Report:
    return check_data(root, splits=root / "splits.yaml")


def test_good_data_are_counted(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label = HALF.copy()
    label[:12] = IGNORE
    put(good / "mine/labels/freespace/c/1.png", label)
    (good / "mine/night.txt").write_text("c/1\n")
    report = check(good)
    assert report.ok
    assert report.problems == []
    train, dev, val = report.rows
    assert [(r.dataset, r.split, r.images, len(r.sequences)) for r in report.rows] == [
        ("mine", name, 10, 1) for name in ("train", "dev", "val")
    ]
    half, quarter = 64 * 24, 64 * 12
    assert train.planes == dev.planes == {"freespace": Shares(10 * half, 10 * half, 0), "ego": Shares(0, 0, 20 * half)}
    assert val.planes["freespace"] == Shares(10 * half, 10 * half - quarter, quarter)
    assert val.sizes == {SIZE: 10}
    assert val.conditions == {"night": 1, "any": 9}
    print_report(report)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "ok: 30 labelled images in 1 data set, 0 problems, 0 notes"
    assert "50.0%     50.0%      0.0%     50.0%" in lines[1]
    assert "any 9, night 1" in lines[-2]


def test_everything_that_is_wrong_is_listed(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = good / "mine/images", good / "mine/labels/freespace"
    (images / "a/0.png").write_bytes(b"no image")
    put(labels / "a/1.png", HALF[:20])
    put(labels / "b/0.png", HALF * np.uint8(7))
    put(labels / "b/1.png", np.full_like(HALF, IGNORE))
    put(labels / "b/2.png", np.zeros_like(HALF))
    (labels / "c/0.png").unlink()
    put(images / "c/10.png", photo(500))
    put(labels / "c/10.png", HALF)
    put(images / "c/1.png", cv2.imread(str(images / "a/2.png"), cv2.IMREAD_GRAYSCALE))
    found = {(Path(p.file).relative_to(images).as_posix() if "/" in p.file else p.file): p for p in check(good).problems}
    assert {name: (p.reason, p.serious) for name, p in found.items()} == {
        "a/0.png": ("cannot be used", True),
        "a/1.png": ("cannot be used", True),
        "b/0.png": ("cannot be used", True),
        "b/1.png": ("is unknown everywhere: nothing can be learnt from it", False),
        "b/2.png": ("has nothing drivable in it", False),
        "c/0.png": ("has no label", False),
        "c/1.png": ("nearly equals an image of another split", False),
        "mine": ("has grey images", False),
    }
    assert "cannot decode" in found["a/0.png"].detail
    assert "64x48 but its label is 64x20" in found["a/1.png"].detail
    assert "holds 7" in found["b/0.png"].detail
    assert "a/2.png in train" in found["c/1.png"].detail
    assert found["mine"].detail == ": 1 of 30"
    print_report(check(good))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith(("problem", "note"))] == ["problem"] * 3 + ["note"] * 5
    assert lines[-1] == "not ok: 30 labelled images in 1 data set, 3 problems, 5 notes"


def test_long_lists_are_cut_short(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(15):
        put(good / f"mine/images/a/x{i}.png", photo(50 + i))
    print_report(check(good))
    printed = capsys.readouterr().out
    assert printed.count("has no label; it is left out") == 10
    assert "note: 5 more: has no label" in printed


def test_public_labels_hold_what_their_makers_said(tmp_path: Path) -> None:
    for i, value in enumerate((3, 12)):
        put(tmp_path / f"camvid/train/images/s_{i}.jpg", photo(i))
        put(tmp_path / f"camvid/train/labels/s_{i}.png", np.where(HALF, value, 5).astype(np.uint8))
    put(tmp_path / "camvid/train/images/s_9.jpg", photo(9))
    report = check_data(tmp_path)
    serious = {Path(p.file).name: p.reason + p.detail for p in report.problems if p.serious}
    assert set(serious) == {"s_1.jpg", "s_9.jpg"}
    assert "holds 12, which labels of camvid do not" in serious["s_1.jpg"]
    assert serious["s_9.jpg"] == "has no label"


def test_a_jpeg_that_ends_early_is_noticed(good: Path) -> None:
    whole = put(good / "mine/images/a/0.jpg", np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
    (good / "mine/images/a/0.png").unlink()
    assert check(good).problems == []
    whole.write_bytes(whole.read_bytes()[:-200])
    assert [p.reason for p in check(good).problems] == ["ends early: a part of the image is missing"]


def test_without_images_to_train_on_the_check_fails(good: Path) -> None:
    (good / "splits.yaml").write_text("val: {mine: [a, b, c]}\n")
    report = check(good)
    assert [(p.file, p.serious) for p in report.problems] == [("train", True), ("dev", False)]
    assert "writes no best.pt" in report.problems[1].detail
    assert "data.dev=0.2" in report.problems[1].detail
    assert report.verdict.startswith("not ok")


def test_few_images_say_little(good: Path) -> None:
    for i in range(3, 10):
        (good / f"mine/labels/freespace/b/{i}.png").unlink()
    (good / "mine/labels/freespace/c/9.png").unlink()
    assert [(p.file, p.reason, p.serious) for p in check(good).problems if "label" not in p.reason] == [
        ("val", "has only 9 images", False)
    ], "dev may be small"


def planes_of_train(root: Path) -> list[Problem]:
    return [p for p in check(root).problems if p.file == "train"]


def test_a_plane_that_is_never_absent_is_a_problem(good: Path) -> None:
    def relabel(name: str, plane: str, label: NDArray[np.uint8]) -> None:
        for i in range(10):
            put(good / f"mine/labels/{plane}/{name}/{i}.png", label)

    known = np.where(HALF, 1, IGNORE).astype(np.uint8)  # as from polygons of what may be driven on, and nothing else
    relabel("a", "freespace", known)
    [problem] = planes_of_train(good)
    assert problem.serious
    assert problem.reason == "never says where freespace is absent"
    assert problem.detail.endswith("a mapping whose background says freespace: 0 ('freespace masks --mapping')")
    relabel("a", "ego", HALF)
    [problem] = planes_of_train(good)
    assert problem.detail.endswith("or leave it out (--set planes=[ego])")

    relabel("a", "freespace", HALF)
    relabel("a", "ego", np.where(HALF, IGNORE, 0).astype(np.uint8))
    relabel("c", "ego", HALF)  # which is no help for training
    [problem] = planes_of_train(good)
    assert (problem.reason, problem.serious) == ("never says where ego is", False)
    assert problem.detail == ": training leaves that plane out"
    relabel("a", "ego", np.full_like(HALF, IGNORE))
    assert [p.reason for p in planes_of_train(good)] == ["never says where ego is"]

    relabel("a", "freespace", np.zeros_like(HALF))
    assert [(p.reason, p.serious) for p in planes_of_train(good)] == [("has nothing drivable in it", True)]


def test_a_sequence_cut_in_time_is_one_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_set(tmp_path / "mine", *(f"{i:03d}.png" for i in range(100)))
    for i in (75, 80, 81):  # the first of dev and the first two of val look like the last of train
        put(tmp_path / f"mine/images/{i:03d}.png", cv2.imread(str(tmp_path / "mine/images/074.png")))
    [problem] = check_data(tmp_path).problems
    assert (problem.file, problem.reason, problem.serious) == ("mine", "has a sequence that is cut in time", False)
    assert "(3 of 25 in dev and val nearly equal an earlier split's)" in problem.detail


def test_fingerprint_by_hand() -> None:
    ramp = np.tile(np.arange(9, dtype=np.uint8) * 20, (8, 1))
    assert fingerprint(ramp) == 2**64 - 1, "brighter from left to right everywhere"
    assert fingerprint(ramp[:, ::-1].copy()) == 0
    ramp[0, 1] = 0  # no longer brighter than the pixel to the left of it; the first bit
    assert fingerprint(ramp) == 2**63 - 1
    assert fingerprint(np.full((48, 64), 90, np.uint8)) is None


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5), st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5))
def test_hamming_distance(a: list[int], b: list[int]) -> None:
    distance = hamming(np.array(a, np.uint64), np.array(b, np.uint64))
    assert distance.tolist() == [[bin(x ^ y).count("1") for y in b] for x in a]


def test_near_duplicates_survive_compression_and_light(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = cv2.resize(photo(77), (320, 240), interpolation=cv2.INTER_CUBIC)
    label = np.ones((240, 320), np.uint8)
    put(good / "mine/images/a/x.png", scene)
    darker = np.clip(scene * 0.8, 0, 255).astype(np.uint8)
    _, packed = cv2.imencode(".jpg", darker, [cv2.IMWRITE_JPEG_QUALITY, 60])
    (good / "mine/images/c/x.jpg").write_bytes(packed.tobytes())
    for name in ("a/x", "c/x"):
        put(good / f"mine/labels/freespace/{name}.png", label)
    report = check(good)
    assert [Path(p.file).name for p in report.problems] == ["x.jpg"]
    assert report.problems[0].reason == NEAR
    print_report(report)
    note, advice, _ = capsys.readouterr().out.splitlines()[-3:]
    assert note.startswith("note: ")
    assert advice.strip() == ADVICE[NEAR]


@pytest.mark.parametrize(
    ("bits", "splits", "found"),
    [
        (4, ("train", "val"), ["1.jpg"]),
        (5, ("train", "val"), []),
        (4, ("val", "dev"), ["0.jpg"]),
        (4, ("dev", "train"), ["0.jpg"]),
        (0, ("val", "val"), []),
    ],
)
def test_leaks_are_told_by_the_image_farther_from_training(bits: int, splits: tuple[str, str], found: list[str]) -> None:
    samples = [Sample("mine", str(i), Path(f"{i}.jpg"), Path()) for i in range(2)]
    prints = np.array([0b1010, 0b1010 ^ ((1 << bits) - 1) << 20], np.uint64)
    assert [p.file for p in leaks(samples, splits, prints)] == found


def test_a_written_file_of_splits_is_plain_yaml(tmp_path: Path) -> None:
    write_splits(tmp_path / "s.yaml", assignment_of(split_samples(samples_of("mine", a=1, b=1))))
    text = (tmp_path / "s.yaml").read_text()
    assert "!!" not in text
    assert {s for sets in yaml.safe_load(text).values() for listed in sets.values() for s in listed} == {"a", "b"}
