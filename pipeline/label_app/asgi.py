"""MONAI Label's own server application, which otherwise answers every page that a browser has open.

It asks nobody for a token, so a page of another site could read scans through the browser of this machine's user.
Here such a page gets nothing: its origin is not allowed, nor is a name that it has pointed to this machine.
"""

from __future__ import annotations

import requests
from fastapi import Request, Response
from monailabel.config import settings  # type: ignore[import-not-found]
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pipeline.label_app.refusals import BAD_GATEWAY, NOT_FOUND, UNPROCESSABLE, refuse

__all__ = ["app"]

settings.MONAI_LABEL_CORS_ORIGINS = [f"http://127.0.0.1:{settings.MONAI_LABEL_SERVER_PORT}"]

from monailabel.app import app  # type: ignore[import-not-found]  # noqa: E402 - reads the origins when it is imported
from monailabel.endpoints import infer, proxy  # type: ignore[import-not-found]  # noqa: E402 - as before

forward = proxy.proxy_dicom


async def forward_whole(request: Request, op: str, path: str) -> Response:
    """Hand a request of OHIF on to the DICOMweb store, as MONAI Label does, but with its query, which that drops.

    Nor does a path lead out of the store: what lies beside it on the same server is not for everybody here.
    """
    if ".." in path.split("/"):
        refuse(NOT_FOUND, "there is no such path in the DICOMweb store")
    try:
        answer: Response = await forward(request, op, f"{path}?{request.url.query}" if request.url.query else path)
    except requests.RequestException as error:
        refuse(BAD_GATEWAY, f"the DICOMweb store cannot be reached ({type(error).__name__})")
    return answer


def refuse_dicom_seg(*_: object, **__: object) -> None:
    """Refuse what would call a program that MONAI Label downloads."""
    refuse(
        UNPROCESSABLE,
        'output=dicom_seg is not served; {"save_label": true, "label_tag": "final"} among the params of infer stores '
        "the mask as DICOM SEG in the DICOMweb store",
    )


proxy.proxy_dicom = forward_whole
infer.nifti_to_dicom_seg = refuse_dicom_seg
app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "["])
