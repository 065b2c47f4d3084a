"""What may be uploaded, and what is refused: by content, at the door or in the worker, but never by a crash."""

from __future__ import annotations

import gzip
import io
import pickle
import stat
import zipfile

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

META = "ObjectType = Image\nNDims = 3\nDimSize = 4 5 6\nElementType = MET_SHORT\nElementDataFile = {}\n"
NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 5 6\nencoding: raw\nendian: little\n{}\n\n"


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("L", (7, 5)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"patient name: DOE",
        pickle.dumps({"a": np.arange(5)}),
        b"\x7fELF" + bytes(400),
        b"MZ" + bytes(400),
        b"<!DOCTYPE html><script>alert(1)</script>",
        picture(),
        bytes(5000),
        NRRD.format("data file: /etc/passwd").encode(),
        NRRD.format("datafile: ../../../etc/passwd").encode(),
        NRRD.format("DATA FILE: LIST").encode(),
        b"NRRD0004\n" + b"#" * 2**17,
        META.format("/etc/passwd").encode(),
        META.format("../x.raw").encode(),
        META.format("LIST").encode(),
        ("ElementDataFile = /etc/passwd\n" + META.format("LOCAL")).encode(),
        META.format("LOCAL").replace("NDims", "elementdatafile = /etc/passwd\nNDims").encode(),
    ],
)
def test_what_is_no_scan_is_refused_at_the_door_and_leaves_nothing(content, client):
    job = client.begin()
    answer = client.upload(job, content)
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == ("not_accepted" if content.startswith(b"\x89PNG") else "unknown_format")
    assert "DOE" not in answer.text.replace(repr(content[:8]), "")
    assert list(client.service.folders.of(job).input.iterdir()) == []
    assert client.get(f"/api/jobs/{job}").json()["state"] == "uploading"


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mha"])
def test_volumes_of_itk_with_their_data_inside_are_taken(name, client, anatomy, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(anatomy[0].transpose(2, 1, 0))
    image.SetSpacing((1.0, 1.1, 4.5))
    sitk.WriteImage(image, str(tmp_path / name))
    job = client.wait(client.submit(tmp_path / name))
    assert job["state"] == "finished", job["error"]
    assert job["scan"]["name"] == "scan_view.nii"


def test_a_file_that_says_it_is_too_large_is_refused_before_it_is_read(serve):
    client = serve(max_upload_bytes=1000)
    read = []

    def body():
        read.append(1)
        yield bytes(10)

    answer = client.post(
        f"/api/jobs/{client.begin()}/uploads", content=body(), headers={"Content-Length": "1001", "X": "y"}
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_large"
    assert "1,000 bytes, got 1,001" in answer.json()["error"]["message"]


def test_a_file_that_does_not_say_how_large_it_is_is_counted_as_it_comes(serve):
    client = serve(max_upload_bytes=3 * 2**20)
    job = client.begin()
    answer = client.post(f"/api/jobs/{job}/uploads", content=(bytes(2**20) for _ in range(4)))
    assert answer.status_code == 413
    assert list(client.service.folders.of(job).input.iterdir()) == []


def test_the_limit_is_for_all_files_of_a_job_together(serve, scan):
    client = serve(max_upload_bytes=int(1.5 * scan.stat().st_size))
    job = client.begin()
    assert client.upload(job, scan).status_code == 201
    assert client.upload(job, scan, "t1").status_code == 413


def test_no_file_is_taken_beyond_what_all_jobs_may_store(client, scan):
    job, size = client.begin(), scan.stat().st_size
    object.__setattr__(client.service.settings, "max_storage_bytes", size - 1)
    answer = client.upload(job, scan)
    assert answer.status_code == 413
    assert f"expected at most {size - 1:,} bytes" in answer.json()["error"]["message"]
    object.__setattr__(client.service.settings, "max_storage_bytes", size)
    assert client.upload(job, scan).status_code == 201


def test_a_role_is_taken_once_and_kinds_of_scan_are_not_mixed(client, scan, write_series):
    slices = sorted(write_series().iterdir())
    job = client.begin()
    assert client.upload(job, scan).json() == {"role": "flair", "format": "nifti", "bytes": scan.stat().st_size}
    assert client.upload(job, scan).json()["error"]["code"] == "role_taken"
    assert client.upload(job, scan, "t2").json()["error"]["code"] == "invalid"
    assert client.upload(job, slices[0]).json()["error"]["code"] == "mixed_formats"
    other = client.begin()
    for file in slices:
        assert client.upload(other, file).json()["format"] == "dicom"
    assert client.upload(other, slices[0], "t1").json()["error"]["code"] == "invalid"
    assert client.upload(other, scan, "t1").json()["error"]["code"] == "mixed_formats"
    assert client.get(f"/api/jobs/{other}").json()["upload"]["files"] == len(slices)
    stored = sorted(path.name for path in (client.service.folders.of(other).input / "study").iterdir())
    assert stored == [f"{n + 1:05d}.dcm" for n in range(len(slices))]


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def lying_nifti() -> bytes:
    header = nib.Nifti1Header()
    header.set_data_shape((1024, 1024, 512))
    header.set_data_dtype(np.float32)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return gzip.compress(header.binaryblock + bytes(2**16))


def with_link() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        link = zipfile.ZipInfo("slice.dcm")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    return file.getvalue()


def encrypted() -> bytes:
    content = bytearray(zipped(**{"a.dcm": bytes(128) + b"DICM"}))
    content[6] |= 1
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def zip_bomb() -> bytes:
    """A zip whose directory declares seventeen times a gigabyte."""
    content = bytearray(zipped(**{f"{n}.dcm": bytes(128) + b"DICM" + bytes(1000) for n in range(17)}))
    position = content.find(b"PK\x01\x02")
    while position >= 0:
        content[position + 24 : position + 28] = (2**30 - 1 + 2**20).to_bytes(4, "little")
        position = content.find(b"PK\x01\x02", position + 4)
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (zipped(**{"../../evil.dcm": b"x", "/etc/cron.d/evil": b"x", "a\\..\\b": b"x"}), "expected DICOM files"),
        (with_link(), "expected DICOM"),
        (encrypted(), "password"),
        (zip_bomb(), "declares"),
        (zipped(**{"inner.zip": zipped(**{"x": bytes(1000)})}), "expected DICOM"),
        (zipped(**{"scan.pkl": pickle.dumps([1])}), "expected DICOM"),
        (b"PK\x03\x04" + bytes(500), "zip"),
        (lying_nifti(), "expected"),
        (gzip.compress(bytes(2**22)), "expected a NIfTI file"),
        (gzip.compress(pickle.dumps({"a": 1})), "expected a NIfTI file"),
    ],
    ids=["paths", "link", "encrypted", "zip bomb", "zip in zip", "pickle", "damaged zip", "lying header", "gzip",
         "gzipped pickle"],
)  # fmt: skip
def test_bombs_and_tricks_fail_their_job_with_a_line_and_touch_nothing_else(content, said, client, scan, tmp_path):
    before = {path for path in tmp_path.rglob("*") if "server" not in path.parts}
    job = client.begin()
    assert client.upload(job, content).status_code == 201
    client.post(f"/api/jobs/{job}/start")
    found = client.wait(job)
    assert found["state"] == "failed"
    assert found["error"]["code"] == "bad_scan"
    assert said in found["error"]["message"]
    assert "\n" not in found["error"]["message"]
    assert {path for path in tmp_path.rglob("*") if "server" not in path.parts} == before
    assert client.wait(client.submit(scan))["state"] == "finished"
    assert client.worker.starts == 1


def test_a_slice_that_declares_a_gigapixel_is_refused(client, write_series):
    def inflate(header, k):
        header.Rows = header.Columns = 65535

    job = client.wait(client.submit(*sorted(write_series(edit=inflate).iterdir())))
    assert job["error"]["code"] == "bad_scan"


def test_an_upload_that_breaks_off_leaves_the_job_as_it_was(client, scan, monkeypatch):
    async def stall(*arguments: object) -> int:
        raise TimeoutError

    job = client.begin()
    monkeypatch.setattr("pipeline.web.uploads._write_body", stall)
    answer = client.upload(job, scan)
    assert answer.status_code == 408
    assert answer.json()["error"]["code"] == "too_slow"
    monkeypatch.undo()
    assert client.upload(job, scan).status_code == 201
