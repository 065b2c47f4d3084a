"""The shipped bundles, packed and run where this repository does not exist and nothing but their packages does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import distribution

import nibabel as nib
import numpy as np
import pytest
from packaging.requirements import Requirement

from pipeline.packing import bundle as packing
from pipeline.packing.bundle import REPOSITORY, pack_bundle
from pipeline.packing.requirements import OWN_FIELDS, listed_distributions, needed_distributions
from pipeline.predictor import SEGMENTATION_BUNDLE, Predictor

BUNDLES = sorted(path.parents[1] for path in REPOSITORY.glob("bundles/*/models/model.pt"))
SAMPLE = REPOSITORY / "pipeline" / "sample"
SHAPES = ((32, 36, 4), (34, 40, 5))  # of the patients that are trained on; no two sizes of one are equal
SMALL_TRAINING = {
    "fold": 1,
    "epochs": 1,
    "channels": "[4,8,16]",
    "recurrences": 1,
    "network_def#backbone": "none",  # whose package is not there
    "batch_size": 1,
    "slice_size": "[32,48]",
    "warmup_iterations": 1,
    "val_interval": 1,
    "num_workers": 0,
}

# What MONAI's model zoo does to a bundle that is handed in, and what its users do.
ZOO_CHECKS = """
import sys
from pathlib import Path
import monai.bundle, onnx, torch
from monai.bundle import ConfigParser
from monai.bundle.scripts import _get_fake_input_shape

root, schema = Path(sys.argv[1]), sys.argv[2]
files = {"meta_file": str(root / "configs/metadata.json"), "config_file": str(root / "configs/inference.json")}
weights = {"ckpt_file": str(root / "models/model.pt")}
if schema:
    monai.bundle.verify_metadata(meta_file=files["meta_file"], filepath=schema)
monai.bundle.verify_net_in_out(net_id="network_def", device="cpu", bundle_root=str(root), **files)
monai.bundle.ckpt_export(net_id="network_def", filepath="verify_model.ts", bundle_root=str(root), **files, **weights)
monai.bundle.onnx_export(net_id="network_def", filepath="verify_model.onnx", **files, **weights)
onnx.checker.check_model("verify_model.onnx")

