"""The review's page in a browser: by keyboard alone, by two at once, closed in the middle, with a hostile corpus.

Without Chromium these tests are skipped, saying so; in CI that fails.
"""

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn

from pipelines.review import listening_socket
from pipelines.review_items import load_case
from pipelines.review_server import Sessions, make_app
from schemas.ledger import read_ledger, standing
from tests.pipelines.review_run import evidence, proposal, request, small_run, write_run


class Served:
    """A run's server in a thread of this process."""

    def __init__(self, run: str):
        self.sessions, self.listening = Sessions(), listening_socket(0)
        self.origin = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        app = make_app(load_case(run), self.sessions, self.origin)
        options = {"http": "h11", "ws": "none", "lifespan": "off", "log_level": "warning", "access_log": False}
        self.server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=1, **options))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listening]})
        self.thread.start()

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.listening.close()


class Reviewer:
    """A page of one reviewer, and everything that must not happen on it."""

    def __init__(self, browser, served: Served, name: str, width: int = 1440):
        self.context = browser.new_context(viewport={"width": width, "height": 900})
        self.context.set_default_timeout(60_000)  # a loaded machine: alone, none takes 4 s
        self.page, self.wrong = self.context.new_page(), []
        self.page.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("console", lambda m: m.type in ("error", "warning") and self.wrong.append(f"console: {m.text}"))
        self.page.on("request", lambda r: r.url.startswith(served.origin) or self.wrong.append(f"request: {r.url}"))
        self.page.goto(f"{served.origin}/enter/{served.sessions.invite(name)}")
        self.page.wait_for_selector("body[data-ready]")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def waits(self, selector: str, text: str) -> None:
        self.page.locator(selector, has_text=text).first.wait_for(state="attached")

    def heading(self, text: str) -> None:
        """Waits until an example is the one on the page, and can be decided."""
        self.waits("#item-heading", text)
        self.page.wait_for_selector("body:not([aria-busy])")

    @property
    def status(self) -> str:
        return self.page.locator("#status").inner_text()


@pytest.fixture
def room(browser) -> Iterator[Callable[..., tuple[Served, Callable[..., Reviewer]]]]:
    """Serves a run and opens pages on it; at the end nothing may have gone wrong on any of them."""
    servers, reviewers = [], []

    def serve(run: str) -> tuple[Served, Callable[..., Reviewer]]:
        servers.append(Served(run))

        def enter(name: str = "Ada", **options) -> Reviewer:
            reviewers.append(Reviewer(browser, servers[-1], name, **options))
            return reviewers[-1]

        return servers[-1], enter

    yield serve
    wrong = [one for reviewer in reviewers for one in reviewer.wrong]
    for reviewer in reviewers:
        reviewer.context.close()
    for server in servers:
        server.stop()
    assert wrong == []


def decided(run: str) -> dict[str, tuple[str, str]]:
    return {example_id: (e.decision, e.action) for example_id, e in standing(read_ledger(run)).items()}


def test_a_queue_is_reviewed_with_the_keyboard_alone(room, tmp_path):
    run = small_run(tmp_path / "run")
    _, enter = room(run)
    ada = enter()
    assert ada.page.locator("#progress-text").inner_text() == "0 of 5 decided"
    ada.press("n")
    ada.page.keyboard.type("not so, a d r u")
    ada.press("Escape", "a")
    ada.heading("trade-1")
    assert ada.status == "Removal approved: laputa-0."
    ada.press("r")
    ada.heading("long-1")
    ada.press("j")
    ada.heading("letter-1")
    ada.press("d")
    ada.heading("rain-1")
    ada.press("k")
    ada.heading("letter-1")
    assert "⟦" in ada.page.evaluate("getComputedStyle(document.querySelector('.m-taken.first'), '::before').content")
    ada.press("ArrowLeft")
    ada.heading("long-1")
    ada.press("s", "Shift+ArrowRight", "ArrowRight")
    assert ada.status == "Chosen: Laputa", "the words after those that were chosen; the full stop is passed over"
    ada.press("ArrowRight", "ArrowLeft", "Shift+ArrowRight")
    assert ada.status == "Chosen: Laputa floats"
    ada.press("d")
    ada.heading("rain-1")
    ada.press("r")
    ada.waits("#status", "Everything shown is decided.")
    assert ada.page.locator("#progress-text").inner_text() == "5 of 5 decided"
    assert decided(run) == {
        "laputa-0": ("approved", "remove"),
        "laputa-1": ("approved", "remove"),
        "laputa-2": ("approved", "remove"),
        "trade-1": ("rejected", "remove"),
        "letter-1": ("approved", "redact"),
        "long-1": ("approved", "redact"),
        "rain-1": ("rejected", "remove"),
    }
    by_id = standing(read_ledger(run))
    assert by_id["laputa-1"].reason == "not so, a d r u" and by_id["trade-1"].reason == ""
    assert by_id["long-1"].spans == ((15, 28),) and by_id["letter-1"].reviewer == "Ada"


