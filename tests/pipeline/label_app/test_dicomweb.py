"""A real DICOMweb store, Orthanc, in place of a folder of scans, behind MONAI Label's real server."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from highdicom.seg import Segmentation, segread
from numpy.typing import NDArray
from pydicom import Dataset, dcmread, dcmwrite

from pipeline.engines.artefact import hash_file
from pipeline.formats.nifti import write_mask
from pipeline.predictor import SEGMENTATION_BUNDLE, Predictor
from pipeline.reading import read_case

pytestmark = pytest.mark.slow

MODEL = "flair_abnormality_segmentation"
SPACING = (3.9, 4.1, 22.5)  # mm
STUDY = "1.2.826.0.1.3680043.10.30"
ONE, TWO, T1, T1C, LOCALISER, GAP = (f"{STUDY}.{n}" for n in ("1.1", "2.1", "2.2", "2.3", "3.1", "4.1"))
DCIODVFY = shutil.which("dciodvfy")


def study_of(uid: str) -> str:
    return uid.rpartition(".")[0]


def voxels(stored: Segmentation) -> NDArray[np.generic]:
    """Return the mask as our scans have it: highdicom's slices run against their normal."""
    return stored.get_volume(combine_segments=True).array.transpose(2, 1, 0)[:, :, ::-1]


@dataclass
class Site:
    """The store, the server before it, the app's folder, and where the DICOM files of each study are."""

    store: Any
    server: Any
    app: Path
    studies: dict[str, Path]

    def infer(self, uid: str, output: str = "image", **files: Any) -> tuple[int, bytes]:
        return self.server.ask(f"/infer/{MODEL}?image={uid}&output={output}", "POST", **files)

    def save(self, uid: str, label: Path) -> dict[str, Any]:
        return self.server.json(f"/datastore/label?image={uid}", "PUT", label=label)

    def segmentations(self, uid: str) -> list[str]:
        """Return the SeriesInstanceUID of all DICOM SEG in the study of a series, as QIDO-RS finds them."""
        return [one["0020000E"] for one in self.store.find(f"studies/{study_of(uid)}/series?Modality=SEG")]

    def download(self, uid: str, series: str, path: Path) -> Path:
        path.write_bytes(self.store.download(study_of(uid), series))
        return path

    @property
    def copies(self) -> Path:
        return next((self.app / "dicom").iterdir())


@pytest.fixture
def write_mr(
    write_series: Callable[..., Path], make_head: Any, make_affine: Callable[..., NDArray[np.float64]]
) -> Callable[..., Path]:
    """Write a head as a series of its own study, which its UID begins with, and its patient, who is named by it."""

    def write(uid: str, seed: int, description: str, folder: str, edit: Any = lambda *_: None, **more: Any) -> Path:
        def change(header: Dataset, k: int) -> object:
            header.StudyInstanceUID = study_of(uid)
            header.PatientID = f"PATIENT-{uid.split('.')[-2]}"
            return edit(header, k)

        parts = {"volume": make_head(seed)[0], "affine": make_affine("oblique", SPACING), "prefix": f"{seed}-", **more}
        return write_series(folder, uid=uid, description=description, edit=change, **parts)

    return write


