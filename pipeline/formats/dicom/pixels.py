"""The pixels of planes, decoded and rescaled, and the headers they came with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.decoders.base import get_decoder

from pipeline.errors import ScanError
from pipeline.formats.dicom.codecs import choose_plugin
from pipeline.formats.dicom.headers import read_full_header
from pipeline.formats.dicom.planes import Plane
from pipeline.formats.dicom.source import DicomSource

__all__ = ["have_same_pixels", "read_volume"]


def read_volume(planes: Sequence[Plane]) -> tuple[NDArray[np.float32], DicomSource]:
    """Read the intensities of stacked planes.

    Stored values are rescaled by each plane's own slope and intercept. Where high values are dark
    (MONOCHROME1), the volume is inverted between its smallest and largest value.

    Args:
        planes: In the order of the slices, of one size.

    Returns:
        Intensities ``(I, J, K)``, and the headers.

    Raises:
        ScanError: Naming the file, if its pixel data is damaged, of an unsupported kind, or not finite,
            or if all voxels are equal.
    """
    rows, columns = planes[0].shape
    try:
        # Kept as DICOM has it, slice by slice; what leaves is a view.
        stored = np.empty((len(planes), rows, columns), dtype=np.float32)
    except MemoryError as error:
        raise ScanError(f"not enough memory for {len(planes)} slices of {columns} x {rows} pixels") from error
    headers: dict[int, Dataset] = {}
    # By the file itself, for a zip may hold two of one name.
    slices_of: dict[int, list[int]] = {}
    for k, plane in enumerate(planes):
        slices_of.setdefault(id(plane.header), []).append(k)
    for slices in slices_of.values():
        dataset, frames = _read_frames([planes[k] for k in slices])
        for k, frame in zip(slices, frames, strict=True):
            stored[k] = frame
            headers[k] = dataset
    low, high = float(stored.min()), float(stored.max())
    if low == high:
        received = "zeros only" if low == 0 else f"{low:g} in every voxel"
        raise ScanError(f"expected intensities that vary, got {received}")
    if planes[0].inverted:
        np.subtract(low + high, stored, out=stored)
    return stored.transpose(2, 1, 0), _make_source(planes, [headers[k] for k in range(len(planes))])


def have_same_pixels(plane: Plane, other: Plane) -> bool:
    """Whether two planes hold the same intensities; a plane that cannot be read is refused, as in ``read_volume``."""
    first, second = (next(_read_frames([item])[1]) for item in (plane, other))
    return np.array_equal(first, second)


def _make_source(planes: Sequence[Plane], datasets: Sequence[Dataset]) -> DicomSource:
    frames = tuple(plane.frame for plane in planes)
    files = {id(plane.header) for plane in planes}
    if len(files) == 1:
        return DicomSource((datasets[0],), frames)
    if len(files) < len(planes):
        raise ScanError(f"expected one multi-frame file, or one file a slice, got {len(files)} multi-frame files")
    return DicomSource(tuple(datasets), frames)


def _read_frames(planes: Sequence[Plane]) -> tuple[Dataset, Iterator[NDArray[np.float32]]]:
    """Return the header of one file, its pixel data taken out, and the intensities of its planes in their order."""
    header = planes[0].header
    name = header.file.name
    try:
        with header.file.open() as stream:
            dataset = read_full_header(stream)
    except Exception as error:
        raise ScanError(f"{name}: cannot be read as DICOM ({type(error).__name__})") from error
    frames = [_rescale(frame, plane) for frame, plane in zip(_decode(dataset, planes), planes, strict=True)]
    del dataset.PixelData
    return dataset, iter(frames)


def _rescale(frame: NDArray[np.generic], plane: Plane) -> NDArray[np.float32]:
    if frame.shape != plane.shape:
        raise ScanError(f"{plane.name}: expected {plane.shape} grey pixels, got {frame.shape}")
    intensities: NDArray[np.float32]
    with np.errstate(all="ignore"):
        intensities = (frame.astype(np.float64) * plane.slope + plane.intercept).astype(np.float32)
    if not np.isfinite(intensities).all():
        raise ScanError(f"{plane.name}: expected finite intensities, got NaN or infinite ones")
    return intensities


def _decode(dataset: Dataset, planes: Sequence[Plane]) -> Iterator[NDArray[np.generic]]:
    header = planes[0].header
    syntax, plugin = header.transfer_syntax, choose_plugin(header.transfer_syntax) or ""
    indices = [plane.frame - 1 for plane in planes]
    try:
        for pixels, _ in get_decoder(syntax).iter_array(dataset, indices=indices, raw=True, decoding_plugin=plugin):
            yield pixels
    # Each decoder has errors of its own; all mean the same, and their words are not for users.
    except Exception as error:
        raise ScanError(f"{header.file.name}: its pixels ({syntax.name}) cannot be decoded (damaged?)") from error
