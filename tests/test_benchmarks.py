"""`./lab bench`: what it measures, what it says where something is missing, and its table."""

import json
import sys

import pytest

from helpers import benchmarks, machine, painting
from helpers.benchmarks import Row


def test_every_work_is_measured_beside_each_number_of_processes(monkeypatch, capsys, leak_check):
    monkeypatch.setattr(benchmarks, "SIZES", (14, 20))
    monkeypatch.setattr(benchmarks, "TIMES", 2)
    monkeypatch.setattr(painting, "benchmark", lambda size: float(size))  # the browser has its own test
    find = machine.find  # Podman leaves a process of its own behind, as every podman command of an ordinary user does
    monkeypatch.setattr(machine, "find", lambda name: find(name) if name != "podman" else None)
    assert benchmarks.main(as_json=True) == 0
    rows = json.loads(capsys.readouterr().out)
    sizes = {}
    for row in rows:
        if not row["skipped"]:
            assert row["ours"] > 0 and (row["theirs"] is None or row["theirs"] > 0)
            sizes.setdefault((row["work"], row["partner"]), []).append(row["processes"])
    assert ("lab start to first step done", "unshare -Urmpf true") in sizes and len(sizes) >= 2
    assert all(found == [14, 20] for found in sizes.values())


def test_the_table_says_the_ratio_and_whether_it_is_good():
    rows = [
        Row("start", 20.0, "unshare", 4.0, 10, 1000),
        Row("tree", 5.0, "lsns", 10.0, 0.3, 1000),
        Row("paint", 61.0, target=60),
        Row("set-up", partner="pip", target=1.2, skipped="it downloads"),
    ]
    assert [row.good for row in rows] == [True, False, False, None]
    assert benchmarks.show(rows) == """\
work    processes  ours     theirs   ratio  target        against
start   1,000      20.0 ms  4.0 ms   5.00   10      good  unshare
tree    1,000      5.0 ms   10.0 ms  0.50   0.3     over  lsns
paint              61.0 ms                  60 ms   over
set-up             skipped                  1.2           pip: it downloads"""


def test_the_time_until_a_change_is_painted_is_measured_in_a_real_browser(leak_check):
    try:
        assert 1 < painting.benchmark(processes=10) < 10_000
    except LookupError as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize(
    "missing, words", [("playwright.sync_api", "`./lab test` installs it"), ("", "Chromium is missing")]
)
def test_without_a_browser_the_benchmark_says_so_and_measures_nothing(missing, words, monkeypatch):
    pytest.importorskip("playwright.sync_api")
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr("helpers.browser.PROGRAMS", ("no-such-browser",))
    (row,) = benchmarks.live_cost()
    assert words in row.skipped and row.ours is None
