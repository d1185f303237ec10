// Draws what pod_widget.py sends: a row a namespace, switches for A and B, and what B could do. No library, no network.

const CHOICES = ["own", "pod", "host"];
const KEYS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Enter", " "];
const STYLE = `
.pod { font: 13px/1.4 var(--jp-ui-font-family, system-ui, sans-serif); color: var(--pod-ink); max-width: 980px;
  --pod-ink: var(--jp-ui-font-color1, #222); --pod-soft: var(--jp-ui-font-color2, #555);
  --pod-line: var(--jp-border-color1, #bbb); --pod-same: #CC79A7; --pod-yes: #009E73; --pod-no: #D55E00;
  overflow-x: auto; }
.pod table { border-collapse: collapse; margin: 6px 0; }
.pod th, .pod td { border: 1px solid var(--pod-line); padding: 4px 10px; text-align: left; vertical-align: top;
  font-weight: normal; }
.pod thead th { border: 0; font-weight: bold; }
.pod tbody th { font-weight: bold; }
.pod fieldset { border: 0; margin: 0; padding: 0; display: flex; gap: 10px; }
.pod label { display: flex; gap: 3px; align-items: center; cursor: pointer; }
.pod input { margin: 0; accent-color: #0072B2; }
.pod input:focus-visible, .pod button:focus-visible { outline: 2px solid #0072B2; outline-offset: 2px; }
.pod button { font: inherit; font-weight: bold; padding: 4px 18px; margin: 2px 0; cursor: pointer; color: #fff;
  background: #0072B2; border: 0; border-radius: 3px; }
.pod button:disabled { opacity: 0.6; cursor: default; }
.pod .inode { color: var(--pod-soft); font-variant-numeric: tabular-nums; margin-top: 2px; }
.pod td.same { background: color-mix(in srgb, var(--pod-same) 22%, transparent); }
.pod td.same .inode { color: var(--pod-ink); font-weight: bold; }
.pod .yes { color: color-mix(in srgb, var(--pod-yes) 70%, var(--pod-ink)); font-weight: bold; }
.pod .no { color: color-mix(in srgb, var(--pod-no) 75%, var(--pod-ink)); font-weight: bold; }
.pod .old { opacity: 0.45; }
.pod code { display: block; font: 13px/1.5 var(--jp-code-font-family, monospace); }
.pod .soft { color: var(--pod-soft); margin: 2px 0; }
.pod .trouble { color: color-mix(in srgb, var(--pod-no) 75%, var(--pod-ink)); min-height: 1.4em; margin: 2px 0; }
`;

function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function render({ model, el }) {
  const lines = new Map(); // kind -> its cells; the rows stay, so that the keyboard keeps its place
  const body = html("tbody");
  const group = `pod-${Math.random().toString(36).slice(2)}`;
  const commands = [html("code"), html("code")];
  const button = html("button", { type: "button" }, "Run A and B");
  const said = html("p", { class: "soft", "aria-live": "polite" });
  const trouble = html("p", { class: "trouble", role: "alert" });

  function side(kind, number) {
    const set = html("fieldset", {}, ...CHOICES.map((choice) => {
      const radio = html("input", { type: "radio", name: `${group}-${kind}-${number}`, value: choice });
      radio.addEventListener("change", () => turn(kind, number, choice));
      return html("label", {}, radio, choice);
    }));
    set.setAttribute("aria-label", `${kind} of ${"AB"[number]}`);
    const inode = html("div", { class: "inode" });
    return { cell: html("td", { "data-side": `${kind}-${number}` }, set, inode), set, inode };
  }

  function turn(kind, number, choice) {
    const switches = structuredClone(model.get("switches"));
    switches[kind][number] = choice;
    model.set("switches", switches);
    model.save_changes();
    show();
  }

  button.addEventListener("click", () => {
    button.disabled = true;
    model.set("runs", model.get("runs") + 1);
    model.save_changes();
  });

  for (const [kind, title, test] of model.get("kinds")) {
    const sides = [side(kind, 0), side(kind, 1)];
    const result = html("td", { class: "result" });
    lines.set(kind, { sides, result });
    const name = html("th", { scope: "row" }, title);
    body.append(html("tr", { "data-kind": kind }, name, sides[0].cell, sides[1].cell, html("td", {}, `${test}?`), result));
  }

  function show() {
    const switches = model.get("switches");
    let stale = false;
    for (const row of model.get("rows")) {
      const { sides, result } = lines.get(row.kind);
      const old = row.choices.some((choice, number) => choice !== switches[row.kind][number]);
      stale = stale || old;
      sides.forEach(({ cell, set, inode }, number) => {
        for (const radio of set.querySelectorAll("input")) radio.checked = radio.value === switches[row.kind][number];
        inode.textContent = row.inodes[number];
        inode.classList.toggle("old", old);
        cell.classList.toggle("same", !old && row.inodes[0] === row.inodes[1]);
      });
      result.textContent = old ? "?" : row.works ? "yes" : "no";
      result.className = `result ${old ? "old" : row.works ? "yes" : "no"}`;
    }
    commands.forEach((code, number) => { code.textContent = model.get("words")[number]; });
    said.textContent = stale ? "The switches have changed since the last run." : model.get("said");
    trouble.textContent = model.get("trouble");
  }

  function ran() {
    button.disabled = false;
    show();
  }

  const titles = ["namespace", "A", "B", "can B ...", "answer"];
  const head = html("tr", {}, ...titles.map((title) => html("th", { scope: "col" }, title)));
  const table = html("table", { "aria-label": "What two members of a pod share, and what works between them" });
  table.append(html("thead", {}, head), body);
  const root = html("div", { class: "pod" }, ...commands, table, button, said, trouble);
  root.addEventListener("keydown", (event) => { // JupyterLab would take these for the notebook's
    if (KEYS.includes(event.key) && !event.shiftKey && !event.ctrlKey && !event.metaKey) event.stopPropagation();
  });
  el.append(html("style", {}, STYLE), root);
  show();
  model.on("change:done", ran);
  model.on("change:words change:switches change:trouble", show);
  return () => {
    model.off("change:done", ran);
    model.off("change:words change:switches change:trouble", show);
  };
}

export default { render };
