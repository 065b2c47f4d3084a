from __future__ import annotations

import random
from collections import Counter

import pytest

from pipeline.datasets.splits import SplitPatient, assign_folds, check_no_leak
from pipeline.errors import DatasetError

# As many patients a site as the published data has, and one site with a single patient.
SITES = {"CS": 13, "DU": 41, "EZ": 1, "FG": 14, "HT": 31}


@pytest.fixture
def patients():
    """A hundred patients whose lesions span two orders of magnitude, as real ones do."""
    rng = random.Random(7)
    return [
        SplitPatient(f"sub-{site}{number:02}", site, int(10 ** rng.uniform(3, 5)))
        for site, count in SITES.items()
        for number in range(count)
    ]


SEEDS = [0, 1, 2, 12345]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("folds", [2, 3, 5, 7])
def test_fold_sizes_differ_by_one_at_most_and_every_site_is_spread_evenly(patients, folds, seed):
    assigned = assign_folds(patients, folds=folds, seed=seed)

    assert set(assigned) == {patient.subject for patient in patients}
    sizes = Counter(assigned.values())
    assert set(sizes) == set(range(folds))
    assert max(sizes.values()) - min(sizes.values()) <= 1
    for site in SITES:
        counts = Counter(assigned[patient.subject] for patient in patients if patient.site == site)
        spread = [counts[fold] for fold in range(folds)]
        assert max(spread) - min(spread) <= 1, (site, spread)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mean_lesion_of_each_fold_is_close_to_the_mean_of_all(patients, seed):
    assigned = assign_folds(patients, folds=5, seed=seed)
    mean = sum(patient.lesion_voxels for patient in patients) / len(patients)
    for fold in range(5):
        members = [patient.lesion_voxels for patient in patients if assigned[patient.subject] == fold]
        assert sum(members) / len(members) == pytest.approx(mean, rel=0.1)


def test_large_lesions_do_not_gather_in_one_fold(patients):
    assigned = assign_folds(patients, folds=5, seed=0)
    largest = sorted(patients, key=lambda patient: patient.lesion_voxels)[-20:]
    counts = Counter(assigned[patient.subject] for patient in largest)
    assert all(2 <= counts[fold] <= 6 for fold in range(5)), counts


def test_the_order_of_the_patients_does_not_matter(patients):
    shuffled = random.Random(3).sample(patients, len(patients))
    assert assign_folds(shuffled, folds=5, seed=4) == assign_folds(patients, folds=5, seed=4)


def test_the_seed_decides_who_sits_together(patients):
    def together(seed):
        assigned = assign_folds(patients, folds=5, seed=seed)
        return {frozenset(subject for subject in assigned if assigned[subject] == fold) for fold in range(5)}

    assert together(0) == together(0)
    assert not together(0) & together(1)


def test_a_known_split_stays_what_it_is():
    patients = [SplitPatient(f"sub-{n}", "AB"[n % 2], 100 * n + 7) for n in range(7)]
    expected = {"sub-0": 0, "sub-1": 2, "sub-2": 0, "sub-3": 1, "sub-4": 1, "sub-5": 0, "sub-6": 2}
    assert assign_folds(patients, folds=3, seed=0) == expected


def test_fewer_patients_than_folds_leave_folds_empty(patients):
    assigned = assign_folds(patients[:2], folds=5, seed=0)
    assert len(set(assigned.values())) == 2


def test_no_patients_give_no_folds():
    assert assign_folds([], folds=5, seed=0) == {}


def test_a_patient_that_is_there_twice_is_refused(patients):
    again = patients[3]._replace(lesion_voxels=1)
    with pytest.raises(DatasetError, match=r"sub-CS03 is there twice"):
        assign_folds([*patients, again], folds=5, seed=0)


@pytest.mark.parametrize("folds", [1, 0, -5])
def test_fewer_than_two_folds_are_refused(patients, folds):
    with pytest.raises(DatasetError, match=f"folds must be at least 2, got {folds}"):
        assign_folds(patients, folds=folds, seed=0)


def entry(subject, fold, **changes):
    return {
        "subject": subject,
        "fold": fold,
        "image": [f"{subject}_1", f"{subject}_2"],
        "label": f"{subject}_l",
    } | changes


def test_a_clean_split_passes():
    check_no_leak([entry("a", 0), entry("b", 1), entry("c", 0), entry("d", 2, image="d_1", label=None)])


@pytest.mark.parametrize(
    ("leak", "message"),
    [
        (entry("a", 1, image=["x"], label="y"), "subject a is in fold 0 and in fold 1"),
        (entry("b", 1, image=["b_1", "a_2"]), "image a_2 is in fold 0 and in fold 1"),
        (entry("b", 1, image="a_1"), "image a_1 is in fold 0 and in fold 1"),
        (entry("b", 1, label="a_l"), "label a_l is in fold 0 and in fold 1"),
    ],
)
def test_a_subject_or_file_in_two_folds_is_refused_by_name(leak, message):
    with pytest.raises(DatasetError, match=message):
        check_no_leak([entry("a", 0), leak])


def test_sides_can_have_other_names_than_folds():
    entries = [entry("a", 0) | {"side": "training"}, entry("a", 0) | {"side": "validation"}]
    check_no_leak(entries)
    with pytest.raises(DatasetError, match="subject a is in side training and in side validation"):
        check_no_leak(entries, side="side")
