"""The address of a DICOMweb store in place of a folder of scans, and whether there is one."""

from __future__ import annotations

import base64
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import AR2UNetError

__all__ = ["check_address", "check_store", "is_address", "make_private", "user_and_password"]

SECONDS = 20  # for a store to answer one short question
USER, PASSWORD = "MONAI_LABEL_DATASTORE_USERNAME", "MONAI_LABEL_DATASTORE_PASSWORD"  # MONAI Label's own names
PRIVATE = 0o700


def is_address(studies: str) -> bool:
    """Return whether the studies are in a DICOMweb store, and in no folder."""
    return studies.lower().startswith(("http://", "https://"))


def check_address(address: str) -> str:
    """Return a store's address as it is used, without a slash at its end.

    Raises:
        AR2UNetError: If it is none, or holds a user name or password, which every process list would show.
    """
    try:
        parts = urlsplit(address)
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise AR2UNetError(f"STUDIES must be an address such as http://127.0.0.1:8042/dicom-web, got {address}")
    if parts.username is not None or parts.password is not None:
        raise AR2UNetError(
            f"the address of a store must not hold a user name or password; set {USER} and {PASSWORD} instead"
        )
    return address.rstrip("/")


def user_and_password(environ: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
    """Return what the environment has for the store; None where it asks for nothing.

    Raises:
        AR2UNetError: If one of the two is missing.
    """
    user, password = environ.get(USER, ""), environ.get(PASSWORD, "")
    if bool(user) != bool(password):
        raise AR2UNetError(f"{USER} and {PASSWORD} must be set both, got {USER if user else PASSWORD} alone")
    return (user, password) if user else None


def check_store(address: str, login: tuple[str, str] | None) -> None:
    """Ask a store for one study.

    Args:
        address: As ``check_address`` returned it.
        login: User name and password; None without.

    Raises:
        AR2UNetError: If nothing answers, the store does not let us in, or what answers is no DICOMweb store.
    """
    request = urllib.request.Request(f"{address}/studies?limit=1", headers={"Accept": "application/dicom+json"})
    if login is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(":".join(login).encode()).decode())
    expected = f"{address} must be the address of a DICOMweb store, such as http://127.0.0.1:8042/dicom-web"
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            content = answer.read()
            studies = json.loads(content) if answer.status != 204 else []  # 204: no content, that is no study
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            got = "none" if login is None else f"{USER} {login[0]!r} and its password"
            raise AR2UNetError(
                f"{address} wants another user name and password, got {got}; set {USER} and {PASSWORD}"
            ) from error
        raise AR2UNetError(f"{expected}, got HTTP status {error.code} for its studies") from error
    except ValueError as error:
        raise AR2UNetError(f"{expected}, got no DICOM JSON for its studies") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise AR2UNetError(f"{address}: cannot be reached: {getattr(reason, 'strerror', None) or reason}") from error
    if not isinstance(studies, list):
        raise AR2UNetError(f"{expected}, got no list of studies")


def make_private(folder: Path) -> None:
    """Let nobody else look into the folder of the app, which gets copies of patients' scans.

    Raises:
        AR2UNetError: If it belongs to somebody else.
    """
    try:
        folder.chmod(PRIVATE)
    except OSError as error:
        raise AR2UNetError(f"{folder}: cannot be made private: {error.strerror}") from error
