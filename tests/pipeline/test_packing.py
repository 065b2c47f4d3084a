"""Packing by its parts: which code is found, how it is rewritten, and that an archive's bytes depend on its content."""

from __future__ import annotations

import ast
import importlib
import io
import json
import os
import subprocess
import sys
import zipfile

import pytest

from pipeline.errors import AR2UNetError, BundleError
from pipeline.packing import bundle as packing
from pipeline.packing.archive import write_archive
from pipeline.packing.bundle import pack_bundle
from pipeline.packing.configs import named_code, parse_config, rewrite_config
from pipeline.packing.requirements import missing_distributions
from pipeline.packing.sources import collect_modules, rewrite_imports
from pipeline.packing.torchscript import export_torchscript, normalize

# A repository of six modules, of which a bundle needs five.
MODULES = {
    "networks/__init__.py": '"""What is learned."""\n',
    "networks/net.py": "import torch\n\nfrom transforms.scale import factor\n\n\nclass Net(torch.nn.Module): ...\n",
    "transforms/__init__.py": "",
    "transforms/scale.py": (
        "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from pipeline.unneeded import Thing\n\n\n"
        "def factor(x: int) -> int:\n    # Only here: it is heavy.\n"
        "    from transforms.heavy import (\n        VALUE as value,\n        add,\n    )\n\n    return add(x, value)\n"
    ),
    "transforms/heavy.py": "VALUE = 3\n\n\ndef add(a: int, b: int) -> int:\n    return a + b\n",
    "pipeline/__init__.py": "",
    "pipeline/unneeded.py": "Thing = int\n",
}
TRAIN = """# A comment that stays.
imports:
- $import torch
- $import transforms.scale as scale
bundle_root: .
network_def:
  _target_: networks.net.Net   # names transforms.scale only in words
loader:
  _target_: LoadImaged
both: '$@train#transforms + @validate#transforms'
"""
FOR_MONAI = ["fire", "jsonschema", "onnx", "onnxscript", "pyyaml"]
METADATA = {
    "version": "0.2.0",
    "changelog": {"0.2.0": "second", "0.1.0": "first"},
    "monai_version": "1.6.1",
    "pytorch_version": "2.13.0",
    "numpy_version": "2.4.6",
    "required_packages_version": dict.fromkeys(FOR_MONAI, "1.0"),
}


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def repository(tmp_path):
    return write(tmp_path / "repository", MODULES)


@pytest.fixture
def small_bundle(tmp_path, monkeypatch):
    """A bundle whose TorchScript is said, not exported."""
    monkeypatch.setattr(packing, "export_torchscript", lambda folder, config: f"{config} of {folder.name}".encode())
    files = {
        "LICENSE": "free",
        "configs/train.yaml": TRAIN,
        "configs/inference.yaml": TRAIN,
        "configs/metadata.json": json.dumps(METADATA),
        "docs/README.md": "words",
        "models/model.pt": "weights",
        "models/exported/network.onnx": "made on each machine",
        "models/.model.pt.partial": "left by a killed process",
        "eval/left_over.txt": "a run's",
    }
    return write(tmp_path / "some_segmentation", files)


def names_in(archive):
    with zipfile.ZipFile(archive) as content:
        return content.namelist()


def read_from(archive, name):
    with zipfile.ZipFile(archive) as content:
        return content.read(f"some_segmentation/{name}").decode()


# --- the code --------------------------------------------------------------------------


def test_what_is_imported_comes_along_and_what_only_types_need_does_not(repository):
    found = collect_modules(["networks.net.Net"], repository)
    assert list(found) == [name for name in sorted(MODULES) if not name.startswith("pipeline")]


def test_a_submodule_imported_by_name_from_its_package_comes_along(repository):
    write(repository, {"pipeline/user.py": "from transforms import heavy\n"})
    assert "transforms/heavy.py" in collect_modules(["pipeline.user"], repository)


