// Draws what live.py sends: a process tree, and for a film the buttons and the slider. No library, no network.
// Rows are drawn by key: a process keeps its element for as long as it is in sight, and only what changed is set.

const STYLE = `
.unc { font: 13px/1.4 var(--jp-ui-font-family, system-ui, sans-serif); color: var(--unc-ink); max-width: 900px;
  --unc-ink: var(--jp-ui-font-color1, #222); --unc-soft: var(--jp-ui-font-color2, #555);
  --unc-page: var(--jp-layout-color1, #fff); --unc-line: var(--jp-border-color1, #bbb);
  --unc-manager: #0072B2; --unc-shim: #E69F00; --unc-runtime: #009E73; --unc-container: #CC79A7;
  --unc-change: #D55E00; --unc-plain: #888; }
.unc-bar { display: flex; flex-wrap: wrap; gap: 8px 12px; align-items: center; margin: 4px 0; }
.unc-bar:empty { display: none; }
.unc button { font: inherit; color: inherit; background: var(--jp-layout-color2, #eee); cursor: pointer;
  border: 1px solid var(--unc-line); border-radius: 4px; padding: 2px 12px; min-width: 84px; }
.unc input[type=range] { flex: 1 1 260px; accent-color: var(--unc-change); }
.unc :focus-visible { outline: 2px solid #0072B2; outline-offset: 2px; }
.unc-said { color: var(--unc-soft); }
.unc-words { min-height: 1.4em; flex: 1 1 100%; }
.unc-scroll { overflow: auto; max-height: 460px; border: 1px solid var(--unc-line); border-radius: 6px;
  background: var(--unc-page); }
.unc svg { display: block; font: 12px "DejaVu Sans", Verdana, sans-serif; }
.unc svg text { fill: var(--unc-ink); }
.unc .row { cursor: default; outline: none; }
.unc .row rect.box { stroke: var(--part); fill: color-mix(in srgb, var(--part) 20%, var(--unc-page)); stroke-width: 1.4; }
.unc .row path, .unc .through { fill: none; stroke: var(--unc-soft); stroke-width: 1.2; opacity: .7; }
.unc .row .soft { fill: var(--unc-soft); font-size: 11px; }
.unc .row .badge { fill: color-mix(in srgb, var(--unc-container) 55%, var(--unc-ink)); font-size: 11px; }
.unc .row .word { fill: color-mix(in srgb, var(--unc-change) 70%, var(--unc-ink)); font-size: 11px; font-weight: bold; }
.unc .row[data-change=new] rect.box { stroke-width: 3.4; }
.unc .row[data-change=gone] rect.box { stroke-dasharray: 5 4; fill: var(--unc-page); }
.unc .row[data-change=gone] path { stroke-dasharray: 4 4; }
.unc .row[data-change=gone] text { fill: var(--unc-soft); }
.unc .row[data-change=re-parented] path { stroke: var(--unc-change); stroke-width: 2.6; opacity: 1; }
.unc .row[data-change=changed] rect.box { stroke-width: 3.4; }
.unc .row rect.ring { fill: none; stroke: none; }
.unc .row:hover rect.ring { stroke: var(--unc-soft); stroke-dasharray: 2 2; }
.unc .row:focus rect.ring { stroke: var(--unc-ink); stroke-width: 2; stroke-dasharray: none; }
.unc-few .row { transition: transform .18s; }
@media (prefers-reduced-motion: reduce) { .unc-few .row { transition: none; } }
.unc-details { min-height: 9.8em; margin: 6px 2px; display: grid; grid-template-columns: max-content 1fr; gap: 0 12px;
  align-content: start; }
.unc-details :nth-child(odd) { color: var(--unc-soft); }
.unc-details :nth-child(even) { overflow-wrap: anywhere; max-height: 4.2em; overflow: auto; }
.unc-key { display: inline-block; width: 12px; height: 10px; border: 1.4px solid var(--part); margin-right: 5px;
  background: color-mix(in srgb, var(--part) 20%, var(--unc-page)); }
.unc-caption { margin: 4px 0; }
`;

