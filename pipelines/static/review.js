// The review page. Whatever comes from the server goes into the page by textContent alone; every word is in messages.
const $ = (id) => document.getElementById(id);
const POLL_MS = 2000;
const RENDERED = 200; // rows of the queue at a time
const LAYERS = ["overlap", "word", "influence", "label", "redact", "taken"];

const state = {
  text: {},
  items: [],
  requests: [],
  itemOf: new Map(), // example -> number of its item
  states: new Map(), // example -> what stands, or null
  seq: 0,
  current: -1,
  loaded: null, // the evidence on the page
  wanted: 0, // the last item asked for: an answer that comes late is dropped
  visible: [],
  rendered: RENDERED,
  found: null, // numbers of the items that the search found
  heard: 0, // counts decisions and questions for news: news that comes after a later one is dropped, the next has it too
  last: [], // my decisions on this page: lists of [example, seq of the ledger]
  busy: false,
  selecting: null,
  hidden: new Set(),
};

function t(name, values = {}) {
  return (state.text[name] ?? name).replace(/\{(\w+)\}/g, (_, key) => values[key] ?? "");
}

/** A message that depends on a number: `name_one`, `name_other`, or what else the language's rules ask for. */
function tn(name, count) {
  return t([`${name}_${plural.select(count)}`, `${name}_other`].find((one) => one in state.text), { count: counts.format(count) });
}

function known(name, fallback) {
  return name in state.text ? state.text[name] : fallback;
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const bdi = (text, attributes = {}) => make("bdi", attributes, text);
const decimals = new Intl.NumberFormat(document.documentElement.lang, { maximumSignificantDigits: 4 });
const counts = new Intl.NumberFormat(document.documentElement.lang);
const plural = new Intl.PluralRules(document.documentElement.lang);
const percents = new Intl.NumberFormat(document.documentElement.lang, { style: "percent", maximumSignificantDigits: 3 });
const LEAST_SHARE = 1e-4; // the digits of a smaller one say nothing
const percent = (share) => (share > 0 && share < LEAST_SHARE ? `< ${percents.format(LEAST_SHARE)}` : percents.format(share));
const number = (value) => (value === null || value === undefined ? t("not_a_number") : decimals.format(value));

function bar(share) {
  const inner = make("span");
  inner.style.inlineSize = `${(100 * share).toFixed(1)}%`;
  return make("span", { class: "meter", "aria-hidden": "true" }, inner);
}

// ------------------------------------------------------------------------------------------------------------- server

class ServerRefusal extends Error {
  constructor(status, body) {
    super(body.error);
    this.status = status;
    this.body = body;
  }
}

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    keepalive: true, // goes out even if the page is being closed
    headers: { "Content-Type": "application/json", "X-Review-Session": document.querySelector("meta[name=csrf]").content },
    body: JSON.stringify(body),
  };
  let answer;
  try {
    answer = await fetch(path, { ...options, credentials: "same-origin" });
  } catch {
    throw new ServerRefusal(0, { error: "offline" });
  }
  if (answer.ok) return answer.json();
  if (answer.status === 403) throw new ServerRefusal(403, { error: "ended" });
  const told = (answer.headers.get("Content-Type") ?? "").startsWith("application/json") ? await answer.json() : { error: "malformed", detail: await answer.text() };
  throw new ServerRefusal(answer.status, told);
}

function alarm(error) {
  if (!(error instanceof ServerRefusal)) throw error;
  const { error: name, values, detail } = error.body;
  const text = t(name, values ?? { detail: detail ?? "" });
  if (["offline", "ended", "ledger", "malformed"].includes(name)) {
    if ($("alert").textContent !== text) $("alert").textContent = text;
    $("alert").hidden = false;
  } else {
    say(text);
  }
}

function say(text) {
  $("status").textContent = text;
}

// -------------------------------------------------------------------------------------------------------------- states

function itemState(item) {
  const stands = item.examples.map((example) => state.states.get(example));
  const decided = stands.filter(Boolean);
  if (decided.length === 0) return "undecided";
  if (decided.length < stands.length) return "partly";
  return new Set(decided.map((one) => one.decision)).size === 1 ? decided[0].decision : "partly";
}

const isDecided = (item) => item.examples.every((example) => state.states.get(example));

function take(states) {
  for (const [example, stands] of Object.entries(states)) state.states.set(Number(example), stands);
}