def test_a_name_that_no_module_has_is_refused(repository):
    with pytest.raises(BundleError, match=r"^networks\.net\.Nett must be in a module of this repository"):
        collect_modules(["networks.net.Nett"], repository)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from networks.net import Net\n", "from scripts.networks.net import Net\n"),
        ("from networks.net import (\n    Net,\n)\n", "from scripts.networks.net import (\n    Net,\n)\n"),
        ("import os, networks.net as n\n", "import os, scripts.networks.net as n\n"),
        ("try:\n    from transforms import scale\nexcept OSError: ...\n", None),
        ("import torch\nfrom torch import nn\nword = 'networks.net'\n", "same"),
        ("from network_tools import x\n", "same"),
    ],
)
def test_an_import_is_rewritten_and_nothing_else(repository, before, after):
    expected = {"same": before, None: before.replace("transforms", "scripts.transforms")}.get(after, after)
    assert rewrite_imports(before, "a.py", repository) == expected


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import networks.net\n", "line 1: 'import networks.net' must have an 'as'"),
        ("x = 1\nfrom .net import Net\n", "line 2: a relative import must be written as an absolute one"),
        ("x = (\n", "must be Python"),
    ],
)
def test_what_cannot_be_moved_is_refused_with_its_line(repository, source, reason):
    with pytest.raises(BundleError, match=rf"^a\.py.*{reason}"):
        rewrite_imports(source, "a.py", repository)


def test_a_function_that_imports_ours_beside_another_gets_both(repository):
    source = "def f():\n    import json as j, transforms.heavy as h; return j, h\n"
    result = rewrite_imports(source, "a.py", repository)
    assert "    import json as j; h = _transforms_heavy; return j, h\n" in result


def test_an_import_in_a_function_keeps_the_code_around_it(repository):
    source = MODULES["transforms/scale.py"]
    result = rewrite_imports(source, "scale.py", repository)
    assert "    # Only here: it is heavy.\n    value = _transforms_heavy.VALUE; add = _transforms_heavy.add\n" in result
    assert "from scripts.pipeline.unneeded import Thing" in result
    assert not [
        node
        for node in ast.walk(ast.parse(result))
        if isinstance(node, ast.FunctionDef) and "import" in ast.unparse(node)
    ]


def test_a_function_keeps_its_own_bundle_when_another_takes_the_name_scripts(repository, tmp_path, monkeypatch):
    """What MONAI Label does between bundles: it puts a folder on the path and unloads `scripts`."""
    functions = []
    for value in (3, 50):
        write(repository, {"transforms/heavy.py": MODULES["transforms/heavy.py"].replace("3", str(value))})
        folder = tmp_path / f"bundle_{value}"
        files = collect_modules(["transforms.scale"], repository)
        code = {f"scripts/{n}": rewrite_imports(path.read_text(), n, repository) for n, path in files.items()}
        write(folder, {"scripts/__init__.py": "", **code})
        monkeypatch.syspath_prepend(folder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
            monkeypatch.delitem(sys.modules, name)
        functions.append(importlib.import_module("scripts.transforms.scale").factor)
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]
    monkeypatch.setattr(sys, "path", [])
    assert [function(1) for function in functions] == [4, 51]


# --- the configs -----------------------------------------------------------------------


def test_a_config_keeps_its_comments_and_names_code_below_scripts():
    changed = {
        "transforms.scale as": "scripts.transforms.scale as",
        "networks.net.Net ": "scripts.networks.net.Net ",
        "bundle_root: .\n": "bundle_root: '$__import__(\"scripts\").BUNDLE_ROOT'\n",
    }
    expected = TRAIN
    for before, after in changed.items():
        expected = expected.replace(before, after)
    assert rewrite_config(TRAIN, "train.yaml") == expected


def test_a_json_config_is_rewritten_as_a_yaml_one_is():
    content = {"imports": ["$from transforms.scale import factor"], "net": {"_target_": "networks.net.Net"}}
    rewritten = json.loads(rewrite_config(json.dumps(content), "inference.json"))
    assert rewritten["imports"] == ["$from scripts.transforms.scale import factor"]
    assert rewritten["net"] == {"_target_": "scripts.networks.net.Net"}


def test_all_code_that_a_config_names_is_found():
    assert named_code(parse_config(TRAIN, "a.yaml"), "a.yaml") == [
        "torch",
        "transforms.scale",
        "networks.net.Net",
        "LoadImaged",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "x: $pipeline.weights.load(1)",
        "x: '$[transforms.scale.factor(n) for n in @list]'",
        "x: $import torch, transforms.scale as s",
        'x: {"_target_" : !!str "networks.net.Net"}',
    ],
)
def test_code_that_is_named_in_another_way_is_refused_by_name(line):
    with pytest.raises(BundleError, match=r"^a\.yaml: .*(pipeline|transforms|networks)\."):
        rewrite_config(line, "a.yaml")


