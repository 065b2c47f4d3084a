from __future__ import annotations

import numpy as np
import pytest

from pipeline.formats.scan import Scan
from pipeline.measurement import Lesion, measure, measure_scan


def test_voxels_that_touch_by_a_corner_are_one_lesion(two_lesions):
    found = measure(two_lesions(), (0.9, 1.1, 4.5))
    assert found.lesion_voxels == 8
    assert [lesion.voxels for lesion in found.lesions] == [6, 2]
    assert found.volume_ml == pytest.approx(8 * 0.9 * 1.1 * 4.5 / 1000)
    assert found.lesions[1].volume_ml == pytest.approx(2 * 0.9 * 1.1 * 4.5 / 1000)
    assert found.lesions[1].centre_mm is None
    assert (found.slices_total, found.slices_with_lesion) == (7, 5)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAS", "PSR", "oblique"])
def test_the_centre_of_a_lesion_is_in_scanner_coordinates(two_lesions, make_affine, orientation):
    affine = make_affine(orientation)
    found = measure(two_lesions(), (0.9, 1.1, 4.5), affine)
    assert found.lesions[1].centre_mm == pytest.approx(affine[:3] @ [9, 11, 1.5, 1])
    assert found.lesions[0].centre_mm == pytest.approx(
        affine[:3] @ [(2 * 5 + 9) / 6, (3 * 4 + 9) / 6, (9 * 2 + 11) / 6, 1]
    )
    assert found.volume_ml == pytest.approx(8 * 0.9 * 1.1 * 4.5 / 1000)


def test_slices_are_axial_whatever_the_order_of_the_axes(two_lesions, make_affine):
    found = measure(two_lesions(), (0.9, 1.1, 4.5), make_affine("PSR"))
    assert (found.slices_total, found.slices_with_lesion) == (13, 4)


def test_a_sheared_voxel_has_the_volume_of_its_parallelepiped(two_lesions, make_affine):
    affine = make_affine("RAS")
    affine[1, 2] = 4.5  # the third axis leans by 45 degrees and is longer by the square root of 2
    assert measure(two_lesions(), (0.9, 1.1, 4.5 * 2**0.5), affine).volume_ml == pytest.approx(8 * 0.004455)


def test_without_spacing_there_are_no_millilitres_and_no_millimetres(two_lesions, make_affine):
    found = measure(two_lesions(), None, make_affine("LPS", (1, 1, 1)))
    assert found.volume_ml is None
    assert found.lesions == (Lesion(6, None, None), Lesion(2, None, None))


def test_how_a_mask_lies_in_memory_does_not_matter(two_lesions, make_affine):
    mask, arguments = two_lesions(), ((0.9, 1.1, 4.5), make_affine("PSR"))
    assert measure(np.asfortranarray(mask), *arguments) == measure(mask, *arguments)
    other = mask.transpose(1, 2, 0).copy().transpose(2, 0, 1)
    assert not other.flags.forc
    assert measure(other, *arguments) == measure(mask, *arguments)


def test_an_empty_mask_measures_zero():
    found = measure(np.zeros((5, 6, 7)), (1, 2, 3))
    assert (found.lesion_voxels, found.volume_ml, found.lesion_count, found.slices_with_lesion) == (0, 0, 0, 0)
    assert found.slices_total == 7


def test_a_mask_that_is_not_a_volume_is_refused():
    with pytest.raises(ValueError, match=r"got shape \(1, 5, 6, 7\)"):
        measure(np.zeros((1, 5, 6, 7)), None)


def test_each_lesion_has_its_diameters_where_the_spacing_is_known(two_lesions, make_affine):
    first, second = measure(two_lesions(), (0.9, 1.1, 4.5), make_affine("LPS")).lesions
    assert second.diameters.longest_mm == pytest.approx(1.1)
    assert second.diameters.perpendicular_mm == pytest.approx(0.9)
    assert second.diameters.slice == 2
    assert second.diameters.longest_ends == ((9, 10.5, 1), (9, 11.5, 1))
    assert first.diameters.longest_mm == pytest.approx(1.8)
    assert measure(two_lesions(), (0.9, 1.1, 4.5)).lesions[1].diameters.longest_mm == pytest.approx(1.1)


def test_a_scan_without_a_stated_orientation_has_no_sides(make_head_scan, make_nifti):
    from pipeline.formats.nifti import read_scan

    for code in (0, 1):
        scan = read_scan(make_nifti(f"{code}.nii", orientation="LAS", sform_code=code, qform_code=0))
        mask = np.zeros(scan.spatial_shape)
        mask[3, 4, 5] = 1
        found = measure_scan(scan, mask)
        assert (found.laterality is None) == (found.lesions[0].laterality is None) == (code == 0)
        assert found.lesions[0].diameters is not None


def test_lesions_on_both_sides_are_told_apart(make_head_scan):
    scan, place = make_head_scan("LAS")
    mask = (np.abs(np.abs(place) - np.array([14, 6, 0])[:, None, None, None]) < [[[[5]]], [[[4]]], [[[5]]]]).all(axis=0)
    mask &= (place[0] < 0) | (place[1] > 0)
    found = measure_scan(scan, mask)
    assert sorted(lesion.laterality.side for lesion in found.lesions) == ["left", "left", "right"]
    assert found.laterality.side == "both sides"
    assert found.laterality.left_fraction == pytest.approx((mask & (place[0] < 0)).sum() / mask.sum())
    empty = measure_scan(scan, np.zeros_like(mask))
    assert (empty.laterality, empty.lesions) == (None, ())


def test_a_mask_of_another_shape_than_the_scan_is_refused(make_affine):
    scan = Scan(np.ones((1, 3, 4, 5), np.float32), make_affine("LPS"), None, "x")
    with pytest.raises(ValueError, match=r"shape \(3, 4, 5\), got \(3, 4, 6\)"):
        measure_scan(scan, np.ones((3, 4, 6)))
