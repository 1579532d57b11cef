// Fills the page from its content: parts, methods, charts, the table of runs and a run's details.

const content = JSON.parse(document.getElementById("content").textContent);
const STATE = "results-page";
const state = remembered();
let views = []; // Vega views of the part that is shown, with how to draw them again

function remembered() {
  // A reload by the server's page keeps what is open; a file:// page may not have storage.
  try { return JSON.parse(sessionStorage.getItem(STATE)) ?? {}; } catch { return {}; }
}

function remember() {
  state.scroll = window.scrollY;
  try { sessionStorage.setItem(STATE, JSON.stringify(state)); } catch { /* nothing to keep it in */ }
}

function kept(name) {
  state[name] ??= {};
  return state[name];
}

// ---------------------------------------------------------------- light and dark

const systemDark = window.matchMedia("(prefers-color-scheme: dark)");

function applyTheme() {
  let chosen = null;
  try { chosen = localStorage.getItem(`${STATE}-theme`); } catch { /* the system's then */ }
  document.documentElement.dataset.theme = chosen ?? (systemDark.matches ? "dark" : "light");
}

function switchTheme() {
  const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem(`${STATE}-theme`, next); } catch { /* lasts until the page closes */ }
  document.documentElement.dataset.theme = next;
  views.slice().forEach((view) => view.redraw());
}

function chartConfig() {
  const style = getComputedStyle(document.documentElement);
  const [text, line, font] = [
    style.getPropertyValue("--text").trim(), style.getPropertyValue("--line").trim(),
    getComputedStyle(document.body).fontFamily];
  const dark = document.documentElement.dataset.theme === "dark";
  return {
    background: "transparent", font,
    view: { stroke: line },
    axis: { labelColor: text, titleColor: text, gridColor: line, domainColor: line, tickColor: line,
      titleFontWeight: "normal", gridOpacity: 0.6 },
    legend: { labelColor: text, titleColor: text },
    mark: { color: dark ? "#6cb2ff" : "#0b62c4" },
    numberFormat: ",.5~g",
  };
}

// ---------------------------------------------------------------- charts

function setParameter(spec, name, value) {
  // Altair puts parameters at the top or into a layer.
  for (const one of [spec, ...(spec.layer ?? [])]) {
    for (const parameter of one.params ?? []) if (parameter.name === name) parameter.value = value;
  }
}

function domain(rows, key) {
  const values = rows.map((row) => row[key]).filter((value) => value != null);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = Math.max(5, (high - low) * 0.12);
  return [Math.max(0, low - room), Math.min(100, high + room)];
}

function chart(host, name, rows, parameters = {}) {
  // Drawn when it comes near the screen: dozens of charts at once would take seconds.
  host.classList.add("chart", "waiting");
  const draw = async () => {
    const spec = structuredClone(content.charts[name]);
    spec.config = chartConfig();
    spec.datasets = { rows };
    if (spec.height.step) {
      // Vega-Lite can do it itself, but warns of every chart that is fitted in width alone.
      const field = (spec.encoding ?? spec.layer[0].encoding).y.field;
      spec.height = spec.height.step * new Set(rows.map((row) => row[field])).size;
    }
    for (const [key, value] of Object.entries(parameters)) setParameter(spec, key, value());
    const made = await vegaEmbed(host, spec, {
      renderer: "svg", actions: { export: true, source: false, compiled: false, editor: false } });
    host.classList.remove("waiting");
    views.push({ host, view: made.view, redraw: () => { forget(host); return draw(); } });
  };
  const watcher = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    watcher.disconnect();
    draw().catch((error) => { console.error(error); host.textContent = `No chart: ${error.message}`; });
  }, { rootMargin: "200px" });
  watcher.observe(host);
}

function forget(host) {
  views.filter((one) => one.host === host).forEach((one) => one.view.finalize());
  views = views.filter((one) => one.host !== host);
}

// ---------------------------------------------------------------- a protocol's part

function sectionRows(section) {
  // Rows of every kind with the method's colour, which the charts draw with.
  const style = new Map(section.methods.map((one) => [one.name, one]));
  const dressed = (row) => ({ ...row, colour: style.get(row.method).colour,
    zero_shot: style.get(row.method).zero_shot });
  const runs = content.runs
    .filter((run) => run.section === section.number && run.trains)
    .map((run) => ({ method: run.method, dataset: run.dataset, shots: run.shots, seed: run.seed,
      minutes: run.seconds == null ? null : run.seconds / 60, memory: run.memory, device: run.device }));
  const order = new Map(section.methods.map((one, place) => [one.name, place]));
  runs.sort((a, b) => order.get(a.method) - order.get(b.method));
  return {
    table: section.table.map(dressed), points: section.points.map(dressed),
    curves: section.curves.map(dressed), runs: runs.map(dressed) };
}

