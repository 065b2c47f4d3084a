"""``ar2unet pack``: a bundle's folder with the code it needs, in one zip."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import AR2UNetError, BundleError
from pipeline.packing.archive import write_archive
from pipeline.packing.card import CARD, DOCUMENTATION, FRONT_MATTER, model_card
from pipeline.packing.configs import ROOT_NAME, config_files, named_code, parse_config, rewrite_config
from pipeline.packing.requirements import missing_distributions
from pipeline.packing.sources import PACKAGE, collect_modules, imports_of, is_ours, rewrite_imports
from pipeline.packing.torchscript import export_torchscript

__all__ = ["Packed", "pack_bundle"]

REPOSITORY = Path(__file__).resolve().parents[2]

REQUIRED_FILES = ("LICENSE", "configs/metadata.json", "models/model.pt")
FOLDERS = ("configs", "docs", "models")
NOT_PACKED = "models/exported/"  # made on each machine by `ar2unet export`
METADATA, LARGE_FILES = "configs/metadata.json", "large_files.yml"
INFERENCE, INFERENCE_JSON = "configs/inference.yaml", "configs/inference.json"
TORCHSCRIPT = "models/model.ts"

LARGEST_FILE = 25 * 1000**2  # bytes that MONAI's model zoo takes in one file

INIT = f'''"""The code that this bundle's configs name."""

from pathlib import Path

