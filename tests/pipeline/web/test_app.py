"""What goes wrong is said in one form, without what was sent."""

from __future__ import annotations

import sqlite3


def test_what_is_not_as_expected_is_named_but_not_repeated(client):
    answer = client.post("/api/jobs", json={"kind": ["DOE^JANE"], "name": "DOE^JANE"})
    assert answer.status_code == 422
    message = answer.json()["error"]["message"]
    assert "body.kind" in message
    assert "body.name" in message
    assert "DOE" not in answer.text


def test_a_method_that_an_address_does_not_know_is_refused_in_the_same_form(client):
    answer = client.put("/api/jobs", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "no_method")
    assert "PUT" in answer.json()["error"]["message"]
    assert answer.headers["allow"]


def test_no_page_loads_the_documentation_from_elsewhere(client):
    for path in ("/docs", "/redoc"):
        assert (client.get(path).status_code, client.get(path).json()["error"]["code"]) == (404, "no_page")


def test_an_index_that_cannot_be_written_is_said_to_be_a_full_disk(client, monkeypatch):
    def full(*arguments: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(client.service.index, "newest", full)
    answer = client.get("/api/jobs")
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full")
