"""A DICOMweb store, asked through dicomweb-client: its MR series, its labels, and what is fetched and stored."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import requests
from cachetools import TTLCache  # type: ignore[import-untyped, unused-ignore]
from fastapi import HTTPException
from monailabel.datastore.dicom import DICOMwebClientX  # type: ignore[import-not-found]
from pydicom import Dataset, dcmread
from pydicom.uid import UID

from pipeline.errors import first_line
from pipeline.formats.dicom.headers import Header, quiet_pydicom, text
from pipeline.formats.dicom.series import Series, classify
from pipeline.label_app.dicom_labels import StoredLabel, find_label, newest
from pipeline.label_app.refusals import BAD_GATEWAY, refuse

__all__ = ["DicomStore", "StoredSeries"]

logger = logging.getLogger(__name__)

FRESH_SECONDS = 10.0  # what the store said so long ago is not asked again: viewers ask for the same all the time
TIMEOUTS = (10.0, 120.0)  # seconds, to connect and between two parts of an answer
AS_STORED = (("application/dicom", "*"),)  # transfer syntax: our reader decodes what the store may not
UID_PATTERN = re.compile(r"[0-9]+(\.[0-9]+)*")  # it becomes the name of a folder
T1_ROLES = ("t1", "t1c")


@dataclass(frozen=True)
class StoredSeries:
    """An MR series of the store.

    Attributes:
        uid: SeriesInstanceUID.
        study: StudyInstanceUID.
        images: How many instances the store has of it, as it says itself.
        role: "flair", "t1" or "t1c" as far as its description tells, by the rule of ``pipeline.formats.dicom.series``.
        header: What the store said of it.
    """

    uid: str
    study: str
    images: str
    role: str | None
    header: Dataset

    @property
    def may_be_flair(self) -> bool:
        """Whether it is described as FLAIR, or not at all."""
        return self.role == "flair" or not text(self.header, "SeriesDescription")


class DicomStore:
    """A DICOMweb store.

    Every method answers the request with status 502 and one line where the store cannot be asked.

    Args:
        address: Without a slash at its end.
        login: User name and password; None without.
    """

    def __init__(self, address: str, login: tuple[str, str] | None) -> None:
        quiet_pydicom()
        session = _Session()
        session.auth = login
        self.address = address
        self.client: Any = DICOMwebClientX(url=address, session=session)
        self.client.set_http_retry_params(retry=False)
        self._lock = threading.RLock()
        self._answers: Any = TTLCache(maxsize=2, ttl=FRESH_SECONDS)
        self._labels_of: dict[str, list[StoredLabel]] = {}  # by SeriesInstanceUID of a SEG: it never changes

    def series(self, uid: str | None = None) -> Mapping[str, StoredSeries]:
        """Return all MR series, by SeriesInstanceUID.

        Args:
            uid: One that is wanted: if it is not among those of some seconds ago, the store is asked again.
        """
        found: dict[str, StoredSeries] = self._recent("series", self._find_series)
        if uid is not None and uid not in found and UID_PATTERN.fullmatch(uid):
            self._answers.pop("series", None)
            found = self._recent("series", self._find_series)
        return found

    def with_t1(self, series: StoredSeries) -> list[StoredSeries]:
        """Return a series, and those of its study that are T1 by their description."""
        same_study = (one for one in self.series().values() if one.study == series.study and one is not series)
        return [series, *(one for one in same_study if one.role in T1_ROLES)]

    def labels(self) -> Mapping[str, StoredLabel]:
        """Return the newest label of each series, by the SeriesInstanceUID of what it labels."""
        found: dict[str, StoredLabel] = self._recent("labels", self._find_labels)
        return found

    def fetch_series(self, series: StoredSeries, folder: Path) -> None:
        """Write the files of a series into a new folder."""
        folder.mkdir(parents=True)
        with self._asking():
            instances = self.client.iter_series(series.study, series.uid, media_types=AS_STORED)
            for number, instance in enumerate(instances):
                instance.save_as(folder / f"{number:05d}.dcm")

    def fetch_label(self, label: StoredLabel, path: Path) -> None:
        """Write the file of a label."""
        with self._asking():
            instance = self.client.retrieve_instance(label.study, label.series, label.instance, media_types=AS_STORED)
            instance.save_as(path)

    def store(self, path: Path) -> str:
        """Store a file; return its SOPInstanceUID."""
        dataset = dcmread(path)
        with self._asking():
            answer = self.client.store_instances([dataset])
        if answer.get("FailedSOPSequence"):
            reason = text(answer.FailedSOPSequence[0], "FailureReason") or "without a reason"
            refuse(BAD_GATEWAY, f"{self.address}: the store did not take the DICOM SEG: {reason}")
        self._answers.pop("labels", None)
        return str(dataset.SOPInstanceUID)

    def _find_series(self) -> dict[str, StoredSeries]:
        fields = ["SeriesDescription", "ProtocolName"]
        headers = self._search({"Modality": "MR"}, fields)
        found = (_stored_series(header) for header in headers if text(header, "Modality") == "MR")
        return {series.uid: series for series in found if UID_PATTERN.fullmatch(series.uid)}

    def _find_labels(self) -> dict[str, StoredLabel]:
        there: dict[str, list[StoredLabel]] = {}
        for header in self._search({"Modality": "SEG"}, []):
            study, uid = text(header, "StudyInstanceUID"), text(header, "SeriesInstanceUID")
            try:
                there[uid] = self._labels_of[uid] if uid in self._labels_of else self._read_labels(study, uid)
            except HTTPException as error:  # one that is damaged shall not hide the others
                logger.warning("Left out, the DICOM SEG series %s: %s", uid, error.detail)
        self._labels_of = there
        return newest(label for labels in there.values() for label in labels)

    def _read_labels(self, study: str, uid: str) -> list[StoredLabel]:
        with self._asking():
            metadata = self.client.retrieve_series_metadata(study, uid)
            labels = [find_label(Dataset.from_json(instance)) for instance in metadata]
        return [label for label in labels if label is not None]

    def _search(self, filters: dict[str, str], fields: list[str]) -> list[Dataset]:
        with self._asking():
            found = self.client.search_for_series(search_filters=filters, fields=fields)
            return [Dataset.from_json(series) for series in found]

    def _recent(self, question: str, ask: Callable[[], Any]) -> Any:
        with self._lock:
            answer = self._answers.get(question)
            if answer is None:
                answer = self._answers[question] = ask()
            return answer

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else "an error"
            hint = " (user name and password?)" if status in (401, 403) else ""
            refuse(BAD_GATEWAY, f"{self.address}: the DICOMweb store answered with HTTP status {status}{hint}")
        except requests.RequestException as error:
            refuse(BAD_GATEWAY, f"{self.address}: the DICOMweb store cannot be reached ({type(error).__name__})")
        # What is no DICOM in an answer surfaces as an error of pydicom, struct, json and others.
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            refuse(BAD_GATEWAY, f"{self.address}: the DICOMweb store's answer cannot be used: {reason}")


class _Session(requests.Session):
    """Requests that do not wait for ever."""

    def request(self, *arguments: Any, **options: Any) -> requests.Response:
        options["timeout"] = options.get("timeout") or TIMEOUTS
        return super().request(*arguments, **options)


def _stored_series(header: Dataset) -> StoredSeries:
    uid = text(header, "SeriesInstanceUID")
    series = Series(uid, (Header(cast(Any, None), header, UID(""), None, None),), 1)  # of no file yet
    images = text(header, "NumberOfSeriesRelatedInstances")
    return StoredSeries(uid, text(header, "StudyInstanceUID"), images, classify(series), header)
