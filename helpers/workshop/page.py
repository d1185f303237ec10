"""The instructor's page: one row a seat. Plain HTML; a short script brings it up to date. Pure."""

import html

STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --page: #fff; --line: #767676; --good: #00604a; --bad: #a33300 }
@media (prefers-color-scheme: dark) {
  :root { --text: #eee; --page: #181818; --line: #8a8a8a; --good: #4fd6b0; --bad: #ffab7d } }
body { font: 16px/1.45 sans-serif; margin: 1.5rem; color: var(--text); background: var(--page) }
table { border-collapse: collapse; width: 100% } caption { text-align: left; margin-bottom: .5rem }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top }
ul { margin: 0; padding: 0; list-style: none } .done { color: var(--good) } .red { color: var(--bad) }
button { font: inherit; color: inherit; background: transparent; border: 1px solid var(--line); border-radius: 4px;
  padding: .2rem .6rem; cursor: pointer } button:focus-visible, a:focus-visible { outline: 3px solid #0072b2;
  outline-offset: 2px } a { color: inherit } form { display: inline }
"""

SCRIPT = """
for (const form of document.querySelectorAll("form[data-ask]"))
  form.addEventListener("submit", event => { if (!confirm(form.dataset.ask)) event.preventDefault() })
async function refresh() {
  try {
    const answer = await fetch(location.pathname + "/rows", {cache: "no-store"})
    if (!answer.ok) return
    for (const [name, cells] of Object.entries(await answer.json()))
      for (const [column, text] of Object.entries(cells)) {
        const cell = document.getElementById(name + "-" + column)
        if (cell && cell.innerHTML !== text) cell.innerHTML = text
      }
    document.getElementById("news").textContent = ""
  } catch { document.getElementById("news").textContent = "The workshop does not answer. Trying again." }
}
setInterval(refresh, 3000)
"""


def ago(seconds):
    """`12 s ago`, `3 min ago`."""
    if seconds is None:
        return ""
    return f"{seconds} s ago" if seconds < 60 else f"{seconds // 60} min ago"


def cells(row):
    """{column: HTML} for one seat. `row` is what Board.row tells, with `state` and `memory` (MB or None) added."""
    current = next((one["number"] for one in row["exercises"] if not one["done"]), "")
    exercises = "".join(exercise(one, one["number"] == current) for one in row["exercises"])
    lesson = html.escape(f"{row['lesson']}: {row['title']}") if row["lesson"] else "no check yet"
    red = f'<p class="red">✗ failed: {html.escape(row["red"])}</p>' if row["red"] else ""
    memory = "" if row["memory"] is None else f"{row['memory']} MB"
    return {
        "state": row["state"], "lesson": lesson, "checks": html.escape(row["checks"]) + red,
        "exercises": f"<ul>{exercises}</ul>" if exercises else "", "heard": ago(row["silent"]), "memory": memory,
    }  # fmt: skip


def exercise(one, current):
    """One exercise as a line; the one that the seat is at in full, so that thirty seats fit on a screen or two."""
    state = "✓ {number} done" if one["done"] else "○ {number} " + tried(one["tries"])
    words = f": {html.escape(one['words'])}" if current else ""
    return f'<li class="{"done" if one["done"] else "open"}">{state.format(number=one["number"])}{words}</li>'


def tried(times):
    return {0: "open", 1: "tried once"}.get(times, f"tried {times} times")


def page(rows, action, xsrf, limits):
    """The whole page. `rows` maps seats' names to rows; `action` is the address that the buttons post to."""
    body = "".join(line(name, cells(row), action, xsrf) for name, row in rows.items())
    bounds = f"Limits of a seat: {html.escape(limits)}." if limits else "This machine grants no limits."
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Seats</title><style>{STYLE}</style></head><body><main>
<h1>Seats</h1>
<p>From the checks that the notebooks make: nobody's notebook is read. {bounds} <a href="../home">Your own seat</a></p>
<p id="news" role="status"></p>
<table><caption>Who is on which exercise</caption>
<thead><tr><th scope="col">Seat</th><th scope="col">Server</th><th scope="col">Lesson</th>
<th scope="col">Checks green</th><th scope="col">Exercises</th><th scope="col">Last check</th>
<th scope="col">Memory</th><th scope="col">Do</th></tr></thead>
<tbody>{body}</tbody></table></main><script>{SCRIPT}</script></body></html>
"""


def line(name, columns, action, xsrf):
    shown = "".join(f'<td id="{name}-{column}">{text}</td>' for column, text in columns.items())
    deeds = (
        ("restart", "Restart", f"Restart {name}? Its notebooks stay; what runs there ends."),
        ("reset", "Reset", f"Reset {name}? Everything that was written there is deleted."),
    )
    buttons = " ".join(
        f'<form method="post" action="{action}" data-ask="{ask}"><input type="hidden" name="_xsrf" value="{xsrf}">'
        f'<input type="hidden" name="seat" value="{name}"><button name="deed" value="{deed}" '
        f'aria-label="{words} {name}">{words}</button></form>'
        for deed, words, ask in deeds
    )
    return f'<tr><th scope="row">{name}</th>{shown}<td>{buttons}</td></tr>'
