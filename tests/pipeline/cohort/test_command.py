"""``ar2unet cohort`` as a user meets it: killed, interrupted, called as a BIDS-App, and told apart from nonsense."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.cli.cohort import plain_arguments

WAIT = 60  # seconds until a test that would hang fails instead


@pytest.fixture
def start(tmp_path):
    """Start the command and return its process."""

    def start(*arguments):
        command = [sys.executable, "-c", "from pipeline.cli import main; main()", "cohort", *map(str, arguments)]
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heed_interrupts,
        )

    return start


def heed_interrupts():
    """Undo what a shell does to commands that it starts in the background: they do not hear Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(condition, process):
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def entries(folder):
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def assert_refused(result, *words):
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("ar2unet: ")
    for word in words:
        assert word in line


@pytest.mark.slow
def test_killed_at_any_moment_and_started_again_it_ends_with_the_table_of_an_undisturbed_run(
    start, ar2unet, scans, exported_bundle, results_of, tmp_path
):
    arguments = (scans, "--bundle", exported_bundle, "-o")
    out = tmp_path / "killed"
    moments = [
        lambda: entries(out / ".cohort" / "unfinished") > 0,  # the first results are being written
        lambda: entries(out / "cases") == 1,
        lambda: entries(out / "cases") == 3,
        lambda: (out / "cohort.csv").exists(),  # the page is about to be written
    ]
    for moment in moments:
        process = start(*arguments, out)
        wait_for(moment, process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    result = ar2unet("cohort", *arguments, out)
    assert result.returncode == 1
    assert "5 of 7 scans done (5 already there)" in result.stdout
    undisturbed = ar2unet("cohort", *arguments, tmp_path / "undisturbed")
    assert "5 of 7 scans done (0 already there)" in undisturbed.stdout
    assert results_of(out) == results_of(tmp_path / "undisturbed")
    assert entries(out / ".cohort" / "unfinished") == 0


def test_an_interrupt_ends_it_cleanly_with_a_table_of_what_is_done(start, write_scan, exported_bundle, tmp_path):
    for number in range(40):
        write_scan(tmp_path / "scans" / f"p{number}.nii.gz", number % 9)
    process = start(tmp_path / "scans", "--bundle", exported_bundle, "-o", "out")
    wait_for(lambda: entries(tmp_path / "out" / "cases") >= 2, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=WAIT)
    assert process.returncode == 130
    assert errors.strip() == "ar2unet: interrupted; started again it goes on from here"
    lines = (tmp_path / "out" / "cohort.csv").read_text().splitlines()
    assert 2 <= len(lines) - 1 == entries(tmp_path / "out" / "cases") < 40
    assert "the run was interrupted" in (tmp_path / "out" / "cohort.html").read_text()


def test_bad_scans_are_named_and_the_exit_code_is_1(ar2unet, scans, exported_bundle, tmp_path):
    result = ar2unet("cohort", scans, "-o", "out", "--bundle", exported_bundle)
    assert result.returncode == 1
    first, second, last = result.stderr.strip().splitlines()
    assert first.startswith("ar2unet: site0/cut.nii.gz: expected")
    assert second.startswith("ar2unet: site1/text.nii: expected")
    assert last == "ar2unet: 2 of 7 scans failed, the others are done"
    assert result.stdout.strip() == "5 of 7 scans done (0 already there); out/cohort.html"
    for name in ("site0/cut.nii.gz", "site1/text.nii"):
        (scans / name).unlink()
    assert ar2unet("cohort", scans, "-o", "out", "--bundle", exported_bundle).returncode == 0


def test_it_can_be_called_as_a_bids_app(ar2unet, write_scan, exported_bundle, tmp_path):
    for subject in ("01", "02", "03"):
        write_scan(tmp_path / "bids" / f"sub-{subject}" / "anat" / f"sub-{subject}_FLAIR.nii.gz")
    options = ("--participant-label", "01", "sub-03", "--bundle", exported_bundle)
    result = ar2unet("cohort", "bids", "out", "participant", *options)
    assert result.returncode == 0, result.stderr
    masks = sorted(path.name for path in (tmp_path / "out").glob("sub-*/anat/*.nii.gz"))
    assert masks == ["sub-01_label-lesion_mask.nii.gz", "sub-03_label-lesion_mask.nii.gz"]
    assert_refused(
        ar2unet("cohort", "bids", "out", "participant", "--participant-label", "07"), "no participant sub-07"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing", "-o", "out"], "nothing: expected a folder of scans, got nothing"),
        (["empty", "-o", "out"], "found none"),
        (["empty"], "cohort FOLDER -o OUT, or cohort BIDS OUT participant"),
        (["empty", "out", "-o", "out"], "expected one folder for the results"),
        (["empty", "out", "group"], "must be participant, got group"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(ar2unet, tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    assert_refused(ar2unet("cohort", *arguments), words)
    assert not (tmp_path / "out").exists()


def test_a_second_run_into_the_same_folder_is_refused(ar2unet, scans, tmp_path):
    from pipeline.cohort.folder import open_folder

    with open_folder(tmp_path / "out"):
        assert_refused(ar2unet("cohort", scans, "-o", "out"), "another cohort run is writing there")


def test_without_ray_it_says_how_to_install_it(tmp_path, scans):
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import importlib.util as util; find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'ray' else find(name, *rest)\n"
        f"sys.argv = ['ar2unet', 'cohort', {str(scans)!r}, '-o', 'out', '--ray']\n"
        "from pipeline.cli import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=WAIT)
    assert_refused(result, "pip install 'ar2unet-monai[ray]'")


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (["F", "--ray"], ["F", "--ray", "local"]),
        (["--ray", "F", "-o", "O"], ["--ray", "local", "F", "-o", "O"]),
        (["F", "--ray", "-o", "O"], ["F", "--ray", "local", "-o", "O"]),
        (["F", "--ray", "auto"], ["F", "--ray", "auto"]),
        (["F", "--ray", "10.0.0.1:6379", "-o", "O"], ["F", "--ray", "10.0.0.1:6379", "-o", "O"]),
        (["F", "--ray", "ray://head:10001"], ["F", "--ray", "ray://head:10001"]),
        (["F", "--ray=head:1"], ["F", "--ray=head:1"]),
        (
            ["B", "O", "participant", "--participant-label", "01", "02", "--ray"],
            ["B", "O", "participant", "--participant-label", "01", "--participant-label", "02", "--ray", "local"],
        ),
        (["B", "O", "--session_label", "a", "b"], ["B", "O", "--session_label", "a", "--session_label", "b"]),
        (["B", "--participant-label", "-o", "O"], ["B", "--participant-label", "-o", "O"]),
        (["B", "--participant-label"], ["B", "--participant-label"]),
    ],
)
def test_options_with_any_number_of_values_become_plain_ones(given, plain):
    assert plain_arguments(given) == plain


def test_the_help_names_it_and_loads_nothing_heavy(tmp_path):
    code = (
        "import sys; import pipeline.cli; import pipeline.cli.cohort; "
        "heavy = {'torch', 'monai', 'nibabel', 'ray', 'pydicom', 'numpy'} & set(sys.modules); "
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    environment = {**os.environ, "COLUMNS": "100"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=WAIT)
    assert result.returncode == 0, result.stderr
