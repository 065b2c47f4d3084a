"""The four-class dementia data as published: which names its slices have, and how a subject's slices are read.

The publisher gives single slices and no subjects. The names tell them all the same. Each stage has its subjects in one
order, and its files are the slices 1, 2, … 32 of all of them: ``train/NonDemented/nonDem<i>.jpg`` counts subjects
first and slices second, ``test/NonDemented/<slice> (<n>).jpg`` goes on where train ends, within slice 26. Train has the
subjects in the order in which the names ``27 (1).jpg``, written ``27.jpg``, to ``27 (100).jpg`` sort as text.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import DatasetError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LAYOUT", "SLICES", "STAGES", "DementiaSubject", "Stage", "find_images", "published_files", "read_subject"]

LAYOUT = (
    "the data set holds train and test, each with the folders NonDemented, VeryMildDemented, MildDemented and "
    "ModerateDemented of JPEG slices"
)
SLICES = 32
TRAIN_SLICES = 25  # all of these are in train; the next one is divided, the rest is in test
IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class Stage(NamedTuple):
    """One class as published: its label by severity, its folder, how its names in train begin, and how many there are.

    ``train_files`` says where slice 26 is divided: what exceeds 25 slices of all subjects.
    """

    label: int
    folder: str
    prefix: str
    subjects: int
    train_files: int


STAGES = (
    Stage(0, "NonDemented", "nonDem", 100, 2560),
    Stage(1, "VeryMildDemented", "verymildDem", 70, 1792),
    Stage(2, "MildDemented", "mildDem", 28, 717),
    Stage(3, "ModerateDemented", "moderateDem", 2, 52),
)


@dataclass(frozen=True)
class DementiaSubject:
    """One subject: who, which stage, its published files from slice 1 on, a hash of their bytes, and their pixels.

    Attributes:
        subject: Such as ``sub-NonDemented001``; the number is the place among the stage's files in train.
        stage: The stage's folder, such as ``NonDemented``.
        label: The stage's label, 0 (non demented) to 3 (moderate).
        files: Published paths below the data set's folder, slice 1 first.
        fingerprint: Of the files' names and bytes.
        slices: uint8 ``(slices, rows, columns)``.
    """

    subject: str
    stage: str
    label: int
    files: tuple[str, ...]
    fingerprint: str
    slices: NDArray[np.uint8]


def published_files(stage: Stage) -> list[tuple[str, ...]]:
    """List each subject's published files, slice 1 first, subjects in their order in train."""
    train, test = f"train/{stage.folder}/{stage.prefix}", f"test/{stage.folder}/"

    def name(slice_number: int, number: int) -> str:
        return f"{slice_number}.jpg" if number == 1 else f"{slice_number} ({number}).jpg"

    # The numbers of test in the order of train: 10, 100, 11, … 2, 20, … 99, 1.
    order = sorted(range(1, stage.subjects + 1), key=lambda number: name(TRAIN_SLICES + 2, number))
    in_train = stage.train_files - TRAIN_SLICES * stage.subjects  # of the divided slice: numbers 2, 3, …, if not all
    whole = in_train == stage.subjects
    divided = [number for number in order if whole or 2 <= number <= in_train + 1]
    subjects = []
    for position, number in enumerate(order):
        files = [f"{train}{slice_index * stage.subjects + position}.jpg" for slice_index in range(TRAIN_SLICES)]
        if number in divided:
            files.append(f"{train}{TRAIN_SLICES * stage.subjects + divided.index(number)}.jpg")
        first = len(files) + 1
        files += [f"{test}{name(slice_number, number)}" for slice_number in range(first, SLICES + 1)]
        subjects.append(tuple(files))
    return subjects


def find_images(source: Path) -> set[str]:
    """Find the images below train and test as paths relative to ``source``, with slashes; hidden files are none."""
    return {
        path.relative_to(source).as_posix()
        for split in ("train", "test")
        for path in (source / split).rglob("*")
        if path.suffix.lower() in IMAGES and not path.name.startswith(".")
    }


def read_subject(
    source: Path, name: str, stage: Stage, files: Sequence[str], present: set[str], owners: dict[str, list[str]]
) -> DementiaSubject:
    """Read a subject's slices, and enter the hash of each into ``owners``."""
    import numpy as np

    missing = [file for file in files if file not in present]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DatasetError(f"{name}: {missing[0]}{others} missing of its {len(files)} slices")
    digest = hashlib.sha256()
    slices: list[NDArray[np.uint8]] = []
    for file in files:
        content = read_bytes(source / file, f"{name}: {file}")
        owners[hashlib.sha256(content).hexdigest()].append(file)
        digest.update(f"\n{file} {len(content)}\n".encode())
        digest.update(content)
        slices.append(decode_slice(content, f"{name}: {file}"))
        if slices[-1].shape != slices[0].shape:
            raise DatasetError(f"{name}: {file} is {size(slices[-1])} pixels, its first slice {size(slices[0])}")
    return DementiaSubject(name, stage.folder, stage.label, tuple(files), digest.hexdigest(), np.stack(slices))


def read_bytes(path: Path, what: str) -> bytes:
    """Read a file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{what} cannot be read: {error.strerror}") from error


def decode_slice(content: bytes, what: str) -> NDArray[np.uint8]:
    """Decode a grey JPEG to ``(rows, columns)``."""
    import numpy as np
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns of absurd sizes
            with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
                mode, pixels = image.mode, np.asarray(image)
    except MemoryError:
        raise
    # Damaged files surface as OSError, SyntaxError, struct.error and others: all mean that the file is not readable.
    except Exception as error:
        reason = "not a JPEG" if type(error).__name__ == "UnidentifiedImageError" else error or type(error).__name__
        raise DatasetError(f"{what} cannot be read ({reason})") from error
    if mode != "L":
        raise DatasetError(f"{what} has pixels of kind {mode}, expected 8-bit grey")
    return pixels


def size(pixels: NDArray[np.uint8]) -> str:
    """Return ``columnsxrows``, as image viewers write it."""
    return f"{pixels.shape[-1]}x{pixels.shape[-2]}"