function showProgress() {
  const decided = state.items.filter(isDecided).length;
  const total = state.items.length;
  const text = t("progress_text", { decided: counts.format(decided), total: counts.format(total) });
  $("progress").setAttribute("aria-valuemax", total);
  $("progress").setAttribute("aria-valuenow", decided);
  $("progress").setAttribute("aria-valuetext", text);
  $("progress").firstElementChild.style.inlineSize = `${total ? (100 * decided) / total : 0}%`;
  $("progress-text").textContent = text;
  state.requests.forEach((request, place) => {
    const items = state.items.filter((item) => item.requests.includes(place));
    const done = items.filter(isDecided).length;
    request.cells.count.textContent = `${counts.format(done)} / ${counts.format(items.length)}`;
    request.cells.meter.replaceChildren(bar(items.length ? done / items.length : 0));
    request.cells.option.textContent = `${request.id} · ${done}/${items.length}`;
  });
}

// --------------------------------------------------------------------------------------------------------------- queue

const FILTERS = {
  request: (item, value) => item.requests.includes(Number(value)),
  category: (item, value) => item.requests.some((place) => state.requests[place].category === value),
  proposal: (item, value) => item.proposal === value,
  source: (item, value) => item.sources.includes(value),
  state: (item, value) => ({ decided: isDecided(item), undecided: !isDecided(item) })[value] ?? itemState(item) === value,
};

function filtered() {
  const chosen = Object.keys(FILTERS).map((name) => [name, $(`filter-${name}`).value]).filter(([, value]) => value !== "");
  return state.items.map((_, n) => n).filter((n) =>
    (state.found === null || state.found.has(n)) && chosen.every(([name, value]) => FILTERS[name](state.items[n], value)));
}

function queueRow(n) {
  const item = state.items[n];
  const what = itemState(item);
  const parts = [
    make("span", { class: `dot ${what}`, "aria-hidden": "true" }),
    make("span", { class: "snippet", dir: "auto" }, item.snippet || item.id),
    make("span", { class: "brief" },
      make("span", { class: "what" }, t(what === "undecided" ? `proposal_${item.proposal}` : `state_${what}`)),
      item.examples.length > 1 ? make("span", {}, `×${item.examples.length}`) : null,
      bdi(item.requests.map((place) => state.requests[place].id).join(", "))),
  ];
  const button = make("button", { type: "button", on: { click: () => show(n) } }, ...parts);
  if (n === state.current) button.setAttribute("aria-current", "true");
  return make("li", { "data-item": n, class: what }, button);
}

function showQueue() {
  state.visible = filtered();
  const place = state.visible.indexOf(state.current);
  if (place >= state.rendered) state.rendered = place + RENDERED;
  const rows = state.visible.slice(0, state.rendered).map(queueRow);
  const focused = document.activeElement?.closest("#queue li")?.dataset.item;
  $("queue").replaceChildren(...rows);
  if (focused !== undefined) $("queue").querySelector(`[data-item="${focused}"] button`)?.focus();
  const rest = state.visible.length - rows.length;
  $("more").hidden = rest <= 0;
  $("more").textContent = t("show_more", { count: counts.format(Math.min(rest, RENDERED)) });
  const told = state.visible.length
    ? t("shown", { shown: counts.format(state.visible.length), total: counts.format(state.items.length) })
    : t("none_shown");
  if ($("shown").textContent !== told) $("shown").textContent = told;
}

function refresh() {
  showProgress();
  showQueue();
  showChips();
}

function scrollQueue() {
  const row = $("queue").querySelector("[aria-current]")?.getBoundingClientRect();
  const pane = narrow.matches ? $("queue") : document.querySelector("aside");
  const seen = pane.getBoundingClientRect();
  const around = 2 * (row?.height ?? 0); // two rows before and after stay in view
  if (row && row.top - around < seen.top) pane.scrollTop += row.top - around - seen.top;
  else if (row && row.bottom + around > seen.bottom) pane.scrollTop += row.bottom + around - seen.bottom;
}

/** The next item of the queue as it is filtered, from the current one on; only undecided ones if asked so. */
function neighbour(step, undecided = false) {
  const candidates = state.visible.filter((n) => !undecided || !isDecided(state.items[n]));
  if (step < 0) return candidates.filter((n) => n < state.current).at(-1);
  return candidates.find((n) => n > state.current) ?? (undecided ? candidates.find((n) => n !== state.current) : undefined);
}

function step(by) {
  const n = neighbour(by);
  if (n === undefined) say(t("end_of_queue"));
  else show(n);
}

// ----------------------------------------------------------------------------------------------------------- one item

async function show(n, focus = true, whole = false) {
  stopSelecting();
  const ticket = ++state.wanted;
  state.current = n;
  state.loaded = null;
  let item;
  try {
    item = await ask(`/api/items/${n}${whole ? "?whole=1" : ""}`);
  } catch (error) {
    return alarm(error);
  }
  if (ticket !== state.wanted) return;
  state.loaded = item;
  render(item);
  showQueue();
  scrollQueue();
  if (narrow.matches) $("side").open = false;
  if (focus) {
    window.scrollTo(0, 0);
    $("item-heading").focus({ preventScroll: true });
  }
  labelButtons();
}

