"""How often slices and volumes of each kind raise a warning, each subject judged by a model that does not know it.

    python bench/stage_plausibility.py DATA --lgg KAGGLE_3M --json stage_plausibility.json

DATA is what `ar2unet prepare dementia` wrote. Suitable input should raise none.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from pipeline.staging.frame import COLUMNS, ROWS, SLICES
from pipeline.staging.plausibility import Floats, PlausibilityModel
from pipeline.staging.plausibility_model import MILD, fit_plausibility, read_subjects

FOLDS = 5
BRAIN = slice(16, 189), slice(18, 158)  # rows and columns that the training brains fill
Change = Callable[[Floats], Floats]


def turned(angle: float) -> Change:
    """Return what turns slices by an angle in degrees."""
    return lambda slices: ndimage.rotate(slices, angle, axes=(1, 2), reshape=False, order=1)


def inverted_inside(slices: Floats) -> Floats:
    """Exchange dark and bright in the brain."""
    return np.where(slices > 8, 263 - slices, 0).astype(np.float32)


def noisy(slices: Floats) -> Floats:
    """Add noise of 15 % of the brightest value."""
    return slices + np.random.default_rng(0).normal(0, 0.15 * 255, slices.shape).astype(np.float32)


def blurred(slices: Floats) -> Floats:
    """Blur by two pixels."""
    return ndimage.gaussian_filter(slices, (0, 2, 2))


def shifted(slices: Floats) -> Floats:
    """Move by eight pixels along both axes."""
    return np.roll(slices, (0, 8, 8), axis=(0, 1, 2))


def scaled(slices: Floats) -> Floats:
    """Make the brain a tenth smaller, about the middle."""
    return ndimage.affine_transform(slices, (1, 1 / 0.9, 1 / 0.9), (0, -11, -9), order=1)


SUITABLE: dict[str, Change] = {**MILD, "JPEG of quality 60": lambda slices: np.stack([jpeg(image) for image in slices])}
UNSUITABLE: dict[str, Change] = {
    "upside down": lambda slices: slices[:, ::-1],
    "mirrored, left and right exchanged": lambda slices: slices[:, :, ::-1],
    "turned by 180 degrees": lambda slices: slices[:, ::-1, ::-1],
    "turned by 90 degrees": lambda slices: np.stack([fit_frame(image.T[::-1]) for image in slices]),
    "turned by 10 degrees": turned(10),
    "turned by 5 degrees": turned(5),
    "moved by 8 pixels": shifted,
    "a tenth smaller": scaled,
    "negative": lambda slices: 255 - slices,
    "dark and bright exchanged in the brain": inverted_inside,
    "15 % noise": noisy,
    "blurred (sigma 2 pixels)": blurred,
    "slices in reverse order": lambda slices: slices[::-1],
}


def jpeg(image: Floats) -> Floats:
    """Return what JPEG of quality 60 leaves of a slice."""
    file = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file), dtype=np.float32)


def fit_frame(image: NDArray[np.generic]) -> Floats:
    """Cut or pad to the frame, about the middle."""
    result = np.zeros((ROWS, COLUMNS), np.float32)
    rows, columns = min(ROWS, image.shape[0]), min(COLUMNS, image.shape[1])
    top, left = (image.shape[0] - rows) // 2, (image.shape[1] - columns) // 2
    down, right = (ROWS - rows) // 2, (COLUMNS - columns) // 2
    result[down : down + rows, right : right + columns] = image[top : top + rows, left : left + columns]
    return result


def resized(image: NDArray[np.generic], size: tuple[int, int] = (COLUMNS, ROWS)) -> Floats:
    """Return an image of another size in columns and rows."""
    return np.asarray(Image.fromarray(image.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))


def in_brain_box(image: NDArray[np.generic], foreground: NDArray[np.bool_]) -> Floats:
    """Enlarge what is foreground to the box that the training brains fill: the hardest case."""
    rows, columns = (np.flatnonzero(foreground.any(axis=axis)) for axis in (1, 0))
    cut = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    result = np.zeros((ROWS, COLUMNS), np.float32)
    result[BRAIN] = resized(cut, (BRAIN[1].stop - BRAIN[1].start, BRAIN[0].stop - BRAIN[0].start))
    return result


def tumour_slices(lgg: Path) -> Iterator[tuple[str, Floats]]:
    """Yield slices of tumour patients: the three middle fifths, each sequence, squeezed and with the head enlarged."""
    for folder in sorted(path for path in lgg.iterdir() if path.is_dir()):
        files = [path for path in folder.glob("*.tif") if "mask" not in path.name]
        files.sort(key=lambda path: int(path.stem.rpartition("_")[2]))
        for share in (0.35, 0.5, 0.65):
            image = np.asarray(Image.open(files[int(share * len(files))])).astype(np.float32)
            head = image[..., 1] > 20
            for channel, name in ((0, "T1 with skull"), (1, "tumour FLAIR"), (2, "T1 with contrast and skull")):
                yield f"{name}, resized", resized(image[..., channel])
                yield f"{name}, head in the brain's box", in_brain_box(image[..., channel], head)


def icbm_slices() -> Iterator[tuple[str, Floats]]:
    """Yield the ICBM152 mean T1 of nilearn: the brain cut out, in the brain's box, and other planes."""
    import nibabel
    from nilearn.datasets import data

    folder = Path(data.__path__[0])
    parts = [
        nibabel.load(folder / f"mni_icbm152_{p}_tal_nlin_sym_09a_converted.nii.gz").get_fdata()
        for p in ("t1", "gm", "wm")
    ]
    brain = (parts[1] + parts[2]) > 0.1 * max(parts[1].max(), parts[2].max())
    t1 = parts[0] * ndimage.binary_closing(brain, iterations=3)
    for k in range(70, 102, 2):
        yield "mean T1 of another atlas, brain in the box", in_brain_box(t1[:, ::-1, k].T, t1[:, ::-1, k].T > 0)
    for k in range(80, 160, 8):
        yield "coronal T1, brain in the box", in_brain_box(t1[:, k, ::-1].T, t1[:, k, ::-1].T > 0)
    for k in range(60, 140, 8):
        yield "sagittal T1, brain in the box", in_brain_box(t1[k, :, ::-1].T, t1[k, :, ::-1].T > 0)


