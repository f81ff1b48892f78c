"""python3 test/attack/kill.py SD SIGNALS [SEED [COMMAND ...]]: every command that writes (COMMAND: those by
the names below alone) is started in a folder of its own and sent signals at random moments, mostly kill
-9. Half of the folders lie on a disk that is nearly full until the last try. Then the same command runs to
its end: its results must be those of an undisturbed run, bit by bit, the log the same but for times, and
nothing may be left over. Needs root for the small disks; else all are large."""

import hashlib, json, os, random, shutil, signal, subprocess, sys, tempfile, time

sd, wanted = os.path.abspath(sys.argv[1]), int(sys.argv[2])
choose = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
weights = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..', 'weights')
work = tempfile.mkdtemp(prefix='sd-kill-')
environment = dict(os.environ, OMP_NUM_THREADS='1', LC_ALL='C')
TRAIN = '--checkpoint-every 0.2 --batch 1 -t 1 --run run --steps'
# Name: the command, what it makes, whether it has a run's folder.
commands = {
    'synth': ('sd synth out --arch tiny', ['out'], False),
    'scenes': ('sd scenes out -n 60', ['out'], False),
    'data': ('sd data data -o out', ['out'], False),
    'crops': ('sd data data -o out --size 256', ['out'], False),
    'sample': (
        'sd sample -m model --prompts data/p.txt --out out --keep --steps 1 -W 32 -H 32',
        ['out'],
        False,
    ),
    'encode': ('sd encode data/Images/00000.png -m model -o out.safetensors', ['out.safetensors'], False),
    'stats': ('sd fid stats data/Images -o out.npz --weights judge', ['out.npz'], False),
    'merge': ('sd lora merge --lora lora -m model -o out', ['out'], False),
    'convert': (
        'sd lora convert lora -o out.safetensors -m model --format kohya',
        ['out.safetensors'],
        False,
    ),
    'finetune': (
        f'sd lora finetune -m model --data data --cache cache -o out.safetensors --ema 0.9 {TRAIN} 20',
        ['out.safetensors'],
        True,
    ),
    'distill': (
        'sd lora distill -m model --teacher lcm --data data --cache cache -o out.safetensors ' f'{TRAIN} 8',
        ['out.safetensors'],
        True,
    ),
    'lcm': (
        f'sd lcm -m model --data data --cache cache -o out --copy --sample-every 3 {TRAIN} 6',
        ['out', 'run/samples'],
        True,
    ),
    'vae': (f'sd pretrain vae -o out {TRAIN} 4', ['out'], True),
    'decoder': (f'sd pretrain decoder -o made {TRAIN} 4', ['made'], True),
    'text': (f'sd pretrain text -o made --data broad {TRAIN} 8', ['made'], True),
    'unet': (f'sd pretrain unet -o made --data broad {TRAIN} 4', ['made'], True),
    'inception': (f'sd pretrain inception -o out {TRAIN} 4', ['out-inception.safetensors'], True),
    'paper': ('sh weights/paper.sh', ['run/paper/base', 'run/paper/lcm', 'run/paper/reference'], False),
}
often = [name for name in commands if name != 'paper'] * 4 + ['paper']
chosen = sys.argv[4:]


def run(words, folder, seconds=None, number=signal.SIGKILL):
    """Status and messages; None where the signal came first."""
    child = subprocess.Popen(
        words,
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        messages = child.communicate(timeout=seconds)[1].decode("latin1")
        return child.returncode, messages
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, number)
        child.communicate()
        return None


def words_of(name):
    words = commands[name][0].split()
    return [sd if word == 'sd' else word for word in words]


def begin(folder, name):
    os.makedirs(folder, exist_ok=True)
    for link, place in (
        ('model', f'{weights}/tiny'),
        ('lcm', f'{weights}/tiny-lcm'),
        ('weights', weights),
        ('sd', sd),
        ('judge', f'{weights}/tiny-inception.safetensors'),
        ('data', f'{work}/data'),
        ('lora', f'{weights}/tiny-lora.safetensors'),
        ('broad', f'{work}/broad'),
    ):
        os.symlink(os.path.realpath(place), f'{folder}/{link}')
    if 'made' in commands[name][1]:
        shutil.copytree(f'{work}/made', f'{folder}/made')


def digest(path):
    return hashlib.md5(open(path, 'rb').read()).hexdigest()