/** The evidence again, where something about the item on the page was decided; what is open and chosen stays. */
async function reload() {
  const n = state.current;
  const opened = [...$("item").querySelectorAll("details")].map((details) => details.open);
  const item = await ask(`/api/items/${n}`);
  if (n !== state.current || state.loaded === null || !getSelection().isCollapsed) return;
  const focused = document.activeElement?.id === "item-heading";
  const top = window.scrollY;
  state.loaded = item;
  render(item);
  $("item").querySelectorAll("details").forEach((details, place) => (details.open = opened[place] ?? false));
  if (focused) $("item-heading").focus({ preventScroll: true });
  window.scrollTo(0, top);
}

function chip(className, text) {
  return make("span", { class: `chip ${className}` }, text);
}

function showChips() {
  const chips = $("chips");
  if (!chips || !state.loaded) return;
  const item = state.items[state.current];
  const what = itemState(item);
  const proposed = chip(`proposal ${item.proposal}`, `${t("proposed")}: ${t(`proposal_${item.proposal}`)}`);
  const group = item.examples.length > 1 ? chip("group", tn("duplicates_chip", item.examples.length)) : null;
  chips.replaceChildren(...[chip(`state ${what}`, t(`state_${what}`)), proposed, group].filter(Boolean));
  for (const place of $("item").querySelectorAll("[data-state-of]")) {
    const stands = state.states.get(Number(place.dataset.stateOf));
    place.textContent = t(`state_${stands ? stands.decision : "undecided"}`);
    place.className = `chip state ${stands ? stands.decision : "undecided"}`;
  }
}

function render(item) {
  const [first, ...others] = item.examples;
  const place = t("place", { number: counts.format(item.number + 1), total: counts.format(state.items.length) });
  const article = make("article", { "aria-labelledby": "item-heading", class: [...state.hidden].map((name) => `without-${name}`).join(" ") },
    make("header", { class: "item-head" },
      make("h2", { id: "item-heading", tabindex: "-1" }, make("span", { class: "place" }, place), " ", bdi(first.id)),
      make("p", { id: "chips" })),
    questions(item.requests),
    proposalLine(first),
    legend(item),
    ...exampleParts(first),
    others.length ? duplicates(others) : null,
    origin(first),
    history(item));
  $("item").replaceChildren(article);
  showChips();
}

function questions(requests) {
  const [first, second, ...rest] = requests.map(question);
  const more = rest.length ? make("details", {}, make("summary", {}, tn("more_requests", rest.length)), ...rest) : null;
  return make("section", { class: "questions", "aria-labelledby": "questions-heading" },
    make("h3", { id: "questions-heading" }, t("requests")), first, second, more);
}

function question(request) {
  const line = make("p", { class: "note" },
    make("b", {}, known(`category_${request.category}`, request.category)), " · ", bdi(t("request_line", { id: request.id })));
  if (request.requester) line.append(" · ", bdi(t("requester", { name: request.requester })));
  if (request.deadline) line.append(" · ", bdi(t("deadline", { date: request.deadline })));
  const box = make("div", { class: "question" }, line);
  if (request.reason) box.append(make("p", { class: "note", dir: "auto" }, request.reason));
  const cases = request.cases.map(complaint);
  box.append(...cases.slice(0, 2));
  if (cases.length > 2) box.append(make("details", {}, make("summary", {}, tn("more_cases", cases.length - 2)), ...cases.slice(2)));
  for (const text of request.exemplars) {
    box.append(make("div", { class: "complaint" }, make("p", { class: "label" }, t("exemplar")), make("blockquote", { dir: "auto" }, text)));
  }
  if (request.said_by_model === false && request.cases.length) box.append(make("p", { class: "warning" }, t("not_said")));
  return box;
}

function complaint(one) {
  const says = one.said === null ? t("not_asked") : t(one.known ? "says_it" : "says_not", { probability: one.probability === null ? t("not_a_number") : percent(one.probability) });
  return make("dl", { class: "complaint" },
    make("div", {}, make("dt", {}, t("prompt")), make("dd", { dir: "auto" }, one.prompt)),
    make("div", { class: "output" }, make("dt", {}, t("output")), make("dd", { dir: "auto" }, one.output)),
    make("div", {}, make("dt", {}, t("model_says")), make("dd", { dir: "auto" }, (one.said ?? "").trim(), make("span", { class: "note" }, ` (${says})`))));
}

