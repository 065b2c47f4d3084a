"""The environment's lock file, and what is said where it is not installed."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from pipeline.errors import AR2UNetError
from pipeline.label_app import environment
from pipeline.label_app.environment import check_environment, locked_torch, package_checksum

PIN = re.compile(r"^([A-Za-z0-9][\w.\-]*)==(\S+) \\$")


def _pins(path: Path) -> dict[str, str]:
    return dict(match.groups() for line in path.read_text().splitlines() if (match := PIN.match(line)))


def test_every_package_is_pinned_with_checksums_and_torch_comes_first() -> None:
    for path in (environment.LOCK, environment.CUDA_LOCK):
        text = path.read_text()
        packages = re.split(r"\n(?=\S)", text.strip())
        assert all(re.match(r"\S+==\S+ \\\n", package) and "--hash=sha256:" in package for package in packages)
    pins = _pins(environment.LOCK)
    assert next(iter(pins)) == "torch"
    assert pins["monailabel"] == "0.8.5"
    assert pins["pydicom"].startswith("2.")


def test_torch_and_monai_are_those_of_this_softwares_own_environment() -> None:
    lock = (environment.HERE.parents[1] / "requirements.lock").read_text()
    for name, version in _pins(environment.LOCK).items():
        if name in ("torch", "monai"):
            assert f"{name}=={version}" in lock


def test_nothing_of_cuda_is_installed_with_a_torch_for_the_cpu() -> None:
    assert not [name for name in _pins(environment.LOCK) if name.startswith(("nvidia-", "cuda-", "triton"))]
    assert _pins(environment.CUDA_LOCK).keys() & {"nvidia-cudnn-cu13", "triton"}


def test_the_checksums_of_torch_are_read() -> None:
    version, hashes = locked_torch(environment.LOCK.read_text())
    assert version == _pins(environment.LOCK)["torch"]
    assert len(hashes) > 1
    with pytest.raises(AR2UNetError, match="must begin with torch"):
        locked_torch("numpy==1.26.4 \\\n")


def test_a_package_from_a_local_folder_is_held_against_the_checksums_as_well(tmp_path: Path) -> None:
    wheel = tmp_path / "a folder" / "torch.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(b"built here")
    checksum = hashlib.sha256(b"built here").hexdigest()
    assert package_checksum({"url": wheel.as_uri(), "archive_info": {}}) == checksum
    stated = {"url": "https://example.org/torch.whl", "archive_info": {"hashes": {"sha256": "0a1b"}}}
    assert package_checksum(stated) == "0a1b"
    with pytest.raises(AR2UNetError, match=r"torch\.whl: expected a package with a checksum, got none"):
        package_checksum({"url": "https://example.org/torch.whl", "archive_info": {}})


def test_a_missing_environment_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(AR2UNetError, match=r"ar2unet label --install --environment .*missing"):
        check_environment(tmp_path / "missing")


def test_an_environment_of_another_lock_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    with pytest.raises(AR2UNetError, match="incomplete, or was made from an older lock file"):
        check_environment(tmp_path)
    (tmp_path / environment.STAMP).write_text("another")
    with pytest.raises(AR2UNetError, match="older lock file"):
        check_environment(tmp_path)
    (tmp_path / environment.STAMP).write_text(environment._checksum())
    check_environment(tmp_path)


@pytest.mark.parametrize("version", [(3, 10), (3, 13)])
def test_a_python_that_numpy_has_no_wheels_for_is_refused(
    version: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment.sys, "version_info", (*version, 1))
    with pytest.raises(AR2UNetError, match=r"needs Python 3\.11 or 3\.12"):
        environment.install_environment(tmp_path / "new", print)
    assert not (tmp_path / "new").exists()


def test_an_installation_that_fails_says_pips_reason_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(AR2UNetError, match=r"ERROR: no such package$"):
        environment._run(["sh", "-c", "echo x >&2; echo 'ERROR: no such package' >&2; echo y >&2; exit 3"])
