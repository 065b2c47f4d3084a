"""A DICOMweb store in place of a folder of scans: MONAI Label's own datastore for one, with our DICOM in and out."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from fastapi import HTTPException
from filelock import FileLock
from monailabel.datastore.dicom import DICOMWebDatastore  # type: ignore[import-not-found]
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore  # type: ignore[import-not-found]
from monailabel.interfaces.datastore import DefaultLabelTag  # type: ignore[import-not-found]

from pipeline.errors import AR2UNetError
from pipeline.formats.dicom.headers import text
from pipeline.label_app.conversion import Conversion
from pipeline.label_app.datastore import ListedFolder
from pipeline.label_app.dicom_labels import StoredLabel
from pipeline.label_app.dicom_store import DicomStore, StoredSeries
from pipeline.label_app.refusals import NOT_ALLOWED, NOT_FOUND, UNPROCESSABLE, refuse
from pipeline.label_app.studies import check_label

__all__ = ["DicomStudies"]

logger = logging.getLogger(__name__)

FINAL, ORIGINAL = str(DefaultLabelTag.FINAL.value), str(DefaultLabelTag.ORIGINAL.value)
FLAIR, LABEL = "_flair.nii.gz", ".nii.gz"  # what follows a SeriesInstanceUID in a file's name
SHOWN = ("StudyDate", "StudyTime", "Modality", "RetrieveURL", "PatientID", "StudyInstanceUID")  # by OHIF


class DicomStudies(ListedFolder, DICOMWebDatastore):  # type: ignore[misc]
    """The MR series of a DICOMweb store as scans, named by their SeriesInstanceUID, and its DICOM SEG as their labels.

    A series is fetched and converted when it is first asked for, and again when the store has more or less of it.
    Labels are the store's, whoever stored them; what lies in ``folder`` is copies, and masks of the network.

    Args:
        store: The store.
        folder: For what is fetched.
        conversion: From DICOM and to it.
        bundles: Folder of the bundles, by whose name masks say what made them.
    """

    def __init__(self, store: DicomStore, folder: Path, conversion: Conversion, bundles: Path) -> None:
        self.store, self.conversion, self.bundles = store, conversion, bundles
        self.folder = folder.resolve()
        self._client = store.client  # by its address MONAI Label names the datastore
        # Not that of DICOMWebDatastore: it starts to watch the folder, whose list all our readers read anew anyway.
        LocalDatastore.__init__(self, datastore_path=str(self.folder), auto_reload=False)

    def names_of(self, image: Path) -> tuple[str, ...]:
        """Return the UIDs of a series and of its study, and its PatientID."""
        uid = image.name.removesuffix(FLAIR)
        info = self._info(uid)
        return uid, str(info.get("StudyInstanceUID", "")), str(info.get("PatientID", ""))

    def kept_image(self, image_id: str) -> Path:
        """Return where a series lies, if it was fetched before."""
        return self.folder / f"{image_id}{FLAIR}"

    def list_images(self) -> list[str]:
        """Return all MR series."""
        return list(self.store.series())

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the series that have a label in the store."""
        labelled = self.store.labels()
        return [uid for uid in self.store.series() if uid in labelled]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the series to label: without a label, and not described as anything but FLAIR."""
        labelled = self.store.labels()
        return [uid for uid, series in self.store.series().items() if series.may_be_flair and uid not in labelled]

    def get_image_uri(self, image_id: str) -> str:
        """Return a series as a file, fetched if need be; empty where the store has none of that name."""
        series = self.store.series(image_id).get(image_id)
        if series is None:
            return ""
        wanted = self.store.with_t1(series)
        version = {one.uid: one.images for one in wanted}
        image = self.folder / f"{series.uid}{FLAIR}"
        with FileLock(self.folder / f".{series.uid}.lock"):
            if not image.exists() or self._info(series.uid).get("series") != version:
                try:
                    self._fetch(series, wanted)
                except AR2UNetError as error:
                    refuse(UNPROCESSABLE, str(error))
                self._list_image(series, version)
        return str(image)

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Return a label as a file; that of the store, fetched if need be, or the network's mask that is kept here."""
        self._init_from_datastore_file()
        if label_tag != FINAL:
            return str(LocalDatastore.get_label_uri(self, label_id, label_tag))
        label = self.store.labels().get(label_id)
        if label is None:
            return ""
        try:
            return str(self._fetch_label(label))
        except AR2UNetError as error:
            refuse(UNPROCESSABLE, str(error))

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """Return the tags of a series' labels, each with the label's name, which is the series'."""
        self._init_from_datastore_file()
        tags = {tag for tag in LocalDatastore.get_labels_by_image_id(self, image_id) if tag != FINAL}
        return dict.fromkeys(tags | ({FINAL} if image_id in self.store.labels() else set()), image_id)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Return the series with a label in the store, as files; what is no mask on its series is left out."""
        entries = []
        for uid in self.get_labeled_images():
            try:
                entries.append({"image": self.get_image_uri(uid), "label": self.get_label_uri(uid, FINAL)})
            except HTTPException as error:
                if error.status_code != UNPROCESSABLE:
                    raise
                logger.warning("Left out, the label %s: %s", self.store.labels()[uid].instance, error.detail)
        return entries

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        """Save a label. A final one is stored as DICOM SEG; of the network's own mask it says so, and is no label."""
        image, mask = self.get_image_uri(image_id), Path(label_filename)
        if not image:
            refuse(NOT_FOUND, f"there is no series {image_id!r}")
        try:
            check_label(mask, Path(image))
            if label_tag == FINAL:
                label_info = {**label_info, "instance": self._store_label(mask, image_id, label_info)}
                label_tag = ORIGINAL if _is_networks(label_info) else FINAL
        except AR2UNetError as error:
            refuse(UNPROCESSABLE, str(error))
        return str(LocalDatastore.save_label(self, image_id, label_filename, label_tag, label_info))

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> NoReturn:
        """Refuse a new scan."""
        refuse(NOT_ALLOWED, f"scans are not uploaded here, but to the DICOMweb store {self.store.address}")

    def remove_image(self, image_id: str) -> NoReturn:
        """Refuse to remove a scan."""
        refuse(NOT_ALLOWED, f"scans are not removed here, but in the DICOMweb store {self.store.address}")

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a mask of the network that is kept here; refuse to remove a label of the store."""
        if label_tag == FINAL:
            refuse(NOT_ALLOWED, f"labels are not removed here, but in the DICOMweb store {self.store.address}")
        LocalDatastore.remove_label(self, label_id, label_tag)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return what is known of a series that was fetched."""
        self._init_from_datastore_file()
        return dict(LocalDatastore.get_image_info(self, image_id))

    def _to_id(self, file: str) -> tuple[str, str]:
        if file.endswith(FLAIR):
            return file.removesuffix(FLAIR), FLAIR
        name, extension = LocalDatastore._to_id(self, file)
        return str(name), str(extension)

    def _info(self, uid: str) -> dict[str, Any]:
        self._init_from_datastore_file()
        listed = self._datastore.objects.get(uid)
        return dict(listed.image.info) if listed else {}

    def _dicom(self, uid: str) -> Path:
        return self.folder / "series" / uid

    def _fetch(self, series: StoredSeries, wanted: list[StoredSeries]) -> None:
        """Put a series, and T1 of its study, in the place of what was here of it."""
        self._remove(series.uid)
        with tempfile.TemporaryDirectory(prefix=".", dir=self.folder) as temporary:
            dicom, converted = Path(temporary, "dicom"), Path(temporary, "nifti")
            for one in wanted:
                self.store.fetch_series(one, dicom / one.uid)
            converted.mkdir()
            self.conversion.read_series(dicom, series.uid, converted)
            self._dicom(series.uid).parent.mkdir(exist_ok=True)
            dicom.rename(self._dicom(series.uid))
            for path in sorted(converted.iterdir(), reverse=True):  # FLAIR is the last: with it, all is there
                path.rename(self.folder / path.name)

    def _remove(self, uid: str) -> None:
        """Remove what is here of a series: files and, since they lie on its old voxels, labels."""
        for path in (*self.folder.glob(f"{uid}_*{LABEL}"), *self.folder.glob(f"labels/*/{uid}{LABEL}")):
            path.unlink()
        if self._dicom(uid).exists():
            shutil.rmtree(self._dicom(uid))

    def _list_image(self, series: StoredSeries, version: dict[str, str]) -> None:
        info: dict[str, Any] = {keyword: text(series.header, keyword) or "UNK" for keyword in SHOWN}
        info |= {"SeriesInstanceUID": series.uid, "series": version, "ts": int(time.time())}
        info["name"] = f"{series.uid}{FLAIR}"
        self._init_from_datastore_file()
        self._datastore.objects[series.uid] = ImageLabelModel(image=DataModel(info=info, ext=FLAIR))
        self._update_datastore_file()

    def _fetch_label(self, label: StoredLabel) -> Path:
        self.get_image_uri(label.image)
        path = Path(self._datastore.label_path(FINAL), f"{label.image}{LABEL}")
        self._init_from_datastore_file()
        kept = self._datastore.label(label.image, FINAL)
        if kept is not None and kept.info.get("instance") == label.instance and path.exists():
            return path
        with tempfile.TemporaryDirectory(prefix=".", dir=self.folder) as temporary:
            segmentation, mask = Path(temporary, "label.dcm"), Path(temporary, f"label{LABEL}")
            self.store.fetch_label(label, segmentation)
            self.conversion.read_label(segmentation, self._dicom(label.image), label.image, mask)
            mask.rename(path)
        info = {"instance": label.instance, "SeriesInstanceUID": label.series, "name": path.name}
        self._datastore.objects[label.image].labels[FINAL] = DataModel(info=info, ext=LABEL)
        self._update_datastore_file()
        return path

    def _store_label(self, mask: Path, uid: str, info: dict[str, Any]) -> str:
        """Store a label as DICOM SEG; return its SOPInstanceUID."""
        with tempfile.TemporaryDirectory(prefix=".", dir=self.folder) as temporary:
            path = Path(temporary, "label.dcm")
            if _is_networks(info):
                bundle, weights = self.bundles / str(info["model"]), str(info["params"]["weights"])
                self.conversion.write_network_mask(mask, self._dicom(uid), uid, path, bundle, weights)
            else:
                self.conversion.write_label(mask, self._dicom(uid), uid, path, metadata.version("monailabel"))
            return self.store.store(path)


def _is_networks(info: dict[str, Any]) -> bool:
    """Return whether a label is what inference itself saved."""
    return "model" in info and "weights" in (info.get("params") or {})
