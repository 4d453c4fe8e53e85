// The inspector's page. Everything that comes from a node is put in as text, never as markup.

const KINDS = ["connection", "subscription", "channel", "member", "cache", "event", "client_event", "api", "refusal"];
const MAX_LINES = 500;
const REFRESH_MS = 5000;
const RETRY_MS = 3000;
const FIGURES = [
  ["connections", "connections"], ["subscriptions", "subscriptions"], ["channels", "channels"],
  ["publishes_per_s", "publishes / s"], ["deliveries_per_s", "deliveries / s"],
  ["client_events_per_s", "client events / s"], ["http_requests_per_s", "API requests / s"],
  ["loop_lag_s", "loop late by"], ["fanout_lag_s", "fan-out took"], ["ready_wait_s", "unread for"],
  ["cache_entries", "cached values"], ["cache_bytes", "cached bytes"],
  ["cache_hits_per_s", "cache hits / s"], ["cache_misses_per_s", "cache misses / s"],
  ["slow_connections", "slow connections"], ["outbox_bytes", "bytes waiting"],
  ["conflated_per_s", "conflated / s"], ["slow_closes_per_s", "slow closed / s"],
  ["webhook_events", "webhook events waiting"], ["webhooks_failed_per_s", "webhooks failed / s"],
  ["refusals_per_s", "refusals / s"], ["users", "signed-in users"],
];

const ENDED = "The session has ended: show the token once more.";
const $ = (id) => document.getElementById(id);
const view = $("view");
let csrf = "";
let fields = [];
let fine = [];
let coarse = [];
let span = "fine";
let stream = null;
let retry = 0;
let redraw = null;
let refresh = null;
let drawn = 0;

/** Text in which nothing is invisible or turns the direction of what follows. */
const plain = (text) => String(text).replace(/[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g,
  (found) => `\\u${found.charCodeAt(0).toString(16).padStart(4, "0")}`);

/** An element with attributes and children; strings become text. */
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined).map((child) => child instanceof Node ? child : plain(child)));
  return made;
}

/** The worker that is looked into; nothing for all of them, or where the node is one process. */
const worker = () => $("worker").value;

async function ask(path, query = {}) {
  const text = new URLSearchParams(Object.entries({ ...query, worker: worker() }).filter(([, value]) => value !== "" && value !== null && value !== undefined));
  return read(await fetch(`/inspector/api/${path}?${text}`, { credentials: "same-origin" }));
}

async function act(path, body) {
  return read(await fetch(`/inspector/api/${path}?${new URLSearchParams({ worker: worker() })}`, {
    method: "POST", credentials: "same-origin", body: JSON.stringify(body),
    headers: { "Content-Type": "application/json", "X-Cachecast-CSRF": csrf },
  }));
}

async function read(answer) {
  if (answer.status === 401) { show(false, ENDED); throw new Error(ENDED); }
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

/** Have an action confirmed by the name of what it concerns. */
function confirmed(text, word) {
  const dialog = $("ask");
  $("ask-text").textContent = plain(`${text}: ${word}`);
  $("ask-word").value = "";
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "yes" ? $("ask-word").value : null);
  });
}

function number(value) {
  return Math.abs(value) >= 100 || Number.isInteger(value) ? Math.round(value).toLocaleString("en") : value.toFixed(1);
}

