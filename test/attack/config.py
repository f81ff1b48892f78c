"""python3 test/attack/config.py SD [SHARE [SEED [FILE]]]: every key and list element of every JSON file of
the tiny model in turn gets 40 hostile values, or is left out; SD, built with sanitizers, draws, trains or
reads with it. It must draw, or refuse in one line with status 1. SHARE: of the values that are tried,
at random (1: all). FILE: only those files in whose name it is."""

import copy, json, os, random, shutil, subprocess, sys, tempfile

sd, here = os.path.abspath(sys.argv[1]), os.path.dirname(os.path.abspath(__file__))
share, choose = float(sys.argv[2]) if len(sys.argv) > 2 else 1, random.Random(int((sys.argv + [0] * 4)[3]))
only = sys.argv[4] if len(sys.argv) > 4 else ''
model = f'{here}/../../weights/tiny'
values = (
    '1e308 -1e308 -0.0 0 -1 1 2 3 7 0.5 2147483647 2147483648 -2147483648 4294967297 1e18 9007199254740993 '
    '65536 1000000 5e-324 "8" "" "\\u0000" "\\ud800" "xx" null true false '
    '[] [1] [0,0,0,0] [-1,1e9] [[1]] [null] {} '
    '{"a":1} {"0":{"content":"a"}} [1e308,1e308] ["",""] [1,2,3,4,5,6,7,8,9]'
).split() + ['"' + 'a' * 100000 + '"']
assert len(values) == 40
work = tempfile.mkdtemp(prefix='sd-config-')
target = f'{work}/model'
shutil.copytree(model, target)
environment = dict(
    os.environ, OMP_NUM_THREADS='1', ASAN_OPTIONS='detect_leaks=0:allocator_may_return_null=1'
)
MISSING = object()


def places(value, at=()):
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys)[:60]:  # a vocabulary's first tokens stand for all
        yield at + (key,)
        yield from places(value[key], at + (key,))


def changed(base, at, text):
    value = copy.deepcopy(base)
    inner = value
    for key in at[:-1]:
        inner = inner[key]
    if text is MISSING:
        del inner[at[-1]]
        return json.dumps(value)
    inner[at[-1]] = '@@@'
    return json.dumps(value).replace('"@@@"', text)


def run(*words):
    try:
        child = subprocess.run([sd, *words], capture_output=True, env=environment, timeout=300, cwd=work)
        return child.returncode, child.stderr.decode('latin1')
    except subprocess.TimeoutExpired:
        return 'no end', ''


passed = failed = 0
for name in sorted(
    os.path.relpath(os.path.join(top, file), model)
    for top, _, files in os.walk(model)
    for file in files
    if file.endswith('.json')
    if only in os.path.join(top, file)
):
    whole = open(f'{model}/{name}').read()
    base = json.loads(whole)
    reads = (
        ('tokenize', '-m', target, '-p', 'a dog')
        if name.startswith('tokenizer')
        else (
            'sample',
            '-m',
            target,
            '-p',
            'a dog',
            '--steps',
            '1',
            '-W',
            '16',
            '-H',
            '16',
            '-t',
            '1',
            '-q',
            '-o',
            'o.png',
        )
    )
    for at in places(base):
        for text in [*values, MISSING]:
            if choose.random() > share:
                continue
            open(f'{target}/{name}', 'w').write(changed(base, at, text))
            status, messages = run(*reads)
            drawn = os.path.exists(f'{work}/o.png')
            if drawn:
                os.remove(f'{work}/o.png')
            last = messages.strip().split('\n')[-1]
            good = status == 0 or (status == 1 and last.startswith('sd: ') and not drawn)
            good = good and 'runtime error' not in messages and 'Sanitizer' not in messages
            passed, failed = passed + good, failed + (not good)
            if not good:
                print(
                    f'FAILED  {name} {at} = {text if text is MISSING else text[:60]}: '
                    f'status {status}: {messages[:600]}',
                    flush=True,
                )
    open(f'{target}/{name}', 'w').write(whole)
print(f'{passed} passed, {failed} failed, 0 skipped')
shutil.rmtree(work)
sys.exit(failed > 0)
