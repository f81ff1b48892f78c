# check_report.py: the page of `sd report` in a real browser, 1,400 and 400 pixels wide, light and dark, and
# printed on A4 and Letter. Nothing extends beyond the page, the window or its own box. No two texts of a
# figure overlap. Letters are at least 10 pixels high (9 in print) and have enough contrast. Pictures are
# there. Everything in its JSON is drawn. Its script runs without an error, requests nothing from the
# network, and the page is under 3 MB.
#
#     python check_report.py [report/index.html] [--chromium PROGRAM] [--vnu vnu.jar] [--pictures DIR]
#
# Needs a Chromium and `pip install playwright` (written with 1.65.2), which is too large for
# requirements.txt. --vnu: the Nu HTML checker (java; 26.01.03) reads the page too. --pictures: screenshots
# and a PDF, to look at.
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
    const light = rgb => rgb.slice(0, 3)
        .map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)
    const ground = light(colour(getComputedStyle(document.body).backgroundColor))
    const stands_out = css => {
        const l = light(colour(css))
        return (Math.max(l, ground) + 0.05) / (Math.min(l, ground) + 0.05)
    }
    const apart = (a, b) =>
        a.right <= b.left + 0.5 || b.right <= a.left + 0.5 || a.bottom <= b.top + 2 || b.bottom <= a.top + 2
    const within = (a, b) => a.left >= b.left - 0.5 && a.right <= b.right + 0.5 &&
        a.top >= b.top - 0.5 && a.bottom <= b.bottom + 0.5

    if (page.scrollWidth > page.clientWidth)
        faults.push(`the page is ${page.scrollWidth} wide, the window ${page.clientWidth}`)
    for (const e of document.body.querySelectorAll("*")) {
        const box = e.getBoundingClientRect(), style = getComputedStyle(e)
        if (!box.width && !box.height) continue
        if (!(box.left >= -0.5 && box.right <= edge))
            faults.push(`${name(e)} reaches from ${box.left} to ${box.right}`)
        const svg = e.ownerSVGElement
        if (!svg && e.clientWidth && e.scrollWidth > e.clientWidth + 1)
            faults.push(`${name(e)} holds ${e.scrollWidth} pixels in ${e.clientWidth}`)
        if (svg && !within(box, svg.getBoundingClientRect()))
            faults.push(`${name(e)} is cut off by its figure`)
        if (e.localName == "img" && !(e.complete && e.naturalWidth && box.width >= 48))
            faults.push(`${name(e)} is not there, or too small`)

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
                if (a != b && !apart(a.getBoundingClientRect(), b.getBoundingClientRect()))
                    faults.push(`${name(a)} lies upon ${name(b)}`)
    }
    return [...new Set(faults)]
}"""

# What the page's JSON holds and the page does not show.
GAPS = """
() => {
    const results = JSON.parse(document.getElementById("results").textContent)
    const gaps = [], {paper, missing, systems, stages, trainings} = results
    const text = selector => [...document.querySelectorAll(selector)].map(e => e.textContent).join(" ")
    const expect = (ok, what) => { if (!ok) gaps.push(what) }
    const count = (selector, n) =>
        expect(document.querySelectorAll(selector).length === n, `${n} of ${selector} are expected`)
    for (const s of systems) {
        const fid = stages.find(stage => stage.stage === "fid-" + s.name)?.result?.fid
        const row = [...document.querySelectorAll("#table tbody tr")]
            .find(row => row.cells[0].textContent === s.title)
        expect(row?.cells[1].textContent === (fid === undefined ? "missing" : fid.toFixed(2)),
            `the table has no row of ${s.title} with its FID`)
        expect(missing.includes(s.title) === (fid === undefined), `${s.title} is missing, or is not`)
    }
    expect(text("#notes").includes("Partial") === (missing.length > 0 || !paper.finished),
        "a partial report says so, a whole one does not")
    expect(missing.every(title => text("#notes").includes(title)), "a partial report names what is missing")
    expect(text("p").includes(paper.model) && text("p").includes(paper.machine),
        "the model and the machine are named")
    count("#figure3 img", systems.flatMap(s => s.pictures).filter(p => p).length)
    count("#speed tbody tr", systems.flatMap(s => s.timings).length)
    count("#training figure", trainings.filter(t => t.log.length > 1).length)
    count("#claims tbody tr", 6)
    count("#stages tbody tr", stages.length)
    for (const stage of stages)
        expect(text("#stages td").includes(stage.command), `the command of ${stage.stage} is not there`)
    expect(!/undefined|NaN|null|\\[object/.test(text("section, #notes")),
        "it says undefined, NaN, null or [object")
    return gaps
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
    page.on("pageerror", lambda e: said.append(str(e)))
    page.emulate_media(media=media)
    page.goto(report.as_uri())
    if media == "screen":
        if pictures:
            page.screenshot(path=pictures / f"{width}-{scheme}.png", full_page=True)
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    faults = page.evaluate(FAULTS, {"smallest": 10 if media == "screen" else 9, "contrast": CONTRAST})
    faults += page.evaluate(GAPS)
    judge(what,
          faults + [f"it asks for {url}" for url in asked] + [f"the browser says: {text}" for text in said])
    page.close()


def main():
    p = argparse.ArgumentParser(description="The report in a real browser.")
    p.add_argument("report", nargs="?", default="report/index.html", type=Path)
    p.add_argument("--chromium",
                   default=next(filter(None,
                                       map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])),
                                None))
    p.add_argument("--vnu", type=Path)
    p.add_argument("--pictures", type=Path)
    a = p.parse_args()
    report = a.report.resolve(strict=True)
    if a.pictures:
        a.pictures.mkdir(parents=True, exist_ok=True)
    size = report.stat().st_size
    judge(f"{size / 1e6:.2f} MB", [] if size < LARGEST else [f"more than {LARGEST / 1e6:.0f} MB"])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=a.chromium,
                                             args=["--no-sandbox", "--disable-gpu"])
        for width in 1400, 400:
            for scheme in "light", "dark":
                look(browser, report, f"{width} pixels, {scheme}", width, scheme, "screen", a.pictures)
        for paper, width in ("A4", 794), ("Letter", 816):
            look(browser, report, f"printed on {paper}", width - 2 * MARGIN, "dark", "print", a.pictures)
        if a.pictures:
            page = browser.new_page()
            page.goto(report.as_uri())
            page.pdf(path=a.pictures / "report.pdf", format="A4",
                     margin={side: f"{MARGIN}px" for side in ("top", "right", "bottom", "left")})
        browser.close()
    if a.vnu:
        run = subprocess.run(["java", "-jar", a.vnu, report], capture_output=True, text=True)
        judge("valid HTML", run.stderr.splitlines() or ([] if run.returncode == 0 else ["vnu failed"]))
    print(f"{sum(good)} passed, {len(good) - sum(good)} failed")
    sys.exit(0 if all(good) else 1)


main()
