from __future__ import annotations

import pytest
from pydicom import Dataset
from pydicom.config import disable_value_validation
from pydicom.uid import ExplicitVRLittleEndian

from pipeline.errors import ScanError
from pipeline.formats.dicom.files import DicomFile
from pipeline.formats.dicom.headers import Header
from pipeline.formats.dicom.reading import read_dicom
from pipeline.formats.dicom.series import Series, choose_flair, choose_t1, classify


def make_series(description: str | None = None, uid: str = "1.2.3", images: int = 20, **values: object) -> Series:
    header = Dataset()
    header.Modality = "MR"
    header.SeriesInstanceUID = uid
    header.SeriesNumber = 4
    header.ImageType = ["ORIGINAL", "PRIMARY"]
    if description is not None:
        with disable_value_validation():
            header.SeriesDescription = description
    for keyword, value in values.items():
        setattr(header, keyword, value)
    file = DicomFile("IM001", 1000, lambda: (_ for _ in ()).throw(AssertionError("no pixels are needed")))
    return Series(uid, (Header(file, header, ExplicitVRLittleEndian, 500, 500),), images)


@pytest.mark.parametrize(
    "description",
    [
        "AX FLAIR", "t2_tirm_tra_dark-fluid_320", "t2_space_da-fl_sag_p2_iso", "3D T2FLAIR CUBE", "Sag T2 FLAIR +C",
        "T2W_FLAIR SENSE", "FLAIR_longTR", "SAG 3D VISTA FLAIR", "t2_tse_darkfluid_cor", "FLAIR post Gd",
    ],
)  # fmt: skip
def test_a_flair_is_known_by_its_description(description):
    assert classify(make_series(description)) == "flair"


@pytest.mark.parametrize(
    ("description", "role"),
    [
        ("t1_mprage_sag_p2_iso", "t1"), ("AX T1", "t1"), ("AX T1 FLAIR", "t1"), ("Ax T1 FSE PRE", "t1"),
        ("T1W without contrast", "t1"), ("T1 non-contrast", "t1"), ("SAG BRAVO", "t1"), ("T1 posterior fossa", "t1"),
        ("AXT1", "t1"), ("T1 cor", "t1"), ("T1COR", "t1"), ("t1 nativ", "t1"),
        ("AX T1 POST", "t1c"), ("AX T1 +C", "t1c"), ("T1 C+", "t1c"), ("t1_mprage_tra_KM", "t1c"),
        ("T1 FLAIR Gd", "t1c"), ("T1postGad", "t1c"), ("t1ce", "t1c"), ("T1C", "t1c"), ("Ax T1 POST w/o FS", "t1c"),
        ("T1w_CE", "t1c"),
        ("AX T2", None), ("PD_T2", None), ("DWI b1000", None), ("ADC map FLAIR", None), ("localizer FLAIR", None),
        ("T1 SUB", None), ("T1 map", None), ("t2_stir", None), ("3-plane loc", None), ("DIR FLAIR", None), ("", None),
        ("T10 lumbar", None), ("ep2d_diff_TRACEW", None), ("SWI", None), ("t2_FLAIR_MIP", None),
    ],
)  # fmt: skip
def test_other_series_are_told_apart(description, role):
    assert classify(make_series(description)) == role


def test_contrast_agent_makes_a_t1_one_after_contrast_unless_it_is_denied():
    assert classify(make_series("AX T1", ContrastBolusAgent="Gadovist")) == "t1c"
    assert classify(make_series("AX T1", ContrastBolusAgent="NONE")) == "t1"
    assert classify(make_series("AX T1 PRE", ContrastBolusAgent="Gadovist")) == "t1"
    assert classify(make_series("AX FLAIR", ContrastBolusAgent="Gadovist")) == "flair"


TIMES = {"InversionTime": 2500, "EchoTime": "110", "RepetitionTime": "9000"}


@pytest.mark.parametrize(
    ("times", "role"),
    [
        ({}, "flair"),
        ({"InversionTime": 1650, "EchoTime": "388", "RepetitionTime": "5000"}, "flair"),  # 3D at 3 T
        ({"InversionTime": 160}, None),  # STIR
        ({"InversionTime": 900, "EchoTime": "3", "RepetitionTime": "2300"}, None),  # MPRAGE
        ({"EchoTime": "12"}, None),
        ({"RepetitionTime": "2000"}, None),
        ({"InversionTime": None}, None),
        ({"InversionTime": 4500}, None),
    ],
)
def test_a_series_without_a_telling_description_is_known_by_its_times(times, role):
    for description in (None, "", "head axial"):
        assert classify(make_series(description, **{**TIMES, **times})) == role


