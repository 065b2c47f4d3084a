"""A drawn head on a 1 mm grid in RAS+ mm, and the scanner that sees it.

Tissues are painted over one another, outside to inside, each with its own signal in t1,
flair and t1c; the scan then averages that head over its thick oblique slices and adds a
bias field and Rician noise, as a scanner would.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.errors import DatasetError

__all__ = ["Field", "acquire", "average_slices", "draw_head", "scan_affine", "scan_coordinates"]

Field: TypeAlias = NDArray[np.float32]
Painter: TypeAlias = Callable[[Field, str], None]

SHAPE = (224, 256, 34)
SPACING = (0.9, 0.9, 4.5)  # mm
TILT_DEG = 8.0  # about x, as slices along the skull base are
TURN_DEG = 5.0  # about z, a head not quite straight in the coil
SCAN_CENTRE = (0.0, -14.0, 27.0)  # mm: the grid then holds the head from the skull base to above the vertex
SLAB_SAMPLES = 5  # samples across a slice's thickness: its partial volume

GRID_ORIGIN = (-98, -134, -92)  # mm, RAS+: the 1 mm grid the head is painted on
GRID_SHAPE = (197, 247, 209)

# Signal in t1, flair and t1c. White matter is 1 in t1; the ratios were read off clinical brain tumour scans.
SIGNALS = {
    "white matter": (1.00, 0.84, 1.00),
    "grey matter": (0.74, 1.00, 0.84),
    "fluid": (0.34, 0.17, 0.34),
    "bone": (0.14, 0.10, 0.16),
    "marrow": (0.85, 0.60, 0.80),
    "dura": (0.55, 0.45, 1.35),
    "sinus": (0.35, 0.20, 1.90),
    "muscle": (0.70, 0.55, 0.90),
    "fat": (2.10, 1.70, 1.85),
    "skin": (1.05, 0.95, 1.20),
    "air": (0.0, 0.0, 0.0),
    "lesion": (0.66, 1.72, 0.72),
}
SCALE = 150.0  # of white matter in t1: wide enough for int16, small enough that the noise compresses
NOISE = 0.018  # standard deviation, in units of white matter in t1

# Centre and radii in mm, RAS+: right frontal and parietal white matter, wholly right of the midline.
LESION_ELLIPSOIDS = (
    ((31.0, 4.0, 29.0), (17.0, 21.0, 14.0)),
    ((35.0, -20.0, 27.0), (13.0, 15.0, 12.0)),
    ((30.0, 24.0, 19.0), (11.0, 12.0, 11.0)),
)
LESION_EDGE = 1.6  # mm over which the lesion fades


def draw_head(rng: np.random.Generator) -> tuple[list[Field], Field]:
    """Draw a head with a lesion in the right half of its brain.

    Returns:
        The signal of t1, flair and t1c on the 1 mm grid, in units of white matter in t1,
        and the fraction of lesion in each of its voxels.

    Raises:
        DatasetError: If nilearn is not installed.
    """
    grey, white = _warped_tissues(rng)
    lesion = _lesion(rng, grey + white, white)
    return _paint_head(rng, grey, white, lesion), lesion


def _template_maps() -> tuple[Field, Field]:
    """Load the grey- and white-matter maps of ICBM152, 0 to 1, on their own 1 mm grid."""
    try:
        from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template
    except ImportError as error:
        raise DatasetError("making the phantom needs nilearn, which is not installed: pip install nilearn") from error
    maps = [load(resolution=1).get_fdata() for load in (load_mni152_gm_template, load_mni152_wm_template)]
    grey, white = (np.clip(values, 0.0, 1.0).astype(np.float32) for values in maps)
    return grey, white


def _grid_mm() -> tuple[Field, Field, Field]:
    """Give the x, y and z of the grid's voxels in RAS+ mm, shaped to broadcast to it."""
    axes = (np.arange(n, dtype=np.float32) + o for n, o in zip(GRID_SHAPE, GRID_ORIGIN, strict=True))
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    return x, y, z


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> Field:
    """Draw a smooth random field of about zero mean and unit deviation.

    Normal deviates on a lattice of pitch ``scale`` voxels are spread with a Gaussian, one
    axis at a time: the result of blurring white noise at a hundredth of the cost.
    """
    field = rng.standard_normal([math.ceil(n / scale) + 3 for n in shape])
    for n in shape:
        distance = np.arange(n)[:, None] / scale + 1.0 - np.arange(field.shape[0])[None]
        weights = np.exp(-0.5 * (distance / 0.6) ** 2)
        weights /= np.sqrt((weights**2).sum(axis=1, keepdims=True))
        field = np.moveaxis(np.tensordot(weights, field, axes=1), 0, -1)
    return field.astype(np.float32)


def _ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Field:
    """Give the level set of an ellipsoid on the grid: about mm outside its surface, negative inside."""
    terms = [((axis - c) / r) ** 2 for axis, c, r in zip(_grid_mm(), centre, radii, strict=True)]
    return np.asarray((np.sqrt(terms[0] + terms[1] + terms[2]) - 1.0) * min(radii), dtype=np.float32)


