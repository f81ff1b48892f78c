
// worker.js: runs the program (cli/web.c), one call after another, away from the page, which so stays alive.
// A message {id, call, args, returns} is answered by {id, done} or {id, error}; meanwhile, by what is seen on
// the way: {id, name, step, data}, {id, picture, width, height} and {id, note}.
let program, id, lines = []

const answer = (message, ...data) => postMessage({id, ...message}, data.map(d => d.buffer))

const bytesOf = text => {
    const raw = atob(text), bytes = new Uint8Array(raw.length)
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i)
    return bytes
}

async function start(binary) {
    const line = text => {
        lines.push(text)
        answer({note: text.replace(/^sd: /, "")})
    }
    program = await SD({
        wasmBinary: bytesOf(binary), print: line, printErr: line,
        handOver: (name, step, data) => answer({name, step, data}, data),
        handPicture: (picture, width, height) => answer({picture, width, height}, picture),
    })
    program.ccall("web_start")
}

// files: [{name, text, link}], text the base64 of a file's gzip.
function unpack(files) {
    for (const {name, text, link} of files) {
        const bytes = text ? bytesOf(text) : [], at = program._malloc(bytes.length || 1)
        program.HEAPU8.set(bytes, at)
        program.ccall("web_file", null, ["string", "number", "number", "string"],
            [name, at, bytes.length, link || ""])
        program._free(at)
    }
}

const kind = x => typeof x == "string" ? "string" : typeof x == "object" ? "array" : "number"

onmessage = async ({data}) => {
    id = data.id, lines = []
    try {
        if (data.call == "start") return await start(data.binary), answer({done: true})
        if (data.call == "unpack") return unpack(data.files), answer({done: true})
        const args = data.args.map(a => a.buffer ? new Uint8Array(a.buffer, a.byteOffset, a.byteLength) : a)
        answer({done: program.ccall(data.call, data.returns || "number", args.map(kind), args)})
    } catch (error) { // the program has ended: its last line says why
        answer({error: lines.length ? lines[lines.length - 1].replace(/^sd: /, "") : String(error)})
    }
}
