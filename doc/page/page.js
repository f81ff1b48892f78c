// page.js: six figures, drawn by the program that runs in worker.js. Nothing is computed here but what is
// needed to show numbers: colours, curves, two principal components.
"use strict"
const $ = id => document.getElementById(id)
const SAMPLERS = ["pndm", "ddim", "lcm", "euler", "euler-a", "dpm++2m", "dpm++2m-karras", "tcd"] // SchedulerKind
const [PNDM, DDIM, LCM, EULER, EULER_A, DPMPP, KARRAS] = SAMPLERS.keys()
const WORLD = new Set($("known").textContent.split(/\s+/))

// ---- the program ------------------------------------------------------------------------------------------

class Stopped extends Error {}
let worker, started, calls, numbers = 0, loads // of this worker: its start, what waits for answers, models

function say(text, wrong = false) {
    $("state").textContent = text
    $("state").className = wrong ? "wrong" : ""
}

// True if the browser runs 4 lanes at once: it takes a module with one such instruction.
const simd = location.hash != "#scalar" && WebAssembly.validate(new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 5,
    1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11]))

function startWorker() {
    const text = kind => document.querySelector(`script[type="text/${kind}"]`).textContent
    const url = URL.createObjectURL(new Blob([text("worker")], {type: "text/javascript"}))
    worker = new Worker(url), calls = new Map, loads = {}
    worker.onmessage = ({data}) => {
        const call = calls.get(data.id)
        if (!call) return
        if ("done" in data) calls.delete(data.id), call.resolve(data.done)
        else if (data.error) restart(new Error(data.error))
        else call.seen(data)
    }
    worker.onerror = event => restart(new Error(event.message || "the worker could not be started"))
    const binary = document.querySelector(`script[data-name="${simd ? "simd" : "portable"}"]`).textContent
    started = post({call: "start", binary})
    started.finally(() => URL.revokeObjectURL(url)).catch(() => {})
}

function post(message, seen = () => {}) {
    return new Promise((resolve, reject) => {
        calls.set(++numbers, {resolve, reject, seen})
        worker.postMessage({id: numbers, ...message})
    })
}

// The program ends, and what waits for it; a new one begins, unless it was the start that failed.
function restart(why) {
    const waiting = [...calls.values()], was = started
    let failed = true
    was.then(() => failed = false, () => {}).then(() => failed && !(why instanceof Stopped) || startWorker())
    worker.terminate()
    for (const call of waiting) call.reject(why)
}

async function call(name, args, returns, seen) {
    await started
    return post({call: name, args, returns}, seen)
}

// The page's files whose names begin so, when they are first needed.
async function files(start) {
    await started
    const fileOf = ({dataset: {name, link}, textContent: text}) => ({name, link, text})
    const list = [...document.querySelectorAll(`script[data-name^="${start}"]`)].map(fileOf)
    await post({call: "unpack", files: list})
}

async function load(path) {
    await files(`${path}/`)
    const it = {m: await call("web_model", [path])}
    it.about = JSON.parse(await call("web_about", [it.m], "string", ({data}) => it.alphas = data))
    return it
}
const model = path => loads[path] ||= load(path)
const teacher = () => model("weights/tiny")
async function systemCalled(name) {
    const base = await teacher() // to which the LCM's folder has links
    const it = name == "lcm" ? await model("weights/tiny-lcm") : base
    if (name != "lora") return {...it, lora: 0, ...it.about}
    const file = "weights/tiny-lcm-lora-8k.safetensors"
    loads.lora ||= files(file).then(() => call("web_lora", [it.m, file]))
    return {...it, lora: await loads.lora, steps: 4, cfg: 1, sampler: LCM}
}

// ---- pictures ---------------------------------------------------------------------------------------------

function imageOf(rgb, width, height) {
    const image = new ImageData(width, height)
    for (let i = 0; i < width * height; i++)
        image.data.set([rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2], 255], 4 * i)
    return Object.assign(image, {rgb})
}

