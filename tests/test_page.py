"""The page as a browser shows it: sorted by click and by key, read aloud, light and dark, narrow, with no network."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _browser import Browser, chromium
from test_report import make_report

from memory_paths.evaluation.summary import collect

pytestmark = pytest.mark.skipif(chromium() is None, reason="there is no Chromium; Debian's package is chromium")

# Every text that is drawn, with its colour and that of the ground below it, both over one another as they are seen.
CONTRASTS = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const over = (...colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const curve = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb.map((part) => curve(part / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const style = getComputedStyle(element);
    if (!own || element.closest(".unseen, script, title") || parseFloat(style.fontSize) === 0) continue;
    if (!element.getClientRects().length) continue;
    const grounds = [];
    for (let at = element; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor);
    const ground = over("white", ...grounds);
    const ink = element instanceof SVGElement ? style.fill : style.color;
    const [one, two] = [light(over(`rgb(${ground})`, ink)), light(ground)].sort((a, b) => b - a);
    found.push([(one + 0.05) / (two + 0.05), element.textContent.trim().slice(0, 30)]);
  }
  return found;
})()
"""
TABLE = 'document.querySelector("[aria-label=\\"Scores and costs of all paths\\"] table")'
HEAD = f'[...{TABLE}.tHead.rows[0].cells].find((head) => head.textContent.trim() === "retention")'


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    binary = chromium()
    assert binary is not None
    with Browser(binary, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep of several paths, loads and seeds; of its runs some have pages and one has failed."""
    folder = tmp_path_factory.mktemp("sweep")
    kept = {"none": 0.0, "oracle": 1.0, "icl": 0.5, "rag": 0.95, "sparse_memory": 0.8, "lora": 0.3, "full": 0.25}
    for load in (48, 480):
        for seed in (0, 1):
            for path, retention in kept.items():
                run = folder / f"{path}-{load}-{seed}"
                prior = -0.4 if path in ("lora", "full") else 0.0
                make_report(path, abs(retention - seed / 50), load=load, seed=seed, prior=prior).write(run)
    (folder / "broken").mkdir()
    (folder / "broken" / "failed.json").write_text(json.dumps({"error": "ValueError: no such model"}))
    collect(folder / "rag-48-0").write_page(folder / "rag-48-0")
    return collect(folder).write(folder)


@pytest.fixture
def page(browser: Browser, file: Path) -> Browser:
    browser.look()
    browser.open(file)
    return browser


def _open_all(page: Browser) -> None:
    page.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")


def _order(page: Browser) -> list[list[str]]:
    """What the column of retention says from top to bottom, for each group of rows."""
    at = page.run(f"{HEAD}.cellIndex")
    return page.run(
        f"[...{TABLE}.tBodies].map((body) => [...body.rows].filter((row) => row.className !== 'group')"
        f".map((row) => row.cells[{at}].firstChild.data.trim()))"
    )


def test_nothing_is_asked_of_the_network_and_nothing_goes_wrong(page: Browser, file: Path) -> None:
    requests = [event for event in page.events if event["method"] == "Network.requestWillBeSent"]
    assert [event["params"]["request"]["url"] for event in requests] == [file.as_uri()]
    told = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    assert [event for event in page.events if event["method"] in told] == []
    page.run("fetch('https://example.org').catch(() => 0)")
    refused = [event for event in page.events if event["method"] == "Log.entryAdded"]
    assert "Content Security Policy" in json.dumps(refused), "and nothing could be"


def test_a_click_sorts_the_rows_within_their_group_and_another_one_turns_them_round(page: Browser) -> None:
    before = _order(page)
    page.click(f"{HEAD}.querySelector('button')")
    assert page.run(f"{HEAD}.getAttribute('aria-sort')") == "descending"
    assert _order(page) == [sorted(group, key=float, reverse=True) for group in before] != before
    page.click(f"{HEAD}.querySelector('button')")
    assert page.run(f"{HEAD}.getAttribute('aria-sort')") == "ascending"
    assert _order(page) == [sorted(group, key=float) for group in before]
    assert page.run(f"[...{TABLE}.tBodies].map((body) => body.rows[0].textContent.trim())") == ["48 items", "480 items"]


def test_the_keyboard_reaches_the_head_of_a_column_shows_where_it_is_and_sorts(page: Browser) -> None:
    for _ in range(200):
        page.press("Tab")
        if page.run(f"document.activeElement.parentNode === {HEAD}"):
            break
    assert page.run("document.activeElement.textContent.trim()") == "retention"
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    before = _order(page)
    page.press("Enter", "\r")
    assert _order(page) == [sorted(group, key=float, reverse=True) for group in before]
    page.press(" ", " ")
    assert _order(page) == [sorted(group, key=float) for group in before]
    assert page.run("document.querySelectorAll('[aria-sort]').length") == 1


def test_every_table_but_the_matrices_can_be_sorted_by_each_of_its_columns(page: Browser) -> None:
    _open_all(page)
    tables = page.run("document.querySelectorAll('table:not(.map)').length")
    assert tables > 10
    assert page.run("document.querySelectorAll('.sorted').length") == tables
    assert page.run("[...document.querySelectorAll('.sorted thead th')].every((head) => head.querySelector('button'))")
    assert page.run(
        "[...document.querySelectorAll('.sorted thead button')].every((button) => {"
        " const table = button.closest('table'), before = table.rows.length;"
        " button.click(); return table.rows.length === before; })"
    )
    assert not [event for event in page.events if event["method"] == "Runtime.exceptionThrown"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_stands_out_from_its_ground(page: Browser, dark: bool) -> None:
    page.look(dark=dark)
    _open_all(page)
    shade = page.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in shade[4:-1].split(",")) < 150) == dark
    found = page.run(CONTRASTS)
    assert len(found) > 1000
    assert [text for ratio, text in found if ratio < 4.5] == [], "WCAG 2.2, 1.4.3"


@pytest.mark.parametrize("width", [320, 390, 800])
def test_a_narrow_window_scrolls_in_one_direction_only(page: Browser, width: int) -> None:
    page.look(width=width)
    _open_all(page)
    assert page.run("innerWidth") == width
    assert page.run("document.documentElement.scrollWidth") <= width


def test_what_is_drawn_has_a_name_and_what_is_written_an_order_for_who_listens(page: Browser) -> None:
    _open_all(page)
    nodes = [node for node in page("Accessibility.getFullAXTree")["nodes"] if not node.get("ignored")]

    def named(*roles: str) -> list[str]:
        return [_told(node, "name") for node in nodes if _told(node, "role") in roles]

    images = named("image", "img")
    assert "Retention of new items against change of prior knowledge, 480 items" in images
    assert "Retention by age, 48 items" in images
    tables = named("table")
    assert "Accuracy matrix of rag, percent" in tables
    assert "Accuracy matrix of rag, with intervals" in tables
    assert all([*images, *tables, *named("button", "link", "navigation", "region")])
    assert {"banner", "navigation", "main", "contentinfo", "region"} <= {_told(node, "role") for node in nodes}
    levels = [_level(node) for node in nodes if _told(node, "role") == "heading"]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    charts = page.run("document.querySelectorAll('figure > svg').length")
    beside = page.run(
        "[...document.querySelectorAll('figure > svg')].filter((each) => each.parentNode.querySelector('table')).length"
    )
    assert charts == beside > 4, "each chart has its figures beside it as a table"


def test_links_lead_to_where_they_say(page: Browser, file: Path) -> None:
    links = page.run("[...document.querySelectorAll('a')].map((link) => link.getAttribute('href'))")
    inner = [link[1:] for link in links if link.startswith("#")]
    assert len(inner) > 10
    assert page.run(f"{json.dumps(inner)}.every((id) => document.getElementById(id))")
    assert [link for link in links if not link.startswith("#")] == ["rag-48-0/report.html"]
    assert (file.parent / "rag-48-0" / "report.html").is_file()


def test_on_paper_the_page_is_light_and_no_table_is_cut_off(page: Browser) -> None:
    page("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert page.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page("Emulation.setDeviceMetricsOverride", width=1047, height=700, deviceScaleFactor=1, mobile=False)  # A4
    assert page.run("document.documentElement.scrollWidth") <= 1047
    assert page.run("[...document.querySelectorAll('.scroll')].every((each) => each.scrollWidth <= each.clientWidth)")
    assert [text for ratio, text in page.run(CONTRASTS) if ratio < 4.5] == []


def _told(node: dict[str, Any], what: str) -> str:
    return str(node.get(what, {}).get("value", ""))


def _level(node: dict[str, Any]) -> int:
    return next(int(entry["value"]["value"]) for entry in node["properties"] if entry["name"] == "level")
