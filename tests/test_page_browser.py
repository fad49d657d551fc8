"""The page of published results in a real browser, from disk: sorting, rows, filters, clips, attacks, colours, small screens.

Needs Chromium and its driver (Debian: chromium, chromium-driver); skipped without, but not where the variable CI is set.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from otca.errors import InputError
from reproduce.page import main
from reproduce.screenshot import SIZE, chromium, programs, resize, take
from tests.pages import ATTACK, lead, open_part, shown_column, some_results, visible

TABLE1 = "#document-table1-cpu"


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium with a profile of its own; its console is kept."""
    if programs() is None and not os.environ.get("CI"):
        pytest.skip("no Chromium with its driver here; install the packages chromium and chromium-driver")
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Address of a page made from a few results, one prompt of which is an attack."""
    folder = some_results(tmp_path_factory.mktemp("page") / "results")
    assert main(["--results", str(folder)]) == 0
    return (folder / "index.html").as_uri()


@pytest.fixture
def page(browser, address):
    """The page as it opens, light, on a wide screen; whatever a test does, the console stays silent."""
    resize(browser, 1200, 900)
    prefer(browser, "light")
    browser.get("about:blank")
    browser.get(address)
    yield browser
    assert browser.get_log("browser") == []


def prefer(browser, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


# --------------------------------------------------------------------------------------------------------------------- tests
def test_heads_sort_by_click_and_by_keyboard(page):
    table = open_part(page, TABLE1).find_element(By.TAG_NAME, "table")
    heads = table.find_elements(By.CSS_SELECTOR, "thead th")
    at = [head.text for head in heads].index("Accuracy ↑")
    before = shown_column(table, at)
    assert heads[at].get_attribute("aria-sort") == "none"
    heads[at].find_element(By.TAG_NAME, "button").click()
    rising = shown_column(table, at)
    assert [lead(t) for t in rising] == sorted(map(lead, before)) and rising != before
    assert heads[at].get_attribute("aria-sort") == "ascending"
    heads[at].find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert [lead(t) for t in shown_column(table, at)] == sorted(map(lead, before), reverse=True)
    assert heads[at].get_attribute("aria-sort") == "descending"
    heads[0].find_element(By.TAG_NAME, "button").send_keys(Keys.SPACE)
    assert shown_column(table, 0) == sorted(shown_column(table, 0))
    assert [head.get_attribute("aria-sort") for head in heads] == ["ascending"] + ["none"] * (len(heads) - 1)
    assert "Sorted by Method" in page.find_element(By.ID, "said").get_attribute("textContent")


@pytest.mark.parametrize(
    "texts, expected",
    [
        (["1,200", "–", "53", "−7", ""], ["−7", "53", "1,200", "–", ""]),
        (["0.010", "< 0.001", "0.001"], ["< 0.001", "0.001", "0.010"]),
        (["[0.2, 1]", "[−0.3, 9]", "[0.1, 2]"], ["[−0.3, 9]", "[0.1, 2]", "[0.2, 1]"]),
        (["3e-05", "0.002 (quality)", ".5"], ["3e-05", "0.002 (quality)", ".5"]),
        (["otca@T10", "base", "otca@T5", "–"], ["base", "otca@T5", "otca@T10", "–"]),
    ],
)
def test_order_of_cells(page, texts, expected):
    """Numbers by value, names by name, missing values last in either direction."""
    code = (
        "const [texts, way] = arguments, numeric = isNumeric({rows: texts.map((t) => [t])}, 0);"
        "return [...texts].sort((a, b) => compareCells(a, b, numeric, way));"
    )
    missing = [text for text in expected if text in ("–", "")]
    present = [text for text in expected if text not in missing]
    assert page.execute_script(code, texts, 1) == present + missing
    assert page.execute_script(code, texts, -1) == present[::-1] + missing


def test_a_cell_opens_its_rows_which_are_on_disk(page):
    table = open_part(page, TABLE1).find_element(By.TAG_NAME, "table")
    row = next(r for r in table.find_elements(By.CSS_SELECTOR, "tbody tr") if r.text.split()[0] == "otca")
    cells = row.find_elements(By.CSS_SELECTOR, "button.cell")
    dialog = page.find_element(By.ID, "full")
    for cell, file in ((cells[3], "scores.csv.gz"), (cells[5], "sets.csv")):
        cell.click()
        assert dialog.is_displayed()
        links = [a.get_attribute("href") for a in dialog.find_elements(By.TAG_NAME, "a")]
        assert sum(link.endswith(f"/image/cpu/otca/seed3/{file}") for link in links) == 1 and len(links) == 2 * 20 + 2
        assert all(Path(unquote(urlparse(link).path)).is_file() for link in links)
        assert "seeds" in dialog.text and "Smallest detectable" in dialog.text and "P(improvement)" in dialog.text
        dialog.find_element(By.TAG_NAME, "button").send_keys(Keys.ESCAPE)
        assert not dialog.is_displayed()


@pytest.mark.parametrize(
    "place, method, head, title, value, seeds",
    [
        ("table1-cpu", "otca_tcd", "95 % interval", "Accuracy: otca_tcd less static_multi_reward", "95 % interval: [−0.0", 5),
        ("pairs-table1-cpu", "otca_tcd", "Difference", "Accuracy: otca_tcd less uniform_grpo", "−0.0", 5),
        ("pairs-ablations-tcd-cpu", "otca_tcd@sum", "p (Holm)", "Alignment: otca_tcd@sum less otca_tcd", "p (Holm): ", 3),
    ],
)
def test_a_difference_opens_the_rows_of_both_methods(page, place, method, head, title, value, seeds):
    """Of the seeds that both have; which one is subtracted is said."""
    opened = cell_of(open_part(page, f"#document-{place}"), method, head)
    page.execute_script("arguments[0].click()", opened)
    dialog = page.find_element(By.ID, "full")
    assert dialog.find_element(By.TAG_NAME, "h2").text == title
    assert dialog.find_element(By.CLASS_NAME, "value").text.startswith(value)
    lists, other = dialog.find_elements(By.CLASS_NAME, "runs"), title.rpartition(" ")[2]
    assert [[a.text for a in found.find_elements(By.TAG_NAME, "a")[::2]] for found in lists] == [
        [f"image/cpu/{name}/seed{k}/scores.csv.gz" for k in range(seeds)] for name in (method, other)
    ]
    assert f"{method}, seeds that both have:" in dialog.text and f"\n{other}, subtracted seed by seed:" in dialog.text
    links = [a.get_attribute("href") for a in dialog.find_elements(By.TAG_NAME, "a")]
    assert all(Path(unquote(urlparse(link).path)).is_file() for link in links)


def cell_of(part, method, head):
    """A method's cell in the first table of a part that has such a column."""
    for table in part.find_elements(By.TAG_NAME, "table"):
        heads = [th.text.replace("\n", " ") for th in table.find_elements(By.CSS_SELECTOR, "thead th")]
        if head in heads:
            at = shown_column(table, 0).index(method) + 1
            return table.find_element(By.CSS_SELECTOR, f"tbody tr:nth-child({at}) > :nth-child({heads.index(head) + 1}) button")
    return None


