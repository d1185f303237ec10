"""The pages can be read and worked by everybody: axe-core looks at them in the browser, in a light and a dark page.

axe-core finds what a program can find of WCAG 2.1, levels A and AA: contrast, names, roles, alternative texts. That
the keyboard reaches everything in the widgets is tested in test_live.py and test_namespaces_lesson.py.
"""

import json
import os
from pathlib import Path

import axe_playwright_python
import pytest
from conftest import CHECKOUT, opened_chromium
from test_structure import EVERY, LESSONS, by_name, codes, read

from helpers import reading, slides
from helpers.browser import run

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text()
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
themes = pytest.mark.parametrize("theme", ["light", "dark"])


@pytest.fixture(scope="module")
def browser():
    """One Chromium for all: most pages are looked at for a second."""
    with opened_chromium() as opened:
        yield opened


def violations(page, inside="html"):
    """What axe finds in the parts of a page that a selector names, as one line each."""
    assert page.locator(inside).count() >= 1, f"there is no {inside} to look at"
    page.evaluate(f"{AXE};0")
    options = {"runOnly": {"type": "tag", "values": RULES}, "resultTypes": ["violations"]}
    found = page.evaluate("([inside, options]) => axe.run(inside, options)", [inside, options])
    assert found["passes"], "axe has tested nothing"
    return [
        f"{one['id']}: {node['html'][:160]} {node['failureSummary'].splitlines()[-1].strip()}"
        for one in found["violations"] for node in one["nodes"]
    ]  # fmt: skip


def shot(page, name):
    if os.environ.get("SHOTS"):
        page.screenshot(path=f"{os.environ['SHOTS']}/{name}.png", full_page=True)


def test_axe_finds_what_is_wrong(browser):
    page = browser.new_page()
    page.set_content("<html lang=en><title>x</title><p style='color:#aaa;background:#fff'>pale</p><img src=x>"
                     "<button></button>")  # fmt: skip
    assert {line.split(":")[0] for line in violations(page)} == {"color-contrast", "image-alt", "button-name"}


@themes
@pytest.mark.parametrize("path", EVERY, ids=by_name)
def test_a_lesson_can_be_read_without_javascript(path, theme, browser, tmp_path):
    (tmp_path / "page.html").write_text(reading.page(path, theme))
    address, asked = (tmp_path / "page.html").as_uri(), []
    size = {"width": 1100, "height": 900}
    page = browser.new_page(java_script_enabled=False, viewport=size)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    shot(page, f"{path.parent.name}-{path.stem}-{theme}")
    page.close()
    page = browser.new_page(viewport=size)  # for axe, which is JavaScript itself; the page has none
    assert "<script" not in (tmp_path / "page.html").read_text()
    page.goto(address)
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == [], "the page wants the network"
    pictures = page.locator("img").evaluate_all("all => all.map(one => [one.naturalWidth, one.alt])")
    assert all(width > 50 and len(words) > 20 for width, words in pictures)
    assert pictures or "solutions" in path.parts
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1"), "it is wider than the window"
    assert violations(page) == []
    page.close()


WIDGETS = [
    f"import sys; sys.path.insert(0, {str(CHECKOUT)!r})\nfrom helpers import attach_widget, bundles, film, live\n"
    "from helpers import pod_widget, unshare_widget\nfrom helpers.lab import start_lab\nlab = start_lab()",
    'live.tree(lab, caption="The lab, now.")',
    "unshare_widget.show(lab, ['uts', 'net'])",
    "reel = film.record(lab, ['busybox', 'sh', '-c', 'busybox true; busybox false'], check=False)\n"
    "live.film(reel, 'A film.')",
    "pod_widget.show(lab, {'net': ['own', 'own']})",
    "bundles.make(lab, 'clock', ['sh', '-c', 'while :; do date; sleep 1; done'])\n"
    "lab.run(['runc', 'run', '--detach', '--bundle', 'clock', 'clock'], stdout='clock.log')\n"
    "commands = {'attach': ['cat'], 'exec': ['runc', 'exec', 'clock', 'cat'], 'logs': ['cat', 'clock.log']}\n"
    "attach_widget.show(lab, lab.container('clock'), commands, pressed='exec')",
    "lab.close()",
]


