"""How long a change among many processes takes to be seen in the live tree, for `./lab bench`.

All of it is real: a lab with so many processes, the widget and its thread in a notebook's kernel, JupyterLab, and
Chromium. The clock starts when the thread begins the look that finds the change, and stops when the browser has painted
it. What a reader waits besides, until that look, is live.PERIOD at most. See also: requestAnimationFrame
(developer.mozilla.org).
"""

import re
import statistics
import tempfile
from pathlib import Path

from helpers import browser
from helpers.processes import wait_until

CHANGES = 11  # how often it is measured; the first one warms up

START = """
import os, sys, time
sys.path.insert(0, {checkout!r})
from helpers import benchmarks, live, processes
from helpers.lab import start_lab
lab = start_lab()
first = [lab.start(["sleep", "600"], echo=False) for _ in range({changes})]
more = str({processes} - 2 - {changes})
lab.start([os.path.realpath(sys.executable), "-I", "-S", "-c", benchmarks.SPAWN, more], echo=False)
everyone = processes.wait_until(lambda: len(now := lab.processes()) == {processes} and now, "all processes", 60)
moments = []  # of each look: when it began, and the PIDs that it found gone
looks = live.looks

def noted(proc):
    seen = looks(proc)
    while True:
        began = time.time()
        rows = next(seen)
        moments.append((began, [row["key"].partition("-")[0] for row in rows or () if row["change"] == "gone"]))
        yield rows

live.looks = noted
tree = live.tree(lab)
tree
"""
#: Ends a process that is in sight. Prints when the look that found it gone began, once that has long been painted.
CHANGE = """
ended = first.pop(0)
ended.kill(9), ended.wait()
found = lambda: next((began for began, gone in list(moments) if str(ended.pid) in gone), None)
began = processes.wait_until(found, "the look", 30)
time.sleep(0.5)
print(f"began {began * 1000:.1f}")
"""
#: Notes each moment at which a change of the tree has been painted, in ms of the same clock.
WATCH = """() => {
  window.painted = [];
  const painted = new MessageChannel(); // a message that is sent in a frame arrives after it was painted
  painted.port1.onmessage = () => window.painted.push(performance.timeOrigin + performance.now());
  const changed = () => requestAnimationFrame(() => painted.port2.postMessage(0));
  const everything = { attributes: true, characterData: true, childList: true, subtree: true };
  new MutationObserver(changed).observe(document.querySelector(".unc-scroll"), everything);
}"""


def benchmark(processes=1000):
    """The median of the ms from a look that finds a change to the painted picture.

    Raises LookupError, with the reason in words, when there is no browser here.
    """
    changes = min(CHANGES, processes - 2)
    start = START.format(checkout=str(Path(__file__).resolve().parent.parent), changes=changes, processes=processes)
    with (
        browser.chromium() as chromium,
        tempfile.TemporaryDirectory() as place,
        browser.jupyter(place, [start, CHANGE, "lab.close()"]) as address,
    ):
        page = browser.open_notebook(chromium, address)
        browser.run(page, 0)
        page.locator(".unc [role=treeitem]").first.wait_for(timeout=60_000)
        page.evaluate(WATCH)
        found = [_change(page) for _ in range(changes)]
        browser.run(page, 2)
        return statistics.median(found[1:])


def _change(page):
    """One change: the ms from the look to the picture."""
    before = _began(page)
    browser.run(page, 1)
    began = wait_until(lambda: _began(page) not in (None, before) and _began(page), "the look")
    find = "began => window.painted.find((moment) => moment >= began)"
    return wait_until(lambda: page.evaluate(find, began), "the change in the browser", 20) - began


def _began(page):
    said = re.search(r"began ([\d.]+)", browser.outputs(page))
    return float(said[1]) if said else None