def test_credit_fidelity_opens_the_rows_of_its_study(page):
    part = open_part(page, "#document-credit-fidelity-image")
    page.execute_script("arguments[0].click()", cell_of(part, "process_credit", "half, quality"))
    dialog = page.find_element(By.ID, "full")
    links = [a.get_attribute("href") for a in dialog.find_elements(By.TAG_NAME, "a")]
    assert [link.rpartition("/image/")[2] for link in links] == ["half-cells.csv.gz", "half-samples.csv.gz"]
    assert dialog.text.startswith("Close\nprocess_credit: half, quality\n0.5")


def test_all_links_of_the_page_lead_to_files_or_places_on_it(page, address):
    links = page.execute_script("return [...document.querySelectorAll('a')].map((a) => a.href)")
    own = [link for link in links if link.startswith("file:")]
    assert set(links) - set(own) == {"https://arxiv.org/abs/2604.19234"} and len(own) > 30
    places = [link.partition("#")[2] for link in own if link.startswith(f"{address}#")]
    assert all(page.execute_script("return document.getElementById(arguments[0]) !== null", place) for place in places)
    assert all(Path(unquote(urlparse(link).path)).is_file() for link in own)


def test_arrow_keys_go_from_cell_to_cell(page):
    rows = open_part(page, TABLE1).find_elements(By.TAG_NAME, "tr")[1:4]
    cells = [row.find_elements(By.CSS_SELECTOR, "button.cell") for row in rows]
    assert [cell.get_attribute("tabindex") for cell in (*cells[0][:2], cells[1][0])] == ["0", "-1", "-1"]
    page.execute_script("arguments[0].focus()", cells[0][0])
    for key, expected in ((Keys.ARROW_RIGHT, cells[0][1]), (Keys.ARROW_DOWN, cells[1][1]), (Keys.ARROW_LEFT, cells[1][0])):
        page.switch_to.active_element.send_keys(key)
        assert page.switch_to.active_element == expected
    assert cells[1][0].get_attribute("tabindex") == "0" and cells[0][0].get_attribute("tabindex") == "-1"


