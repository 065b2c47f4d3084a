"""Damaged and odd inputs, and what is said of each."""

from __future__ import annotations

import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from pipeline.errors import ScanError
from pipeline.formats.dicom.reading import read_dicom


@dataclass(frozen=True)
class Bench:
    """What a case makes its input of."""

    folder: Path
    series: Callable[..., Path]
    multiframe: Callable[..., Path]
    affine: Callable[..., NDArray[np.float64]]
    volume: NDArray[np.int16]

    def edited(self, at: int | None = None, **values: Any) -> Path:
        """A series with elements set, in every slice or in one; None takes an element away."""

        def edit(header: Dataset, k: int) -> None:
            for keyword, value in values.items() if at in (None, k) else ():
                if value is None:
                    delattr(header, keyword)
                else:
                    setattr(header, keyword, value)

        return self.series(edit=edit)


@pytest.fixture
def bench(tmp_path, write_series, write_multiframe, make_affine, numbered_volume) -> Bench:
    return Bench(tmp_path, write_series, write_multiframe, make_affine, numbered_volume)


CASES: dict[str, tuple[Callable[[Bench], Path], str]] = {}


def case(expected: str) -> Callable[[Callable[[Bench], Path]], Callable[[Bench], Path]]:
    """Add a case: the line that is expected, a regular expression."""

    def add(make: Callable[[Bench], Path]) -> Callable[[Bench], Path]:
        CASES[make.__name__] = make, expected
        return make

    return add


# What is no DICOM at all.


@case("expected DICOM files, got no such file or folder")
def nothing_there(bench):
    return bench.folder / "missing"


@case("expected DICOM files or LGG slices, got no files; name the folder that holds them")
def an_empty_folder(bench):
    (bench.folder / "empty").mkdir()
    return bench.folder / "empty"


@case(r"expected DICOM files, got 2 of other kinds \(a.txt, b.png\); name a NIfTI file")
def a_folder_of_other_files(bench):
    for name in ("a.txt", "b.png"):
        (bench.folder / name).write_text("nothing " * 40)
    return bench.folder


@case("expected images of an MR series, got 2 DICOM files without pixels")
def reports_and_plans_only(bench):
    for name in ("reportsi.dcm", "rtplan.dcm"):
        shutil.copy(get_testdata_file(name), bench.folder / name)
    return bench.folder


@case(r"expected an MR series, got .*\(series 1, '', 1 images\)")
def a_ct(bench):
    shutil.copy(get_testdata_file("CT_small.dcm"), bench.folder)
    return bench.folder


# Which series.


@case(
    r"expected one FLAIR series, got [\d.]+\.5 \(series 5, 't2_tirm_tra_dark-fluid', 7 images\); "
    r"[\d.]+\.6 \(series 6, 'FLAIR cor', 7 images\); name one with --series UID$"
)
def two_flairs(bench):
    bench.series(uid="1.2.826.0.1.3680043.10.1.6", description="FLAIR cor", number=6, prefix="B")
    return bench.series()


@case(r"expected a FLAIR series, got .*'t2_tse_tra', 7 images\); .*'t1_tse', 7 images\); name one with --series UID$")
def no_flair(bench):
    bench.series(uid="1.2.3.4", description="t1_tse", number=6, prefix="B")
    return bench.series(description="t2_tse_tra")


@case(r"expected a FLAIR series, got .*'t1_flair_tra'")
def one_series_that_says_t1(bench):
    return bench.series(description="t1_flair_tra")


@case("expected at least 2 slices, got IM005 alone; name the folder of the whole series")
def one_slice_of_a_series(bench):
    folder = bench.series()
    for path in folder.iterdir():
        if path.name != "IM005":
            path.unlink()
    return folder


@case("expected at least 2 slices, got IM003 alone; name the folder of the whole series")
def one_file_of_a_series(bench):
    return bench.series() / "IM003"


# Where the slices lie.


@case(r"expected slices every 4.50 mm, but 1 slice is missing: between IM\d+ \(at 16.8 mm\) and IM\d+ \(at 25.8 mm\)$")
def a_gap(bench):
    return bench.series(edit=lambda header, k: k != 3)


