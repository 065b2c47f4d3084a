from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (as everybody writes it)

from pipeline.errors import ScanError
from pipeline.formats.itk import ITK_ENDINGS, read_itk
from pipeline.formats.nifti import read_scan
from pipeline.reading import case_name, read_case


@pytest.fixture
def write(tmp_path):
    """Write an array ``(..., J, I)`` as ITK has it."""

    def write(array, name="flair.nrrd", **options):
        path = tmp_path / name
        sitk.WriteImage(sitk.GetImageFromArray(array, **options), str(path))
        return path

    return write


@pytest.mark.parametrize("ending", ITK_ENDINGS)
@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PSR", "oblique"])
def test_a_volume_lies_where_the_same_nifti_lies(ending, orientation, make_nifti, tmp_path):
    nifti = make_nifti("same.nii.gz", orientation=orientation)
    path = tmp_path / f"flair{ending}"
    sitk.WriteImage(sitk.ReadImage(str(nifti)), str(path))
    scan, expected = read_itk(path), read_scan(nifti)
    np.testing.assert_array_equal(scan.image, expected.image)
    np.testing.assert_allclose(scan.affine, expected.affine, atol=1e-4)
    np.testing.assert_allclose(scan.spacing, expected.spacing, atol=1e-5)
    assert case_name(path) == "flair"


def test_the_door_takes_it_alone_and_beside_a_nifti(make_nifti, tmp_path, numbered_volume):
    nifti = make_nifti("flair.nii.gz", orientation="LPS")
    path = tmp_path / "t1.mha"
    sitk.WriteImage(2 * sitk.ReadImage(str(nifti)), str(path))
    assert read_case(path).scan.image.shape == (1, *numbered_volume.shape)
    scan = read_case(nifti, t1=path).scan
    np.testing.assert_array_equal(scan.image[0], 2 * scan.image[1])


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.arange(12.0).reshape(3, 4), {}, r"expected one 3D volume.*got shape \(4, 3\)"),
        (np.arange(120.0).reshape(5, 2, 3, 4), {"isVector": False}, r"shape \(4, 3, 2, 5\)"),
        (np.arange(72.0).reshape(2, 3, 4, 3), {"isVector": True}, "of 3 values a voxel"),
        (np.arange(12.0).reshape(1, 3, 4), {}, "at least 2 voxels a side"),
        (np.full((2, 3, 4), 7.0), {}, "got 7 in every voxel"),
        (np.where(np.arange(24) == 5, np.nan, 1.0).reshape(2, 3, 4), {}, "got NaN or infinite"),
    ],
)
def test_what_is_no_scan_is_refused_in_one_line(array, options, message, write):
    path = write(array, **options)
    with pytest.raises(ScanError, match=rf"flair\.nrrd: .*{message}") as caught:
        read_itk(path)
    assert "\n" not in str(caught.value)


def test_a_missing_or_damaged_file_is_refused_in_one_line(write, tmp_path):
    with pytest.raises(ScanError, match="got no such file"):
        read_itk(tmp_path / "absent.mha")
    path = write(np.arange(24.0).reshape(2, 3, 4), "cut.mha")
    whole = path.read_bytes()
    for content, message in (
        (whole[:-40], "expected 192 bytes of data .* got 152 bytes"),
        (whole[:60], "expected a header that says all, got a line"),
        (whole[: whole.index(b"ElementType")], "expected a header that says all, got no ElementDataFile"),
        (b"nothing", "expected an NRRD or MetaImage volume, got other content"),
        (b"", "expected an NRRD or MetaImage volume, got nothing"),
    ):
        path.write_bytes(content)
        with pytest.raises(ScanError, match=rf"cut\.mha: {message}") as caught:
            read_itk(path)
        assert "\n" not in str(caught.value)


def test_a_header_that_asks_for_more_than_a_scan_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "bomb.mhd"
    path.write_text(
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 4096 4096 4096\n"
        "ElementType = MET_FLOAT\nElementDataFile = bomb.raw\n"
    )
    (tmp_path / "bomb.raw").write_bytes(b"0")
    with pytest.raises(ScanError, match=r"expected at most 536,870,912 voxels"):
        read_itk(path)