def test_filters_of_medium_skill_and_method(page):
    modality, skill = (Select(page.find_element(By.ID, f"filter-{name}")) for name in ("modality", "skill"))
    images, clips = (page.find_element(By.ID, f"gallery-{name}") for name in ("image-cpu", "video-quick"))
    table1, table2 = (page.find_element(By.ID, f"document-{name}") for name in ("table1-cpu", "table2-quick"))
    others = [page.find_element(By.ID, f"document-{name}") for name in ("pairs-table1-cpu", "embedded-image")]
    modality.select_by_visible_text("video")
    assert [part.is_displayed() for part in (images, clips, table1, table2, *others)] == [False, True, False, True, False, False]
    modality.select_by_visible_text("image")
    assert [part.is_displayed() for part in (images, clips, table1, table2)] == [True, False, True, False]
    open_part(page, "#gallery-image-cpu")
    figures, by_skill = "#gallery-image-cpu figure", f"{TABLE1} .scroll:nth-of-type(2)"
    everything = visible(page, figures)
    skill.select_by_visible_text("counting")
    assert visible(page, figures) == everything // 6
    assert [head.text for head in page.find_elements(By.CSS_SELECTOR, f"{by_skill} thead th:not([hidden])")] == [
        "Method",
        "Counting ↑",
    ]
    page.find_element(By.CSS_SELECTOR, "#methods summary").click()
    page.find_element(By.XPATH, "//button[text()='None']").click()
    assert page.find_element(By.ID, "said").get_attribute("textContent") == "2 tables and galleries shown"
    left = [visible(page, f"main {name}") for name in ("figure", "details", "table", "h4")]
    assert left == [0, 2, 1, 0]  # embedded/image.md and the study, whose first table names no method
    page.find_element(By.ID, "method-otca").send_keys(Keys.SPACE)
    assert visible(page, figures) == 1
    assert shown_column(page.find_element(By.CSS_SELECTOR, f"{TABLE1} table"), 0) == ["otca"]
    page.find_element(By.XPATH, "//button[text()='All']").click()
    skill.select_by_visible_text("all")
    assert visible(page, figures) == everything


