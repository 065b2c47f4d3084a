from __future__ import annotations

import html
import io
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image, ImageDraw

import pipeline
from pipeline.errors import AR2UNetError, ScanError
from pipeline.staging.case import stage_case
from pipeline.staging.content import describe_staging
from pipeline.staging.saliency import AGAINST, FOR, draw_saliency
from pipeline.staging.stager import Stager
from pipeline.staging.stages import STAGES, verdict

SCHEMA = json.loads((Path(pipeline.__file__).parent / "schemas" / "stage.schema.json").read_text())


@pytest.fixture(scope="session")
def stager(bundle):
    return Stager(bundle)


@pytest.mark.parametrize("kind", ["slice", "volume", "implausible"])
def test_the_folder_holds_the_stage_as_the_schema_describes_it(stager, brain, tmp_path, save_slice, save_volume, kind):
    made = {"slice": lambda: save_slice(brain[9]), "volume": lambda: save_volume(brain)}
    file = made.get(kind, lambda: save_slice(np.ascontiguousarray(brain[9, ::-1])))()
    result = stage_case(stager, file, tmp_path / "new" / "out")
    content = json.loads(result.paths.stage.read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(content)
    assert content == json.loads(json.dumps(result.content))
    assert content["input"] == file.name
    assert content["slices_used"] == (32 if kind == "volume" else 1)
    assert (content["spread"] is None) == (kind != "volume")
    assert (content["position"] is None) == (kind == "volume")
    assert content["plausible"] == (kind != "implausible")
    assert sum(content["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert content["stage"] == max(content["probabilities"], key=content["probabilities"].get)
    assert content["weights_sha256"] == stager.weights_sha256
    assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == {"stage.json", "saliency.png", "stage.html"}


def test_the_schema_refuses_what_is_no_stage(stager, brain, tmp_path, save_slice):
    content = dict(stage_case(stager, save_slice(brain[9]), None).content)
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.check_schema(SCHEMA)
    for key, value in (("sure", "yes"), ("cdr", "2"), ("sure_above", 1.2), ("notice", ""), ("spread", {})):
        assert not validator.is_valid({**content, key: value}), key
    assert not validator.is_valid({key: value for key, value in content.items() if key != "probabilities"})


def test_without_a_folder_nothing_is_written(stager, brain, tmp_path, save_slice):
    file = save_slice(brain[9])
    assert stage_case(stager, file, None).paths is None
    assert list(tmp_path.iterdir()) == [file]


def test_a_bad_file_leaves_no_folder(stager, tmp_path, save_slice, brain):
    with pytest.raises(ScanError):
        stage_case(stager, save_slice(brain[9][:50]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_one_line(stager, tmp_path, save_slice, brain):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(AR2UNetError, match="cannot make the folder"):
        stage_case(stager, save_slice(brain[9]), tmp_path / "out")


def test_the_page_shows_verdict_warning_and_picture_and_loads_nothing(stager, brain, tmp_path, save_slice):
    file = save_slice(np.ascontiguousarray(brain[9, ::-1]), "a&b.png")
    page = stage_case(stager, file, tmp_path / "out").paths.page.read_text()
    assert "Not sure" in page
    assert "Not a diagnosis" in page
    assert "a&amp;b.png" in page
    assert "upside down" in page
    assert "data:image/png;base64," in page
    assert 'src="http' not in page
    assert "<link" not in page
    assert "<script" not in page


def test_a_line_says_stage_rating_probabilities_and_that_it_is_no_diagnosis(stager, brain, save_slice):
    result = stage_case(stager, save_slice(brain[9]), None)
    line = describe_staging(result.staging)
    assert f"(CDR {result.content['cdr']})" in line
    assert line.endswith("not a diagnosis")
    assert ("not sure" in line) != result.content["sure"]
    for share in result.content["probabilities"].values():
        assert f"{share:.2f}" in line
    odd = stage_case(stager, save_slice(np.ascontiguousarray(brain[9, ::-1]), "odd.png"), None)
    assert "not sure (the input is unlike the training slices)" in describe_staging(odd.staging)


def test_a_sure_answer_says_dementia_or_none_and_an_unsure_one_that_it_is():
    none, mild, _ = STAGES
    assert verdict(none, sure=True) == "no dementia (CDR 0)"
    assert verdict(mild, sure=True) == "dementia; likeliest very mild (CDR 0.5)"
    assert verdict(mild, sure=False) == "not sure; likeliest very mild (CDR 0.5)"


def test_positions_are_counted_from_one_and_notes_are_passed_on(stager, brain, save_slice, tmp_path):
    result = stage_case(stager, save_slice(brain[9]), tmp_path / "out")
    content, page = result.content, result.paths.page.read_text()
    assert content["position"] == result.staging.positions[0] + 1
    assert f"resembles number {content['position']} of" in content["notes"][0]
    assert content["notes"] == list(result.staging.notes)
    assert all(f"<li>{html.escape(note)}</li>" in page for note in content["notes"])


def test_the_page_of_a_volume_has_each_class_with_the_spread_of_the_slices(stager, brain, save_volume, tmp_path):
    result = stage_case(stager, save_volume(brain), tmp_path / "out")
    page = result.paths.page.read_text()
    for stage in STAGES:
        low, high = result.content["spread"][stage.name]
        chance = result.content["probabilities"][stage.name]
        cells = (stage.words, stage.cdr, f"{chance:.2f}", f"{low:.2f} to {high:.2f}")
        assert "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" in page


@pytest.fixture
def written(monkeypatch):
    """What is written into pictures: text and the column it begins, centres or ends at."""
    texts, text = [], ImageDraw.ImageDraw.text

    def record(draw, place, words, *arguments, **keywords):
        texts.append((words, place[0]))
        return text(draw, place, words, *arguments, **keywords)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return texts


@pytest.mark.parametrize("sides_known", [True, False])
def test_the_patients_left_is_on_the_left_of_each_panel_of_a_volume(
    stager, brain, save_volume, written, tmp_path, sides_known
):
    staging = stage_case(stager, save_volume(brain), None).staging
    picture = painted(staging, sides_known)
    mark = "" if sides_known else "?"
    left, right = ([x for words, x in written if words == letter + mark] for letter in "LR")
    assert len(left) == len(right) == 8
    assert all(a < b for a, b in zip(left, right, strict=True))
    numbers = [int(words.split()[1]) for words, _ in written if words.startswith("slice ")]
    assert numbers == [3, 7, 11, 15, 19, 23, 27, 31]
    assert any("Not a diagnosis" in words for words, _ in written)
    bar = picture[picture.shape[0] - 90 + 7, 14:314].astype(float)  # from against to for
    assert np.abs(bar[0] - AGAINST).max() < np.abs(bar[0] - FOR).max()
    assert np.abs(bar[-1] - FOR).max() < np.abs(bar[-1] - AGAINST).max()


def test_the_legend_is_in_log_odds_per_square_or_cubic_centimetre(stager, brain, save_slice, save_volume, written):
    for file, number, unit in ((save_slice(brain[9]), "+0.25", "square cm"), (save_volume(brain), "+2.50", "cubic cm")):
        staging = stage_case(stager, file, None).staging
        written.clear()
        painted(replace(staging, contributions=np.full_like(staging.contributions, 0.0025)))
        words = [text for text, _ in written]
        assert number in words
        assert f"0 log odds per {unit}" in words


def painted(staging, sides_known=False):
    return np.asarray(Image.open(io.BytesIO(draw_saliency(staging, "x.png", sides_known=sides_known))).convert("RGB"))


def test_what_speaks_for_dementia_is_orange_where_it_is_and_what_speaks_against_it_blue(stager, brain, save_slice):
    from dataclasses import replace

    staging = stage_case(stager, save_slice(brain[9]), None).staging
    contributions = np.zeros((1, 208, 176), np.float32)
    contributions[0, 48:88, 112:144] = 1  # front right
    contributions[0, 120:152, 40:72] = -1  # back left
    picture = painted(replace(staging, contributions=contributions)).astype(int)
    height, width = picture.shape[:2]
    panel = picture[90 : height - 110, width // 2 :]
    for color, front, right in ((FOR, True, True), (AGAINST, False, False)):
        near = np.argwhere(np.abs(panel - (0.8 * color + 0.2 * 150)).max(axis=-1) < 45)
        assert len(near) > 500
        row, column = near.mean(axis=0) / panel.shape[:2]
        assert (row < 0.5) == front
        assert (column > 0.5) == right
    plain = picture[90 : height - 110, : width // 2 - 10]
    assert (np.ptp(plain, axis=-1) == 0).all()


def test_sides_that_the_file_does_not_state_have_a_question_mark(stager, brain, save_slice):
    staging = stage_case(stager, save_slice(brain[9]), None).staging
    assert not np.array_equal(painted(staging), painted(staging, sides_known=True))


def test_nothing_to_show_is_drawn_all_the_same(stager, brain, save_slice):
    from dataclasses import replace

    staging = stage_case(stager, save_slice(brain[9]), None).staging
    assert painted(replace(staging, contributions=np.zeros_like(staging.contributions))).any()
