"""The embedded sample is what its README says, and can be made again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.datasets import phantom as phantom_module
from pipeline.datasets.phantom import Phantom, load_sample, make_phantom, write_phantom
from pipeline.errors import DatasetError

NAMES = ("t1", "flair", "t1c", "truth")


@pytest.fixture(scope="module")
def sample() -> dict[str, nib.Nifti1Image]:
    return {name: nib.load(getattr(load_sample(), name)) for name in NAMES}


@pytest.fixture(scope="module")
def voxels(sample):
    return {name: np.asanyarray(image.dataobj) for name, image in sample.items()}


@pytest.fixture(scope="module")
def world(sample):
    """RAS+ mm of every voxel, ``(I, J, K, 3)``."""
    indices = np.stack(np.meshgrid(*map(np.arange, sample["flair"].shape), indexing="ij"), axis=-1)
    return nib.affines.apply_affine(sample["flair"].affine, indices)


@pytest.fixture
def small_phantom(monkeypatch):
    """Writing without nilearn: a phantom of 5 x 6 x 7 voxels, all different."""
    values = np.arange(210, dtype=np.int16).reshape(5, 6, 7)
    affine = np.diag([-0.9, 0.8, 4.5, 1.0])
    small = Phantom(values, values + 1000, values + 2000, (values % 2).astype(np.uint8), affine)
    monkeypatch.setattr(phantom_module, "make_phantom", lambda: small)
    return small


def test_the_sample_is_small_enough_to_embed():
    assert sum(getattr(load_sample(), name).stat().st_size for name in NAMES) < 6_000_000


def test_finding_the_sample_imports_nothing_heavy():
    code = (
        "import sys; from pipeline.datasets.phantom import load_sample; load_sample();"
        "print([m for m in ('numpy', 'scipy', 'nibabel', 'nilearn', 'torch', 'monai') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_file_missing_from_the_sample_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(phantom_module, "files", lambda package: tmp_path)
    with pytest.raises(DatasetError, match=r"sub-phantom_T1w\.nii\.gz"):
        load_sample()


@pytest.mark.parametrize("name", NAMES)
def test_all_files_share_one_grid_with_codes_and_units(sample, name):
    image, flair = sample[name], sample["flair"]
    assert image.shape == flair.shape == (224, 256, 34)
    assert image.get_data_dtype() == (np.uint8 if name == "truth" else np.int16)
    np.testing.assert_array_equal(image.affine, flair.affine)
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(image.header.get_zooms(), (0.9, 0.9, 4.5), rtol=1e-6)


def test_the_grid_is_oblique_and_not_stored_right_anterior_superior(sample):
    affine = sample["flair"].affine
    assert nib.aff2axcodes(affine) == ("L", "A", "S")
    assert nib.affines.obliquity(affine).max() > np.deg2rad(7)


def test_the_lesion_is_on_the_right_and_of_the_volume_stated(sample, voxels, world):
    lesion = voxels["truth"] == 1
    assert set(np.unique(voxels["truth"])) == {0, 1}
    assert world[lesion][:, 0].min() > 3.0
    millilitres = lesion.sum() * abs(np.linalg.det(sample["truth"].affine[:3, :3])) / 1000
    assert millilitres == pytest.approx(38, abs=0.5)  # as the README says


def test_the_lesion_is_bright_on_flair_and_dark_on_both_t1(voxels, world):
    lesion = voxels["truth"] == 1
    # The same place in the other half of the head is healthy.
    mirrored = _nearest_voxels(world[lesion] * (-1, 1, 1), voxels["truth"].shape, world)
    ratios = {name: np.median(voxels[name][lesion]) / np.median(voxels[name][mirrored]) for name in NAMES[:3]}
    assert ratios["flair"] > 1.5
    assert 0.5 < ratios["t1"] < 0.9
    assert 0.5 < ratios["t1c"] < 0.9


def _nearest_voxels(points, shape, world):
    origin, steps = world[0, 0, 0], [world[1, 0, 0], world[0, 1, 0], world[0, 0, 1]]
    matrix = np.stack([step - origin for step in steps], axis=1)
    indices = np.rint(np.linalg.solve(matrix, (points - origin).T)).astype(int)
    return tuple(np.clip(index, 0, n - 1) for index, n in zip(indices, shape, strict=True))


@pytest.mark.parametrize("name", NAMES[:3])
def test_the_air_around_the_head_is_noisy_and_near_zero(voxels, name):
    corner = voxels[name][:12, :12]
    assert 0 < corner.mean() < 0.05 * np.percentile(voxels[name], 99)
    assert corner.std() > 0


@pytest.mark.parametrize("name", NAMES[:3])
def test_the_head_and_its_scalp_lie_within_the_grid(voxels, name):
    bright = voxels[name] > 0.3 * np.percentile(voxels[name], 99)
    # The neck goes on below the lowest slice; nothing else reaches the border.
    for border in (bright[0], bright[-1], bright[:, 0], bright[:, -1], bright[:, :, -1]):
        assert not border.any()


def test_writing_gives_every_sequence_its_own_file_on_the_grid(small_phantom, tmp_path):
    paths = write_phantom(tmp_path / "new" / "folder")
    for name in NAMES:
        image = nib.load(getattr(paths, name))
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), getattr(small_phantom, name))
        np.testing.assert_allclose(image.affine, small_phantom.affine, rtol=1e-6)
        assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (1, 1)
        assert image.header.get_xyzt_units()[0] == "mm"


def test_writing_twice_gives_the_same_bytes_without_a_time_stamp(small_phantom, tmp_path):
    first, second = write_phantom(tmp_path / "a"), write_phantom(tmp_path / "b")
    for name in NAMES:
        content = getattr(first, name).read_bytes()
        assert content == getattr(second, name).read_bytes()
        assert content[4:8] == bytes(4)


@pytest.mark.parametrize("name", NAMES)
def test_the_embedded_files_bear_no_time_stamp(name):
    assert getattr(load_sample(), name).read_bytes()[4:8] == bytes(4)


def test_making_the_phantom_without_nilearn_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)
    with pytest.raises(DatasetError, match="pip install nilearn"):
        write_phantom(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_where_the_folder_should_be_is_named(small_phantom, tmp_path):
    (tmp_path / "taken").write_text("not a folder")
    with pytest.raises(DatasetError, match="taken: cannot be made a folder"):
        write_phantom(tmp_path / "taken")


def test_the_command_without_a_folder_is_wrong_usage(capsys):
    assert phantom_module._main([]) == 2
    assert "got 0 arguments" in capsys.readouterr().err


def test_the_command_writes_the_four_files(small_phantom, tmp_path, capsys):
    assert phantom_module._main([str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("sub-phantom_*.nii.gz"))) == 4
    assert "sub-phantom_FLAIR.nii.gz" in capsys.readouterr().out


def test_the_template_notice_travels_with_the_sample():
    notice = Path(load_sample().flair).parent / "ICBM152_NOTICE.txt"
    assert "Copyright (C) 1993-2009 Louis Collins" in notice.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_phantom_made_again_is_the_embedded_sample(sample, voxels):
    pytest.importorskip("nilearn", reason="the phantom is drawn around the tissue maps that nilearn carries")
    made = make_phantom()
    np.testing.assert_allclose(made.affine, sample["flair"].affine, atol=1e-4)
    for name in NAMES:
        # Another processor may round a threshold otherwise, here and there; a changed recipe changes most voxels.
        difference = np.abs(getattr(made, name).astype(int) - voxels[name])
        assert np.mean(difference > (0 if name == "truth" else 1)) < 1e-4, name
