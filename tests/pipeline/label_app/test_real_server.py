"""MONAI Label's server as viewers meet it: over HTTP, in its own environment, with the packed bundle."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from pipeline.formats.nifti import read_scan, write_mask
from pipeline.label_app.folder import prepare_bundle
from pipeline.predictor import SEGMENTATION_BUNDLE, Predictor

pytestmark = pytest.mark.slow

MODEL, OTHER = "flair_abnormality_segmentation", "other_segmentation"


@dataclass
class Site:
    """A folder of studies, the app's folder, and the server that has them."""

    studies: Path
    app: Path
    server: Any
    truths: dict[str, NDArray[np.uint8]]

    @property
    def models(self) -> Path:
        return self.app / "model" / MODEL / "models"

    def infer(self, image: str = "", model: str = MODEL, **files: Any) -> tuple[int, bytes]:
        return self.server.ask(f"/infer/{model}?image={image}&output=image", "POST", **files)


@pytest.fixture(scope="module")
def expected(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """Return the bytes of the mask that `ar2unet segment --engine torch` writes."""

    @cache
    def segment(*scan: Path) -> bytes:
        path = tmp_path_factory.mktemp("expected") / "mask.nii.gz"
        read = read_scan(*scan)
        write_mask(predictor.predict(read).mask, read, path)
        return path.read_bytes()

    return segment


@pytest.fixture(scope="module")
def site(
    start_server: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
    make_head: Callable[..., tuple[NDArray[np.int16], NDArray[np.uint8]]],
    write: Callable[..., Path],
) -> Site:
    """Two bundles, the code of one changed, and scans: three of FLAIR alone, one of three sequences, one damaged."""
    folder = tmp_path_factory.mktemp("label")
    truths = {}
    for seed, name in enumerate(("one", "two", "three", "four_flair")):
        volume, truths[name] = make_head(seed)
        write(volume, folder / "studies" / f"{name}.nii.gz")
    dark = np.where(truths["four_flair"] > 0, 60, volume).astype(np.int16)  # the last one's lesion, as T1 shows it
    for sequence in ("t1", "t1c"):
        write(dark, folder / "studies" / f"four_{sequence}.nii.gz")
    whole = (folder / "studies" / "one.nii.gz").read_bytes()
    (folder / "studies" / "damaged.nii.gz").write_bytes(whole[: len(whole) // 2])
    shutil.copytree(SEGMENTATION_BUNDLE, folder / OTHER, ignore=shutil.ignore_patterns("exported"))
    prepare_bundle(folder / OTHER, folder / "app")
    network = folder / "app" / "model" / OTHER / "scripts" / "transforms" / "dictionary.py"
    text = network.read_text()
    changed = text.replace("from_slice_frame(volume, frame)", "from_slice_frame(1 - volume, frame)")
    assert changed != text
    network.write_text(changed)  # where the first finds a lesion, this one finds none
    (folder / "held_out.txt").write_text("tw*\n")
    options = ["--bundle", SEGMENTATION_BUNDLE, "--bundle", folder / OTHER, "--held-out", folder / "held_out.txt"]
    server = start_server(folder / "studies", folder / "app", *options)
    return Site(folder / "studies", folder / "app", server, truths)


def test_info_lists_the_model_with_lesion_1_and_background_0(site: Site) -> None:
    info = site.server.json("/info/")
    assert list(info["models"]) == [MODEL, OTHER]
    assert info["models"][MODEL]["labels"] == {"background": 0, "FLAIR abnormality": 1}
    assert info["models"][MODEL]["type"] == "segmentation"
    assert info["models"][MODEL]["dimension"] == 3
    assert list(info["trainers"]) == [MODEL, OTHER]
    assert info["datastore"]["total"] == 5  # t1 and t1c of the fourth are no scans of their own


def test_a_stored_scan_and_an_uploaded_one_get_the_mask_that_segment_writes(
    site: Site, expected: Callable[..., bytes], tmp_path: Path
) -> None:
    mask = expected(site.studies / "one.nii.gz")
    assert site.infer("one") == (200, mask)
    assert site.infer(file=site.studies / "one.nii.gz") == (200, mask)
    (tmp_path / "mask.nii.gz").write_bytes(mask)
    values = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
    assert values.dtype == np.uint8
    assert values.any()


def test_three_sequences_are_used_where_they_lie_beside_the_flair(site: Site, expected: Callable[..., bytes]) -> None:
    files = [site.studies / f"four_{name}.nii.gz" for name in ("flair", "t1", "t1c")]
    assert site.infer("four_flair") == (200, expected(*files))
    path = f"/infer/{MODEL}?output=json"
    together = site.server.json(f"{path}&image=four_flair", "POST")
    assert together["confidence"] != site.server.json(path, "POST", file=files[0])["confidence"]


def test_viewers_get_the_same_mask_as_nrrd(site: Site, expected: Callable[..., bytes], tmp_path: Path) -> None:
    params = json.dumps({"result_extension": ".nrrd", "result_dtype": "uint8"})
    (tmp_path / "mask.nrrd").write_bytes(site.infer("one", params=params)[1])
    (tmp_path / "mask.nii.gz").write_bytes(expected(site.studies / "one.nii.gz"))
    nrrd, nifti = (SimpleITK.ReadImage(tmp_path / name) for name in ("mask.nrrd", "mask.nii.gz"))
    assert nrrd.GetPixelIDTypeAsString() == "8-bit unsigned integer"
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(nrrd), SimpleITK.GetArrayFromImage(nifti))
    for geometry in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(nrrd, geometry)(), getattr(nifti, geometry)(), atol=1e-4)


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        (f"/infer/{MODEL}?image=nobody", 404, "there is no scan 'nobody'"),
        (f"/infer/{MODEL}?image=damaged", 422, "damaged.nii.gz: expected"),
        ("/infer/nothing?image=one", 404, f"there is no model 'nothing'; there are {MODEL}"),
    ],
)
def test_what_cannot_be_segmented_is_refused_with_its_reason(site: Site, path: str, status: int, reason: str) -> None:
    got, body = site.server.ask(path, "POST")
    assert got == status
    assert reason in json.loads(body)["detail"]
    assert "\n" not in json.loads(body)["detail"]


