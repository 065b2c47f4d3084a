"""DICOM in and DICOM SEG out, for the server.

MONAI Label's environment has an older pydicom and no highdicom, so the server has the Python do it that ``ar2unet``
itself runs in: ``python -m pipeline.label_app.dicom_files COMMAND ...``. What is wrong with the input is one line on
the standard error output, with exit code 2.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import AR2UNetError, ScanError
from pipeline.formats.atomic import atomic_write
from pipeline.formats.dicom.headers import find_value, numbers, quiet_pydicom
from pipeline.formats.dicom.reading import read_dicom
from pipeline.formats.scan import Scan
from pipeline.label_app.dicom_labels import label_segments

__all__ = ["main", "place_frames", "read_label", "read_series", "write_label", "write_network_mask"]

GRID_TOLERANCE = 0.25  # mm: how far a frame's corner may lie from the scan's, as for the headers of its slices
GZIP_LEVEL = 1  # intensities hardly get smaller with more
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SCANNER_COORDINATES = 1


def read_series(folder: Path, series: str, out: Path) -> list[str]:
    """Write a series as NIfTI, as ``ar2unet segment --series`` reads it: FLAIR, and t1 and t1c where they are clear.

    Args:
        folder: Of the series' files, and those of T1 in the same study.
        series: SeriesInstanceUID.
        out: Folder for ``<series>_flair.nii.gz`` and, on its grid, ``<series>_t1.nii.gz`` and ``_t1c``.

    Returns:
        What was decided on the way, a line each.

    Raises:
        ScanError: If the series is no volume.
    """
    from pipeline.formats.resampling import combine_sequences

    found = read_dicom(folder, series=series)
    scan = combine_sequences(found.scan, found.t1, found.t1c)
    volumes = {"flair": scan.flair}
    if found.t1 is not None:
        volumes["t1"] = scan.image[0]
    if found.t1c is not None:
        volumes["t1c"] = scan.image[2]
    for name, volume in volumes.items():
        _write_volume(volume, scan, out / f"{series}_{name}.nii.gz")
    return [*found.notes, *found.warnings]


def write_network_mask(mask: Path, folder: Path, series: str, out: Path, bundle: Path, weights: str) -> None:
    """Write a mask that the network made as DICOM SEG, of algorithm type AUTOMATIC.

    Args:
        mask: NIfTI on the grid of the series.
        folder: Of the series' files.
        series: SeriesInstanceUID.
        out: The file.
        bundle: What made it.
        weights: Name of the weights' file in its ``models``.

    Raises:
        AR2UNetError: If the series or the mask cannot be read, or do not fit.
    """
    from pipeline.engines.artefact import hash_file
    from pipeline.provenance import read_bundle_version

    model = {
        "model_name": bundle.name,
        "model_version": read_bundle_version(bundle),
        "weights_sha256": hash_file(bundle / "models" / weights),
    }
    _write_segmentation(mask, folder, series, out, model)


def write_label(mask: Path, folder: Path, series: str, out: Path, version: str) -> None:
    """Write a label that a person saved as DICOM SEG, of algorithm type SEMIAUTOMATIC: drawn or corrected by hand.

    Each is a series of its own, also where one has the voxels of another, for the newest is the one that counts.

    Args:
        mask: As ``write_network_mask``, like all but the last.
        folder: Of the series' files.
        series: SeriesInstanceUID.
        out: The file.
        version: Of MONAI Label.

    Raises:
        AR2UNetError: As ``write_network_mask``.
    """
    from pydicom import dcmread, dcmwrite
    from pydicom.uid import generate_uid

    model = {"model_name": "MONAI Label", "model_version": version, "weights_sha256": "none"}
    _write_segmentation(mask, folder, series, out, model)
    label = dcmread(out)
    (segment,) = label.SegmentSequence
    segment.SegmentAlgorithmType = "SEMIAUTOMATIC"
    segment.SegmentAlgorithmName = "MONAI Label"
    del segment.SegmentationAlgorithmIdentificationSequence
    label.ContentDescription = f"{segment.SegmentLabel}, label"
    label.SeriesDescription = f"{segment.SegmentLabel}, label saved in MONAI Label (research)"
    made = datetime.now().isoformat()
    label.SeriesInstanceUID = generate_uid(entropy_srcs=[label.SeriesInstanceUID, made])
    label.SOPInstanceUID = generate_uid(entropy_srcs=[label.SOPInstanceUID, made])
    label.file_meta.MediaStorageSOPInstanceUID = label.SOPInstanceUID
    with atomic_write(out) as file:
        dcmwrite(file, label, enforce_file_format=True)


def read_label(segmentation: Path, folder: Path, series: str, out: Path) -> None:
    """Write the label in a DICOM SEG as NIfTI mask on the grid of the series that it labels.

    Args:
        segmentation: The file; of any maker.
        folder: Of the series' files.
        series: SeriesInstanceUID.
        out: Ends in ``.nii.gz``.

    Raises:
        ScanError: If it cannot be read, or its frames do not lie on the slices of the series.
    """
    from pydicom import dcmread

    from pipeline.formats.nifti import write_mask

    quiet_pydicom()
    scan = read_dicom(folder, series=series, with_t1=False).scan
    try:
        dataset = dcmread(segmentation)
        pixels = dataset.pixel_array
    # A damaged file surfaces as an error of pydicom, struct, NumPy and others.
    except Exception as error:
        raise ScanError(f"the DICOM SEG cannot be read: {type(error).__name__}: {error}") from error
    if str(dataset.get("SegmentationType")) != "BINARY":
        raise ScanError(f"expected a BINARY DICOM SEG, got type {dataset.get('SegmentationType') or 'none'}")
    frames = pixels if pixels.ndim == 3 else pixels[None]
    write_mask(place_frames(dataset, frames, scan), scan, out)


def place_frames(dataset: Any, frames: NDArray[np.generic], scan: Scan) -> NDArray[np.uint8]:
    """Return a mask on a scan's grid from a DICOM SEG's frames, each placed by its own position.

    Args:
        dataset: The DICOM SEG.
        frames: Its pixels ``(F, rows, columns)``, 0 and 1; slices may be missing, and come in any order.
        scan: Of the series that it labels.

    Returns:
        Mask ``(I, J, K)``.

    Raises:
        ScanError: If a frame does not lie on a slice of the scan, pixel on pixel.
    """
    columns, rows, slices = scan.spatial_shape
    if frames.shape[1:] != (rows, columns):
        expected = f"frames of {columns} x {rows} pixels, as the series has"
        raise ScanError(f"expected {expected}, got {frames.shape[2]} x {frames.shape[1]}")
    mask = np.zeros(scan.spatial_shape, np.uint8)
    wanted = label_segments(dataset)
    corners = np.array([(0, 0), (columns - 1, 0), (0, rows - 1)], float)
    lps = LPS_FROM_RAS @ scan.affine
    for number, frame in enumerate(frames, start=1):
        if find_value(dataset, "ReferencedSegmentNumber", number, "SegmentIdentificationSequence") not in wanted:
            continue
        places = _corners(dataset, number, corners)
        k = round(float((np.linalg.inv(lps) @ [*places[0], 1])[2]))
        voxels = np.column_stack([corners, np.full(3, k), np.ones(3)])
        off = float(np.abs((voxels @ lps.T)[:, :3] - places).max())
        if not 0 <= k < slices or off > GRID_TOLERANCE:
            raise ScanError(f"expected frames on the slices of the series, got frame {number} that lies elsewhere")
        mask[:, :, k] |= frame.T.astype(bool)
    return mask


def _corners(dataset: Any, frame: int, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where pixels (column, row) of a frame lie, in LPS mm."""
    groups = {
        "ImagePositionPatient": ("PlanePositionSequence", 3),
        "ImageOrientationPatient": ("PlaneOrientationSequence", 6),
        "PixelSpacing": ("PixelMeasuresSequence", 2),
    }
    values = [numbers(find_value(dataset, key, frame, group), count) for key, (group, count) in groups.items()]
    position, directions, spacing = values
    if position is None or directions is None or spacing is None:
        raise ScanError(f"expected a DICOM SEG that says where its frames lie, got frame {frame} that does not")
    steps = np.reshape(directions, (2, 3)) * [[spacing[1]], [spacing[0]]]  # from column to column, row to row
    places: NDArray[np.float64] = np.array(position) + pixels @ steps
    return places


