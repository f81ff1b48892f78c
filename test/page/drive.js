// drive.js: build/sd.html in a real browser, as a reader uses it. Prints what fails, and the figures.
//     node test/page/drive.js build/sd.html ./sd [--in "chromium firefox-esr"] [--pictures DIR] [--axe axe.min.js]
// --in: browsers, one after the other. --pictures: screenshots, to look at. --axe: the checker of axe-core, which looks for what hinders readers.
const {execFileSync} = require("child_process")
const fs = require("fs"), os = require("os"), path = require("path")

const [html, sd, ...rest] = process.argv.slice(2), url = `file://${path.resolve(html)}`
const option = name => rest.includes(name) ? rest[rest.indexOf(name) + 1] : null
const pictures = option("--pictures"), axe = option("--axe")
let passed = 0, failed = 0
const check = (good, what) => good ? passed++ : (failed++, console.log(`FAILED  ${what}`))
const SLOW = 60 // seconds, on a busy machine

const state = "document.getElementById('state')"
const idle = page => page.until("!running", 4 * SLOW, "the end of what was begun")
const text = (page, id) => page.run(`return document.getElementById('${id}').textContent`)
const ready = async (page, where = url) => {
    await page.visit(where)
    await page.until(`${state}.dataset.ready`, SLOW, "the page is ready")
}
const click = (page, selector) => page.run(`document.querySelector(${JSON.stringify(selector)}).click()`)
const set = (page, id, value) => page.run(`const e = document.getElementById('${id}'); e.value = ${JSON.stringify(value)}
    e.dispatchEvent(new Event("input", {bubbles: true}))`)
const choices = (page, id) => page.run(`return [...document.getElementById('${id}').options].map(o => o.value)`)
// Is there a picture on each canvas of a row: more than one colour?
const drawn = (page, row) => page.run(`return [...document.querySelectorAll('#${row} canvas')].every(c => c.width > 1 &&
    new Set(c.getContext("2d").getImageData(0, 0, c.width, c.height).data).size > 2)`)

// ---- the same pictures as the program's -------------------------------------------------------------------

async function compare(page) {
    const caption = "a brown dog runs in the park at night"
    const samplers = ["ddim", "pndm", "euler", "euler-a", "dpm++2m", "dpm++2m-karras"], systems = [
        ...samplers.map(s => ["teacher", {steps: 6, cfg: 4}, s, ["--cfg", 4]]),
        ["lcm", {steps: 4}, "lcm", ["-m", "weights/tiny-lcm"]],
        ["lora", {steps: 4}, "lcm", ["--lora", "weights/tiny-lcm-lora-8k.safetensors"]]]
    let worst = 0
    for (const [system, how, sampler, options] of systems) {
        const file = path.join(os.tmpdir(), `page-${process.pid}.png`)
        execFileSync(sd, ["sample", "-q", "-p", caption, "--seed", 7, "--steps", how.steps, "--scheduler", sampler,
            "-o", file, ...options])
        const png = fs.readFileSync(file).toString("base64")
        fs.unlinkSync(file)
        const difference = await page.run(`
            const {picture} = await draw(await systemCalled("${system}"), "${caption}", 7,
                {...${JSON.stringify(how)}, sampler: SAMPLERS.indexOf("${sampler}")})
            const image = await createImageBitmap(await (await fetch("data:image/png;base64,${png}")).blob())
            const canvas = new OffscreenCanvas(image.width, image.height), context = canvas.getContext("2d")
            context.drawImage(image, 0, 0)
            const theirs = context.getImageData(0, 0, image.width, image.height).data
            return picture.data.length == theirs.length ?
                theirs.reduce((most, x, i) => Math.max(most, Math.abs(x - picture.data[i])), 0) : 255`)
        check(difference <= 1, `${system}, ${sampler}: a picture differs from the program's by ${difference} of 255`)
        worst = Math.max(worst, difference)
    }
    return worst
}

// ---- every control ----------------------------------------------------------------------------------------

