"""python3 test/attack/power.py STATES COMMAND...: a power failure in simulation. strace records what a
training command, in which DISK stands for a folder (DISK/run is its run, DISK/out... what it makes),
writes, renames and syncs. For each prefix of these calls, and subsets of those that no fsync has
followed (all up to 2^8, else 300 at random), the folder is rebuilt as the disk may hold it and the
command run again: it must go on from the newest checkpoint that was on disk or the one before, and end
with the same bits, the log the same but for times. At most STATES different disks are tried, at random.
Data reaches the disk in pieces of 4 KB in any order; a name, when its folder is synced. `power.py 10000
build/test/attack/power DISK 4` takes seconds."""

import hashlib, itertools, json, os, random, re, shutil, subprocess, sys, tempfile

most, command, choose = int(sys.argv[1]), sys.argv[2:], random.Random(1)
work = tempfile.mkdtemp(prefix='sd-power-', dir='/dev/shm' if os.path.isdir('/dev/shm') else None)
environment = dict(os.environ, OMP_NUM_THREADS='1')


def begin(folder):
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(f'{folder}/run')


def resume(folder, *in_front):
    words = [word.replace('DISK', folder) for word in command]
    return subprocess.run([*in_front, *words], capture_output=True, text=True, env=environment, timeout=100)


def outcome(folder):
    log = [json.loads(line) for line in open(f'{folder}/run/log.jsonl')]
    made = [
        open(os.path.join(folder, name), 'rb').read()
        for name in os.listdir(folder)
        if name.startswith('out')
    ]
    return (
        made,
        [(line['step'], line['loss'], line['norm']) for line in log],
        sorted(os.listdir(folder)),
        set(os.listdir(f'{folder}/run')) - {'checkpoint.previous.safetensors'},
    )


# ---- recording -------------------------------------------------------------------------------------------
# An operation: what must be synced for it to be on disk ('data' of a file's number, or 'names' of a
# folder), and what it does.

disk, trace = f'{work}/disk', f'{work}/trace'
begin(f'{work}/whole')
assert resume(f'{work}/whole').returncode == 0
expected = outcome(f'{work}/whole')
begin(disk)
calls = 'openat,write,pwrite64,ftruncate,truncate,rename,unlink,link,fsync,close,mkdir'
assert resume(disk, 'strace', '-xx', '-s', '10000000', '-e', f'trace={calls}', '-o', trace).returncode == 0


def text_of(argument):
    return bytes.fromhex(argument.strip().strip('"').replace('\\x', ''))


names, files, lengths, operations, numbers = {}, {}, {}, [], itertools.count()
for line in open(trace):
    match = re.match(r'(\w+)\((.*)\)\s+= (-?\d+)', line)
    if not match or int(match[3]) < 0:
        continue
    call, arguments, result = match[1], match[2].split(', '), int(match[3])
    path = (
        [os.path.normpath(text_of(a).decode()) for a in arguments if a.startswith('"')]
        if 'write' not in call
        else []
    )
    inside = [p for p in path if p.startswith(disk)]
    fd = int(arguments[0]) if arguments[0].isdigit() else None
    if call == 'openat':
        files.pop(result, None)
        if not inside:
            continue
        if os.path.isdir(path[0]) and 'O_CREAT' not in arguments[2]:
            files[result] = [('folder', path[0]), 0, False]
            continue
        if path[0] not in names:
            if 'O_CREAT' not in arguments[2]:
                continue
            names[path[0]] = next(numbers)
            operations.append((('names', os.path.dirname(path[0])), 'set', path[0], names[path[0]]))
            lengths[names[path[0]]] = 0
        number = names[path[0]]
        if 'O_TRUNC' in arguments[2]:
            operations.append((('data', number), 'cut', number, 0))
            lengths[number] = 0
        files[result] = [number, 0, 'O_APPEND' in arguments[2]]
    elif call == 'close':
        files.pop(fd, None)
    elif call in ('write', 'pwrite64') and fd in files:
        number, at, appends = files[fd]
        data = text_of(arguments[1])[:result]
        at = int(arguments[3]) if call == 'pwrite64' else lengths[number] if appends else at
        for piece in range(0, len(data), 4096):
            operations.append((('data', number), 'write', number, at + piece, data[piece : piece + 4096]))
        lengths[number] = max(lengths[number], at + len(data))
        if call == 'write':
            files[fd][1] = at + len(data)
    elif call in ('ftruncate', 'truncate') and (fd in files or inside):
        number = files[fd][0] if fd in files else names[path[0]]
        operations.append((('data', number), 'cut', number, int(arguments[1])))
        lengths[number] = int(arguments[1])
    elif call == 'rename' and inside:
        number = names.pop(path[0])
        names[path[1]] = number
        operations.append((('names', os.path.dirname(path[1])), 'move', path[0], path[1], number))
    elif call == 'link' and inside:
        names[path[1]] = names[path[0]]
        operations.append((('names', os.path.dirname(path[1])), 'set', path[1], names[path[1]]))
    elif call == 'unlink' and inside:
        names.pop(path[0])
        operations.append((('names', os.path.dirname(path[0])), 'drop', path[0]))
    elif call == 'fsync' and fd in files:
        number = files[fd][0]
        operations.append(
            (None, 'sync', ('names', number[1]) if isinstance(number, tuple) else ('data', number))
        )