function showSection(part, section) {
  const keep = kept(section.title);
  keep.hidden ??= [];
  const rows = sectionRows(section);
  const table = new DataTable(part.querySelector(".table"), [
    { key: "method", label: "method", choose: true },
    { key: "dataset", label: "dataset", choose: true },
    { key: "shots", label: "shots", choose: true, number: 0 },
    { key: "metric", label: "metric", choose: true },
    { key: "seeds", label: "seeds", number: 0 },
    { key: "mean", label: "mean", number: 2 },
    { key: "std", label: "std", number: 2 },
    { key: "published", label: "published", number: 2, title: "source" },
    { key: "difference", label: "difference", number: 2, mark: true },
  ], section.table, { keep, isShown: (row) => !keep.hidden.includes(row.method) });
  const buttons = section.methods.map((method) => methodButton(method, keep, table));
  part.querySelector(".methods").replaceChildren(...buttons);
  for (const [place, overview] of [[".overview", true], [".rest", false]]) {
    const figures = section.charts.filter((one) => one.overview === overview)
      .map((one) => figure(one, rows[one.rows], keep));
    part.querySelector(place)?.replaceChildren(...figures);
  }
}

function figure(one, rows, keep) {
  const own = rows.filter((row) => !one.dataset || row.dataset === one.dataset);
  const host = element("div");
  chart(host, one.chart, own, {
    hidden: () => keep.hidden,
    domain_x: () => domain(own, "base"), domain_y: () => domain(own, "novel") });
  return element("figure", {}, [element("figcaption", { textContent: one.title }), host]);
}

function methodButton(method, keep, table) {
  const button = element("button", { type: "button", title: "Hide or show" }, [
    element("i"), element("span", { textContent: method.name })]);
  button.style.setProperty("--dot", method.colour);
  const press = () => button.setAttribute("aria-pressed", String(!keep.hidden.includes(method.name)));
  press();
  button.addEventListener("click", () => {
    const hidden = new Set(keep.hidden);
    if (!hidden.delete(method.name)) hidden.add(method.name);
    keep.hidden = [...hidden];
    press();
    table.draw();
    for (const { view } of views) {
      try { view.signal("hidden", keep.hidden).runAsync(); } catch { /* a chart without methods */ }
    }
  });
  return button;
}

// ---------------------------------------------------------------- runs

function showRuns(part) {
  const keep = kept("runs");
  new DataTable(part.querySelector(".table"), [
    { key: "protocol", label: "protocol", choose: true },
    { key: "method", label: "method", choose: true },
    { key: "dataset", label: "dataset", choose: true },
    { key: "stage", label: "stage", choose: true },
    { key: "shots", label: "shots", choose: true, number: 0 },
    { key: "seed", label: "seed", number: 0 },
    { key: "accuracy", label: "accuracy", number: 2 },
    { key: "seconds", label: "seconds", number: 1 },
    { key: "memory", label: "memory (MB)", number: 0 },
  ], content.runs, { keep, onPick: (run) => { state.run = run.folder; showRun(run, true); } });
  const run = content.runs.find((one) => one.folder === state.run) 
    ?? content.runs.find((one) => one.curve.epoch) ?? content.runs[0];
  if (run) showRun(run, false);
}

function showRun(run, jump) {
  const article = document.getElementById("run");
  const find = (selector) => article.querySelector(selector);
  article.hidden = false;
  find("h3").textContent =
    `${run.method} on ${run.dataset}: ${run.protocol}, ${run.stage}, ${run.shots} shots, seed ${run.seed}`;
  const fact = (value, text) => (value == null || value === "" ? [] : [text(value)]);
  find(".facts").textContent = [
    `accuracy ${run.accuracy.toFixed(2)} %`,
    ...fact(run.images, (n) => `${n} test images`), ...fact(run.classes, (n) => `${n} classes`),
    ...fact(run.backbone, (n) => n), ...fact(run.trainable, (n) => `${n.toLocaleString("en")} parameters trained`),
    ...fact(run.train, (n) => `${n.toFixed(1)} s of training`), ...fact(run.seconds, (n) => `${n.toFixed(1)} s in all`),
    ...fact(run.memory, (n) => `${n.toFixed(0)} MB at peak`), ...fact(run.device, (n) => `on ${n}`),
  ].join(", ");
  const names = { "result.json": "config and result", "log.txt": "log", "job.log": "job's output", "identity.json": "inputs",
    "predictions.csv.gz": "predictions" };
  find(".links").replaceChildren(...run.files.map((file) =>
    element("a", { href: `${run.folder}/${file}`, textContent: names[file], target: "_blank", rel: "noopener" })));
  find(".notes").replaceChildren(...run.notes.map((note) => element("li", { textContent: note })));
  showWorst(find(".worst"), run);
  showTraining(find(".training"), run);
  showConfusion(find(".confusion"), run);
  if (jump) { find("h3").focus({ preventScroll: true }); find("h3").scrollIntoView({ block: "nearest" }); article.scrollIntoView({ behavior: "smooth" }); }
}

