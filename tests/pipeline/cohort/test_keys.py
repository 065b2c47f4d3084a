"""The key of a case changes with everything that its results depend on, and with nothing else."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest

from pipeline.cohort import keys
from pipeline.cohort.finding import FoundScan
from pipeline.cohort.keys import Settings, case_key, hash_bundle, hash_inputs
from pipeline.errors import ScanError


@pytest.fixture
def inputs(tmp_path):
    paths = [tmp_path / f"{name}.nii.gz" for name in ("flair", "t1", "t1c")]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 50)
    return FoundScan("case", "flair.nii.gz", *paths)


def key(found, settings=None, bundle_hash="b", engine="e"):
    return case_key(found, settings or Settings(bundle=None), bundle_hash=bundle_hash, engine=engine)


@pytest.mark.parametrize("role", ["flair", "t1", "t1c"])
def test_one_byte_of_any_sequence_changes_the_key_even_at_the_same_size_and_time(inputs, role):
    before = key(inputs)
    path = getattr(inputs, role)
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert key(inputs) != before


def test_a_file_that_was_only_touched_or_moved_with_its_folder_has_the_same_key(inputs, tmp_path):
    before = key(inputs)
    os.utime(inputs.flair, (1, 1))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = {role: elsewhere / getattr(inputs, role).name for role in ("flair", "t1", "t1c")}
    for role, path in moved.items():
        shutil.move(getattr(inputs, role), path)
    assert key(replace(inputs, **moved)) == before


def test_sequences_that_change_places_change_the_key(inputs):
    assert key(inputs) != key(replace(inputs, t1=inputs.t1c, t1c=inputs.t1))
    assert key(inputs) != key(replace(inputs, t1=None))
    assert key(replace(inputs, t1=None)) != key(replace(inputs, t1=None, t1c=None))
    assert key(replace(inputs, t1=None)) != key(replace(inputs, t1=inputs.t1c, t1c=None))


def test_bundle_engine_and_options_change_the_key(inputs):
    assert len({key(inputs), key(inputs, bundle_hash="c"), key(inputs, engine="f")}) == 3
    options = [Settings(None, with_probabilities=True), Settings(None, with_mesh=True)]
    assert len({key(inputs), *(key(inputs, each) for each in options)}) == 3
    assert key(inputs, Settings(None, device="cpu")) == key(inputs)  # the engine says what computes


@pytest.mark.parametrize("name", ["configs/inference.yaml", "models/model.pt"])
def test_weights_and_configs_change_the_hash_of_a_bundle_and_other_files_do_not(bundle, name):
    before = hash_bundle(bundle)
    (bundle / "docs.md").write_text("words")
    assert hash_bundle(bundle) == before
    with (bundle / name).open("ab") as file:
        file.write(b"\n")
    assert hash_bundle(bundle) != before


@pytest.mark.parametrize("name", ["models/plausibility.json", "models/exported/manifest.json"])
def test_what_judges_a_mask_and_what_computes_it_belong_to_the_hash_of_a_bundle(bundle, name):
    seen = {hash_bundle(bundle)}
    (bundle / name).parent.mkdir(exist_ok=True)
    for content in ("{}", "[]"):
        (bundle / name).write_text(content)
        seen.add(hash_bundle(bundle))
    assert len(seen) == 3


@pytest.mark.parametrize("name", ["software_version", "SCHEMA_VERSION"])
def test_another_version_of_the_software_or_of_the_report_does_everything_again(inputs, monkeypatch, name):
    before = key(inputs)
    other = "0.0.0+other"
    monkeypatch.setattr(keys, name, other if name.isupper() else lambda: other)
    assert key(inputs) != before


def test_a_file_more_or_renamed_or_changed_below_a_study_changes_its_hash(tmp_path):
    study = tmp_path / "study"
    (study / "deep").mkdir(parents=True)
    (study / "deep" / "1").write_bytes(b"one")
    found = FoundScan("study", "study", study)
    seen = {hash_inputs(found)}
    (study / "2").write_bytes(b"two")
    seen.add(hash_inputs(found))
    (study / "2").rename(study / "3")
    seen.add(hash_inputs(found))
    (study / "3").write_bytes(b"tww")
    seen.add(hash_inputs(found))
    assert len(seen) == 4
    (study / ".hidden").touch()
    assert hash_inputs(found) in seen


def test_a_hidden_folder_below_a_study_does_not_belong_to_it(tmp_path):
    (tmp_path / "1").write_bytes(b"one")
    before = hash_inputs(FoundScan("study", "study", tmp_path))
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "2").write_bytes(b"two")
    assert hash_inputs(FoundScan("study", "study", tmp_path)) == before


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("x.mhd", "NDims = 3\nElementDataFile = x.raw\n"),
        ("X.MHD", "NDims = 3\nElementDataFile = x.raw\n"),
        ("x.nhdr", "NRRD0004\ndata file: ./x.raw\n"),
        ("x.nhdr", "NRRD0004\ndatafile: x.raw\n"),
        ("x.nhdr", "NRRD0004\ndata file: LIST\nother.raw\nx.raw\n"),
        ("x.mhd", "NDims = 3\nElementDataFile = LIST\nx.raw\n"),
        ("x.mhd", "NDims = 3\nElementDataFile = %s.raw 1 3 1\n".replace("%s", "%01d")),
    ],
)
def test_data_beside_their_header_belong_to_the_hash(tmp_path, name, header):
    (tmp_path / name).write_text(header)
    for each in ("x.raw", "2.raw", "other.raw", "stranger.bin"):
        (tmp_path / each).write_bytes(b"before")
    found = FoundScan("x", name, tmp_path / name)
    before = hash_inputs(found)
    (tmp_path / "stranger.bin").write_bytes(b"after!")
    assert hash_inputs(found) == before
    (tmp_path / ("2.raw" if "%" in header else "x.raw")).write_bytes(b"after!")
    assert hash_inputs(found) != before


def test_what_cannot_be_read_is_said_in_a_line(tmp_path):
    with pytest.raises(ScanError, match=r"gone\.nii: expected a file, got no such file"):
        hash_inputs(FoundScan("gone", "gone.nii", tmp_path / "gone.nii"))
    os.mkfifo(tmp_path / "pipe.nii")
    with pytest.raises(ScanError, match="not a regular file"):
        hash_inputs(FoundScan("pipe", "pipe.nii", tmp_path / "pipe.nii"))
