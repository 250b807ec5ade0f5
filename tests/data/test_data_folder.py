"""Folders and zips of pictures: labels, colours, sizes, and everything that is refused."""

import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import backdrift.data as data
from backdrift.errors import UserError


def picture(seed, height=6, width=6, mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def fill(folder, names, **options):
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i, **options).save(path)
    return folder


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    return path


def test_a_flat_folder_gives_its_pixels_in_the_order_of_names(tmp_path):
    fill(tmp_path, ["b.png", "a.png", "c.bmp"])
    (tmp_path / "LICENSE").write_text("not a picture")
    (tmp_path / ".hidden.png").write_text("not a picture")
    found = data.pictures(tmp_path)
    assert found.names == ["a.png", "b.png", "c.bmp"] and found.labels is None and found.cond() == {}
    for row, seed in zip(found.pixels, (1, 0, 2), strict=True):
        assert np.array_equal(row.numpy(), np.asarray(picture(seed)).transpose(2, 0, 1))


def test_class_folders_below_a_common_one(tmp_path):
    fill(tmp_path, ["photos/dog/1.png", "photos/cat/x/2.png", "photos/cat/3.png"])
    found = data.pictures(tmp_path)
    assert found.classes == ("cat", "dog")
    assert found.labels.tolist() == [0, 0, 1]
    assert data.pictures(tmp_path / "photos" / "cat" / "..").labels.tolist() == [0, 0, 1]


def test_numbered_class_folders_are_ordered_by_number(tmp_path):
    fill(tmp_path, ["10/a.png", "9/a.png", "2/a.png"])
    found = data.pictures(tmp_path)
    assert found.classes == ("2", "9", "10") and found.labels.tolist() == [2, 0, 1]


def test_one_folder_is_no_class(tmp_path):
    fill(tmp_path, ["cat/1.png", "cat/2.png"])
    assert data.pictures(tmp_path).labels is None


def test_pictures_beside_class_folders_are_refused(tmp_path):
    fill(tmp_path, ["cat/1.png", "dog/2.png", "3.png"])
    with pytest.raises(UserError, match=r"beside them \(3.png\)"):
        data.pictures(tmp_path)


def test_a_zip_is_the_same_as_its_folder(tmp_path):
    folder = fill(tmp_path / "in", ["cat/1.png", "dog/2.png", "dog/__MACOSX/._2.png"])
    inside = data.pictures(zipped(folder, tmp_path / "in.zip"))
    (folder / "dog/__MACOSX/._2.png").unlink()
    outside = data.pictures(folder)
    assert inside.names == outside.names and inside.classes == outside.classes
    assert inside.fingerprint == outside.fingerprint


@pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "/a.png", "..\\a.png", "C:\\a.png"])
def test_a_zip_with_a_path_that_climbs_out_is_refused(tmp_path, name):
    fill(tmp_path / "in", ["a.png", "b.png"])
    path = zipped(tmp_path / "in", tmp_path / "in.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"")
    with pytest.raises(UserError, match="climbs out"):
        data.pictures(path)


def test_metadata_gives_labels_and_texts(tmp_path):
    fill(tmp_path / "in/photos", ["cat/1.png", "dog/2.png", "dog/3.png"])
    rows = [
        {"file_name": "dog/3.png", "label": "z", "text": "three"},
        {"file_name": "cat/1.png", "label": "y", "text": "one"},
        {"file_name": "dog/2.png", "label": "y"},
    ]
    (tmp_path / "in/photos/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    for path in (tmp_path / "in", zipped(tmp_path / "in", tmp_path / "in.zip")):
        found = data.pictures(path)
        assert found.classes == ("y", "z") and found.labels.tolist() == [0, 0, 1]
        assert found.texts == ["one", "", "three"]
        assert found.subset([2]).texts == ["three"]


def test_metadata_with_texts_only_keeps_the_class_folders(tmp_path):
    fill(tmp_path, ["cat/1.png", "dog/2.png"])
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "cat/1.png", "text": "a cat"}\n')
    found = data.pictures(tmp_path)
    assert found.classes == ("cat", "dog") and found.texts == ["a cat", ""]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], "Line 1 of .* is not a JSON"),
        (["[]"], "Line 1 of .* is not a JSON"),
        (['{"text": "x"}'], "Line 1 of .* is not a JSON"),
        (['{"file_name": "../a.png"}'], "not among the pictures"),
        (['{"file_name": "a.png", "label": 0}'], "no label for b.png"),
        (['{"file_name": "a.png", "label": 0}', '{"file_name": "b.png", "label": "x"}'], "all names or all integers"),
        (['{"file_name": "a.png", "label": 0}', '{"file_name": "b.png", "label": -1}'], "out of range"),
        (['{"file_name": "a.png", "label": 0}', '{"file_name": "b.png", "label": 2}'], "out of range"),
        (['{"file_name": "a.png", "label": true}', '{"file_name": "b.png", "label": 0}'], "all names or all integers"),
    ],
)
def test_bad_metadata_is_refused(tmp_path, lines, message):
    fill(tmp_path, ["a.png", "b.png"])
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=message):
        data.pictures(tmp_path)


