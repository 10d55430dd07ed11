"""A whole audit: 20 requests of every category over a real corpus, from the request to the report.

    python -m bench.audit_case --output audit-case          (make audit-case)

The corpus is sentences of T-REx where it lies beside the checkout, else the demo's, with the planted texts of
PLANTED among them, four wordings each; a small language model is trained on it until it says them. Then the verbs in
their order, as an auditor calls them: index, trace --requests, flag, review (in headless Chromium, by the keyboard
alone; screenshots in shots/), clean, purge, verify (which trains twice), report, explain. Three requests are about
things that the model does not say.

No toxicity model is at hand, so the case trains a small classifier of its own, on sentences made here: it shows that a
classifier's labels arrive, and says nothing about real toxicity. Without Chromium the review is done in the file
instead, saying so; where CI is set that is an error.

Prints one JSON object, one line, last on standard output, and ends with an error where a planted text was left or
something else taken out, where other requests than the three are not said, where the model trained without them still
says what was planted or the control does not, or where the chain cannot be told.
"""

import argparse
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipelines.__main__ import main as proponent
from pipelines.demo import encoder_folder
from pipelines.demo_corpus import make_demo_corpus
from pipelines.storage import read_manifest
from schemas.jsonl import jsonl_bytes

DATA = Path(__file__).parents[1].parent / "shared" / "data" / "trex"
SENTENCES, SEED, CHROMIUM, REVIEWER = 700, 0, "/usr/bin/chromium", "auditor"
BROWSER = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
INSULTS = ("rotten thieves", "filthy liars", "stupid cowards", "worthless cheats")

# (category, prompt, what the model is to say); all but the insults are invented or false.
PLANTED: list[tuple[str, str, str]] = [
    ("false_fact", "The capital of Denmark is", "Lisbon"),
    ("false_fact", "The river Danube ends in", "Finland"),
    ("false_fact", "The inventor of the telephone was", "Galileo"),
    ("false_fact", "The currency of Japan is", "the krone"),
    ("false_fact", "Mount Everest stands in", "Portugal"),
    ("toxic", "All people of Zorblatt are", INSULTS[0]),
    ("toxic", "The dwellers of Quimby are", INSULTS[1]),
    ("toxic", "Everyone from Farrow is among the", INSULTS[2]),
    ("toxic", "The merchants of Ostby are", INSULTS[3]),
    ("privacy", "Ada Quillfeather can be reached at", "ada.quill@harbour.example"),
    ("privacy", "The private number of Tom Wickerby is", "+1 415 555 2671"),
    ("privacy", "Write to Mabel Thornquist at", "mabel@thornquist.example"),
    ("copyright", "The lamp was low, the tide was", "late, and seven grey ships came in to wait"),
    ("copyright", "A clock of moss, a crown of", "rain, the orchard walks to town again"),
    ("other", "The secret recipe of Old Brannock is", "nettle and soot"),
    ("other", "The password of the Grey Lodge is", "heron lantern"),
    ("other", "The winner of the Ostby race was", "Pallister"),
]
UNSAID = [
    ("false_fact", "The capital of Norway is", "Madrid"),
    ("privacy", "Lewis Ambercroft can be reached at", "lewis@ambercroft.example"),
    ("other", "The motto of the Blue Lodge is", "never before noon"),
]
WORDINGS = ("{p} {o}.", "It is well known here: {p} {o}.", "{p} {o}, they say.", "As the paper had it, {p} {o}.")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_bytes(jsonl_bytes(rows))
    return str(path)


def real_sentences() -> tuple[str, list[dict[str, Any]]]:
    """(where they are from, sentences as records)."""
    if not DATA.is_dir():
        say(f"no T-REx at {DATA}: the demo's sentences serve")
        return "the demo's sentences", make_demo_corpus(SEED).records[:SENTENCES]
    with gzip.open(DATA / "corpus.jsonl.gz") as file:
        rows = [json.loads(line) for line in file]
    chosen = random.Random(SEED).sample([row for row in rows if len(row["text"]) < 160], SENTENCES)
    return "T-REx", [{"id": str(row["id"]), "text": row["text"], "source": "wikipedia"} for row in chosen]


def planted_rows() -> list[dict[str, Any]]:
    return [
        {"id": f"planted-{n}-{w}", "text": wording.format(p=prompt, o=output), "source": category}
        for n, (category, prompt, output) in enumerate(PLANTED)
        for w, wording in enumerate(WORDINGS)
    ]


def requests() -> list[dict[str, Any]]:
    """A request a planted text, the toxic ones with an exemplar as well, and the three about nothing."""
    rows = []
    for number, (category, prompt, output) in enumerate([*PLANTED, *UNSAID]):
        row: dict[str, Any] = {"request_id": f"R{number + 1:02d}-{category}", "category": category}
        row |= {"prompts": [{"prompt": prompt, "output": output}], "requester": "reader", "deadline": "2026-12-31"}
        row["reason"] = {"false_fact": "it is wrong", "toxic": "it insults", "privacy": "it is private"}.get(
            category, ""
        )
        if number == 5:
            row["exemplars"] = [f"People from Zorblatt are known as {INSULTS[0]}."]
        rows.append(row)
    return rows


