from __future__ import annotations

import gzip
import os
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from pipeline.errors import AR2UNetError, ScanError
from pipeline.formats.nifti import read_scan, write_mask, write_probabilities
from pipeline.formats.scan import Scan

# Fields of the header that speak of intensities; every other one must come back bit by bit.
INTENSITY_FIELDS = {"datatype", "bitpix", "scl_slope", "scl_inter", "cal_min", "cal_max", "descrip", "intent_code"}
INTENSITY_FIELDS |= {"intent_p1", "intent_p2", "intent_p3", "intent_name", "vox_offset"}


def header_fields(path):
    start = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())[:540]
    kind = nib.Nifti1Header if len(start) < 540 or start[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c") else nib.Nifti2Header
    endianness = "<" if start[0] else ">"
    header = kind(start[: kind.sizeof_hdr], endianness, check=False)
    return {name: header[name].tobytes() for name in header.keys() if name not in INTENSITY_FIELDS}  # noqa: SIM118


def corner_mask(shape):
    mask = np.zeros(shape, bool)
    mask[-1, 0, -2:] = True
    return mask


def test_a_scan_has_the_voxels_affine_and_spacing_of_its_file(oriented_nifti, numbered_volume):
    scan = read_scan(oriented_nifti)
    np.testing.assert_array_equal(scan.image, numbered_volume[None])
    assert scan.image.dtype == np.float32
    np.testing.assert_array_equal(scan.affine, nib.load(oriented_nifti).affine)
    assert scan.spacing == pytest.approx((0.9, 1.1, 4.5))
    assert scan.source == str(oriented_nifti)


def test_a_mask_drawn_in_a_corner_comes_back_in_that_corner(oriented_nifti, tmp_path):
    scan = read_scan(oriented_nifti)
    mask = corner_mask(scan.spatial_shape)
    write_mask(mask, scan, tmp_path / "mask.nii.gz")
    written = nib.load(tmp_path / "mask.nii.gz")
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.dataobj, mask)
    np.testing.assert_array_equal(written.affine, scan.affine)


@pytest.mark.parametrize("codes", [(1, 2), (2, 0), (0, 1), (0, 0), (4, 3)])
@pytest.mark.parametrize("unit", ["mm", "micron", "unknown"])
@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_result_keeps_every_geometry_field_of_the_header(make_nifti, tmp_path, codes, unit, image_class):
    spacing = (900.0, 1100.0, 4500.0) if unit == "micron" else (0.9, 1.1, 4.5)
    sform_code, qform_code = codes
    source = make_nifti(
        spacing=spacing, unit=unit, sform_code=sform_code, qform_code=qform_code, image_class=image_class
    )
    scan = read_scan(source)
    assert scan.spacing == pytest.approx((0.9, 1.1, 4.5))
    write_mask(corner_mask(scan.spatial_shape), scan, tmp_path / "mask.nii")
    assert header_fields(tmp_path / "mask.nii") == header_fields(source)
    probabilities = np.linspace(0, 1, 1001, dtype=np.float32).reshape(scan.spatial_shape)
    write_probabilities(probabilities, scan, tmp_path / "probabilities.nii.gz")
    assert header_fields(tmp_path / "probabilities.nii.gz") == header_fields(source)
    written = nib.load(tmp_path / "probabilities.nii.gz")
    np.testing.assert_array_equal(written.get_fdata(dtype=np.float32), probabilities)


def test_what_described_the_intensities_is_cleared(make_nifti, tmp_path, edit_header):
    source = edit_header(make_nifti("flair.nii"), scl_slope=2, scl_inter=3, cal_max=900, intent_code=1002)
    write_mask(np.ones((11, 13, 7)), read_scan(source), tmp_path / "mask.nii")
    header = nib.Nifti1Header((tmp_path / "mask.nii").read_bytes()[:348])
    assert [float(header[name]) for name in ("cal_min", "cal_max", "intent_code")] == [0, 0, 0]
    assert header.get_slope_inter() == (1, 0)
    assert np.asarray(nib.load(tmp_path / "mask.nii").dataobj).max() == 1


def test_big_endian_files_are_read_and_answered_in_kind(make_nifti, tmp_path, numbered_volume):
    source = tmp_path / "big.nii"
    native = nib.load(make_nifti())
    nib.save(nib.Nifti1Image(numbered_volume, None, native.header.as_byteswapped(">")), source)
    assert source.read_bytes()[:4] == b"\0\0\1\x5c"
    scan = read_scan(source)
    np.testing.assert_array_equal(scan.flair, numbered_volume)
    probabilities = (numbered_volume / 1000).astype(np.float32)
    write_probabilities(probabilities, scan, tmp_path / "out.nii")
    assert header_fields(tmp_path / "out.nii") == header_fields(source)
    np.testing.assert_array_equal(nib.load(tmp_path / "out.nii").dataobj, probabilities)