where = {"bundle_dir": root.parent, "device": "cpu"}
network = monai.bundle.load(root.name, workflow_type="inference", **where).eval()
shipped, metadata, _ = monai.bundle.load(root.name, load_ts_module=True, **where)
parser = ConfigParser()
parser.read_meta(files["meta_file"])
image = torch.randn(_get_fake_input_shape(parser), generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    for script in (shipped, torch.jit.load("verify_model.ts")):
        torch.testing.assert_close(script(image), network(image), rtol=1e-4, atol=1e-4)
print("version", metadata["version"], type(network).__module__)
"""


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_the_metadata_list_the_packages_that_the_packed_code_imports_and_no_more(bundle, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(packing, "missing_distributions", lambda metadata, names: seen.extend(names))
    monkeypatch.setattr(packing, "export_torchscript", lambda folder, config: b"")
    pack_bundle(bundle, tmp_path / "x.zip")
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    own = set(OWN_FIELDS.values())
    assert listed_distributions(metadata) - own == needed_distributions(seen) - own


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """Pack a bundle and unpack it, once; its folder below one that has nothing else in it."""
    folders = {}

    def unpack(bundle):
        if bundle not in folders:
            folder = tmp_path_factory.mktemp("unpacked")
            archive = pack_bundle(bundle, tmp_path_factory.mktemp("packed") / "bundle.zip").archive
            with zipfile.ZipFile(archive) as content:
                content.extractall(folder)
            folders[bundle] = folder / bundle.name
            (folder.parent / f"{bundle.name}.zip").hardlink_to(archive)
        return folders[bundle]

    return unpack


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A Python whose packages are MONAI and those that the metadata name, with what these need themselves."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    waiting, found = list(OWN_FIELDS.values()), set()
    for bundle in BUNDLES:
        metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
        waiting += metadata["required_packages_version"]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        package = distribution(name)
        needs = map(Requirement, package.requires or [])
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
        for part in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
            if not part.endswith(".pth") and not (site / part).exists():
                (site / part).symlink_to(package.locate_file(part))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def run(python, tmp_path_factory):
    """Run that Python in a folder and return what it printed; ``bundle`` is on its path, the repository is not."""
    home = tmp_path_factory.mktemp("home")

    def run_python(*arguments, cwd, bundle=None):
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "MONAI_FAIL_ON_DUPLICATE_CONFIG": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        if bundle is not None:
            environment["PYTHONPATH"] = str(bundle)
        finished = subprocess.run(
            [python, *map(str, arguments)],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout
        return finished.stdout

    return run_python


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two patients as ``ar2unet prepare`` leaves them, each in a fold of its own."""
    folder, entries = tmp_path_factory.mktemp("dataset"), []
    for fold, shape in enumerate(SHAPES):
        random = np.random.default_rng(fold)
        lesion = np.zeros(shape, np.uint8)
        lesion[12:20, 14:22, 1:3] = 1
        for name in ("t1", "flair", "t1c", "mask"):
            volume = np.zeros(shape, np.uint8)
            volume[5:27, 5:31] = random.integers(80, 120, (22, 26, shape[2]))
            image = nib.Nifti1Image(
                lesion if name == "mask" else volume + 100 * lesion, np.diag([-1.0, -1.0, 1.0, 1.0])
            )
            nib.save(image, folder / f"sub-{fold}_{name}.nii.gz")
        images = [f"sub-{fold}_{name}.nii.gz" for name in ("t1", "flair", "t1c")]
        label = f"sub-{fold}_mask.nii.gz"
        entries.append({"subject": f"sub-{fold}", "site": "CS", "fold": fold, "image": images, "label": label})
    (folder / "datalist.json").write_text(json.dumps({"training": entries}))
    return folder


@pytest.fixture(scope="module")
def trained(unpacked, run, dataset, tmp_path_factory):
    """What a training from the unpacked bundle's folder, as its config describes it, leaves."""
    output = tmp_path_factory.mktemp("trained")
    flags = [part for name, value in SMALL_TRAINING.items() for part in (f"--{name}", value)]
    bundle = unpacked(SEGMENTATION_BUNDLE)
    run(
        *("-m", "monai.bundle", "run", "training", "--config_file", "configs/train.yaml"),
        *("--dataset_dir", dataset, "--output_dir", output, *flags),
        cwd=bundle,
    )
    return output


@pytest.mark.slow
def test_nothing_of_this_repository_can_be_imported_there(run, tmp_path):
    names = ("networks", "transforms", "pipeline", "scripts", "typer", "highdicom", "nibabel", "monai")
    found = run(
        "-c", f"import importlib.util as u; print([n for n in {names} if u.find_spec(n) is not None])", cwd=tmp_path
    )
    assert found.strip() == "['nibabel', 'monai']"


@pytest.mark.slow
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_the_checks_of_the_model_zoo_pass(bundle, unpacked, run, tmp_path):
    root = unpacked(bundle)
    metadata = json.loads((root / "configs" / "metadata.json").read_text())
    schema = REPOSITORY.parent / "shared" / "schema" / metadata["schema"].rpartition("/")[2]
    printed = run("-c", ZOO_CHECKS, root, schema if schema.is_file() else "", cwd=tmp_path, bundle=root)
    assert f"version {metadata['version']} scripts.networks." in printed
    assert metadata["version"] in metadata["changelog"]
    assert all((root / name).is_file() for name in ("LICENSE", "README.md", "models/model.ts"))
    assert [file for file in root.rglob("*") if file.is_file() and file.stat().st_size > 25e6] == []


@pytest.mark.slow
def test_the_mask_is_that_of_the_predictor_voxel_for_voxel_from_any_folder(unpacked, run, tmp_path):
    from pipeline.formats.nifti import read_scan

    lesion = np.asarray(nib.load(SAMPLE / "sub-phantom_label-lesion_mask.nii.gz").dataobj)
    middle = int(lesion.sum(axis=(0, 1)).argmax())
    scans, output, elsewhere = tmp_path / "scans", tmp_path / "masks", tmp_path / "elsewhere"
    scans.mkdir()
    elsewhere.mkdir()
    flair = nib.load(SAMPLE / "sub-phantom_FLAIR.nii.gz").slicer[..., middle - 2 : middle + 4]
    nib.save(flair, scans / "scan.nii.gz")
    bundle = unpacked(SEGMENTATION_BUNDLE)
    before = sorted(bundle.rglob("*"))
    run(
        *("-m", "monai.bundle", "run", "--config_file", bundle / "configs" / "inference.yaml"),
        *("--dataset_dir", scans, "--output_dir", output),
        cwd=elsewhere,
        bundle=bundle,
    )
    mask = np.asarray(nib.load(output / "scan_mask.nii.gz").dataobj)
    expected = Predictor(SEGMENTATION_BUNDLE, device="cpu", engine="torch").predict(read_scan(scans / "scan.nii.gz"))
    assert expected.mask.any()
    np.testing.assert_array_equal(mask, expected.mask)
    assert list(elsewhere.iterdir()) == []
    assert sorted(bundle.rglob("*")) == before


@pytest.mark.slow
def test_training_from_the_bundles_folder_leaves_weights(trained):
    assert {"model_final.pt", "model_best.pt", "checkpoints", "tensorboard"} <= {
        path.name for path in trained.iterdir()
    }


@pytest.mark.slow
def test_evaluation_from_another_folder_scores_the_trained_weights(trained, unpacked, run, dataset, tmp_path):
    bundle, output = unpacked(SEGMENTATION_BUNDLE), tmp_path / "scores"
    configs = [str(bundle / "configs" / name) for name in ("train.yaml", "evaluate.yaml")]
    names = ("fold", "channels", "recurrences", "network_def#backbone")
    flags = [part for name in names for part in (f"--{name}", SMALL_TRAINING[name])]
    run(
        *("-m", "monai.bundle", "run", "evaluating", "--config_file", str(configs).replace(" ", "")),
        *("--dataset_dir", dataset, "--output_dir", output, "--checkpoint", trained / "model_final.pt", *flags),
        cwd=tmp_path,
        bundle=bundle,
    )
    assert json.loads((output / "summary.json").read_text())["patients"] == 1
    assert (output / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_packing_again_in_another_process_gives_the_same_bytes(unpacked, tmp_path):
    archive = unpacked(SEGMENTATION_BUNDLE).parents[1] / f"{SEGMENTATION_BUNDLE.name}.zip"
    command = "from pipeline.cli import main; main()"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "2"}
    subprocess.run(
        [sys.executable, "-c", command, "pack", str(SEGMENTATION_BUNDLE), "-o", "again.zip"],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        timeout=300,
    )
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()