function seconds(value) {
  if (value === 0) return "0 s";
  if (value < 0.001) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${(value * 1000).toFixed(1)} ms`;
  if (value < 119.5) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
  value = Math.round(value);
  if (value < 7200) return `${Math.floor(value / 60)} min ${value % 60} s`;
  return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
}

function bytes(value) {
  for (const unit of ["B", "KiB", "MiB"]) {
    if (value < 1024) return `${unit === "B" ? value : value.toFixed(1)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(1)} GiB`;
}

function shown(name, value) {
  return name.endsWith("_bytes") ? bytes(value) : name.endsWith("_s") && !name.endsWith("_per_s") ? seconds(value) : number(value);
}

const counts = (refusals) => Object.entries(refusals).map(([code, n]) => `${code === "null" ? "no code" : code}: ${number(n)}`).join(", ");

function curve(values) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 100 36");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const most = Math.max(...values, 1e-9);
  const line = document.createElementNS(space, "polyline");
  const step = 100 / Math.max(1, values.length - 1);
  line.setAttribute("points", values.map((value, at) => `${(at * step).toFixed(2)},${(34 - 32 * value / most).toFixed(2)}`).join(" "));
  svg.append(line);
  return svg;
}

// --- views

function overview() {
  const grid = make("div", { class: "figures" });
  const parts = make("div", { class: "table" });
  const apps = make("div", { class: "table" });
  const choice = make("select", { id: "span", onchange: (event) => { span = event.target.value; draw(); } },
    make("option", { value: "fine", selected: span === "fine" }, "two minutes"),
    make("option", { value: "coarse", selected: span === "coarse" }, "an hour"));
  view.replaceChildren(make("div", { class: "bar" }, make("label", {}, "Curves of", choice)), grid, parts, make("h2", {}, "Apps"), apps);
  function draw() {
    const rows = span === "fine" ? fine : coarse;
    const newest = fine.at(-1);
    if (!newest) return;
    grid.replaceChildren(...FIGURES.map(([name, label]) => {
      const at = fields.indexOf(name);
      const values = rows.map((row) => row[at]);
      return make("div", { class: "figure" }, make("span", {}, label), make("b", {}, shown(name, newest[at])),
        curve(values), make("span", {}, `most ${shown(name, Math.max(...values, newest[at]))}`));
    }));
  }
  redraw = draw;
  refresh = () => guarded(load());
  draw();
  return load();
  async function load() {
    const found = await ask("overview");
    fields = found.fields; fine = found.fine; coarse = found.coarse;
    draw();
    parts.replaceChildren(...processes(found));
    const refused = counts(found.refusals);
    const isShared = found.apps.some((app) => app.connections_everywhere !== null);
    apps.replaceChildren(table(["app", "connections", ...(isShared ? ["on all nodes"] : []), "users", "cached", "bytes", "hits", "misses", "refusals"],
      found.apps.map((app) => [app.id, number(app.connections), ...(isShared ? [number(app.connections_everywhere ?? 0)] : []), number(app.users), number(app.cache_entries),
        bytes(app.cache_bytes), number(app.cache_hits), number(app.cache_misses),
        counts(app.refusals)])),
    make("p", { class: "soft" }, `Cachecast ${found.version}` + (found.is_draining ? ", draining" : "")
      + (found.outage ? `, other nodes: ${found.outage}` : "") + (refused ? `. Refused, of no app: ${refused}` : "")),
    ...found.engines.map((engine) => make("p", { class: engine.is_up ? "good" : "bad" },
      `Engine ${engine.name}: ${engine.is_up ? `up, joins ${engine.nodes} nodes or workers, answers in ${seconds(engine.latency_s)}` : "down"}`)));
  }
}

/** Each worker with its own figures, where there are several and all are looked into. */
function processes(found) {
  const of = found.workers;
  if (!of) return [];
  const names = ["connections", "subscriptions", "publishes_per_s", "deliveries_per_s", "loop_lag_s", "ready_wait_s", "outbox_bytes"];
  return [make("h2", {}, "Workers"), table(["worker", ...names.map((name) => FIGURES.find(([field]) => field === name)[1])],
    Array.from({ length: $("worker").options.length - 1 }, (_, at) => {
      const newest = of[at + 1]?.at(-1);
      return [at + 1, ...names.map((name) => newest ? shown(name, newest[fields.indexOf(name)]) : make("span", { class: "bad" }, "no answer"))];
    }))];
}

function table(heads, rows) {
  return make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, cell ?? ""))))));
}

function livePage() {
  const log = make("ol", { class: "log", tabindex: "0", "aria-label": "What happens", role: "log", "aria-live": "off" });
  const left = make("span", { class: "soft", role: "status" });
  let n_left = 0;
  let paused = false;
  const fieldsOf = Object.fromEntries(["channel", "socket", "user"].map((name) =>
    [name, make("input", { name, placeholder: name === "channel" ? "name, or prefix*" : "", spellcheck: "false" })]));
  const ticks = KINDS.map((kind) => make("label", { class: "tick" }, make("input", { type: "checkbox", value: kind, checked: true }), kind.replace("_", " ")));
  const pause = make("button", { type: "button", "aria-pressed": "false", onclick: () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Go on" : "Pause";
  } }, "Pause");
  const bar = make("form", { class: "bar", onchange: begin, onsubmit: (event) => { event.preventDefault(); begin(); } },
    ...Object.entries(fieldsOf).map(([name, input]) => make("label", {}, name, input)), ...ticks, pause,
    make("button", { type: "button", onclick: () => { log.replaceChildren(); n_left = 0; left.textContent = ""; } }, "Clear"), left);
  view.replaceChildren(bar, log);
  begin();
  function begin() {
    const kinds = ticks.map((tick) => tick.firstChild).filter((box) => box.checked).map((box) => box.value);
    const query = new URLSearchParams({ app: $("app").value });
    if (kinds.length < KINDS.length) for (const kind of kinds.length ? kinds : ["refusal"]) query.append("kind", kind);
    for (const [name, input] of Object.entries(fieldsOf)) if (input.value.trim()) query.append(name, input.value.trim());
    listen(query, ({ worker, happenings, left_out }) => {
      for (const n of Object.values(left_out)) n_left += n;
      if (n_left) left.textContent = `${number(n_left)} more were not shown`;
      if (paused) return;
      const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      log.append(...happenings.map((said) => line(said, worker)));
      while (log.childElementCount > MAX_LINES) log.firstChild.remove();
      if (atEnd) log.scrollTop = log.scrollHeight;
    });
  }
}

function line(said, worker) {
  const facts = [worker && `worker ${worker}`, said.what, said.channel, said.event && `“${said.event}”`, said.user_id && `user ${said.user_id}`, said.socket_id,
    said.n_bytes !== undefined && bytes(said.n_bytes), said.code, said.text, said.data].filter((fact) => fact !== undefined && fact !== false && fact !== null);
  const at = new Date(said.at * 1000);
  return make("li", { class: said.kind === "refusal" ? "refusal" : null },
    make("time", { datetime: at.toISOString(), class: "soft" }, at.toTimeString().slice(0, 8) + "." + String(at.getMilliseconds()).padStart(3, "0")),
    make("span", {}, said.kind.replace("_", " ")), make("span", {}, ...facts.flatMap((fact, at) => [at ? " · " : "", make("bdi", {}, fact)])));
}

/** A list with search, order and pages. */
function listing(path, orders, heads, row, extra = {}, note = null) {
  const body = make("div", { class: "table" });
  const search = make("input", { type: "search", name: "search", spellcheck: "false" });
  const sort = make("select", {}, ...orders.map((order) => make("option", { value: order }, order)));
  const count = make("span", { class: "soft", role: "status" });
  const more = make("button", { type: "button", onclick: () => load(next) }, "Next page");
  const about = make("p", { class: "soft" });
  let next = null;
  let isFirst = true;
  redraw = null;
  refresh = () => { if (isFirst && !body.contains(document.activeElement) && !body.querySelector("details[open]")) load(null); };
  view.replaceChildren(make("form", { class: "bar", onsubmit: (event) => { event.preventDefault(); load(null); }, onchange: () => load(null) },
    make("label", {}, "search", search), orders.length > 1 ? make("label", {}, "order", sort) : null,
    make("button", {}, "Refresh"), count), about, body, more);
  async function load(after) {
    const found = await guarded(ask(path, { app: $("app").value, search: search.value, sort: orders.length > 1 ? sort.value : "", after: after && JSON.stringify(after), ...extra }));
    if (!found) return;
    if (note) about.textContent = await guarded(note()) ?? "";
    isFirst = !after;
    next = found.next;
    more.hidden = !next;
    count.textContent = `${number(found.found)} found` + (found.is_cut ? "; choose a worker for further pages" : "");
    const isOfAll = found.items.some((item) => item.worker);
    body.replaceChildren(table(isOfAll ? ["worker", ...heads] : heads, found.items.map((item) => {
      const cells = row(item, () => load(null));
      return isOfAll ? [item.worker, ...cells] : cells;
    })));
  }
  return load(null);
}

const channels = () => listing("channels", ["name", "subscriptions", "undelivered"], ["channel", "subscriptions", "members", "undelivered", ""],
  (item) => [item.name, number(item.subscriptions), item.members === null ? "" : number(item.members), bytes(item.undelivered_bytes),
    item.members === null ? "" : make("button", { type: "button", onclick: () => listing("members", ["id"], ["member", ""],
      (member, reload) => [member.id, disconnect("user_id", member.id, "Disconnect all connections of the user", reload)], { channel: item.name }) }, "Members")]);

const cache = () => listing("cache", ["name", "newest", "remaining", "size"], ["channel", "age", "remaining", "size", "value"],
  (item) => [item.name, seconds(item.age_s), make("div", {}, make("div", {}, seconds(item.remaining_s)), make("progress", { max: item.lives_s, value: item.remaining_s, "aria-label": `${Math.round(item.remaining_s)} seconds remain` })), bytes(item.bytes), item.data ?? ""], {}, async () => {
    const app = (await ask("overview")).apps.find(({ id }) => id === $("app").value);
    return app ? `${number(app.cache_hits)} of those who joined were given a value, ${number(app.cache_misses)} found none. The bars run out when values do.` : "";
  });

const connections = () => listing("connections", ["newest", "oldest", "waiting", "subscriptions"],
  ["socket", "user", "open for", "silent for", "subscriptions", "waiting", "conflated", ""],
  (item, reload) => [item.socket_id, item.user_id ?? "", seconds(item.open_s), seconds(item.silent_s),
    make("details", {}, make("summary", {}, number(item.subscriptions)), item.channels.join(", ") + (item.subscriptions > item.channels.length ? ", …" : "")),
    bytes(item.waiting_bytes), number(item.conflated), make("div", { class: "actions" }, disconnect("socket_id", item.socket_id, "Disconnect the connection", reload),
      item.user_id === null ? null : disconnect("user_id", item.user_id, "Disconnect all connections of the user", reload, "Disconnect user"))]);

function disconnect(field, id, text, reload, label = "Disconnect") {
  return make("button", { type: "button", class: "danger", onclick: async () => {
    const confirm = await confirmed(text, id);
    if (confirm === null) return;
    const done = await guarded(act("disconnect", { app: $("app").value, [field]: id, confirm }));
    if (done) { say(done.closed ? `${done.closed} disconnected` : "0 disconnected: nobody is signed in as that user"); reload(); }
  } }, label);
}

async function webhooks() {
  const body = make("div");
  view.replaceChildren(body);
  refresh = load;
  return load();
  async function load() {
    const found = await guarded(ask("webhooks", { app: $("app").value }));
    if (found) body.replaceChildren(...receivers(found));
  }
}

const receivers = (found) => [make("p", { class: "soft" }, "Events: " + (Object.entries(found.events).map(([name, n]) => `${name} ${number(n)}`).join(", ") || "none yet")),
    make("div", { class: "table" }, found.urls.length ? table(["receiver", "waiting", "under way", "state"], found.urls.map((url) => [url.place, number(url.n_waiting), number(url.n_under_way),
      url.failure === null ? make("span", { class: "good" }, "accepts") : make("span", { class: "bad" }, `failing for ${seconds(url.failing_for_s)}: ${url.failure}`)]))
      : make("p", {}, "This app has no webhooks."))];

function publish() {
  const inputs = { channel: make("input", { required: true, spellcheck: "false" }), event: make("input", { required: true, value: "test" }), data: make("textarea", { spellcheck: "false" }, '{"hello":"world"}') };
  view.replaceChildren(make("form", { class: "publish", onsubmit: send }, make("p", { class: "soft" }, "A test event reaches everybody in the channel, and is cached if it is a cache channel."),
    ...Object.entries(inputs).map(([name, input]) => make("label", {}, name, input)), make("div", {}, make("button", { class: "danger" }, "Publish"))));
  async function send(event) {
    event.preventDefault();
    const confirm = await confirmed("Publish to the channel", inputs.channel.value);
    if (confirm === null) return;
    let data = inputs.data.value;
    try { data = JSON.parse(data); } catch { /* text is data too */ }
    if (await guarded(act("publish", { app: $("app").value, channel: inputs.channel.value, event: inputs.event.value, data, confirm }))) say("published");
  }
}

// --- the frame

const VIEWS = { overview, console: livePage, channels, cache, connections, webhooks, publish };

async function guarded(promise) {
  try { return await promise; } catch (error) { say(error.message, true); return null; }
}

function say(text, isBad = false) {
  $("state").textContent = text;
  $("state").classList.toggle("bad", isBad);
}

function listen(query, onConsole) {
  hush();
  if (worker()) query.set("worker", worker());
  const url = `/inspector/api/live?${query}`;
  const mine = stream = new EventSource(url);
  stream.onopen = () => say("live");
  stream.onerror = ({ target }) => {
    say("not connected, trying again", true);
    // A refusal is final for a browser, and it does not say why.
    if (target.readyState === EventSource.CLOSED) retry = setTimeout(again, RETRY_MS);
  };
  async function again() {
    const cut = new AbortController();
    try {
      const answer = await fetch(url, { credentials: "same-origin", signal: cut.signal });
      if (stream !== mine) return cut.abort();
      if (answer.ok) { cut.abort(); return listen(query, onConsole); }
      if (answer.status === 401) return show(false, ENDED);
      say((await answer.text()).trim(), true);
    } catch { /* nobody is there */ }
    if (stream === mine) retry = setTimeout(again, RETRY_MS);
  }
  stream.addEventListener("figures", (event) => {
    fine.push(JSON.parse(event.data));
    if (fine.length > 61) fine.shift();
    if (redraw && Date.now() - drawn > 900) { drawn = Date.now(); redraw(); }
  });
  if (onConsole) stream.addEventListener("console", (event) => onConsole(JSON.parse(event.data)));
}

/** Hear nothing more. */
function hush() {
  stream?.close();
  stream = null;
  clearTimeout(retry);
}

function go() {
  const name = Object.hasOwn(VIEWS, location.hash.slice(1)) ? location.hash.slice(1) : "overview";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  redraw = refresh = null;
  if (name !== "console") listen(new URLSearchParams({ console: "0" }), null);
  return guarded(Promise.resolve().then(VIEWS[name]));
}

function show(isIn, fault = "") {
  $("inside").hidden = !isIn;
  $("entry").hidden = isIn;
  $("entry-fault").textContent = fault;
  if (!isIn) { hush(); refresh = null; view.replaceChildren(); $("token").focus(); }
}

async function begin() {
  const answer = await fetch("/inspector/api/session", { credentials: "same-origin" });
  if (answer.status === 401) return show(false);
  const session = await read(answer);
  csrf = session.csrf;
  if (session.workers > 1 && !$("worker").options.length) {
    $("worker").replaceChildren(make("option", { value: "" }, "all workers"), ...Array.from({ length: session.workers }, (_, at) => make("option", { value: at + 1 }, `worker ${at + 1}`)));
    $("worker").parentElement.hidden = false;
  }
  const found = await ask("overview");
  fields = found.fields; fine = found.fine; coarse = found.coarse;
  $("app").replaceChildren(...found.apps.map((app) => make("option", { value: app.id }, app.id)));
  show(true);
  return go();
}

$("enter").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await fetch("/inspector/session", { method: "POST", body: new URLSearchParams(new FormData(event.target)), credentials: "same-origin", redirect: "manual" });
  $("token").value = "";
  $("entry-fault").textContent = "";
  if (answer.type === "opaqueredirect" || answer.ok) return begin();
  $("entry-fault").textContent = (await answer.text()).trim();
});
$("leave").addEventListener("click", async () => { await guarded(act("leave", {})); show(false); });
$("app").addEventListener("change", go);
$("worker").addEventListener("change", () => guarded(begin()));
addEventListener("hashchange", () => { go(); view.focus(); });
setInterval(() => { if (refresh && !document.hidden && !$("ask").open) refresh(); }, REFRESH_MS);
begin().catch((error) => { show(true); say(error.message, true); });
