"""The surface: what it encloses, that it is closed, and where it lies."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from pipeline.errors import AR2UNetError, ScanError
from pipeline.formats.mesh import make_mesh, write_mesh
from pipeline.formats.scan import Scan


def read_stl(path):
    content = path.read_bytes()
    count = int(np.frombuffer(content, "<u4", 1, 80)[0])
    assert len(content) == 84 + 50 * count
    triangles = np.frombuffer(content, np.uint8, offset=84).reshape(count, 50)
    assert not triangles[:, 48:].any()
    numbers = np.ascontiguousarray(triangles[:, :48]).view("<f4").reshape(count, 4, 3).astype(float)
    return content[:80], numbers[:, 0], numbers[:, 1:]


def enclosed_volume(corners):
    """Positive where corners run counterclockwise seen from outside."""
    corners = corners - corners.mean(axis=(0, 1))
    return np.einsum("ni,ni->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6


def is_closed(corners):
    """Whether each edge is that of two triangles, which run along it in opposite directions."""
    _, number = np.unique(corners.reshape(-1, 3).round(3), axis=0, return_inverse=True)
    faces = number.reshape(-1, 3)
    edges = np.concatenate([faces[:, [n, (n + 1) % 3]] for n in range(3)])
    assert (edges[:, 0] != edges[:, 1]).all()
    there, back = (sorted(map(tuple, each)) for each in (edges, edges[:, ::-1]))
    return there == back


def blobs(shape=(21, 26, 9)):
    noise = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=shape), (2, 2, 1))
    mask = noise > np.quantile(noise, 0.8)
    mask[1, 2, 3] = True
    return mask


MASKS = {"voxel": np.ones((1, 1, 1), bool), "box": np.ones((3, 5, 4), bool), "blobs": blobs()}


@pytest.fixture
def scan_of(make_affine):
    def make(mask, orientation="LPS", spacing=(0.9, 1.1, 4.5)):
        image = np.random.default_rng(1).random((1, *mask.shape)).astype(np.float32)
        return Scan(image, make_affine(orientation, spacing or (1, 1, 1)), spacing, "scan")

    return make


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAS", "PSR", "oblique"])
def test_the_surface_is_closed_faces_outwards_and_encloses_the_masks_volume(scan_of, tmp_path, name, orientation):
    mask = MASKS[name]
    write_mesh(mask, scan_of(mask, orientation), tmp_path / "lesion.stl")
    header, normals, corners = read_stl(tmp_path / "lesion.stl")
    assert is_closed(corners)
    assert enclosed_volume(corners) == pytest.approx(mask.sum() * 0.9 * 1.1 * 4.5, rel=2e-3)
    expected = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(expected, axis=1)
    large = area > 0.05
    assert large.any()
    np.testing.assert_allclose(normals[large], expected[large] / area[large, None], atol=2e-3)
    assert not header.startswith(b"solid")
    assert b"SPACE=LPS" in header


@pytest.mark.parametrize("orientation", ["RAS", "PSR", "oblique"])
def test_the_surface_lies_where_the_lesion_is_in_lps(scan_of, tmp_path, orientation):
    mask = np.zeros((12, 15, 8), bool)
    mask[3:9, 10:13, 1:5] = True
    scan = scan_of(mask, orientation)
    write_mesh(mask, scan, tmp_path / "lesion.stl")
    corners = read_stl(tmp_path / "lesion.stl")[2].reshape(-1, 3)
    low, high = (scan.affine[:3] @ [*ends, 1] for ends in ((2.5, 9.5, 0.5), (8.5, 12.5, 4.5)))
    center = (low + high) / 2 * [-1, -1, 1]
    np.testing.assert_allclose((corners.min(axis=0) + corners.max(axis=0)) / 2, center, atol=1e-3)


def test_a_sheared_mask_keeps_its_volume():
    affine = np.diag([0.8, 1.2, 5.0, 1.0])
    affine[1, 2] = 3.0
    assert enclosed_volume(make_mesh(blobs(), affine)) == pytest.approx(blobs().sum() * 4.8, rel=2e-3)


def test_every_lesion_is_in_the_mesh():
    mask = blobs()
    corners = make_mesh(mask, np.eye(4)).reshape(-1, 3)
    apart = np.abs(corners[:, None] - np.argwhere(mask)[None]).max(axis=2).min(axis=0)
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    assert count > 2
    assert (ndimage.minimum(apart, labels[mask], range(1, count + 1)) < 1).all()


def test_without_a_spacing_there_is_no_surface(scan_of, tmp_path):
    with pytest.raises(ScanError, match="needs the voxel spacing"):
        write_mesh(blobs(), scan_of(blobs(), spacing=None), tmp_path / "lesion.stl")
    assert not list(tmp_path.iterdir())


def test_an_empty_mask_has_no_surface(scan_of, tmp_path):
    empty = np.zeros((5, 6, 7))
    with pytest.raises(ScanError, match="no lesion was found"):
        write_mesh(empty, scan_of(empty), tmp_path / "lesion.stl")


def test_a_mask_of_another_shape_and_a_missing_folder_are_refused(scan_of, tmp_path):
    scan = scan_of(blobs())
    with pytest.raises(ValueError, match=r"shape \(21, 26, 9\), got \(9, 26, 21\)"):
        write_mesh(blobs().T, scan, tmp_path / "lesion.stl")
    with pytest.raises(AR2UNetError, match="cannot be written: No such file"):
        write_mesh(blobs(), scan, tmp_path / "missing" / "lesion.stl")
