from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from networks.atrophy_classifier import CLASSES, AtrophyClassifier
from pipeline.errors import BundleError
from pipeline.staging.plausibility_model import MILD
from pipeline.staging.reading import T1Slices, read_slices
from pipeline.staging.stager import STAGING_BUNDLE, Stager
from pipeline.staging.stages import STAGES, SURE_ABOVE


@pytest.fixture(scope="session")
def stager(bundle):
    return Stager(bundle)


def given(slices, **others):
    return T1Slices(np.ascontiguousarray(slices, dtype=np.float32), 0.0, False, Path("some.png"), **others)


def probabilities_by_monai(bundle, file, folder):
    """What the bundle's ``inference.yaml``, run by MONAI, writes of one file."""
    from monai.bundle import ConfigParser

    (folder / "in").mkdir()
    shutil.copy(file, folder / "in")
    parser = ConfigParser()
    parser.read_config(STAGING_BUNDLE / "configs" / "inference.yaml")
    parser["bundle_root"], parser["device"] = str(bundle), "$torch.device('cpu')"
    parser["dataset_dir"], parser["output_dir"] = str(folder / "in"), str(folder / "out")
    parser.get_parsed_content("run")
    (written,) = (folder / "out").iterdir()
    return json.loads(written.read_text())["probabilities"]


def test_classes_are_those_of_the_network():
    assert tuple(stage.name for stage in STAGES) == CLASSES


@pytest.mark.parametrize("kind", ["slice", "volume", "taller volume"])
def test_the_answer_is_that_of_the_bundle_run_by_monai(stager, bundle, brain, tmp_path, save_slice, save_volume, kind):
    if kind == "slice":
        file = save_slice(brain[11])
    else:
        tall = np.concatenate([brain[:1] // 2] * 3 + [brain, brain[-1:] // 2])
        file = save_volume(brain if kind == "volume" else tall, "LAI")
    (tmp_path / "monai").mkdir()
    reference = probabilities_by_monai(bundle, file, tmp_path / "monai")
    found = stager.stage(read_slices(file)).probabilities
    np.testing.assert_allclose(found, [reference[name] for name in CLASSES], atol=6e-5)  # written with four digits


def test_nothing_but_torch_is_imported_and_no_monai(bundle, save_slice, brain):
    code = (
        "import sys; from pathlib import Path; from pipeline.staging.case import stage_case;"
        "from pipeline.staging.stager import Stager;"
        "stage_case(Stager(Path(sys.argv[1])), Path(sys.argv[2]), None);"
        "print([name for name in ('monai', 'scipy', 'matplotlib', 'nibabel', 'pydicom') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, bundle, save_slice(brain[4])], capture_output=True, text=True, check=True
    )
    assert run.stdout == "[]\n"


def test_a_volume_is_answered_with_the_spread_of_its_slices(stager, bundle, brain):
    staging = stager.stage(given(brain))
    network = AtrophyClassifier()
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    image = torch.from_numpy(brain.astype(np.float32))
    each = network.slice_logits(image[:, None], torch.arange(32)).softmax(1).numpy()
    np.testing.assert_allclose(staging.spread, np.percentile(each, (10, 90), axis=0).T, atol=1e-5)
    np.testing.assert_allclose(staging.probabilities, network(image[None])[0].softmax(0).numpy(), atol=1e-5)
    assert staging.positions == tuple(range(32))
    assert staging.contributions.shape == staging.slices.shape == (32, 208, 176)


def test_a_single_slice_has_no_spread_and_says_where_it_belongs(stager, brain):
    staging = stager.stage(given(brain[19:20]))
    assert staging.spread is None
    assert abs(staging.positions[0] - 19) <= 1
    assert f"resembles number {staging.positions[0] + 1} of" in staging.notes[0]
    assert staging.contributions.shape == (1, 208, 176)


def test_of_a_taller_volume_the_fitting_slices_are_taken_and_it_is_said(stager, brain):
    tall = np.concatenate([np.zeros_like(brain[:6]), brain, brain[:3]])
    staging = stager.stage(given(tall, notes=("read somehow",)))
    np.testing.assert_allclose(staging.probabilities, stager.stage(given(brain)).probabilities)
    assert np.array_equal(staging.slices, brain)
    assert staging.notes[0] == "read somehow"
    assert staging.notes[1].startswith("Slices 7 to 38 of 41")


def test_larger_ventricles_mean_a_later_stage(stager, subjects):
    images, labels = subjects
    found = [stager.stage(given(image)).probabilities.argmax() for image in images]
    assert np.mean(np.array(found) == labels) > 0.9


def test_contributions_add_up_to_the_difference_from_the_mean_subject(stager, brain):
    first, second = (stager.stage(given(image)) for image in (brain, MILD["gamma 1.2"](brain.astype(np.float32))))
    odds = [np.log(staging.dementia / staging.probabilities[0]) for staging in (first, second)]
    sums = [float(staging.contributions.sum()) for staging in (first, second)]
    assert sums[0] != pytest.approx(sums[1], abs=1e-3)
    assert odds[0] - sums[0] == pytest.approx(odds[1] - sums[1], abs=2e-2)


def test_the_answer_is_sure_only_if_likely_and_plausible(stager, brain):
    staging = stager.stage(given(brain))
    for dementia, sure in ((0.75, True), (0.65, False), (0.35, False), (0.25, True)):
        chances = np.array([1 - dementia, dementia * 0.6, dementia * 0.4])
        assert replace(staging, probabilities=chances).sure is sure
        assert replace(staging, probabilities=chances, warnings=("odd",)).sure is False
    assert SURE_ABOVE == 0.7


def test_the_likeliest_class_is_the_stage(stager, brain):
    staging = stager.stage(given(brain))
    assert [replace(staging, probabilities=np.eye(3)[n]).stage.cdr for n in range(3)] == ["0", "0.5", "1 or more"]


def test_an_implausible_slice_is_warned_of(stager, brain):
    staging = stager.stage(given(brain[5:6, ::-1]))
    assert "upside down" in staging.warnings[0]


def test_a_colored_picture_is_warned_of(stager, brain):
    assert stager.stage(given(brain[5:6])).warnings == ()
    assert "color: red" in stager.stage(replace(given(brain[5:6]), color=12.0)).warnings[0]


def test_a_bundle_without_plausibility_says_so(bundle, brain, tmp_path):
    shutil.copytree(bundle, tmp_path / "b")
    (tmp_path / "b" / "models" / "plausibility.json").unlink()
    staging = Stager(tmp_path / "b").stage(given(brain[5:6]))
    assert "cannot tell whether" in staging.warnings[0]
    assert not staging.sure


def test_a_folder_that_is_no_bundle_is_refused(tmp_path, bundle):
    with pytest.raises(BundleError, match=r"must be a staging bundle .* got none at .*metadata\.json"):
        Stager(tmp_path)
    shutil.copytree(bundle, tmp_path / "b")
    (tmp_path / "b" / "configs" / "metadata.json").write_text("[]")
    with pytest.raises(BundleError, match="must be JSON with a version"):
        _ = Stager(tmp_path / "b").version
    (tmp_path / "b" / "models" / "model.pt").write_bytes(b"nothing")
    with pytest.raises(BundleError, match="must hold the weights"):
        _ = Stager(tmp_path / "b").network
