// The page: takes the parts that the stream sends and shows them. Whatever a site named or wrote is set as text, never as markup.
import { bar, el, plot } from "/static/plot.js";
import { DASH, ago, bytes, count, day, number, plural, seconds, share } from "/static/words.js";

const base = location.pathname.replace(/\/+$/, "");
const main = document.getElementById("main"), link = document.getElementById("link");
const parts = {};
let offset = 0; // the watching machine's clock less ours, in seconds
let received = Date.now() / 1000;

const STATES = {
  waiting: "waiting for its first event", running: "running", quiet: "quiet for long", stopped: "stopped without an end",
  done: "done", interrupted: "interrupted", failed: "failed",
};
const pill = (state) => el("span", { class: `pill ${state}` }, STATES[state] ?? state);
const now = () => Date.now() / 1000 + offset;

// ---- building blocks

function section(name, title, ...content) {
  const kept = content.filter(Boolean);
  return kept.length ? el("section", { id: name, "aria-labelledby": `${name}-title` }, el("h2", { id: `${name}-title` }, title), ...kept) : null;
}

function table(label, columns, rows, kind = "") {
  // The roles are said outright: a narrow window shows a table of words as blocks.
  const head = el("tr", { role: "row" }, ...columns.map((text) => el("th", { scope: "col", role: "columnheader" }, text)));
  const body = rows.map(([first, ...rest]) => el("tr", { role: "row" }, el("th", { scope: "row", role: "rowheader" }, first),
    ...rest.map((cell, index) => el("td", { role: "cell", "data-of": columns[index + 1] }, cell))));
  return el("div", { class: `scroll ${kind}`, tabindex: "0", role: "region", "aria-label": label },
    el("table", { class: kind, role: "table" }, el("thead", { role: "rowgroup" }, head), el("tbody", { role: "rowgroup" }, ...body)));
}

function tile(name, figure, small) {
  return el("div", {}, el("dt", {}, name), el("dd", { class: "figure" }, figure), el("dd", { class: "small" }, small ?? ""));
}

const live = (kind, at) => el("span", { class: "live", "data-live": kind, "data-at": at }, "");
const grid = (...figures) => (figures.filter(Boolean).length ? el("div", { class: "grid" }, ...figures.filter(Boolean)) : null);

/** Up to which round a plot goes: to the end of the run, once a third of it is there to see. */
const across = (progress) => (progress?.rounds && 3 * progress.round >= progress.rounds ? progress.rounds : 0);

// ---- the parts of a run

