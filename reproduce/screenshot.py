"""A picture of the page of published results: `python -m reproduce.screenshot` → results/page.png.

Taken by headless Chromium, driven through its own driver (Debian: chromium, chromium-driver). Fonts differ from machine to
machine, so the picture is no part of `make render`: it is taken when the page has changed to look at. Its hash in the
pictures.json beside it is written anew, that of no other file.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from eval.published import list_picture
from otca.errors import InputError
from otca.files import write_atomic
from otca.signals import run_command

SIZE = (1200, 800)
"""Width and height of the picture in pixels."""

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)


def programs() -> tuple[str, str] | None:
    """Paths of Chromium and of its driver; None where one is missing."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    return (program, driver) if program and driver else None


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """Headless Chromium with a fresh profile; what its console says is kept. Nothing is downloaded.

    Raises InputError where Chromium or its driver is not installed.
    """
    found = programs()
    if found is None:
        raise InputError("no chromium and chromedriver on the path; install the packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=Service(found[1]))
        try:
            yield browser
        finally:
            browser.quit()


def resize(browser: webdriver.Chrome, width: int, height: int) -> None:
    """Give the page a window of so many pixels."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def take(page: Path, place: str, out: Path) -> None:
    """Write a picture of a page as it looks from one of its places on (an id; empty: the top)."""
    if not page.is_file():
        raise InputError(f"--page {page}: no such file; write it with python -m reproduce.page")
    with chromium() as browser:
        resize(browser, *SIZE)
        browser.get(f"{page.resolve().as_uri()}#{place}")
        WebDriverWait(browser, 20).until(lambda b: b.execute_script("return [...document.images].every((i) => i.complete)"))
        browser.execute_script("document.activeElement.blur()")
        write_atomic(out, browser.get_screenshot_as_png())


def main(argv: list[str] | None = None) -> int:
    """Take the picture; exit code 2 with one line where there is no page or no browser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.screenshot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", type=Path, default=Path("results/index.html"), help="the page (default: results/index.html)")
    parser.add_argument("--place", default="gallery-image-cpu", help="id of the part to show (default: gallery-image-cpu)")
    parser.add_argument("--out", type=Path, default=Path("results/page.png"), help="file to write (default: results/page.png)")
    args = parser.parse_args(argv)

    def command() -> None:
        take(args.page, args.place, args.out)
        list_picture(args.out)

    return run_command("screenshot", command)


if __name__ == "__main__":
    sys.exit(main())