@pytest.fixture(scope="module")
def running(orthanc: Any, start_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Site:
    app = tmp_path_factory.mktemp("label") / "app"
    (held_out := app.with_name("held_out.txt")).write_text("PATIENT-9*\n")
    server = start_server(orthanc.address, app, "--held-out", held_out, **orthanc.variables)
    return Site(orthanc, server, app, {})


@pytest.fixture
def site(running: Site, write_mr: Callable[..., Path]) -> Site:
    """One study of FLAIR alone, one with T1 before and after contrast, a localiser, a series with a gap, and a CT."""
    if not running.studies:
        second = {"volume": np.arange(40 * 44 * 6, dtype=np.int16).reshape(40, 44, 6) % 997}
        running.studies = {
            "one": write_mr(ONE, 0, "t2_flair_tra", "one"),
            "two": write_mr(TWO, 1, "FLAIR", "two"),
            "t1": write_mr(T1, 2, "t1_tse_tra", "two", **second),
            "t1c": write_mr(T1C, 3, "t1_tse_tra post KM", "two"),
            "localiser": write_mr(LOCALISER, 4, "localizer", "localiser", lambda _, k: k == 2),
            "gap": write_mr(GAP, 5, "FLAIR", "gap", lambda _, k: k != 2),
            "ct": write_mr(f"{STUDY}.5.1", 6, "FLAIR", "ct", lambda header, _: setattr(header, "Modality", "CT")),
        }
        running.store.upload(*set(running.studies.values()))
    return running


@pytest.fixture
def expected(predictor: Predictor, tmp_path: Path) -> Callable[..., bytes]:
    """Return the bytes of the mask that `ar2unet segment --engine torch` writes of a folder of DICOM."""

    def segment(folder: Path, series: str) -> bytes:
        scan, path = read_case(folder, series=series).scan, tmp_path / "expected.nii.gz"
        write_mask(predictor.predict(scan).mask, scan, path)
        return path.read_bytes()

    return segment


@pytest.fixture
def labels(site: Site, tmp_path: Path) -> Callable[..., Path]:
    """Write a mask of random voxels on the grid of a series."""

    def write(name: str, seed: int, folder: str = "one", series: str = ONE) -> Path:
        scan = read_case(site.studies[folder], series=series).scan
        mask = np.random.default_rng(seed).random(scan.spatial_shape) > 0.97
        mask[:, :, 1] = 0
        write_mask(mask, scan, tmp_path / f"{name}.nii.gz")
        return tmp_path / f"{name}.nii.gz"

    return write


def test_the_mr_series_are_listed_and_one_gets_the_mask_that_segment_writes(
    site: Site, expected: Callable[..., bytes], tmp_path: Path
) -> None:
    site.server.wait_for("/info/", lambda info: info["datastore"]["total"] == 6)  # without the CT
    mask = expected(site.studies["one"], ONE)
    assert site.infer(ONE) == (200, mask)
    assert np.asarray(nib.load(tmp_path / "expected.nii.gz").dataobj).any()
    assert site.infer(ONE) == (200, mask)  # from the copy that is kept


def test_t1_of_the_same_study_is_used_and_nobody_else_can_read_the_copies(
    site: Site, expected: Callable[..., bytes]
) -> None:
    assert site.infer(TWO) == (200, expected(site.studies["two"], TWO))
    kept = {path.name for path in site.copies.glob(f"{TWO}_*")}
    assert kept == {f"{TWO}_{name}.nii.gz" for name in ("flair", "t1", "t1c")}
    assert not [path for path in (site.app, *site.copies.rglob("*")) if path.stat().st_mode & 0o077]


@pytest.mark.parametrize(
    ("uid", "status", "reason"),
    [
        ("1.2.3", 404, "there is no scan '1.2.3'"),
        ("../../etc/passwd", 404, "there is no scan '../../etc/passwd'"),
        (LOCALISER, 422, f"{LOCALISER}: expected at least 2 slices, got "),
        (GAP, 422, f"{GAP}: expected slices every 22.50 mm, but 1 slice is missing"),
    ],
)
def test_what_is_no_stack_is_refused_in_one_line(site: Site, uid: str, status: int, reason: str) -> None:
    got, body = site.infer(uid)
    assert (got, json.loads(body)["detail"][: len(reason)]) == (status, reason)
    assert "\n" not in json.loads(body)["detail"]


def test_a_saved_label_is_found_in_the_store_as_dicom_seg(
    site: Site, labels: Callable[..., Path], tmp_path: Path
) -> None:
    before = site.segmentations(ONE)
    label = labels("label", 1)
    assert site.save(ONE, label) == {"image": ONE, "label": ONE}
    (series,) = set(site.segmentations(ONE)) - set(before)
    path = site.download(ONE, series, tmp_path / "label.dcm")
    stored = segread(path)
    sources = {dcmread(file).SOPInstanceUID for file in site.studies["one"].iterdir()}
    (reference,) = [one for one in stored.ReferencedSeriesSequence if one.SeriesInstanceUID == ONE]
    assert {one.ReferencedSOPInstanceUID for one in reference.ReferencedInstanceSequence} == sources
    assert (stored.StudyInstanceUID, stored.PatientID) == (f"{STUDY}.1", "PATIENT-1")
    image = nib.load(label)
    np.testing.assert_array_equal(voxels(stored), np.asarray(image.dataobj))
    last = np.diag([-1, -1, 1, 1]) @ image.affine @ (0, 0, image.shape[2] - 1, 1)
    np.testing.assert_allclose(stored.get_volume(combine_segments=True).affine[:3, 3], last[:3], atol=1e-4)
    if DCIODVFY is not None:
        result = subprocess.run([DCIODVFY, path], capture_output=True, text=True, check=False)
        assert [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("Error")] == []
    assert site.server.json("/info/")["datastore"]["completed"] == 1
    assert site.server.ask(f"/datastore/label?label={ONE}&tag=final") == (200, label.read_bytes())


def test_the_newest_of_two_labels_counts_also_where_it_came_past_the_server(
    site: Site, labels: Callable[..., Path], tmp_path: Path
) -> None:
    before = site.segmentations(ONE)
    first, second = labels("first", 2), labels("second", 3)
    for label in (first, second, first):  # the same again is the newest again
        site.save(ONE, label)
        assert site.server.ask(f"/datastore/label?label={ONE}&tag=final") == (200, label.read_bytes())
    added = [series for series in site.segmentations(ONE) if series not in before]
    assert len(added) == 3
    # As OHIF exports one: with the second's voxels, drawn by hand, through the server's proxy.
    made = [dcmread(site.download(ONE, one, tmp_path / f"{one}.dcm")) for one in added]
    exported = sorted(made, key=lambda one: one.ContentTime)[1]
    exported.SegmentSequence[0].SegmentAlgorithmType = "MANUAL"
    exported.SeriesInstanceUID, exported.SOPInstanceUID = f"{STUDY}.1.77", f"{STUDY}.1.77.1"
    exported.file_meta.MediaStorageSOPInstanceUID = exported.SOPInstanceUID
    exported.ContentDate = "20991231"
    dcmwrite(tmp_path / "exported.dcm", exported)
    site.server.stow(tmp_path / "exported.dcm")
    wanted = (200, second.read_bytes())
    # What the store said some seconds ago is not asked again.
    site.server.wait_for("/info/", lambda _: site.server.ask(f"/datastore/label?label={ONE}&tag=final") == wanted)


def test_ohif_sees_the_store_and_nothing_beside_it(site: Site) -> None:
    status, body = site.server.ask("/proxy/dicom/qido/studies?PatientID=PATIENT-2")
    found = json.loads(gzip.decompress(body))  # as the proxy has it from the store
    assert (status, [one["0020000D"]["Value"] for one in found]) == (200, [[f"{STUDY}.2"]])
    for path in ("..%2fsystem", "x/..%2f..%2fsystem"):
        assert site.server.ask(f"/proxy/dicom/{path}")[0] == 404
    assert b"OHIF" in site.server.ask("/ohif/")[1]


def test_the_networks_own_mask_is_stored_if_it_is_asked_for_and_is_no_label(
    site: Site, expected: Callable[..., bytes], tmp_path: Path
) -> None:
    completed = site.server.json("/info/")["datastore"]["completed"]
    before = site.segmentations(TWO)
    assert site.infer(TWO, "json", params='{"save_label": true, "label_tag": "final"}')[0] == 200
    (series,) = set(site.segmentations(TWO)) - set(before)
    stored = segread(site.download(TWO, series, tmp_path / "mask.dcm"))
    assert stored.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
    assert stored.DeviceSerialNumber == hash_file(SEGMENTATION_BUNDLE / "models" / "model.pt")
    mask = expected(site.studies["two"], TWO)
    assert site.server.ask(f"/datastore/label?label={TWO}&tag=original") == (200, mask)
    np.testing.assert_array_equal(voxels(stored), np.asarray(nib.load(tmp_path / "expected.nii.gz").dataobj))
    assert site.server.json("/info/")["datastore"]["completed"] == completed


def test_training_learns_from_the_labels_of_the_store_but_not_from_a_held_out_patient(
    site: Site, write_mr: Callable[..., Path], labels: Callable[..., Path]
) -> None:
    held = f"{STUDY}.9.1"
    site.store.upload(site.studies.setdefault("held", write_mr(held, 8, "FLAIR", "held")))
    site.save(ONE, labels("a", 4))
    site.save(held, labels("b", 5, "held", held))
    site.server.json(f"/train/{MODEL}", "POST", {"max_epochs": 1})
    done = site.server.wait_for("/train/", lambda task: task["status"] in ("DONE", "ERROR"))
    assert done["status"] == "DONE", done["details"]
    log = site.server.log.read_text()
    assert re.findall(r"Training on: (.*)", log) == [ONE]
    assert f"{held} is held out" in log
    assert site.server.json(f"/infer/{MODEL}?image={ONE}&output=json", "POST")["weights"] == "finetuned_0001.pt"


def test_only_what_may_be_flair_and_has_no_label_is_offered(site: Site, labels: Callable[..., Path]) -> None:
    site.save(ONE, labels("c", 6))
    offered = site.server.json("/activelearning/lowest_confidence", "POST", {})
    assert (offered["id"], offered["unknown"]) == (TWO, 1)  # unknown is the one with the gap; T1 is not asked for
    assert offered["StudyInstanceUID"] == f"{STUDY}.2"


def test_a_series_that_grew_is_fetched_anew(site: Site, write_mr: Callable[..., Path]) -> None:
    uid = f"{STUDY}.6.1"
    folder, shape = write_mr(uid, 7, "FLAIR", "grows"), lambda: nib.load(site.copies / f"{uid}_flair.nii.gz").shape
    (last,) = [file for file in folder.iterdir() if dcmread(file).InstanceNumber == 1]
    last.rename(folder.parent / "last")
    site.store.upload(folder)
    assert site.infer(uid)[0] == 200
    assert shape() == (46, 50, 4)
    site.store.ask("/instances", (folder.parent / "last").read_bytes())
    site.server.wait_for("/info/", lambda _: site.infer(uid)[0] == 200 and shape() == (46, 50, 5))


def test_scans_are_not_changed_behind_the_store(site: Site, labels: Callable[..., Path]) -> None:
    for method, files in {"PUT": {"file": labels("d", 7)}, "DELETE": {}}.items():
        status, body = site.server.ask(f"/datastore/image?image=new&id={ONE}", method, **files)
        assert (status, site.store.address in json.loads(body)["detail"]) == (405, True)


def test_a_store_that_is_gone_is_one_line_and_found_again(site: Site) -> None:
    site.store.stop()
    try:
        for status, body in (site.infer(GAP), site.server.ask("/proxy/dicom/qido/studies")):
            assert (status, b"cannot be reached" in body) == (502, True)
    finally:
        site.store.start()
    assert site.infer(ONE, "json")[0] == 200
    assert "Traceback" not in site.server.log.read_text()
