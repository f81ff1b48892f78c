"""python3 test/attack/places.py SD: every command with files of odd names; commands and scripts in locales
with a decimal comma and a dotless i; scripts in every shell and with every awk that is here (dash,
bash, busybox; mawk, gawk, busybox). Figures, pictures and weights must be those of plain places.
LOCPATH and PATH may name more of them; locales are made with localedef where it is."""

import hashlib, json, os, re, shutil, subprocess, sys, tempfile

sd, root = os.path.abspath(sys.argv[1]), os.path.abspath(
    f'{os.path.dirname(os.path.abspath(__file__))}/../..'
)
model, judge = f'{root}/weights/tiny', f'{root}/weights/tiny-inception.safetensors'
work = tempfile.mkdtemp(prefix='sd-places-')
passed = failed = skipped = 0
DRAW = ['-m', model, '-p', 'a dog', '--steps', '1', '-W', '16', '-H', '16', '-t', '1', '-q']


def check(good, what):
    global passed, failed
    passed, failed = passed + bool(good), failed + (not good)
    if not good:
        print(f'FAILED  {what}', flush=True)


def run(words, folder, **environment):
    child = subprocess.run(
        words,
        cwd=folder,
        capture_output=True,
        timeout=900,
        env={**os.environ, 'OMP_NUM_THREADS': '1', **environment},
    )
    return child.returncode, child.stdout, child.stderr


def tree(folder):
    """A digest of all that lies there, without the names and what holds them."""
    found = []
    for top, _, files in os.walk(os.fsencode(folder)):
        for file in files:
            data = (
                open(os.path.join(top, file), 'rb').read()
                if os.path.exists(os.path.join(top, file))
                else b'broken'
            )
            if file.endswith((b'.png', b'.safetensors', b'.npz', b'.bin')) and b'checkpoint' not in file:
                data = re.sub(
                    rb'(....(tEXt|iTXt)parameters.*?)IDAT', b'', data, flags=re.S
                )  # the text names the model
                found.append(hashlib.md5(data).hexdigest())
    return sorted(found)


# ---- names -----------------------------------------------------------------------------------------------


def commands(n):  # what each makes and reads has the name n, with an ending where one is needed
    png, store = n + b'.png', n + b'.safetensors'
    train = [
        '--data',
        n,
        '--cache',
        n + b'-c',
        '--run',
        n + b'-r',
        '--steps',
        '1',
        '--batch',
        '1',
        '-t',
        '1',
        '-q',
    ]
    return [
        [sd, 'scenes', '-q', '-n', '4', '--', n],
        [sd, 'data', '-q', '-o', n + b'-d', '--', n],
        [sd, 'sample', *DRAW, '-o', png, '--dump', n + b't.safetensors'],
        [sd, 'sample', *DRAW, '--init', png, '--strength', '1', '-o', n + b'2.png'],
        [sd, 'encode', '-q', '-m', model, '-o', store, '--', png],
        [sd, 'decode', '-q', '-m', model, '-o', n + b'3.png', '--', store],
        [sd, 'info', '--', png],
        [sd, 'verify', '-q', '-t', '1', '-m', model, '--json', '--', n + b't.safetensors'],
        [sd, 'fid', '-q', '--weights', judge, '--json', '--', n + b'/Images', n + b'-d/Images'],
        [sd, 'fid', '-q', '--weights', judge, '-o', n + b'.npz', '--', 'stats', n + b'/Images'],
        [sd, 'lora', 'finetune', '-m', model, *train, '-o', n + b'L.safetensors', '--json'],
        [
            sd,
            'lora',
            'convert',
            '-q',
            '-m',
            model,
            '-o',
            n + b'K.safetensors',
            '--json',
            '--',
            n + b'L.safetensors',
        ],
        [sd, 'lora', 'merge', '-q', '-m', model, '--lora', n + b'L.safetensors', '-o', n + b'-m', '--json'],
        [sd, 'sample', '-m', n + b'-m', *DRAW[2:], '-o', n + b'4.png', '--json'],
        [
            sd,
            'sample',
            *DRAW[:2],
            *DRAW[4:],
            '--prompts',
            n + b'-d/prompts.txt',
            '--out',
            n + b'-o',
            '--json',
        ],
    ]


expected, outputs = None, {}
for name in (
    b'plain',
    b'a b',
    b"it's",
    b'say "a"',
    b'two\nlines',
    b'n' * 240,
    b'\xff\xfe',
    b'-x',
    b'tab\tback\\slash',
    b'$HOME `x` *?[a]',
    'ü€ i̇ı'.encode(),
    b'%n%s\x01\x1b[31m',
):
    folder = tempfile.mkdtemp(dir=work)
    for number, words in enumerate(commands(name)):
        status, output, messages = run(words, folder)
        check(status == 0, f'{name}: {words[1:3]}: {status}: {messages[-200:]}')
        check(
            not re.search(rb'[\x00-\x08\x0b-\x1f]', messages),
            f'{name}: {words[1:3]} prints control characters',
        )
        if '--json' in words:
            try:
                json.loads(output.decode())
            except ValueError:
                check(False, f'{name}: {words[1:3]} prints no JSON: {output[:200]}')
    expected = expected or tree(folder)
    check(tree(folder) == expected, f'{name}: other bytes than with a plain name')
    shutil.rmtree(folder)

