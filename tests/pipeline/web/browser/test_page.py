"""The page, as people use it."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from pipeline.formats.nifti import read_scan
from pipeline.predictor import Predictor

pytestmark = pytest.mark.slow


def volume_of(content: bytes) -> np.ndarray:
    return np.asanyarray(nib.Nifti1Image.from_bytes(gzip.decompress(content)).dataobj)


def result_of(site: Any, job: dict[str, Any], role: str) -> Any:
    return site.ask(next(result["url"] for result in job["results"] if result["role"] == role))


def ready(page: Any) -> None:
    page.wait_for_selector(".viewer[aria-busy=false]")


def orange_pixels(page: Any) -> int:
    """Count the pixels of the canvas in the colour of the mask: nothing else in it is warm."""
    picture = Image.open(io.BytesIO(page.locator("#scan").screenshot())).convert("RGB")
    red, _, blue = np.moveaxis(np.asarray(picture, np.int16), -1, 0)
    return int((red - blue > 40).sum())


def position(page: Any) -> np.ndarray:
    """Return where the crosshair is, in mm to the right, to anterior, to superior."""
    found = re.findall(r"([RLAPSI]) ([0-9.]+)", page.text_content("#readout").split(" mm")[0])
    assert len(found) == 3
    return np.array([float(value) * (1 if letter in "RAS" else -1) for letter, value in found])


def axial_slice(page: Any) -> int:
    return int(re.search(r"ax (\d+)/", page.text_content("#readout"))[1])


def voxel_at(mm: np.ndarray, affine: np.ndarray) -> tuple[int, ...]:
    return tuple(int(v) for v in np.rint(nib.affines.apply_affine(np.linalg.inv(affine), mm)))


def test_a_scan_is_uploaded_segmented_and_shown_and_its_mask_is_the_librarys(
    site: Any, open_page: Callable[..., Any], scan_file: Path, exported_bundle: Path
) -> None:
    page = open_page(site.url)
    page.set_input_files("#files", scan_file)
    assert page.text_content(".file-name").startswith(scan_file.name)
    page.click("text=Segment it")
    ready(page)
    assert re.search(r"/jobs/[0-9a-f]{32}$", page.url)
    assert page.text_content(".panel h1") == scan_file.name  # known to this tab alone
    job = site.ask(f"/api/jobs/{page.url.rsplit('/', 1)[1]}")
    assert "DOE" not in json.dumps(job)

    page.click("[data-name=axial]")
    page.click(".lesion >> nth=0")
    assert "in the mask" in page.text_content("#readout")
    with_mask = orange_pixels(page)
    page.click("[data-name=none]")
    assert with_mask > 500
    assert orange_pixels(page) < 20
    page.click("[data-name=probability]")
    page.wait_for_selector("#readout >> text=Probability")

    with page.expect_download() as download:
        page.click("[data-role=mask]")
    prediction = Predictor(exported_bundle).predict(read_scan(scan_file))
    np.testing.assert_array_equal(volume_of(Path(download.value.path()).read_bytes()), prediction.mask)
    report = result_of(site, job, "report")
    assert page.text_content("#volume") == f"{report['volume_ml']:.1f} ml"
    assert page.locator(".lesion").count() == report["lesion_count"]


def test_a_mask_is_painted_undone_saved_and_found_again(
    site: Any, open_result: Callable[..., Any], own_job: dict[str, Any], scan_file: Path
) -> None:
    page = open_result(own_job)
    box = page.locator("#scan").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.click("#correct")
    save, undo = page.locator("#save-correction"), page.locator("role=button[name=Undo]")
    assert save.is_disabled()
    before = page.text_content(".amount")
    page.mouse.move(x + 20, y + 60)
    page.mouse.down()
    page.mouse.move(x + 60, y + 60, steps=3)
    page.mouse.up()
    page.wait_for_selector("#save-correction:enabled")
    assert page.text_content(".amount") != before
    undo.click()
    assert page.text_content(".amount") == before
    assert save.is_disabled()

    page.mouse.click(x + 40, y + 70)  # the crosshair, and a dot
    page.keyboard.press("PageUp")
    page.keyboard.press("]")
    page.keyboard.press(" ")
    mm = position(page)
    page.click("#save-correction")
    page.wait_for_selector("text=Correction 1")
    correction = site.ask(f"/api/jobs/{own_job['id']}")["corrections"][0]
    model, corrected = (
        volume_of(content) for content in (result_of(site, own_job, "mask"), site.ask(correction["url"]))
    )
    added = np.argwhere(corrected != model)
    assert corrected[voxel_at(mm, nib.load(scan_file).affine)] == 1
    assert (corrected >= model).all()
    assert len(added) == 9 + 25  # a dot of 3 x 3 and one of 5 x 5, in two neighbouring slices
    planes, counts = np.unique(added[:, 1], return_counts=True)  # the file's axes run to P, S, R
    assert planes[1] == planes[0] + 1
    np.testing.assert_array_equal(counts, (9, 25))
    assert site.ask(correction["provenance_url"])["author"] == "corrected in the web page"

    page.reload()
    ready(page)
    assert page.is_visible("text=Correction 1")
    assert page.is_checked("label:has-text('Model') input")


def test_a_lost_server_is_said_and_costs_no_drawing(open_result: Callable[..., Any], finished: dict[str, Any]) -> None:
    page = open_result(finished)
    page.context.set_offline(True)
    page.click("[data-name=probability]")
    page.wait_for_selector(".toast >> text=The server does not answer")
    assert page.get_attribute("[data-name=mask]", "aria-pressed") == "true"
    page.click(".toast button")
    page.context.set_offline(False)
    page.click("#correct")
    page.focus("#scan")
    page.keyboard.press(" ")
    page.keyboard.press("x")
    page.keyboard.press(" ")
    page.context.set_offline(True)
    page.click("#save-correction")
    page.wait_for_selector(".edit-problem >> text=The server does not answer")
    assert page.is_enabled("#save-correction")


def test_everything_can_be_done_by_keyboard(site: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(site.url)
    page.wait_for_selector(".drop")
    focus_by_tab(page, "document.activeElement.id === 'try-sample'")
    page.keyboard.press("Enter")
    ready(page)
    focus_by_tab(page, "document.activeElement.id === 'scan'")
    page.keyboard.press("2")
    assert page.get_attribute("[data-name=axial]", "aria-pressed") == "true"
    height = axial_slice(page)
    page.keyboard.press("PageUp")
    assert axial_slice(page) == height + 1
    page.keyboard.press("PageDown")
    assert axial_slice(page) == height
    start = position(page)
    page.keyboard.press("ArrowRight")  # on the right of the screen is the patient's left
    page.keyboard.press("ArrowUp")
    moved = position(page) - start
    assert moved[0] < 0
    assert moved[1] > 0
    assert abs(moved[2]) < 0.1
    page.keyboard.press("m")
    assert page.get_attribute("[data-name=none]", "aria-pressed") == "true"
    page.keyboard.press("e")
    page.keyboard.press(" ")
    page.keyboard.press("Control+z")
    focus_by_tab(page, "document.activeElement.textContent === 'Discard'")
    page.keyboard.press("Enter")
    assert page.is_visible("#correct")


def focus_by_tab(page: Any, there: str) -> None:
    for _ in range(60):
        if page.evaluate(there):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"not reached by Tab: {there}")


def test_the_patients_right_is_on_the_left_of_the_screen_and_the_wheel_changes_the_slice(
    open_result: Callable[..., Any], finished: dict[str, Any]
) -> None:
    page = open_result(finished)
    box = page.locator("#scan").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2 - 80, box["y"] + box["height"] / 2)
    left_of_middle = position(page)
    page.mouse.click(box["x"] + box["width"] / 2 + 80, box["y"] + box["height"] / 2 - 60)
    right_of_middle = position(page)
    assert left_of_middle[0] > right_of_middle[0] + 10
    assert right_of_middle[1] > left_of_middle[1] + 10
    before = axial_slice(page)
    page.mouse.wheel(0, 120)
    page.wait_for_function(
        "before => !document.getElementById('readout').textContent.includes(`ax ${before}/`)", arg=before
    )
    assert abs(axial_slice(page) - before) == 1
    page.locator("input[aria-label='Window level']").fill("100")
    page.wait_for_selector("text=/ L 100$/")
    with page.expect_download() as download:
        page.click("#screenshot")
    with Image.open(download.value.path()) as picture:
        assert picture.width >= box["width"]


def test_what_is_no_scan_is_refused_with_what_to_do_next(
    site: Any, open_page: Callable[..., Any], tmp_path: Path, make_nifti: Callable[..., Path]
) -> None:
    page = open_page(site.url)
    picture, text = tmp_path / "holiday.png", tmp_path / "notes.nii"
    Image.new("L", (8, 9)).save(picture)
    text.write_text("this is no scan\n" * 40)
    page.set_input_files("#files", picture)
    assert "is a picture" in page.text_content(".problem-message")
    assert page.text_content(".problem-advice").startswith("Give NIfTI")
    page.set_input_files("#files", text)
    page.click("text=Segment it")
    page.wait_for_selector(".problem-advice >> text=/./")
    assert page.is_visible("text=Choose files")

    page.set_input_files("#files", make_nifti("noise.nii.gz", volume=np.full((11, 13, 7), np.nan, np.float32)))
    page.click("text=Segment it")
    page.wait_for_selector("h1 >> text=This did not work")
    assert page.text_content(".problem-advice")
    page.click("text=Choose another scan")
    page.wait_for_selector(".drop")
    page.goto(f"{site.url}/jobs/{'0' * 32}")
    page.wait_for_selector(".problem-advice")
    assert page.is_visible("text=To the first page")


def test_three_sequences_get_their_roles_and_twice_the_same_is_refused(
    site: Any, open_page: Callable[..., Any], scan_file: Path, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("a_t1.nii.gz", "a_t1ce.nii.gz", "a_FLAIR.nii.gz")]
    for file in files:
        file.write_bytes(scan_file.read_bytes())
    page = open_page(site.url)
    page.set_input_files("#files", files)
    assert [page.input_value(f"#role-{n}") for n in range(3)] == ["t1", "t1c", "flair"]
    page.select_option("#role-0", "flair")
    assert page.is_visible("text=Each sequence can be given once only.")
    assert page.is_disabled("text=Segment it")
    page.select_option("#role-0", "t1")
    page.click("text=Segment it")
    page.wait_for_selector(".panel")
    job = site.ask(f"/api/jobs/{page.url.rsplit('/', 1)[1]}")
    assert sorted(job["upload"]["roles"]) == ["flair", "t1", "t1c"]


def test_the_files_of_a_dicom_series_come_back_as_dicom_seg_too(
    site: Any, open_page: Callable[..., Any], write_series: Callable[..., Path], anatomy: Any
) -> None:
    page = open_page(site.url)
    page.set_input_files("#files", sorted(write_series(volume=anatomy[0]).iterdir()))
    assert page.text_content(".file-name").startswith("9 files")
    page.click("text=Segment it")
    ready(page)
    assert page.is_visible("[data-role=segmentation]")
    assert page.text_content(".panel h1") == "9 files"


def test_a_waiting_job_survives_a_reload_and_can_be_cancelled(site: Any, open_page: Callable[..., Any]) -> None:
    ahead = [site.begin(kind="segmentation", sample=True) for _ in range(3)]
    waiting = site.begin(kind="segmentation", sample=True)
    page = open_page(f"{site.url}/jobs/{waiting}")
    page.wait_for_selector(".steps .now >> text=Waiting")
    page.reload()
    page.click("#cancel")
    page.wait_for_selector("h1 >> text=Cancelled")
    assert site.ask(f"/api/jobs/{waiting}")["state"] == "cancelled"
    for job in ahead:
        site.ask(f"/api/jobs/{job}/cancel", b"")


def test_the_back_button_and_a_shared_link_work(
    site: Any, open_page: Callable[..., Any], finished: dict[str, Any]
) -> None:
    page = open_page(site.url)
    page.click(".job:has(.finished) >> nth=0")
    page.wait_for_selector("#volume")
    page.go_back()
    page.wait_for_selector(".drop")
    page.go_forward()
    page.wait_for_selector("#volume")
    other = open_page(f"{site.url}/jobs/{finished['id']}")  # another browser: it has no more than the link
    other.wait_for_selector("#volume")
    assert other.text_content(".panel h1") == "FLAIR abnormality"


def test_it_fits_a_phone(site: Any, open_page: Callable[..., Any], finished: dict[str, Any]) -> None:
    page = open_page(site.url, viewport={"width": 400, "height": 800}, has_touch=True, is_mobile=True)
    page.wait_for_selector(".drop")
    wide = "document.documentElement.scrollWidth"
    assert page.evaluate(wide) == 400
    page.goto(f"{site.url}/jobs/{finished['id']}")
    ready(page)
    page.tap("#correct")
    assert page.evaluate(wide) == 400
    assert page.is_visible(".research .short")


def test_the_token_is_asked_for_and_never_in_the_address(
    browser: Any, serve_site: Callable[..., Any], open_page: Callable[..., Any]
) -> None:
    token = "correct-horse-battery-staple"
    page = open_page(serve_site(token).url)
    page.fill("#token", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector(".problem")
    page.fill("#token", token)
    page.keyboard.press("Enter")
    page.wait_for_selector(".drop")
    assert token not in page.url
    page.click("#sign-out")
    page.wait_for_selector("#token")


def test_the_page_goes_without_its_viewer(site: Any, open_page: Callable[..., Any], finished: dict[str, Any]) -> None:
    page = open_page("about:blank")
    page.route("**/vendor/niivue.js", lambda route: route.fulfill(status=404))
    page.goto(f"{site.url}/jobs/{finished['id']}")
    ready(page)
    assert "make install" in page.text_content(".problem-advice")
    assert page.is_visible(".overlay-picture")
    assert page.is_visible("[data-role=mask]")


def test_a_slice_is_staged_and_an_answer_that_is_not_sure_is_said_to_be(
    site: Any, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    row, column = np.indices((208, 176))
    radius = np.hypot((row - 104) / 90, (column - 88) / 70)
    file = tmp_path / "rings.png"
    Image.fromarray(np.where(radius < 1, 120 + 60 * np.cos(9 * radius), 0).astype(np.uint8)).save(file)
    page = open_page(site.url)
    page.click("role=tab[name='Dementia staging']")
    assert page.is_visible("text=Stage dementia from a slice")
    page.set_input_files("#files", file)
    page.click("text=Stage it")
    page.wait_for_selector("h2 >> text=Not sure")  # rings are no brain
    assert page.locator(".stage-row").count() == 3
    assert page.locator(".stage-row.likeliest").count() == 1
    assert "Do not use the stage" in page.text_content(".verdict")
    page.wait_for_function("document.querySelector('img.saliency').naturalWidth > 100")
    with page.expect_download() as download:
        page.click("[data-role=report]")
    report = json.loads(Path(download.value.path()).read_text())
    share = f"{round(100 * report['probabilities'][report['stage']])} %"
    assert share in page.text_content(".stage-row.likeliest")


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_there_is_nothing_serious_for_axe_to_find(
    site: Any, open_page: Callable[..., Any], finished: dict[str, Any], scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = open_page(site.url, color_scheme=scheme, bypass_csp=True)
    page.wait_for_selector(".drop")
    found = axe.Axe().run(page).response["violations"]
    page.goto(f"{site.url}/jobs/{finished['id']}")
    ready(page)
    page.click("#correct")
    found += axe.Axe().run(page).response["violations"]
    serious = [(each["id"], each["nodes"][0]["target"]) for each in found if each["impact"] in ("serious", "critical")]
    assert not serious


@pytest.mark.skipif("AR2UNET_SCREENSHOTS" not in os.environ, reason="AR2UNET_SCREENSHOTS names no folder for pictures")
def test_pictures_for_the_readme_are_taken_of_the_sample(site: Any, open_page: Callable[..., Any]) -> None:
    job = site.begin(kind="segmentation", sample=True)
    assert site.wait(job)["state"] == "finished"
    looks = {
        "web_segmentation": {"viewport": {"width": 1400, "height": 900}},
        "web_phone": {"viewport": {"width": 400, "height": 800}, "device_scale_factor": 1.5},
    }
    for name, look in looks.items():
        page = open_page(f"{site.url}/jobs/{job}", **look)
        ready(page)
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        path = Path(os.environ["AR2UNET_SCREENSHOTS"]) / f"{name}.png"
        picture.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)
        assert path.stat().st_size < 300_000