// Draws a picture: {picture, frames, end, ms}. A frame is what cli/film.h calls one; onFrame comes after each.
async function draw(system, caption, seed, {onFrame, filmed = !!onFrame, ...how} = {}) {
    const o = {...system, ...how}, film = {frames: [], caption, o}, begun = performance.now()
    let frame = {attention: []}
    const seen = ({name, data, picture, width, height, note}) => {
        if (picture) film.picture = imageOf(picture, width, height)
        if (note) film.note = note
        if (name == "attention") frame.attention.push(data)
        else if (name == "end") film.end = data
        else if (name == "frame") film.frames.push(frame), onFrame?.(film), frame = {attention: []}
        else if (name) frame[name] = name == "t" ? data[0] : data
    }
    await call("web_sample", [o.m, o.lora, caption, "", o.steps, o.cfg, o.sampler, seed, +filmed], null, seen)
    return Object.assign(film, {ms: performance.now() - begun})
}

async function decode(latents) {
    if (latents.picture) return latents.picture // what was decoded once is kept
    const {m} = await teacher()
    await call("web_decode", [m, latents], null, ({picture, width, height}) =>
        latents.picture = imageOf(picture, width, height))
    return latents.picture
}

// The four channels of latents, side by side: black is -3, white 3.
function tiles(latents) {
    const side = Math.sqrt(latents.length / 4), image = new ImageData(2 * side, 2 * side)
    latents.forEach((x, i) => {
        const c = i % 4, p = i >> 2, gray = 255 * (x + 3) / 6
        const column = p % side + side * (c % 2), row = (p / side | 0) + side * (c >> 1)
        image.data.set([gray, gray, gray, 255], 4 * (row * 2 * side + column))
    })
    return image
}

// From black over red and yellow to white.
function heat(map) {
    const side = Math.sqrt(map.length), image = new ImageData(side, side)
    const least = Math.min(...map), range = Math.max(...map) - least || 1
    map.forEach((x, i) => {
        const hot = 765 * (x - least) / range
        image.data.set([hot, hot - 255, hot - 510, 255], 4 * i)
    })
    return image
}

// A canvas with a caption in a row: show(image, text) fills both.
function cell(row, text, sharp = false) {
    const [figure, canvas, caption] = ["figure", "canvas", "figcaption"].map(e => document.createElement(e))
    row.append(figure), figure.append(canvas, caption)
    canvas.setAttribute("role", "img"), canvas.className = sharp ? "sharp" : ""
    const show = (image, words, over, label = words) => {
        canvas.width = image ? image.width : 1, canvas.height = image ? image.height : 1
        const context = canvas.getContext("2d")
        if (image) context.putImageData(image, 0, 0)
        if (over) { // a heat map over it
            const small = document.createElement("canvas")
            small.width = over.width, small.height = over.height
            small.getContext("2d").putImageData(over, 0, 0)
            context.globalAlpha = 2 / 3, context.imageSmoothingQuality = "high"
            context.drawImage(small, 0, 0, canvas.width, canvas.height)
        }
        caption.textContent = words
        canvas.setAttribute("aria-label", label || "nothing yet")
    }
    show(null, row.localName == "td" ? "" : text, null, text)
    return show
}
const cells = (id, texts, sharp = 0) => texts.map((text, i) => cell($(id), text, i < sharp))

// ---- what the reader does ---------------------------------------------------------------------------------

const BUTTONS = "#draw button:not(.stop), #guide, #race, #paths, #judge"
let running = false

function sayWhy(error) {
    if (error instanceof Stopped) say("Stopped.")
    else say(`The program ended: ${error.message}.`, true)
}

// One long thing at a time. Stop ends the program; it is ready again a moment later.
async function task(what, work) {
    if (running) return
    const busy = on => {
        running = on
        for (const b of document.querySelectorAll(BUTTONS)) b.disabled = on
        for (const b of document.querySelectorAll(".stop")) b.disabled = !on
        $("state").classList.toggle("working", on)
    }
    say(what), busy(true)
    try {
        say(await work() || "Done.")
    } catch (error) {
        sayWhy(error)
    }
    busy(false)
}

