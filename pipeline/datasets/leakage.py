"""Leakage between the splits of an image data set: the same subject, or nearly the same image, on two sides.

Images are compared by their fine detail. Each is reduced to a small grid, and what a blur leaves of it is taken away:
heads, and brains brought to one template above all, are much alike in the large, and it is the folds of the cortex that
tell people apart. Two images are near-duplicates if these details correlate at ``SIMILARITY`` or more.

Measured on the four-class dementia slices, all on one template: a slice and its neighbour of the same subject correlate
at 0.876 to 0.97, a slice and the most similar one of all other subjects at 0.60 at most. Of whole volumes of the same
data the most similar pair is at 0.67, and the odd and even slices of one volume at 0.86 or more. Of the LGG FLAIR
slices, which are on no template, 14 of 3,543 reach the bound, 0.81 at most, with one of another patient. Scaling,
brightness and lossy compression hardly change the value; a mirrored, turned or shifted copy is not found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.datasets.datalist import Failure
from pipeline.datasets.image_list import ListedImage
from pipeline.errors import DatasetError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["SIMILARITY", "Leakage", "NearDuplicate", "find_leakage"]

SIMILARITY = 0.75
GRID = {2: 64, 3: 32}  # edge length of the small grid, by the image's axes
BLUR = {2: 1.5, 3: 1.0}  # standard deviation in points of that grid
BLOCK = 512  # images compared with all others at a time


class NearDuplicate(NamedTuple):
    """An image and the one of another split that is most like it."""

    image: str
    split: str
    other: str
    other_split: str
    correlation: float


@dataclass(frozen=True)
class Leakage:
    """What was found.

    Attributes:
        images: Number of images compared, by split.
        subjects: Number of subjects that the list names, None if it names none.
        shared_subjects: The splits of each subject that is in more than one.
        near_duplicates: The images that have a near-duplicate in another split, the most alike first.
        nearest_elsewhere: Number of images whose most similar image of all lies in another split.
        groups: Number of groups that the images fall into if all near-duplicates are joined.
        shared_groups: How many of these groups lie in more than one split.
        similarity: From which correlation on two images count as near-duplicates.
        failures: Images that could not be compared, and why.
    """

    images: dict[str, int]
    subjects: int | None
    shared_subjects: dict[str, tuple[str, ...]]
    near_duplicates: tuple[NearDuplicate, ...]
    nearest_elsewhere: int
    groups: int
    shared_groups: int
    similarity: float
    failures: tuple[Failure, ...]

    @property
    def found(self) -> bool:
        """Whether a subject or nearly the same image is in two splits."""
        return bool(self.shared_subjects or self.near_duplicates)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON takes it."""
        return {
            "leakage": self.found,
            "similarity": self.similarity,
            "images": self.images,
            "subjects": self.subjects,
            "shared_subjects": {subject: list(splits) for subject, splits in self.shared_subjects.items()},
            "images_with_near_duplicate_elsewhere": len(self.near_duplicates),
            "images_with_nearest_elsewhere": self.nearest_elsewhere,
            "groups": self.groups,
            "shared_groups": self.shared_groups,
            "near_duplicates": [duplicate._asdict() for duplicate in self.near_duplicates],
            "failures": [failure.reason for failure in self.failures],
        }


def find_leakage(
    images: Sequence[ListedImage],
    *,
    similarity: float = SIMILARITY,
    on_progress: Callable[[int, int], None] | None = None,
) -> Leakage:
    """Find subjects and nearly the same images in more than one split.

    Slices are compared with slices and volumes with volumes. Subjects are compared by name, whether or not their
    images can be read.

    Args:
        images: At least two.
        similarity: From which correlation on two images count as near-duplicates.
        on_progress: Called after each image is read, with images done and images in all.

    Returns:
        What was found.

    Raises:
        DatasetError: If ``similarity`` is not above 0 and at most 1, or no image can be read.
    """
    import numpy as np

    if not 0 < similarity <= 1:
        raise DatasetError(f"similarity must be above 0 and at most 1, got {similarity}")
    details: dict[int, list[NDArray[np.float32]]] = defaultdict(list)  # by number of axes
    members: dict[int, list[ListedImage]] = defaultdict(list)
    failures: list[Failure] = []
    for done, image in enumerate(images, start=1):
        try:
            pixels = read_pixels(image)
            details[pixels.ndim].append(fine_detail(pixels, image.name))
            members[pixels.ndim].append(image)
        except DatasetError as error:
            failures.append(Failure(image.name, str(error)))
        if on_progress is not None:
            on_progress(done, len(images))
    if not members:
        raise DatasetError(f"none of the {len(images)} images can be compared, the first: {failures[0].reason}")
    counts = dict.fromkeys(sorted({image.split for image in images}), 0)
    near, elsewhere, groups, shared_groups = [], 0, 0, 0
    for axes, alike in members.items():
        for image in alike:
            counts[image.split] += 1
        compared = compare(np.stack(details.pop(axes)), alike, similarity)
        near += compared.near
        elsewhere += compared.nearest_elsewhere
        groups += compared.groups
        shared_groups += compared.shared_groups
    near.sort(key=lambda duplicate: (-duplicate.correlation, duplicate.image))
    subjects = {image.subject for image in images if image.subject is not None}
    return Leakage(
        counts,
        len(subjects) or None,
        shared_subjects(images),
        tuple(near),
        elsewhere,
        groups,
        shared_groups,
        similarity,
        tuple(failures),
    )


