"""The picture of a report in docs/reading-the-plots.md: report.html in a real browser, at a step of its player.

    python docs/make_report_picture.py runs/compare/report.html --step 5

Needs the extra 'browser' and Chromium.
"""

import argparse
import io
import pathlib
import shutil

from PIL import Image
from playwright.sync_api import sync_playwright

FILE = pathlib.Path(__file__).parent / "report.png"
WIDTH, N_COLORS = 1120, 128


def picture(page_file: pathlib.Path, step: int, scheme: str) -> Image.Image:
    """The whole page with its player at that step."""
    browser = next(path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name)))
    with sync_playwright() as driver, driver.chromium.launch(executable_path=browser, args=["--no-sandbox"]) as chrome:
        page = chrome.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme=scheme)
        page.goto(page_file.resolve().as_uri())
        page.wait_for_selector("#player[data-ready]")
        page.locator(".slider").focus()
        for _ in range(step):
            page.keyboard.press("ArrowRight")
        page.evaluate("document.activeElement.blur()")
        return Image.open(io.BytesIO(page.screenshot(full_page=True)))


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=pathlib.Path)
    parser.add_argument("--step", type=int, default=0)
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--out", type=pathlib.Path, default=FILE)
    options = parser.parse_args()
    drawn = picture(options.report, options.step, options.scheme)
    drawn.convert("RGB").quantize(N_COLORS, dither=Image.Dither.NONE).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