@case(r"expected slices every 4.50 mm, but 3 slices are missing: between .* and at 1 more places$")
def two_gaps(bench):
    volume = np.concatenate([bench.volume, bench.volume], axis=2)
    return bench.series(volume=volume, edit=lambda header, k: k not in (3, 7, 8))


@case(r"but 1 slice is missing: .* \[unreadable: IM\d+: expected a SeriesInstanceUID")
def a_gap_where_a_file_is_damaged(bench):
    folder = bench.series()
    path = next(path for path in folder.iterdir() if b"1.2.826.0.1.3680043.10.1.5.4" in path.read_bytes()[:600])
    path.write_bytes(path.read_bytes()[:250])
    return folder


@case(r"expected evenly spaced slices within 0.1 mm, got 3.80 to 5.20 mm: IM\d+ and IM\d+ lie 5.20 mm apart")
def an_uneven_slice(bench):
    return bench.edited(3, ImagePositionPatient=[21.5, -33.25, 7.75 + 3 * 4.5 + 0.7])


@case(r"expected one image at each position, got B\d+ and IM\d+, which differ at 12.2 mm along the normal")
def two_images_at_one_position(bench):
    bench.series(volume=bench.volume[::-1], prefix="B", edit=lambda header, k: k == 1)
    return bench.series()


@case(r"which differ at 7.8 mm along the normal \(EchoTime 80 and 102\); the series holds more than one volume")
def two_echoes(bench):
    def echo(time):
        return lambda header, k: setattr(header, "EchoTime", time)

    bench.series(volume=bench.volume[::-1], prefix="B", edit=echo("102"))
    return bench.series(edit=echo("80"), prefix="A")


@case(r"which differ at 12.2 mm along the normal$")
def the_same_picture_beside_itself(bench):
    def move(header, k):
        header.ImagePositionPatient[0] = 40
        return k == 1

    bench.series(prefix="B", edit=move)
    return bench.series()


@case(r"expected slices of one orientation and size, got 2 kinds: 7 like COR000 \(coronal, .*; 7 like IM000 \(axial, ")
def two_orientations(bench):
    bench.series(affine=bench.affine("LIP"), prefix="COR")
    return bench.series()


@case(r"expected slices of one orientation and size, got 2 kinds: 14 like IM000 \(axial, .*; 6 like COR001 \(coronal, ")
def more_slices_of_another_orientation_than_a_localiser_has(bench):
    bench.series(affine=bench.affine("LIP"), prefix="COR", edit=lambda header, k: k != 0)
    return bench.series(volume=np.concatenate([bench.volume, bench.volume], axis=2))


@case(r"expected slices of one orientation and size, got 2 kinds: 7 like IM000 \(axial, .*; 4 like COR\d+ \(coronal, ")
def few_slices_with_half_as_many_of_another_orientation(bench):
    bench.series(affine=bench.affine("LIP"), prefix="COR", edit=lambda header, k: k < 4)
    return bench.series()


@case(r"expected slices of one orientation and size, got 21 kinds: 1 like IM\d+ .*; and others")
def a_volume_shown_from_all_sides(bench):
    def turn(header, k):
        angle = 0.1 * k
        header.ImageOrientationPatient = [f"{value:.8f}" for value in (np.cos(angle), np.sin(angle), 0, 0, 0, -1)]

    return bench.series(volume=np.concatenate([bench.volume] * 4, axis=2), edit=turn)


@case(r"expected slices of one orientation and size, got 2 kinds: .* 11 x 13 pixels .* 10 x 13 pixels")
def two_sizes(bench):
    bench.series(volume=bench.volume[:10], prefix="Z")
    return bench.series()


@case(r"expected slices that lie straight above each other within 0.1 mm, got IM\d+ shifted in plane by 6.00 mm")
def slices_shifted_as_by_a_tilted_gantry(bench):
    def shift(header, k):
        header.ImagePositionPatient[1] = float(header.ImagePositionPatient[1]) + k

    return bench.series(edit=shift)


