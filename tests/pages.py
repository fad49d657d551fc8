"""A small folder of published results for tests of the page: real tables with their runs and pairs, a study, and a prompt that is
an attack; and how tests look at the page in a browser.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from eval.sources import read_sources

RESULTS = Path(__file__).parent.parent / "results"
TABLES = ("table1/quick", "table1/cpu", "table2/quick", "ablations/tcd/cpu")
OTHERS = ("pairs/table1-cpu.md", "pairs/ablations-tcd-cpu.md", "embedded/image.md", "embedded/video.md", "README.md")
STUDY = "credit_fidelity/image"
ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \u2028 ${x}"


def some_results(folder: Path) -> Path:
    """Copies of `TABLES`, their runs, `OTHERS` and `STUDY`; the first image prompt of the cpu tier is replaced by `ATTACK`."""
    for name in TABLES:
        shutil.copytree(RESULTS / name, folder / name)
        for run in read_sources(RESULTS / name)[1]:
            shutil.copytree(RESULTS / run, folder / run, dirs_exist_ok=True)
    shutil.copytree(RESULTS / STUDY, folder / STUDY)
    for name in OTHERS:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(RESULTS / name, folder / name)
    for listing in folder.glob("image/cpu/*/seed*/media/prompts.jsonl"):
        rows = [json.loads(line) for line in listing.read_text().splitlines()]
        rows[0]["prompt"] = ATTACK
        listing.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def open_part(browser, selector):
    """Open a document or gallery by its summary and wait until it is filled."""
    part = browser.find_element(By.CSS_SELECTOR, selector)
    if part.get_attribute("open") is None:
        part.find_element(By.TAG_NAME, "summary").click()
    WebDriverWait(browser, 10).until(lambda _: part.find_elements(By.CSS_SELECTOR, "table, figure"))
    return part


def shown_column(table, at):
    """Texts of a column, top to bottom, of the rows that are not hidden."""
    return [row.find_elements(By.XPATH, "*")[at].text for row in table.find_elements(By.CSS_SELECTOR, "tbody tr:not([hidden])")]


def lead(text):
    """The number that a cell begins with."""
    return float(text.split()[0].replace("−", "-").replace(",", ""))


def visible(browser, selector):
    """How many elements are laid out."""
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].filter((e) => e.offsetParent).length", selector
    )