def test_clips_play(page):
    part = open_part(page, "#gallery-video-quick")
    video = part.find_element(By.TAG_NAME, "video")
    assert [video.get_property(name) for name in ("muted", "loop", "controls", "paused")] == [True] * 4
    part.find_element(By.CSS_SELECTOR, "button.together").click()
    WebDriverWait(page, 15).until(lambda _: video.get_property("currentTime") > 0.05)
    assert video.get_property("videoWidth") > 0 and not video.get_property("paused")
    part.find_element(By.CSS_SELECTOR, "button.together").click()
    assert video.get_property("paused")


def test_pictures_and_curves_are_drawn_and_described(page):
    part = open_part(page, "#gallery-image-cpu")
    figure = next(f for f in part.find_elements(By.TAG_NAME, "figure") if f.text.startswith("otca "))
    picture, curve = figure.find_element(By.TAG_NAME, "img"), figure.find_element(By.TAG_NAME, "svg")
    page.execute_script("arguments[0].scrollIntoView()", picture)
    WebDriverWait(page, 10).until(lambda _: picture.get_property("naturalWidth") == 64)
    assert "picture of otca for" in picture.get_attribute("alt")
    assert "credit of steps 0, 1, 2, 3, 4: alignment " in curve.get_attribute("aria-label")
    assert len(curve.find_elements(By.TAG_NAME, "polyline")) == 3 and "credit" in curve.text and "step" in curve.text
    assert part.text.count("No probe was recorded") == 1


def test_a_prompt_that_attacks_is_text(page):
    part = open_part(page, "#gallery-image-cpu")
    head = part.find_element(By.TAG_NAME, "h4").get_attribute("textContent")
    assert head.startswith(ATTACK)
    assert page.execute_script("return document.querySelectorAll('main script, main img[src=x]').length") == 0
    assert page.execute_script("return document.scripts.length") == 2


def test_the_button_for_dark_colours_changes_them(page):
    def ground():
        return page.execute_script("return getComputedStyle(document.body).backgroundColor")

    button, light = page.find_element(By.ID, "theme"), ground()
    assert button.get_attribute("aria-pressed") == "false" and light == "rgb(255, 255, 255)"
    button.click()
    assert button.get_attribute("aria-pressed") == "true" and ground() != light
    button.send_keys(Keys.ENTER)
    assert button.get_attribute("aria-pressed") == "false" and ground() == light


def test_a_reader_who_prefers_dark_has_it(browser, address):
    prefer(browser, "dark")
    browser.get(address)
    assert browser.find_element(By.ID, "theme").get_attribute("aria-pressed") == "true"
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(22, 25, 29)"


def test_nothing_scrolls_sideways_on_a_small_screen_but_tables(page):
    resize(page, 360, 740)
    page.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
    WebDriverWait(page, 10).until(lambda _: page.find_elements(By.TAG_NAME, "video"))
    assert page.execute_script("return document.documentElement.scrollWidth") <= 360
    sizes = "return [...document.querySelectorAll('button, select')].map((b) => [b.offsetWidth, b.offsetHeight])"
    drawn = [size for size in page.execute_script(sizes) if any(size)]
    assert len(drawn) > 1000 and min(map(min, drawn)) >= 24  # targets of a finger
    region = page.find_element(By.CSS_SELECTOR, f"{TABLE1} .scroll")
    assert page.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", region)
    assert region.get_attribute("tabindex") == "0" and region.get_attribute("aria-label").startswith("Table 1")


def test_a_picture_of_the_page_is_taken(address, tmp_path):
    take(Path(unquote(urlparse(address).path)), "gallery-image-cpu", tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == SIZE and len(picture.convert("RGB").getcolors(SIZE[0] * SIZE[1])) > 500
    with pytest.raises(InputError, match=r"none\.html: no such file; write it with python -m reproduce\.page"):
        take(tmp_path / "none.html", "", tmp_path / "none.png")


def test_the_first_stop_of_the_tab_key_skips_to_the_results(page):
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    first = page.switch_to.active_element
    assert first.text == "Skip to the results" and first.location["x"] >= 0
    first.send_keys(Keys.ENTER)
    assert page.switch_to.active_element.get_attribute("id") == "main"
