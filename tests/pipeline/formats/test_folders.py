"""A folder for results is made, or refused in a line before anything is computed for it."""

from __future__ import annotations

import os

import pytest

from pipeline.errors import AR2UNetError
from pipeline.formats.folders import check_folder, make_folder


def test_a_folder_is_made_with_those_above_it_and_may_be_there_already(tmp_path):
    for _ in range(2):
        check_folder(tmp_path / "a" / "b")
        make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_check_makes_nothing(tmp_path):
    check_folder(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("function", [check_folder, make_folder])
@pytest.mark.parametrize("name", ["file", "file/a/b", "x" * 300])
def test_a_folder_that_cannot_be_is_refused_with_what_to_do(tmp_path, name, function):
    (tmp_path / "file").touch()
    with pytest.raises(AR2UNetError, match=r"cannot make the folder .*; name another with -o"):
        function(tmp_path / name)


def test_a_file_in_the_way_is_named_before_anything_is_computed(tmp_path):
    (tmp_path / "file").touch(mode=0o777)
    with pytest.raises(AR2UNetError, match=r"file is a file; name another"):
        check_folder(tmp_path / "file" / "a")


def test_a_check_asks_whether_files_can_be_made(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "access", lambda place, mode: asked.append((place, mode)))  # root may do everything
    with pytest.raises(AR2UNetError, match="may not be written to"):
        check_folder(tmp_path / "a" / "b")
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(AR2UNetError, match=r"may not be written to"):
        check_folder(tmp_path / "closed" / "out")
