"""A mask that a person corrected: kept beside the model's, and only if it fits."""

from __future__ import annotations

import gzip
import sqlite3

import nibabel as nib
import numpy as np
import pytest

from pipeline.evaluation.metrics import count_confusion
from pipeline.formats.nifti import read_mask


@pytest.fixture
def finished(client, scan):
    return client.wait(client.submit(scan))


@pytest.fixture
def model_mask(client, finished, tmp_path):
    path = tmp_path / "model.nii.gz"
    path.write_bytes(client.get(f"/api/jobs/{finished['id']}/results/flair_mask.nii.gz").content)
    return path


@pytest.fixture
def correct(client, finished, model_mask, tmp_path):
    """Send an image as the corrected mask."""

    def send(values, affine=None, dtype=np.uint8, **header):
        image = nib.Nifti1Image(values.astype(dtype), nib.load(model_mask).affine if affine is None else affine)
        for name, value in header.items():
            image.header[name] = value
        nib.save(image, tmp_path / "corrected.nii.gz")
        content = (tmp_path / "corrected.nii.gz").read_bytes()
        return client.post(f"/api/jobs/{finished['id']}/corrections", content=content)

    return send


@pytest.fixture
def corrected(anatomy):
    values = anatomy[1].astype(np.uint8)
    values[3, 5, 2] = 1
    return values


def test_a_corrected_mask_is_kept_beside_the_models_with_its_provenance(
    correct, corrected, client, finished, model_mask, tmp_path
):
    first, second = correct(corrected), correct(np.zeros_like(corrected))
    assert first.status_code == second.status_code == 201
    url = f"/api/jobs/{finished['id']}"
    assert first.headers["location"] == f"{url}/corrections/0001_mask.nii.gz"
    listed = client.get(url).json()["corrections"]
    assert listed == [first.json(), second.json()]
    assert [each["lesion_voxels"] for each in listed] == [corrected.sum(), 0]

    saved = tmp_path / "saved.nii.gz"
    saved.write_bytes(client.get(listed[0]["url"]).content)
    np.testing.assert_array_equal(read_mask(saved).mask, corrected == 1)
    assert count_confusion(read_mask(saved).mask, corrected == 1).dice == 1
    own, model = nib.load(saved).header, nib.load(model_mask).header
    assert b"corrected" in own["descrip"].item()
    own["descrip"] = model["descrip"]
    assert own.binaryblock == model.binaryblock

    provenance = client.get(listed[0]["provenance_url"]).json()
    report = client.get(f"{url}/results/report.json").json()
    assert provenance["author"] == "corrected in the web page"
    assert provenance["job"] == finished["id"]
    assert provenance["model_mask"] == "flair_mask.nii.gz"
    assert provenance["weights_sha256"] == report["weights_sha256"]
    assert provenance["saved"].endswith("+00:00")
    assert client.get(f"{url}/results/flair_mask.nii.gz").content == model_mask.read_bytes()


def refused(answer, *words):
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == "bad_mask"
    for word in words:
        assert word in error["message"]
    assert "/" not in error["message"].replace(".nii.gz", "")
    assert "\n" not in error["message"]


def test_a_mask_that_does_not_fit_is_refused_and_nothing_is_kept(correct, corrected, client, finished):
    refused(correct(corrected[:-1]), "the corrected mask: expected the voxel grid of the job's mask", "shape")
    refused(correct(corrected, affine=np.diag([1, 1, 1, 1])), "mm away")
    refused(correct(corrected * 2), "values up to 2")
    refused(correct(corrected, dtype=np.float32), "uint8", "float32")
    refused(correct(corrected, dtype=np.int16), "int16")
    refused(correct(corrected[..., None].repeat(2, axis=3)), "3D")
    post = f"/api/jobs/{finished['id']}/corrections"
    refused(client.post(post, content=b"no nifti"), "NIfTI")
    refused(client.post(post, content=b""), "empty")
    assert client.get(f"/api/jobs/{finished['id']}").json()["corrections"] == []
    assert not client.service.folders.of(finished["id"]).corrections.exists()
    assert [path.name for path in client.service.folders.of(finished["id"]).path.iterdir() if path.is_file()] == []


def test_a_correction_that_cannot_be_entered_leaves_no_file(correct, corrected, client, finished, monkeypatch):
    def full(*arguments: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(client.service.index, "add_correction", full)
    answer = correct(corrected)
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full")
    assert list(client.service.folders.of(finished["id"]).corrections.iterdir()) == []
    monkeypatch.undo()
    assert correct(corrected).json()["number"] == 1


def test_a_mask_is_never_unpacked_beyond_its_grid(client, finished, model_mask):
    content = gzip.decompress(model_mask.read_bytes())
    post = f"/api/jobs/{finished['id']}/corrections"
    refused(client.post(post, content=gzip.compress(content[:-5])), "ends in slice 9")
    refused(client.post(post, content=gzip.compress(content)[:-9]), "gzip")
    assert client.post(post, content=gzip.compress(content + bytes(2**23))).status_code == 201
    too_large = client.post(post, content=content + bytes(2**21))
    assert too_large.status_code == 413


def test_the_plain_file_and_the_other_byte_order_are_masks_too(client, finished, model_mask):
    content = gzip.decompress(model_mask.read_bytes())
    post = f"/api/jobs/{finished['id']}/corrections"
    assert client.post(post, content=content).status_code == 201
    image = nib.load(model_mask)
    big = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, nib.Nifti1Header(endianness=">"))
    big.header.set_data_dtype(np.uint8)
    assert client.post(post, content=big.to_bytes()).status_code == 201