function showWorst(host, run) {
  if (!run.worst.length) { host.textContent = "The result has no accuracy per class."; return; }
  const pictures = content.pictures[run.dataset] ?? {};
  host.replaceChildren(...run.worst.map(([name, total, correct], place) => element("div", {}, [
    ...(pictures[name] ?? []).map((url) => element("img", { src: url, alt: "" })),
    element("span", { textContent: name }),
    element("b", { textContent: `${correct} / ${total}` }),
    ...mistakenImages(run.mistaken[place])])));
  if (run.mistaken.some((images) => images.length)) {
    host.prepend(element("p", { className: "quiet", textContent:
      "Beside a class: examples of it. Below: its images that were mistaken, with the highest confidence first." }));
  }
  if (run.no_mistakes) host.append(element("p", { className: "quiet", textContent: run.no_mistakes }));
  if (run.classes > run.worst.length) {
    host.append(element("p", { className: "quiet", textContent: `The ${run.worst.length} worst of ${run.classes} classes.` }));
  }
}

function mistakenImages(images) {
  if (!images.length) return [];
  return [element("ul", {}, images.map(([name, percent, number]) => {
    const [path, url] = content.images[number];
    // A row of features has no picture: its file and row say which one it is.
    const what = url ? element("img", { src: url, alt: "" }) : element("code", { textContent: path.split("/").at(-1) });
    return element("li", { title: path }, [what, element("small", { textContent: `taken for ${name}, ${percent} %` })]);
  }))];
}

function showTraining(host, run) {
  host.querySelectorAll(".chart").forEach(forget);
  const curve = run.curve;
  if (!curve.epoch) {
    host.textContent = run.trains ? "The log has no epochs." : "This run evaluates another one: nothing was trained.";
    return;
  }
  const rows = curve.epoch.map((epoch, place) => ({ epoch, loss: curve.loss?.[place], acc: curve.acc?.[place] }));
  const hosts = ["loss", "acc"].filter((name) => curve[name]).map((name) => {
    const own = element("div");
    chart(own, `training_${name}`, rows);
    return own;
  });
  host.replaceChildren(...hosts);
}

function showConfusion(host, run) {
  host.querySelectorAll(".chart").forEach(forget);
  const names = run.confusion.names;
  if (!names) { host.textContent = run.no_confusion; return; }
  const rows = run.confusion.cells.flatMap((line, i) =>
    line.map((share, j) => ({ true: names[i], called: names[j], share })));
  const own = element("div");
  host.replaceChildren(own);
  if (run.classes > names.length) {
    host.append(element("p", { className: "quiet", textContent: `The ${names.length} most confused of ${run.classes} classes.` }));
  }
  chart(own, "confusion", rows);
}

// ---------------------------------------------------------------- parts, start, renewal

function show(name) {
  state.part = name;
  views.forEach((one) => one.view.finalize());
  views = [];
  for (const part of document.querySelectorAll(".part")) part.hidden = part.id !== name;
  for (const button of document.querySelectorAll("nav button")) {
    button.setAttribute("aria-current", String(button.dataset.part === name));
  }
  const part = document.getElementById(name);
  if (name === "runs") showRuns(part);
  else if (name.startsWith("section-")) showSection(part, content.sections[Number(name.split("-")[1])]);
}

async function renew(version) {
  // The server makes a new page when a run has finished; only then is this one loaded again.
  try {
    const answer = await fetch("version", { cache: "no-store" });
    const now = answer.ok ? await answer.text() : version;
    if (now !== version) { remember(); location.reload(); return; }
  } catch { /* the server was stopped: what is here stays */ }
  setTimeout(() => renew(version), 3000);
}

applyTheme();
systemDark.addEventListener("change", () => { applyTheme(); views.slice().forEach((view) => view.redraw()); });
document.getElementById("theme").addEventListener("click", switchTheme);
const parts = [...document.querySelectorAll("nav button")].map((button) => {
  button.addEventListener("click", () => { show(button.dataset.part); remember(); });
  return button.dataset.part;
});
if (parts.length) show(parts.includes(state.part) ? state.part : parts[0]);
if (state.scroll) window.scrollTo(0, state.scroll);
if (content.version) renew(content.version);
document.documentElement.dataset.ready = "true"; // for tests
