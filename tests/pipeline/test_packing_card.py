"""The model card of a packed bundle: what the Hugging Face Hub reads of it, and that it says nothing of its own."""

from __future__ import annotations

import json
import re
import zipfile

import pytest
import yaml

from pipeline.errors import BundleError
from pipeline.packing import bundle as packing
from pipeline.packing.bundle import REPOSITORY, pack_bundle
from pipeline.packing.card import model_card

BUNDLES = sorted(path.parents[1] for path in REPOSITORY.glob("bundles/*/models/model.pt"))

# Identifiers of https://huggingface.co/docs/hub/repositories-licenses and https://huggingface.co/tasks.
LICENSES = ("cc-by-nc-sa-4.0", "unknown")
TASKS = ("image-segmentation", "image-classification")

FRONT_MATTER = """license: cc-by-4.0
model-index:
- name: some_segmentation
  results:
  - task: {type: image-segmentation}
    metrics:
    - {type: dice, value: mean_dice}
"""
METADATA = {"eval_metrics": {"mean_dice": 0.75, "median_dice": 0.5}}
FILES = ("LICENSE", "docs/data.txt", "docs/images/a.png")


def split_card(card):
    """Return what the Hub reads and the text."""
    _, front_matter, text = card.split("---\n", 2)
    return yaml.safe_load(front_matter), text


@pytest.fixture(params=BUNDLES, ids=lambda bundle: bundle.name, scope="module")
def shipped(request, tmp_path_factory):
    """A shipped bundle's folder, and its packed files by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "export_torchscript", lambda folder, config: b"")
        archive = pack_bundle(request.param, tmp_path_factory.mktemp("packed") / "x.zip").archive
    with zipfile.ZipFile(archive) as content:
        return request.param, {name.partition("/")[2]: content.read(name) for name in content.namelist()}


def test_the_hub_reads_the_licence_of_the_weights_the_library_and_the_task(shipped):
    bundle, files = shipped
    card, _ = split_card(files["README.md"].decode())
    said = (bundle / "docs" / "data_license.txt").read_text()
    # Never that of the code, which LICENSE has.
    assert card["license"] == LICENSES["CC BY-NC-SA 4.0" not in said]
    assert card["library_name"] == "monai"
    assert card["pipeline_tag"] in TASKS
    assert {"monai", "medical"} <= set(card["tags"])


def test_every_figure_is_one_of_the_metadata_and_of_the_documentation(shipped):
    bundle, files = shipped
    card, text = split_card(files["README.md"].decode())
    (model,) = card["model-index"]
    assert model["name"] == bundle.name
    values = [metric["value"] for result in model["results"] for metric in result["metrics"]]
    assert values == list(json.loads((bundle / "configs" / "metadata.json").read_text())["eval_metrics"].values())
    assert all(re.search(rf"\b{value:.3f}\b", text) for value in values)
    for result in model["results"]:
        assert {"type", "name"} <= set(result["dataset"])
        assert all({"type", "name", "value"} == set(metric) for metric in result["metrics"])


def test_the_text_is_the_documentation_but_for_its_links_which_lead_to_packed_files(shipped):
    bundle, files = shipped
    _, text = split_card(files["README.md"].decode())
    documentation = (bundle / "docs" / "README.md").read_text()
    assert text.strip().replace("](docs/", "](") == documentation.strip()
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    assert targets
    assert set(targets) <= set(files)


def test_the_card_is_the_only_readme(shipped):
    # MONAI's push_to_hf_hub makes a card of docs/README.md where there is one, with the licence of the code.
    _, files = shipped
    assert "docs/README.md" not in files
    assert "docs/huggingface.yaml" not in files


def test_the_hubs_own_library_reads_the_card(shipped, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    bundle, files = shipped
    (tmp_path / "README.md").write_bytes(files["README.md"])
    data = hub.ModelCard.load(tmp_path / "README.md").data
    assert data.model_name == bundle.name
    assert [result.metric_value for result in data.eval_results]


def test_figures_stand_where_their_names_stood_and_links_lead_from_the_root():
    text = "# A\n[data](data.txt) ![a](images/a.png) [l](../LICENSE) [top](#a) [site](https://example.org/x)\n"
    card, moved = split_card(model_card(text, FRONT_MATTER, METADATA, FILES))
    assert card["model-index"][0]["results"][0]["metrics"] == [{"type": "dice", "value": 0.75}]
    assert moved == (
        "\n# A\n[data](docs/data.txt) ![a](docs/images/a.png) [l](LICENSE) [top](#a) [site](https://example.org/x)\n"
    )


@pytest.mark.parametrize(
    ("front_matter", "text", "reason"),
    [
        ("tags: [a]", "", "must have a license"),
        ("[1]", "", "must have a license"),
        ("license: [", "", "huggingface.yaml must be a config"),
        (FRONT_MATTER.replace("mean_dice", "0.99"), "", r"one of eval_metrics \(mean_dice, median_dice\), got 0.99"),
        (FRONT_MATTER.replace("mean_dice", "best_dice"), "", "got best_dice"),
        (FRONT_MATTER, "[x](nowhere.txt)", "must lead to a file of the bundle, got nowhere.txt"),
    ],
)
def test_what_the_card_cannot_say_is_refused_in_one_line(front_matter, text, reason):
    with pytest.raises(BundleError, match=reason) as caught:
        model_card(text, front_matter, METADATA, FILES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("readme", "reason"), [(None, "must have docs/README.md"), (b"\xff", "must be text in UTF-8")])
def test_a_described_bundle_without_a_readable_text_is_refused(readme, reason):
    entries = {"docs/huggingface.yaml": FRONT_MATTER.encode(), "configs/metadata.json": json.dumps(METADATA).encode()}
    if readme is not None:
        entries["docs/README.md"] = readme
    with pytest.raises(BundleError, match=reason):
        packing._write_card(entries)


def test_a_bundle_that_describes_no_card_keeps_its_documentation():
    entries = {"docs/README.md": b"words"}
    packing._write_card(entries)
    assert entries == {"docs/README.md": b"words"}