def test_times_overrule_a_t2_in_the_description_and_a_flair_with_a_short_echo():
    assert classify(make_series("t2_spc_ir_sag_p2_iso", **TIMES)) == "flair"
    assert classify(make_series("AX FLAIR", EchoTime="9")) is None
    assert classify(make_series("AX T1", **TIMES)) == "t1"


def test_the_times_of_a_multi_frame_file_stand_in_its_functional_groups():
    times = {
        "MRModifierSequence": ("InversionTimes", [2500.0]),
        "MREchoSequence": ("EffectiveEchoTime", 110.0),
        "MRTimingAndRelatedParametersSequence": ("RepetitionTime", 9000.0),
    }
    shared = Dataset()
    for group, (keyword, value) in times.items():
        item = Dataset()
        setattr(item, keyword, value)
        setattr(shared, group, [item])
    series = make_series("head", SharedFunctionalGroupsSequence=[shared])
    assert classify(series) == "flair"
    shared.MREchoSequence[0].EffectiveEchoTime = 9.0
    assert classify(series) is None


def test_the_protocol_counts_only_where_the_description_says_nothing():
    assert classify(make_series("AX", ProtocolName="T2 FLAIR")) == "flair"
    assert classify(make_series(None, ProtocolName="T1 +C")) == "t1c"
    assert classify(make_series("AX T2", ProtocolName="BRAIN FLAIR")) is None
    assert classify(make_series("AX T1", ProtocolName="BRAIN FLAIR POST")) == "t1"
    assert classify(make_series("AX", ProtocolName="DWI FLAIR")) is None


def test_only_mr_counts():
    assert classify(make_series("FLAIR", Modality="CT")) is None


def test_an_original_is_taken_before_what_was_derived_from_it():
    derived = [make_series("FLAIR cor", f"1.2.{n}", ImageType=["DERIVED", "SECONDARY", "MPR"]) for n in (1, 2)]
    original = make_series("FLAIR", "1.2.9")
    chosen, notes = choose_flair([*derived, original], None)
    assert chosen is original
    assert notes[0].startswith("derived series left aside: 1.2.1 (series 4, 'FLAIR cor', 20 images); 1.2.2")
    assert choose_flair([derived[0]], None) == (derived[0], [])


def test_a_single_picture_saved_of_the_flair_is_no_second_one():
    picture, flair = make_series("FLAIR key image", "1.2.1", images=1), make_series("FLAIR", "1.2.2")
    assert choose_flair([picture, flair], None)[0] is flair


def test_the_only_series_is_taken_if_nothing_speaks_against_it():
    nameless = make_series("head axial")
    chosen, notes = choose_flair([nameless, make_series("dose report", Modality="SR")], None)
    assert chosen is nameless
    assert "no tag says FLAIR" in notes[0]


@pytest.mark.parametrize("values", [{"description": "AX T2"}, {"EchoTime": "9"}, {"description": "DWI"}, {"images": 1}])
def test_the_only_series_is_not_taken_where_it_is_something_else(values):
    with pytest.raises(ScanError, match=r"expected a FLAIR series, got 1\.2\.3"):
        choose_flair([make_series(**values)], None)


def test_a_long_list_is_cut():
    with pytest.raises(ScanError, match=r"1\.2\.7 .*; and 4 more; name one") as caught:
        choose_flair([make_series("FLAIR", f"1.2.{n}") for n in range(12)], None)
    assert "1.2.8" not in str(caught.value)


def test_a_description_of_any_characters_stays_one_short_line():
    with pytest.raises(ScanError) as caught:
        choose_flair([make_series("AX\nT2\x1b[2J" + "x" * 300)], None)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_t1_is_taken_in_the_flairs_coordinates_only():
    flair = make_series("FLAIR", "1.2.1", FrameOfReferenceUID="1.9")
    here, there = (make_series("T1", f"1.2.{n}", FrameOfReferenceUID=f"1.{n}") for n in (9, 8))
    assert choose_t1([flair, here, there], flair, "t1") == (here, [])
    assert choose_t1([flair, there], flair, "t1") == (None, [])
    assert choose_t1([flair, here], flair, "t1c") == (None, [])


def test_the_series_to_choose_from_come_in_the_order_of_their_numbers(write_series, refusal):
    for number in (11, 2, 30):
        write_series(uid=f"1.2.3.{number}", description="AX T2", number=number, prefix=f"S{number}")
    message = refusal(write_series(description="AX T1"))
    places = [message.index(f"(series {number},") for number in (2, 5, 11, 30)]
    assert places == sorted(places)
    assert read_dicom(write_series(), series="1.2.3.11").scan.spatial_shape == (11, 13, 7)