def test_undo_takes_back_the_last_decision_or_the_one_on_the_page(room, tmp_path):
    run = small_run(tmp_path / "run")
    _, enter = room(run)
    ada = enter()
    ada.press("a")
    ada.heading("trade-1")
    ada.press("r")
    ada.heading("long-1")
    ada.press("u")
    ada.waits("#status", "Taken back: trade-1.")
    ada.heading("trade-1")
    assert "Undecided" in ada.page.locator("#chips").inner_text()
    assert list(decided(run)) == ["laputa-0", "laputa-1", "laputa-2"]
    ada.press("k")
    ada.heading("laputa-0")
    ada.press("u")
    ada.waits("#status", "Taken back: laputa-0.")
    ada.page.wait_for_selector("body:not([aria-busy])")
    ada.press("u")
    ada.waits("#status", "There is no decision in the ledger to take back here, and none of yours elsewhere.")
    assert decided(run) == {} and [e.decision for e in read_ledger(run)] == [
        *["approved"] * 3, "rejected", *["undone"] * 4,
    ]  # fmt: skip


def test_two_reviewers_see_each_others_decisions(room, tmp_path):
    run = small_run(tmp_path / "run")
    _, enter = room(run)
    ada, bo = enter("Ada"), enter("Bo")
    bo.press("a")
    bo.heading("trade-1")
    ada.waits("#status", "Bo decided: laputa-0.")
    assert ada.page.locator("#progress-text").inner_text() == "1 of 5 decided"
    ada.waits(".history", "Bo approved the removal (laputa-0, laputa-1, laputa-2)")
    ada.press("r")  # another mind: the later stands, both are kept
    ada.heading("trade-1")
    bo.waits("#status", "Ada decided: laputa-0.")
    assert {(e.reviewer, e.decision) for e in read_ledger(run)} == {("Bo", "approved"), ("Ada", "rejected")}
    assert decided(run)["laputa-1"] == ("rejected", "remove")
    bo.press("k")
    bo.heading("laputa-0")
    assert "Rejected" in bo.page.locator("#chips").inner_text()


def test_undo_takes_back_only_the_decision_that_the_page_shows(room, tmp_path):
    run = small_run(tmp_path / "run")
    _, enter = room(run)
    ada = enter("Ada")
    ada.press("a")
    ada.heading("trade-1")
    ada.press("k")
    ada.heading("laputa-0")
    undoing = []  # until Ada's undo is on its way her page hears nothing of others

    def stale(route):
        route.continue_() if undoing else route.fulfill(json={"seq": 0, "states": {}, "by": []})

    ada.page.route("**/api/states?*", stale)
    ada.page.route("**/api/decisions", lambda route: (undoing.append(route.request.post_data_json), route.continue_()))
    bo = enter("Bo")
    bo.press("k")
    bo.heading("laputa-0")
    bo.press("r")
    bo.heading("trade-1")
    assert "Approved" in ada.page.locator("#chips").inner_text()
    ada.press("u")
    ada.waits("#status", "Someone decided about laputa-0 since this page was drawn. Nothing was taken back")
    ada.page.wait_for_selector("body:not([aria-busy])")
    assert (undoing[0]["decision"], undoing[0]["seqs"]) == ("undone", [1, 2, 3])
    assert "Rejected" in ada.page.locator("#chips").inner_text()
    assert "Bo rejected it" in ada.page.locator(".history").inner_text()
    assert [e.decision for e in read_ledger(run)] == ["approved"] * 3 + ["rejected"] * 3
    assert len(ada.wrong) == 1 and "409" in ada.wrong[0]  # what the browser says of the refusal itself
    ada.wrong.clear()
    ada.press("u")  # now it is Bo's that the page shows
    ada.waits("#status", "Taken back: laputa-0.")
    assert decided(run) == {f"laputa-{n}": ("approved", "remove") for n in range(3)}