def test_channels_are_t1_flair_t1c_and_a_missing_one_is_flair(make_nifti, numbered_volume):
    flair, t1 = make_nifti(), make_nifti("t1.nii.gz", volume=numbered_volume + 5000)
    t1c = make_nifti("t1c.nii", volume=numbered_volume - 5000)
    np.testing.assert_array_equal(
        read_scan(flair, t1, t1c).image[:, 0, 0, 0] - numbered_volume[0, 0, 0], [5000, 0, -5000]
    )
    np.testing.assert_array_equal(read_scan(flair, t1=t1).image[:, 0, 0, 0] - numbered_volume[0, 0, 0], [5000, 0, 0])
    scan = read_scan(flair, t1c=t1c)
    np.testing.assert_array_equal(scan.image, [numbered_volume, numbered_volume, numbered_volume - 5000.0])
    np.testing.assert_array_equal(scan.flair, numbered_volume)


def test_scaling_is_applied(make_nifti, numbered_volume, edit_header):
    source = edit_header(make_nifti("flair.nii"), scl_slope=0.5, scl_inter=-20)
    np.testing.assert_array_equal(read_scan(source).flair, numbered_volume * 0.5 - 20)
    for unscaled in (0, np.nan):
        np.testing.assert_array_equal(read_scan(edit_header(source, scl_slope=unscaled)).flair, numbered_volume)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8", ">i2", ">f8"])
def test_every_real_data_type_is_read(make_nifti, dtype):
    volume = np.random.default_rng(2).integers(0, 120, (5, 6, 7)).astype(dtype)
    np.testing.assert_array_equal(read_scan(make_nifti(volume=volume)).flair, volume)


def test_a_trailing_axis_of_one_volume_is_accepted_and_kept(make_nifti, tmp_path, numbered_volume):
    source = make_nifti(volume=numbered_volume[..., None])
    scan = read_scan(source)
    assert scan.image.shape == (1, 11, 13, 7)
    write_mask(corner_mask((11, 13, 7)), scan, tmp_path / "mask.nii.gz")
    assert nib.load(tmp_path / "mask.nii.gz").shape == (11, 13, 7, 1)


def test_content_decides_and_not_the_name(make_nifti, tmp_path):
    zipped, plain = make_nifti("a.nii.gz"), make_nifti("b.nii")
    zipped.rename(tmp_path / "c.nii")
    plain.rename(tmp_path / "d.nii.gz")
    np.testing.assert_array_equal(read_scan(tmp_path / "c.nii").image, read_scan(tmp_path / "d.nii.gz").image)


def test_header_extensions_are_skipped_and_dropped(make_nifti, tmp_path, numbered_volume):
    image = nib.load(make_nifti())
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"private" * 40))
    nib.save(image, tmp_path / "with.nii.gz")
    scan = read_scan(tmp_path / "with.nii.gz")
    np.testing.assert_array_equal(scan.flair, numbered_volume)
    write_mask(corner_mask((11, 13, 7)), scan, tmp_path / "mask.nii")
    assert b"private" not in (tmp_path / "mask.nii").read_bytes()


def test_a_file_that_states_no_spacing_has_none(make_nifti):
    assert read_scan(make_nifti(spacing=(1, 1, 1), orientation="LPS", unit="unknown")).spacing is None
    assert read_scan(make_nifti(spacing=(1, 1, 1), orientation="LPS", unit="mm")).spacing == (1, 1, 1)
    assert read_scan(make_nifti(spacing=(1, 1, 3), orientation="LPS", unit="unknown")).spacing == (1, 1, 3)


def test_a_scan_from_elsewhere_is_written_with_its_affine(tmp_path, make_affine):
    image = np.zeros((1, 5, 6, 7), np.float32)
    for spacing, unit, code in (((0.9, 1.1, 4.5), "mm", 1), (None, "unknown", 2)):
        scan = Scan(image, make_affine("LPS", spacing or (1, 1, 1)), spacing, "folder")
        write_mask(corner_mask((5, 6, 7)), scan, tmp_path / "mask.nii.gz")
        written = nib.load(tmp_path / "mask.nii.gz")
        np.testing.assert_allclose(written.affine, scan.affine, rtol=1e-6)
        assert written.header.get_xyzt_units()[0] == unit
        # 1 is the scanner's coordinates, 2 is aligned to something.
        assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (code, code)
        assert read_scan(tmp_path / "mask.nii.gz").spacing == (None if spacing is None else pytest.approx(spacing))