def test_a_config_that_is_no_yaml_is_refused_in_one_line():
    with pytest.raises(BundleError, match=r"^a\.yaml must be a config: [^\n]*$"):
        rewrite_config("a: [1\nb: 2", "a.yaml")


# --- the metadata ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("ignite.handlers.EMAHandler", "pytorch-ignite"),
        ("torch.utils.tensorboard.SummaryWriter", "tensorboard"),
        ("scipy.ndimage", "scipy"),
        ("PIL.Image", "pillow"),
    ],
)
def test_a_package_that_code_imports_must_be_in_the_metadata(name, package):
    assert missing_distributions(METADATA, ["torch.nn", "numpy", "monai", "json", "LoadImaged", name]) == [package]
    listed = {**METADATA["required_packages_version"], package.replace("-", "_").upper(): "1"}
    assert missing_distributions({**METADATA, "required_packages_version": listed}, [name]) == []


def test_what_the_commands_of_monai_need_must_be_in_the_metadata():
    assert missing_distributions({**METADATA, "required_packages_version": {}}, []) == FOR_MONAI


# --- the archive -----------------------------------------------------------------------


def test_the_bytes_of_an_archive_depend_on_its_content_alone(tmp_path):
    first, second = tmp_path / "first.zip", tmp_path / "second.zip"
    write_archive({"b/x": b"1", "a": b"22"}, first)
    before = os.umask(0o077)
    write_archive({"a": b"22", "b/x": b"1"}, second)
    os.umask(before)
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        assert [(info.filename, info.date_time[0], info.external_attr >> 16) for info in archive.infolist()] == [
            ("a", 1980, 0o100644),
            ("b/x", 1980, 0o100644),
        ]


def test_torchscript_exported_in_two_folders_is_the_same_and_still_computes(tmp_path):
    import torch

    contents = []
    for name in ("here", "there"):
        folder = write(
            tmp_path / name,
            {
                f"net_{name}.py": (
                    "import torch\n\nclass Net(torch.nn.Module):\n    def forward(self, x: torch.Tensor):\n"
                    "        return 2 * x + 1\n"
                )
            },
        )
        spec = importlib.util.spec_from_file_location("one_name", folder / f"net_{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        torch._C._jit_clear_class_registry()  # as in a process of its own
        torch.jit._state._clear_class_state()
        file = io.BytesIO()
        torch.jit.save(torch.jit.script(module.Net()), file, _extra_files={"metadata.json": "{}"})
        contents.append(file.getvalue())
    assert contents[0] != contents[1]
    assert normalize(contents[0]) == normalize(contents[1])
    extra = {"metadata.json": ""}
    network = torch.jit.load(io.BytesIO(normalize(contents[0])), _extra_files=extra)
    assert network(torch.tensor(3.0)) == 7
    assert extra["metadata.json"] == b"{}"


def test_of_a_failed_export_the_first_error_is_told(monkeypatch, tmp_path):
    printed = "Traceback:\n  here\nRuntimeError: sizes differ\n\nValueError: MONAI's own\n set '_mode_=debug'\n"
    failed = subprocess.CompletedProcess([], 1, "", printed)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: failed)
    with pytest.raises(BundleError, match=r": MONAI must be able to export the network: RuntimeError: sizes differ$"):
        export_torchscript(tmp_path, "configs/inference.json")


# --- the whole -------------------------------------------------------------------------


def test_a_packed_bundle_has_its_files_its_code_and_nothing_else(small_bundle, repository, tmp_path):
    packed = pack_bundle(small_bundle, tmp_path / "out" / "x.zip", repository=repository)
    code = [f"scripts/{name}" for name in MODULES if not name.startswith("pipeline")]
    own = ["LICENSE", "configs/inference.json", "configs/inference.yaml", "configs/metadata.json", "configs/train.yaml"]
    own += ["docs/README.md", "models/model.pt", "models/model.ts", "scripts/__init__.py"]
    assert names_in(packed.archive) == [f"some_segmentation/{name}" for name in sorted([*own, *code])]
    assert (packed.version, packed.files, packed.modules, packed.without_url) == ("0.2.0", 14, 6, ())
    assert read_from(packed.archive, "models/model.ts") == "configs/inference.json of some_segmentation"