def other_pictures() -> Iterator[tuple[str, Floats, float]]:
    """Yield what is no MR slice, with its color."""
    import skimage.data
    import sklearn.datasets

    photographs = [
        Path(skimage.data.__file__).parent / f"{n}"
        for n in (
            "astronaut.png",
            "chelsea.png",
            "coffee.png",
            "rocket.jpg",
            "motorcycle_left.png",
            "ihc.png",
            "retina.jpg",
            "hubble_deep_field.jpg",
        )
    ]
    photographs += [Path(sklearn.datasets.__file__).parent / "images" / n for n in ("china.jpg", "flower.jpg")]
    for path in photographs:
        image = Image.open(path).convert("RGB")
        for box in ((0, 0, 1, 1), (0, 0, 0.6, 0.6), (0.4, 0.4, 1, 1), (0.4, 0, 1, 0.6), (0, 0.4, 0.6, 1)):
            part = image.crop(tuple(int(b * image.size[n % 2]) for n, b in enumerate(box))).resize((COLUMNS, ROWS))
            values = np.asarray(part).astype(np.float32)
            yield (
                "color photograph",
                np.asarray(part.convert("L")).astype(np.float32),
                float(np.ptp(values, axis=-1).mean()),
            )
            yield "grey photograph", np.asarray(part.convert("L")).astype(np.float32), 0.0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        yield "white noise", rng.uniform(0, 255, (ROWS, COLUMNS)).astype(np.float32), 0.0
        yield (
            "smooth noise",
            ndimage.gaussian_filter(rng.normal(0, 1, (ROWS, COLUMNS)), 1 + seed % 8).astype(np.float32) * 100 + 100,
            0.0,
        )
        font = ImageFont.load_default(8 + seed % 20)
        ground = 255 * (seed % 2)
        page = Image.new("L", (COLUMNS, ROWS), ground)
        text = "\n".join(
            " ".join(rng.choice(["brain", "slice", "report", "of", "the", "patient", "1923", "scan"], 12))
            for _ in range(30)
        )
        ImageDraw.Draw(page).text((3, 3), text, 255 - ground, font)
        yield "text", np.asarray(page).astype(np.float32), 0.0
    yield "one white disc", (np.hypot(*np.ogrid[-104:104, -88:88]) < 70).astype(np.float32) * 255, 0.0


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--lgg", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = list(read_subjects(options.data))
    counts: dict[str, list[int]] = {}

    def count(name: str, warned: bool) -> None:
        row = counts.setdefault(name, [0, 0])
        row[0] += warned
        row[1] += 1

    others = [(n, s, 0.0) for n, s in tumour_slices(options.lgg)] if options.lgg else []
    others += [(n, s, 0.0) for n, s in icbm_slices()] + list(other_pictures())
    for fold in range(FOLDS):
        model: PlausibilityModel = fit_plausibility([s for e, s in found if e["fold"] != fold])
        left_out = [slices for entry, slices in found if entry["fold"] == fold]
        for number, slices in enumerate(left_out):
            for name, change in (SUITABLE if number % 4 else {**SUITABLE, **UNSUITABLE}).items():
                changed = np.ascontiguousarray(change(slices), dtype=np.float32)
                if "reverse" not in name:
                    for k in range(number % 4, SLICES, 4):
                        count(f"slice: {name}", bool(model.find_unusual(changed[k : k + 1])))
                count(f"volume: {name}", bool(model.find_unusual(changed)))
        for name, image, color in others:
            count(f"slice: {name}", bool(model.find_unusual(image[None], color)))
    print("| input | should warn | warned |\n|---|---|---|")
    for name, (warned, total) in counts.items():
        wanted = "no" if name.partition(": ")[2] in SUITABLE else "yes"
        print(f"| {name} | {wanted} | {warned} of {total} ({100 * warned / total:.1f} %) |")
    if options.json:
        options.json.write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    main()
