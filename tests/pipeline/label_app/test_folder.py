"""The app's folder: links to the code, packed bundles, and trained weights that outlive them."""

from __future__ import annotations

import fcntl
import os
import zipfile
from pathlib import Path

import pytest

from pipeline.errors import AR2UNetError, BundleError
from pipeline.label_app import folder as module
from pipeline.label_app.folder import default_folder, lock_folder, prepare_app, prepare_bundle


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Packing without MONAI: the bundle's files as they are; the bundles that were packed come back."""
    packed: list[Path] = []

    def pack(bundle: Path, output: Path) -> None:
        packed.append(bundle)
        with zipfile.ZipFile(output, "w") as archive:
            for path in bundle.rglob("*.*"):
                archive.write(path, f"{bundle.name}/{path.relative_to(bundle)}")

    monkeypatch.setattr("pipeline.packing.bundle.pack_bundle", pack)
    return packed


@pytest.fixture
def small_bundle(tmp_path: Path) -> Path:
    bundle = tmp_path / "bundles" / "some_segmentation"
    (bundle / "models").mkdir(parents=True)
    (bundle / "models" / "model.pt").write_bytes(b"first")
    return bundle


def test_the_folder_follows_the_xdg_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_folder() == Path("/data/ar2unet/label")


def test_a_folder_is_one_servers_own(tmp_path: Path) -> None:
    held = lock_folder(tmp_path / "app")
    with pytest.raises(AR2UNetError, match=r"one server's own.*--folder"):
        lock_folder(tmp_path / "app")
    assert os.get_inheritable(held)
    fcntl.flock(held, fcntl.LOCK_UN)
    os.close(held)
    os.close(lock_folder(tmp_path / "app"))


def test_the_app_finds_its_code_and_an_older_link_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "pipeline").symlink_to("/elsewhere")
    prepare_app(tmp_path)
    prepare_app(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["main.py", "pipeline", "sitecustomize.py", "transforms"]
    assert "LabelApp" in (tmp_path / "main.py").read_text()
    assert (tmp_path / "pipeline" / "label_app" / "app.py").is_file()


def test_a_bundle_is_packed_once_and_again_when_it_has_changed(
    tmp_path: Path, small_bundle: Path, packings: list[Path]
) -> None:
    for _ in range(2):
        assert prepare_bundle(small_bundle, tmp_path / "app") == "some_segmentation"
    assert packings == [small_bundle]
    (small_bundle / "models" / "model.pt").write_bytes(b"other")
    prepare_bundle(small_bundle, tmp_path / "app")
    assert len(packings) == 2
    models = tmp_path / "app" / "model" / "some_segmentation" / "models"
    assert (models / "model.pt").read_bytes() == b"other"


def test_trained_weights_outlive_a_new_version_of_the_bundle(
    tmp_path: Path, small_bundle: Path, packings: list[Path]
) -> None:
    prepare_bundle(small_bundle, tmp_path / "app")
    models = tmp_path / "app" / "model" / "some_segmentation" / "models"
    (models / "finetuned_0001.pt").write_bytes(b"trained")
    (models / "left.over").touch()
    (small_bundle / "models" / "model.pt").write_bytes(b"other")
    prepare_bundle(small_bundle, tmp_path / "app")
    assert sorted(path.name for path in models.iterdir()) == ["finetuned_0001.pt", "model.pt"]
    assert [path.name for path in models.parents[1].iterdir()] == ["some_segmentation"]


def test_a_bundle_whose_packing_was_interrupted_is_packed_anew(
    tmp_path: Path, small_bundle: Path, packings: list[Path]
) -> None:
    prepare_bundle(small_bundle, tmp_path / "app")
    (tmp_path / "app" / "model" / "some_segmentation" / module.STAMP).unlink()
    prepare_bundle(small_bundle, tmp_path / "app")
    assert len(packings) == 2


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="must be a bundle's folder"):
        prepare_bundle(tmp_path / "nowhere", tmp_path / "app")
