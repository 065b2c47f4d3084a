from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from pipeline.formats.dicom.codecs import choose_plugin, read_stream_shape
from pipeline.formats.dicom.reading import read_dicom


def as_j2k(frame):
    return imagecodecs.jpeg2k_encode(frame, codecformat="j2k", level=0, reversible=True)


def as_jp2(frame):
    """Wrapped in boxes, which DICOM forbids and some write."""
    return imagecodecs.jpeg2k_encode(frame, codecformat="jp2", level=0, reversible=True)


def as_jpeg_ls(frame):
    return imagecodecs.jpegls_encode(frame.view(np.uint16))


def as_lossless_jpeg(frame):
    return imagecodecs.ljpeg_encode(frame.view(np.uint16))


LOSSLESS = {
    "JPEG-LS": (JPEGLSLossless, as_jpeg_ls),
    "JPEG 2000 lossless": (JPEG2000Lossless, as_j2k),
    "JPEG 2000": (JPEG2000, as_j2k),
    "JP2": (JPEG2000Lossless, as_jp2),
    "lossless JPEG": (JPEGLossless, as_lossless_jpeg),
    "lossless JPEG, first order": (JPEGLosslessSV1, as_lossless_jpeg),
}


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_a_losslessly_compressed_series_comes_back_voxel_by_voxel(name, dtype, write_series):
    syntax, encode = LOSSLESS[name]
    limits = np.iinfo(dtype)
    volume = np.random.default_rng(3).integers(limits.min, limits.max, (11, 13, 7), dtype, endpoint=True)
    found = read_dicom(write_series(volume=volume, syntax=syntax, encode=encode))
    np.testing.assert_array_equal(found.scan.image[0], volume)


def test_rle_comes_back_voxel_by_voxel(write_series, numbered_volume):
    found = read_dicom(write_series(edit=lambda header, k: header.compress(RLELossless)))
    np.testing.assert_array_equal(found.scan.image[0], numbered_volume)


@pytest.mark.parametrize("name", ["JPEG-LS", "JPEG 2000", "lossless JPEG"])
def test_a_compressed_multi_frame_file_comes_back_frame_by_frame(name, write_multiframe, numbered_volume):
    syntax, encode = LOSSLESS[name]
    found = read_dicom(write_multiframe(order=[3, 0, 6, 1, 5, 2, 4], syntax=syntax, encode=encode))
    np.testing.assert_array_equal(found.scan.image[0], 2 * numbered_volume.astype(np.float32) + np.arange(7))


@pytest.mark.parametrize(
    ("syntax", "dtype", "encode", "error"),
    [
        (JPEGBaseline8Bit, np.uint8, lambda frame: imagecodecs.jpeg8_encode(frame, level=98), 4),
        (JPEGExtended12Bit, np.uint8, lambda frame: imagecodecs.jpeg8_encode(frame, level=98), 4),
        (JPEGExtended12Bit, np.uint16, lambda frame: imagecodecs.jpeg_encode(frame, level=98, bitspersample=12), 4),
        (JPEGLSNearLossless, np.uint8, lambda frame: imagecodecs.jpegls_encode(frame, level=2), 2),
    ],
)
def test_a_lossily_compressed_series_comes_back_nearly(syntax, dtype, encode, error, write_series):
    grid = np.stack(np.indices((11, 13, 7)))
    volume = (10 * grid[0] + 7 * grid[1] + 3 * grid[2]).astype(dtype)
    found = read_dicom(write_series(volume=volume, syntax=syntax, encode=encode))
    assert np.abs(found.scan.image[0] - volume).max() <= error


