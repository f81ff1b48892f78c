"""python3 test/attack/mutate.py SD SECONDS [SEED]: whole commands on mutated files. SD, built with
sanitizers, gets files that it reads every day with bytes changed, cut out, doubled or swapped for
hostile ones. It must end with status 0 or 1 and its errors in one line, and --json must print JSON.
Inputs that fail stay in the folder named."""

import json, os, random, shutil, subprocess, sys, tempfile, time

sd, until = os.path.abspath(sys.argv[1]), time.time() + float(sys.argv[2])
choose = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
root = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..')
fixtures, weights = f'{root}/test/fixtures', os.path.abspath(f'{root}/weights')
work = tempfile.mkdtemp(prefix='sd-mutate-')
os.chdir(work)
environment = dict(
    os.environ, OMP_NUM_THREADS='1', ASAN_OPTIONS='detect_leaks=0:allocator_may_return_null=1'
)
M, DRAW = ['-m', f'{weights}/tiny'], ['--steps', '1', '-W', '16', '-H', '16', '-q', '-t', '1']


def sd_run(words, limit=120):
    try:
        child = subprocess.run([sd, *words], capture_output=True, env=environment, timeout=limit)
        return child.returncode, child.stdout.decode('utf-8', 'replace'), child.stderr.decode('latin1')
    except subprocess.TimeoutExpired:
        return 'no end', '', ''


def make(*words):
    status, _, messages = sd_run(words, 600)
    assert status == 0, messages


make('scenes', 'set', '-n', '3', '-q')
make('sample', *M, *DRAW, '-p', 'a dog', '-o', 'drawn.png', '--dump', 'trace.safetensors')
make('encode', 'drawn.png', *M, '-o', 'latents.safetensors', '-q')
make('synth', 'made', '--arch', 'tiny', '-q')
open('prompts.txt', 'w').write('a dog\n"a cat", old\n')
shutil.copytree('set', 'base')
# A file that is mutated, where it lies, and the command that reads it.
jobs = [
    ('drawn.png', 'x.png', ['sample', '--again', 'x.png', *M, *DRAW, '-o', 'o.png', '--json']),
    ('drawn.png', 'x.png', ['sample', '--init', 'x.png', *M, *DRAW, '-p', 'a', '-o', 'o.png', '--json']),
    ('drawn.png', 'x.png', ['info', 'x.png']),
    (f'{fixtures}/io/turned.jpg', 'x.jpg', ['encode', 'x.jpg', *M, '-o', 'o.safetensors', '--json', '-q']),
    (f'{fixtures}/io/progressive.jpg', 'x.jpg', ['info', 'x.jpg']),
    (
        f'{weights}/tiny-lora.safetensors',
        'x.safetensors',
        ['lora', 'convert', 'x.safetensors', *M, '-o', 'o.safetensors', '--json', '-q'],
    ),
    (
        f'{weights}/tiny-lora.safetensors',
        'x.safetensors',
        ['sample', *M, *DRAW, '--lora', 'x.safetensors', '-p', 'a', '-o', 'o.png', '--json'],
    ),
    (f'{fixtures}/io/versions.npz', 'x.npz', ['fid', 'x.npz', 'x.npz', '--json', '-q']),
    ('trace.safetensors', 'x.safetensors', ['verify', 'x.safetensors', *M, '--json', '-q', '-t', '1']),
    (
        'trace.safetensors',
        'x.safetensors',
        ['verify', 'x.safetensors', 'trace.safetensors', '--json', '-q'],
    ),
    (
        'latents.safetensors',
        'x.safetensors',
        ['decode', 'x.safetensors', *M, '-o', 'o.png', '--json', '-q'],
    ),
    ('base/captions.txt', 'set/captions.txt', ['data', 'set', '-o', 'o', '--json', '-q']),
    ('prompts.txt', 'x.txt', ['sample', '--prompts', 'x.txt', '--out', 'o', *M, *DRAW, '--json']),
    ('made/unet/config.json', 'made/unet/config.json', ['info', 'made', '-v']),
    (
        'made/scheduler/scheduler_config.json',
        'made/scheduler/scheduler_config.json',
        ['sample', '-m', 'made', *DRAW, '-p', 'a', '-o', 'o.png', '--json'],
    ),
]
seeds = [open(source, 'rb').read() for source, _, _ in jobs]
hostile = [
    b'\0',
    b'\xff',
    b'\xff' * 8,
    b'\0' * 8,
    b'-1',
    b'1e308',
    b'9999999999',
    b'"',
    b'{',
    b']',
    b',',
    b'\n',
    b'%n',
    b'\r',
]


def mutated(data):
    data = bytearray(data)
    head = choose.random() < 0.7  # most of what matters stands in front
    for _ in range(choose.choice((1, 1, 1, 2, 4, 16))):
        at = choose.randrange(max(1, min(len(data), 3000) if head else len(data)))
        what = choose.randrange(5)
        if what == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << choose.randrange(8)
        elif what == 1:
            data[at : at + choose.randrange(1, 20)] = choose.choice(hostile)
        elif what == 2:
            del data[at : at + choose.choice((1, 4, 100, len(data)))]
        elif what == 3:
            data[at:at] = data[at : at + choose.randrange(1, 200)]
        elif data:
            digits = [i for i in range(at, min(len(data), at + 300)) if 48 <= data[i] < 58]
            if digits:
                data[choose.choice(digits)] = choose.choice(b'0123456789-.e')
    return bytes(data)


passed = failed = 0
counts = {}
while time.time() < until:
    k = choose.randrange(len(jobs))
    _, place, words = jobs[k]
    data = mutated(seeds[k])
    open(place, 'wb').write(data)
    shutil.rmtree('o', ignore_errors=True)
    status, output, messages = sd_run(words)
    left = [name for name in os.listdir('.') if name.endswith('.part')]
    valid = True
    if '--json' in words:
        try:
            json.loads(output)
        except ValueError:
            valid = False
    last = messages.strip().split('\n')[-1]
    good = (
        (status == 0 or (status == 1 and (last.startswith('sd: ') or words[0] == 'verify')))
        and valid
        and not left
    )
    good = good and 'runtime error' not in messages and 'Sanitizer' not in messages
    passed, failed = passed + good, failed + (not good)
    counts[status] = counts.get(status, 0) + 1
    if not good:
        open(f'bad-{failed}', 'wb').write(data)
        print(
            f'FAILED  {work}/bad-{failed}: {" ".join(words)}: status {status}, left {left}, JSON {valid} '
            f'{output[:100]!r}: {messages[:700]}',
            flush=True,
        )
    open(place, 'wb').write(seeds[k])
print(f'status and how often: {counts}')
print(f'{passed} passed, {failed} failed, 0 skipped')
if not failed:
    shutil.rmtree(work)
sys.exit(failed > 0)
