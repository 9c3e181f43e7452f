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
WIDTH, MARGIN, N_COLORS = 1120, 16, 128


def picture(page_file: pathlib.Path, step: int, scheme: str) -> Image.Image:
    """The whole page with its player at that step, in two columns."""
    browser = next(path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name)))
    with sync_playwright() as driver, driver.chromium.launch(executable_path=browser, args=["--no-sandbox"]) as chrome:
        page = chrome.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme=scheme)
        page.goto(page_file.resolve().as_uri())
        page.wait_for_selector("#player[data-ready]")
        page.locator(".slider").focus()
        for _ in range(step):
            page.keyboard.press("ArrowRight")
        page.evaluate("document.activeElement.blur()")
        bottoms = "all => all.map(part => part.getBoundingClientRect().bottom + scrollY)"
        ends = page.eval_on_selector_all("section", bottoms)
        whole = Image.open(io.BytesIO(page.screenshot(full_page=True)))
    cut = min((round(end) + MARGIN for end in ends), key=lambda y: abs(y - whole.height / 2))
    columns = Image.new(
        "RGB", (2 * WIDTH, max(cut, 2 * MARGIN + whole.height - cut)), whole.convert("RGB").getpixel((0, 0))
    )
    columns.paste(whole.crop((0, 0, WIDTH, cut)), (0, 0))
    columns.paste(whole.crop((0, cut, WIDTH, whole.height)), (WIDTH, 2 * MARGIN))
    return columns


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=pathlib.Path)
    parser.add_argument("--step", type=int, default=0)
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--out", type=pathlib.Path, default=FILE)
    options = parser.parse_args()
    drawn = picture(options.report, options.step, options.scheme)
    drawn.quantize(N_COLORS, dither=Image.Dither.NONE).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
