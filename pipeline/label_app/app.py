"""The app of MONAI Label's server: each packed bundle as one model to infer with and to train.

It runs in MONAI Label's own environment, in the server and in each of its background tasks.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException
from monailabel.config import settings  # type: ignore[import-not-found]
from monailabel.interfaces.app import MONAILabelApp  # type: ignore[import-not-found]
from monailabel.tasks.activelearning.first import First  # type: ignore[import-not-found]
from monailabel.tasks.scoring.dice import Dice  # type: ignore[import-not-found]

from pipeline.errors import AR2UNetError
from pipeline.label_app.confidences import Confidences
from pipeline.label_app.conversion import PYTHON, Conversion
from pipeline.label_app.datastore import Studies
from pipeline.label_app.dicom_store import DicomStore
from pipeline.label_app.dicom_studies import DicomStudies
from pipeline.label_app.inference import InferTask
from pipeline.label_app.refusals import FAILED, NOT_FOUND, UNPROCESSABLE, refuse
from pipeline.label_app.store_address import is_address
from pipeline.label_app.strategies import ConfidenceScoring, LowestConfidence
from pipeline.label_app.studies import read_held_out
from pipeline.label_app.training import TrainTask
from pipeline.label_app.versions import Choice

__all__ = ["LabelApp"]

logger = logging.getLogger(__name__)

SERVER_PROCESS = "AR2UNET_LABEL_SERVER"  # environment variable: the server's process, for its background tasks
WATCH_SECONDS = 1.0
PRIVATE_UMASK = 0o077


class LabelApp(MONAILabelApp):  # type: ignore[misc]
    """MONAI Label's app for packed bundles.

    ``conf`` names them (``models``, separated by commas), the weights of each (``weights_<name>``, ``known_<name>``)
    and the list of scans that are held out (``held_out``).
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        _end_with_the_server()
        self.bundles = {name: Path(app_dir, "model", name) for name in conf["models"].split(",")}
        self.choices = {n: Choice(conf[f"weights_{n}"], int(conf[f"known_{n}"])) for n in self.bundles}
        self.held_out = read_held_out(Path(conf["held_out"])) if conf.get("held_out") else ()
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="AR2-UNet",
            description="FLAIR abnormality in brain MR. For research use only; not a medical device",
            version="1.0",
        )

    def init_datastore(self) -> Any:
        """Return the folder of scans, or the DICOMweb store."""
        if is_address(self.studies):
            os.umask(PRIVATE_UMASK)  # what is fetched, and all masks and logs of it, is for this user's eyes only
            login = (settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD)
            store = DicomStore(self.studies, login if all(login) else None)
            folder = Path(self.app_dir, "dicom", hashlib.sha256(self.studies.encode()).hexdigest()[:32])
            return DicomStudies(store, folder, Conversion(os.environ[PYTHON]), Path(self.app_dir, "model"))
        return Studies(
            self.studies,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, Any]:
        """Return what segments, by bundle."""
        return {name: InferTask(path, self.choices[name]) for name, path in self.bundles.items()}

    def init_trainers(self) -> dict[str, Any]:
        """Return what trains, by bundle."""
        return {name: TrainTask(path, self.choices[name], self.held_out) for name, path in self.bundles.items()}

    def init_strategies(self) -> dict[str, Any]:
        """Return what chooses the scan to label next; viewers take the first unless told otherwise."""
        return {"lowest_confidence": LowestConfidence(self.confidences), "first": First()}

    def init_scoring_methods(self) -> dict[str, Any]:
        """Return what goes through all scans: how sure the network is, and how far labels are from its masks."""
        return {"confidence": ConfidenceScoring(self.confidences), "dice": Dice()}

    def infer(self, request: dict[str, Any], datastore: Any = None) -> Any:
        """Segment a stored scan, or a file; what is wrong with it is one line and a status of its own."""
        name, image = str(request.get("model")), request.get("image")
        if name not in self._infers:
            refuse(NOT_FOUND, f"there is no model {name!r}; there are {', '.join(self._infers)}")
        stored = self._datastore.get_image_uri(image)
        if not stored and not os.path.isfile(str(image)):  # noqa: PTH113 - as MONAI Label decides
            refuse(NOT_FOUND, f"there is no scan {image!r}")
        try:
            result = super().infer(request, datastore)
        except AR2UNetError as error:
            refuse(UNPROCESSABLE, str(error))
        except Exception as error:
            logger.exception("Segmenting %s failed", image)
            refuse(FAILED, f"{image}: cannot be segmented: {type(error).__name__}: {error}")
        if stored:
            task = self._infers[name]
            weights = task.weights(request)
            Confidences(self._confidence_folder(name), weights).write(Path(stored), result["params"]["confidence"])
        return result

    def batch_infer(self, request: dict[str, Any], datastore: Any = None) -> Any:
        """Segment many scans; one that cannot be is named with its reason, and the others are done."""
        if not torch.cuda.is_available():
            request = {**request, "device": "cpu", "multi_gpu": False}  # the route's own defaults ask for GPUs

        def infer(one: dict[str, Any], store: Any) -> dict[str, Any]:
            try:
                return dict(self.infer(one, store))
            except HTTPException as error:
                logger.warning("%s", error.detail)
                return {"error": error.detail}

        return self._batch_infer(request, datastore or self.datastore(), infer)

    def train(self, request: dict[str, Any]) -> Any:
        """Train; what is wrong with the labels is one line."""
        try:
            return super().train(request)
        except AR2UNetError as error:
            refuse(UNPROCESSABLE, str(error))

    def confidences(self, model: str | None, limit: int) -> dict[str, float | None]:
        """Return how sure a model is of each scan without a label, segmenting those where that is not known.

        Args:
            model: By default the first.
            limit: Scans to segment at most; the others' confidence is None.
        """
        name = model or next(iter(self._infers))
        if name not in self._infers:
            refuse(NOT_FOUND, f"there is no model {name!r}; there are {', '.join(self._infers)}")
        found: dict[str, float | None] = {}
        for image in sorted(self._datastore.get_unlabeled_images()):
            kept = Confidences(self._confidence_folder(name), self._infers[name].weights({}))
            found[image] = kept.read(self._datastore.kept_image(image))
            if found[image] is None and limit > 0:
                limit -= 1
                found[image] = self._confidence(name, image)
        return found

    def _confidence(self, model: str, image: str) -> float | None:
        try:
            result = self.infer({"model": model, "image": image, "result_write_to_file": False})
        except HTTPException as error:
            logger.warning("%s", error.detail)
            return None
        return float(result["params"]["confidence"])

    def _confidence_folder(self, model: str) -> Path:
        return Path(self.app_dir, "confidence", model)

    def on_init_complete(self) -> None:
        """Tell background tasks whose they are, now that this process is known to be the server."""
        os.environ[SERVER_PROCESS] = str(os.getpid())
        super().on_init_complete()


def _end_with_the_server(leave: Callable[[int], None] = os._exit) -> None:
    """End a background task whose server is gone: nobody could stop it, and a new server would train beside it."""
    server = os.environ.get(SERVER_PROCESS)
    if server is None or int(server) == os.getpid():
        return

    def watch() -> None:
        while os.getppid() == int(server):
            time.sleep(WATCH_SECONDS)
        leave(1)

    threading.Thread(target=watch, name="watch the server", daemon=True).start()