@pytest.mark.parametrize(
    "name", ["693_J2KI", "J2K_pixelrep_mismatch", "JPEG2000", "JPEGLSNearLossless_16", "MR_small_jpeg_ls_lossless"]
)
def test_files_of_scanners_are_decoded(name):
    header = dcmread(get_testdata_file(f"{name}.dcm"))
    syntax = header.file_meta.TransferSyntaxUID
    pixels, _ = get_decoder(syntax).as_array(header, raw=True, decoding_plugin=choose_plugin(syntax) or "")
    assert pixels.shape == (header.Rows, header.Columns)
    if name.startswith("MR"):
        np.testing.assert_array_equal(pixels, dcmread(get_testdata_file("MR_small.dcm")).pixel_array)


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_stream_says_its_size_before_it_is_decoded(name):
    stream = LOSSLESS[name][1](np.zeros((13, 11), np.uint16))
    assert read_stream_shape(stream) == (13, 11)
    assert read_stream_shape(stream[:15]) is None


def test_a_jpeg_size_is_found_behind_fill_bytes_and_comments():
    stream = imagecodecs.jpeg8_encode(np.zeros((13, 11), np.uint8))
    assert read_stream_shape(stream) == (13, 11)
    assert read_stream_shape(b"\xff\xd8\xff\xff\xff\xfe\x00\x04hi" + stream[2:]) == (13, 11)


@pytest.mark.parametrize(
    "stream", [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8" + b"\xff\xe0\0\0" * 50, b"no"]
)
def test_what_is_no_stream_has_no_size(stream):
    assert read_stream_shape(stream) is None


@pytest.mark.parametrize("name", LOSSLESS)
def test_no_cut_or_changed_stream_ends_or_hangs_the_process(name, write_series, refusal):
    syntax, encode = LOSSLESS[name]
    random = np.random.default_rng(5)
    frame = random.integers(0, 4000, (61, 67)).astype(np.int16)
    stream = encode(frame)
    header = dcmread(write_series(volume=frame.T[:, :, None], syntax=syntax, encode=encode) / "IM000")
    decoder, plugin = get_decoder(syntax), choose_plugin(syntax)
    np.testing.assert_array_equal(decoder.as_array(header, raw=True, decoding_plugin=plugin)[0], frame)
    from pydicom.encaps import encapsulate

    outcomes = []
    for trial in range(40):
        damaged = bytearray(stream[: random.integers(1, len(stream) - 4)] if trial % 2 else stream)
        for place in random.integers(0, len(damaged), 3 * (1 - trial % 2)):
            damaged[place] = random.integers(256)
        header.PixelData = encapsulate([bytes(damaged)])
        try:
            pixels, _ = decoder.as_array(header, raw=True, decoding_plugin=plugin)
        except Exception:
            outcomes.append(trial)
        else:
            assert pixels.shape == (61, 67)
    assert set(range(1, 40, 2)) <= set(outcomes)  # what was cut is never taken for a picture


@pytest.mark.parametrize("name", [*LOSSLESS, "JPEG"])
def test_a_stream_larger_than_the_header_says_is_refused_before_it_is_decoded(name, write_series, refusal, monkeypatch):
    decoded = []
    syntax, encode = LOSSLESS.get(
        name, (JPEGBaseline8Bit, lambda frame: imagecodecs.jpeg8_encode(frame.view(np.uint8)))
    )
    folder = write_series(syntax=syntax, encode=lambda frame: encode(np.tile(frame, (3, 1))))
    for function in ("jpeg_decode", "jpegsof3_decode", "jpegls_decode", "jpeg2k_decode"):
        monkeypatch.setattr(imagecodecs, function, decoded.append)
    assert "cannot be decoded" in refusal(folder)
    assert decoded == []


def test_a_cut_lossy_jpeg_is_refused_and_not_filled_with_grey(write_series, refusal, numbered_volume):
    def encode(frame):
        return imagecodecs.jpeg8_encode(frame)[:-30]

    folder = write_series(volume=numbered_volume.astype(np.uint8), syntax=JPEGBaseline8Bit, encode=encode)
    assert "cannot be decoded (damaged?)" in refusal(folder)


def test_what_is_not_supported_is_said_before_anything_is_decoded():
    assert choose_plugin(HTJ2K) is None
    assert choose_plugin(RLELossless) == "pydicom"