def test_undo_from_elsewhere_takes_back_ones_own_decision_alone(room, tmp_path):
    run = small_run(tmp_path / "run")
    _, enter = room(run)
    ada, bo = enter("Ada"), enter("Bo")
    ada.press("a")
    ada.heading("trade-1")
    bo.waits("#status", "Ada decided: laputa-0.")
    bo.press("r")
    bo.heading("trade-1")
    ada.waits("#status", "Bo decided: laputa-0.")
    ada.press("u")
    ada.waits("#status", "There is no decision in the ledger to take back here, and none of yours elsewhere.")
    assert decided(run) == {f"laputa-{n}": ("rejected", "remove") for n in range(3)}
    bo.press("u")
    bo.waits("#status", "Taken back: laputa-0.")
    assert decided(run) == {f"laputa-{n}": ("approved", "remove") for n in range(3)}


def test_a_page_that_is_closed_in_the_middle_loses_nothing(room, tmp_path):
    run = small_run(tmp_path / "run")
    served, enter = room(run)
    ada = enter()
    ada.press("a")
    ada.heading("trade-1")
    ada.press("r")
    ada.page.close()  # with the second decision perhaps on its way
    served.stop()
    first = decided(run)
    assert [first[f"laputa-{n}"] for n in range(3)] == [("approved", "remove")] * 3
    assert first.get("trade-1", ("rejected", "remove")) == ("rejected", "remove")
    _, enter_again = room(run)
    again = enter_again()
    assert again.page.locator("#progress-text").inner_text() == f"{1 + ('trade-1' in first)} of 5 decided"
    again.heading("long-1" if "trade-1" in first else "trade-1")


def test_a_passage_that_a_scorer_failed_on_is_not_like_one_without_labels(room, tmp_path):
    run = small_run(tmp_path / "run")
    _, enter = room(run)
    ada = enter()
    assert ada.page.locator(".labels").count() == 0
    ada.press("f")
    ada.page.keyboard.type("rain-1")
    ada.heading("rain-1")
    assert ada.page.locator(".labels").all_inner_texts() == ["Not scored by hf:insults: RuntimeError: no room"]
    assert "does not say it, probability < 0.01%" in ada.page.locator("#item").inner_text()  # of 3e-24, no 24 zeros


def test_a_near_duplicate_is_opened_and_decided_apart(room, tmp_path):
    run = small_run(tmp_path / "run")
    _, enter = room(run)
    ada = enter()
    ada.press("o")
    ada.page.locator(".duplicate > summary", has_text="laputa-2").click()
    assert "western" in ada.page.locator(".duplicate[open] .text").inner_text()
    ada.page.get_by_role("button", name="Reject this one").locator("visible=true").click()
    ada.waits("#status", "Rejected: laputa-2.")
    assert decided(run) == {"laputa-2": ("rejected", "remove")}
    assert "Partly decided" in ada.page.locator("#chips").inner_text()
    assert ada.page.locator(".duplicate[open]").count() == 1


