// firefox.js: the functions of browser.js for a Firefox, driven by its own Marionette protocol over a socket:
// each message is its length, a colon, and JSON [0, number, command, parameters]; the answer [1, number, error, result].
const {spawn} = require("child_process"), fs = require("fs"), net = require("net"), os = require("os")
const path = require("path"), {until} = require("./browser.js"), pause = ms => new Promise(f => setTimeout(f, ms))

// Inside the browser, beside the page: what a file asks for, and what was thrown.
const WATCH = `globalThis.asked = []
    Services.obs.addObserver({observe(channel) {
        channel.QueryInterface(Ci.nsIHttpChannel)
        if (channel.loadInfo.loadingPrincipal?.schemeIs("file")) asked.push(channel.URI.spec)
    }}, "http-on-modify-request")`
const WATCHED = `return [asked, Services.console.getMessageArray().filter(m => m instanceof Ci.nsIScriptError &&
    m.category == "content javascript" && !(m.flags & m.warningFlag)).map(m => m.errorMessage)]`
// Inside the page: what the console is told as an error.
const LISTEN = `for (const level of ["error", "warn"]) {
        const say = console[level]
        console[level] = (...said) => { (window.told ||= []).push(said.join(" ")); say(...said) }
    }`

exports.open = async (program, {width = 1400, height = 1000, dark = false, still = false} = {}) => {
    const home = fs.mkdtempSync(path.join(os.tmpdir(), "page-"))
    const settings = {"marionette.port": 0, "layout.css.prefers-color-scheme.content-override": dark ? 0 : 1,
        "ui.prefersReducedMotion": still ? 1 : 0, "browser.shell.checkDefaultBrowser": false,
        "datareporting.policy.dataSubmissionEnabled": false, "accessibility.tabfocus": 7}
    fs.writeFileSync(path.join(home, "user.js"),
        Object.entries(settings).map(([name, value]) => `user_pref("${name}", ${value});\n`).join(""))
    const child = spawn(program, ["--headless", "--no-remote", "--profile", home, "--marionette",
        "-remote-allow-system-access"], {stdio: "ignore"})
    process.on("exit", () => child.kill()) // whatever fails
    const port = async () => {
        for (let i = 0; i < 600; i++, await pause(100))
            try { return +fs.readFileSync(path.join(home, "MarionetteActivePort"), "utf8") } catch {}
        throw new Error("Firefox does not listen")
    }
    const socket = net.connect(await port(), "127.0.0.1"), waiting = new Map
    const page = {errors: [], requests: []}
    let numbers = 0, rest = Buffer.alloc(0), greeted
    const greeting = new Promise(resolve => greeted = resolve)
    socket.on("data", data => {
        rest = Buffer.concat([rest, data])
        for (let colon; (colon = rest.indexOf(":")) > 0;) {
            const end = colon + 1 + +rest.subarray(0, colon)
            if (rest.length < end) return
            const message = JSON.parse(rest.subarray(colon + 1, end))
            rest = rest.subarray(end)
            if (!Array.isArray(message)) { greeted(); continue }
            const [, number, error, result] = message, {resolve, reject} = waiting.get(number)
            waiting.delete(number)
            error ? reject(new Error(error.message)) : resolve(result)
        }
    })
    const send = (command, parameters = {}) => new Promise((resolve, reject) => {
        const message = JSON.stringify([0, ++numbers, command, parameters])
        waiting.set(numbers, {resolve, reject})
        socket.write(`${Buffer.byteLength(message)}:${message}`)
    })
    const inside = async script => { // in the browser itself
        await send("Marionette:SetContext", {value: "chrome"})
        const {value} = await send("WebDriver:ExecuteScript", {script, args: [], sandbox: "system", newSandbox: false})
        await send("Marionette:SetContext", {value: "content"})
        return value
    }
    await greeting
    await send("WebDriver:NewSession", {capabilities: {alwaysMatch: {timeouts: {script: null, pageLoad: 600000}}}})
    await send("WebDriver:SetWindowRect", {width: width + 50, height: height + 200})
    await inside(WATCH)
    const sized = () => inside(`for (const [side, size] of [["width", ${width}], ["height", ${height}]])
        for (const edge of ["min", "max"]) gBrowser.selectedBrowser.style.setProperty(edge + "-" + side, size + "px")`)
    await sized()
    page.run = async expression => { // by the page's own eval(), which sees what its scripts have declared
        const code = `(async () => JSON.stringify(await (async () => { ${expression} })() ?? null))()`
        const {value} = await send("WebDriver:ExecuteScript",
            {script: "return window.eval(arguments[0])", args: [code]})
        return JSON.parse(value)
    }
    page.until = until(page)
    page.visit = async url => {
        await send("WebDriver:Navigate", {url})
        await page.run(LISTEN)
    }
    page.key = async key => {
        const value = {Tab: "\ue004", Enter: "\ue007", ArrowLeft: "\ue012"}[key]
        await send("WebDriver:PerformActions", {actions: [{type: "key", id: "keys",
            actions: [{type: "keyDown", value}, {type: "keyUp", value}]}]})
    }
    page.picture = async file => {
        const {value} = await send("WebDriver:TakeScreenshot", {full: true})
        fs.writeFileSync(file, Buffer.from(value, "base64"))
    }
    page.tab = async work => {
        const {value: first} = await send("WebDriver:GetWindowHandle")
        const {handle} = await send("WebDriver:NewWindow", {type: "tab"})
        await send("WebDriver:SwitchToWindow", {handle})
        await sized()
        await work()
        await send("WebDriver:CloseWindow")
        await send("WebDriver:SwitchToWindow", {handle: first})
    }
    page.close = async () => {
        const told = await page.run("return window.told") || [], [asked, thrown] = await inside(WATCHED)
        page.requests = asked, page.errors = [...told, ...thrown]
        socket.destroy()
        child.kill()
        await new Promise(f => child.exitCode !== null || child.signalCode ? f() : child.on("exit", f))
        fs.rmSync(home, {recursive: true, force: true, maxRetries: 5})
    }
    return page
}