def _warped_tissues(rng: np.random.Generator) -> tuple[Field, Field]:
    """Sample grey and white matter on the grid through a random smooth warp and the lesion's swelling."""
    template_origin = (-98.0, -134.0, -72.0)
    centre = np.mean([c for c, _ in LESION_ELLIPSOIDS], axis=0)
    x, y, z = _grid_mm()
    squared = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2
    swelling = 0.16 * np.exp(-squared / (2 * 24.0**2))
    coordinates = []
    for axis, c, origin in zip((x, y, z), centre, template_origin, strict=True):
        warp = 1.6 * _smooth_noise(rng, GRID_SHAPE, 40.0) + 0.9 * _smooth_noise(rng, GRID_SHAPE, 11.0)
        coordinates.append((axis - swelling * (axis - c) + warp - origin).astype(np.float32))
    grey, white = (ndimage.map_coordinates(m, coordinates, order=1) for m in _template_maps())
    # An average of 152 brains is blurred: let the likeliest tissue of a voxel gain, as in one person's brain.
    fluid = np.clip(1.0 - grey - white, 0.0, 1.0)
    total = fluid**2 + grey**2 + white**2 + np.float32(1e-6)
    return grey**2 / total, white**2 / total


def _lesion(rng: np.random.Generator, brain: Field, white: Field) -> Field:
    """Draw the fraction of lesion in each voxel: ellipsoids with an uneven, soft outline, kept to the brain."""
    level = np.minimum.reduce([_ellipsoid(centre, radii) for centre, radii in LESION_ELLIPSOIDS])
    # Such lesions spread along white matter and stop at the cortex.
    level += 2.6 * _smooth_noise(rng, GRID_SHAPE, 9.0) + 2.5 * (0.6 - white)
    return np.asarray(brain / (1.0 + np.exp(np.clip(level / LESION_EDGE, -30.0, 30.0))), dtype=np.float32)


def _within(distance: NDArray[np.floating[Any]]) -> Field:
    """Give the fraction of a voxel inside a surface at that signed distance in mm, 0 to 1."""
    return np.asarray(np.clip(0.5 - distance, 0.0, 1.0), dtype=np.float32)


def _signed_distance(inside: NDArray[np.bool_]) -> Field:
    """Give the distance in mm to the surface of a solid, negative inside."""
    outer, inner = ndimage.distance_transform_edt(~inside), ndimage.distance_transform_edt(inside)
    return np.asarray(outer - inner, dtype=np.float32)


def _closed_distance(inside: NDArray[np.bool_], radius: float) -> Field:
    """Give the signed distance in mm to a solid whose gaps narrower than twice ``radius`` are closed."""
    return np.asarray(_signed_distance(ndimage.distance_transform_edt(~inside) <= radius) + radius, dtype=np.float32)


def _paint_head(rng: np.random.Generator, grey: Field, white: Field, lesion: Field) -> list[Field]:
    """Paint all tissues, outside to inside; give the signal of t1, flair and t1c on the grid."""
    head = [np.zeros(GRID_SHAPE, dtype=np.float32) for _ in range(3)]

    def paint(weight: Field, tissue: str) -> None:
        for signal, value in zip(head, SIGNALS[tissue], strict=True):
            signal += weight * (np.float32(value) - signal)

    x, y, z = _grid_mm()
    # What holds the fluid follows the brain closely; the skull's outer table bridges every hollow.
    brain = grey + white > 0.5
    cavity = _closed_distance(brain, 8.0) - 1.5
    vault = _closed_distance(brain, 22.0) - 1.5
    bone = 5.5 + 0.8 * _smooth_noise(rng, GRID_SHAPE, 30.0)
    scalp = 6.0 + 0.8 * _smooth_noise(rng, GRID_SHAPE, 40.0) - 0.02 * np.clip(y, -90, 60)
    outside = _head_distance(vault - bone - scalp)

    paint(_within(outside), "muscle")
    marbling = _smooth_noise(rng, GRID_SHAPE, 6.0)
    paint(_within(outside) * np.clip(2.0 * marbling - 1.0, 0.0, 1.0), "fat")
    paint(_within(outside) * _within(-outside - scalp) * (0.85 + 0.15 * np.clip(marbling, -1, 1)), "fat")
    paint(_within(outside) * _within(-outside - 1.8), "skin")
    _paint_face(paint, marbling)
    paint(_within(vault - bone) * _within(cavity - 1.4 * bone), "bone")
    paint(_within(np.abs(vault - 0.55 * bone) - 0.17 * bone) * (0.6 + 0.25 * np.clip(marbling, -1, 1)), "marrow")
    paint(_within(cavity - 1.2), "dura")
    paint(_within(cavity), "fluid")
    # The falx, and along its rim the superior sagittal sinus.
    paint(_within(np.abs(x) - 0.8) * _within(cavity) * _within(-z + 30) * (1 - grey - white), "dura")
    paint(_within(np.hypot(x, cavity + 2.0) - 3.5) * _within(-z) * _within(cavity - 1.0), "sinus")
    paint(grey + white, "grey matter")
    paint(white / (grey + white + np.float32(1e-6)), "white matter")
    paint(lesion * (1.0 + 0.12 * _smooth_noise(rng, GRID_SHAPE, 7.0)), "lesion")
    return head