def test_the_json_that_monai_label_reads_first_says_what_the_yaml_says(small_bundle, repository, tmp_path):
    archive = pack_bundle(small_bundle, tmp_path / "x.zip", repository=repository).archive
    as_yaml = parse_config(read_from(archive, "configs/inference.yaml"), "inference.yaml")
    assert json.loads(read_from(archive, "configs/inference.json")) == as_yaml
    assert list(json.loads(read_from(archive, "configs/inference.json"))) == list(as_yaml)


def test_a_large_file_is_packed_and_listed_with_its_hash_and_the_address_that_the_bundle_knows(
    small_bundle, repository, tmp_path, monkeypatch
):
    monkeypatch.setattr(packing, "LARGEST_FILE", 6)
    known = "large_files:\n- path: models/model.pt\n  url: https://example.org/model.pt\n"
    write(small_bundle, {"large_files.yml": known, "LICENSE": "short", "docs/README.md": "short"})
    monkeypatch.setattr(packing, "export_torchscript", lambda folder, config: b"longer")
    (small_bundle / "docs" / "empty.txt").touch()
    packed = pack_bundle(small_bundle, tmp_path / "x.zip", repository=repository)
    listed = parse_config(read_from(packed.archive, "large_files.yml"), "large_files.yml")["large_files"]
    by_path = {entry["path"]: entry for entry in listed}
    assert by_path["models/model.pt"] == {
        "path": "models/model.pt",
        "url": "https://example.org/model.pt",
        "hash_val": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
        "hash_type": "sha256",
    }
    assert "models/model.pt" not in packed.without_url
    assert "models/model.ts" not in by_path
    assert "docs/README.md" not in by_path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"models/model.pt": None}, "got no models/model.pt"),
        ({"LICENSE": None}, "got no LICENSE"),
        ({"configs/metadata.json": json.dumps({**METADATA, "version": "0.3.0"})}, "in its changelog, got 0.3.0"),
        ({"configs/metadata.json": "{"}, "metadata.json must be a config"),
        ({"configs/metadata.json": "[]"}, "metadata.json must hold keys with values, got list"),
        ({"large_files.yml": "large_files: 3"}, "must have a list of files under large_files"),
        (
            {"configs/metadata.json": json.dumps({**METADATA, "required_packages_version": {}})},
            "must list fire, jsonschema, onnx, ",
        ),
        ({"configs/train.yaml": "a:\n  _target_: networks.nowhere.Net\n"}, "networks.nowhere.Net must be in a module"),
    ],
)
def test_a_bundle_that_monai_would_refuse_is_refused_in_one_line(
    small_bundle, repository, tmp_path, monkeypatch, change, reason
):
    for name, text in change.items():
        if text is None:
            (small_bundle / name).unlink()
        else:
            write(small_bundle, {name: text})
    monkeypatch.setattr(packing, "LARGEST_FILE", 5)
    with pytest.raises(BundleError, match=reason) as caught:
        pack_bundle(small_bundle, tmp_path / "x.zip", repository=repository)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.zip").exists()


@pytest.mark.parametrize("name", ["some_segmentation/models/x.zip", "x.tar", "some_segmentation"])
def test_an_output_that_cannot_be_is_refused_before_anything_is_done(small_bundle, repository, tmp_path, name):
    with pytest.raises(BundleError, match=r"^the output must"):
        pack_bundle(small_bundle, tmp_path / name, repository=repository)


def test_a_folder_that_cannot_be_made_is_one_line(small_bundle, repository, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AR2UNetError, match=r"/file: File exists$"):
        pack_bundle(small_bundle, tmp_path / "file" / "x.zip", repository=repository)


def test_the_command_names_what_is_missing(ar2unet, tmp_path):
    finished = ar2unet("pack", tmp_path / "nothing", "-o", "x.zip")
    assert finished.returncode == 2
    assert finished.stderr.startswith("ar2unet: ")
    assert finished.stderr.count("\n") == 1
    assert "must be a bundle with LICENSE, configs/metadata.json, models/model.pt" in finished.stderr
