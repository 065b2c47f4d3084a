"""Who may ask what, and what a browser is told of the answer."""

from __future__ import annotations

import time

import pytest

from pipeline.errors import AR2UNetError
from pipeline.web.security import COOKIE, SESSION_SECONDS, Gate
from pipeline.web.settings import default_folder, is_loopback

TOKEN = "correct-horse-battery"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "127.0.0.1.example.org", ""])
def test_an_address_that_others_reach_needs_a_token(host, make_settings):
    with pytest.raises(AR2UNetError, match="token is needed"):
        make_settings(host=host)
    assert make_settings(host=host, token=TOKEN).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.4.5", "::1", "localhost", "LOCALHOST"])
def test_loopback_needs_none(host, make_settings):
    assert is_loopback(host)
    assert make_settings(host=host).token is None


@pytest.mark.parametrize("token", ["", "short", "fifteen letters", "sixteen lötters!"])
def test_a_token_that_could_be_guessed_is_refused_and_not_repeated(token, make_settings):
    with pytest.raises(AR2UNetError, match="at least 16 ASCII characters") as caught:
        make_settings(token=token)
    assert not token or token not in str(caught.value)
    assert TOKEN not in repr(make_settings(token=TOKEN))


def test_jobs_are_kept_where_the_desktop_standard_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "ar2unet" / "jobs"


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:9", "127.0.0.1:8000", "[::1]:8000", "LocalHost", "scans.example"]
)
@pytest.mark.parametrize("path", ["/health", "/api/jobs", "/api/about"])
def test_the_servers_own_names_are_answered(host, path, serve):
    assert serve(allowed_hosts=("Scans.Example",)).get(path, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "192.168.1.5:8000",
        "",
        "[",
        "a@localhost",
        "localhost/x",
        "localhost#x",
    ],
)
def test_another_name_that_points_here_is_not(host, client):
    answer = client.get("/api/jobs", headers={"Host": host})
    assert answer.status_code == 421
    assert answer.json()["error"]["code"] == "wrong_host"
    assert host not in answer.text or len(host) < 2


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9999"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.example"},
    ],
)
def test_another_site_cannot_act_for_the_user(headers, client, scan):
    job = client.begin()
    for method, path in (
        ("POST", "/api/jobs"),
        ("POST", f"/api/jobs/{job}/uploads"),
        ("POST", f"/api/jobs/{job}/start"),
        ("POST", f"/api/jobs/{job}/cancel"),
        ("POST", f"/api/jobs/{job}/corrections"),
        ("DELETE", f"/api/jobs/{job}"),
        ("POST", "/session"),
        ("DELETE", "/session"),
    ):
        answer = client.request(method, path, headers=headers, content=b"{}")
        assert answer.status_code == 403, (method, path)
        assert answer.json()["error"]["code"] == "cross_origin"
    assert client.get(f"/api/jobs/{job}").json()["state"] == "uploading"


@pytest.mark.parametrize(
    "headers",
    [{}, {"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://localhost:8000"}, {"Origin": "https://LOCALHOST:8000"}],
)
def test_the_page_itself_and_scripts_can(headers, client):
    assert client.post("/api/jobs", json={}, headers=headers).status_code == 201