async function use(page) {
    await idle(page)
    check(/^Drawn in/.test(await text(page, "state")), "a first picture is there without a click")
    for (const row of ["attention", "difference", "ends", "noised"]) {
        await page.until(`[...document.querySelectorAll('#${row} canvas')].every(c => c.width > 1)`, SLOW, row)
        check(await drawn(page, row), `the row ${row} shows pictures`)
    }
    // Figure 1
    await set(page, "caption", "a green cat 🙂 in the park")
    check(/cat.*🙂/.test(await text(page, "unknown")), "unknown words are marked as they are typed")
    await set(page, "caption", "a man in a blue coat sits on a bench in the snow")
    await set(page, "steps", "6")
    for (const sampler of await choices(page, "sampler")) {
        await set(page, "sampler", sampler)
        await click(page, "#draw button")
        await idle(page)
        check(/^Drawn in .* [67] steps/.test(await text(page, "state")), `sampler ${sampler} draws`)
    }
    for (const i of [0, 3]) {
        await set(page, "step", `${i}`)
        await page.until(`/^step ${i + 1} of/.test(document.getElementById('step-text').textContent)`, SLOW)
    }
    await page.until("[...document.querySelectorAll('#film canvas')].every(c => c.width > 1)", SLOW)
    check(await drawn(page, "film"), "the slider of figure 1 shows four pictures")
    // Figure 2
    const before = await page.run("return document.querySelector('#attention canvas').toDataURL()")
    await page.run("document.querySelectorAll('#words button')[4].focus()")
    check(await page.run("return document.querySelectorAll('#words button')[4].ariaPressed") == "true",
        "a word is chosen by the focus")
    check(before != await page.run("return document.querySelector('#attention canvas').toDataURL()"),
        "another word, another map")
    for (const level of await choices(page, "level")) await set(page, "level", level)
    await set(page, "attention-step", "0")
    check(/at step 1/.test(await text(page, "attention")), "the step of the maps can be chosen")
    // Figures 3 to 5
    await click(page, "#guide")
    await idle(page)
    check(await drawn(page, "scales"), "five scales of guidance")
    await set(page, "guide-step", "1")
    await click(page, "#race")
    await idle(page)
    check(await drawn(page, "systems"), "twelve pictures of three systems")
    await set(page, "place", "0")
    await page.until("/step 1,/.test(document.getElementById('ends').textContent)", SLOW)
    await set(page, "timestep", "900")
    await page.until("/timestep 900/.test(document.getElementById('noised').textContent)", SLOW)
    await click(page, "#paths")
    await idle(page)
    check(await page.run("return document.querySelectorAll('#charts path.path').length") == 20, "five paths in two charts")
    await set(page, "number", "17")
    check(/number 17/.test(await text(page, "charts")), "another latent number")
    // Figure 6
    await set(page, "system", "lcm")
    await click(page, "#judge")
    const scored = "/^7 pictures; fidelity [01]\\.\\d/.test(document.getElementById('scores').textContent)"
    await page.until(scored, 4 * SLOW)
    check(await drawn(page, "gallery"), "a gallery of what was drawn")
    await page.run("document.querySelectorAll('.stop')[4].click()")
    await idle(page)
    check(await text(page, "state") == "Stopped.", "Stop stops")
}

// ---- what goes wrong --------------------------------------------------------------------------------------

async function misuse(page) {
    const say = async (id, value, expected, what) => {
        await set(page, id, value)
        await click(page, "#draw button")
        await idle(page)
        check(expected.test(await text(page, "state")), `${what}: the page says "${await text(page, "state")}"`)
    }
    await set(page, "sampler", "1")
    for (const steps of ["0", "", "-3", "2.5", "1e9"])
        await say("steps", steps, /^Steps: a whole number from 1 to 100/, `steps "${steps}"`)
    await say("steps", "2", /^Drawn/, "two steps")
    await say("seed", "-1", /^Seed: /, "a negative seed")
    await set(page, "seed", "3")
    await say("caption", "dog ".repeat(1000), /Drawn.*longer than/, "a thousand words")
    await say("caption", "", /^Drawn/, "no caption")
    await say("caption", "🙂🙃 \ud83d <b>&\"' %s %n \\", /^Drawn/, "emoji, half of one, and markup")
    await set(page, "caption", "a dog")
    await set(page, "steps", "100")
    await click(page, "#draw button")
    await page.until("/^step [2-9]/.test(document.getElementById('step-text').textContent)", SLOW)
    await click(page, "#draw .stop")
    await idle(page)
    check(await text(page, "state") == "Stopped.", "a picture can be stopped")
    await say("steps", "2", /^Drawn/, "after Stop")
    const why = await page.run(`const s = await systemCalled("teacher")
        return await draw(s, "a dog", 1, {steps: 5000}).catch(e => e.message)`)
    check(/must be from 1 to 1000/.test(why), `a mistake of the page's: it says "${why}"`)
    await say("steps", "2", /^Drawn/, "after the program has ended")
}

// Two tabs draw at the same time.
async function tabs(page) {
    await set(page, "steps", "100")
    await click(page, "#draw button")
    await page.until("/^step [2-9]/.test(document.getElementById('step-text').textContent)", SLOW)
    await page.tab(async () => {
        await ready(page)
        await idle(page)
        check(/^Drawn/.test(await text(page, "state")), "a second tab draws")
    })
    await idle(page)
    check(/^Drawn/.test(await text(page, "state")), "the first one, too")
}

