// Draws what unshare_widget.py sends: one row a namespace, with a tick to have it new. No library, no network.

const STYLE = `
.uns { font: 13px/1.4 var(--jp-ui-font-family, system-ui, sans-serif); color: var(--uns-ink); max-width: 900px;
  --uns-ink: var(--jp-ui-font-color1, #222); --uns-soft: var(--jp-ui-font-color2, #555);
  --uns-line: var(--jp-border-color1, #bbb); --uns-new: #CC79A7; --uns-change: #D55E00; overflow-x: auto; }
.uns table { border-collapse: collapse; margin: 4px 0; }
.uns th, .uns td { border: 1px solid var(--uns-line); padding: 3px 10px; text-align: left; vertical-align: top;
  font-weight: normal; }
.uns thead th { border: 0; font-weight: bold; }
.uns label { display: flex; gap: 8px; align-items: center; font-weight: bold; cursor: pointer; min-width: 76px; }
.uns input { width: 16px; height: 16px; margin: 0; accent-color: #0072B2; }
.uns input:focus-visible { outline: 2px solid #0072B2; outline-offset: 2px; }
.uns .soft { color: var(--uns-soft); }
.uns td.new { background: color-mix(in srgb, var(--uns-new) 22%, transparent); font-weight: bold; }
.uns td.changed { color: color-mix(in srgb, var(--uns-change) 75%, var(--uns-ink)); font-weight: bold; }
.uns code { font: 13px/1.4 var(--jp-code-font-family, monospace); }
.uns .trouble { color: color-mix(in srgb, var(--uns-change) 75%, var(--uns-ink)); min-height: 1.4em; margin: 2px 0; }
`;

function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function render({ model, el }) {
  const titles = ["new", "namespace", "what a process sees", "in the lab", "in the process"];
  const body = html("tbody");
  const words = html("code");
  const trouble = html("p", { class: "trouble", role: "alert" });
  const said = html("p", { class: "soft", "aria-live": "polite" });
  const boxes = new Map(); // kind -> checkbox: they stay, so that the keyboard keeps its place

  function tick() {
    model.set("ticked", [...boxes].filter(([, box]) => box.checked).map(([kind]) => kind));
    model.save_changes();
  }

  function box(kind) {
    if (!boxes.has(kind)) {
      const made = html("input", { type: "checkbox", "data-kind": kind });
      made.addEventListener("change", tick);
      boxes.set(kind, made);
    }
    return boxes.get(kind);
  }

  function build() { // once: the rows of a widget are always the same eight
    for (const row of model.get("rows")) {
      row.views.forEach(([what], number) => {
        const line = html("tr", { "data-kind": row.kind });
        if (number === 0) {
          const span = { rowspan: row.views.length };
          line.append(html("th", { ...span, scope: "row" }, html("label", {}, box(row.kind), row.kind)));
          line.append(html("td", { ...span, class: "inode" }));
        }
        line.append(html("td", {}, what), html("td", { class: "before" }), html("td", { class: "now" }));
        body.append(line);
      });
    }
  }

  function show() {
    const lines = [...body.rows];
    const changed = [];
    for (const row of model.get("rows")) {
      box(row.kind).checked = model.get("ticked").includes(row.kind);
      for (const [what, before, now] of row.views) {
        const line = lines.shift();
        const inode = line.querySelector(".inode");
        if (inode) {
          inode.textContent = row.inode + (row.new ? " new" : "");
          inode.classList.toggle("new", row.new);
        }
        line.querySelector(".before").textContent = before;
        line.querySelector(".now").textContent = now;
        line.querySelector(".now").classList.toggle("changed", row.new && before !== now);
        if (row.new && before !== now) changed.push(`${what}: ${now}`);
      }
    }
    words.textContent = model.get("words");
    trouble.textContent = model.get("trouble");
    said.textContent = changed.length ? `It sees something else than the lab: ${changed.join("; ")}.`
      : "It sees the same as the lab.";
  }

  build();
  const head = html("tr", {}, ...titles.map((title) => html("th", { scope: "col" }, title)));
  const table = html("table", { "aria-label": "Namespaces to make new, and what a process then sees" });
  table.append(html("thead", {}, head), body);
  el.append(html("style", {}, STYLE), html("div", { class: "uns" }, words, table, said, trouble));
  show();
  model.on("change:rows change:words change:trouble", show);
  return () => model.off("change:rows change:words change:trouble", show);
}

export default { render };