const LINE = 30, BOX = 22, STEP = 26, MARGIN = 8, MORE = 12;
const KEYS = ["ArrowDown", "ArrowUp", "ArrowLeft", "ArrowRight", "Home", "End", "PageUp", "PageDown", " ", "Enter"];
const PARTS = ["manager", "shim", "runtime", "container"];

function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function svg(name, attributes = {}) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

const ruler = document.createElement("canvas").getContext("2d");
const widths = new Map();

function measure(text, font) {
  const key = font + text;
  if (!widths.has(key)) {
    if (widths.size > 20000) widths.clear();
    ruler.font = font + ' "DejaVu Sans", Verdana, sans-serif';
    widths.set(key, ruler.measureText(text).width);
  }
  return widths.get(key);
}

// A drawing of rows. `show(rows)` brings it up to date.
function treeView(caption) {
  const canvas = svg("svg", { role: "tree", "aria-label": caption });
  const scroll = html("div", { class: "unc-scroll" }, canvas);
  const details = html("div", { class: "unc-details", "aria-live": "polite" });
  const drawn = new Map(); // key -> the elements of a row that is in sight
  const through = svg("path", { class: "through" });
  canvas.append(through);
  let rows = [], places = new Map(), lastChild = new Map(), widest = 0; // places: key -> position in rows
  let current = null, pointed = null, waiting = false;

  function make(row) {
    const group = svg("g", { class: "row", role: "treeitem", tabindex: "-1", "data-key": row.key });
    const parts = { group, path: svg("path"), box: svg("rect", { class: "box", rx: 6, height: BOX }), text: svg("text") };
    parts.ring = svg("rect", { class: "ring", rx: 8, x: -3, y: -3, height: BOX + 6 });
    parts.text.setAttribute("y", 15);
    parts.text.setAttribute("x", 8);
    group.append(parts.path, parts.box, parts.ring, parts.text);
    group.addEventListener("pointerenter", () => { pointed = row.key; explain(); });
    group.addEventListener("pointerleave", () => { pointed = null; explain(); });
    group.addEventListener("focus", () => { choose(row.key); pointed = null; explain(); });
    return parts;
  }

  function write(parts, row) { // the words of a row, and how wide they are
    const words = [
      [row.title, "", "bold 12px"], [row.numbers, "", "12px"], [row.command, "soft", "11px"],
      [row.badge, "badge", "11px"], [row.change, "word", "bold 11px"],
    ].filter(([text]) => text);
    let x = 8;
    parts.text.replaceChildren(...words.map(([text, name, font]) => {
      const span = svg("tspan", { x, class: name });
      if (font.startsWith("bold")) span.setAttribute("font-weight", "bold");
      span.textContent = text;
      x += measure(text, font) + 8;
      return span;
    }));
    parts.width = x;
    parts.box.setAttribute("width", x);
    parts.ring.setAttribute("width", x + 6);
    parts.group.style.setProperty("--part", `var(--unc-${row.role})`);
    parts.group.dataset.change = row.change;
    parts.group.setAttribute("aria-level", row.level);
    parts.group.setAttribute("aria-label", [
      row.title, `PID ${row.numbers}`, row.command, row.role === "plain" ? "" : row.role, row.badge, row.change,
    ].filter(Boolean).join(", "));
  }

  function show(now) {
    const heldAt = places.get(current) ?? 0;
    rows = now;
    places = new Map(rows.map((row, position) => [row.key, position]));
    lastChild = new Map(rows.map((row, position) => [row.parent, position]));
    canvas.setAttribute("height", Math.max(rows.length, 1) * LINE + MARGIN);
    canvas.classList.toggle("unc-few", rows.length < 100);
    if (!places.has(current)) choose(rows[Math.min(heldAt, rows.length - 1)]?.key ?? null);
    draw();
    explain();
  }

  function draw() { // the rows that are in sight, some more on both sides, and the one with the focus
    const focused = canvas.contains(document.activeElement);
    const first = Math.max(0, Math.floor(scroll.scrollTop / LINE) - MORE);
    const last = Math.min(rows.length, first + Math.ceil((scroll.clientHeight || 460) / LINE) + 2 * MORE);
    const wanted = [...Array(last - first).keys()].map((position) => first + position);
    const chosen = places.get(current);
    if (chosen !== undefined && (chosen < first || chosen >= last)) wanted.push(chosen);
    wanted.sort((one, other) => one - other); // the order in which a screen reader goes
    const keys = new Set(wanted.map((position) => rows[position].key));
    for (const [key, parts] of drawn) {
      if (!keys.has(key)) { parts.group.remove(); drawn.delete(key); }
    }
    let before = through;
    for (const position of wanted) {
      const row = rows[position];
      let parts = drawn.get(row.key);
      if (!parts) { parts = make(row); drawn.set(row.key, parts); }
      const said = JSON.stringify(row);
      if (said !== parts.said) { write(parts, row); parts.said = said; }
      const place = `translate(${left(row)}px, ${top(position)}px)`;
      if (place !== parts.place) { parts.group.style.transform = place; parts.place = place; }
      const parent = places.get(row.parent);
      const line = parent === undefined ? "" :
        `M${left(rows[parent]) + 12 - left(row)},${top(parent) + BOX - top(position)} V${BOX / 2} H0`;
      if (line !== parts.line) { parts.path.setAttribute("d", line); parts.line = line; }
      if (before.nextSibling !== parts.group) canvas.insertBefore(parts.group, before.nextSibling);
      before = parts.group;
      widest = Math.max(widest, left(row) + parts.width + MARGIN);
    }
    let lines = ""; // to children further down than what is drawn
    for (let at = last - 1; at >= 0; at = places.get(rows[at].parent) ?? -1) {
      if (lastChild.get(rows[at].key) >= last) lines += `M${left(rows[at]) + 12},${top(at) + BOX} V${top(last)} `;
    }
    through.setAttribute("d", lines);
    canvas.setAttribute("width", Math.ceil(widest));
    const group = drawn.get(current)?.group;
    group?.setAttribute("tabindex", "0");
    if (focused && group && document.activeElement !== group) group.focus({ preventScroll: true });
  }

  const left = (row) => MARGIN + STEP * (row.level - 1), top = (position) => MARGIN + LINE * position;

  function choose(key) { // one row can be reached by Tab; the arrow keys go on from there
    drawn.get(current)?.group.setAttribute("tabindex", "-1");
    current = key;
    drawn.get(current)?.group.setAttribute("tabindex", "0");
  }

  let explained = "";
  function explain() {
    const focused = canvas.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const row = rows[places.get([pointed, focused, current].find((key) => places.has(key)))];
    const said = row ? JSON.stringify(row.details) : "";
    if (said === explained) return;
    explained = said;
    details.replaceChildren(...(row ? row.details : []).flatMap(([label, text]) =>
      [html("span", {}, label), html("span", {}, text)]));
    for (const text of details.children) // a text too long for its place is scrolled by the keyboard too
      if (text.scrollHeight > text.clientHeight) text.setAttribute("tabindex", "0");
  }

  canvas.addEventListener("keydown", (event) => {
    if (!KEYS.slice(0, 6).includes(event.key)) return;
    event.preventDefault();
    const at = places.get(current);
    const to = {
      ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1,
      ArrowLeft: places.get(rows[at]?.parent), ArrowRight: rows.findIndex((row) => row.parent === current),
    }[event.key];
    if (!rows[to]) return;
    choose(rows[to].key);
    if (top(to) < scroll.scrollTop) scroll.scrollTop = top(to) - MARGIN;
    if (top(to + 1) > scroll.scrollTop + scroll.clientHeight) scroll.scrollTop = top(to + 1) - scroll.clientHeight;
    draw();
    drawn.get(current).group.focus({ preventScroll: true });
  });
  scroll.addEventListener("scroll", () => {
    if (!waiting) requestAnimationFrame(() => { waiting = false; draw(); });
    waiting = true;
  });
  return { scroll, details, show };
}

