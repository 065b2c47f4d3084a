"""Segmenting a folder through the bundle's own command: every mask lies on its scan's grid, as the predictor's does."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from pipeline.formats.nifti import read_scan
from pipeline.predictor import Predictor

# What of a NIfTI header says where a voxel lies.
GRID_FIELDS = ("dim", "pixdim", "qform_code", "sform_code", "xyzt_units", "srow_x", "srow_y", "srow_z")
GRID_FIELDS += ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")

# Subject -> the files of its scan by sequence.
SCANS = {
    "oblique": {"flair": "oblique.nii.gz"},
    "plain": {"flair": "plain.nii"},
    "whole": {"t1": "whole_t1.nii.gz", "flair": "whole_flair.nii.gz", "t1c": "whole_t1c.nii.gz"},
    "no-t1": {"flair": "no-t1_flair.nii.gz", "t1c": "no-t1_t1c.nii.gz"},
}


def oblique_affine():
    """Axes to the right, superior, anterior, turned about two of them; thick slices along the second axis."""
    pitch, yaw = np.deg2rad((14.0, -6.0))
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    about_z = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]]) @ np.diag([0.9, 4.5, 1.1])
    affine[:3, 3] = (-17.5, 41.25, 8.0)
    return affine


@pytest.fixture(scope="module")
def scans(tmp_path_factory, make_patient, save_nifti):
    """A folder of scans: FLAIR alone with an oblique grid in mm, and as prepared data with unknown spacing."""
    folder = tmp_path_factory.mktemp("scans")
    volumes, _ = make_patient((34, 40, 5), 11)
    flair = volumes["flair"].transpose(0, 2, 1)[:, :, ::-1].astype(np.int16) * 7
    affine = oblique_affine()
    save_nifti(folder / "oblique.nii.gz", flair, affine, unit="mm", sform_code=1, qform_code=3)
    for number, (subject, shape) in enumerate(
        {"plain": (32, 37, 4), "whole": (31, 39, 6), "no-t1": (36, 33, 3)}.items()
    ):
        volumes, _ = make_patient(shape, 20 + number)
        for sequence, name in SCANS[subject].items():
            save_nifti(folder / name, volumes[sequence])
    return folder


@pytest.fixture(scope="module")
def masks(run_command, scans, tmp_path_factory):
    """The folder that the literal command writes."""
    folder = tmp_path_factory.mktemp("masks")
    run_command(
        *("-m", "monai.bundle", "run", "--config_file", "configs/inference.yaml"), dataset_dir=scans, output_dir=folder
    )
    return folder


def test_every_scan_of_the_folder_gets_one_mask(masks):
    assert sorted(path.name for path in masks.iterdir()) == sorted(f"{subject}_mask.nii.gz" for subject in SCANS)


@pytest.mark.parametrize("subject", SCANS)
def test_the_mask_lies_on_the_grid_of_the_flair(scans, masks, subject):
    mask, flair = nib.load(masks / f"{subject}_mask.nii.gz"), nib.load(scans / SCANS[subject]["flair"])
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.affine, flair.affine)
    for field in GRID_FIELDS:
        np.testing.assert_array_equal(mask.header[field], flair.header[field], err_msg=field)


@pytest.mark.parametrize("subject", SCANS)
def test_the_mask_is_that_of_the_predictor_voxel_for_voxel(bundle, scans, masks, subject):
    files = {sequence: scans / name for sequence, name in SCANS[subject].items()}
    expected = Predictor(bundle, device="cpu").predict(read_scan(**files)).mask
    mask = np.asarray(nib.load(masks / f"{subject}_mask.nii.gz").dataobj)
    assert 0.01 < mask.mean() < 0.99  # or the comparison would say nothing
    np.testing.assert_array_equal(mask, expected)


def test_every_property_that_monai_looks_for_is_there(in_bundle, scans, tmp_path):
    from monai.bundle import ConfigWorkflow

    workflow = ConfigWorkflow(
        "configs/inference.yaml",
        logging_file=False,
        workflow_type="infer",
        dataset_dir=str(scans),
        output_dir=str(tmp_path / "masks"),
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    assert [entry["subject"] for entry in workflow.dataset_data] == sorted(SCANS)
    assert workflow.version == Predictor(in_bundle).version


@pytest.mark.parametrize(("amp", "expected"), [(False, "float32"), ("true", "bfloat16")])
def test_the_network_infers_in_the_precision_that_amp_says(in_bundle, scans, tmp_path, amp, expected):
    import torch
    from monai.bundle import ConfigWorkflow

    settings = {"dataset_dir": str(scans), "output_dir": str(tmp_path / "masks"), "amp": amp}
    workflow = ConfigWorkflow("configs/inference.yaml", logging_file=False, workflow_type="infer", **settings)
    workflow.initialize()
    seen = set()
    for layer in workflow.network_def.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda _layer, _input, output: seen.add(output.dtype))
    workflow.run()
    assert seen == {getattr(torch, expected)}
    assert len(list((tmp_path / "masks").iterdir())) == len(SCANS)