{ROOT_NAME} = str(Path(__file__).resolve().parents[1])  # the folder of the bundle
'''


@dataclass(frozen=True)
class Packed:
    """A packed bundle.

    Attributes:
        archive: The zip.
        version: Of the bundle.
        files: How many are in it.
        modules: Of these, Python modules below ``scripts``.
        without_url: Files that ``large_files.yml`` lists without an address to download them from.
    """

    archive: Path
    version: str
    files: int
    modules: int
    without_url: tuple[str, ...]


def pack_bundle(bundle: Path, output: Path, *, repository: Path = REPOSITORY) -> Packed:
    """Write a bundle as one zip that runs with MONAI and the packages of its metadata alone.

    The same bundle and code always give the same bytes.

    Args:
        bundle: The bundle's folder.
        output: The zip, outside of the bundle's folder.
        repository: The folder that holds the packages which the configs name.

    Raises:
        BundleError: If the bundle lacks a file, its metadata do not fit, or its code cannot be moved.
        AR2UNetError: If the zip cannot be written.
    """
    bundle = bundle.resolve()
    try:
        version = _check(bundle)
        _check_output(bundle, output)
        entries, modules = _assemble(bundle, repository)
        without_url = _list_large_files(bundle, entries)
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AR2UNetError(f"{error.filename or bundle}: {error.strerror or error}") from error
    write_archive({f"{bundle.name}/{name}": content for name, content in entries.items()}, output)
    return Packed(output, version, len(entries), modules, without_url)


def _assemble(bundle: Path, repository: Path) -> tuple[dict[str, bytes], int]:
    """Return what the bundle's folder will hold, by name, and how many modules are among it."""
    entries = {name: file.read_bytes() for name, file in _files(bundle).items()}
    modules = _take_code_along(bundle, entries, repository)
    # MONAI's model zoo, `monai.bundle.load` and MONAI Label look for JSON first.
    if INFERENCE in entries and INFERENCE_JSON not in entries:
        content = parse_config(entries[INFERENCE].decode(), INFERENCE)
        entries[INFERENCE_JSON] = json.dumps(content, indent=4).encode() + b"\n"
    _write_card(entries)
    entries[TORCHSCRIPT] = _torchscript(bundle.name, entries)
    return entries, modules


def _check(bundle: Path) -> str:
    """Refuse a folder that MONAI's model zoo would refuse; return the bundle's version."""
    for name in REQUIRED_FILES:
        if not (bundle / name).is_file():
            raise BundleError(f"{bundle} must be a bundle with {', '.join(REQUIRED_FILES)}, got no {name}")
    metadata = _read(bundle / METADATA, METADATA)
    version, changelog = metadata.get("version"), metadata.get("changelog")
    if not version or not isinstance(changelog, dict) or version not in changelog:
        raise BundleError(f"{METADATA} of {bundle.name} must have its version in its changelog, got {version}")
    return str(version)


def _read(file: Path, name: str) -> dict[str, Any]:
    """Return a config's content."""
    content = parse_config(_text(file.read_bytes(), name), name)
    if not isinstance(content, dict):
        raise BundleError(f"{name} must hold keys with values, got {type(content).__name__}")
    return content


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{name} must be text in UTF-8: {error.reason} at byte {error.start}") from error


def _check_output(bundle: Path, output: Path) -> None:
    if output.is_dir() or output.suffix != ".zip":
        raise BundleError(f"the output must be a file that ends in .zip, got {output}")
    if output.resolve().is_relative_to(bundle):
        raise BundleError(f"the output must lie outside of the bundle that it holds, got {output}")


def _files(bundle: Path) -> dict[str, Path]:
    """Return what of a bundle's folder is packed as it is, by its name in the bundle."""
    found = {"LICENSE": bundle / "LICENSE"}
    for folder in FOLDERS:
        for file in sorted((bundle / folder).rglob("*")):
            name = file.relative_to(bundle).as_posix()
            hidden = any(part.startswith((".", "__")) for part in Path(name).parts)
            if file.is_file() and not hidden and not name.startswith(NOT_PACKED) and name != TORCHSCRIPT:
                found[name] = file
    return found


def _take_code_along(bundle: Path, entries: dict[str, bytes], repository: Path) -> int:
    """Add the code that the configs name, and rewrite both; return how many modules there are."""
    names: list[str] = []
    for file in config_files(bundle / "configs"):
        name = f"configs/{file.name}"
        names += named_code(_read(file, name), name)
        text = file.read_text(encoding="utf-8")
        entries[name] = rewrite_config(text, name).encode()
    modules = collect_modules([name for name in names if is_ours(name)], repository)
    entries[f"{PACKAGE}/__init__.py"] = INIT.encode()
    for name, path in modules.items():
        source = path.read_text(encoding="utf-8")
        names += [
            found for imported in imports_of(source, name) if imported.time != "typing" for found in imported.names
        ]
        entries[f"{PACKAGE}/{name}"] = rewrite_imports(source, name, repository).encode()
    missing = missing_distributions(json.loads(entries[METADATA]), names)
    if missing:
        raise BundleError(f"required_packages_version in {METADATA} of {bundle.name} must list {', '.join(missing)}")
    return len(modules) + 1


def _write_card(entries: dict[str, bytes]) -> None:
    """Put the model card at the root, in place of the documentation that it is made of, if the bundle describes one.

    Left in `docs`, the documentation would replace the card in MONAI's `push_to_hf_hub`, under the licence of the code.
    """
    if FRONT_MATTER not in entries:
        return
    if DOCUMENTATION not in entries:
        raise BundleError(f"a bundle with {FRONT_MATTER} must have {DOCUMENTATION}, got none")
    documentation, front_matter = (_text(entries.pop(name), name) for name in (DOCUMENTATION, FRONT_MATTER))
    entries[CARD] = model_card(documentation, front_matter, json.loads(entries[METADATA]), entries).encode()


def _torchscript(name: str, entries: Mapping[str, bytes]) -> bytes:
    """Return the network as TorchScript, exported from nothing but what is packed."""
    with tempfile.TemporaryDirectory(prefix="ar2unet-pack-") as temporary:
        folder = Path(temporary) / name
        for entry, content in entries.items():
            file = folder / entry
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        config = next((config for config in (INFERENCE_JSON, "configs/train.yaml") if config in entries), None)
        if config is None:
            raise BundleError(f"{name} must have {INFERENCE}, got neither it nor configs/train.yaml")
        return export_torchscript(folder, config)


def _list_large_files(bundle: Path, entries: dict[str, bytes]) -> tuple[str, ...]:
    """List files too large for the model zoo in ``large_files.yml``; return those without a known address.

    An address is taken from the list that the bundle's folder holds. The files themselves are packed all the same:
    MONAI downloads what is not there, or has another hash.
    """
    import yaml

    large = sorted(name for name, content in entries.items() if len(content) > LARGEST_FILE)
    if not large:
        return ()
    path = bundle / LARGE_FILES
    known = _read(path, LARGE_FILES).get("large_files") if path.is_file() else []
    if not isinstance(known, list) or not all(isinstance(entry, dict) for entry in known):
        raise BundleError(f"{LARGE_FILES} of {bundle.name} must have a list of files under large_files")
    urls = {entry.get("path"): entry.get("url", "") for entry in known}
    listed = [
        {
            "path": name,
            "url": urls.get(name, ""),
            "hash_val": hashlib.sha256(entries[name]).hexdigest(),
            "hash_type": "sha256",
        }
        for name in large
    ]
    entries[LARGE_FILES] = yaml.safe_dump({"large_files": listed}, sort_keys=False).encode()
    return tuple(name for name in large if not urls.get(name))