const spansText = (count) => tn("spans", count);

function proposalLine(example) {
  const { action, spans, rules } = example.proposal;
  const line = make("p", { class: "proposal-line" }, make("b", {}, `${t("proposed")}: ${t(`proposal_${action}`)}`));
  if (action === "redact") line.append(` (${spansText(spans)})`);
  rules.filter(Boolean).forEach((rule, place) => line.append(place ? "; " : ` ${t("rule")} `, bdi(rule)));
  return line;
}

function legend(item) {
  const marks = new Set(item.examples.flatMap((example) => example.passages).flatMap((p) => p.segments).flatMap((s) => s.marks)
    .map((name) => name.replace(/\d$/, "")));
  const list = make("ul", { class: "legend", "aria-label": t("marks") });
  for (const name of LAYERS.filter((layer) => marks.has(layer))) {
    const sample = name === "influence" ? [1, 2, 3].map((n) => make("span", { class: `m m-influence${n}` }, "ab")) : [make("span", { class: `m m-${name} first last` }, "ab")];
    list.append(make("li", {}, make("button", {
      type: "button", class: "layer", "aria-pressed": String(!state.hidden.has(name)),
      on: { click: (event) => toggleLayer(name, event.currentTarget) },
    }, make("span", { class: "sample", "aria-hidden": "true" }, ...sample), t(`mark_${name}`))));
  }
  return list.children.length ? list : null;
}

function toggleLayer(name, button) {
  const hide = !state.hidden.has(name);
  state.hidden[hide ? "add" : "delete"](name);
  $("item").firstElementChild.classList.toggle(`without-${name}`, hide);
  button.setAttribute("aria-pressed", String(!hide));
}

function exampleParts(example) {
  return example.passages.map((passage, place) => passageSection(example, passage, place, example.passages.length));
}

function passageSection(example, passage, place, total) {
  const where = t("characters", { start: counts.format(passage.start), end: counts.format(passage.end) });
  const heading = total > 1 ? t("passage_number", { number: place + 1, total }) : t("passage");
  const text = make("div", {
    class: "text", dir: "auto", tabindex: "0", role: "group",
    "aria-label": t("text_label", { id: example.id.slice(0, 80), start: passage.start, end: passage.end }),
    "data-example": example.example, "data-base": passage.start,
  }, ...pieces(passage.segments));
  const read = make("div", { class: "read" }, make("h3", {}, heading, make("span", { class: "note" }, ` · ${where}`)), text);
  if (passage.rest) {
    const all = make("button", { type: "button", class: "quiet", on: { click: () => show(state.current, true, true) } }, t("show_rest"));
    read.append(make("p", { class: "note" }, tn("rest", passage.rest), " ", all));
  }
  if (passage.overlaps.length) {
    read.append(make("p", { class: "label" }, t("overlaps")),
      make("ul", { class: "quotes" }, ...passage.overlaps.map((words) => make("li", { dir: "auto" }, words))));
  }
  return make("section", { class: "passage" }, read, evidence(passage));
}

function pieces(segments) {
  return segments.map((piece, place) => {
    const has = (name, other) => segments[other]?.marks.includes(name);
    const names = piece.marks.map((name) => `m-${name}`);
    for (const name of ["redact", "taken"]) {
      if (!piece.marks.includes(name)) continue;
      if (!has(name, place - 1)) names.push("first");
      if (!has(name, place + 1)) names.push("last");
    }
    const attributes = { "data-start": piece.start, "data-end": piece.end };
    if (piece.hidden) return make("span", { ...attributes, class: ["m", "control", ...names].join(" "), title: t("hidden_character", { name: piece.hidden }) }, piece.text);
    if (names.length) attributes.class = ["m", ...names].join(" ");
    return make(piece.marks.includes("overlap") ? "mark" : "span", attributes, piece.text);
  });
}