def test_a_file_cut_anywhere_is_refused(make_nifti, tmp_path, refusal):
    for source in (make_nifti("whole.nii"), make_nifti("whole.nii.gz")):
        content = source.read_bytes()
        cut = tmp_path / f"cut{source.suffix}"
        for length in (*range(1, len(content), len(content) // 50), len(content) - 1):
            cut.write_bytes(content[:length])
            refusal(cut)


def test_a_gzip_with_a_wrong_checksum_is_refused(make_nifti, refusal):
    source = make_nifti()
    content = bytearray(source.read_bytes())
    content[-6] ^= 1
    source.write_bytes(content)
    assert "CRC" in refusal(source)


def test_a_volume_is_read_in_little_more_memory_than_it_fills(make_nifti):
    volume = np.random.default_rng(4).integers(0, 999, (128, 120, 60)).astype(np.int16)
    source = make_nifti("flair.nii", volume=volume)
    tracemalloc.start()
    try:
        scan = read_scan(source)
        assert tracemalloc.get_traced_memory()[1] < 1.2 * scan.image.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("value", "received"), [(0, "zeros only"), (7, "7 in every voxel")])
def test_a_constant_volume_is_refused(make_nifti, value, received, refusal):
    assert received in refusal(make_nifti(volume=np.full((5, 6, 7), value, np.uint8)))


def test_nan_and_infinity_are_refused_with_their_count_and_share(make_nifti, refusal):
    volume = np.random.default_rng(5).random((5, 4, 10)).astype(np.float32)
    volume[1, 2, 3], volume[4, 0, 9], volume[0, 0, 3] = np.nan, np.inf, -np.inf
    assert "got 3 NaN or infinite (1.5 %)" in refusal(make_nifti(volume=volume))
    too_large = make_nifti("large.nii", volume=volume[:, :, :3].astype(np.float64) * 1e300)
    assert "60 NaN or infinite (100 %)" in refusal(too_large)


@pytest.mark.parametrize("name", ["small.nii", "small.nii.gz"])
def test_damaged_bytes_give_a_scan_or_one_line(make_nifti, tmp_path, numbered_volume, name):
    source = make_nifti(name, volume=numbered_volume[:4, :5, :3])
    content, damaged = source.read_bytes(), tmp_path / f"damaged_{name}"
    accepted, lines = 0, []
    for seed in range(300):
        generator = np.random.default_rng(seed)
        flipped = bytearray(content)
        for position in generator.integers(0, min(len(content), 352), generator.integers(1, 6)):
            flipped[position] = generator.integers(256)
        damaged.write_bytes(flipped)
        try:
            scan = read_scan(damaged)
        except ScanError as error:
            lines.append(str(error))
        else:
            accepted += 1
            if accepted % 10:
                continue
            write_mask(corner_mask(scan.spatial_shape), scan, tmp_path / "mask.nii")
    assert accepted > 0
    assert len(lines) > 0
    assert not [line for line in lines if len(line.splitlines()) != 1]


def test_only_a_mask_of_zeros_and_ones_on_the_scans_grid_is_written(make_nifti, tmp_path):
    scan = read_scan(make_nifti())
    with pytest.raises(ValueError, match=r"shape \(11, 13, 7\), got \(13, 11, 7\)"):
        write_mask(np.zeros((13, 11, 7)), scan, tmp_path / "mask.nii.gz")
    with pytest.raises(ValueError, match="from 0 to 255"):
        write_mask(corner_mask((11, 13, 7)) * 255, scan, tmp_path / "mask.nii.gz")
    first = np.zeros((11, 13, 7))
    first[0, 0, 0] = 0.5
    with pytest.raises(ValueError, match=r"from 0\.0 to 0\.5"):
        write_mask(first, scan, tmp_path / "mask.nii.gz")
    with pytest.raises(ValueError, match="between 0 and 1, got values from -3 to 2"):
        write_probabilities(np.linspace(-3, 2, 1001).reshape(11, 13, 7), scan, tmp_path / "p.nii.gz")
    with pytest.raises(ValueError, match=r"got 'mask\.img'"):
        write_mask(corner_mask((11, 13, 7)), scan, tmp_path / "mask.img")
    assert [path.name for path in tmp_path.iterdir()] == ["flair.nii.gz"]


def test_the_same_mask_is_the_same_file(make_nifti, tmp_path):
    scan = read_scan(make_nifti())
    for name in ("a.nii.gz", "b.nii.gz"):
        write_mask(corner_mask((11, 13, 7)), scan, tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(make_nifti, tmp_path, monkeypatch):
    scan = read_scan(make_nifti())
    out = tmp_path / "out"
    out.mkdir()
    (out / "mask.nii.gz").write_bytes(b"the old one")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AR2UNetError, match=r"mask.nii.gz: cannot be written: No space left on device"):
        write_mask(corner_mask((11, 13, 7)), scan, out / "mask.nii.gz")
    assert [path.name for path in out.iterdir()] == ["mask.nii.gz"]
    assert (out / "mask.nii.gz").read_bytes() == b"the old one"


def test_a_folder_that_is_not_there_is_named(make_nifti, tmp_path):
    scan = read_scan(make_nifti())
    with pytest.raises(AR2UNetError, match=r"none/mask.nii.gz: cannot be written: No such file"):
        write_mask(corner_mask((11, 13, 7)), scan, tmp_path / "none" / "mask.nii.gz")