const views = {
  head() {
    const { head, progress } = parts;
    if (!head) return null;
    document.title = `${progress?.rounds ? `${progress.round}/${progress.rounds} ` : ""}${head.name}: ${STATES[head.state] ?? head.state}`;
    const about = [head.task, head.engine && `engine ${head.engine}`, head.rule && `rule ${head.rule}`, head.protection && `protection ${head.protection}`,
      head.parameters && `${count(head.parameters)} parameters`, head.seed !== null && head.seed !== undefined && `seed ${head.seed}`].filter(Boolean);
    const box = el("header", { id: "head" }, el("p", { class: "kicker" }, base ? el("a", { href: "/" }, "all runs") : "", base ? " · " : "", head.folder));
    box.append(el("h1", {}, head.name, " ", pill(head.state)));
    if (head.state === "waiting") box.append(el("p", { class: "verdict" }, "There is no event yet. The page fills when the run begins."));
    if (head.state === "stopped") box.append(el("p", { class: "notice" }, "No process works on this run, and its events do not say how it ended: it was killed, or the machine went down. It can be resumed."));
    if (head.state === "quiet") box.append(el("p", { class: "notice" }, "Nothing has been told for a long time. It cannot be seen from here whether a process still works on it."));
    if (head.end?.message && head.state !== "done") box.append(el("p", { class: `notice ${head.state}`, role: "alert" }, head.end.message, head.end.code ? ` (${head.end.code})` : ""));
    head.sentences.forEach((text, index) => box.append(el("p", { class: index ? "price" : "verdict" }, text)));
    if (about.length) box.append(el("p", { class: "note" }, about.join(" · ")));
    if (head.reading !== null) box.append(el("p", { class: "note", role: "status" }, `Reading what happened so far: ${share(head.reading)}`));
    if (head.unreadable) box.append(el("p", { class: "notice" }, `${plural(head.unreadable, "line")} of the events could not be read and ${head.unreadable === 1 ? "was" : "were"} passed over.`));
    return box;
  },

  progress() {
    const { progress: p, head, curves, privacy, traffic, sites } = parts;
    if (!p || !head || head.state === "waiting") return null;
    const tiles = el("dl", { class: "tiles" });
    const running = head.state === "running";
    tiles.append(tile("Rounds", p.rounds ? `${count(p.round)} of ${count(p.rounds)}` : count(p.round), p.doing ? `round ${p.doing}: ${p.phase === "evaluate" ? "evaluating" : "training"}` : ""));
    tiles.append(running
      ? tile("Time left", p.left_s === null ? "not known yet" : live("left", p.left_s), p.pace_s === null ? "" : `${seconds(p.pace_s)} a round`)
      : tile("Took", seconds(p.elapsed_s), p.pace_s === null ? "" : `${seconds(p.pace_s)} a round`));
    if (p.doing) {
      const small = el("span", {}, p.refused ? `${p.refused} refused; ` : "", sites?.awaited_count ? `awaiting ${sites.awaited.slice(0, 3).join(", ")}${sites.awaited_count > 3 ? ` +${sites.awaited_count - 3}` : ""}` : "");
      tiles.append(tile(`Heard in this ${p.phase === "evaluate" ? "evaluation" : "round"}`, p.asked === null ? count(p.heard) : `${count(p.heard)} of ${count(p.asked)}`, small));
    } else if (traffic) {
      tiles.append(tile("Updates used", `${count(traffic.answered)} of ${count(traffic.asked)}`, sites ? `${plural(sites.total, "site")}` : ""));
    }
    for (const one of (curves?.lead ?? []).slice(0, 1))
      tiles.append(tile(one.label, one.text, `${one.where}${one.records ? `, n = ${count(one.records)}` : ""}${one.interval ? `, 95%: ${one.interval.join(" to ")}` : ""}`));
    if (privacy) tiles.append(tile("ε spent", number(privacy.spent), `${(privacy.allowed ?? null) === null ? "" : `of ${number(privacy.allowed)} allowed; `}${privacy.at ? `after round ${count(privacy.at)}; ` : ""}unit: ${privacy.unit}`));
    if (traffic) tiles.append(tile("Traffic", bytes(traffic.down + traffic.up), `${bytes(traffic.down)} down, ${bytes(traffic.up)} up`));
    const last = el("p", { class: "note" }, "Last event: ", p.newest === null ? DASH : live("ago", p.newest), p.begun ? ` · begun ${day(p.begun)}` : "");
    const bar = p.rounds ? el("progress", { max: p.rounds, value: p.round, "aria-label": `${p.round} of ${p.rounds} rounds` }) : null;
    return el("section", { id: "progress", "aria-label": "Progress" }, ...[bar, tiles, last].filter(Boolean));
  },

  curves() {
    const { curves: c, progress } = parts;
    if (!c) return null;
    const format = (one) => (one.share ? share : number), until = across(progress);
    const figures = c.metrics.map((one) => plot({ title: one.label, format: format(one), until,
      series: one.series.map((line, index) => ({ ...line, kind: index || one.series.length === 1 ? "line" : "thick" })) }));
    let sites = null;
    if (c.sites) {
      const few = c.sites.count <= 8;
      sites = plot({
        title: `${c.sites.label} of each site`, more: "on its own test records", format: format(c.sites), until,
        band: few ? null : c.sites.band,
        series: few ? c.sites.lines.map((one) => ({ ...one, kind: "line" })) : [{ name: "middle site", points: c.sites.band.middle }],
      });
    }
    const loss = plot({ title: "Training loss", more: "mean of the sites", format: number, until, series: [{ name: "training loss", points: c.training_loss }] });
    const norm = plot({ title: "Size of the step", more: "L2 norm of what the round added", format: number, until, zero: true, series: [{ name: "norm", points: c.update_norm }] });
    const first = grid(figures[0], sites, loss, norm), others = figures.slice(1).filter(Boolean);
    const more = others.length ? el("details", { class: "more", "data-keep": "more-metrics" }, el("summary", {}, `${plural(others.length, "more metric")}`), grid(...others)) : null;
    return section("curves", "What is learned", first, more);
  },

  sites() {
    const { sites: s, progress, head } = parts;
    if (!s || !s.listed.length) return null;
    const has = (key) => s.listed.some((one) => one[key] !== null && one[key] !== undefined);
    const columns = ["Site", progress?.doing ? "This round" : "Last", "Last seen", "Answered", "Refused", "Missing", "Seconds a round", "Down / up"];
    if (s.measure && has("measured")) columns.push(s.measure);
    if (has("epsilon")) columns.push(`ε of this run${parts.privacy?.sites_at ? ` (round ${parts.privacy.sites_at})` : ""}`);
    if (has("ledger")) columns.push("ε on its ledger");
    if (has("cap")) columns.push("Its cap");
    const rows = s.listed.map((one) => {
      const cells = [one.site, el("span", { class: `now ${one.now}` }, one.now || DASH), one.seen === null ? "never" : live("ago", one.seen), `${count(one.answered)} of ${count(one.asked)}`,
        count(one.refused), count(one.missing), seconds(one.seconds), `${bytes(one.down)} / ${bytes(one.up)}`];
      if (s.measure && has("measured")) cells.push(one.measured ? `${one.measured.text} (n = ${count(one.measured.records)})` : DASH);
      if (has("epsilon")) cells.push(number(one.epsilon));
      if (has("ledger")) cells.push(number(one.ledger));
      if (has("cap")) cells.push(number(one.cap));
      return cells;
    });
    const note = s.cut ? el("p", { class: "note" }, `${count(s.cut)} more ${head?.nouns ?? "sites"} are not listed; those that were refused or missing come first.`) : null;
    return section("sites", `Sites (${count(s.total)})`, table("Sites", columns, rows), note);
  },

  privacy() {
    const p = parts.privacy;
    if (!p) return null;
    const until = parts.progress?.rounds ?? 0;
    const figure = plot({
      title: "ε by round", more: "of the site that spent most", format: number, zero: true, until,
      series: [{ name: "spent", points: p.history }, { name: "if asked in every round that is left", points: p.projection, kind: "dash", color: 0 }],
      levels: [{ name: "allowed by the federation file", value: p.allowed ?? NaN }, { name: "smallest cap of a site, over all its runs", value: p.cap ?? NaN }],
    });
    const listed = (parts.sites?.listed ?? []).filter((one) => one.epsilon !== null && one.epsilon !== undefined).slice(0, 24);
    const scale = Math.max(...listed.flatMap((one) => [one.epsilon, one.ledger ?? 0, one.cap ?? 0]), p.allowed ?? 0, 1e-9);
    const bars = listed.length ? el("figure", {}, el("figcaption", {}, "ε by site", el("span", {}, ` of this run after round ${count(p.sites_at)}, against its cap`)), el("div", { class: "bars" },
      ...listed.map((one) => el("div", {}, el("span", {}, one.site),
        bar(`ε of ${one.site}: ${number(one.epsilon)}`, one.epsilon, scale, one.cap ?? NaN),
        el("span", {}, `${number(one.epsilon)}${one.ledger !== null ? `; ledger ${number(one.ledger)}` : ""}${one.cap !== null ? ` of ${number(one.cap)}` : ""}`))))) : null;
    const words = [p.at_end !== null && p.at_end !== undefined ? `A site that is asked in every round that is left will have spent ε = ${number(p.at_end)} at the end.` : "", p.delta ? `δ = ${p.delta}.` : "",
      p.refused ? `The accountant gives no figure: ${p.refused}` : ""].filter(Boolean).join(" ");
    return section("privacy", "Privacy spent", grid(figure, bars), words ? el("p", { class: "note" }, words) : null,
      p.statement ? el("details", { "data-keep": "statement" }, el("summary", {}, "What this promises, and what not"), el("p", {}, p.statement)) : null);
  },

  refused() {
    const r = parts.refused;
    if (!r) return null;
    if (!r.total) return section("refused", "Refused updates", el("p", { class: "note" }, "None."));
    return section("refused", `Refused updates (${count(r.total)})`, table("Refusals by reason", ["Reason", "Times"], r.by_reason.map(([reason, times]) => [reason, count(times)])),
      el("details", { "data-keep": "refusals" }, el("summary", {}, `The newest ${count(r.newest.length)}`),
        table("Newest refusals", ["Site", "Round", "Phase", "Reason"], r.newest.map((one) => [one.site, count(one.round), one.phase, one.reason]), "words")));
  },

  signals() {
    const s = parts.signals;
    if (!s) return null;
    const alerts = s.alerts.length
      ? table("Who stood out", ["Who", "In what", "Figure", "Middle of the others", "Told in round"], s.alerts.map((one) => [one.who, one.signal, number(one.value), number(one.middle), count(one.round)]))
      : el("p", { class: "note" }, s.rows.length ? "Nobody has stood out over several rounds." : "The server sees sums over all sites only, of which none can stand out.");
    const rows = s.rows.length ? el("details", { "data-keep": "signal-rows" }, el("summary", {}, `Round ${s.round}, each update${s.toward ? ` (cosine to ${s.toward})` : ""}`),
      table("Signals of the round", ["Who", "Norm", "Cosine", "Agreement of signs", "Weight"], s.rows.map((one) => [one.who, number(one.norm), number(one.cosine), share(one.agreement), number(one.weight)]))) : null;
    const figure = plot({ title: "Cosine of each step to the last", format: number, until: across(parts.progress), series: [{ name: "cosine", points: s.cosine }] });
    const odd = s.alerts.length ? el("p", { class: "note" }, "Standing out is no proof: a site whose data are unlike the others' does so as well. Nothing was done about it.") : null;
    return section("signals", "Signals of the updates", alerts, odd, grid(figure), rows);
  },

  traffic() {
    const t = parts.traffic;
    if (!t || !t.seconds.length) return null;
    const until = across(parts.progress), total = t.seconds.reduce((sum, one) => sum + one.seconds, 0);
    const time = plot({ title: "Seconds of each round", more: "by phase", format: seconds, zero: true, until, series: t.seconds.map((one) => ({ name: one.phase, points: one.points })) });
    const moved = plot({ title: "Traffic of each round", format: bytes, zero: true, until, series: [{ name: "down to the sites", points: t.by_round.down }, { name: "up from the sites", points: t.by_round.up }] });
    const rows = t.seconds.map((one) => [one.phase, seconds(one.seconds), total ? share(one.seconds / total) : DASH]);
    return section("traffic", "Time and traffic", grid(time, moved), table("Time by phase", ["Phase", "Time", "Share"], rows));
  },

  seen() {
    const seen = parts.seen;
    if (!seen?.length) return null;
    const list = (one) => el("ul", {}, ...one.sees.map((text) => el("li", {}, text)));
    return section("seen", "Who sees what", table("Who sees what", ["Who", "Can learn", "Cannot"], seen.map((one) => [one.who, list(one), one.hidden]), "words"));
  },

  audits() {
    const found = parts.audits;
    if (!found) return null;
    if (!found.length) return section("audits", "Audits", el("p", { class: "note" }, "None yet: cloister audit looks at a run when it is done."));
    const verdict = (text) => el("span", { class: `verdict-${/^(pass|passed|consistent)/.test(text) ? "good" : /^(fail|refuted)/.test(text) ? "bad" : "open"}` }, text);
    return section("audits", "Audits", table("Audits", ["Check", "Verdict", "Finding", "What it could have shown"], found.map((one) => [one.check, verdict(one.verdict), one.sentence, one.power]), "words"));
  },

  warnings() {
    const found = parts.warnings;
    return found?.length ? section("warnings", `Warnings (${count(found.length)})`, el("ul", { class: "warnings" }, ...found.map((text) => el("li", {}, text)))) : null;
  },
};