def test_filters_and_search(room, tmp_path):
    run = small_run(tmp_path / "run")
    _, enter = room(run)
    ada = enter()

    def shown() -> list[str]:
        return [text.split()[0] for text in ada.page.locator("#queue .snippet").all_text_contents()]

    ada.press("f")
    ada.page.keyboard.type("dock STREET")
    ada.heading("letter-1")
    assert shown() == ["Write"] and ada.page.locator("#shown").inner_text() == "1 of 5 shown"
    ada.page.get_by_role("button", name="Clear filters").click()
    ada.waits("#shown", "5 of 5 shown")
    ada.page.get_by_label("Proposal").select_option("redact")
    assert shown() == ["Write"]
    ada.page.get_by_label("Proposal").select_option("")
    ada.page.get_by_label("Category").select_option("privacy")
    assert shown() == ["Write", "It"]
    ada.page.locator("#filter-state").select_option("undecided")
    ada.page.locator("#item-heading").focus()
    ada.press("r")
    ada.heading("rain-1")
    assert shown() == ["It"], "what is decided leaves a queue of the undecided"
    ada.page.get_by_label("Source").select_option("encyclopedia")
    assert shown() == [] and ada.page.locator("#shown").inner_text() == "Nothing matches these filters."
    ada.page.locator("#requests summary").click()
    assert ada.page.locator("#request-progress tr").all_inner_texts()[1].split()[-3:] == ["1", "/", "2"]


def test_selected_words_are_the_characters_of_the_ledger(room, tmp_path):
    text = "👩‍🚀 hid\0\0den 𝒜da Quill\u202e lives here"
    run = write_run(tmp_path / "run", [request("r1")], [evidence("r1", "a", text, 1, words=[[14, 17]], tokens=[])])
    _, enter = room(run)
    ada = enter()
    start = text.index("𝒜da")
    ada.page.evaluate(
        """() => {
            const pieces = [...document.querySelectorAll('.text > *')];
            const first = pieces.find((piece) => piece.textContent.includes('𝒜'));
            const last = pieces.find((piece) => piece.textContent.includes('Quill'));
            getSelection().setBaseAndExtent(first.firstChild, first.textContent.indexOf('𝒜'),
                                            last.firstChild, last.textContent.indexOf('Quill') + 5);
        }"""
    )
    ada.waits("#redact", "Redact selection")
    ada.page.locator("#redact").click()
    ada.waits("#status", "Redaction approved")
    ((begin, end),) = standing(read_ledger(run))["a"].spans
    assert (begin, text[begin:end]) == (start, "𝒜da Quill")


def test_keys_can_be_turned_off_and_are_explained(room, tmp_path):
    run = small_run(tmp_path / "run")
    _, enter = room(run)
    ada = enter()
    ada.press("?")
    dialog = ada.page.get_by_role("dialog", name="Keys")
    assert "Approve the removal" in dialog.inner_text()
    ada.press("a")
    dialog.get_by_role("checkbox").uncheck()
    ada.press("Escape")
    dialog.wait_for(state="hidden")
    ada.press("a", "r", "d")
    ada.press("?")
    dialog.get_by_role("checkbox").check()
    dialog.get_by_role("button", name="Close").click()
    assert read_ledger(run) == []
    ada.press("a")
    ada.heading("trade-1")
    assert len(read_ledger(run)) == 3