// A slider's picture: while one is computed, of those that are asked for meanwhile only the last counts.
function latest(work) {
    let wanted = false, going = false
    return async () => {
        wanted = true
        if (going) return
        for (going = true; wanted;) {
            wanted = false
            await work().catch(sayWhy)
        }
        going = false
    }
}

// The number in a field; a message where it is none, or not allowed.
function numberIn(id) {
    const e = $(id), name = e.parentElement.firstChild.textContent.trim()
    e.setAttribute("aria-invalid", !e.validity.valid)
    if (e.validity.valid) return +e.value
    e.focus()
    say(`${name}: a ${e.step == "1" ? "whole " : ""}number from ${e.min} to ${e.max} is expected`, true)
    throw new RangeError(name)
}
const whole = text => new TextDecoder().decode(new TextEncoder().encode(text)) // without half characters
const captionNow = () => whole($("caption").value)
const onClick = (id, work) => $(id).addEventListener("click", () => {
    try { work() } catch (error) { if (!(error instanceof RangeError)) throw error }
})
function range(id, most, value) {
    Object.assign($(id), {max: most, value, disabled: false})
}

// ---- 1. A caption becomes a picture -----------------------------------------------------------------------

let film // of the picture in figure 1, which figures 2 to 5 go on with
const seconds = ms => `${(ms / 1000).toFixed(2)} s`

