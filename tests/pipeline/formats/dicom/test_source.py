from __future__ import annotations

import pytest
from pydicom import Dataset

from pipeline.formats.dicom.source import DicomSource


def test_each_slice_has_the_header_of_its_file_or_of_the_one_multi_frame_file():
    first, second = Dataset(), Dataset()
    single, multiframe = DicomSource((first, second), (1, 1)), DicomSource((first,), (4, 2))
    assert single.header_of(1) is second
    assert not single.is_multiframe
    assert multiframe.header_of(1) is first
    assert multiframe.is_multiframe


@pytest.mark.parametrize(("count", "frames"), [(2, (1, 1, 1)), (0, (1, 1)), (1, ()), (2, (1, 0))])
def test_headers_that_do_not_match_their_slices_are_refused(count, frames):
    with pytest.raises(ValueError, match="must"):
        DicomSource((Dataset(),) * count, frames)