function runs() {
  const { folder, rows, cut } = parts.runs;
  document.title = `cloister watch: ${rows.length} runs`;
  const lines = rows.map((one) => [el("a", { href: `/runs/${encodeURIComponent(one.key)}` }, one.folder), pill(one.state), one.rounds === null ? DASH : `${count(one.round)} of ${count(one.rounds)}`,
    count(one.sites), one.accuracy === null ? DASH : share(one.accuracy), one.newest === null ? DASH : live("ago", one.newest), day(one.begun)]);
  return [el("header", { id: "head" }, el("p", { class: "kicker" }, folder), el("h1", {}, "Runs")),
    rows.length ? table("Runs", ["Run", "State", "Rounds", "Sites", "Accuracy", "Last event", "Begun"], lines) : el("p", { class: "verdict" }, "There is no run in this folder yet."),
    cut ? el("p", { class: "note" }, `${count(cut)} older runs are not listed.`) : null];
}

// ---- putting it on the page

const ORDER = ["head", "progress", "curves", "sites", "privacy", "refused", "signals", "audits", "warnings", "traffic", "seen"];
const NEEDS = {
  head: ["head", "progress"], progress: ["progress", "head", "curves", "privacy", "traffic", "sites"], curves: ["curves", "progress"], sites: ["sites", "progress", "head", "privacy"],
  privacy: ["privacy", "sites", "progress"], signals: ["signals", "progress"], traffic: ["traffic", "progress"],
};
const slots = new Map();

