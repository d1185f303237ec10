// Draws what attach_widget.py sends: three buttons, the tree, and boxes of descriptors with lines between them.
// No library, no network.

const STYLE = `
.att { font: 13px/1.4 var(--jp-ui-font-family, system-ui, sans-serif); color: var(--att-ink); max-width: 1000px;
  --att-ink: var(--jp-ui-font-color1, #222); --att-soft: var(--jp-ui-font-color2, #555);
  --att-page: var(--jp-layout-color1, #fff); --att-line: var(--jp-border-color1, #bbb);
  --att-manager: #0072B2; --att-shim: #E69F00; --att-runtime: #009E73; --att-container: #CC79A7;
  --att-plain: #888; --att-change: #D55E00; }
.att .bar { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; margin: 4px 0; }
.att button { font: inherit; font-weight: bold; color: inherit; background: var(--jp-layout-color2, #eee);
  border: 1px solid var(--att-line); border-radius: 4px; padding: 3px 16px; cursor: pointer; }
.att button[aria-pressed=true] { background: #0072B2; border-color: #0072B2; color: #fff; }
.att button:focus-visible { outline: 2px solid #D55E00; outline-offset: 2px; }
.att code { font: 13px/1.4 var(--jp-code-font-family, monospace); overflow-wrap: anywhere; }
.att .said { min-height: 1.4em; margin: 4px 0; }
.att .trouble { color: color-mix(in srgb, var(--att-change) 75%, var(--att-ink)); min-height: 1.4em; margin: 2px 0; }
.att .tree { list-style: none; margin: 6px 0; padding: 6px 10px; border: 1px solid var(--att-line); border-radius: 6px; }
.att .tree li { margin: 2px 0; }
.att .chip { display: inline-block; border: 1.4px solid var(--part); border-radius: 5px; padding: 0 8px;
  background: color-mix(in srgb, var(--part) 18%, var(--att-page)); }
.att .new .chip, .att .box.new { border-width: 3px; }
.att .mark { color: color-mix(in srgb, var(--att-change) 75%, var(--att-ink)); font-weight: bold; margin-left: 8px; }
.att .scroll { overflow-x: auto; border: 1px solid var(--att-line); border-radius: 6px; }
.att .wires { position: relative; display: flex; gap: 44px; align-items: center; padding: 12px; width: max-content;
  font-size: 12px; z-index: 0; }
.att .wires svg { position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none; z-index: -1; }
.att .wires path { fill: none; stroke: var(--att-ink); stroke-width: 1.3; }
.att .wires marker path { fill: var(--att-ink); stroke: none; }
.att .column { display: flex; flex-direction: column; gap: 14px; }
.att .box { border: 1.4px solid var(--part); border-radius: 4px; background: var(--att-page); }
.att .box > * { padding: 1px 7px; white-space: nowrap; border-top: 1px solid color-mix(in srgb, var(--part) 60%, transparent); }
.att .box > :first-child { border-top: 0; background: color-mix(in srgb, var(--part) 18%, var(--att-page)); }
.att .numbers { color: var(--att-soft); }
.att .fd { display: inline-block; min-width: 18px; margin-right: 6px; }
`;

function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

let heads = 0; // markers are found by an id, and a page may show this widget twice

function render({ model, el }) {
  const head = `att-head-${++heads}`;
  const words = html("code");
  const said = html("p", { class: "said", "aria-live": "polite" });
  const trouble = html("p", { class: "trouble", role: "alert" });
  const tree = html("ul", { class: "tree", "aria-label": "Processes" });
  const wires = html("div", { class: "wires" });
  const scroll = html("div", { class: "scroll", role: "group", "aria-label": "Who holds which end of what" }, wires);
  const buttons = Object.keys(model.get("words")).map((kind) => {
    const button = html("button", { type: "button", "data-kind": kind }, kind);
    button.addEventListener("click", () => {
      model.set("pressed", model.get("pressed") === kind ? "" : kind);
      model.save_changes();
      pressed();
    });
    return button;
  });

  function pressed() {
    const kind = model.get("pressed");
    for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.kind === kind);
    words.textContent = kind ? `# ${model.get("words")[kind]}` : "";
  }

  function name(p) {
    return [html("b", {}, p.title), " ", html("span", { class: "numbers" }, p.numbers)];
  }

  function show() {
    const scene = model.get("scene");
    tree.replaceChildren(...scene.tree.map((p) => {
      const style = `padding-left: ${p.level * 26}px; --part: var(--att-${p.role})`;
      const line = html("li", { style, class: p.new ? "new" : "" }, html("span", { class: "chip" }, ...name(p)));
      if (p.new) line.append(html("span", { class: "mark" }, "new"));
      return line;
    }));
    wires.replaceChildren(svg("svg", { "aria-hidden": "true" }), ...scene.columns.map((column) =>
      html("div", { class: "column" }, ...column.map((p) => html("div",
        { class: p.new ? "box new" : "box", style: `--part: var(--att-${p.role})` }, html("div", {}, ...name(p)),
        ...p.ports.map(([key, numbers, what]) =>
          html("div", { "data-key": key }, html("span", { class: "fd" }, numbers), what)))))));
    said.textContent = model.get("said");
    trouble.textContent = model.get("trouble");
    pressed();
    draw();
  }

  function draw() { // where the boxes stand is known only when they are on the page
    const drawing = wires.querySelector("svg");
    const home = wires.getBoundingClientRect();
    if (!drawing || !home.width) return;
    const place = (key) => wires.querySelector(`[data-key="${key}"]`).getBoundingClientRect();
    const tip = svg("marker", { id: head, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8,
      orient: "auto-start-reverse" }, svg("path", { d: "M0 0 8 4 0 8z" }));
    const lines = model.get("scene").lines.map(([from, to, both, dashed]) => {
      const [a, b] = [place(from), place(to)];
      const right = a.left < b.left; // does the line go to the right?
      const [x, y] = [(right ? a.right : a.left) - home.left, (a.top + a.bottom) / 2 - home.top];
      const [u, v] = [(right ? b.left : b.right) - home.left, (b.top + b.bottom) / 2 - home.top];
      const bend = right ? 24 : -24;
      const look = { d: `M${x} ${y} C${x + bend} ${y} ${u - bend} ${v} ${u} ${v}`, "marker-end": `url(#${head})`,
        class: "line", "data-from": from, "data-to": to };
      if (both) look["marker-start"] = `url(#${head})`;
      if (dashed) look["stroke-dasharray"] = "6 4";
      return svg("path", look);
    });
    drawing.replaceChildren(svg("defs", {}, tip), ...lines);
  }

  el.append(html("style", {}, STYLE), html("div", { class: "att" }, html("div", { class: "bar" }, ...buttons, words),
    said, trouble, tree, scroll));
  show();
  const observer = new ResizeObserver(() => {
    draw();
    scroll.tabIndex = scroll.scrollWidth > scroll.clientWidth ? 0 : -1; // too wide: the keyboard scrolls it, too
  });
  observer.observe(wires);
  observer.observe(scroll);
  const events = "change:scene change:said change:trouble change:pressed";
  model.on(events, show);
  return () => {
    observer.disconnect();
    model.off(events, show);
  };
}

export default { render };