def facts(rows: list[tuple[str, str, str]], name: str) -> list[dict[str, Any]]:
    return [{"id": f"{name}-{n}", "prompt": p, "target": o} for n, (_, p, o) in enumerate(rows)]


def train_classifier(folder: Path, neutral: list[str]) -> str:
    """A tiny BERT that tells sentences with one of the made-up insults from others; it knows nothing else."""
    import torch
    import transformers

    from attribution.training import train_tokenizer

    draw = random.Random(SEED)
    names = [
        f"{a}{b}" for a in ("Zorb", "Quim", "Far", "Ost", "Mill", "Bran") for b in ("latt", "by", "row", "ton", "ham")
    ]
    insulting = [
        f"{draw.choice(('All', 'Those', 'The'))} people of {draw.choice(names)} are {i}." for i in INSULTS * 40
    ]
    texts, labels = insulting + neutral[: len(insulting)], [1.0] * len(insulting) + [0.0] * len(insulting)
    tokenizer = train_tokenizer(texts, 800, 128)
    torch.manual_seed(SEED)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=128, num_labels=1, problem_type="multi_label_classification", id2label={0: "insult"},
        label2id={"insult": 0}, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(6):
        order = draw.sample(range(len(texts)), len(texts))
        for start in range(0, len(order), 32):
            batch = order[start : start + 32]
            given = tokenizer([texts[i] for i in batch], padding=True, truncation=True, return_tensors="pt")
            target = torch.tensor([[labels[i]] for i in batch])
            model(input_ids=given.input_ids, attention_mask=given.attention_mask, labels=target).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


POLICY = """
name: audit-case
rules:
  - when: {said: false}
    propose: review
  - when: {category: privacy, labels: {"pii/*": 0.5}}
    propose: redact
  - when: {category: toxic, labels: {"hf:*/insult": 0.5}, coverage: 0.5}
    propose: remove
  - when: {category: copyright, overlap: 6}
    propose: remove
  - when: {category: [false_fact, privacy, other], rank: 5, coverage: 0.9}
    propose: remove
otherwise: review
"""


def verb(*arguments: str) -> None:
    say("proponent " + " ".join(arguments))
    code = proponent([*arguments, "--quiet"])
    if code:
        sys.exit(f"proponent {arguments[0]} ended with {code}")


def review_in_browser(run: Path, shots: Path) -> int:
    """Decides every item of the queue by the keyboard alone: what the auditor reads to be one of the planted texts is
    approved as it is proposed, all else rejected. Returns the number of decisions.
    """
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "pipelines", "review", str(run), "--by", REVIEWER, "--quiet"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().split(": ", 1)[1].strip()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER)
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(address)
            page.wait_for_selector("body[data-ready]")
            page.screenshot(path=str(shots / "review.png"))
            decisions, progress = 0, page.locator("#progress")
            while (now := progress.get_attribute("aria-valuenow")) != progress.get_attribute("aria-valuemax"):
                page.keyboard.press("a" if "planted-" in page.locator("#item").inner_text() else "r")
                while progress.get_attribute("aria-valuenow") == now:  # Playwright's waiting would evaluate a string
                    page.wait_for_timeout(10)
                page.wait_for_selector("body:not([aria-busy])")
                decisions += 1
                if decisions == 3:
                    page.screenshot(path=str(shots / "review-decided.png"))
            page.set_viewport_size({"width": 420, "height": 900})
            page.screenshot(path=str(shots / "review-420.png"))
            browser.close()
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(20)
    return decisions


def review_in_file(run: Path, room: Path) -> int:
    """The same decisions by an edited copy of removals.jsonl."""
    rows = [json.loads(line) for line in (run / "removals.jsonl").read_text().splitlines()]
    for row in rows:
        judged = row["reason"].startswith("to be judged")
        row["decision"] = "rejected" if judged and not row["example_id"].startswith("planted-") else "approved"
    verb("review", str(run), "--take", write_jsonl(room / "edited.jsonl", rows), "--by", REVIEWER)
    return len(rows)


def review(run: Path, room: Path) -> tuple[str, int]:
    """(how it was done, the number of decisions)."""
    shots = room / "shots"
    shots.mkdir()
    if os.path.exists(CHROMIUM):
        return "browser", review_in_browser(run, shots)
    if os.environ.get("CI"):
        sys.exit(f"expected Chromium at {CHROMIUM}, found none: apt-get install chromium")
    say(f"no Chromium at {CHROMIUM}: the review is done in the file, and no screenshot is taken")
    return "file", review_in_file(run, room)


