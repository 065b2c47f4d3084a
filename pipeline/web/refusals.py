"""What is said when a request or a job fails: a code for programs, a line for people, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["ADVICE", "STATUS", "Refusal"]

# Of requests: the HTTP status of each code.
STATUS = {
    "invalid": 422,
    "wrong_host": 421,
    "cross_origin": 403,
    "unauthorized": 401,
    "bad_token": 401,
    "no_job": 404,
    "no_file": 404,
    "no_page": 404,
    "no_method": 405,
    "wrong_state": 409,
    "no_upload": 409,
    "role_taken": 409,
    "mixed_formats": 409,
    "too_slow": 408,
    "disconnected": 400,
    "too_large": 413,
    "unknown_format": 415,
    "not_accepted": 415,
    "bad_mask": 422,
    "queue_full": 429,
    "internal": 500,
    "storage_full": 507,
}

# Of requests and of jobs: what to do next.
ADVICE = {
    "invalid": "Send the request as /api/openapi.json describes it.",
    "wrong_host": "Open the page under its own address, or start the server with --allowed-host NAME.",
    "cross_origin": "Use the page of this server itself; other sites may not act for you.",
    "unauthorized": "Sign in with the token that the server was started with.",
    "bad_token": "Check the token for missing characters and try again.",
    "no_job": "Check the link; the job may have been deleted, or removed after its retention time.",
    "no_file": "Reload the job; the file may have been removed after its retention time.",
    "no_page": "Check the address.",
    "no_method": "Send the request as /api/openapi.json describes it.",
    "wrong_state": "Reload the job to see where it stands, or begin a new one.",
    "no_upload": "Upload a FLAIR scan first.",
    "role_taken": "Give the file another role, or begin a new job.",
    "mixed_formats": "Upload files of one kind in a job: volumes, DICOM files, or one zip of DICOM files.",
    "too_slow": "Check the network connection and upload the file again.",
    "disconnected": "Upload the file again.",
    "too_large": "Leave out series that are not needed, or start the server with a larger --max-upload.",
    "unknown_format": "Upload NIfTI, NRRD or MetaImage, DICOM files, or a zip of DICOM files.",
    "not_accepted": "Upload one of the formats that this kind of job takes.",
    "bad_mask": "Save the mask from this page, on the grid of the job's own mask, with values 0 and 1.",
    "queue_full": "Wait a little and try again.",
    "internal": "Try once more; if it happens again, report it with the job's first eight characters.",
    "storage_full": "Delete jobs that are no longer needed, or ask whoever runs the server for space.",
    "bad_scan": "Choose another file; the message says what was expected and what came.",
    "interrupted": "The server was stopped in the middle of it: upload the scan again.",
    "worker_died": "Try once more; if it happens again, the scan may need more memory than this machine has.",
    "timeout": "Try a smaller scan, or start the server with a larger --job-timeout.",
    "abandoned": "Upload the scan again, all of it.",
}


class Refusal(Exception):  # noqa: N818  # what it means, not that something broke
    """A request that is answered with an error.

    Attributes:
        code: A key of ``STATUS``.
        message: One line: the thing, what was expected, what came.
        headers: Besides the usual ones.
    """

    def __init__(self, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.headers = code, message, headers

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS[self.code]
