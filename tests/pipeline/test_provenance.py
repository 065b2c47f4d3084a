"""Versions are those that are installed, and what has none is left out or refused."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from pipeline.errors import BundleError
from pipeline.predictor import SEGMENTATION_BUNDLE
from pipeline.provenance import read_bundle_version, software_version, software_versions


def test_versions_are_those_installed_and_what_is_not_is_left_out():
    versions = software_versions(["numpy", "no-such-distribution"])
    assert set(versions) == {"python", "ar2unet", "numpy"}
    assert versions["numpy"] == version("numpy")
    assert software_version() == versions["ar2unet"] == version("ar2unet-monai")


def test_a_bundles_version_is_that_of_its_metadata(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text('{"version": "7.5.3"}')
    assert read_bundle_version(tmp_path) == "7.5.3"
    assert read_bundle_version(SEGMENTATION_BUNDLE).count(".") == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", "7", None])
def test_metadata_without_a_version_are_refused(content, tmp_path):
    (tmp_path / "configs").mkdir()
    if content is not None:
        (tmp_path / "configs" / "metadata.json").write_text(content)
    with pytest.raises(BundleError, match=r"metadata\.json must be JSON with a version: [^\n]+$"):
        read_bundle_version(tmp_path)