def _head_distance(calvaria: Field) -> Field:
    """Join face, nose and neck to the vault of the skull; give the distance to the skin in mm."""
    face = _ellipsoid((0.0, 22.0, -48.0), (66.0, 72.0, 62.0))
    nose = _ellipsoid((0.0, 92.0, -46.0), (12.0, 18.0, 26.0))
    neck = _ellipsoid((0.0, -34.0, -95.0), (66.0, 70.0, 80.0))
    solid = np.minimum.reduce([calvaria, face, nose, neck]) < 0
    return _signed_distance(ndimage.gaussian_filter(solid.astype(np.float32), 3.0) > 0.5)


def _paint_face(paint: Painter, marbling: Field) -> None:
    """Paint orbits with eyes, the air of nose, sinuses and mastoids, and the skull base around it."""
    for side in (-1.0, 1.0):
        paint(_within(_ellipsoid((30.0 * side, 60.0, -33.0), (18.0, 28.0, 17.0))), "fat")
        paint(_within(_ellipsoid((32.0 * side, 72.0, -33.0), (12.5, 12.5, 12.5))), "muscle")
        paint(_within(_ellipsoid((32.0 * side, 72.0, -33.0), (11.5, 11.5, 11.5))), "fluid")
        paint(_within(_ellipsoid((27.0 * side, 48.0, -33.0), (2.5, 16.0, 2.5))), "muscle")
        paint(_within(_ellipsoid((28.0 * side, 55.0, -68.0), (15.0, 17.0, 16.0))), "air")
        paint(_within(_ellipsoid((46.0 * side, -28.0, -42.0), (14.0, 12.0, 16.0)) + 3.0 * marbling), "bone")
        paint(_within(_ellipsoid((52.0 * side, -34.0, -48.0), (9.0, 9.0, 14.0)) + 3.0 * marbling), "air")
    paint(_within(_ellipsoid((0.0, 62.0, -46.0), (15.0, 26.0, 20.0)) + 2.0 * marbling), "air")
    paint(_within(_ellipsoid((0.0, 18.0, -38.0), (17.0, 15.0, 12.0))), "air")
    paint(_within(np.abs(_grid_mm()[0]) - 1.0) * _within(_ellipsoid((0.0, 62.0, -46.0), (15.0, 26.0, 20.0))), "skin")


# The scanner.


def scan_affine() -> NDArray[np.float64]:
    """Give the affine of the scan: LAS voxels to RAS+ mm, tilted about x and turned about z."""
    tilt, turn = math.radians(TILT_DEG), math.radians(TURN_DEG)
    about_x = np.array([[1, 0, 0], [0, math.cos(tilt), -math.sin(tilt)], [0, math.sin(tilt), math.cos(tilt)]])
    about_z = np.array([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ np.diag([-SPACING[0], SPACING[1], SPACING[2]])
    affine[:3, 3] = np.array(SCAN_CENTRE) - affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    return affine


def scan_coordinates(affine: NDArray[np.float64]) -> list[Field]:
    """Give, for samples across each slice's thickness, the grid coordinates ``(3, I, J, K)`` of all voxels."""
    i, j, k = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in SHAPE), indexing="ij", sparse=True)
    samples = []
    for offset in (np.arange(SLAB_SAMPLES) + 0.5) / SLAB_SAMPLES - 0.5:
        rows = zip(affine[:3, :3], affine[:3, 3], GRID_ORIGIN, strict=True)
        axes = [a * i + b * j + c * (k + offset) + (t - o) for (a, b, c), t, o in rows]
        samples.append(np.stack(axes).astype(np.float32))
    return samples


def average_slices(signal: Field, coordinates: list[Field]) -> Field:
    """Average a grid over the thickness of every slice of the scan; beyond the grid it goes on as at its border."""
    total = np.zeros(SHAPE, dtype=np.float32)
    for points in coordinates:
        total += ndimage.map_coordinates(signal, points, order=1, mode="nearest")
    return total / np.float32(len(coordinates))


def acquire(rng: np.random.Generator, signal: Field) -> NDArray[np.int16]:
    """Add a receiver's bias field and Rician noise (Gudbjartsson and Patz 1995), and round to integers."""
    scale = np.mean(SHAPE[:2]) / 2
    in_plane = _smooth_noise(rng, SHAPE[:2], float(scale))[..., None]
    along = _smooth_noise(rng, SHAPE[2:], SHAPE[2] / 2.0)
    biased = signal * np.exp(0.06 * in_plane + 0.05 * along)
    real = biased + NOISE * rng.standard_normal(SHAPE)
    imaginary = NOISE * rng.standard_normal(SHAPE)
    return np.rint(SCALE * np.hypot(real, imaginary)).astype(np.int16)