def test_an_upload_that_is_no_scan_is_refused(site: Site, tmp_path: Path) -> None:
    (tmp_path / "text.nii.gz").write_text("no scan at all")
    status, body = site.infer(file=tmp_path / "text.nii.gz")
    assert status == 422
    assert "expected" in json.loads(body)["detail"]


def test_weights_that_are_not_there_are_refused(site: Site) -> None:
    status, body = site.infer("one", params='{"model_filename": "../../elsewhere.pt"}')
    assert (status, json.loads(body)["detail"][:30]) == (422, "model_filename must be one of ")


def test_two_models_and_requests_at_once_do_not_disturb_one_another(
    site: Site, expected: Callable[..., bytes], tmp_path: Path
) -> None:
    asked = [("one", MODEL), ("one", OTHER), ("two", MODEL), ("three", OTHER), ("one", MODEL)]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda pair: site.infer(*pair), asked))
    for (image, model), (status, mask) in zip(asked, answers, strict=True):
        assert status == 200
        wanted = expected(site.studies / f"{image}.nii.gz")
        if model == MODEL:
            assert mask == wanted
            continue
        values = []
        for name, content in (("got", mask), ("wanted", wanted)):
            (tmp_path / f"{name}.nii.gz").write_bytes(content)
            values.append(np.asarray(nib.load(tmp_path / f"{name}.nii.gz").dataobj))
        assert (values[0] == 1 - values[1]).mean() > 0.99  # all but ties


def test_a_page_of_another_site_gets_nothing(site: Site) -> None:
    from urllib.request import Request, urlopen

    request = Request(site.server.url + "/info/", headers={"Origin": "http://elsewhere.example"})
    with urlopen(request) as answer:
        assert "access-control-allow-origin" not in {name.lower() for name in answer.headers}


def test_the_least_confident_scan_is_offered_first(site: Site) -> None:
    confidences = {
        name: site.server.json(f"/infer/{MODEL}?image={name}&output=json", "POST")["confidence"]
        for name in ("one", "two", "three", "four_flair")
    }
    first = site.server.json("/activelearning/lowest_confidence", "POST", {})
    assert first["id"] == min(confidences, key=lambda name: (confidences[name], name))
    assert first["confidence"] == confidences[first["id"]]
    assert first["unknown"] == 1  # the damaged one
    second = site.server.json("/activelearning/lowest_confidence", "POST", {})
    assert second["id"] != first["id"]
    assert second["confidence"] >= first["confidence"]