function evidence(passage) {
  const box = make("div", { class: "evidence" });
  for (const found of passage.found) {
    const rows = found.signals.map((signal) => make("tr", { class: signal.name ? "" : "fused" },
      make("th", { scope: "row" }, bdi(known(`signal_${signal.name}`, signal.name))),
      make("td", { class: "wide" }, bar(signal.share)),
      make("td", {}, number(signal.score)),
      make("td", {}, signal.rank ?? "–")));
    const part = make("div", { class: "found" }, make("table", { class: "signals" },
      make("caption", {}, bdi(t("for_request", { id: found.request }))),
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, t("signal")), make("td", {}),
        make("th", { scope: "col" }, t("score")), make("th", { scope: "col" }, t("rank")))),
      make("tbody", {}, ...rows)));
    if (found.coverage !== null) part.append(make("p", { class: "note" }, t("coverage", { share: percent(found.coverage) })));
    if (found.names.length) part.append(make("p", { class: "note" }, t("names"), " ", ...found.names.flatMap((name, n) => [n ? ", " : "", bdi(name)])));
    if (found.facts.length > 1) {
      part.append(make("details", { class: "note" }, make("summary", {}, t("facts")),
        make("ul", {}, ...found.facts.map((fact) => make("li", {}, bdi(t("fact", { ...fact, score: number(fact.score) })))))));
    }
    box.append(part);
  }
  if (passage.labels.length || passage.not_scored.length) {
    const failed = passage.not_scored.map((one) => make("li", { class: "warning" }, bdi(t("not_scored", one))));
    box.append(make("div", { class: "found" }, make("h4", {}, t("labels")), make("ul", { class: "labels" }, ...failed, ...passage.labels.map((label) => {
      const line = make("li", {}, make("b", {}, bdi(label.label)), " ", label.score === null ? t("not_a_number") : decimals.format(label.score),
        make("span", { class: "note" }, ` · ${t("label_threshold", { threshold: number(label.threshold) })} · `, bdi(`${label.scorer} ${label.version}`)));
      if (label.texts.length) line.append(make("ul", { class: "quotes" }, ...label.texts.map((words) => make("li", { dir: "auto" }, words))));
      return line;
    }))));
  }
  return box;
}

function duplicates(examples) {
  const boxes = examples.map((example) => {
    const button = (name, click) => make("button", { type: "button", class: "quiet", on: { click } }, t(name));
    const only = (decision, name) => button(name, () => decide(decision, { examples: [example.example] }));
    return make("li", {}, make("details", { class: "duplicate" },
      make("summary", {}, bdi(example.id), " ", make("span", { "data-state-of": example.example }), " ", bdi(example.source, { class: "note" })),
      proposalLine(example), ...exampleParts(example), origin(example),
      make("p", { class: "own" }, only("approved", "only_approve"), only("rejected", "only_reject"), button("only_undo", () => takeBack([example.example])))));
  });
  return make("section", { class: "duplicates" },
    make("details", { id: "duplicates" },
      make("summary", {}, make("h3", {}, tn("duplicates_open", examples.length))),
      make("p", { class: "note" }, t("duplicates_note")), make("ul", { class: "plain-list" }, ...boxes)));
}

function origin(example) {
  const rows = [["example_id", example.id], ["source", example.source], ["file", example.file], ["row", counts.format(example.row)], ["sha256", example.sha256]];
  return make("section", { class: "origin" }, make("h3", {}, t("origin")),
    make("dl", {}, ...rows.map(([name, value]) => make("div", {}, make("dt", {}, t(name)), make("dd", {}, bdi(String(value)))))));
}

function history(item) {
  const entries = [];
  const all = item.examples.flatMap((example) => example.history.map((entry) => ({ ...entry, ids: [example.id] })));
  for (const entry of all.sort((a, b) => a.seq - b.seq)) {
    const last = entries.at(-1); // a decision on a group is one line
    const same = last && last.seq + last.ids.length === entry.seq && ["time", "reviewer", "decision", "action", "reason"].every((name) => last[name] === entry[name]);
    if (same) last.ids.push(entry.ids[0]);
    else entries.push(entry);
  }
  const told = (entry) => t(entry.decision === "approved" ? `entry_approved_${entry.action}` : `entry_${entry.decision}`, { spans: spansText(entry.spans.length) });
  const rows = entries.map((entry) => make("li", {},
    make("time", { datetime: entry.time }, entry.time.replace("T", " ").replace("+00:00", " UTC")), " ", make("b", {}, bdi(entry.reviewer)), ` ${told(entry)}`,
    item.examples.length > 1 ? bdi(` (${entry.ids.join(", ")})`, { class: "note" }) : null, entry.reason ? make("span", { dir: "auto" }, ` — ${entry.reason}`) : null));
  // What the run came with, a policy's approval for instance, is no entry of the ledger.
  const came = item.examples.map((example) => state.states.get(example.example)).filter((one) => one && one.seq === 0);
  for (const one of came.slice(0, 1)) {
    rows.unshift(make("li", {}, make("b", {}, bdi(one.reviewer)), ` ${told(one)}`, one.reason ? make("span", { dir: "auto" }, ` — ${one.reason}`) : null));
  }
  return make("section", { class: "history" }, make("h3", {}, t("history")),
    rows.length ? make("ol", {}, ...rows) : make("p", { class: "note" }, t("history_none")));
}

// ------------------------------------------------------------------------------------------------------------ decisions