def test_no_other_site_may_read_an_answer(client):
    answer = client.get("/api/about", headers={"Origin": "http://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    asked = client.options("/api/jobs", headers={"Origin": "http://a.example", "Access-Control-Request-Method": "POST"})
    assert asked.status_code == 405
    assert not [name for name in asked.headers if name.startswith("access-control-")]


def test_where_there_is_a_token_nothing_of_the_jobs_is_shown_without_it(serve, scan):
    client = serve(token=TOKEN)
    client.headers.update(BEARER)
    job = client.begin()
    del client.headers["Authorization"]
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
    ):
        for method, path in (
            ("GET", "/api/jobs"),
            ("POST", "/api/jobs"),
            ("GET", f"/api/jobs/{job}"),
            ("GET", f"/api/jobs/{'0' * 32}"),
            ("DELETE", f"/api/jobs/{job}"),
            ("POST", f"/api/jobs/{job}/uploads"),
            ("POST", f"/api/jobs/{job}/start"),
            ("POST", f"/api/jobs/{job}/cancel"),
            ("POST", f"/api/jobs/{job}/corrections"),
            ("GET", "/metrics"),
        ):
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == 401, (method, path)
            assert answer.json()["error"]["code"] == "unauthorized"
            assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/health", "/api/about", "/api/openapi.json", "/session"):
        assert client.get(path).status_code == 200
    assert client.get("/api/jobs", params={"token": TOKEN}).status_code == 401


def test_the_link_of_a_finished_job_opens_that_job_for_looking_only(serve, scan):
    client = serve(token=TOKEN)
    client.headers.update(BEARER)
    job = client.wait(client.submit(scan))
    del client.headers["Authorization"]
    assert client.get(f"/api/jobs/{job['id']}").json()["state"] == "finished"
    assert client.get(job["results"][0]["url"]).status_code == 200
    assert client.get(job["scan"]["url"]).status_code == 200
    assert client.delete(f"/api/jobs/{job['id']}").status_code == 401
    assert client.post(f"/api/jobs/{job['id']}/corrections", content=b"x").status_code == 401


def test_a_browser_signs_in_and_out_with_a_cookie_that_scripts_and_other_sites_do_not_get(serve):
    client = serve(token=TOKEN)
    assert client.get("/session").json() == {"required": True, "authenticated": False}
    wrong = client.post("/session", json={"token": TOKEN[:-1]})
    assert wrong.status_code == 401
    assert wrong.json()["error"]["code"] == "bad_token"
    opened = client.post("/session", json={"token": TOKEN})
    assert opened.status_code == 204
    cookie = opened.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert TOKEN not in cookie
    assert client.get("/session").json() == {"required": True, "authenticated": True}
    assert client.get("/api/jobs").status_code == 200
    client.delete("/session")
    assert client.get("/api/jobs").status_code == 401


def test_without_a_token_nobody_has_to_sign_in(client):
    assert client.get("/session").json() == {"required": False, "authenticated": True}
    assert client.post("/session", json={"token": "x"}).status_code == 204


def test_a_session_ends_and_cannot_be_made_up():
    gate, other = Gate(TOKEN), Gate(TOKEN + "x")
    fresh, old = gate.open_session(), gate.open_session(time.time() - SESSION_SECONDS - 1)

    def admits(gate, cookie):
        from starlette.datastructures import Headers

        return gate.admits(Headers({"cookie": f"a=b; {COOKIE}={cookie}"}))

    assert admits(gate, fresh)
    assert not admits(gate, old)
    assert not admits(other, fresh)
    later, _, signature = fresh.partition(".")
    for forged in (f"{int(later) + 1}.{signature}", later, f".{signature}", "", f"x.{signature}", "é.ü"):
        assert not admits(gate, forged)


def test_every_answer_tells_browsers_to_be_careful(client):
    for path in ("/", "/health", "/api/jobs", "/nothing", "/jobs/x", "/api/jobs/x"):
        answer = client.get(path)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
    assert client.get("/api/jobs").headers["cache-control"] == "no-store"
    assert "script-src 'self'" in client.get("/jobs/x").headers["content-security-policy"]


def test_a_report_is_shown_as_if_it_came_from_elsewhere_and_runs_nothing(client, scan):
    job = client.wait(client.submit(scan))["id"]
    page = client.service.folders.of(job).results / "other.html"
    page.write_text("<script>alert(1)</script>")
    answer = client.get(f"/api/jobs/{job}/results/other.html")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none'")
    assert "script" not in policy
    assert answer.headers["content-disposition"].startswith("inline")


def test_no_name_leads_out_of_a_jobs_folder(client, scan):
    job = client.wait(client.submit(scan))["id"]
    of = client.service.folders.of(job)
    for place in (of.results, of.input, of.corrections):
        place.mkdir(exist_ok=True)
        (place / ".hidden").write_text("x")
        (place / "link").symlink_to("/etc/passwd")
    names = [
        "../input/flair.nii.gz",
        "..%2Finput%2Fflair.nii.gz",
        "%2e%2e/x",
        ".hidden",
        "link",
        "%2e%2e",
        "%00",
        "unfinished",
    ]
    for folder in ("results", "scan", "corrections"):
        for name in names:
            answer = client.get(f"/api/jobs/{job}/{folder}/{name}")
            assert answer.status_code == 404, (folder, name)
            assert "error" in answer.json()


@pytest.mark.parametrize("job", ["x", "0" * 32, "' OR 1=1 --", "..", "%2e%2e%2f", "é"])
def test_an_id_that_is_none_is_not_found(job, client):
    answer = client.get(f"/api/jobs/{job}")
    assert answer.status_code in (404, 200)
    if answer.status_code == 200:  # "..": the client itself asks for the list
        assert "jobs" in answer.json()