function put(name, made) {
  const old = slots.get(name) ?? main.appendChild(el("div", { "data-part": name }));
  const open = new Set([...old.querySelectorAll("details[open][data-keep]")].map((one) => one.dataset.keep));
  const places = [...old.querySelectorAll(".scroll")].map((one) => [one.getAttribute("aria-label"), one.scrollLeft, one.scrollTop]);
  old.replaceChildren(...(made ? [made].flat().filter(Boolean) : []));
  for (const one of old.querySelectorAll("details[data-keep]")) if (open.has(one.dataset.keep)) one.open = true;
  for (const [label, left, top] of places) for (const one of old.querySelectorAll(".scroll")) if (one.getAttribute("aria-label") === label) one.scrollTo(left, top);
  slots.set(name, old);
}

/** A part under the pointer's plot or with the keyboard's focus waits until it is left. */
const held = (name) => {
  const slot = slots.get(name), active = document.activeElement;
  return Boolean(slot && ((active && active !== document.body && slot.contains(active)) || slot.querySelector("svg:hover")));
};
const waiting = new Set();

function draw(changed) {
  if (parts.runs) { for (const name of ORDER) if (slots.has(name)) put(name, null); put("runs", runs()); tick(); return; }
  if (slots.has("runs")) put("runs", null);
  for (const name of ORDER) {
    if (!slots.has(name) || (NEEDS[name] ?? [name]).some((part) => changed.has(part))) waiting.add(name);
  }
  for (const name of [...waiting]) if (!held(name)) { waiting.delete(name); put(name, views[name]()); }
  tick();
}

function tick() {
  for (const one of document.querySelectorAll("[data-live]")) {
    const at = Number(one.dataset.at);
    one.textContent = one.dataset.live === "ago" ? ago(at, now()) : seconds(Math.max(0, Math.round(at - (Date.now() / 1000 - received))));
  }
}

setInterval(() => { if (waiting.size) draw(new Set()); else tick(); }, 1000);

function listen() {
  const source = new EventSource(`${base}/stream`);
  source.addEventListener("parts", (event) => {
    const sent = JSON.parse(event.data);
    Object.assign(parts, sent);
    received = Date.now() / 1000;
    if (sent.progress) offset = sent.progress.now - received;
    link.textContent = "";
    main.dataset.updates = String(1 + Number(main.dataset.updates ?? 0));
    draw(new Set(Object.keys(sent)));
  });
  source.onerror = () => {
    link.textContent = "The watcher does not answer: it has ended, or the way to it is broken. This page goes on by itself when it is back.";
    if (source.readyState === EventSource.CLOSED) { source.close(); setTimeout(listen, 5000); }
  };
}
listen();