async function decide(decision, { action = "proposed", examples, selections = [], seqs } = {}) {
  if (state.busy || state.loaded === null) return;
  state.busy = true;
  document.body.setAttribute("aria-busy", "true");
  const whole = examples === undefined;
  const item = state.loaded;
  const ids = examples ?? item.examples.map((example) => example.example);
  try {
    const written = await ask("/api/decisions", { examples: ids, decision, action, selections, seqs, reason: decision === "undone" ? "" : $("reason").value });
    state.heard++;
    if (decision !== "undone") {
      $("reason").value = "";
      state.last.push(ids.map((example, place) => [example, written.first + place]));
    }
    take(written.states);
    const first = item.examples.find((example) => example.example === ids[0]);
    const does = state.states.get(ids[0])?.action ?? "remove";
    const said = t(decision === "approved" ? `done_approved_${does}` : `done_${decision}`, { id: first.id.slice(0, 60) });
    getSelection().removeAllRanges();
    stopSelecting();
    refresh();
    const next = whole && decision !== "undone" ? neighbour(1, true) : undefined;
    if (next !== undefined) {
      await show(next);
      say(said);
    } else {
      await reload();
      say(whole && decision !== "undone" ? `${said} ${t("all_decided")}` : said);
    }
  } catch (error) {
    if (error instanceof ServerRefusal && error.body.error === "decided_since") await catchUp().then(() => alarm(error), alarm);
    else alarm(error);
  } finally {
    state.busy = false;
    document.body.removeAttribute("aria-busy");
    labelButtons();
  }
}

/** What others decided since, on the page: where it was about to act on what it showed. */
async function catchUp() {
  getSelection().removeAllRanges(); // a selection would keep the item from being drawn again
  stopSelecting();
  await news();
  await reload();
}

/** The seq of the decision that the page shows of an example; 0 for none, and for one that the run came with. */
const shownSeq = (example) => state.states.get(example)?.seq ?? 0;

const takeBack = (examples) => decide("undone", { examples, seqs: examples.map(shownSeq) });

/** Takes back the decision on the item on the page, or else my last one that stands, which is then shown. */
async function undo() {
  if (state.busy || state.loaded === null) return;
  const here = state.loaded.examples.map((example) => example.example).filter((example) => shownSeq(example) > 0);
  if (here.length) return takeBack(here);
  let mine = [];
  while (state.last.length && !mine.length) mine = state.last.pop().filter(([example, seq]) => shownSeq(example) === seq);
  if (!mine.length) return say(t("nothing_to_undo"));
  await show(state.itemOf.get(mine[0][0]));
  await decide("undone", { examples: mine.map(([example]) => example), seqs: mine.map(([, seq]) => seq) });
}

function redact() {
  const selections = selected();
  return decide("approved", { action: "redact", selections });
}

function labelButtons() {
  const item = state.items[state.current];
  const label = (id, name) => ($(id).firstElementChild.textContent = t(name));
  const proposesRedaction = item?.proposal === "redact";
  label("approve", proposesRedaction ? "approve_redact" : "approve_remove");
  label("redact", selected().length ? "redact_selection" : "redact");
  $("whole").hidden = !proposesRedaction;
  for (const id of ["approve", "redact", "whole", "reject", "undo"]) $(id).disabled = state.loaded === null;
}

// ------------------------------------------------------------------------------------------------------------ selection

/** [example, start, end] in characters of the example, for every passage that the selection touches. */
function selected() {
  const selection = getSelection();
  if (selection.rangeCount === 0 || selection.isCollapsed) return [];
  const range = selection.getRangeAt(0);
  return [...$("item").querySelectorAll(".text")].filter((text) => range.intersectsNode(text)).map((text) => {
    const inside = document.createRange();
    inside.selectNodeContents(text);
    const startsHere = text.contains(range.startContainer);
    const endsHere = text.contains(range.endContainer);
    const start = startsHere ? place(text, range.startContainer, range.startOffset, false) : place(text, text, 0, false);
    const end = endsHere ? place(text, range.endContainer, range.endOffset, true) : place(text, text, text.childNodes.length, true);
    const base = Number(text.dataset.base);
    return [Number(text.dataset.example), base + start, base + end];
  }).filter(([, start, end]) => start < end);
}

