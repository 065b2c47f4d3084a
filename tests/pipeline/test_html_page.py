"""Pages load nothing, run no script but their own, and take no text for markup."""

from __future__ import annotations

import base64
import hashlib
import re

from pipeline.html_page import figure, table, write_html

EVIL = "<script>alert('x')</script>"


def policy_of(text):
    return re.search('Content-Security-Policy" content="([^"]+)"', text).group(1)


def test_a_page_without_script_may_run_none(tmp_path):
    write_html(tmp_path / "a.html", EVIL, ["<p>one</p>", "", "<p>two</p>"], style="p { color: red }")
    text = (tmp_path / "a.html").read_text()
    assert "script" not in policy_of(text)
    assert policy_of(text).startswith("default-src 'none'")
    assert EVIL not in text
    assert text.index("<p>one</p>") < text.index("<p>two</p>")
    assert "p { color: red }" in text


def test_a_page_runs_its_own_script_by_hash_and_no_other(tmp_path):
    write_html(tmp_path / "a.html", "title", [], script="document.title = 'ü'")
    text = (tmp_path / "a.html").read_text()
    inside = re.search("<script>(.*)</script>", text).group(1)
    digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy_of(text)


def test_cells_are_text():
    assert EVIL not in table([EVIL], [[EVIL, "a & b"]])
    assert "a &amp; b" in table([EVIL], [[EVIL, "a & b"]])


def test_a_figure_holds_its_picture():
    text = figure(b"picture", "image/png", "<b>caption</b>", alternative='"said"')
    assert base64.b64encode(b"picture").decode() in text
    assert 'alt="&quot;said&quot;"' in text
    assert "<figcaption><b>caption</b></figcaption>" in text


def test_a_name_that_is_no_text_can_still_be_written(tmp_path):
    write_html(tmp_path / "a.html", "bad \udcff", [])
    assert "bad \\udcff" in (tmp_path / "a.html").read_text()