@themes
def test_the_widgets_in_jupyterlab_have_names_roles_and_contrast(theme, notebook):
    page = notebook(WIDGETS)
    page.evaluate("name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})",
                  f"JupyterLab {theme.title()}")  # fmt: skip
    page.wait_for_function("light => document.body.dataset.jpThemeLight === light", arg=str(theme == "light").lower())
    for number in range(len(WIDGETS) - 1):
        run(page, number)
    page.locator(".unc input[type=range]").wait_for()
    for kind in ("uns", "pod", "att"):
        page.locator(f".{kind}").first.wait_for()
    page.locator(".unc input[type=range]").focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.evaluate("document.querySelector('.uns').scrollIntoView()")
    shot(page, f"widgets-{theme}")
    page.locator(".att").evaluate("widget => widget.style.width = '300px'")  # as in a narrow window: it scrolls
    page.locator(".att .scroll[tabindex='0']").wait_for()
    found = {kind: violations(page, f".jp-OutputArea-output .{kind}") for kind in ("unc", "uns", "pod", "att")}
    run(page, len(WIDGETS) - 1)
    assert found == {"unc": [], "uns": [], "pod": [], "att": []}


@themes
def test_the_pages_of_a_workshop(theme, browser, tmp_path):
    from helpers.workshop import board, page, plan

    lessons = [board.read_lesson(path) for path in sorted((CHECKOUT / "notebooks").glob("*.ipynb"))]
    told = board.Board(lessons, ["instructor", "seat-01", "seat-02"])
    for words, done in zip(lessons[1].exercises, (True, False), strict=False):
        message = {"lesson": lessons[1].name, "kind": "exercise", "words": words, "done": done}
        told.hear("seat-01", json.dumps(message).encode())
    failed = {"lesson": lessons[1].name, "kind": "check", "words": min(lessons[1].checks), "done": False}
    told.hear("seat-02", json.dumps(failed).encode())
    rows = {name: {**told.row(name), "state": "ready", "memory": 120} for name in told.standings}
    members = plan.seats(3)
    opened = browser.new_page(color_scheme=theme, viewport={"width": 1200, "height": 700})
    for name, text in (("seats", page.page(rows, "seats", "x", "700 MB of memory")),
                       ("cards", plan.cards(members, {s.name: plan.code(s) for s in members}, "http://h:8000"))):
        (tmp_path / f"{name}.html").write_text(text)
        opened.goto((tmp_path / f"{name}.html").as_uri())
        shot(opened, f"{name}-{theme}")
        assert violations(opened) == []
    opened.close()


@themes
def test_slides_are_one_file_that_the_keyboard_works_and_the_network_is_off(theme, browser, tmp_path):
    (tmp_path / "slides.html").write_text(slides.page(CHECKOUT / "notebooks/01-runc.ipynb"))
    page = browser.new_page(color_scheme=theme, viewport={"width": 1280, "height": 720}, offline=True)
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((tmp_path / "slides.html").as_uri())
    total = page.locator(".slide").count()
    assert total >= 20 and page.locator(".slide:visible").count() == 1
    assert "What does it take to run a container?" in page.locator(".slide:visible").inner_text()
    seen = set()
    while page.locator("#place").inner_text() not in seen:
        seen.add(page.locator("#place").inner_text())
        if len(seen) % 9 == 5:
            assert violations(page, ".slide.now") + violations(page, "nav") == []
        page.keyboard.press("ArrowRight")
    assert f"Slide {total} of {total}" in page.locator("#place").inner_text()
    assert len(seen) > total
    shot(page, f"slides-{theme}")
    page.keyboard.press("Home")
    assert page.locator("#place").inner_text().startswith(f"Slide 1 of {total}")
    page.get_by_role("button", name="Next").press("Enter")
    assert not page.locator("#place").inner_text().startswith(f"Slide 1 of {total}, step 0")
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == [] == complaints
    page.close()


def test_slides_without_javascript_stand_one_below_the_other(browser, tmp_path):
    (tmp_path / "slides.html").write_text(slides.page(CHECKOUT / "notebooks/01-runc.ipynb"))
    page = browser.new_page(java_script_enabled=False)
    page.goto((tmp_path / "slides.html").as_uri())
    assert page.locator(".slide:visible").count() == page.locator(".slide").count() > 20
    page.close()


def test_every_lesson_has_slides_with_its_pictures_and_without_its_set_up(tmp_path):
    for path in LESSONS:
        made = slides.page(path)
        wanted = sum("image/png" in output.get("data", {}) for cell in codes(read(path)) for output in cell.outputs)
        assert made.count('src="data:image/png') >= wanted * 0.7
        assert "start_lab" not in made.split("<body>")[1].split("<h2")[0]
        assert "lab.close()" not in made and "exercise(" not in made
