from __future__ import annotations

import os
import shutil
import zipfile

import pytest
from pydicom.data import get_testdata_file

from pipeline.errors import ScanError
from pipeline.formats.dicom import files
from pipeline.formats.dicom.files import DicomFile, is_dicom, open_files

MADE = b"\0" * 128 + b"DICM" + bytes(range(100))


def read(file: DicomFile) -> bytes:
    with file.open() as stream:
        return stream.read()


def test_the_regular_files_of_a_folder_are_listed_by_name_hidden_ones_left_out(tmp_path):
    for name in ("b/2", "b/1", "a/x.dcm", "c", ".hidden", ".git/x", "b/._1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "dead").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    with open_files(tmp_path) as found:
        assert [file.name for file in found] == ["c", "a/x.dcm", "b/1", "b/2"]
        assert [read(file) for file in found] == [b"c", b"a/x.dcm", b"b/1", b"b/2"]
        assert [file.size for file in found] == [1, 7, 3, 3]


def test_the_members_of_a_zip_are_read_in_memory_whatever_their_names(tmp_path):
    names = ["../up", "/etc/absolute", "./here", "sub/\nnew line", "__MACOSX/._x", "sub/.DS_Store"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("folder/", b"")
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), MADE)
    before = sorted(tmp_path.rglob("*"))
    with open_files(tmp_path / "a.zip") as found:
        assert [file.name for file in found] == ["../up", "here", "/etc/absolute", "sub/\\nnew line"]
        assert all(read(file) == MADE for file in found)
        assert all(file.size == len(MADE) for file in found)
    assert sorted(tmp_path.rglob("*")) == before


def test_of_a_member_that_is_no_dicom_only_the_start_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10_000_000))
    with open_files(tmp_path / "a.zip") as (file,):
        assert len(read(file)) == 132


def test_a_member_larger_than_any_scan_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILE_BYTES", len(MADE) - 1)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("large", MADE)
    with open_files(tmp_path / "a.zip") as (file,):
        assert len(read(file)) == 132


def test_more_files_than_a_study_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILES", 2)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in "abc":
            (tmp_path / name).write_bytes(b"x")
            archive.writestr(name, b"x")
    for path, expected in ((tmp_path, "at most 2 files; name the"), (tmp_path / "a.zip", "2 files in the zip, got 3")):
        with pytest.raises(ScanError, match=expected), open_files(path):
            pass


def test_a_device_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with (
        pytest.raises(ScanError, match="expected a file or folder, got a device or pipe"),
        open_files(tmp_path / "pipe"),
    ):
        pass


def test_a_folder_that_cannot_be_listed_is_refused_by_its_name(tmp_path, monkeypatch):
    def fail(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    (tmp_path / "inner").mkdir()
    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(ScanError, match=rf"{tmp_path.name}: cannot be read: Permission denied"), open_files(tmp_path):
        pass
    assert not is_dicom(tmp_path)


def test_an_empty_zip_has_no_files(tmp_path):
    zipfile.ZipFile(tmp_path / "a.zip", "w").close()
    with open_files(tmp_path / "a.zip") as found:
        assert found == []


def test_what_is_for_dicom_is_told_by_content(tmp_path, write_series, make_nifti):
    assert is_dicom(write_series("study/deep/below"))
    assert is_dicom(tmp_path / "study")
    assert is_dicom(tmp_path / "study" / "deep" / "below" / "IM000")
    zipfile.ZipFile(tmp_path / "a.zip", "w").close()
    assert is_dicom(tmp_path / "a.zip")
    (tmp_path / "slices").mkdir()
    (tmp_path / "slices" / "a_1.tif").write_bytes(b"II*\0" + bytes(200))
    assert not is_dicom(tmp_path / "slices")
    assert not is_dicom(make_nifti())
    assert not is_dicom(tmp_path / "missing")
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(get_testdata_file("ExplVR_LitEndNoMeta.dcm"), bare)
    assert is_dicom(bare)