@case(r"IM\d+: expected its position in the patient \(ImagePositionPatient\), got none that can be read")
def a_missing_position(bench):
    return bench.edited(2, ImagePositionPatient=None)


@case(r"expected its position in the patient \(ImagePositionPatient\), got none that can be read")
def a_position_of_two_numbers(bench):
    return bench.edited(2, ImagePositionPatient=["1", "2"])


@case(r"expected its position in the patient \(ImagePositionPatient\), got none that can be read")
def a_position_that_is_no_number(bench):
    folder = bench.series()
    path = folder / "IM003"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"21.5\\-33.25\\", b"21.5\\nowhere\\"[:12].ljust(12, b"x")))
    return folder


@case(r"expected the distance of its pixels \(PixelSpacing\), got none that can be read")
def no_pixel_spacing(bench):
    return bench.edited(PixelSpacing=None)


@case(r"expected pixels of at least 0.01 mm and at most 1200 mm in all along an axis, got PixelSpacing 0 x 0.9 mm")
def a_pixel_spacing_of_zero(bench):
    return bench.edited(PixelSpacing=["0", "0.9"])


@case(r"got PixelSpacing 900 x 900 mm for \(13, 11\)")
def a_pixel_spacing_in_micrometres(bench):
    return bench.edited(PixelSpacing=["900", "900"])


@case("expected slices over at most 1200 mm, got 4500.0 mm from slice to slice")
def positions_in_micrometres(bench):
    def scale(header, k):
        header.ImagePositionPatient[2] = 4500.0 * k

    return bench.series(edit=scale)


@case(r"expected two unit vectors at right angles \(ImageOrientationPatient\), got 1, 0, 0, 1, 0, 0")
def rows_along_columns(bench):
    return bench.edited(ImageOrientationPatient=["1", "0", "0", "1", "0", "0"])


# What the pixels are.


@case("expected one grey value a pixel, got RGB")
def colours(bench):
    def colour(header, k):
        header.SamplesPerPixel, header.PhotometricInterpretation, header.PlanarConfiguration = 3, "RGB", 0

    return bench.series(edit=colour)


@case("expected at least 2 x 2 pixels, got Rows '' and Columns '11'")
def no_rows(bench):
    return bench.edited(Rows=None)


@case("expected 8, 16 or 32 bits a pixel, got BitsAllocated 12")
def odd_bits(bench):
    return bench.edited(2, BitsAllocated=12)


@case(r"IM\d+: expected PixelData, got a file without \(cut off\?\)")
def no_pixel_data(bench):
    return bench.edited(2, PixelData=None)


@case(r"IM004: expected 286 bytes of pixels for 1 x 13 x 11 of 16 bits, got 186 \(cut off\?\)")
def a_slice_cut_off_in_its_pixels(bench):
    folder = bench.series()
    path = folder / "IM004"
    path.write_bytes(path.read_bytes()[:-100])
    return folder


@case(r"expected 8,589,672,450 bytes of pixels for 1 x 65535 x 65535 of 16 bits, got 286 \(cut off\?\)")
def a_bomb_of_pixels(bench):
    return bench.edited(Rows=65535, Columns=65535)


@case("got .* compressed ones, too few to hold them")
def a_bomb_of_compressed_pixels(bench):
    def inflate(header, k):
        header.compress(RLELossless, generate_instance_uid=False)
        header.Rows = header.Columns = 65535

    return bench.series(edit=inflate)


@case("expected at most 536,870,912 voxels in the series, got more")
def a_series_of_more_pixels_than_a_scan_has(bench):
    def inflate(header, k):
        header.compress(RLELossless, generate_instance_uid=False)
        header.Rows = header.Columns = 10000
        header.PixelSpacing = ["0.1", "0.1"]
        header.PixelData += bytes(200_000)

    return bench.series(edit=inflate)


@case("expected a finite RescaleSlope other than 0, got 0")
def a_slope_of_zero(bench):
    return bench.edited(RescaleSlope="0", RescaleIntercept="5")


