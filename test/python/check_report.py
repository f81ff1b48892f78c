# check_report.py: the page that `sd report` wrote, in a real browser. 1,400 and 400 pixels wide, light and dark, and laid
# out for A4 and Letter: nothing reaches out of the page, the window or its own box; no two texts of a figure lie upon each
# other; letters are no smaller than 10 pixels (9 in print) and stand out from what is behind them; pictures are there; it
# asks the network for nothing; it is under 3 MB.
#
#     python check_report.py [report/index.html] [--chromium /usr/bin/chromium] [--vnu vnu.jar] [--pictures DIR]
#
# Needs a Chromium and `pip install playwright` (written with 1.65.2), which is too large for requirements.txt. --vnu: the
# Nu HTML checker (java; 26.01.03) reads it too. --pictures: screenshots and a PDF, to look at: no program sees it all.
import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

LARGEST = 3_000_000  # bytes
CONTRAST = {"text": 4.5, "shape": 3.0}  # WCAG 2.1, level AA
MARGIN = 38  # pixels at each side of a printed page: 1 cm

# What is wrong with the page, a line each.
FAULTS = """
({smallest, contrast}) => {
    const faults = [], page = document.scrollingElement, edge = page.clientWidth + 0.5
    const name = e => `${e.localName}${e.classList.length ? "." + [...e.classList].join(".") : ""} "${
        (e.textContent || e.alt || "").trim().slice(0, 30)}"`
    const colour = css => css.match(/[\\d.]+/g).map(Number)
    const light = rgb => rgb.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)
    const ground = light(colour(getComputedStyle(document.body).backgroundColor))
    const stands_out = css => {
        const l = light(colour(css))
        return (Math.max(l, ground) + 0.05) / (Math.min(l, ground) + 0.05)
    }
    const apart = (a, b) => a.right <= b.left + 0.5 || b.right <= a.left + 0.5 || a.bottom <= b.top + 2 || b.bottom <= a.top + 2
    const within = (a, b) => a.left >= b.left - 0.5 && a.right <= b.right + 0.5 && a.top >= b.top - 0.5 && a.bottom <= b.bottom + 0.5

    if (page.scrollWidth > page.clientWidth) faults.push(`the page is ${page.scrollWidth} wide, the window ${page.clientWidth}`)
    for (const e of document.body.querySelectorAll("*")) {
        const box = e.getBoundingClientRect(), style = getComputedStyle(e)
        if (!box.width && !box.height) continue
        if (!(box.left >= -0.5 && box.right <= edge)) faults.push(`${name(e)} reaches from ${box.left} to ${box.right}`)
        const svg = e.ownerSVGElement
        if (!svg && e.clientWidth && e.scrollWidth > e.clientWidth + 1)
            faults.push(`${name(e)} holds ${e.scrollWidth} pixels in ${e.clientWidth}`)
        if (svg && !within(box, svg.getBoundingClientRect())) faults.push(`${name(e)} is cut off by its figure`)
        if (e.localName == "img" && !(e.complete && e.naturalWidth && box.width >= 48)) faults.push(`${name(e)} is not there, or too small`)

        if ([...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())) {
            const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1
            const size = parseFloat(style.fontSize) * scale, c = stands_out(svg ? style.fill : style.color)
            if (!(size >= smallest)) faults.push(`${name(e)} has letters of ${size.toFixed(1)} pixels`)
            if (!(c >= contrast.text)) faults.push(`${name(e)} has a contrast of ${c.toFixed(2)}`)
        } else if (svg && e.localName != "text")
            for (const css of [style.fill, style.stroke])
                if (css != "none" && !e.classList.contains("axis") && !(stands_out(css) >= contrast.shape))
                    faults.push(`${name(e)} has a contrast of ${stands_out(css).toFixed(2)}`)
    }
    for (const svg of document.querySelectorAll("svg")) {
        const texts = [...svg.querySelectorAll("text")], shapes = [...svg.querySelectorAll("text, rect")]
        for (const a of texts)
            for (const b of shapes)
                if (a != b && !apart(a.getBoundingClientRect(), b.getBoundingClientRect())) faults.push(`${name(a)} lies upon ${name(b)}`)
    }
    return [...new Set(faults)]
}"""

good = []


def judge(what, faults):
    good.append(not faults)
    print("ok     " if good[-1] else "FAILED ", what, flush=True)
    for fault in faults[:20]:
        print("         " + fault)


def look(browser, report, what, width, scheme, media, pictures):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(300_000)  # milliseconds; the machine may be busy
    asked, said = [], []
    page.on("request", lambda r: asked.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
    page.on("console", lambda m: said.append(m.text))
    page.emulate_media(media=media)
    page.goto(report.as_uri())
    if media == "screen":
        if pictures:
            page.screenshot(path=pictures / f"{width}-{scheme}.png", full_page=True)
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    faults = page.evaluate(FAULTS, {"smallest": 10 if media == "screen" else 9, "contrast": CONTRAST})
    judge(what, faults + [f"it asks for {url}" for url in asked] + [f"the browser says: {text}" for text in said])
    page.close()


def main():
    p = argparse.ArgumentParser(description="The report in a real browser.")
    p.add_argument("report", nargs="?", default="report/index.html", type=Path)
    p.add_argument("--chromium", default=next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None))
    p.add_argument("--vnu", type=Path)
    p.add_argument("--pictures", type=Path)
    a = p.parse_args()
    report = a.report.resolve(strict=True)
    if a.pictures:
        a.pictures.mkdir(parents=True, exist_ok=True)
    size = report.stat().st_size
    judge(f"{size / 1e6:.2f} MB", [] if size < LARGEST else [f"more than {LARGEST / 1e6:.0f} MB"])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=a.chromium, args=["--no-sandbox", "--disable-gpu"])
        for width in 1400, 400:
            for scheme in "light", "dark":
                look(browser, report, f"{width} pixels, {scheme}", width, scheme, "screen", a.pictures)
        for paper, width in ("A4", 794), ("Letter", 816):
            look(browser, report, f"printed on {paper}", width - 2 * MARGIN, "dark", "print", a.pictures)
        if a.pictures:
            page = browser.new_page()
            page.goto(report.as_uri())
            page.pdf(path=a.pictures / "report.pdf", format="A4", margin={side: f"{MARGIN}px" for side in ("top", "right", "bottom", "left")})
        browser.close()
    if a.vnu:
        run = subprocess.run(["java", "-jar", a.vnu, report], capture_output=True, text=True)
        judge("valid HTML", run.stderr.splitlines() or ([] if run.returncode == 0 else ["vnu failed"]))
    print(f"{sum(good)} passed, {len(good) - sum(good)} failed")
    sys.exit(0 if all(good) else 1)


main()
