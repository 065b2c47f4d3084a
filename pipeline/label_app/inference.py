"""Inference: MONAI Label's own task for bundles, with what this bundle's masks need before and after."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import AsDiscreted
from monailabel.tasks.infer.bundle import BundleInferTask  # type: ignore[import-not-found]
from monailabel.transform.writer import Writer  # type: ignore[import-not-found]

from pipeline.confidence.predicted_dice import soft_dice
from pipeline.errors import BundleError
from pipeline.formats.nifti import read_scan, write_mask
from pipeline.label_app.studies import find_sequences
from pipeline.label_app.versions import Choice, offered

__all__ = ["InferTask"]

LESION = 1  # the channel of the network's output
PROBABILITIES = "probabilities"  # key under which they outlive the mask's making
NIFTI_NAMES = (".nii", ".nii.gz")


class InferTask(BundleInferTask):  # type: ignore[misc]
    """Segment with a packed bundle.

    Args:
        bundle: Its folder.
        choice: The weights to use unless a request names others.
    """

    def __init__(self, bundle: Path, choice: Choice) -> None:
        self.models, self.choice = bundle / "models", choice
        self._weights_in_use: Path | None = None
        self._lock = threading.Lock()
        # The bundle's own reader takes a list of sequences; its results lie on the scan's grid already.
        super().__init__(str(bundle), {}, extend_load_image=False, add_post_restore=False, load_strict=True)
        metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
        # As the metadata has them: MONAI Label leaves background out and writes names in small letters.
        channels = metadata["network_data_format"]["outputs"][self.key_pred]["channel_def"]
        self.labels = {name: int(channel) for channel, name in channels.items()}
        self.dimension = 3  # scans are volumes, although the network sees slices
        # On the memory order of the bundle's own inference, so that the last bit of a probability is the same.
        self.network = self._parsed("network")

    def weights(self, request: dict[str, Any]) -> Path:
        """Return the weights that a request asks for, or those to use.

        Raises:
            BundleError: If there are none of that name.
        """
        names = offered(self.models, self.choice)
        asked = request.get("model_filename") or names[0]
        name = asked if isinstance(asked, str) else asked[0]
        if name not in names:
            raise BundleError(f"model_filename must be one of {', '.join(names)}, got {name}")
        return self.models / name

    def config(self) -> dict[str, Any]:
        """Return the options of a request; the weights to use are the first of theirs."""
        self._config["model_filename"] = offered(self.models, self.choice)
        return dict(self._config)

    def __call__(self, request: dict[str, Any], callbacks: Any = None) -> tuple[Any, dict[str, Any]]:
        """Segment one scan; return the mask's file and what is known of it, ``confidence`` with the rest."""
        self.config()
        with self._lock:  # transforms and the network are shared
            return super().__call__({**request, "model_filename": self.weights(request).name}, callbacks)  # type: ignore[no-any-return]

    def pre_transforms(self, data: dict[str, Any] | None = None) -> Sequence[Callable[..., Any]]:
        """Return the bundle's transforms, after one that finds the sequences of the scan."""
        return [_find_scan, *super().pre_transforms(data)]

    def post_transforms(self, data: dict[str, Any] | None = None) -> Sequence[Callable[..., Any]]:
        """Return the bundle's transforms, and one that asks the probabilities how sure they are."""
        transforms = list(super().post_transforms(data))
        place = next(n for n, transform in enumerate(transforms) if isinstance(transform, AsDiscreted))
        return [*transforms[:place], self._keep_probabilities, *transforms[place:], self._add_confidence]

    def writer(self, data: dict[str, Any], extension: str | None = None, dtype: Any = None) -> tuple[Any, Any]:
        """Write the mask as uint8 NIfTI in the geometry of its scan's header, or in the format that was asked for."""
        result = data["result"]
        mask = np.asarray(data[self.key_pred].cpu())[0]
        extension = extension or data.get("result_extension") or ".nii.gz"
        if data.get("result_write_to_file", True) in (False, "false"):
            return None, result
        if extension in NIFTI_NAMES:
            with tempfile.NamedTemporaryFile(prefix="mask_", suffix=extension, delete=False) as file:
                path = Path(file.name)
            write_mask(mask, data["scan"], path)
            return str(path), result
        fields = {
            "image_path": data["image_path"],
            "result_extension": extension,
            "result_dtype": data.get("result_dtype") or "uint8",
            "result_compress": data.get("result_compress", False),
            "labels": self.labels,
            "pred": mask,
            "pred_meta_dict": {"affine": data["scan"].affine},
            "result": result,
        }
        written: tuple[Any, Any] = Writer(label="pred", json="result")(fields)
        return written

    def _get_network(self, device: str, data: dict[str, Any] | None) -> Any:
        weights = self.weights(data or {})
        if weights != self._weights_in_use:  # MONAI Label tells files apart by their date alone
            self.clear_cache()
        self._weights_in_use = weights
        return super()._get_network(device, data)

    def _keep_probabilities(self, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, PROBABILITIES: np.asarray(data[self.key_pred][LESION].cpu())}

    def _add_confidence(self, data: dict[str, Any]) -> dict[str, Any]:
        result = dict(data)
        confidence = soft_dice(result.pop(PROBABILITIES), np.asarray(data[self.key_pred].cpu())[0] > 0)
        return {**result, "result": {"confidence": round(confidence, 4), "weights": self.weights(data).name}}

    def _parsed(self, key: str) -> Any:
        return self.bundle_config.get_parsed_content(key, instantiate=True)


def _find_scan(data: dict[str, Any]) -> dict[str, Any]:
    """Read the scan once in full, so that what is wrong with it is said in one line, and name all of its sequences.

    Raises:
        ScanError: If a file is damaged, is no scan, or lies on another grid.
    """
    flair = Path(data["image"])
    t1, t1c = find_sequences(flair)
    scan = read_scan(flair, t1, t1c)
    image = str(flair) if t1 is None and t1c is None else [str(path or flair) for path in (t1, flair, t1c)]
    return {**data, "image": image, "scan": scan}