def test_what_a_screen_reader_is_told(room, tmp_path):
    run = small_run(tmp_path / "run")
    _, enter = room(run)
    ada = enter()
    page = ada.page
    assert page.get_by_role("heading", level=1).inner_text().split() == ["Review", "run"]
    assert page.get_by_role("heading", level=2).all_inner_texts() == ["Queue", "1 of 5 laputa-0"]
    bar = page.get_by_role("progressbar", name="Decided")
    assert (bar.get_attribute("aria-valuenow"), bar.get_attribute("aria-valuemax")) == ("0", "5")
    assert page.get_by_role("status").count() == 1 and page.locator("#queue [aria-current=true]").count() == 1
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, summary, [tabindex="0"]')]
            .filter((e) => !e.closest('dialog') && !(e.textContent.trim() || e.labels?.[0]?.textContent.trim()
                    || e.getAttribute('aria-label')))
            .map((e) => e.outerHTML)"""
    )
    assert nameless == []
    ada.press("j")
    ada.heading("trade-1")
    assert page.evaluate("document.activeElement.id") == "item-heading"
    ring = "getComputedStyle(document.activeElement)"
    ada.press("Tab")
    assert page.evaluate(f"{ring}.outlineStyle + {ring}.outlineWidth") == "solid2px"


def test_light_and_dark_and_a_narrow_screen(room, tmp_path):
    run = small_run(tmp_path / "run")
    _, enter = room(run)
    ada = enter(width=420)
    for scheme in ("light", "dark"):
        ada.page.emulate_media(color_scheme=scheme)
        ink, ground = ada.page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.documentElement).backgroundColor]"
        )
        levels = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (ink, ground)]
        assert (levels[0] < levels[1]) == (scheme == "light") and abs(levels[0] - levels[1]) > 500
    assert ada.page.evaluate("document.documentElement.scrollWidth") == 420
    assert not ada.page.locator("#queue").is_visible()
    ada.page.locator("#side > summary").click()
    ada.page.locator("#queue button").nth(3).click()
    ada.heading("letter-1")
    assert ada.page.evaluate("document.documentElement.scrollWidth") == 420
    for name in ("Approve redaction", "Redact", "Remove whole", "Reject", "Undo", "Previous", "Next"):
        box = ada.page.get_by_role("button", name=name, exact=True).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 420 and box["y"] + box["height"] <= 900
    ada.page.get_by_role("button", name="Reject", exact=True).click()
    ada.heading("rain-1")
    assert decided(run) == {"letter-1": ("rejected", "redact")}


def test_a_ledger_that_is_tampered_with_stops_the_page(room, tmp_path):
    run = small_run(tmp_path / "run")
    _, enter = room(run)
    ada = enter()
    ada.press("a")
    ada.heading("trade-1")
    ledger = Path(run, "ledger.jsonl")
    ledger.write_bytes(ledger.read_bytes().replace(b'"approved"', b'"rejected"', 1))
    ada.press("a")
    alert = ada.page.get_by_role("alert")
    alert.filter(has_text="entry 1").wait_for()
    assert "Deciding is stopped." in alert.inner_text() and "was changed after it was written" in alert.inner_text()
    ada.heading("trade-1")
    assert all("409" in one for one in ada.wrong), ada.wrong  # what the browser says of the refusal itself
    ada.wrong.clear()


# ------------------------------------------------------------------------------------------------------------- hostile

HOSTILE = [
    "<script>window.hurt = 1; alert(1)</script>",
    '"><img src=x onerror="window.hurt = 1; alert(2)"><svg onload=alert(3)>',
    "'-alert(4)-' {{7*7}} ${alert(5)} {% raw %} </textarea></title></style><iframe src=javascript:alert(6)>",
    "\x1b[2J\x1b[31mred\x1b]0;title\x07 \x9b1m \b\b\b\x7f",
    "\u202eevitcere\u202c \u2066isolated\u2069 \u200e\u200f\u061c \U000e0041\U000e0042 \ufeff",
    '=HYPERLINK("http://evil.example","x") +1+cmd|\' /C calc\'!A0 @SUM(1) -2',
    "NUL\0NUL\0\0 lone \ud800 surrogate \udfff end \uffff",
    "W" * 1_000_000,
    "https://evil.example/x.js <a href='https://evil.example'>x</a> <link rel=stylesheet href=//evil.example/x.css>",
    "</script><style>*{display:none}</style><meta http-equiv=refresh content='0;url=https://evil.example'>",
    "e" + "\u0301" * 3_000 + " Z̸a̶l̷g̸o̵ \r\n\r\r\t\t " + "\x00\x1b" * 20_000,
    "",
]


def hostile_run(folder: Path) -> str:
    """Every hostile text, the long ones' beginning, in every place that a corpus, a request or a scorer can fill."""
    rows, requests = [], []
    for place, text in enumerate(HOSTILE):
        short = text[:5_000]
        case = {"prompt": text, "output": text, "said": text, "known": False, "probability": float("nan")}
        requests.append(
            request(f"r{place}{short}", category=short or "other", cases=[case], exemplars=[short], requester=short,
                    reason=short, deadline=short, said_by_model=False)
        )  # fmt: skip
        label = {"scorer": short, "version": short, "threshold": 0.5, "label": short, "score": float("nan"),
                 "spans": [[0, len(text)]]}  # fmt: skip
        for number, group in ((1, f"g{short}"), (2, f"g{short}")):
            rows.append(
                evidence(
                    f"r{place}{short}", f"{place}.{number}{short}", text, number, source=short, file=short, group=group,
                    signals={"bm25": 1.0, short or "s": float("nan")}, ranks={"bm25": 1}, labels=[label],
                    not_scored=[{"scorer": short, "reason": text}],
                    overlap=[[0, min(40, len(text))]], tokens=[[0, len(text), 1.0]], words=[[0, 9], [-5, 10**7]],
                    facts=[{"fact_id": short, "rank": 1, "score": 1.0}] * 2,
                    proposal=proposal("redact", [[0, 5]] if len(text) > 5 else [], short),
                )
            )  # fmt: skip
    return write_run(folder, requests, rows, [])


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> str:
    return hostile_run(tmp_path_factory.mktemp("hostile") / "run")