@case("expected finite intensities, got NaN or infinite ones")
def a_slope_beyond_float32(bench):
    return bench.edited(RescaleSlope="1e300", RescaleIntercept="0")


@case("expected intensities that vary, got zeros only")
def a_black_series(bench):
    return bench.series(volume=np.zeros_like(bench.volume))


@case(r"its transfer syntax \(High-Throughput JPEG 2000 .* is not supported; decompress it first")
def an_unsupported_compression(bench):
    return bench.series(syntax=HTJ2KLossless, encode=lambda frame: bytes(100))


@case(r"its pixels \(JPEG 2000 .*\) cannot be decoded \(damaged\?\)")
def damaged_jpeg_2000(bench):
    return bench.series(syntax=JPEG2000Lossless, encode=lambda frame: b"\xff\x4f\xff\x51" + bytes(100))


@case(r"its pixels \(RLE Lossless\) cannot be decoded \(damaged\?\)")
def damaged_rle(bench):
    return bench.series(syntax=RLELossless, encode=lambda frame: bytes(100))


@case(r"its pixels \(JPEG-LS Lossless .*\) cannot be decoded \(damaged\?\)")
def jpeg_ls_cut_off(bench):
    import imagecodecs

    return bench.series(
        syntax=JPEGLSLossless, encode=lambda frame: imagecodecs.jpegls_encode(frame.view(np.uint16))[:-40]
    )


@case(r"its pixels \(JPEG Lossless.*\) cannot be decoded \(damaged\?\)")
def lossless_jpeg_of_another_size(bench):
    import imagecodecs

    return bench.series(
        syntax=JPEGLosslessSV1, encode=lambda frame: imagecodecs.ljpeg_encode(frame.view(np.uint16)[:-1].copy())
    )


@case(r"\[unreadable: IM\d+: its transfer syntax \(deflated\) is not supported; save it as explicit VR")
def deflated_files(bench):
    return bench.series(syntax=DeflatedExplicitVRLittleEndian)


@case(r"expected DICOM.*\[unreadable: IM\d+: is empty; IM\d+: is empty; IM\d+: is empty; and 4 more\]")
def empty_files(bench):
    folder = bench.series()
    for path in folder.iterdir():
        path.write_bytes(b"")
    return folder


# Multi-frame files.


@case(r"expected the position of each of 7 frames \(PerFrameFunctionalGroupsSequence\), got 0")
def frames_without_positions(bench):
    return bench.multiframe(edit=lambda header: delattr(header, "PerFrameFunctionalGroupsSequence"))


@case(r"enhanced.dcm: expected 286,000,000 bytes of pixels for 1000000 x 13 x 11 of 16 bits, got 2,002 \(cut off\?\)")
def a_bomb_of_frames(bench):
    return bench.multiframe(edit=lambda header: setattr(header, "NumberOfFrames", 1_000_000))


@case("enhanced.dcm, frame 3: expected its position in the patient")
def a_frame_without_position(bench):
    def remove(header):
        del header.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence

    return bench.multiframe(edit=remove)


@case("got enhanced.dcm, frame 2 of 7 and enhanced.dcm, frame 5 of 7, which differ")
def two_frames_at_one_position(bench):
    def move(header):
        groups = header.PerFrameFunctionalGroupsSequence
        groups[4].PlanePositionSequence = groups[1].PlanePositionSequence

    return bench.multiframe(edit=move)


@case("expected one multi-frame file, or one file a slice, got 2 multi-frame files")
def a_series_spread_over_multi_frame_files(bench):
    bench.multiframe("study/a", order=[0, 1, 2])
    bench.multiframe("study/b", order=[3, 4, 5, 6])
    return bench.folder / "study"


# Zips.


def zip_of(bench: Bench, name: str = "study.zip") -> Path:
    folder = bench.series()
    with zipfile.ZipFile(bench.folder / name, "w") as file:
        for path in sorted(folder.iterdir()):
            file.write(path, path.name)
    return bench.folder / name


