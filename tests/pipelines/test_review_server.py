"""The review's server: it answers its token once, its session alone, its own host and origin, and within its limits."""

import json
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from pipelines.review_items import load_case
from pipelines.review_server import HEADERS, HERE, MOST_BYTES, Sessions, load_messages, make_app
from schemas.ledger import append, read_ledger
from tests.pipelines.review_run import small_run

ORIGIN = "http://127.0.0.1:4321"
APPROVE = {"examples": [0], "decision": "approved"}


@pytest.fixture
def run(tmp_path) -> str:
    return small_run(tmp_path / "run")


@pytest.fixture
def sessions() -> Sessions:
    return Sessions()


@pytest.fixture
def app(run, sessions):
    return make_app(load_case(run), sessions, ORIGIN)


@pytest.fixture
def stranger(app) -> TestClient:
    return TestClient(app, base_url=ORIGIN, follow_redirects=False)


def enter(app, sessions, reviewer="Ada") -> tuple[TestClient, dict[str, str]]:
    """A reviewer's client, and the headers that the page sends with a decision."""
    client = TestClient(app, base_url=ORIGIN, follow_redirects=False)
    assert client.get(f"/enter/{sessions.invite(reviewer)}").status_code == 200
    csrf = re.search(r'name="csrf" content="([\w-]+)"', client.get("/").text)[1]
    return client, {"X-Review-Session": csrf, "Origin": ORIGIN}


# ------------------------------------------------------------------------------------------------------------ coming in


def test_a_token_lets_in_once(app, sessions, stranger):
    token = sessions.invite("Ada")
    first = stranger.get(f"/enter/{token}")
    cookie = first.headers["set-cookie"]
    assert first.status_code == 200 and "HttpOnly" in cookie and "SameSite=strict" in cookie and token not in cookie
    assert "proponent-review-4321=" in cookie, "cookies of one host know no ports"
    again = TestClient(app, base_url=ORIGIN).get(f"/enter/{token}")
    assert again.status_code == 403 and "used already" in again.text and "set-cookie" not in again.headers


def test_a_look_at_the_head_does_not_use_a_token_up(sessions, stranger):
    token = sessions.invite("Ada")
    assert stranger.head(f"/enter/{token}").status_code == 405
    assert stranger.get(f"/enter/{token}").status_code == 200


@pytest.mark.parametrize("token", ["x", "x" * 43, "%00", "é"])
def test_a_token_that_was_never_given_does_not_let_in(sessions, stranger, token):
    sessions.invite("Ada")
    assert stranger.get(f"/enter/{token}").status_code == 403


@pytest.mark.parametrize(
    "path", ["/", "/api/messages", "/api/queue", "/api/items/0", "/api/states?since=0", "/api/search?q=a"]
)
def test_nothing_is_answered_without_a_session(app, sessions, stranger, path):
    assert stranger.get(path).status_code == 403
    forged = TestClient(app, base_url=ORIGIN, cookies={"proponent-review-4321": "x" * 43})
    assert forged.get(path).status_code == 403
    client, _ = enter(app, sessions)
    assert client.get(path).status_code == 200


def test_each_reviewer_has_a_token_and_a_name(app, sessions, run):
    for name in ("Ada", "Bo"):
        client, headers = enter(app, sessions, name)
        assert client.post("/api/decisions", json=APPROVE, headers=headers).status_code == 200
    assert [e.reviewer for e in read_ledger(run)] == ["Ada", "Bo"]


# ------------------------------------------------------------------------------------------------------ host and origin


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1", "127.0.0.1:4322", "localhost:4321", "evil.example:4321", "", "127.0.0.1:04321"],
)
def test_another_host_is_refused(app, sessions, host):
    client, headers = enter(app, sessions)
    assert client.get("/").status_code == 200
    told = client.get("/", headers={"Host": host})
    assert told.status_code == 403 and "expected the host 127.0.0.1:4321" in told.text
    assert client.post("/api/decisions", json=APPROVE, headers=headers | {"Host": host}).status_code == 403


@pytest.mark.parametrize(
    "origin", ["null", "http://evil.example", "https://127.0.0.1:4321", "http://127.0.0.1:4322", ""]
)
def test_another_origin_is_refused(app, sessions, run, origin):
    client, headers = enter(app, sessions)
    assert client.get("/api/queue", headers={"Origin": origin}).status_code == 403
    told = client.post("/api/decisions", json=APPROVE, headers=headers | {"Origin": origin})
    assert told.status_code == 403 and read_ledger(run) == []