@pytest.mark.parametrize("width", [1440, 420])
def test_a_hostile_corpus_executes_nothing_and_breaks_nothing(room, hostile, tmp_path, width):
    run = str(shutil.copytree(hostile, tmp_path / "run"))
    _, enter = room(run)
    eve = enter("<img src=x onerror=alert(7)>\u202e\x1b[31m", width=width)
    tags = eve.page.evaluate("[...new Set([...document.querySelectorAll('*')].map((e) => e.localName))].sort().join()")
    for place in range(len(HOSTILE)):
        eve.heading(f"{place + 1} of {len(HOSTILE)}")
        assert eve.page.evaluate("document.documentElement.scrollWidth") == width
        assert eve.page.evaluate("window.hurt") is None
        assert eve.page.locator("main :is(script, img, svg, iframe, a, link, style, meta, object)").count() == 0
        raw = eve.page.evaluate(
            r"/[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/.test(document.body.textContent)"
        )
        assert raw is False, "a hidden character is on the page as itself"
        if place + 1 < len(HOSTILE):
            eve.press("o")
            eve.press("r" if place % 2 else "j")
    assert "script" in tags and "img" not in tags
    assert eve.page.title() == "Review · run"
    stands = decided(run)
    assert len(stands) == 2 * (len(HOSTILE) // 2 - (len(HOSTILE) % 2 == 0)) and {d for d, _ in stands.values()} == {
        "rejected"
    }


def test_a_long_queue_goes_along(room, tmp_path):
    rows = [evidence("r1", f"doc-{n:03d}", f"Belmont is place {n}.", n + 1, tokens=[]) for n in range(450)]
    run = write_run(tmp_path / "run", [request("r1")], rows)
    _, enter = room(run)
    ada = enter()
    assert ada.page.locator("#queue li").count() == 200
    for n in range(1, 16):
        ada.press("j")
        ada.heading(f"doc-{n:03d}")
    row, pane = ada.page.locator("#queue [aria-current]").bounding_box(), ada.page.locator("aside").bounding_box()
    assert pane["y"] <= row["y"] and row["y"] + row["height"] <= pane["y"] + pane["height"]
    ada.page.get_by_role("button", name="Show 200 more").click()
    assert ada.page.locator("#queue li").count() == 400
    ada.press("f")
    ada.page.keyboard.type("doc-449")
    ada.heading("doc-449")
    ada.press("Escape", "a")
    ada.waits("#status", "Everything shown is decided.")
    assert decided(run) == {"doc-449": ("approved", "remove")}


def test_a_word_of_a_megabyte_is_shown_in_part_and_whole_on_demand(room, tmp_path):
    word = "W" * 1_000_000
    rows = [evidence("r1", "long", word, 1, words=[[0, 5]], tokens=[]), evidence("r1", "next", "short", 2)]
    run = write_run(tmp_path / "run", [request("r1")], rows)
    _, enter = room(run)
    ada = enter()
    assert "992,000 more characters are not shown." in ada.page.locator(".read").inner_text()
    ada.page.get_by_role("button", name="Show them").click()
    ada.page.locator(".text > :nth-child(2)").wait_for()
    length = "document.querySelector('.text').textContent.length"
    while ada.page.evaluate(length) < 1_000_000:  # the page's policy forbids Playwright's own waiting, which evaluates
        ada.page.wait_for_timeout(50)
    assert ada.page.evaluate("document.documentElement.scrollWidth") == 1440
    ada.press("j")
    ada.heading("next")