function markUnknown() {
    const unknown = [...new Set($("caption").value.split(/[\s.,;:!?"'()[\]\-/0-9]+/))]
        .filter(word => word && !WORLD.has(word.toLowerCase()))
    $("unknown").replaceChildren(...unknown.length ? ["Not of its world, so it will guess: "] : [])
    for (const word of unknown.slice(0, 12)) {
        $("unknown").append(Object.assign(document.createElement("mark"), {textContent: word}), " ")
    }
    if (unknown.length > 12) $("unknown").append(`and ${unknown.length - 12} more`)
}

const FOUR = ["the latents, four channels", "the noise predicted", "the picture expected", "the picture so far"]
const [showLatents, showNoise, showExpected, showSoFar] = cells("film", FOUR, 2)

const showStep = latest(async () => {
    const i = +$("step").value, at = film.frames[i], last = film.frames.length
    $("step-text").textContent =
        at ? `step ${i + 1} of ${last}, timestep ${Math.round(at.t)}` : `the end, after ${last} steps`
    showLatents(tiles(at ? at.z : film.end), FOUR[0])
    showNoise(at ? tiles(at.noise) : null, at ? FOUR[1] : "no noise is left")
    if (!at) return showExpected(film.picture, "the picture"), showSoFar(film.picture, "the picture")
    showExpected(await decode(at.x0), FOUR[2])
    showSoFar(await decode(at.z), FOUR[3])
})

$("draw").noValidate = true
$("draw").addEventListener("submit", event => {
    event.preventDefault()
    let seed, steps, cfg
    try { seed = numberIn("seed"), steps = numberIn("steps"), cfg = numberIn("cfg") } catch { return }
    drawFilm(captionNow(), seed, {steps, cfg, sampler: +$("sampler").value})
})

const drawFilm = (caption, seed, how) => task("Drawing …", async () => {
    const onFrame = ({frames}) => {
        const at = frames[frames.length - 1]
        showLatents(tiles(at.z), FOUR[0]), showNoise(tiles(at.noise), FOUR[1])
        $("step-text").textContent = `step ${frames.length} of ${how.steps}`
    }
    const system = await systemCalled("teacher")
    film = await draw(system, caption, seed, {onFrame, ...how})
    const last = film.frames.length
    const words = JSON.parse(await call("web_words", [system.m, caption], "string"))
    for (const id of ["attention-step", "guide-step", "place"]) range(id, last - 1, last >> 2)
    range("step", last, last), range("timestep", film.o.alphas.length - 1, $("timestep").value)
    listWords(words.filter(w => w[2]))
    showStep(), showDifference(), showPlace(), showNoised()
    return `Drawn in ${seconds(film.ms)}: ${last} steps.${film.note ? ` Note: ${film.note}.` : ""}`
})

// ---- 2. What a word does ----------------------------------------------------------------------------------

const showAttentions = cells("attention", ["at this step", "over all steps"])
let word // [text, first token, tokens]

function listWords(words) {
    const sides = film.frames[0].attention.map(map => Math.sqrt(map.length / film.o.tokens))
    $("level").replaceChildren(...sides.map((side, i) => new Option(`${side} × ${side}`, i)))
    $("level").value = Math.min(1, sides.length - 1)
    const choose = (w, button) => {
        for (const b of $("words").children) b.setAttribute("aria-pressed", b == button)
        word = w, showAttention()
    }
    $("words").replaceChildren(...words.map(w => {
        const b = Object.assign(document.createElement("button"), {type: "button", textContent: w[0]})
        for (const event of ["pointerenter", "focus", "click"]) b.addEventListener(event, () => choose(w, b))
        return b
    }))
    const nouns = words.findIndex(w => w[0].length > 2)
    if (words.length) choose(words[Math.max(nouns, 0)], $("words").children[Math.max(nouns, 0)])
}

// Summed over the word's tokens.
function mapOf(frame, level) {
    const all = frame.attention[level], n = all.length / film.o.tokens, map = new Float32Array(n)
    for (let i = 0; i < n * word[2]; i++) map[i % n] += all[n * word[1] + i]
    return map
}

function showAttention() {
    if (!film || !word) return
    const level = +$("level").value, i = +$("attention-step").value, sum = mapOf(film.frames[0], level)
    film.frames.slice(1).forEach(f => mapOf(f, level).forEach((x, k) => sum[k] += x))
    showAttentions[0](film.picture, `“${word[0]}” at step ${i + 1}`, heat(mapOf(film.frames[i], level)))
    showAttentions[1](film.picture, `“${word[0]}” over all ${film.frames.length} steps`, heat(sum))
}

// ---- 3. Guidance ------------------------------------------------------------------------------------------

const SCALES = [1, 2, 4, 8, 12]
const showScales = cells("scales", SCALES.map(w => `scale ${w}`))
const PARTS = ["expected without the caption", "expected with it", "where they differ"]
const showParts = cells("difference", PARTS)

onClick("guide", () => {
    const seed = numberIn("seed"), caption = captionNow()
    task("Drawing at five scales …", async () => {
        const system = await systemCalled("teacher")
        for (const [i, cfg] of SCALES.entries()) {
            const {picture, ms} = await draw(system, caption, seed, {cfg, steps: 12, sampler: DDIM})
            showScales[i](picture, `scale ${cfg}${cfg == 1 ? ", none" : ""}: ${seconds(ms)}`)
        }
        return "Drawn at five scales, 12 steps each."
    })
})

const showDifference = latest(async () => {
    const parts = film.frames[+$("guide-step").value].parts, n = film.end.length
    if (parts.length < 2 * n) {
        showParts.forEach(show => show(null, "the picture above was drawn without guidance"))
        return
    }
    film.parts ||= new Map // by step
    const i = +$("guide-step").value
    if (!film.parts.has(i)) film.parts.set(i, [parts.slice(0, n), parts.slice(n)])
    const [without, with_] = await Promise.all(film.parts.get(i).map(decode))
    const difference = new Float32Array(without.width * without.height)
    without.rgb.forEach((x, k) => difference[k / 3 | 0] += Math.abs(x - with_.rgb[k]))
    showParts[0](without, PARTS[0]), showParts[1](with_, PARTS[1])
    showParts[2](heat(difference), `${PARTS[2]}, at step ${i + 1}`)
})

// ---- 4. Fifty steps become four ---------------------------------------------------------------------------

const SYSTEMS = {teacher: "teacher, DDIM", lcm: "LCM", lora: "LCM-LoRA"}, FEW = [1, 2, 4, 8]
const race = {}
{
    const table = $("systems").appendChild(document.createElement("table"))
    const heading = (row, textContent, scope) =>
        row.append(Object.assign(document.createElement("th"), {textContent, scope}))
    const top = table.createTHead().insertRow(), body = table.createTBody()
    heading(top, "system", "col")
    for (const n of FEW) heading(top, `${n} step${n > 1 ? "s" : ""}`, "col")
    for (const name in SYSTEMS) {
        const row = body.insertRow()
        heading(row, SYSTEMS[name], "row")
        race[name] = FEW.map(n => cell(row.insertCell(), `${SYSTEMS[name]}, ${n} step${n > 1 ? "s" : ""}`))
    }
}

onClick("race", () => {
    const seed = numberIn("seed"), caption = captionNow()
    task("Drawing twelve pictures …", async () => {
        for (const name in SYSTEMS) {
            const system = await systemCalled(name)
            for (const [i, steps] of FEW.entries()) {
                const {picture, ms} = await draw(system, caption, seed, {steps})
                race[name][i](picture, seconds(ms), null, `${SYSTEMS[name]}, ${steps} steps: ${seconds(ms)}`)
            }
        }
        return "Drawn: twelve pictures from one noise."
    })
})

const ENDS = ["the picture so far", "the teacher expects", "the consistency function names"]
const showEnds = cells("ends", ENDS)
const showPlace = latest(async () => {
    const i = +$("place").value, at = film.frames[i], {m, cfg} = await systemCalled("lcm")
    if (!at.consistent)
        await call("web_consistency", [m, film.caption, at.z, Math.round(at.t), cfg], null,
            ({data}) => at.consistent = data)
    showEnds[0](await decode(at.z), `step ${i + 1}, timestep ${Math.round(at.t)}`)
    showEnds[1](await decode(at.x0), ENDS[1])
    showEnds[2](await decode(at.consistent), ENDS[2])
})

// ---- 5. Noise and samplers --------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg"
function svg(parent, kind, attributes, text) {
    const e = parent.appendChild(document.createElementNS(SVG, kind))
    for (const name in attributes) e.setAttribute(name, attributes[name])
    if (text !== undefined) e.textContent = text
    return e
}

// Lines in a frame: {points: [[x, y], ...], label, colour, dash}; both axes fit what is there.
function chart(parent, label, lines, {x = "", y = "", dots = true, W = 340} = {}) {
    const H = 220, all = lines.flatMap(l => l.points), ends = k => {
        const values = all.map(p => p[k]), least = Math.min(...values), most = Math.max(...values)
        return [least, most > least ? most : least + 1]
    }
    const [x0, x1] = ends(0), [y0, y1] = ends(1)
    const at = p => [34 + (W - 44) * (p[0] - x0) / (x1 - x0), H - 24 - (H - 40) * (p[1] - y0) / (y1 - y0)]
    parent.replaceChildren()
    const viewBox = `0 0 ${W} ${H + 18 * Math.ceil(lines.length / 2)}`
    const root = svg(parent, "svg", {viewBox, role: "img", "aria-label": label})
    svg(root, "path", {class: "axis", d: `M34 10V${H - 24}H${W - 10}`})
    const write = (x, y, anchor, text) => svg(root, "text", {x, y, "text-anchor": anchor}, text)
    for (const v of [y0, y1]) write(30, at([x0, v])[1] + 4, "end", +v.toFixed(1))
    write(34, H - 8, "start", +x0.toFixed(1)), write(W - 10, H - 8, "end", +x1.toFixed(1))
    write(W / 2, H - 8, "middle", x), write(38, 12, "start", y)
    lines.forEach(({points, label: name, dash = ""}, i) => {
        const colour = `var(--c${i % 5})`, lx = 34 + W / 2 * (i % 2), ly = H + 10 + 18 * (i >> 1)
        const stroke = d => svg(root, "path", {class: "path", d, stroke: colour, "stroke-dasharray": dash})
        stroke(`M${points.map(p => at(p).map(v => v.toFixed(1))).join("L")}`)
        for (const [cx, cy] of dots ? points.map(at) : []) svg(root, "circle", {cx, cy, r: 2.5, fill: colour})
        stroke(`M${lx} ${ly - 4}h22`), write(lx + 28, ly, "start", name)
    })
    return {root, at, back: px => x0 + (px - 34) / (W - 44) * (x1 - x0)}
}

const WIDE = 640
let schedule
function showSchedule(alphas) {
    const every = [...alphas.keys()].filter(t => t % 20 == 0 || t == alphas.length - 1)
    schedule = chart($("schedule"), "How much picture and how much noise is in the latents at each timestep", [
        {label: "picture, √ᾱ", points: every.map(t => [t, Math.sqrt(alphas[t])])},
        {label: "noise, √(1 − ᾱ)", points: every.map(t => [t, Math.sqrt(1 - alphas[t])]), dash: "6 3"}
    ], {x: "timestep", dots: false, W: WIDE})
    schedule.handle = svg(schedule.root, "path", {class: "handle"})
    schedule.root.style.cursor = "ew-resize", schedule.root.style.touchAction = "none"
    const pull = event => {
        if (!event.buttons || $("timestep").disabled) return
        const box = schedule.root.getBoundingClientRect()
        $("timestep").value = schedule.back((event.clientX - box.left) / box.width * WIDE)
        showNoised()
    }
    for (const event of ["pointerdown", "pointermove"]) schedule.root.addEventListener(event, pull)
    moveHandle()
}
function moveHandle() {
    const [x] = schedule.at([+$("timestep").value, 0])
    schedule.handle.setAttribute("d", `M${x} 10V196`)
}

const showNoisy = cells("noised", ["the latents", "the same, decoded"], 1)
const showNoised = latest(async () => {
    moveHandle()
    const t = +$("timestep").value, noise = film.frames[0].z
    const alpha = Math.sqrt(film.o.alphas[t]), sigma = Math.sqrt(1 - film.o.alphas[t])
    const z = film.end.map((x, i) => alpha * x + sigma * noise[i])
    showNoisy[0](tiles(z), `timestep ${t}: ${alpha.toFixed(2)} of the picture, ${sigma.toFixed(2)} of the noise`)
    showNoisy[1](await decode(z), "the same, decoded")
})

// The first two principal components of rows, each a Float32Array: by the power method, on centred rows.
function components(rows) {
    const n = rows[0].length, mean = new Float64Array(n)
    for (const r of rows) r.forEach((x, i) => mean[i] += x / rows.length)
    const found = []
    while (found.length < 2) {
        let v = Float64Array.from({length: n}, (_, i) => Math.sin(i + found.length))
        for (let k = 0; k < 60; k++) {
            const next = new Float64Array(n)
            for (const r of rows) {
                let dot = 0
                for (let i = 0; i < n; i++) dot += (r[i] - mean[i]) * v[i]
                for (let i = 0; i < n; i++) next[i] += dot * (r[i] - mean[i])
            }
            for (const u of found) {
                const dot = next.reduce((sum, x, i) => sum + x * u[i], 0)
                next.forEach((x, i) => next[i] = x - dot * u[i])
            }
            const norm = Math.hypot(...next) || 1
            v = next.map(x => x / norm)
        }
        found.push(v)
    }
    return rows.map(r => found.map(v => r.reduce((sum, x, i) => sum + (x - mean[i]) * v[i], 0)))
}

const PATHS = {[DDIM]: "", [PNDM]: "8 3", [EULER]: "2 3", [EULER_A]: "10 3 2 3", [DPMPP]: "5 2"}
const [oneNumber, twoComponents] = [0, 1].map(() => $("charts").appendChild(document.createElement("figure")))
let paths = []
function showPaths() {
    if (!paths.length) return
    const k = +$("number").value
    const line = (points, {sampler}) => ({label: SAMPLERS[sampler], dash: PATHS[sampler], points})
    const values = paths.map(p => line(p.z.map((z, i) => [p.t[i], z[k]]), p))
    chart(oneNumber, `Latent number ${k} on each sampler's way`, values, {x: "timestep", y: `latent number ${k}`})
    const flat = components(paths.flatMap(p => p.z))
    let at = 0
    chart(twoComponents, "The latents on each sampler's way in two principal components",
        paths.map(p => line(flat.slice(at, at += p.z.length), p)),
        {x: "first component", y: "second component"})
}

onClick("paths", () => {
    const seed = numberIn("seed"), caption = captionNow()
    numberIn("number")
    task("Five samplers, 12 steps each …", async () => {
        paths = []
        const system = await systemCalled("teacher")
        for (const sampler of [DDIM, PNDM, EULER, EULER_A, DPMPP]) {
            const {frames, end} = await draw(system, caption, seed, {steps: 12, sampler, filmed: true})
            paths.push({sampler, t: [...frames.map(f => f.t), 0], z: [...frames.map(f => f.z), end]})
            showPaths()
        }
        return "Five samplers from one noise, 12 steps each."
    })
})

// ---- 6. How good is it? -----------------------------------------------------------------------------------

const FIRST = 50, EVERY = 25 // pictures before the first FID, and between two
const showGallery = cells("gallery", Array(6).fill("")), gallery = []

onClick("judge", () => task("Drawing and measuring; Stop ends it.", async () => {
    const system = await systemCalled($("system").value), fids = []
    const judge = ["weights/tiny-inception.safetensors", "weights/reference.npz"]
    loads.judge ||= Promise.all(judge.map(files)).then(() => call("web_judge", judge))
    await loads.judge
    await call("web_judge_clear", [])
    for (let i = 0; ; i++) {
        const caption = await call("web_scene", [i], "string"), {picture} = await draw(system, caption, i)
        await call("web_score", [i, picture.rgb])
        gallery.unshift([picture, caption]), gallery.splice(6)
        gallery.forEach((g, k) => showGallery[k](...g))
        const due = i + 1 >= FIRST && (i + 1 - FIRST) % EVERY == 0
        const s = JSON.parse(await call("web_scores", [+due], "string"))
        if (due) {
            fids.push([s.count, ...s.fid, s.precision, s.recall])
            const line = (label, k) => ({label, dash: k ? "6 3" : "", points: fids.map(f => [f[0], f[k + 1]])})
            chart($("fid"), "FID by number of pictures", ["drawn", "true scenes"].map(line),
                {x: "pictures", y: "FID", W: WIDE})
        }
        const [n, fid, true_, precision, recall] = fids[fids.length - 1] || []
        $("scores").textContent = `${s.count} picture${s.count > 1 ? "s" : ""}; fidelity ${s.fidelity.toFixed(3)} ` +
            `(the judge finds ${s.ceiling.toFixed(3)} in true scenes); ` + (!n ? `FID in ${FIRST - s.count} more`
            : `FID of ${n} pictures ${fid.toFixed(1)}, of as many true scenes ${true_.toFixed(1)}; ` +
              `precision ${precision.toFixed(2)}, recall ${recall.toFixed(2)}`)
    }
}))

// ---- the beginning ----------------------------------------------------------------------------------------

async function loaded() {
    $("vocabulary").textContent = WORLD.size
    for (const s of [DDIM, PNDM, EULER, EULER_A, DPMPP, KARRAS]) $("sampler").append(new Option(SAMPLERS[s], s))
    const on = (id, work) => $(id).addEventListener("input", () => film && work())
    on("step", showStep), on("guide-step", showDifference), on("place", showPlace), on("timestep", showNoised)
    on("attention-step", showAttention), on("level", showAttention)
    $("number").addEventListener("input", () => $("number").validity.valid && showPaths())
    $("caption").addEventListener("input", markUnknown), markUnknown()
    for (const b of document.querySelectorAll(".stop")) b.addEventListener("click", () => restart(new Stopped))
    try {
        startWorker()
        const {about, alphas} = await systemCalled("teacher")
        $("steps").value = about.steps, $("cfg").value = about.cfg, $("sampler").value = about.sampler
        showSchedule(alphas)
        $("state").dataset.ready = Math.round(performance.now())
        say(simd ? "Ready." : "Ready. This browser has no SIMD, so drawing takes several times as long.")
    } catch (error) {
        return say(`The page cannot start here: ${error.message}. ` +
            "It needs WebAssembly and about 500 MB of memory.", true)
    }
    if (!running) $("draw").requestSubmit()
}