def test_a_decision_needs_an_origin_the_pages_header_and_its_own_cookie(app, sessions, run):
    client, headers = enter(app, sessions)
    _, others_headers = enter(app, sessions, "Bo")

    def send(client, headers):
        return client.post("/api/decisions", json=APPROVE, headers=headers).status_code

    assert send(client, {"X-Review-Session": headers["X-Review-Session"]}) == 403
    assert send(client, {"Origin": ORIGIN}) == 403
    assert send(client, others_headers) == 403, "the header of another session"
    assert send(client, headers | {"Sec-Fetch-Site": "cross-site"}) == 403
    assert send(TestClient(app, base_url=ORIGIN), headers) == 403
    assert read_ledger(run) == []
    assert send(client, headers | {"Sec-Fetch-Site": "same-origin"}) == 200


# --------------------------------------------------------------------------------------------------------------- limits


def test_a_body_is_at_most_64_kib(app, sessions, run):
    client, headers = enter(app, sessions)
    headers |= {"Content-Type": "application/json"}
    fits = json.dumps(APPROVE).encode().ljust(MOST_BYTES)
    assert client.post("/api/decisions", content=fits + b" ", headers=headers).status_code == 413
    assert client.post("/api/decisions", content=iter([fits, b" "]), headers=headers).status_code == 413, "in chunks"
    assert client.request("GET", "/", content=fits + b" ").status_code == 413
    assert read_ledger(run) == []
    assert client.post("/api/decisions", content=iter([fits[:9], fits[9:]]), headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/nothing", "/static/../review.py", "/static/review.py", "/api/items/x", "/api", "//",
                                  "/api/items/5", "/api/items/-1", "/api/items/99999999999999999999", "/static/",
                                  "/api/queue/", "/static/%2e%2e/review.py"])  # fmt: skip
def test_an_unknown_path_is_not_found(app, sessions, path):
    client, _ = enter(app, sessions)
    assert client.get(ORIGIN + path).status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/"), ("PUT", "/api/queue"), ("GET", "/api/decisions"), ("DELETE", "/api/decisions"), ("TRACE", "/"),
     ("OPTIONS", "/api/decisions"), ("POST", "/static/review.js"), ("POST", "/enter/x")],
)  # fmt: skip
def test_a_wrong_method_is_refused(app, sessions, method, path):
    client, headers = enter(app, sessions)
    assert client.request(method, path, headers=headers).status_code == 405


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [(b"{}", "text/plain", 415), (b"{}", "", 415), (b"{", "application/json", 400), (b"[]", "application/json", 400),
     (b"\xff", "application/json", 400), (b"[" * 60_000, "application/json", 400), (b"", "application/json", 400),
     (b'{"examples": [0], "decision": "maybe"}', "application/json; charset=utf-8", 400)],
)  # fmt: skip
def test_a_malformed_decision_is_refused(app, sessions, run, content, kind, status):
    client, headers = enter(app, sessions)
    told = client.post("/api/decisions", content=content, headers=headers | {"Content-Type": kind})
    assert told.status_code == status and read_ledger(run) == []


def test_a_place_in_the_ledger_is_a_number(app, sessions):
    client, _ = enter(app, sessions)
    assert [client.get(f"/api/states?since={s}").status_code for s in ("-1", "x", "9" * 13, "1e3")] == [400] * 4


def test_every_answer_forbids_what_is_not_ours(app, sessions, stranger):
    client, headers = enter(app, sessions)
    answers = [
        client.get("/"), client.get("/static/review.js"), client.get("/api/queue"), client.get("/nothing"),
        client.post("/"), stranger.get("/"), client.get("/", headers={"Host": "evil.example"}),
        client.post("/api/decisions", content=bytes(MOST_BYTES + 1), headers=headers),
        client.post("/api/decisions", json=APPROVE, headers=headers), stranger.get("/enter/x"),
    ]  # fmt: skip
    assert sorted({a.status_code for a in answers}) == [200, 403, 404, 413]
    for answer in answers:
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


def test_the_page_has_no_inline_script_or_style_and_names_nothing_outside(app, sessions):
    client, _ = enter(app, sessions)
    pages = [client.get("/").text, client.get("/static/review.js").text, client.get("/static/review.css").text]
    assert re.findall(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", pages[0]) == []
    assert [word for text in pages for word in re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text)] == []
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", pages[1])


def test_every_message_that_the_page_asks_for_is_there_and_none_is_idle(app, sessions):
    client, _ = enter(app, sessions)
    messages, script = load_messages(), client.get("/static/review.js").text
    template = (HERE / "templates" / "review.html.j2").read_text()
    template += (HERE / "templates" / "review_enter.html.j2").read_text()
    asked = set(re.findall(r'\bt\("(\w+)"', script)) | set(re.findall(r"text\.(\w+)", template))
    asked |= {f"{name}_other" for name in re.findall(r'\btn\("(\w+)"', script)}
    assert asked - messages.keys() == set()
    families = r"(state|proposal|category|signal|mark|key|entry|done|filter)_|_(one|other)$"
    said_by_server = {"nothing_to_undo", "decided_since", "nothing_to_redact", "not_in_passage", "not_in_duplicate",
                      "no_session", "token_used", "malformed", "ledger", "offline", "ended"}  # fmt: skip
    quoted = set(re.findall(r'"(\w+)"', script + template))
    idle = {n for n in messages if n not in asked | said_by_server | quoted and not re.search(families, n)}
    assert idle == set()