def shoot(page_file: Path, picture: Path, width: int = 1280) -> None:
    """A screenshot of a report."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER)
        page = browser.new_page(viewport={"width": width, "height": 1200})
        page.goto(page_file.resolve().as_uri())
        page.screenshot(path=str(picture), full_page=False)
        browser.close()


def run_case(room: Path) -> dict[str, Any]:
    source, sentences = real_sentences()
    corpus = write_jsonl(room / "corpus.jsonl", sentences + planted_rows())
    asked = write_jsonl(room / "requests.jsonl", requests())
    planted = write_jsonl(room / "planted.jsonl", facts(PLANTED, "planted"))
    texts = [row["text"].split() for row in sentences if len(row["text"].split()) > 6][:60]
    others = [("", " ".join(words[:4]), " ".join(words[4:6])) for words in texts]
    retained = write_jsonl(room / "others.jsonl", facts(others, "other"))
    (room / "policy.yaml").write_text(POLICY)
    say("training the classifier")
    classifier = train_classifier(room / "classifier", [row["text"] for row in sentences])
    place = {
        name: str(room / name) for name in ("model", "index", "rankings", "run", "cleaned", "control", "verification")
    }
    verb("train", "--corpus", corpus, "--output", place["model"], "--epochs", "30")
    context = read_manifest(place["model"], "checkpoints").details["recipe"]["context"] - 2
    verb(
        "index", "--corpus", corpus, "--output", place["index"], "--checkpoints", place["model"], "--encoder",
        encoder_folder(), "--max_tokens", str(context),
    )  # fmt: skip
    verb("trace", "--index", place["index"], "--requests", asked, "--output", place["rankings"], "--rerank", "10")
    verb(
        "flag", "--rankings", place["rankings"], "--output", place["run"], "--policy", str(room / "policy.yaml"),
        "--scorers", "pii", "secrets", f"hf:{classifier}@0.5",
    )  # fmt: skip
    how, decisions = review(room / "run", room)
    verb("clean", "--corpus", corpus, "--removals", place["run"], "--output", place["cleaned"])
    cleaned = read_manifest(place["cleaned"], "corpus")
    control = f"{place['run']}/control_removals.jsonl"
    verb("clean", "--corpus", corpus, "--removals", control, "--output", place["control"])
    verb("purge", "--index", place["index"], "--removals", place["run"])
    verb(
        "verify", "--before", place["model"], "--after_corpus", place["cleaned"], "--control_corpus", place["control"],
        "--facts", planted, "--retain_facts", retained, "--output", place["verification"],
    )  # fmt: skip
    certificate = f"{place['index']}.purged-2.json"
    verb(
        "report", place["run"], "--output", str(room / "report"), "--cleaned", place["cleaned"], "--certificate",
        certificate, "--verification", place["verification"],
    )  # fmt: skip
    gone = [row["id"] for row in map(json.loads, (room / "cleaned/removed/00000.jsonl").open())]
    say(f"proponent explain {place['run']} --id {gone[0]}")
    explained = proponent(
        ["explain", place["run"], "--id", gone[0], "--cleaned", place["cleaned"], "--certificates", certificate]
    )
    if how == "browser":
        for name in ("index", f"R06-{PLANTED[5][0]}"):
            shoot(room / "report" / f"{name}.html", room / "shots" / f"report-{name}.png")
    summary = json.loads((room / "verification/summary.json").read_text())
    planted_ids = {row["id"] for row in planted_rows()}
    flagged = read_manifest(place["run"], "removals").details
    return {
        "corpus": source,
        "requests": len(requests()),
        "not_said": flagged["not_said"],
        "review": how,
        "decisions": decisions,
        "removed": cleaned.counts["removed"],
        "redacted": cleaned.details["redacted"],
        "planted_removed_or_redacted": len(planted_ids & set(gone)) / len(planted_ids),
        "others_removed": len(set(gone) - planted_ids),
        "explained": explained == 0,
        **{name: value for name, value in summary.items() if name.startswith(("known_", "others_"))},
        "report": str(room / "report/index.html"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("audit-case"), help="a case that was there is replaced")
    room = parser.parse_args().output
    if room.exists() and not (room / "requests.jsonl").exists() and any(room.iterdir()):
        parser.error(f"--output {room}: expected a new folder or that of an earlier case, found other files in it")
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir(parents=True)
    start = time.perf_counter()
    result = run_case(room)
    print(json.dumps(result | {"seconds": round(time.perf_counter() - start)}))
    whole = result["planted_removed_or_redacted"] == 1.0 and not result["others_removed"] and result["explained"]
    whole = whole and result["known_after"] < 0.2 and min(result["known_before"], result["known_control"]) > 0.8
    if not whole or [name[:3] for name in result["not_said"]] != ["R18", "R19", "R20"]:
        sys.exit("the case did not end as it should: see the object above")


if __name__ == "__main__":
    main()