def test_transparency_shows_the_background(tmp_path):
    for i, alpha in enumerate((0, 255, 51)):
        Image.new("RGBA", (4, 4), (10, 20, 30, alpha)).save(tmp_path / f"{i}.png")
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 1, 2, 3])
    palette.save(tmp_path / "3.png", transparency=0)
    found = data.pictures(tmp_path, background=(200, 100, 0)).pixels[:, :, 0, 0].tolist()
    mixed = [round(0.2 * a + 0.8 * b) for a, b in zip((10, 20, 30), (200, 100, 0), strict=True)]
    assert found == [[200, 100, 0], [10, 20, 30], mixed, [200, 100, 0]]


def test_a_palette_without_transparency(tmp_path):
    for i in range(2):
        palette = Image.new("P", (2, 2), i)
        palette.putpalette([10, 20, 30, 1, 2, 3])
        palette.save(tmp_path / f"{i}.png")
    assert data.pictures(tmp_path).pixels[:, :, 0, 0].tolist() == [[10, 20, 30], [1, 2, 3]]


def test_16_bit_grey_is_reduced_over_its_full_range(tmp_path):
    values = np.array([[0, 128, 129, 65535], [257, 385, 386, 32768]], dtype=np.uint16)
    for name in ("a.png", "b.tif"):
        Image.fromarray(values).save(tmp_path / name)
    found = data.pictures(tmp_path)
    assert found.shape == (1, 2, 4)
    assert found.pixels[0, 0].tolist() == found.pixels[1, 0].tolist() == [[0, 0, 1, 255], [1, 1, 2, 128]]


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGB"])
def test_grey_pictures_get_one_channel_however_they_are_stored(tmp_path, mode):
    fill(tmp_path, ["a.png", "b.png"], mode="L")
    for path in tmp_path.iterdir():
        Image.open(path).convert(mode).save(path)
    found = data.pictures(tmp_path)
    assert found.shape == (1, 6, 6)
    assert data.pictures(tmp_path, channels=3).shape == (3, 6, 6)
    if mode != "1":
        assert np.array_equal(found.pixels[0, 0].numpy(), np.asarray(picture(0, mode="L")))


def test_one_coloured_picture_makes_three_channels_and_grey_can_be_asked_for(tmp_path):
    fill(tmp_path, ["a.png", "b.png"], mode="L")
    picture(2).save(tmp_path / "c.png")
    assert data.pictures(tmp_path).shape == (3, 6, 6)
    grey = data.pictures(tmp_path, channels=1)
    assert grey.shape == (1, 6, 6)
    exact = np.asarray(picture(2), dtype=float) @ [0.299, 0.587, 0.114]
    assert np.abs(grey.pixels[2, 0].numpy() - exact).max() <= 0.5


def test_exif_orientation_is_respected(tmp_path):
    values = np.zeros((2, 4, 3), dtype=np.uint8)
    values[0, 0] = 255  # the upper left corner
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    for name in ("a.png", "b.png"):
        Image.fromarray(values).save(tmp_path / name, exif=exif)
    found = data.pictures(tmp_path)
    assert found.shape == (1, 4, 2)
    expected = np.zeros((4, 2), dtype=np.uint8)
    expected[0, 1] = 255  # the upper right corner
    assert np.array_equal(found.pixels[0, 0].numpy(), expected)
    assert data.pictures(tmp_path, size=(2, 1)).shape == (1, 2, 1)


def test_sizes(tmp_path):
    fill(tmp_path / "square", ["a.png", "b.png"], height=8, width=8)
    assert data.pictures(tmp_path / "square", size=4).shape == (3, 4, 4)
    assert data.pictures(tmp_path / "square", size=16).shape == (3, 16, 16)
    fill(tmp_path / "wide", ["a.png", "b.png"], height=4, width=8)
    assert data.pictures(tmp_path / "wide").shape == (3, 4, 8)
    assert data.pictures(tmp_path / "wide", size=(2, 4)).shape == (3, 2, 4)
    with pytest.raises(UserError, match="distorted"):
        data.pictures(tmp_path / "wide", size=4)


