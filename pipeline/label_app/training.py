"""Training: MONAI Label's own task for bundles, from the weights in use to a new version beside them."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monailabel.tasks.train.bundle import BundleTrainTask  # type: ignore[import-not-found]
from monailabel.utils.others.generic import device_list  # type: ignore[import-not-found]

from pipeline.errors import BundleError, DatasetError
from pipeline.label_app.fine_tuning import fine_tuning, split
from pipeline.label_app.studies import check_label, find_sequences, is_held_out
from pipeline.label_app.versions import Choice, add_version, offered

__all__ = ["TrainTask"]

logger = logging.getLogger(__name__)

EPOCHS = 20
LEARNING_RATE = 1.0e-4  # a twentieth of what the weights were first trained with


class TrainTask(BundleTrainTask):  # type: ignore[misc]
    """Fine-tune a packed bundle on the saved labels.

    Args:
        bundle: Its folder.
        choice: The weights to start from unless a request names others.
        held_out: Scans, by name or pattern, that are never trained on.
    """

    def __init__(self, bundle: Path, choice: Choice, held_out: Sequence[str]) -> None:
        self.models, self.choice, self.held_out = bundle / "models", choice, held_out
        self.run_folder = bundle / "training"
        self.request: dict[str, Any] = {}
        super().__init__(str(bundle), {})

    def config(self) -> dict[str, Any]:
        """Return what a request may set."""
        return {
            "device": device_list(),
            "max_epochs": EPOCHS,
            "learning_rate": LEARNING_RATE,
            "val_split": 0.2,  # with fewer than five labels, all are trained on
            "model_filename": offered(self.models, self.choice),
        }

    def stats(self) -> dict[str, Any]:
        """Return how far the training is, or was at its end: ``epoch``, ``total_epochs``, ``best_metric`` (Dice)."""
        try:
            content: dict[str, Any] = json.loads((self.run_folder / "progress.json").read_text())
        except (OSError, ValueError):
            return {}
        return content

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        """Train; return the name of the new version.

        Raises:
            DatasetError: If no scan with a label may be trained on.
            BundleError: If there are no weights of the name that the request has.
        """
        names = offered(self.models, self.choice)
        asked = request.get("model_filename") or names[0]
        asked = asked if isinstance(asked, str) else asked[0]
        if asked not in names:
            raise BundleError(f"model_filename must be one of {', '.join(names)}, got {asked}")
        shutil.rmtree(self.run_folder, ignore_errors=True)  # of a training that ended or was stopped
        self.run_folder.mkdir()
        epochs = int(request.get("max_epochs", EPOCHS))  # else MONAI Label has a number of its own
        fixed = {"model_filename": asked, "max_epochs": epochs, "run_id": "run", "multi_gpu": False, "tracking": "None"}
        self.request = {**request, **fixed}
        super().__call__(self.request, datastore)
        weights = next(
            path for name in ("model_best.pt", "model_final.pt") if (path := self.run_folder / name).exists()
        )
        version = add_version(self.models, weights)
        logger.info("New weights: %s, trained from %s", version, asked)
        return {"weights": version, "trained_from": asked}

    def _fetch_datalist(self, request: dict[str, Any], datastore: Any) -> list[dict[str, Any]]:
        """Return the scans with a saved label, but none that is held out."""
        entries: list[dict[str, Any]] = []
        for entry in datastore.datalist():
            image, label = Path(entry["image"]), Path(entry["label"])
            names = datastore.names_of(image)
            name = names[0]
            if any(is_held_out(one, self.held_out) for one in names):
                logger.info("%s is held out", name)
                continue
            check_label(label, image)
            t1, t1c = find_sequences(image)
            sequences = [str(path or image) for path in (t1, image, t1c)]
            entries.append({"subject": name, "image": sequences, "label": str(label)})
        if not entries:
            raise DatasetError("training needs a scan with a saved label that is not held out, got none")
        entries.sort(key=lambda entry: str(entry["subject"]))
        logger.info("Training on: %s", ", ".join(str(entry["subject"]) for entry in entries))
        return entries

    def _partition_datalist(
        self, datalist: list[dict[str, Any]], request: dict[str, Any], shuffle: bool = False
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        return split(datalist, float(request.get("val_split", 0.2)))

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list[Any]) -> None:
        """Leave the handlers as they are: the bundle's config has a key of its own for the weights to start from."""

    def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        training, validation = overrides["train#dataset#data"], overrides["validate#dataset#data"]
        device = overrides["device"]
        epochs = int(self.request["max_epochs"])
        overrides |= fine_tuning(len(training), epochs, float(self.request.get("learning_rate", LEARNING_RATE)))
        overrides |= {
            "device": f"$torch.device({device!r})",
            "fold": 0 if validation else -1,  # -1 leaves validation out
            "initial_weights": str(self.models / self.request["model_filename"]),
            "output_dir": str(self.run_folder),
        }
        handler = {
            "_target_": "pipeline.label_app.progress.ProgressHandler",
            "path": str(self.run_folder / "progress.json"),
        }
        overrides["train#handlers"] = [*overrides["train#handlers"], handler]
        return overrides
