"""The viewer is fetched once, from where npm would, and never taken where its hash is another."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import AR2UNetError
from pipeline.web import viewer
from pipeline.web.viewer import ViewerLock, install_viewer, is_installed, read_lock

CODE = b"export class Niivue {}\n"


def pack(**files: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/dist/{name}.js")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


TARBALL = pack(other=b"something else", index=CODE)


@pytest.fixture
def lock() -> ViewerLock:
    integrity = f"sha512-{base64.b64encode(hashlib.sha512(TARBALL).digest()).decode()}"
    address = "https://registry.npmjs.org/@niivue/niivue/-/niivue-9.8.7.tgz"
    return ViewerLock("@niivue/niivue", "9.8.7", address, integrity, "package/dist/index.js")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, bytes]], list[str]]:
    """Stand in for the network: what each registry answers; every address that is asked for is noted."""

    def answer(registries: dict[str, bytes]) -> list[str]:
        addresses: list[str] = []

        def urlopen(address: str, timeout: float) -> io.BytesIO:
            addresses.append(address)
            for registry, content in registries.items():
                if address.startswith(registry):
                    return io.BytesIO(content)
            raise OSError("no route to host")

        monkeypatch.setattr(viewer.urllib.request, "urlopen", urlopen)
        monkeypatch.setattr(viewer.shutil, "which", lambda name: None)
        monkeypatch.delenv("npm_config_registry", raising=False)
        monkeypatch.delenv("NPM_CONFIG_REGISTRY", raising=False)
        return addresses

    return answer


def test_the_one_file_is_installed_and_known_to_be_whole(lock, asked, tmp_path: Path) -> None:
    addresses = asked({"https://registry.npmjs.org/": TARBALL})
    folder = tmp_path / "static" / "vendor"
    assert not is_installed(lock, folder)
    assert install_viewer(lock, folder) == lock.tarball
    assert addresses == [lock.tarball]
    assert (folder / "niivue.js").read_bytes() == CODE
    assert sorted(file.name for file in folder.iterdir()) == ["niivue.js", "niivue.json"]
    assert is_installed(lock, folder)
    (folder / "niivue.js").write_bytes(CODE[:-1])
    assert not is_installed(lock, folder)


def test_the_registry_that_npm_uses_is_asked_first_and_the_public_one_after_it(
    lock, asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = asked({"https://registry.npmjs.org/": TARBALL})
    monkeypatch.setenv("npm_config_registry", "https://mirror.example/npm")
    install_viewer(lock, tmp_path)
    assert addresses == ["https://mirror.example/npm/@niivue/niivue/-/niivue-9.8.7.tgz", lock.tarball]


def test_another_hash_is_refused_and_leaves_what_was_there(lock, asked, tmp_path: Path) -> None:
    asked({"https://registry.npmjs.org/": pack(index=CODE + b"evil()")})
    (tmp_path / "niivue.js").write_bytes(CODE)
    with pytest.raises(AR2UNetError, match=r"niivue-9\.8\.7\.tgz: expected the hash sha512-.*, got sha512-") as error:
        install_viewer(lock, tmp_path)
    assert "\n" not in str(error.value)
    assert (tmp_path / "niivue.js").read_bytes() == CODE
    assert not is_installed(lock, tmp_path)


def test_without_a_network_it_comes_from_a_file(lock, asked, tmp_path: Path) -> None:
    addresses = asked({})
    copy = tmp_path / "niivue.tgz"
    copy.write_bytes(TARBALL)
    install_viewer(lock, tmp_path / "vendor", copy)
    assert is_installed(lock, tmp_path / "vendor")
    assert not addresses


def test_without_a_network_one_line_says_so_and_nothing_breaks(
    lock, asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked({})
    monkeypatch.setattr(viewer, "read_lock", lambda: lock)
    monkeypatch.setattr(viewer, "is_installed", lambda lock: False)
    assert viewer.main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("The web page goes without its viewer: the viewer @niivue/niivue 9.8.7 cannot be fetched")
    assert said.count("\n") == 1
    assert viewer.main([str(tmp_path / "nowhere.tgz")]) == 2
    assert "nowhere.tgz: cannot be read" in capsys.readouterr().err


def test_what_is_there_is_not_fetched_again(lock, asked, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = asked({})
    monkeypatch.setattr(viewer, "read_lock", lambda: lock)
    monkeypatch.setattr(viewer, "is_installed", lambda lock: True)
    assert viewer.main([]) == 0
    assert not addresses


def test_the_lock_names_one_version_of_the_public_registry_by_its_hash() -> None:
    lock = read_lock()
    assert lock.tarball == f"https://registry.npmjs.org/{lock.name}/-/niivue-{lock.version}.tgz"
    algorithm, _, digest = lock.integrity.partition("-")
    assert algorithm == "sha512"
    assert len(base64.b64decode(digest)) == 64


def test_the_page_loads_nothing_from_elsewhere_and_has_no_inline_code() -> None:
    folder = viewer.LOCK.with_name("static")
    page = (folder / "index.html").read_text()
    assert "<style" not in page
    assert " style=" not in page
    assert "://" not in page
    for line in page.splitlines():
        assert "<script" not in line or 'src="/static/' in line
    for script in folder.glob("*.js"):
        text = script.read_text()
        assert "innerHTML" not in text, script.name
        assert "https://" not in text, script.name
    assert json.loads(viewer.LOCK.read_text())["file"] == "package/dist/index.js"
