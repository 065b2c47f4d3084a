from __future__ import annotations

import json

import pytest

from pipeline.engines.artefact import Manifest, hash_file, read_artefact, write_manifest
from pipeline.errors import BundleError


@pytest.fixture
def folder(tmp_path):
    """A bundle with an exported network, all of it a few bytes."""
    for name, content in (
        ("models/model.pt", b"weights"),
        ("configs/inference.yaml", b"config"),
        ("models/exported/network.onnx", b"network"),
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    names = ("models/model.pt", "configs/inference.yaml", "models/exported/network.onnx")
    hashes = (hash_file(tmp_path / name) for name in names)
    write_manifest(
        tmp_path,
        Manifest(
            *hashes,
            3,
            frame={"divisor": 16},
            noise={"highest_noise": 0.2},
            intensity={"lower_percentile": 0.5},
            components={"smallest_share": 0.3},
            software={"torch": "2"},
        ),
    )
    return tmp_path


def read(folder):
    return read_artefact(folder, hash_file(folder / "models" / "model.pt"))


def test_what_was_written_is_read(folder):
    artefact = read(folder)
    assert artefact.network.read_bytes() == b"network"
    assert artefact.manifest.frame == {"divisor": 16}
    assert artefact.manifest.intensity == {"lower_percentile": 0.5}
    assert artefact.manifest.noise == {"highest_noise": 0.2}
    assert artefact.manifest.components == {"smallest_share": 0.3}
    assert artefact.manifest.in_channels == 3


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("models/model.pt", "made from other weights"),
        ("configs/inference.yaml", r"made from another inference\.yaml"),
        ("models/exported/network.onnx", "is not the file that its manifest describes"),
    ],
)
def test_an_exported_network_that_no_longer_fits_is_refused_with_the_remedy(folder, file, message):
    (folder / file).write_bytes(b"other")
    with pytest.raises(BundleError, match=rf"{message}.*run 'ar2unet export'"):
        read(folder)


def test_a_bundle_without_an_exported_network_says_how_to_get_one(folder):
    (folder / "models" / "exported" / "manifest.json").unlink()
    with pytest.raises(BundleError, match="has no exported network: run 'ar2unet export'"):
        read(folder)


@pytest.mark.parametrize(
    "change", [lambda m: m.update(format=99), lambda m: m.pop("frame"), lambda m: m.update(surplus=1)]
)
def test_a_manifest_of_another_version_is_refused(folder, change):
    path = folder / "models" / "exported" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"manifest\.json must be a manifest of this version"):
        read(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"3"])
def test_a_damaged_manifest_is_refused_in_one_line(folder, content):
    (folder / "models" / "exported" / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json must be a manifest") as caught:
        read(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_network_is_refused(folder):
    (folder / "models" / "exported" / "network.onnx").unlink()
    with pytest.raises(BundleError, match=r"has no exported network: run 'ar2unet export'"):
        read(folder)