function legend(rows) {
  const parts = PARTS.filter((part) => rows.some((row) => row.role === part));
  return parts.map((part) => {
    const mark = html("span", { class: "unc-key", "aria-hidden": "true" });
    mark.style.setProperty("--part", `var(--unc-${part})`);
    return html("span", { class: "unc-said" }, mark, part);
  });
}

function rowsOf(model) { // `packed` in live.py made them small for the journey
  const { names, labels, rows } = JSON.parse(model.get("rows"));
  return rows.map((values) => {
    const row = Object.fromEntries(names.map((name, position) => [name, values[position]]));
    row.details = row.details.map((text, position) => [labels[position], text]);
    return row;
  });
}

function frameOf(model, number) {
  const rows = rowsOf(model);
  const [ms, words, positions] = model.get("frames")[number];
  return { ms, words, rows: positions.map((position) => rows[position]) };
}

function render({ model, el }) {
  const root = html("div", { class: "unc" }, html("style", {}, STYLE));
  const view = treeView(model.get("caption"));
  const button = html("button", { type: "button" });
  const said = html("span", { class: "unc-said", role: "status" });
  const parts = html("span", { class: "unc-bar" });
  const bar = html("div", { class: "unc-bar" }, button);
  root.append(bar, view.scroll, view.details, html("div", { class: "unc-caption" }, model.get("caption")));
  root.addEventListener("keydown", (event) => { // JupyterLab would take these for the notebook's
    if (KEYS.includes(event.key) && !event.shiftKey && !event.ctrlKey && !event.metaKey) event.stopPropagation();
  });
  el.append(root);
  return model.get("kind") === "film" ? runFilm() : runTree();

  function runTree() {
    bar.append(said, parts);
    const id = Math.random().toString(36).slice(2);
    let keys = "";
    function draw() {
      const rows = rowsOf(model), ended = model.get("ended");
      if (!ended) view.show(rows);
      const living = rows.filter((row) => row.change !== "gone").length;
      const state = ended ? "The lab has ended. This is what was there last." :
        `${living} ${living === 1 ? "process" : "processes"}${model.get("playing") ? "" : ", paused"}`;
      if (said.textContent !== state) said.textContent = state;
      button.textContent = model.get("playing") ? "Pause" : "Play";
      button.disabled = ended;
      const now = PARTS.filter((part) => rows.some((row) => row.role === part)).join();
      if (now !== keys) { keys = now; parts.replaceChildren(...legend(rows)); }
    }
    button.addEventListener("click", () => {
      model.set("playing", !model.get("playing"));
      model.save_changes();
    });
    model.on("change:rows change:playing change:ended", draw);
    const tell = (shown) => { try { model.send({ view: id, shown }); } catch { /* the kernel has gone */ } };
    const beat = setInterval(() => tell(true), 10000);
    tell(true);
    draw();
    return () => {
      clearInterval(beat);
      model.off("change:rows change:playing change:ended", draw);
      tell(false);
    };
  }

  function runFilm() {
    const frames = model.get("frames");
    const slider = html("input", { type: "range", min: 0, max: frames.length - 1, step: 1, value: 0,
      "aria-label": "Frame of the film" });
    const words = html("span", { class: "unc-words", role: "status" });
    let timer = null;
    bar.append(slider, said, words);
    parts.replaceChildren(...legend(rowsOf(model)));
    bar.append(parts);
    function draw() {
      const number = Number(slider.value), frame = frameOf(model, number);
      view.show(frame.rows);
      said.textContent = `${frame.ms.toFixed(1)} ms, frame ${number + 1} of ${frames.length}`;
      words.textContent = frame.words;
      slider.setAttribute("aria-valuetext", `${frame.ms.toFixed(1)} ms: ${frame.words}`);
    }
    function stop() {
      clearInterval(timer);
      timer = null;
      button.textContent = "Play";
    }
    button.addEventListener("click", () => {
      if (timer) return stop();
      if (Number(slider.value) === frames.length - 1) slider.value = 0;
      draw();
      button.textContent = "Pause";
      timer = setInterval(() => {
        slider.value = Number(slider.value) + 1;
        draw();
        if (Number(slider.value) === frames.length - 1) stop();
      }, 900);
    });
    slider.addEventListener("input", () => { stop(); draw(); });
    stop();
    draw();
    return stop;
  }
}

export default { render };