def test_mixed_sizes_need_a_fit_and_a_size(tmp_path):
    fill(tmp_path, ["a.png", "b.png"], height=8, width=8)
    picture(3, height=8, width=9).save(tmp_path / "c.png")
    for size in (None, 4):
        with pytest.raises(UserError, match=r"c.png is 9 by 8 while others are 8 by 8"):
            data.pictures(tmp_path, size=size)
    for fit in (data.Crop(), data.Pad(), data.Stretch()):
        assert data.pictures(tmp_path, size=4, fit=fit).shape == (3, 4, 4)
        with pytest.raises(UserError, match="needs a size"):
            data.pictures(tmp_path, fit=fit)


def test_mixed_sizes_are_also_seen_between_the_probed_headers(tmp_path):
    fill(tmp_path, [f"{i:03d}.png" for i in range(120)])
    picture(3, height=6, width=7).save(tmp_path / "001.png")
    with pytest.raises(UserError, match=r"001.png is 7 by 6"):
        data.pictures(tmp_path)


def test_the_three_fits(tmp_path):
    """Four stripes of 4 x 8 pixels: the crop keeps the middle two, the padding all, the stretch all, narrower."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    values = np.repeat(np.array([colours], dtype=np.uint8), 4, axis=1).repeat(8, axis=0)  # 8 high, 16 wide
    for name in ("a.png", "b.png"):
        Image.fromarray(values).save(tmp_path / name)

    def rows(fit, size=8):
        return data.pictures(tmp_path, size, fit=fit).pixels[0].permute(1, 2, 0)

    assert torch.equal(rows(data.Crop()), torch.from_numpy(values[:, 4:12]))
    padded = rows(data.Pad((1, 2, 3)), 16)
    assert torch.equal(padded[4:12], torch.from_numpy(values))
    assert (padded[:4] == torch.tensor([1, 2, 3])).all() and (padded[12:] == torch.tensor([1, 2, 3])).all()
    stretched = rows(data.Stretch())
    filtered = Image.fromarray(values).resize((8, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(stretched.numpy(), np.asarray(filtered))


def test_a_large_jpeg_is_shrunk_from_a_reduced_decoding_without_a_visible_difference(tmp_path):
    ramp = np.linspace(0, 255, 512)[None, :, None] * np.ones((400, 1, 3))
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / name, quality=95)
    found = data.pictures(tmp_path, 16, fit=data.Crop()).pixels[0, 0].numpy().astype(float)
    expected = (512 - 400) / 2 + (np.arange(16) + 0.5) * 400 / 16
    assert np.abs(found - expected[None] / 2).max() < 2


def test_a_broken_picture_is_named_and_skipped_only_on_request(tmp_path):
    fill(tmp_path, ["a/1.png", "a/2.png", "b/3.png", "b/4.jpg"], height=40, width=40)
    whole = (tmp_path / "b/4.jpg").read_bytes()
    (tmp_path / "b/4.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a/2.png").write_text("not a picture")
    for path in (tmp_path, zipped(tmp_path, tmp_path.parent / f"{tmp_path.name}.zip")):
        with pytest.raises(UserError, match=r"a/2.png is broken"):
            data.pictures(path)
        found = data.pictures(path, skip_broken=True)
        assert found.names == ["a/1.png", "b/3.png"] and found.labels.tolist() == [0, 1]
        assert found.source["skipped"] == ["a/2.png", "b/4.jpg"]
        assert np.array_equal(found.pixels[1].numpy(), np.asarray(picture(2, 40, 40)).transpose(2, 0, 1))
        assert data.load(found.source).fingerprint == found.fingerprint


def test_missing_empty_and_single(tmp_path):
    with pytest.raises(UserError, match="There is no"):
        data.pictures(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no pictures"):
        data.pictures(tmp_path)
    fill(tmp_path, ["a.png"])
    with pytest.raises(UserError, match="only one picture"):
        data.pictures(tmp_path)
    with pytest.raises(UserError, match="single picture"):
        data.pictures(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(UserError, match="only one picture"):
        data.pictures(tmp_path, skip_broken=True)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="broken"):
        data.pictures(tmp_path, skip_broken=True)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.zip").write_text("not a zip")
    with pytest.raises(UserError, match="not a zip file"):
        data.pictures(tmp_path / "a.zip")
    (tmp_path / "a.tar").write_text("")
    with pytest.raises(UserError, match="cannot be read"):
        data.pictures(tmp_path / "a.tar")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(UserError, match="has no pictures"):
        data.pictures(tmp_path / "empty.zip")


def test_formats_that_are_not_read_are_named_not_overlooked(tmp_path):
    fill(tmp_path, ["a.png", "b.png"])
    (tmp_path / "c.HEIC").write_bytes(b"....ftypheic")
    with pytest.raises(UserError, match=r"c.HEIC is broken, or in a format that is not read"):
        data.pictures(tmp_path)
    assert data.pictures(tmp_path, skip_broken=True).source["skipped"] == ["c.HEIC"]


def test_a_damaged_zip_entry_is_a_broken_picture(tmp_path):
    fill(tmp_path / "in", ["a.png", "b.png", "c.png"])
    path = zipped(tmp_path / "in", tmp_path / "in.zip")
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 10] ^= 255
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"a.png is broken"):
        data.pictures(path)


def test_decompression_bombs_are_refused(tmp_path):
    fill(tmp_path, ["a.png", "b.png"])
    header = b"IHDR" + struct.pack(">II5B", 20000, 20000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "bomb.png").write_bytes(content + struct.pack(">I", 8) + b"IDAT")
    with pytest.raises(UserError, match=r"bomb.png has more pixels"):
        data.pictures(tmp_path, size=6, fit=data.Crop(), skip_broken=True)
    with pytest.raises(UserError, match="GB of memory"):
        data.pictures(tmp_path, size=10**7, fit=data.Crop())


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"size": (4, 4, 4)},
        {"size": 4.5},
        {"channels": 4},
        {"background": (0, 0, 256)},
        {"background": (0, 0)},
        {"validation": 0},
        {"block": 0},
        {"size": 4, "fit": data.Pad((1, 2, -3))},
    ],
)
def test_bad_options_are_refused_before_anything_is_read(options):
    with pytest.raises(UserError) as raised:
        data.pictures("nowhere", **options)
    assert "There is no" not in str(raised.value)


def test_progress_ends_at_the_total(tmp_path):
    fill(tmp_path, [f"{i}.png" for i in range(130)])
    seen = []
    data.pictures(tmp_path, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(64, 130), (128, 130), (130, 130)]


def test_load_rebuilds_all_options_and_sees_a_change(tmp_path):
    fill(tmp_path, ["x/a.png", "x/b.png", "y/c.png"], height=8, width=10)
    found = data.pictures(
        tmp_path, (4, 6), channels=1, fit=data.Pad((9, 9, 9)), background=(1, 2, 3), validation=0.4, block=2
    )
    source = json.loads(json.dumps(found.source))
    again = data.load(source)
    assert again.source == source and again.fingerprint == found.fingerprint
    assert again.names == found.names and again.validation == 0.4 and again.block == 2
    picture(77, 8, 10).save(tmp_path / "y/c.png")
    with pytest.raises(UserError, match="not those recorded"):
        data.load(source)
    with pytest.raises(UserError, match="There is no"):
        data.load({**source, "path": str(tmp_path / "gone")})
    with pytest.raises(UserError, match="no kind of data"):
        data.load({"kind": "sounds"})


def test_reading_again_from_another_folder_keeps_the_absolute_path(tmp_path, monkeypatch):
    fill(tmp_path / "in", ["a.png", "b.png"])
    monkeypatch.chdir(tmp_path)
    found = data.pictures("in")
    monkeypatch.chdir("/")
    assert data.load(found.source).fingerprint == found.fingerprint


def test_links_are_followed_but_not_in_circles(tmp_path):
    fill(tmp_path / "elsewhere", ["1.png", "2.png"])
    fill(tmp_path / "in/dog", ["3.png"])
    (tmp_path / "in/cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/dog/loop").symlink_to(tmp_path / "in")
    assert data.pictures(tmp_path / "in").names == ["cat/1.png", "cat/2.png", "dog/3.png"]


def test_a_picture_read_from_memory_equals_pillows_own_reading(tmp_path):
    buffer = io.BytesIO()
    picture(5, 32, 32).save(buffer, "JPEG", quality=90)
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(buffer.getvalue())
    own = np.asarray(Image.open(buffer)).transpose(2, 0, 1)
    assert np.array_equal(data.pictures(tmp_path).pixels[0].numpy(), own)
