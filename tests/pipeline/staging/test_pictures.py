from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ScanError
from pipeline.staging.pictures import read_picture


@pytest.mark.parametrize("name", ["slice.png", "slice.jpg"])
def test_grey_pictures_are_read_as_stored_without_a_note(save_slice, name, brain):
    picture = read_picture(
        save_slice(brain[7], name, quality=100) if name.endswith("jpg") else save_slice(brain[7], name)
    )
    assert picture.pixels.shape == (208, 176)
    assert np.abs(picture.pixels - brain[7]).max() <= (3 if name.endswith("jpg") else 0)
    assert (picture.color, picture.notes) == (0, ())


def test_sixteen_bits_keep_their_values(save_slice, brain):
    deep = brain[7].astype(np.uint16) * 250 + 3
    assert np.array_equal(read_picture(save_slice(deep)).pixels, deep)


def test_grey_stored_as_color_has_no_color_and_the_same_greys(save_slice, brain):
    picture = read_picture(save_slice(np.stack([brain[7]] * 3, axis=-1)))
    assert picture.color == 0
    np.testing.assert_allclose(picture.pixels, brain[7], atol=1e-3)


def test_color_is_measured(save_slice, brain):
    picture = read_picture(save_slice(np.stack([brain[7], brain[7], brain[7] // 2], axis=-1)))
    assert picture.color == pytest.approx((brain[7] - brain[7] // 2.0).mean(), rel=0.01)


def test_color_becomes_grey_as_bright_as_it_looks(save_slice, brain):
    red, green, blue = brain[7], brain[7] // 2, brain[7] // 3
    picture = read_picture(save_slice(np.stack([red, green, blue], axis=-1)))
    np.testing.assert_allclose(picture.pixels, 0.299 * red + 0.587 * green + 0.114 * blue, atol=1e-3)


def test_a_palette_gives_what_it_shows(tmp_path, brain):
    indexed = Image.fromarray((brain[7] > 100).astype(np.uint8), "P")
    indexed.putpalette([10, 10, 10, 200, 200, 200])
    indexed.save(tmp_path / "p.png")
    assert set(np.unique(read_picture(tmp_path / "p.png").pixels.round())) == {10, 200}


def test_transparent_parts_lie_on_black_and_it_is_said(save_slice, brain):
    alpha = np.where(np.arange(176) < 90, 255, 0) * np.ones((208, 1))
    picture = read_picture(save_slice(np.stack([brain[7], alpha.astype(np.uint8)], axis=-1)))
    np.testing.assert_allclose(picture.pixels[:, :90], brain[7][:, :90], atol=1e-3)
    assert not picture.pixels[:, 90:].any()
    assert picture.notes == ("the picture's transparent parts were laid on black",)


def test_a_picture_is_turned_as_its_exif_says(tmp_path, brain):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(np.ascontiguousarray(np.rot90(brain[7]))).save(tmp_path / "turned.png", exif=exif)
    picture = read_picture(tmp_path / "turned.png")
    assert np.array_equal(picture.pixels, brain[7])
    assert "EXIF" in picture.notes[0]


def refused(path, *words):
    with pytest.raises(ScanError) as caught:
        read_picture(path)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(str(path))
    for word in words:
        assert word in line


def test_other_sizes_are_refused_with_what_is_expected(save_slice, brain):
    refused(save_slice(brain[7][:-1]), "brain-extracted T1", "176x208 pixels of 1 mm", "got a picture of 176x207")


def test_a_slice_on_its_side_is_refused(save_slice, brain):
    refused(save_slice(np.ascontiguousarray(brain[7].T)), "208x176", "on its side")


def test_a_bomb_is_refused_by_its_header_alone(tmp_path):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))))
    refused(path, "bomb.png")


def test_cmyk_is_refused(tmp_path, brain):
    Image.fromarray(brain[7]).convert("CMYK").save(tmp_path / "c.jpg")
    refused(tmp_path / "c.jpg", "CMYK", "save it as grey PNG")


def test_an_animation_is_refused(tmp_path, brain):
    frames = [Image.fromarray(frame) for frame in brain[:3]]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    refused(tmp_path / "moving.png", "3 frames")


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg"])
def test_a_truncated_picture_is_refused(save_slice, name, brain):
    path = save_slice(brain[7], name)
    path.write_bytes(path.read_bytes()[:3000])
    refused(path, "copy or download it again")


def test_a_picture_of_one_grey_is_refused(save_slice, brain):
    refused(save_slice(np.full_like(brain[7], 7)), "7 in every pixel")


def test_what_only_begins_as_a_picture_is_refused(tmp_path):
    path = tmp_path / "half.png"
    path.write_bytes(b"\x89PNG and then something else")
    refused(path, "begins as one, but is none")