# --------------------------------------------------------------------------------------------------------------- ledger


def test_a_decision_is_on_disk_before_it_is_answered(app, sessions, run):
    client, headers = enter(app, sessions)
    told = client.post("/api/decisions", json=APPROVE | {"reason": "wrong"}, headers=headers).json()
    (entry,) = read_ledger(run)
    assert told["seq"] == 1 and told["states"]["0"]["decision"] == "approved"
    assert (entry.example_id, entry.reviewer, entry.reason) == ("laputa-0", "Ada", "wrong")


def test_what_another_process_decides_shows_up(app, sessions, run):
    client, headers = enter(app, sessions)
    client.post("/api/decisions", json=APPROVE, headers=headers)
    elsewhere = read_ledger(run)[0]
    append(run, [type(elsewhere)("Bo", "rain-1", load_case(run).passages["rain-1"][0]["sha256"], "rejected")])
    news = client.get("/api/states?since=1").json()
    assert news["seq"] == 2 and [one["decision"] for one in news["states"].values()] == ["rejected"]
    assert news["by"] == [{"seq": 2, "reviewer": "Bo", "mine": False}]
    assert client.get("/api/states?since=2").json()["states"] == {}


def test_two_decisions_on_one_passage_are_both_kept_and_the_later_stands(app, sessions, run):
    client, headers = enter(app, sessions)
    for decision in ("approved", "rejected"):
        client.post("/api/decisions", json=APPROVE | {"decision": decision}, headers=headers)
    assert [e.decision for e in read_ledger(run)] == ["approved", "rejected"]
    assert client.get("/api/queue").json()["states"]["0"]["decision"] == "rejected"


def test_what_cannot_be_decided_is_said_by_name(app, sessions, run):
    client, headers = enter(app, sessions)
    told = client.post("/api/decisions", json=APPROVE | {"action": "redact"}, headers=headers)
    assert told.status_code == 409 and told.json() == {"error": "nothing_to_redact", "values": {"id": "laputa-0"}}
    undone = {"examples": [0], "decision": "undone", "seqs": [0]}
    told = client.post("/api/decisions", json=undone, headers=headers)
    assert told.status_code == 409 and told.json()["error"] == "nothing_to_undo"
    assert read_ledger(run) == []


def test_undo_is_refused_where_someone_decided_since_the_page_was_drawn(app, sessions, run):
    ada, adas = enter(app, sessions)
    bo, bos = enter(app, sessions, "Bo")
    shown = ada.post("/api/decisions", json=APPROVE, headers=adas).json()["seq"]
    bo.post("/api/decisions", json=APPROVE | {"decision": "rejected"}, headers=bos)
    before = Path(run, "ledger.jsonl").read_bytes()
    undone = {"examples": [0], "decision": "undone", "seqs": [shown]}
    told = ada.post("/api/decisions", json=undone, headers=adas)
    assert told.status_code == 409 and told.json() == {"error": "decided_since", "values": {"id": "laputa-0"}}
    assert ada.post("/api/decisions", json=APPROVE | {"decision": "undone"}, headers=adas).status_code == 400
    assert Path(run, "ledger.jsonl").read_bytes() == before
    now = ada.get(f"/api/states?since={shown}").json()["states"]["0"]
    assert (now["reviewer"], now["seq"]) == ("Bo", 2)
    told = ada.post("/api/decisions", json=undone | {"seqs": [now["seq"]]}, headers=adas)
    assert told.status_code == 200 and told.json()["states"]["0"]["reviewer"] == "Ada"


def test_a_ledger_that_was_tampered_with_while_the_page_is_open_stops_the_deciding(app, sessions, run):
    client, headers = enter(app, sessions)
    client.post("/api/decisions", json=APPROVE, headers=headers)
    with open(f"{run}/ledger.jsonl", "r+b") as file:
        data = file.read().replace(b'"approved"', b'"rejected"')
        file.seek(0)
        file.write(data)
    before = Path(run, "ledger.jsonl").read_bytes()
    for told in (client.get("/api/states?since=0"), client.post("/api/decisions", json=APPROVE, headers=headers)):
        assert told.status_code == 409 and told.json()["error"] == "ledger"
        assert "entry 1: " in told.json()["detail"] and "was changed after it was written" in told.json()["detail"]
    assert Path(run, "ledger.jsonl").read_bytes() == before