/** The character of the passage at a place of the page; characters are code points, as everywhere in the ledger. */
function place(text, node, offset, isEnd) {
  if (node === text) {
    const piece = text.children[isEnd ? offset - 1 : offset] ?? text.lastElementChild;
    if (!piece) return 0;
    return Number(isEnd || offset >= text.children.length ? piece.dataset.end : piece.dataset.start);
  }
  const piece = (node.nodeType === Node.TEXT_NODE ? node.parentElement : node).closest("[data-start]");
  const [start, end] = [Number(piece.dataset.start), Number(piece.dataset.end)];
  if (piece.classList.contains("control")) return isEnd ? (offset === 0 ? start : end) : (offset > 0 && node.nodeType === Node.TEXT_NODE && offset >= node.length ? end : start);
  if (node.nodeType !== Node.TEXT_NODE) return offset === 0 ? start : end;
  return start + Array.from(node.data.slice(0, offset)).length;
}

function startSelecting() {
  const text = document.activeElement?.closest(".text") ?? $("item").querySelector(".text");
  if (!text || !text.firstElementChild) return;
  state.selecting = text;
  text.focus();
  text.classList.add("selecting");
  const selection = getSelection();
  selection.collapse(text.firstElementChild.firstChild ?? text.firstElementChild, 0);
  chooseWord(selection, "right");
  say(t("selecting"));
}

/** Selects the next word on one side of the caret; marks between words are passed over. */
function chooseWord(selection, side) {
  for (let tries = 0; tries < 100; tries++) {
    if (side === "left") selection.modify("move", "left", "word");
    const [node, offset] = [selection.anchorNode, selection.anchorOffset];
    selection.modify("extend", "forward", "word");
    if (/[\p{L}\p{N}]/u.test(selection.toString()) || !state.selecting.contains(selection.focusNode)) return;
    if (side === "left") selection.collapse(node, offset);
    else selection.collapseToEnd();
  }
}

function stopSelecting() {
  if (!state.selecting) return;
  state.selecting.classList.remove("selecting");
  state.selecting = null;
}

function moveSelection(event) {
  const moves = { ArrowRight: ["right", "word"], ArrowLeft: ["left", "word"], ArrowDown: ["forward", "line"], ArrowUp: ["backward", "line"] };
  const move = moves[event.key];
  if (!move) return false;
  const selection = getSelection();
  const before = [selection.anchorNode, selection.anchorOffset, selection.focusNode, selection.focusOffset];
  if (event.shiftKey) {
    selection.modify("extend", ...move);
  } else {
    if (move[1] === "line") {
      selection.collapseToStart();
      selection.modify("move", ...move);
    } else if (event.key === "ArrowLeft") {
      selection.collapseToStart();
    } else {
      selection.collapseToEnd();
    }
    chooseWord(selection, event.key === "ArrowLeft" ? "left" : "right");
  }
  const { anchorNode, focusNode } = selection;
  if (!state.selecting.contains(anchorNode) || !state.selecting.contains(focusNode) || selection.isCollapsed) selection.setBaseAndExtent(...before);
  say(t("selected", { text: selection.toString().trim().slice(0, 200) }));
  return true;
}

// ----------------------------------------------------------------------------------------------------------------- keys

const KEYS = {
  a: () => decide("approved"),
  x: () => decide("approved", { action: "remove" }),
  r: () => decide("rejected"),
  d: redact,
  u: undo,
  j: () => step(1),
  k: () => step(-1),
  ArrowRight: () => step(1),
  ArrowLeft: () => step(-1),
  s: startSelecting,
  o: () => { if ($("duplicates")) $("duplicates").open = !$("duplicates").open; },
  n: () => $("reason").focus(),
  f: () => { $("side").open = true; $("filter-search").focus(); },
  "?": () => $("help").showModal(),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if ($("help").open) return;
  const target = event.target;
  const typing = target.closest("input, select, textarea");
  if (event.key === "Escape") {
    if (state.selecting) {
      getSelection().removeAllRanges();
      stopSelecting();
      say(t("selecting_ended"));
    } else if (typing) {
      ($("item-heading") ?? $("item")).focus();
    }
    return;
  }
  if (typing) return;
  if (state.selecting && moveSelection(event)) return event.preventDefault();
  if (["ArrowDown", "ArrowUp"].includes(event.key) && target.closest("#queue")) {
    const row = target.closest("li");
    (event.key === "ArrowDown" ? row.nextElementSibling : row.previousElementSibling)?.querySelector("button").focus();
    return event.preventDefault();
  }
  if (event.shiftKey && event.key.startsWith("Arrow")) return; // extends the browser's own selection
  if (!$("single-keys").checked && event.key.length === 1 && event.key !== "?") return;
  const does = KEYS[event.key];
  if (does && !event.repeat) {
    event.preventDefault();
    does();
  }
}

// -------------------------------------------------------------------------------------------------------------- polling

