"""The command as a user meets it: in a process of its own, by its exit code, its lines and its files."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from pipeline.predictor import SEGMENTATION_BUNDLE

CLINICAL = SEGMENTATION_BUNDLE.parents[2] / "shared" / "data" / "clinical_flair"


def assert_refused(result, *words):
    assert result.returncode == 2
    assert "Traceback" not in result.stderr + result.stdout
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("ar2unet: ")
    for word in words:
        assert word in lines[0]


def test_help_names_the_commands_without_loading_what_is_heavy(tmp_path):
    code = (
        "import sys; from typer.testing import CliRunner; from pipeline.cli import app; "
        "print(CliRunner().invoke(app, ['--help']).output); "
        "heavy = {'torch', 'monai', 'nibabel', 'scipy', 'matplotlib', 'numpy'} & set(sys.modules); "
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert result.returncode == 0, result.stderr
    for command in ("segment", "demo", "prepare", "export"):
        assert command in result.stdout


def test_a_scan_becomes_a_mask_a_report_and_a_picture(ar2unet, bundle, anatomy, make_nifti, tmp_path):
    scan = make_nifti("patient.nii.gz", volume=anatomy[0])
    result = ar2unet("segment", scan, "-o", "out", "--bundle", bundle, "--probabilities", "--mesh", "--engine", "torch")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert len(result.stdout.strip().splitlines()) == 1
    assert " s (torch f32); " in result.stdout

    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "overlay.png",
        "patient_lesion.stl",
        "patient_mask.nii.gz",
        "patient_probabilities.nii.gz",
        "report.html",
        "report.json",
    ]
    mask, image = nib.load(out / "patient_mask.nii.gz"), nib.load(scan)
    assert mask.get_data_dtype() == np.uint8
    assert mask.shape == image.shape
    np.testing.assert_array_equal(mask.affine, image.affine)
    for field in ("qform_code", "sform_code", "xyzt_units", "pixdim"):
        np.testing.assert_array_equal(mask.header[field], image.header[field])
    report = json.loads((out / "report.json").read_text())
    assert report["weights_sha256"] == hashlib.sha256((bundle / "models" / "model.pt").read_bytes()).hexdigest()
    assert report["lesion_voxels"] == int(np.asarray(mask.dataobj).sum())
    with Image.open(out / "overlay.png") as picture:
        assert picture.size[0] > 400


def test_the_line_of_a_scan_says_how_far_to_trust_its_mask(ar2unet, bundle, anatomy, make_nifti, tmp_path):
    for name in ("predicted_dice.json", "plausibility.json"):
        shutil.copy(SEGMENTATION_BUNDLE / "models" / name, bundle / "models")
    scan = make_nifti("patient.nii.gz", volume=anatomy[0])
    result = ar2unet("segment", scan, "-o", "out", "--bundle", bundle, "--engine", "torch")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    # Random weights and an ellipsoid of noise: nothing to trust.
    assert report["confidence"]["review"]
    assert f"expected Dice {report['confidence']['predicted_dice']:.2f}, REVIEW THIS CASE" in result.stdout
    (warning,) = report["warnings"]
    assert result.stderr.strip() == f"ar2unet: patient.nii.gz: {warning}"


def test_of_several_scans_a_bad_one_is_named_and_the_others_are_done(ar2unet, bundle, anatomy, make_nifti, tmp_path):
    good = [make_nifti(f"{name}.nii.gz", volume=anatomy[0]) for name in ("first", "third")]
    bad = tmp_path / "second.nii.gz"
    bad.write_bytes(b"nothing")
    result = ar2unet("segment", good[0], bad, good[1], "-o", "out", "--bundle", bundle)
    assert result.returncode == 1
    assert "second.nii.gz" in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["first", "third"]
    assert (tmp_path / "out" / "third" / "third_mask.nii.gz").is_file()
    assert result.stderr.count("has no exported network: run 'ar2unet export'") == 1


def test_with_an_exported_network_the_fast_engine_is_taken_and_named(
    ar2unet, exported_bundle, anatomy, make_nifti, tmp_path
):
    scan = make_nifti("patient.nii.gz", volume=anatomy[0])
    result = ar2unet("segment", scan, "-o", "out", "--bundle", exported_bundle)
    assert result.returncode == 0, result.stderr
    assert "export" not in result.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    # The precision is that in which the processor is fastest.
    assert report["engine"] in ("openvino f32", "openvino f16", "openvino bf16")
    assert f" s ({report['engine']})" in result.stdout


def test_export_makes_the_fast_engines_available(ar2unet, small_bundle, anatomy, make_nifti):
    scan = make_nifti("patient.nii.gz", volume=anatomy[0])
    segment = ("segment", scan, "-o", "out", "--bundle", small_bundle, "--engine", "onnx")
    assert_refused(ar2unet(*segment), "run 'ar2unet export'")
    result = ar2unet("export", small_bundle)
    assert (result.returncode, result.stderr) == (0, "")
    assert "network.onnx: from weights" in result.stdout
    assert ar2unet(*segment).returncode == 0
    assert_refused(ar2unet("export", small_bundle / "configs"), "must be a bundle")


def test_two_scans_of_one_name_are_refused_before_any_work(ar2unet, bundle, anatomy, make_nifti, tmp_path):
    (tmp_path / "other").mkdir()
    scans = [make_nifti(name, volume=anatomy[0]) for name in ("same.nii.gz", "other/same.nii.gz")]
    assert_refused(ar2unet("segment", *scans, "-o", "out", "--bundle", bundle), "same")
    assert not (tmp_path / "out").exists()


def damaged(kind, path, make_nifti, volume):
    """Write a bad scan of a kind; return the words that its refusal must hold."""
    if kind == "missing":
        return ["no such file"]
    if kind == "text":
        path.write_text("this is not a scan")
        return []
    if kind == "truncated":
        make_nifti(path.name, volume=volume)
        path.write_bytes(path.read_bytes()[:2000])
        return []
    if kind == "two-dimensional":
        make_nifti(path.name, volume=volume[:, :, 4])
        return ["3D"]
    if kind == "four-dimensional":
        make_nifti(path.name, volume=np.stack([volume, volume], axis=-1))
        return ["3D"]
    if kind == "zero":
        make_nifti(path.name, volume=np.zeros_like(volume))
        return ["zeros"]
    if kind == "nan":
        spoilt = volume.astype(np.float32)
        spoilt[3, 4, 5] = np.nan
        make_nifti(path.name, volume=spoilt)
        return ["1 "]
    make_nifti(path.name, volume=volume)  # absurd dimensions
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[42:48] = np.array([30000, 30000, 30000], np.int16).tobytes()
    path.write_bytes(gzip.compress(bytes(content)))
    return ["30000"]


@pytest.mark.parametrize(
    "kind", ["missing", "text", "truncated", "two-dimensional", "four-dimensional", "zero", "nan", "absurd"]
)
def test_a_bad_scan_is_one_clear_line_and_leaves_nothing_behind(kind, ar2unet, bundle, anatomy, make_nifti, tmp_path):
    path = tmp_path / "scan.nii.gz"
    words = damaged(kind, path, make_nifti, anatomy[0])
    assert_refused(ar2unet("segment", path, "-o", "out", "--bundle", bundle), "scan.nii.gz", *words)
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_is_a_file_is_refused(ar2unet, bundle, anatomy, make_nifti, tmp_path):
    (tmp_path / "out").write_text("taken")
    scan = make_nifti("scan.nii.gz", volume=anatomy[0])
    assert_refused(ar2unet("segment", scan, "-o", "out", "--bundle", bundle), "out")
    assert (tmp_path / "out").read_text() == "taken"


def test_a_folder_that_is_no_patient_is_refused(ar2unet, bundle, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_refused(ar2unet("segment", "empty", "-o", "out", "--bundle", bundle), "empty", "DICOM")


def test_a_bundle_without_weights_is_refused(ar2unet, anatomy, make_nifti, tmp_path):
    scan = make_nifti("scan.nii.gz", volume=anatomy[0])
    assert_refused(ar2unet("segment", scan, "-o", "out", "--bundle", tmp_path), "bundle")


def test_a_patients_folder_of_slices_is_segmented_without_millilitres(ar2unet, exported_bundle, anatomy, tmp_path):
    folder = tmp_path / "TCGA_XX_0001_20000101"
    folder.mkdir()
    volume = np.clip(anatomy[0] // 4, 0, 255).astype(np.uint8)
    for k in range(volume.shape[2]):
        picture = np.repeat(volume[::-1, ::-1, k].T[..., None], 3, axis=2)  # rows run back, columns left
        Image.fromarray(np.ascontiguousarray(picture)).save(folder / f"{folder.name}_{k + 1}.tif")
    result = ar2unet("segment", folder, "-o", "out", "--bundle", exported_bundle)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["volume_ml"] is None
    assert report["volume_note"]
    mask = nib.load(tmp_path / "out" / f"{folder.name}_mask.nii.gz")
    assert mask.shape == volume.shape
    assert nib.aff2axcodes(mask.affine) == ("L", "P", "S")


def test_preparing_names_a_damaged_patient_and_does_the_others(ar2unet, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("TCGA_CS_0001_20000101", "TCGA_DU_0002_20000101"):
        folder = tmp_path / "kaggle_3m" / name
        folder.mkdir(parents=True)
        for k in (1, 2):
            Image.fromarray(rng.integers(0, 255, (6, 7, 3), np.uint8)).save(folder / f"{name}_{k}.tif")
            Image.fromarray(np.zeros((6, 7), np.uint8)).save(folder / f"{name}_{k}_mask.tif")
    (tmp_path / "kaggle_3m" / "TCGA_DU_0002_20000101" / "TCGA_DU_0002_20000101_2_mask.tif").unlink()
    result = ar2unet("prepare", "lgg", "kaggle_3m", "-o", "data")
    assert result.returncode == 1
    assert "TCGA_DU_0002_20000101" in result.stderr
    assert "Traceback" not in result.stderr
    datalist = json.loads((tmp_path / "data" / "datalist.json").read_text())
    assert [entry["subject"] for entry in datalist["training"]] == ["sub-TCGACS0001"]


def test_preparing_a_folder_that_is_not_there_is_refused(ar2unet):
    assert_refused(ar2unet("prepare", "lgg", "nowhere", "-o", "data"), "nowhere")


@pytest.mark.slow
@pytest.mark.skipif(not CLINICAL.is_dir(), reason="the clinical FLAIR scans do not lie beside the repository")
@pytest.mark.skipif(shutil.which("nifti_tool") is None, reason="nifti_tool (Debian: nifti-bin) is not installed")
def test_the_mask_of_a_clinical_scan_lies_on_its_grid_says_nifti_tool(ar2unet, tmp_path):
    scan = sorted(CLINICAL.glob("*.nii.gz"))[0]
    result = ar2unet("segment", scan, "-o", "out")
    assert result.returncode == 0, result.stderr
    (mask,) = (tmp_path / "out").glob("*_mask.nii.gz")
    checked = subprocess.run(
        ["nifti_tool", "-check_hdr", "-check_nim", "-infiles", mask], capture_output=True, text=True
    )
    assert "FAILURE" not in checked.stdout + checked.stderr
    compared = subprocess.run(["nifti_tool", "-diff_hdr", "-infiles", scan, mask], capture_output=True, text=True)
    lines = compared.stdout.strip().splitlines()[2:]
    assert {line.split()[0] for line in lines} <= {"datatype", "bitpix", "descrip"}


@pytest.mark.slow
def test_the_demo_finds_the_known_lesion(ar2unet, tmp_path):
    result = ar2unet("demo", "-o", "shown")
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("Dice against the known lesion: ")]
    assert float(line.rpartition(" ")[2]) >= 0.70
    assert {path.name for path in (tmp_path / "shown").iterdir()} == {
        "sub-phantom_FLAIR_mask.nii.gz",
        "overlay.png",
        "report.html",
        "report.json",
    }
    assert f"  {Path('shown') / 'report.html'}" in result.stdout