@case("expected a complete zip archive, got a damaged one")
def a_zip_cut_off(bench):
    path = zip_of(bench)
    path.write_bytes(path.read_bytes()[:-200])
    return path


@case(r"but 1 slice is missing: .* \[unreadable: IM\d+: cannot be read as DICOM \(BadZipFile\)\]")
def a_zip_with_a_damaged_member(bench):
    path = zip_of(bench)
    with zipfile.ZipFile(path) as file:
        member = next(one for one in file.infolist() if b"680043.10.1.5.4" in file.read(one))  # of the fourth slice
    content = bytearray(path.read_bytes())
    content[member.header_offset + 1000] ^= 255  # in its pixels: the member's checksum no longer fits
    path.write_bytes(content)
    return path


@case("expected a zip that opens without a password, got an encrypted one")
def an_encrypted_zip(bench):
    path = zip_of(bench)
    content = bytearray(path.read_bytes())
    for match in re.finditer(b"PK\x01\x02", bytes(content)):
        content[match.start() + 8] |= 1
    path.write_bytes(content)
    return path


@case(r"expected at most 17,179,869,184 bytes unpacked, got a zip that declares [\d,]+")
def a_zip_bomb(bench):
    path = zip_of(bench)
    content = bytearray(path.read_bytes())
    for match in re.finditer(b"PK\x01\x02", bytes(content)):
        content[match.start() + 24 : match.start() + 28] = struct.pack("<I", 2**32 - 2)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_is_refused_with_the_reason(name, bench, refusal):
    make, expected = CASES[name]
    path = make(bench)
    message = refusal(path)
    assert re.search(expected, message.removeprefix(f"{path}: ")), message


def test_a_series_that_is_not_there_is_refused_with_those_that_are(write_series, refusal):
    message = refusal(write_series(), series="1.2.3")
    assert "expected the series 1.2.3, got 1.2.826.0.1.3680043.10.1.5 (series 5," in message


def test_a_named_series_must_be_mr(tmp_path, refusal):
    path = tmp_path / "CT_small.dcm"
    shutil.copy(get_testdata_file("CT_small.dcm"), path)
    uid = "1.3.6.1.4.1.5962.1.3.1.1.20040119072730.12322"
    assert f"expected an MR series, got modality CT: {uid}" in refusal(path, series=uid)


@pytest.mark.parametrize("study", ["98892003/MR2", "98892003/MR700", "77654033"])
def test_a_scanners_studies_without_flair_are_refused_with_their_series(study, refusal):
    path = Path(get_testdata_file("DICOMDIR")).parent / study
    assert "expected a" in refusal(path)


def test_a_truncated_scanner_file_is_refused(tmp_path, refusal):
    for name in ("MR_small.dcm", "MR_truncated.dcm"):
        shutil.copy(get_testdata_file(name), tmp_path)
    assert "MR_truncated.dcm: expected 8,192 bytes of pixels for 1 x 64 x 64 of 16 bits, got" in refusal(tmp_path)


def test_pydicoms_log_is_not_for_users(write_series, caplog):
    folder = write_series()
    for path in folder.iterdir():  # a value against the standard's letter, in an element that is needed
        path.write_bytes(path.read_bytes().replace(b"680043.10.1.5", b"680043.10.1.x"))
    read_dicom(folder)
    assert caplog.records == []


def test_nothing_is_said_of_a_patient_even_when_the_header_is_read_wrongly(write_series, refusal):
    folder = write_series()
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\x10\x00\x10\x00PN\x08\x00", b"\x10\x00\x10\x00XX\xff\xff"))
    refusal(folder)


def test_a_damaged_header_is_refused_or_read_but_never_a_crash(write_series):
    """Of a file with single bytes changed, ScanError or a scan is all that comes."""
    folder = write_series()
    path = folder / "IM003"
    content = path.read_bytes()
    random = np.random.default_rng(11)
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(content)
        for place in random.integers(128, len(content) - 286, 3):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            read_dicom(folder)
        except ScanError:
            outcomes.add("refused")
        else:
            outcomes.add("read")
    assert outcomes == {"refused", "read"}