def _write_segmentation(mask: Path, folder: Path, series: str, out: Path, model: dict[str, str]) -> None:
    from pipeline.formats.dicom.segmentation import write_segmentation
    from pipeline.formats.nifti import read_mask

    found = read_dicom(folder, series=series, with_t1=False)
    write_segmentation(
        read_mask(mask).mask,
        found.scan,
        found.source,
        out,
        model_name=model["model_name"],
        model_version=model["model_version"],
        weights_sha256=model["weights_sha256"],
    )


def _write_volume(volume: NDArray[np.float32], scan: Scan, path: Path) -> None:
    import nibabel as nib

    make_image: Any = nib.Nifti1Image  # nibabel's methods carry no types
    image = make_image(volume, scan.affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(scan.affine, code=SCANNER_COORDINATES)
    image.set_sform(scan.affine, code=SCANNER_COORDINATES)
    with atomic_write(path) as file:
        file.write(gzip.compress(image.to_bytes(), GZIP_LEVEL, mtime=0))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("read-series", "write-network-mask", "write-label", "read-label"))
    parser.add_argument("--folder", type=Path, required=True, help="Of the series' files.")
    parser.add_argument("--series", required=True, help="SeriesInstanceUID.")
    parser.add_argument("--source", type=Path, help="The mask, or the DICOM SEG.")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--version")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    place = (chosen.folder, chosen.series, chosen.out)
    try:
        if chosen.command == "read-series":
            sys.stdout.writelines(f"{line}\n" for line in read_series(*place))
        elif chosen.command == "write-network-mask":
            write_network_mask(chosen.source, *place, chosen.bundle, chosen.weights)
        elif chosen.command == "write-label":
            write_label(chosen.source, *place, chosen.version)
        else:
            read_label(chosen.source, *place)
    except AR2UNetError as error:
        # The folder is the server's own; to the user the series has a name.
        sys.stderr.write(f"{str(error).replace(f'{chosen.folder}: ', '')}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
