"""python3 test/attack/worst.py SD [ROW]: the worst input that each reader accepts, or nearly, its memory
and processor's time. doc/CONTRIBUTING.md has a table of what they may be, which this checks: its rows
are these."""

import json, os, re, resource, shutil, struct, subprocess, sys, tempfile, threading, time, zlib

sd, here = os.path.abspath(sys.argv[1]), os.path.dirname(os.path.abspath(__file__))
only = sys.argv[2] if len(sys.argv) > 2 else ''
model, judge = f'{here}/../../weights/tiny', f'{here}/../../weights/tiny-inception.safetensors'
work = tempfile.mkdtemp(prefix='sd-worst-')
os.chdir(work)


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def zeros(count):
    packer = zlib.compressobj(9)
    return (
        b''.join(packer.compress(bytes(min(1 << 20, count - at))) for at in range(0, count, 1 << 20))
        + packer.flush()
    )


def png(name, width, height, bits, kind, channels):
    with open(name, 'wb') as file:
        file.write(
            b'\x89PNG\r\n\x1a\n'
            + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bits, kind, 0, 0, 0))
            + chunk(b'IDAT', zeros(height * (width * channels * bits // 8 + 1)))
            + chunk(b'IEND', b'')
        )


def segment(marker, data):
    return bytes([0xFF, marker]) + struct.pack('>H', len(data) + 2) + data


def jpeg(name, width, height, start, scans):
    tables = segment(0xDB, b'\0' + b'\1' * 64)
    for kind in (0, 16):
        tables += segment(0xC4, bytes([kind, 1]) + bytes(16))
    frame = segment(
        start, struct.pack('>BHHB', 8, height, width, 3) + bytes([1, 17, 0, 2, 17, 0, 3, 17, 0])
    )
    scan = segment(0xDA, bytes([3, 1, 0, 2, 0, 3, 0, 0, 0 if start == 0xC2 else 63, 0])) + bytes(8)
    open(name, 'wb').write(b'\xff\xd8' + tables + frame + scan * scans + b'\xff\xd9')


def store(name, header):
    open(name, 'wb').write(struct.pack('<Q', len(header)) + header)


def npz(name, numbers):
    """mu and sigma of `numbers` features, all zero but for the diagonal's: stored, sparse."""
    import zipfile

    with zipfile.ZipFile(name, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for key, shape in (('mu', f'({numbers},)'), ('sigma', f'({numbers}, {numbers})')):
            head = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + '\n'
            with archive.open(f'{key}.npy', 'w', force_zip64=True) as file:
                file.write(b'\x93NUMPY\1\0' + struct.pack('<H', len(head)) + head.encode())
                for _ in range(numbers if key == 'sigma' else 1):
                    file.write(bytes(8 * numbers))


def lines(name, first, row, count):
    with open(name, 'w') as file:
        file.write(first)
        for at in range(0, count, 10000):
            file.write(''.join(row(i) for i in range(at, min(count, at + 10000))))


def tokenizer(megabytes):
    shutil.copytree(f'{model}/tokenizer', 'tokenizer', dirs_exist_ok=True)
    row = open(f'{model}/tokenizer/merges.txt').readlines()[1]  # one that its vocabulary knows
    lines('tokenizer/merges.txt', '#version\n', lambda i: row, megabytes * 1000000 // len(row))


def captions(count):
    os.makedirs('set', exist_ok=True)
    open('set/0', 'w')
    lines('set/captions.txt', 'image,caption\n', lambda i: '0,c\n', count)


def folder_of_photos(count, width, height):
    os.makedirs('photos', exist_ok=True)
    jpeg('photos/0.jpg', width, height, 0xC0, 1)
    for i in range(1, count):
        shutil.copy('photos/0.jpg', f'photos/{i}.jpg')


def patterns(count):
    raw = open(f'{here}/../../weights/tiny-lora.safetensors', 'rb').read()
    end = 8 + struct.unpack('<Q', raw[:8])[0]
    header = json.loads(raw[8:end])
    hard = {f'{"(.*a|.*b)*" * 99}{i}': 16 for i in range(count)}
    config = {'unet.r': 16, 'unet.lora_alpha': 8, 'unet.rank_pattern': hard, 'unet.alpha_pattern': hard}
    header['__metadata__'] = {'lora_adapter_metadata': json.dumps(config)}
    store('x.safetensors', json.dumps(header).encode())
    open('x.safetensors', 'ab').write(raw[end:])


# The reader, what makes the input, the command.
rows = [
    ('PNG, 134 megapixels of 16-bit RGBA', lambda: png('x.png', 11585, 11585, 16, 6, 4), 'info x.png'),
    ('PNG of 8-bit RGB, 178 megapixels', lambda: png('x.png', 13377, 13377, 8, 2, 3), 'info x.png'),
    (
        'JPEG, progressive, 178 megapixels, 24 scans',
        lambda: jpeg('x.jpg', 13376, 13376, 0xC2, 24),
        'info x.jpg',
    ),
    (
        'a folder of 8 photos of 24 megapixels, 2 threads',
        lambda: folder_of_photos(8, 6000, 4000),
        f'fid photos photos --weights {judge} -t 2',
    ),
    ('FID statistics (.npz) of 8,192 features', lambda: npz('x.npz', 8192), 'fid x.npz x.npz'),
    (
        'JSON of 16.7 million values',
        lambda: lines('x.safetensors.index.json', '[0', lambda i: ',0', (1 << 24) - 2)
        or open('x.safetensors.index.json', 'a').write(']'),
        'info x.safetensors.index.json',
    ),
    (
        'a safetensors header of 100 MB',
        lambda: store(
            'x.safetensors',
            b'{"__metadata__":{' + b','.join(b'"%d":"%064d"' % (i, i) for i in range(1300000)) + b'}}',
        ),
        'info x.safetensors',
    ),
    (
        'a million tensors',
        lambda: store(
            'x.safetensors',
            b'{'
            + b','.join(
                b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(1000000)
            )
            + b'}',
        ),
        'info x.safetensors',
    ),
    ('4 million captions', lambda: captions(1 << 22), 'data set -o out'),
    ('a merges.txt of 256 MB', lambda: tokenizer(256), 'tokenize --tokenizer tokenizer -p dog'),
    (
        'a caption of 16 MB',
        lambda: lines('x.txt', '', lambda i: 'dog' * 100, 55000),
        f'tokenize -m {model} < x.txt',
    ),
    (
        'an adapter with 128 KB of patterns for layers',
        lambda: patterns(130),
        f'lora convert x.safetensors -m {model} -o y.safetensors',
    ),
]
table = {}
for line in open(f'{here}/../../doc/CONTRIBUTING.md'):
    cells = [cell.strip() for cell in line.strip().strip('|').split('|')]
    if len(cells) == 3 and re.fullmatch(r'[0-9,]+ MB', cells[1]):
        table[cells[0]] = int(cells[1][:-3].replace(',', '')), float(cells[2].split()[0])
passed = failed = 0
print('| input | memory | time |\n| --- | --- | --- |')
for what, make, command in rows:
    if only not in what:
        continue
    for name in os.listdir('.'):
        shutil.rmtree(name) if os.path.isdir(name) else os.remove(name)
    # In a process of its own: what this one ever held would count as memory of the program that it starts.
    maker = os.fork()
    if not maker:
        make()
        os._exit(0)
    assert os.waitpid(maker, 0)[1] == 0
    words, _, given = command.partition(' < ')
    child = subprocess.Popen(
        [sd, *words.split(), '-q'],
        stdin=open(given) if given else subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=dict(os.environ, OMP_NUM_THREADS='1'),
    )
    message = child.stderr.read().decode('latin1')
    _, status, used = os.wait4(child.pid, 0)
    megabytes, seconds = used.ru_maxrss / 1000, used.ru_utime + used.ru_stime
    most = table.get(what, (0, 0))
    good = os.waitstatus_to_exitcode(status) in (0, 1) and megabytes <= most[0] and seconds <= most[1]
    passed, failed = passed + good, failed + (not good)
    print(
        f'| {what} | {megabytes:,.0f} MB | {seconds:.1f} s | '
        f'{"" if good else "FAILED, the table has " + str(most)} '
        f'{message.strip()[-100:]}',
        flush=True,
    )
print(f'{passed} passed, {failed} failed, 0 skipped')
shutil.rmtree(work)
sys.exit(failed > 0)
