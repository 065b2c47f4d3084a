"""Every score of one patient: the same for the bundle's evaluation and for ``ar2unet evaluate``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.lesions import LesionCounts, count_lesions
from pipeline.evaluation.metrics import ConfusionCounts, count_confusion
from pipeline.evaluation.surfaces import SurfaceDistances, surface_distances

__all__ = ["PatientScores", "score_patient"]

MM3_PER_ML = 1000


@dataclass(frozen=True)
class PatientScores:
    """What a prediction of one patient's volume is worth.

    Attributes:
        subject: The patient.
        site: Where the patient was scanned; None where nobody said.
        counts: Voxels by predicted and true class.
        lesions: Lesions found, missed and spurious.
        distances_voxels: Between the surfaces, in voxels; None where a mask is empty.
        distances_mm: The same in mm; None also where the spacing is unknown.
        voxel_ml: Volume of one voxel; None where the spacing is unknown.
    """

    subject: str
    site: str | None
    counts: ConfusionCounts
    lesions: LesionCounts
    distances_voxels: SurfaceDistances | None
    distances_mm: SurfaceDistances | None
    voxel_ml: float | None

    @property
    def true_voxels(self) -> int:
        """Lesion voxels of the truth."""
        return self.counts.true_positive + self.counts.false_negative

    @property
    def predicted_voxels(self) -> int:
        """Lesion voxels of the prediction."""
        return self.counts.true_positive + self.counts.false_positive

    @property
    def volume_error_voxels(self) -> int:
        """Predicted minus true voxels."""
        return self.predicted_voxels - self.true_voxels

    @property
    def volume_error_relative(self) -> float | None:
        """Volume error over the true volume; 0 where both masks are empty, None where only the truth is."""
        if self.true_voxels == 0:
            return 0.0 if self.predicted_voxels == 0 else None
        return self.volume_error_voxels / self.true_voxels

    def row(self) -> dict[str, str | int | float | None]:
        """Return everything by the name of its column in ``patients.csv``, in the order of the columns."""
        relative = self.volume_error_relative
        hd95_voxels, mean_voxels = _of(self.distances_voxels)
        hd95_mm, mean_mm = _of(self.distances_mm)
        return {
            "subject": self.subject,
            "site": self.site,
            **self.counts.scores(),
            "lesion_f1": self.lesions.f1,
            "hd95_voxels": hd95_voxels,
            "hd95_mm": hd95_mm,
            "mean_surface_distance_voxels": mean_voxels,
            "mean_surface_distance_mm": mean_mm,
            "true_voxels": self.true_voxels,
            "predicted_voxels": self.predicted_voxels,
            "volume_error_voxels": self.volume_error_voxels,
            "true_ml": self._in_ml(self.true_voxels),
            "predicted_ml": self._in_ml(self.predicted_voxels),
            "volume_error_ml": self._in_ml(self.volume_error_voxels),
            "volume_error_relative": relative,
            "absolute_volume_error_relative": None if relative is None else abs(relative),
            "true_lesions": self.lesions.true,
            "found_lesions": self.lesions.found,
            "predicted_lesions": self.lesions.predicted,
            "spurious_lesions": self.lesions.spurious,
        }

    def _in_ml(self, voxels: int) -> float | None:
        return None if self.voxel_ml is None else voxels * self.voxel_ml


def score_patient(
    subject: str,
    prediction: NDArray[np.generic],
    truth: NDArray[np.generic],
    *,
    affine: NDArray[np.float64] | None = None,
    site: str | None = None,
) -> PatientScores:
    """Score the predicted mask of one patient's whole volume.

    Args:
        subject: The patient.
        prediction: Mask ``(I, J, K)``; above 0 is lesion.
        truth: Mask of the same shape.
        affine: ``(4, 4)``, voxel to mm; None where the spacing is unknown, which leaves mm and ml out.
        site: Where the patient was scanned.

    Raises:
        ValueError: If the masks are not 3D or differ in shape.
    """
    predicted, true = np.greater(prediction, 0), np.greater(truth, 0)
    steps = None if affine is None else np.asarray(affine, dtype=np.float64)[:3, :3]
    return PatientScores(
        subject=subject,
        site=site,
        counts=count_confusion(predicted, true),
        lesions=count_lesions(predicted, true),
        distances_voxels=surface_distances(predicted, true),
        distances_mm=None if steps is None else surface_distances(predicted, true, steps),
        # The determinant also holds for sheared voxels, as gantry tilt makes them.
        voxel_ml=None if steps is None else abs(float(np.linalg.det(steps))) / MM3_PER_ML,
    )


def _of(distances: SurfaceDistances | None) -> tuple[float | None, float | None]:
    """Return HD95 and the mean, or None twice."""
    return (None, None) if distances is None else (distances.hd95, distances.mean)
