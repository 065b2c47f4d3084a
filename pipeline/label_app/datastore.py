"""The folder of scans and labels, as MONAI Label keeps it, with a list of them that no crash can lose."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import LocalDatastore  # type: ignore[import-not-found]

from pipeline.errors import AR2UNetError
from pipeline.formats.atomic import atomic_write
from pipeline.label_app.refusals import NOT_FOUND, UNPROCESSABLE, refuse
from pipeline.label_app.studies import check_label, scan_name, without_companions

__all__ = ["ListedFolder", "Studies"]

logger = logging.getLogger(__name__)


class ListedFolder(LocalDatastore):  # type: ignore[misc]
    """A folder of scans, of which ``X_flair``, ``X_t1`` and ``X_t1c`` are one, and its list ``datastore_v2.json``.

    MONAI Label writes the list in place, so that a crash in the middle of it leaves a part. Here it is whole always,
    and a damaged one is put aside: scans and labels are found again from their files.
    """

    def names_of(self, image: Path) -> tuple[str, ...]:
        """Return what a list of held-out scans may call a scan, first its id."""
        return (scan_name(image),)

    def kept_image(self, image_id: str) -> Path:
        """Return where a scan's file is, or would be: it is not fetched from anywhere."""
        return Path(self.get_image_uri(image_id))

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        files: dict[str, str] = super()._list_files(path, patterns)
        return {name: files[name] for name in without_companions(files)}

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        path = Path(self._datastore_config_path)
        try:
            super()._init_from_datastore_file(throw_exception=True)
        except ValueError:
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            logger.warning(
                "%s is damaged and was put aside as %s; scans and labels are listed anew from their files; only notes "
                "on them, such as which scan was offered already, are lost",
                path,
                aside.name,
            )

    def _update_datastore_file(self, lock: bool = True) -> None:
        path = Path(self._datastore_config_path)
        with FileLock(self._lock_file) if lock else nullcontext():
            content = json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str)
            with atomic_write(path) as file:
                file.write(content.encode())
            self._config_ts = path.stat().st_mtime


class Studies(ListedFolder):
    """A user's folder of scans, and labels that fit their scans."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self._auto_reload:
            self._handler.on_moved = self._on_replaced

    def _on_replaced(self, event: Any) -> None:
        """Read the list again when a background task has put a new one in its place."""
        if event.dest_path == self._datastore_config_path:
            self._init_from_datastore_file()

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Save a label; refuse one that no training could learn from."""
        image = self.get_image_uri(image_id)
        if not image:
            refuse(NOT_FOUND, f"there is no scan {image_id!r}")
        try:
            check_label(Path(label_filename), Path(image))
        except AR2UNetError as error:
            refuse(UNPROCESSABLE, str(error))
        return str(super().save_label(image_id, label_filename, label_tag, label_info))