def results(folder, name):
    found, (_, made, has_run) = {}, commands[name]
    for place in made:
        if os.path.isfile(f'{folder}/{place}'):
            found[place] = digest(f'{folder}/{place}')
        for top, _, files in os.walk(f'{folder}/{place}'):
            for file in files:
                path = os.path.join(top, file)
                found[os.path.relpath(path, folder)] = (
                    digest(path) if os.path.exists(path) else 'a broken link'
                )
    if has_run:
        lines = map(json.loads, open(f'{folder}/run/log.jsonl'))
        found['log'] = [(line['step'], line['loss'], line['norm'], line['rate']) for line in lines]
    return found


def leftovers(folder):
    return [
        os.path.join(top, file)
        for top, _, files in os.walk(folder)
        for file in files
        if file.endswith('.part') or file in ('lock', 'running', 'gone')
    ]


def small_disk(folder, megabytes):
    os.makedirs(folder)
    return (
        subprocess.call(
            ['mount', '-t', 'tmpfs', '-o', f'size={megabytes}m', 'sd', folder], stderr=subprocess.DEVNULL
        )
        == 0
    )


subprocess.run([sd, 'scenes', f'{work}/data', '-n', '12', '-q'], check=True)
subprocess.run([sd, 'scenes', f'{work}/broad', '-n', '12', '--world', 'broad', '-q'], check=True)
subprocess.run([sd, 'data', f'{work}/data', '-o', f'{work}/captions', '-q'], check=True)
shutil.copy(f'{work}/captions/prompts.txt', f'{work}/data/p.txt')
subprocess.run([sd, 'pretrain', 'tokenizer', '-o', f'{work}/made', '-q'], check=True, env=environment)
for part in ('vae', 'text'):
    subprocess.run(
        [
            sd,
            'pretrain',
            part,
            '-o',
            f'{work}/made',
            '--run',
            f'{work}/run-{part}',
            '--steps',
            '1',
            '--batch',
            '1',
            '-q',
        ]
        + (['--data', f'{work}/broad'] if part == 'text' else []),
        check=True,
        env=environment,
    )
environment.update(
    COUNT='8', STEPS='1', SWEEP='', SPEED='', PICTURES='1', BOOTSTRAP='2', REPORT='report.html'
)

signals, rounds, bad, references, small = 0, 0, 0, {}, 0
while signals < wanted and bad < 5:
    # Two rounds of each: one disk is large, the other nearly full.
    name = chosen[rounds // 2 % len(chosen)] if chosen else choose.choice(often)
    if name not in references:
        folder = f'{work}/reference-{name}'
        begin(folder, name)
        began = time.time()
        status = run(words_of(name), folder)
        if status[0]:
            sys.exit(f'FAILED  {name}: {status[1]}')
        references[name] = results(folder, name), time.time() - began
        shutil.rmtree(folder)
    expected, took = references[name]
    folder, full = f'{work}/round-{rounds}', rounds % 2 == 1
    full = full and small_disk(folder, 600)
    small += full
    begin(folder, name)
    if full:  # so full that the command fails somewhere
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        with open(f'{folder}/filler', 'wb') as filler:
            os.posix_fallocate(filler.fileno(), 0, free - int(choose.uniform(0, 4e6)))
    status = None
    for tries in range(choose.randrange(1, 10)):
        number = choose.choice(
            [signal.SIGKILL] * 4 + [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT]
        )
        status = run(words_of(name), folder, choose.uniform(0, 0.7 * took), number)
        signals += status is None
        if status and status[0] not in (0, 1):
            bad += 1
            print(f'FAILED  {name}: status {status[0]}: {status[1][-300:]}', flush=True)
        if status and not status[0]:
            break
    if full:
        os.remove(f'{folder}/filler')
    began = time.time()
    status = run(words_of(name), folder)
    found = {} if status[0] else results(folder, name)
    if status[0] or found != expected or leftovers(folder):
        bad += 1
        differ = [key for key in {**found, **expected} if found.get(key) != expected.get(key)]
        print(
            f'FAILED  round {rounds}, {name}{", a full disk" if full else ""}: status {status[0]}, '
            f'differ: {differ[:5]}, '
            f'left: {leftovers(folder)[:5]}: {status[1][-300:]}',
            flush=True,
        )
    if full:
        subprocess.call(['umount', folder])
    if not bad:
        shutil.rmtree(folder)
    if tries == 0 and not full:  # the machine may be less busy than it was
        references[name] = expected, min(took, time.time() - began)
    rounds += 1
    if rounds % 20 == 0:
        print(f'{signals} signals in {rounds} rounds, {small} on a full disk, {bad} bad', flush=True)
print(f'{signals} signals in {rounds} rounds of {len(references)} commands, {small} on a full disk')
print(f'{rounds - bad} passed, {bad} failed, 0 skipped')
if not bad:
    shutil.rmtree(work)
sys.exit(bad > 0)
