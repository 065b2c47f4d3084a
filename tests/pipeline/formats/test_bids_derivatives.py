"""Results as a BIDS derivative: names, sidecars, and the validator's word on them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import AR2UNetError, ScanError
from pipeline.formats.bids import BidsScan, find_scans
from pipeline.formats.bids_derivatives import derivative_paths, write_dataset_description, write_derivatives

VALIDATOR = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent)) or shutil.which(
    "bids-validator-deno"
)
needs_validator = pytest.mark.skipif(VALIDATOR is None, reason="bids-validator-deno (PyPI) is not installed")

REPORT = {
    "inputs": {"t1": "sub-01_ses-a_run-2_T1w.nii.gz", "flair": "sub-01_ses-a_run-2_FLAIR.nii.gz"},
    "bundle": {"name": "flair_abnormality_segmentation", "version": "1.2.3"},
    "weights_sha256": "ab" * 32,
}
RAW = "bids:raw:sub-01/ses-a/anat/sub-01_ses-a_run-2"


@pytest.fixture
def scan(tmp_path, make_nifti):
    """A FLAIR with its T1w, and a post-contrast T1w that no report speaks of."""
    anat = tmp_path / "raw" / "sub-01" / "ses-a" / "anat"
    anat.mkdir(parents=True)
    for name in ("run-2_FLAIR", "run-2_T1w", "ce-gd_run-2_T1w"):
        shutil.copy(make_nifti(), anat / f"sub-01_ses-a_{name}.nii.gz")
    (scan,) = find_scans(tmp_path / "raw").scans
    return scan


@pytest.fixture
def results(tmp_path, make_nifti, numbered_volume):
    """What ``segment_case`` leaves, with probabilities, and a page."""
    folder = tmp_path / "results"
    folder.mkdir()
    shutil.copy(make_nifti(volume=(numbered_volume % 2).astype(np.uint8)), folder / f"{STEM}_FLAIR_mask.nii.gz")
    volume = (numbered_volume / numbered_volume.max()).astype(np.float32)
    shutil.copy(make_nifti(volume=volume), folder / f"{STEM}_FLAIR_probabilities.nii.gz")
    (folder / "report.json").write_text(json.dumps(REPORT))
    (folder / "report.html").write_text("a page")
    (folder / "overlay.png").write_bytes(b"a picture")
    (folder / f"{STEM}_FLAIR_lesion.stl").write_bytes(b"a surface")
    return folder


STEM = "sub-01_ses-a_run-2"


def files_below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def errors_of(folder):
    """Return what the validator finds wrong, a line each."""
    finished = subprocess.run([VALIDATOR, "--format", "json", folder], capture_output=True, text=True, check=False)
    report = json.loads(finished.stdout)
    issues = report["issues"]["issues"]
    return [f"{issue['code']} {issue.get('location')}" for issue in issues if issue["severity"] == "error"]


def test_every_result_lies_under_its_bids_name(scan, results, tmp_path):
    out = tmp_path / "out"
    paths = write_derivatives(scan, results, out)
    anat, figures = f"sub-01/ses-a/anat/{STEM}_label-lesion", f"sub-01/figures/{STEM}"
    expected = {
        f"{anat}_mask.nii.gz": (results / f"{STEM}_FLAIR_mask.nii.gz").read_bytes(),
        f"{anat}_probseg.nii.gz": (results / f"{STEM}_FLAIR_probabilities.nii.gz").read_bytes(),
        f"{figures}_report.json": (results / "report.json").read_bytes(),
        f"{figures}_report.html": b"a page",
        f"{figures}_overlay.png": b"a picture",
        f"{figures}_lesion.stl": b"a surface",
    }
    written = files_below(out)
    assert {name: written[name] for name in expected} == expected
    assert set(written) - set(expected) == {f"{anat}_mask.json", f"{anat}_probseg.json"}
    assert paths == derivative_paths(scan, out)
    for path in (paths.mask, paths.probabilities, paths.report, paths.page, paths.overlay, paths.surface):
        assert path.is_file()


def test_the_sidecars_name_sources_model_and_what_the_numbers_mean(scan, results, tmp_path):
    paths = write_derivatives(scan, results, tmp_path / "out")
    mask = json.loads(paths.mask.with_name(f"{STEM}_label-lesion_mask.json").read_text())
    assert mask["Type"] == "Lesion"
    assert mask["Sources"] == [f"{RAW}_FLAIR.nii.gz", f"{RAW}_T1w.nii.gz"]  # t1c was not used
    assert mask["SpatialReference"] == f"{RAW}_FLAIR.nii.gz"
    assert mask["Labels"] == {"0": "background", "1": "FLAIR abnormality"}
    assert mask["Threshold"] == 0.5
    model = {"Name": "flair_abnormality_segmentation", "Version": "1.2.3", "WeightsSHA256": "ab" * 32}
    assert mask["Model"] == model
    probabilities = json.loads(paths.probabilities.with_name(f"{STEM}_label-lesion_probseg.json").read_text())
    assert probabilities["Model"] == model
    assert "Labels" not in probabilities


def test_the_label_stands_where_bids_has_it():
    entities = (("sub", "1"), ("acq", "3d"), ("echo", "1"), ("desc", "preproc"))
    scan = BidsScan(Path("raw"), entities, Path("raw/sub-1/anat/sub-1_acq-3d_echo-1_desc-preproc_FLAIR.nii.gz"))
    mask = derivative_paths(scan, Path("out")).mask
    assert mask == Path("out/sub-1/anat/sub-1_acq-3d_echo-1_label-lesion_desc-preproc_mask.nii.gz")


def test_a_second_run_gives_the_same_bytes_and_leaves_nothing_of_the_first(scan, results, tmp_path):
    write_derivatives(scan, results, tmp_path / "out")
    first = files_below(tmp_path / "out")
    write_derivatives(scan, results, tmp_path / "out")
    assert files_below(tmp_path / "out") == first
    for name in (f"{STEM}_FLAIR_probabilities.nii.gz", f"{STEM}_FLAIR_lesion.stl", "report.html", "overlay.png"):
        (results / name).unlink()
    write_derivatives(scan, results, tmp_path / "out")
    left = {name.rpartition("/")[2] for name in files_below(tmp_path / "out")}
    assert left == {f"{STEM}_label-lesion_mask.nii.gz", f"{STEM}_label-lesion_mask.json", f"{STEM}_report.json"}


def test_a_run_that_breaks_off_leaves_no_report(scan, results, tmp_path):
    paths = write_derivatives(scan, results, tmp_path / "out")
    (results / f"{STEM}_FLAIR_mask.nii.gz").unlink()
    with pytest.raises(ScanError, match=r"_mask.nii.gz: expected a result of a case, got No such file"):
        write_derivatives(scan, results, tmp_path / "out")
    assert not paths.report.exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"inputs": {}}'])
def test_what_is_no_report_is_refused(scan, results, tmp_path, content):
    (results / "report.json").write_text(content)
    with pytest.raises(ScanError, match=r"report.json: expected the report of a case, got "):
        write_derivatives(scan, results, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_told(scan, results, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(AR2UNetError, match=r"out.*cannot be"):
        write_derivatives(scan, results, tmp_path / "out")
    with pytest.raises(AR2UNetError, match=r"out.*cannot be"):
        write_dataset_description(tmp_path / "out", scan.root)


def test_the_description_links_the_raw_data_and_passes_on_what_it_says(scan, tmp_path):
    raw = {"Name": "Study", "License": "CC0", "Authors": ["A", "B"], "DatasetDOI": "doi:10.1/x", "Funding": ["none"]}
    (scan.root / "dataset_description.json").write_text(json.dumps(raw))
    write_dataset_description(tmp_path / "a folder" / "out", scan.root, ignored=["cohort*"])
    description = json.loads((tmp_path / "a folder" / "out" / "dataset_description.json").read_text())
    assert description["Name"] == "Study: FLAIR abnormality by AR2-UNet"
    assert description["DatasetType"] == "derivative"
    assert (description["License"], description["Authors"]) == ("CC0", ["A", "B"])
    assert description["SourceDatasets"] == [{"URL": "../../raw", "DOI": "doi:10.1/x"}]
    assert description["DatasetLinks"] == {"raw": "../../raw"}
    assert description["GeneratedBy"][0]["Name"] == "ar2unet"
    assert "Funding" not in description
    assert (tmp_path / "a folder" / "out" / ".bidsignore").read_text() == "figures\ncohort*\n"


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_a_tree_whose_description_tells_nothing_goes_by_its_folders_name(scan, tmp_path, content):
    if content is not None:
        (scan.root / "dataset_description.json").write_text(content)
    write_dataset_description(tmp_path / "out", scan.root)
    description = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert description["Name"] == "raw: FLAIR abnormality by AR2-UNet"


@needs_validator
def test_the_validator_finds_no_error_in_the_derivative(scan, results, tmp_path):
    out = tmp_path / "out"
    write_dataset_description(out, scan.root, ignored=["cohort*"])
    write_derivatives(scan, results, out)
    (out / "cohort.csv").write_text("a table\n")
    assert errors_of(out) == []
    (out / "table.csv").write_text("a table\n")
    assert errors_of(out) == ["NOT_INCLUDED /table.csv"]  # so it does look
