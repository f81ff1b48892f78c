// browser.js: a Chromium without a window, driven by its DevTools protocol over a pipe: node alone is needed.
//     const page = await require("./browser.js").open("chromium", {width, height, dark, still, flags})
//     await page.visit(url); await page.run(javascript); await page.tab(async () => ...); await page.close()
// page.errors: what the console was told as an error; page.requests: what was asked for beyond the file itself.
const {spawn} = require("child_process"), fs = require("fs"), os = require("os"), path = require("path")

// Waits until a condition, an expression of the page's, is true.
exports.until = page => async (condition, seconds, what = condition) => {
    for (const end = Date.now() + 1000 * seconds; Date.now() < end; await new Promise(f => setTimeout(f, 30)))
        if (await page.run(`return !!(${condition})`).catch(() => false)) return true
    const said = await page.run("return document.getElementById('state')?.textContent")
    throw new Error(`${what}: not within ${seconds} s; the page says: ${said}`)
}

exports.open = async (program, {width = 1400, height = 1000, dark = false, still = false, flags = []} = {}) => {
    const home = fs.mkdtempSync(path.join(os.tmpdir(), "page-"))
    const options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", `--user-data-dir=${home}`,
        "--disable-background-networking", "--remote-debugging-pipe", ...flags, "about:blank"]
    const child = spawn(program, options, {stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"]})
    const waiting = new Map, page = {errors: [], requests: [], listeners: []}
    let numbers = 0, rest = ""
    child.stdio[4].setEncoding("utf8").on("data", text => {
        const messages = (rest + text).split("\0")
        rest = messages.pop()
        for (const m of messages.map(JSON.parse)) {
            if (waiting.has(m.id)) {
                const {resolve, reject} = waiting.get(m.id)
                waiting.delete(m.id)
                m.error ? reject(new Error(m.error.message)) : resolve(m.result)
            } else for (const listener of page.listeners) listener(m.method, m.params)
        }
    })
    let session
    const send = page.send = (method, params = {}) => new Promise((resolve, reject) => {
        waiting.set(++numbers, {resolve, reject})
        child.stdio[3].write(JSON.stringify({id: numbers, method, params, sessionId: session}) + "\0")
    })
    const attach = async targetId => {
        session = (await send("Target.attachToTarget", {targetId, flatten: true})).sessionId
        for (const domain of ["Page", "Runtime", "Log", "Network"]) await send(`${domain}.enable`)
        await send("Emulation.setFocusEmulationEnabled", {enabled: true})
        await send("Emulation.setDeviceMetricsOverride", {width, height, deviceScaleFactor: 1, mobile: width < 600})
        await send("Emulation.setEmulatedMedia", {features: [
            {name: "prefers-color-scheme", value: dark ? "dark" : "light"},
            {name: "prefers-reduced-motion", value: still ? "reduce" : "no-preference"}]})
    }
    const {targetInfos} = await send("Target.getTargets")
    await attach(targetInfos.find(t => t.type == "page").targetId)
    const thrown = details => details.exception?.description || details.text
    page.listeners.push((method, p) => {
        if (method == "Runtime.exceptionThrown") page.errors.push(thrown(p.exceptionDetails))
        if (method == "Runtime.consoleAPICalled" && ["error", "warning"].includes(p.type))
            page.errors.push(p.args.map(a => a.value).join(" "))
        if (method == "Log.entryAdded" && p.entry.level == "error") page.errors.push(p.entry.text)
        if (method == "Network.requestWillBeSent" && !/^(file|blob|data):/.test(p.request.url))
            page.requests.push(p.request.url)
    })
    page.run = async expression => {
        const r = await send("Runtime.evaluate",
            {expression: `(async () => { ${expression} })()`, awaitPromise: true, returnByValue: true})
        if (r.exceptionDetails) throw new Error(thrown(r.exceptionDetails))
        return r.result.value
    }
    page.visit = url => send("Page.navigate", {url})
    page.until = exports.until(page)
    page.key = async key => {
        const it = {key, code: key, windowsVirtualKeyCode: {Tab: 9, Enter: 13, ArrowLeft: 37}[key]}
        await send("Input.dispatchKeyEvent", {type: "keyDown", text: key == "Enter" ? "\r" : undefined, ...it})
        await send("Input.dispatchKeyEvent", {type: "keyUp", ...it})
    }
    page.picture = async file => { // of the whole page
        const {data} = await send("Page.captureScreenshot", {format: "png", captureBeyondViewport: true})
        fs.writeFileSync(file, Buffer.from(data, "base64"))
    }
    page.tab = async work => { // `page` is a second tab meanwhile
        const first = session
        session = undefined
        const {targetId} = await send("Target.createTarget", {url: "about:blank"})
        await attach(targetId)
        await work()
        await send("Page.close")
        session = first
    }
    page.close = async () => {
        child.kill()
        await new Promise(f => child.exitCode !== null || child.signalCode ? f() : child.on("exit", f))
        fs.rmSync(home, {recursive: true, force: true, maxRetries: 5})
    }
    return page
}