/** What was decided since the page last asked, put on it: {touched: examples, by: whose decisions}. */
async function news() {
  const ticket = ++state.heard;
  const { seq, states, by } = await ask(`/api/states?since=${state.seq}`);
  if (ticket !== state.heard) return { touched: [], by: [] };
  const touched = Object.keys(states).map(Number);
  state.seq = seq;
  if (touched.length) {
    take(states);
    refresh();
  }
  return { touched, by };
}

async function poll() {
  if (!document.hidden && !state.busy) {
    try {
      const { touched, by } = await news();
      $("alert").hidden = true;
      $("alert").textContent = "";
      const others = by.filter((one) => !one.mine);
      if (touched.length) {
        const numbers = [...new Set(touched.map((example) => state.itemOf.get(example)))];
        if (others.length) {
          if (numbers.includes(state.current) && state.loaded && !state.busy) await reload();
          say(t("others_decided", { name: [...new Set(others.map((one) => one.reviewer))].join(", "), id: numbers.map((n) => state.items[n].id.slice(0, 60)).slice(0, 3).join(", ") }));
        }
      }
    } catch (error) {
      alarm(error);
    }
  }
  setTimeout(poll, POLL_MS);
}

// ---------------------------------------------------------------------------------------------------------------- start

const narrow = matchMedia("(max-width: 60rem)");

function fillFilters() {
  const add = (name, options) => {
    for (const [value, text] of options) {
      const option = make("option", { value }, text);
      $(`filter-${name}`).append(option);
      if (name === "request") state.requests[value].cells.option = option;
    }
  };
  state.requests.forEach((request, place) => {
    const open = make("button", { type: "button", class: "quiet", on: { click: () => { $("filter-request").value = String(place); onFilter(); } } }, bdi(request.id));
    request.cells = { count: make("td"), meter: make("td", { class: "wide" }) };
    $("request-progress").append(make("tr", {}, make("th", { scope: "row" }, open), request.cells.meter, request.cells.count));
  });
  add("request", state.requests.map((request, place) => [place, request.id]));
  add("category", [...new Set(state.requests.map((request) => request.category))].map((name) => [name, known(`category_${name}`, name)]));
  add("proposal", ["remove", "redact", "review", "keep"].map((name) => [name, t(`proposal_${name}`)]));
  add("state", ["undecided", "decided", "approved", "rejected", "partly"].map((name) => [name, t(`state_${name}`)]));
  add("source", [...new Set(state.items.flatMap((item) => item.sources))].sort().map((name) => [name, name]));
}

function onFilter() {
  state.rendered = RENDERED;
  showQueue();
  if (state.visible.length && !state.visible.includes(state.current)) show(state.visible[0], false);
}

let searching = 0;
function onSearch() {
  clearTimeout(searching);
  searching = setTimeout(async () => {
    const words = $("filter-search").value.trim();
    try {
      state.found = words ? new Set((await ask(`/api/search?q=${encodeURIComponent(words)}`)).items) : null;
    } catch (error) {
      return alarm(error);
    }
    if (words === $("filter-search").value.trim()) onFilter();
  }, 150);
}

function listen() {
  document.addEventListener("keydown", onKey);
  document.addEventListener("selectionchange", labelButtons);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("change", onFilter);
  $("filters").addEventListener("reset", () => setTimeout(() => { state.found = null; onFilter(); }));
  $("filter-search").addEventListener("input", onSearch);
  $("more").addEventListener("click", () => { state.rendered += RENDERED; showQueue(); });
  $("help-open").addEventListener("click", () => $("help").showModal());
  $("help-close").addEventListener("click", () => $("help").close());
  const buttons = { approve: KEYS.a, redact, whole: KEYS.x, reject: KEYS.r, undo, previous: KEYS.k, next: KEYS.j };
  for (const [id, does] of Object.entries(buttons)) {
    $(id).addEventListener("click", () => does());
    $(id).addEventListener("mousedown", (event) => event.preventDefault()); // keeps the selection
  }
  narrow.addEventListener("change", () => ($("side").open = !narrow.matches));
  $("side").open = !narrow.matches;
}

async function start() {
  try {
    state.text = await ask("/api/messages");
    const queue = await ask("/api/queue");
    Object.assign(state, { items: queue.items, requests: queue.requests, seq: queue.seq });
    take(queue.states);
  } catch (error) {
    return alarm(error);
  }
  state.items.forEach((item, n) => item.examples.forEach((example) => state.itemOf.set(example, n)));
  fillFilters();
  listen();
  refresh();
  const first = neighbour(1, true) ?? 0;
  if (state.items.length) await show(first, false);
  else $("item").replaceChildren(make("p", { class: "note" }, t("none_shown")));
  document.body.dataset.ready = "true";
  setTimeout(poll, POLL_MS);
}

start();
