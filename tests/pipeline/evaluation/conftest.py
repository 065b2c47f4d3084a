"""Masks and scores to evaluate: no two sizes are equal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.evaluation.lesions import LesionCounts
from pipeline.evaluation.metrics import ConfusionCounts
from pipeline.evaluation.scoring import PatientScores

SHAPE = (11, 13, 7)  # all sizes differ, so a swapped axis cannot pass unseen


@pytest.fixture
def mask_of() -> Callable[..., NDArray[np.uint8]]:
    """Make a mask from the indices of its voxels."""

    def make(*voxels: tuple[int, int, int], shape: tuple[int, int, int] = SHAPE) -> NDArray[np.uint8]:
        mask = np.zeros(shape, dtype=np.uint8)
        for voxel in voxels:
            mask[voxel] = 1
        return mask

    return make


@pytest.fixture
def make_scores() -> Callable[..., PatientScores]:
    """Make a patient's scores from voxel counts."""

    def make(
        subject: str,
        true_positive: int,
        false_positive: int = 0,
        false_negative: int = 0,
        true_negative: int = 1000,
        *,
        site: str | None = None,
        **others: Any,
    ) -> PatientScores:
        fields: dict[str, Any] = {
            "lesions": LesionCounts(true=1, found=1, predicted=1, spurious=0),
            "distances_voxels": None,
            "distances_mm": None,
            "voxel_ml": None,
        }
        counts = ConfusionCounts(true_positive, false_positive, false_negative, true_negative)
        return PatientScores(subject=subject, site=site, counts=counts, **{**fields, **others})

    return make


@pytest.fixture
def save_mask(make_nifti: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Write a mask below the test's folder; oblique, voxels of 0.9 x 1.1 x 4.5 mm, if nothing else is said."""

    def save(name: str, mask: NDArray[np.generic], **geometry: Any) -> Path:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        return make_nifti(name, volume=mask, **geometry)

    return save