def test_a_batch_names_the_scan_that_failed_and_does_the_others_and_scoring_compares(site: Site, write: Any) -> None:
    site.server.json(f"/batch/infer/{MODEL}", "POST", {"max_workers": 1})
    done = site.server.wait_for("/batch/infer", lambda task: task["status"] in ("DONE", "ERROR"))
    assert done["status"] == "DONE"
    labels = {path.name for path in (site.studies / "labels" / "original").iterdir()}
    assert labels == {f"{name}.nii.gz" for name in site.truths}
    for name in ("one", "three"):
        label = write(site.truths[name], site.app.parent / "labels" / f"{name}.nii.gz")
        assert site.server.json(f"/datastore/label?image={name}", "PUT", label=label)["label"] == name
    dice = site.server.json("/scoring/dice?run_sync=true", "POST", {})
    assert dice.keys() == {"one", "three"}
    truth = site.truths["one"]
    mask = np.asarray(nib.load(site.studies / "labels" / "original" / "one.nii.gz").dataobj)
    assert dice["one"] == pytest.approx(2 * (mask & truth).sum() / (mask.sum() + truth.sum()), abs=1e-3)


def test_a_label_on_another_grid_is_refused_and_none_is_kept(site: Site, write: Any) -> None:
    label = write(site.truths["two"][1:], site.app.parent / "labels" / "small.nii.gz")
    status, body = site.server.ask("/datastore/label?image=two", "PUT", label=label)
    assert status == 422
    assert "expected the voxel grid of" in json.loads(body)["detail"]
    assert not (site.studies / "labels" / "final" / "two.nii.gz").exists()


def test_training_adds_a_version_and_inference_uses_it_until_it_is_rolled_back(
    site: Site, expected: Callable[..., bytes], write: Any, start_server: Callable[..., Any]
) -> None:
    for name in ("one", "two", "three"):  # the second is held out
        label = write(site.truths[name], site.app.parent / "labels" / f"{name}.nii.gz")
        site.server.json(f"/datastore/label?image={name}", "PUT", label=label)
    shipped = (site.models / "model.pt").read_bytes()
    site.server.json(f"/train/{MODEL}", "POST", {"max_epochs": 2, "learning_rate": 0.01})
    done = site.server.wait_for("/train/", lambda task: task["status"] in ("DONE", "ERROR"))
    assert done["status"] == "DONE", done["details"]
    log = site.server.log.read_text()
    assert re.findall(r"Training on: (.*)", log)[-1] == "one, three"
    assert sorted(path.name for path in site.models.glob("*.pt")) == ["finetuned_0001.pt", "model.pt"]
    assert (site.models / "model.pt").read_bytes() == shipped
    stats = site.server.json("/info/")["train_stats"][MODEL]
    assert (stats["epoch"], stats["total_epochs"]) == (2, 2)
    answer = site.server.json(f"/infer/{MODEL}?image=one&output=json", "POST")
    assert answer["weights"] == "finetuned_0001.pt"
    old = site.infer("one", params='{"model_filename": "model.pt"}')
    assert old == (200, expected(site.studies / "one.nii.gz"))

    # Stopped in the middle of a training: the training ends with it, and nothing is broken at the next start.
    site.server.json(f"/train/{MODEL}", "POST", {"max_epochs": 10000})
    site.server.wait_for("/info/", lambda info: info["train_stats"][MODEL].get("total_epochs") == 10000)
    trainers = _processes(b"monailabel.interfaces.utils.app", str(site.app).encode())
    assert trainers
    site.server.stop("kill")
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{process}").exists() for process in trainers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    site.server = start_server(site.studies, site.app, "--weights", "shipped")
    assert sorted(path.name for path in site.models.glob("*.pt")) == ["finetuned_0001.pt", "model.pt"]
    assert site.server.json("/info/")["models"][MODEL]["config"]["model_filename"] == ["model.pt", "finetuned_0001.pt"]
    assert site.infer("one") == (200, expected(site.studies / "one.nii.gz"))
    assert site.server.json("/info/")["datastore"]["completed"] == 3


def _processes(*words: bytes) -> list[int]:
    """Return the processes whose command line has a word and whose environment names the other."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if words[0] in (folder / "cmdline").read_bytes() and words[1] in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue
    return [process for process in found if process != os.getpid()]