# ---- locales, shells and awks ----------------------------------------------------------------------------

os.makedirs(f'{work}/locales')
for locale in ('de_DE', 'tr_TR'):
    if shutil.which('localedef'):
        subprocess.run(
            ['localedef', '-i', locale, '-f', 'UTF-8', f'{work}/locales/{locale}.UTF-8'],
            capture_output=True,
        )
locales = [{}] + [
    {'LC_ALL': f'{locale}.UTF-8', 'LOCPATH': f'{work}/locales'}
    for locale in os.listdir(f'{work}/locales')
    for locale in [locale.removesuffix('.UTF-8')]
]
tools = []
for shell, awk in (('dash', 'mawk'), ('bash', 'gawk'), ('busybox', 'busybox')):
    if not shutil.which(shell):
        print(f'skipped {shell}: it is not here')
        skipped += 1
        continue
    bin_ = f'{work}/{shell}'
    os.makedirs(bin_)
    if shell == 'busybox':  # all its tools, not the shell alone
        subprocess.run(['busybox', '--install', '-s', bin_], check=True)
    else:
        os.symlink(shutil.which(shell), f'{bin_}/sh')
        if shutil.which(awk):
            os.symlink(shutil.which(awk), f'{bin_}/awk')
    tools.append((shell, f'{bin_}:{os.environ["PATH"]}'))
logs, papers = set(), set()
settings = dict(
    COUNT='2',
    STEPS='1',
    SWEEP='',
    SPEED='1',
    TIMED='1',
    ROUNDS='1',
    PICTURES='2',
    BOOTSTRAP='2',
    REPORT='r.html',
)
for i, (shell, path) in enumerate(tools):
    for j, locale in enumerate(locales):
        place = f'{shell} {locale.get("LC_ALL", "")}'
        folder = tempfile.mkdtemp(dir=work)
        os.symlink(f'{root}/weights', f'{folder}/weights')
        os.symlink(sd, f'{folder}/sd')
        os.makedirs(f'{folder}/run')
        with open(f'{folder}/run/log.jsonl', 'w') as log:
            log.writelines(
                f'{{"step": {k}, "loss": {k / 7:.4f}, "seconds": {k / 3:.1f}, "peak_mb": 10}}\n'
                for k in range(1, 250)
            )
        status, output, messages = run(
            [sd, 'report', '--log', 'run', '5', 'a "b\\n" c\x01'], folder, PATH=path, **locale
        )
        check(
            status == 0 and not messages and all(json.loads(line) for line in output.splitlines()),
            f'sd report --log in {place}: {messages}',
        )
        logs.add(output)
        status, output, messages = run(
            ['sh', 'weights/demo.sh'], folder, PATH=path, FIGURE3='a "dog" $5 `x`', **locale
        )
        check(status == 0 and output.count(b'\n') == 5, f'demo.sh in {place}: {output} {messages}')
        status, _, messages = run(['sh', 'weights/fetch.sh'], folder, PATH=path, **locale)
        check(
            status == 2 and b'fetch.sh sd15|lcm-lora|inception' in messages,
            f'fetch.sh in {place}: {messages}',
        )
        if i == j or not j:  # each shell once, each locale once
            status, _, messages = run(
                ['sh', 'weights/paper.sh'],
                folder,
                PATH=path,
                OUT='run/an "odd" [place]',
                **settings,
                **locale,
            )
            check(status == 0, f'paper.sh in {place}: {messages[-500:]}')
            made = f'{folder}/run/an "odd" [place]/made'
            papers.add(
                tuple(
                    re.sub(
                        r'"(seconds|peak_mb|command)": ("([^"\\]|\\.)*"|[0-9.]+)',
                        '',
                        open(f'{made}/{name}').read(),
                    )
                    for name in sorted(os.listdir(made))
                    if name.startswith('fid') and name.endswith('.json')
                )
            )
            check(not os.path.lexists(f'{made}/../running'), f'paper.sh in {place} leaves its mark')
        words = [sd, 'sample', *DRAW, '--cfg', '2.5', '-o', 'o.png', '--json']
        status, output, messages = run(words, folder, **locale)
        check(status == 0 and json.loads(output)['steps'] == 1, f'sample in {place}')
        check(
            run([sd, 'tokenize', '-m', model, '-p', 'I Ilık TITLE'], folder, **locale)[1]
            == run([sd, 'tokenize', '-m', model, '-p', 'I Ilık TITLE'], folder)[1],
            f'tokenize in {place}',
        )
        shutil.rmtree(folder)
check(len(logs) == 1, f'sd report --log: {len(logs)} different results')
check(len(papers) == 1 and all(papers), f'paper.sh: {len(papers)} different results')
print(f'{len(tools)} shells, {len(locales) - 1} locales')
print(f'{passed} passed, {failed} failed, {skipped} skipped')
shutil.rmtree(work)
sys.exit(failed > 0)