// The keyboard alone: by Tab to each control, which shows that it has the focus and has a name.
async function keyboard(page) {
    await page.run("document.activeElement.blur(); getSelection().collapse(document.body, 0)") // from the top
    const expected = await page.run(`return [...document.querySelectorAll("a[href], button, input, select, summary")]
        .filter(e => !e.disabled && e.checkVisibility() && !e.closest("details:not([open]) > :not(summary)")).length`)
    const seen = new Set
    for (let i = 0; i < expected + 5; i++) {
        await page.key("Tab")
        const e = await page.run(`const e = document.activeElement; if (e == document.body) return null
            return {at: [...document.querySelectorAll("*")].indexOf(e), outline: getComputedStyle(e).outlineStyle,
                name: e.labels?.[0]?.textContent || e.textContent || e.ariaLabel, tag: e.localName + "#" + e.id}`)
        if (!e) continue
        seen.add(e.at)
        check(e.name.trim() && e.outline != "none", `the focus on ${e.tag} is seen, and it has a name`)
    }
    check(seen.size >= expected, `Tab reaches ${seen.size} of ${expected} controls`)
    await page.run("document.getElementById('steps').value = '2'; document.getElementById('caption').focus()")
    await page.key("Enter")
    await page.until("running", SLOW, "Enter draws")
    await idle(page)
    await page.run("document.getElementById('step').focus()")
    await page.key("ArrowLeft")
    await page.until("/^step 2 of 2/.test(document.getElementById('step-text').textContent)", SLOW,
        "an arrow moves the slider")
    passed += 2
}

// ---- how it looks -----------------------------------------------------------------------------------------

async function looks(page, name) {
    const wide = await page.run(`const e = document.scrollingElement; return [e.scrollWidth, e.clientWidth]`)
    check(wide[0] <= wide[1], `${name}: the page is ${wide[0]} wide, the window ${wide[1]}`)
    const cut = await page.run(`return [...document.querySelectorAll("main *")].filter(e => !e.closest("pre, svg") &&
        (b => b.width && (b.left < -0.5 || b.right > innerWidth + 0.5))(e.getBoundingClientRect()))
        .map(e => e.localName + "#" + e.id)`)
    check(!cut.length, `${name}: beyond the window: ${cut}`)
    if (axe) {
        await page.run(fs.readFileSync(axe, "utf8"))
        const {violations} = await page.run(`const r = await axe.run(document.querySelector("main")); return {violations:
            r.violations.map(v => [v.impact, v.id, v.nodes.length, v.nodes[0].html.slice(0, 80)])}`)
        check(!violations.length, `${name}: axe finds ${JSON.stringify(violations)}`)
    }
    if (pictures) await page.picture(path.join(pictures, `${name}.png`))
}

async function with_(browser, settings, work) {
    const page = await require(browser.includes("firefox") ? "./firefox.js" : "./browser.js").open(browser, settings)
    try { await work(page) } catch (error) { check(false, error.message) }
    await page.close()
    check(!page.errors.length, `the console: ${page.errors}`)
    check(!page.requests.length, `requests: ${page.requests}`)
}

async function everything(browser) {
    await with_(browser, {}, async page => {
        const begun = Date.now()
        await ready(page)
        const figures = {"ready from disk": (Date.now() - begun) / 1000}
        await idle(page)
        const time = async (system, how) => {
            const ms = await page.run(`const s = await systemCalled("${system}"), t = []
                for (let i = 0; i < 3; i++) t.push((await draw(s, "a girl in a red dress runs on the beach", i, ${how})).ms)
                return Math.min(...t)`)
            return ms / 1000
        }
        figures["4 LCM steps"] = await time("lcm", "{}")
        figures["25 guided steps"] = await time("teacher", "{steps: 25, cfg: 4}")
        for (const what in figures) console.log(`${browser}, ${what}: ${figures[what].toFixed(2)} s`)
        console.log(`largest difference from the program's pictures: ${await compare(page)} of 255`)
        await use(page)
        await looks(page, `${browser}-wide`)
        await misuse(page)
        await keyboard(page)
        await tabs(page)
    })
    for (const [name, settings] of [["narrow", {width: 390, height: 800}], ["dark", {dark: true, still: true}],
                                    ["narrow-dark", {width: 390, height: 800, dark: true}],
                                    ["zoomed", {width: 700, height: 500}]]) // 1,400 at 200 %
        await with_(browser, settings, async page => {
            await ready(page)
            await idle(page)
            if (name == "dark")
                check(await page.run(`return getComputedStyle(${state}, "::after").animationName`) == "none",
                    "nothing turns where motion is unwanted")
            await page.until("[...document.querySelectorAll('#ends canvas')].every(c => c.width > 1)", SLOW)
            await looks(page, `${browser}-${name}`)
        })
    await with_(browser, {}, async page => {
        await ready(page, `${url}#scalar`)
        check(await page.run("return !simd"), "a browser without SIMD gets the other program")
        await idle(page)
        check(/^Drawn/.test(await text(page, "state")), "which draws, too")
    })
    if (!browser.includes("firefox")) await with_(browser, {flags: ["--js-flags=--wasm-max-mem-pages=2000"]}, async page => {
        await page.visit(url)
        await page.until(`/cannot start here: .* about 500 MB/.test(${state}.textContent)`, SLOW, "little memory")
        passed++
    })
}

(async () => {
    if (pictures) fs.mkdirSync(pictures, {recursive: true})
    for (const browser of (option("--in") || "chromium").split(" ")) await everything(browser)
    console.log(`${passed} passed, ${failed} failed, 0 skipped`)
    process.exit(failed ? 1 : 0)
})()
