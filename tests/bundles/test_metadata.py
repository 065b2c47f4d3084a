"""The bundle's metadata, licence and exports."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

REQUIRED_FIELDS = (
    "schema",
    "version",
    "changelog",
    "monai_version",
    "pytorch_version",
    "numpy_version",
    "required_packages_version",
    "task",
    "description",
    "authors",
    "copyright",
    "network_data_format",
)
SMALL_NETWORK = {
    "network_def#channels": [4, 8, 16],
    "network_def#recurrences": 1,
    "network_def#backbone": "none",
}


@pytest.fixture(scope="module")
def small_network(tmp_path_factory):
    """A small network in inference mode, and the file of its weights."""
    from networks.ar2unet import AR2UNet

    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = AR2UNet(2, 3, 2, channels=(4, 8, 16), recurrences=1, patch_size=2).eval()
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(network.state_dict(), path)
    return network, path


def test_the_metadata_has_every_field_that_monai_requires(metadata):
    assert [name for name in REQUIRED_FIELDS if not metadata.get(name)] == []


def test_the_metadata_is_valid_against_the_schema_of_monai(metadata, in_bundle, repository):
    from monai.bundle import verify_metadata

    schema = repository.parent / "shared" / "schema" / metadata["schema"].rpartition("/")[2]
    if not schema.is_file():
        pytest.skip(f"MONAI's {schema.name} is not beside the repository, and tests do not download")
    with pytest.warns(UserWarning, match="No hash value provided"):
        verify_metadata(meta_file="configs/metadata.json", filepath=str(schema))


def test_the_newest_entry_of_the_changelog_is_the_version(metadata):
    newest = max(metadata["changelog"], key=lambda entry: [int(part) for part in entry.split(".")])
    assert newest == metadata["version"]


def test_the_versions_are_those_the_bundle_is_tested_with(metadata):
    stated = {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
        **metadata["required_packages_version"],
    }
    assert stated == {name: version(name).partition("+")[0] for name in stated}


def test_the_data_format_is_that_of_the_network(metadata, network_arguments):
    from transforms.dictionary import ToSliceFramed

    network = network_arguments
    image = metadata["network_data_format"]["inputs"]["image"]
    pred = metadata["network_data_format"]["outputs"]["pred"]
    assert image["num_channels"] == network["in_channels"]
    assert pred["num_channels"] == network["out_channels"]
    assert image["channel_def"] == {"0": "t1", "1": "flair", "2": "t1c"}
    assert pred["channel_def"] == {"0": "background", "1": "FLAIR abnormality"}
    divisor = network["patch_size"] * 2 ** (len(network["channels"]) - 1)
    assert image["spatial_shape"] == pred["spatial_shape"] == [f"{divisor}*n"] * network["spatial_dims"]
    assert ToSliceFramed("image").divisor % divisor == 0


def test_the_network_takes_and_gives_what_the_metadata_say(in_bundle):
    from monai.bundle import verify_net_in_out

    verify_net_in_out("network_def", "configs/metadata.json", "configs/inference.yaml", device="cpu", n=3)


def test_a_network_with_another_number_of_classes_is_noticed(in_bundle):
    from monai.bundle import verify_net_in_out

    other = {"network_def#out_channels": 3, **SMALL_NETWORK}
    with pytest.raises(ValueError, match="output channel number `3` doesn't match: `2`"):
        verify_net_in_out("network_def", "configs/metadata.json", "configs/inference.yaml", device="cpu", n=3, **other)


def test_the_torchscript_export_gives_the_logits_of_the_network(in_bundle, small_network, tmp_path):
    from monai.bundle import ckpt_export

    network, weights = small_network
    path = tmp_path / "model.ts"
    ckpt_export(
        net_id="network_def",
        filepath=str(path),
        ckpt_file=str(weights),
        meta_file="configs/metadata.json",
        config_file="configs/inference.yaml",
        **SMALL_NETWORK,
    )
    image = torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(path)(image), network(image), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings(  # torch.export's own, where it walks through its trees
    "ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning"
)
def test_the_onnx_export_gives_the_logits_of_the_network(in_bundle, small_network, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from monai.bundle import onnx_export

    network, weights = small_network
    path = tmp_path / "model.onnx"
    onnx_export(
        net_id="network_def",
        filepath=str(path),
        ckpt_file=str(weights),
        meta_file="configs/metadata.json",
        config_file="configs/inference.yaml",
        **SMALL_NETWORK,
    )
    session = onnxruntime.InferenceSession(path)
    image = torch.randn(session.get_inputs()[0].shape, generator=torch.Generator().manual_seed(2))
    (logits,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), network(image), rtol=1e-4, atol=1e-4)


def test_the_bundle_has_the_licence_of_the_repository(in_bundle, repository):
    assert Path("LICENSE").read_text() == (repository / "LICENSE").read_text()


def test_the_licence_of_the_data_is_stated_with_its_doubt_and_its_sources(in_bundle):
    text = re.sub(r"\s+", " ", Path("docs/data_license.txt").read_text())
    for statement in ("mateuszbuda/lgg-mri-segmentation", "TCGA-LGG", "CC BY-NC-SA 4.0", "has not been confirmed"):
        assert statement in text
    for source in ("Buda M, ", "Mazurowski MA, ", "Clark K, Vendt B, "):
        assert source in text