# ---- rebuilding ------------------------------------------------------------------------------------------


def rebuild(chosen):
    """The disk after these operations: path -> bytes."""
    contents, entries = {}, {}
    for operation in chosen:
        _, what, *rest = operation
        if what == 'set':
            entries[rest[0]] = rest[1]
        elif what == 'drop':
            entries.pop(rest[0], None)
        elif what == 'move':
            entries.pop(rest[0], None)
            entries[rest[1]] = rest[2]
        elif what == 'cut':
            contents[rest[0]] = contents.get(rest[0], b'')[: rest[1]].ljust(rest[1], b'\0')
        elif what == 'write':
            number, at, data = rest
            old = contents.get(number, b'')
            contents[number] = old[:at].ljust(at, b'\0') + data + old[at + len(data) :]
    return {path: contents.get(number, b'') for path, number in entries.items()}


def step_of(state):
    """The step of the newest checkpoint, 0 for none."""
    for name in ('checkpoint.safetensors', 'checkpoint.previous.safetensors'):
        data = state.get(f'{disk}/run/{name}', b'')
        found = re.search(rb'"step":"(\d+)"', data)
        if found:
            return int(found[1])
    return 0


states = {}  # operations -> the step of the newest checkpoint that is there for certain
for end in range(len(operations) + 1):
    durable, waiting = [], []
    for i, operation in enumerate(operations[:end]):
        if operation[1] == 'sync':
            durable += [k for k in waiting if operations[k][0] == operation[2]]
            waiting = [k for k in waiting if operations[k][0] != operation[2]]
        else:
            waiting.append(i)
    n = len(waiting)
    if n <= 8:
        subsets = [s for k in range(n + 1) for s in itertools.combinations(waiting, k)]
    else:
        subsets = [(), tuple(waiting)] + [
            tuple(k for k in waiting if choose.random() < share)
            for share in (0.1, 0.3, 0.5, 0.7, 0.9)
            for _ in range(60)
        ]
    least = step_of(rebuild([operations[k] for k in sorted(durable)]))
    for subset in subsets:
        key = tuple(sorted([*durable, *subset]))
        states[key] = max(least, states.get(key, 0))
print(f'{len(operations)} operations, {len(states)} choices of what is on disk', flush=True)

# ---- resuming --------------------------------------------------------------------------------------------

chosen, seen = list(states.items()), set()
choose.shuffle(chosen)
passed = failed = older = 0
for indices, least in chosen:
    state = rebuild([operations[k] for k in indices])
    key = hashlib.md5(repr((least, sorted(state.items()))).encode()).digest()
    if key in seen or len(seen) == most:
        continue
    seen.add(key)
    begin(disk)
    for path, data in state.items():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, 'wb').write(data)
    child = resume(disk)
    found = re.search(r'(?:at step|is at step) (\d+)', child.stderr)
    step = int(found[1]) if found else 0
    good = child.returncode == 0 and step >= least - 1 and outcome(disk) == expected
    older += step < least
    passed, failed = passed + good, failed + (not good)
    if not good and failed <= 10:
        print(
            f'FAILED  status {child.returncode}, resumed at {step} of at least {least}: '
            f'{child.stderr[-300:]}',
            {path[len(disk) :]: len(data) for path, data in state.items()},
            flush=True,
        )
print(f'{older} resumed at the checkpoint before the newest on disk')
print(f'{passed} passed, {failed} failed, 0 skipped')
if not failed:
    shutil.rmtree(work)
sys.exit(failed > 0)