def shared_subjects(images: Sequence[ListedImage]) -> dict[str, tuple[str, ...]]:
    """Return the splits of each subject that is in more than one."""
    splits: dict[str, set[str]] = defaultdict(set)
    for image in images:
        if image.subject is not None:
            splits[image.subject].add(image.split)
    return {subject: tuple(sorted(found)) for subject, found in sorted(splits.items()) if len(found) > 1}


def read_pixels(image: ListedImage) -> NDArray[np.float32]:
    """Read a picture as grey ``(rows, columns)``, or a NIfTI volume as ``(I, J, K)`` with axes to RAS+.

    Of a volume of several channels or times the first counts; a volume of one slice is that slice.
    """
    import numpy as np

    if not image.path.is_file():
        raise DatasetError(f"{image.name}: no such file as {image.path}")
    try:
        if image.name.lower().endswith((".nii", ".nii.gz")):
            return read_volume(image.path)
        from PIL import Image

        with Image.open(image.path) as picture:
            deep = picture.mode.startswith(("I", "F"))  # 16 bits or float32, which L would cut off
            return np.asarray(picture if deep else picture.convert("L"), dtype=np.float32)
    except MemoryError:
        raise
    # Damaged files surface as OSError, ValueError, zlib.error and others: all mean that the file is not readable.
    except Exception as error:
        raise DatasetError(f"{image.name}: cannot be read ({error or type(error).__name__})") from error


def read_volume(path: Path) -> NDArray[np.float32]:
    """Read a NIfTI volume, its axes to RAS+."""
    import nibabel as nib
    import numpy as np

    to_ras: Any = nib.as_closest_canonical  # nibabel's functions carry no types
    voxels = np.asarray(to_ras(nib.load(path)).dataobj, dtype=np.float32)
    while voxels.ndim > 3:
        voxels = voxels[..., 0]
    if voxels.ndim == 3 and 1 in voxels.shape:
        voxels = voxels.squeeze(voxels.shape.index(1))
    if voxels.ndim not in GRID:
        raise ValueError(f"its shape is {voxels.shape}")
    return voxels


def fine_detail(pixels: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """Return an image's fine detail on the small grid as a vector of mean 0 and length 1."""
    import numpy as np
    from scipy.ndimage import gaussian_filter

    grid = np.nan_to_num(pixels, posinf=0, neginf=0)
    for axis in range(grid.ndim):
        weights = averaging(grid.shape[axis], GRID[pixels.ndim])
        grid = np.moveaxis(np.tensordot(weights, grid, (1, axis)), 0, axis)
    detail = (grid - gaussian_filter(grid, BLUR[pixels.ndim])).ravel()
    detail -= detail.mean()
    length = float(np.linalg.norm(detail))
    if length <= 1e-6 * max(1.0, float(np.abs(grid).max())):
        raise DatasetError(f"{name}: the image is of one value all over, there is nothing to compare")
    scaled: NDArray[np.float32] = (detail / length).astype(np.float32)
    return scaled


@cache
def averaging(size: int, points: int) -> NDArray[np.float32]:
    """Return the matrix ``(points, size)`` that averages ``size`` pixels over ``points`` intervals of equal length."""
    import numpy as np

    edges = np.linspace(0, size, points + 1)[:, None]
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    weights = np.clip(overlap, 0, None)
    matrix: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix


class Comparison(NamedTuple):
    """What :func:`compare` found among images of one kind."""

    near: list[NearDuplicate]
    nearest_elsewhere: int
    groups: int
    shared_groups: int


def compare(details: NDArray[np.float32], images: Sequence[ListedImage], similarity: float) -> Comparison:
    """Compare each image with all others, block by block.

    Args:
        details: Vectors of length 1, ``(images, features)``.
        images: The images they belong to.
        similarity: From which correlation on two images are joined.
    """
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, split_of = np.unique([image.split for image in images], return_inverse=True)
    near: list[NearDuplicate] = []
    nearest_elsewhere = 0
    group_of = np.arange(len(images))
    for start, block in correlate(details):
        rows = np.arange(start, start + len(block))
        same_split = split_of[rows, None] == split_of
        best = np.where(same_split, -1, block).argmax(axis=1)
        correlations = block[np.arange(len(block)), best]
        other_split = split_of[best] != split_of[rows]
        nearest_elsewhere += int(np.count_nonzero(other_split & (correlations >= block.max(axis=1))))
        for row in np.flatnonzero(other_split & (correlations >= similarity)).tolist():
            image, other = images[start + row], images[int(best[row])]
            near.append(NearDuplicate(image.name, image.split, other.name, other.split, float(correlations[row])))
        here, there = np.nonzero(block >= similarity)
        # Groups found so far are the nodes, so that no more than one block's pairs are ever in memory.
        groups = int(group_of.max()) + 1
        links = (np.ones(len(here), bool), (group_of[here + start], group_of[there]))
        _, merged = connected_components(coo_array(links, shape=(groups, groups)), directed=False)
        group_of = merged[group_of]
    sides = np.zeros((group_of.max() + 1, len(names)), bool)
    sides[group_of, split_of] = True
    return Comparison(near, nearest_elsewhere, len(sides), int(np.count_nonzero(sides.sum(axis=1) > 1)))


def correlate(details: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield correlations ``(block, images)`` and the first row's number; each image with itself is at -1."""
    for start in range(0, len(details), BLOCK):
        block = details[start : start + BLOCK] @ details.T
        for row in range(len(block)):
            block[row, start + row] = -1
        yield start, block
