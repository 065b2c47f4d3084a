"""MONAI Label's own server application, which otherwise answers every page that a browser has open.

It asks nobody for a token, so a page of another site could read scans through the browser of this machine's user.
Here such a page gets nothing: its origin is not allowed, nor is a name that it has pointed to this machine.
"""

from __future__ import annotations

from monailabel.config import settings  # type: ignore[import-not-found]
from starlette.middleware.trustedhost import TrustedHostMiddleware

__all__ = ["app"]

settings.MONAI_LABEL_CORS_ORIGINS = [f"http://127.0.0.1:{settings.MONAI_LABEL_SERVER_PORT}"]

from monailabel.app import app  # type: ignore[import-not-found]  # noqa: E402 - reads the origins when it is imported

app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "["])
