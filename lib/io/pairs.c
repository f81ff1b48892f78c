// pairs.c: a captioned data set as latents and tokens. See pairs.h.
//
// The cache is one file for a VAE and a size, latents-<key>.bin: a line of text in 64 bytes, then records of
// one length, each {hash of the picture file's bytes, hash of the moments, the moments}. Records are only
// ever appended. So an interrupted run keeps what it has encoded, and of a data set that grew only what is
// new is encoded. Captions are not cached: the text states of all of Flickr30k's would fill 37 GB, and they
// cost a hundredth of a training step.
#define _DEFAULT_SOURCE // ftruncate, flock, mmap
#include "pairs.h"
#include "lib/nn/ranks.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HEADER = 64, BATCH_PIXELS = 16 * 128 * 128 }; // pixels that one pass of the encoder takes

// ---- hashes -----------------------------------------------------------------------------------------------

uint64_t params_key(const Params *p) {
    uint64_t h = 1;
    for (int i = 0; i < p->count; i++) {
        const Tensor *t = p->list[i].tensor;
        const char *name = p->list[i].name;
        size_t bytes = tensor_count(t) * (t->type == F32 ? 4 : 2);
        void *host = xmalloc(bytes);
        backend.download(host, t->data, bytes);
        h = hash_more(hash_more(h, name, strlen(name)), host, bytes);
        free(host);
    }
    return h;
}

bool hash_file(const char *path, uint64_t *hash) {
    enum { PIECE = 1 << 16 };
    size_t size;
    const char *reason;
    const unsigned char *bytes = map_try(path, &size, &reason);
    *hash = 2;
    for (size_t at = 0; at < size; at += PIECE)
        *hash = hash_more(*hash, bytes + at, size - at < PIECE ? size - at : PIECE);
    unmap_file(bytes, size);
    return !reason;
}

// ---- the cache --------------------------------------------------------------------------------------------

typedef struct {
    char *path;
    int file;
    size_t values, record; // floats and bytes of a record
    Names places;          // hash of a picture, as bytes -> number of its record
} Cache;

static size_t file_bytes(const Cache *c) {
    struct stat s;
    if (fstat(c->file, &s)) die("cannot read %s: %s", c->path, strerror(errno));
    return (size_t)s.st_size;
}

static void append(Cache *c, const void *data, size_t bytes) {
    size_t before = file_bytes(c), done = 0;
    while (done < bytes) {
        ssize_t n = write(c->file, (const char *)data + done, bytes - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            int why = errno;
            if (ftruncate(c->file, (off_t)before)) note("%s now ends in half a record", c->path);
            die("cannot write %s: %s (what it held before is kept)", c->path, strerror(why));
        }
        done += (size_t)n;
    }
}

// Opens or begins the cache, alone: a second run waits until it is filled. Rank 0 has it for all ranks.
static Cache cache_open(const char *dir, const PairsModel *m) {
    Cache c = {.values = (size_t)m->side * (size_t)m->side * 2 * (size_t)m->channels};
    c.record = 16 + c.values * sizeof(float);
    char header[HEADER + 1];
    enum { READING = 2 }; // how pictures are read: 1 did not turn them
    int sizes[] = {m->size, m->side, m->channels, READING};
    uint64_t key = hash_more(m->encoder, sizes, sizeof sizes);
    snprintf(header, sizeof header, "sd latents 1, %016llx, %zu numbers", (unsigned long long)key, c.values);
    size_t used = strlen(header);
    memset(header + used, ' ', HEADER - used), header[HEADER - 1] = '\n', header[HEADER] = 0;

    make_directories(dir);
    c.path = format("%s/latents-%016llx.bin", dir, (unsigned long long)key);
    c.file = open(c.path, O_RDWR | O_CREAT | O_APPEND, 0666);
    if (c.file < 0) die("cannot write %s: %s", c.path, strerror(errno));
    if (!ranks_mine() && flock(c.file, LOCK_EX | LOCK_NB)) {
        note("%s is being filled by another run; waiting", c.path);
        while (flock(c.file, LOCK_EX))
            if (errno != EINTR) die("cannot lock %s: %s", c.path, strerror(errno));
    }
    if (ranks_mine()) return c;
    size_t bytes = file_bytes(&c);
    char found[HEADER];
    // New, or its writer was killed at once, or the power failed before the header was on disk.
    if (pread(c.file, found, HEADER, 0) != HEADER || !*found) {
        if (ftruncate(c.file, 0)) die("cannot write %s: %s", c.path, strerror(errno));
        append(&c, header, HEADER);
        return c;
    }
    if (memcmp(found, header, HEADER))
        die("%s is no cache of latents, or of another version; remove it", c.path);
    size_t half = (bytes - HEADER) % c.record; // of a record: the writer was killed
    if (half && ftruncate(c.file, (off_t)(bytes - half))) die("cannot write %s: %s", c.path, strerror(errno));
    return c;
}

// Maps the file as it is now and finds its records but for damaged ones, whose pictures are encoded again.
static const char *cache_map(Cache *c, size_t *bytes) {
    *bytes = file_bytes(c);
    const char *at = mmap(NULL, *bytes, PROT_READ, MAP_PRIVATE, c->file, 0);
    if (at == MAP_FAILED) die("cannot read %s: %s", c->path, strerror(errno));
    size_t records = (*bytes - HEADER) / c->record, damaged = 0;
    names_free(&c->places);
    for (size_t i = 0; i < records; i++) {
        uint64_t hashes[2];
        size_t place = HEADER + i * c->record;
        memcpy(hashes, at + place, sizeof hashes);
        if (hash_more(hashes[0], at + place + 16, c->values * sizeof(float)) == hashes[1])
            names_set(&c->places, (const char *)hashes, sizeof *hashes, (int)i);
        else
            damaged++;
    }
    if (damaged) note("%s: %zu records are damaged and left out", c->path, damaged);
    return at;
}

static int cache_find(const Cache *c, uint64_t picture) { // its record, or -1
    return names_get(&c->places, (const char *)&picture, sizeof picture);
}

// ---- unreadable pictures ----------------------------------------------------------------------------------

typedef struct {
    size_t count, of;
    bool *at; // (of)
} Unreadable;

static void leave_out(Unreadable *u, size_t i, const char *path, const char *reason) {
    u->at[i] = true;
    note("%s cannot be read and is left out: %s", path, reason);
    if (++u->count * 100 > u->of)
        die("%zu of %zu pictures cannot be read, which is more than 1 %%; the last is %s: %s", u->count,
            u->of, path, reason);
}

static Image *load_square(const char *path, int size, const char **reason) {
    Image *whole = image_try_load(path, reason), *square = NULL;
    if (!whole) return NULL;
    // A strip of pixels would become very long when its short side is brought to `size`.
    double w = whole->width, h = whole->height, ratio = w > h ? w / h : h / w;
    *reason = "one side is too many times as long as the other";
    if (ratio * size * size <= 1e8) square = image_center_square(whole, size, RESIZE_BILINEAR);
    image_free(whole);
    return square;
}

// ---- opening ----------------------------------------------------------------------------------------------

// Encodes the pictures in `missing` (indices of samples) and appends them to the cache. The ranks encode a
// batch each; then rank 0 writes them, in order.
static void encode(Cache *c, const PairsModel *m, const Dataset *d, const uint64_t *hashes,
                   const size_t *missing, size_t count, Unreadable *unreadable) {
    size_t most = BATCH_PIXELS / ((size_t)m->size * (size_t)m->size), floats = c->values * sizeof(float);
    if (most < 1) most = 1;
    typedef char Reason[200]; // "": it was read
    Image **images = xcalloc(most, sizeof *images);
    Reason *own = xcalloc(most, sizeof *own), *reasons = xcalloc(most, sizeof *reasons); // a rank's
    char *record = xmalloc(c->record);
    float *made = xmalloc(most * floats);
    Progress bar;
    progress_begin(&bar, "pictures to latents", (long)count);
    interrupt_catch();
    for (size_t at = 0; at < count;) {
        size_t first = at + (size_t)ranks_mine() * most, n = count > first ? count - first : 0, good = 0;
        if (n > most) n = most;
#pragma omp parallel for schedule(dynamic)
        for (size_t i = 0; i < n; i++) {
            const char *reason;
            images[i] = load_square(d->samples[missing[first + i]].path, m->size, &reason);
            snprintf(own[i], sizeof own[i], "%s", images[i] ? "" : reason);
        }
        for (size_t i = 0; i < n; i++)
            if (images[i]) images[good++] = images[i];
        float *moments = good ? m->encode(m->context, (const Image *const *)images, (int)good) : NULL;
        for (size_t i = 0; i < good; i++) image_free(images[i]);
        for (int k = 0; k < ranks_count() && at < count; k++) {
            n = count - at < most ? count - at : most;
            if (k == ranks_mine()) memcpy(reasons, own, n * sizeof *own);
            if (k == ranks_mine() && good) memcpy(made, moments, good * floats);
            ranks_give(reasons, n * sizeof *reasons, k);
            ranks_give(made, n * floats, k);
            const float *x = made;
            for (size_t i = 0; i < n; i++) {
                size_t sample = missing[at + i];
                if (*reasons[i]) {
                    leave_out(unreadable, sample, d->samples[sample].path, reasons[i]);
                    continue;
                }
                for (size_t v = 0; v < c->values; v++)
                    if (!isfinite(x[v]))
                        die("%s: the VAE makes a NaN or an infinity of it", d->samples[sample].path);
                uint64_t front[2] = {hashes[sample], hash_more(hashes[sample], x, floats)};
                memcpy(record, front, sizeof front);
                memcpy(record + sizeof front, x, floats);
                if (!ranks_mine()) append(c, record, c->record);
                x += c->values;
            }
            at += n;
        }
        free(moments);
        progress_step(&bar, (long)at, NULL);
        if (ranks_first_bad(interrupted()) >= 0)
            die("interrupted; %s keeps what is encoded, the same command continues", c->path);
    }
    progress_end(&bar);
    ranks_barrier();
    free(images), free(own), free(reasons), free(record), free(made);
}

static void tokens_of(Pair *pair, const Sample *s, const PairsModel *m, long *cut, const char **first_cut) {
    pair->ids = xmalloc((size_t)s->caption_count * (size_t)m->tokens * sizeof(int));
    for (int k = 0; k < s->caption_count; k++) {
        int *ids = pair->ids + (size_t)k * (size_t)m->tokens;
        long cut_at;
        int used = tokenizer_encode(m->tokenizer, s->captions[k], ids, m->tokens, &cut_at);
        while (used < m->tokens) ids[used++] = tokenizer_pad(m->tokenizer);
        if (cut_at >= 0 && !(*cut)++) *first_cut = s->name;
    }
    pair->captions = s->caption_count;
}

// [L2] Pairs become latents and tokens. Pictures: short side to `size`, antialiased, the middle square.
Pairs *pairs_open(const char *data, const char *cache, const PairsModel *m) {
    Pairs *p = xcalloc(1, sizeof *p);
    p->side = m->side, p->channels = m->channels, p->tokens = m->tokens, p->scale = m->scale;
    Dataset *d = p->data = dataset_open(data);

    // 1. What is there: the hash of every picture to train on.
    size_t trained = dataset_choose(d, PART_TRAIN, (size_t)m->held_out), count = trained;
    if (!count) die("%s: there is no picture with a caption to train on", data);
    if (m->held_out && count < d->count) {
        Dataset rest = {d->samples + count, d->count - count, d->layout};
        size_t held = dataset_choose(&rest, rest.samples->split ? PART_HELD_OUT : PART_ALL, 0);
        count += held < (size_t)m->held_out ? held : (size_t)m->held_out;
    }
    if (m->held_out && count == trained) die("%s has no pictures to hold out", data);
    Unreadable unreadable = {.of = count, .at = xcalloc(count, sizeof(bool))};
    uint64_t *hashes = xcalloc(count, sizeof *hashes);
    bool *found = xcalloc(count, sizeof *found);
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < count; i++) found[i] = hash_file(d->samples[i].path, &hashes[i]);
    for (size_t i = 0; i < count; i++)
        if (!found[i]) leave_out(&unreadable, i, d->samples[i].path, "the file cannot be opened or read");

    // 2. What the cache lacks is encoded.
    Cache c = cache_open(cache, m);
    uint64_t all = hash_more(hash_more(0, c.path, strlen(c.path)), hashes, count * sizeof *hashes);
    ranks_must_agree("data set, VAE or cache", &all, sizeof all); // and rank 0 has the cache in order
    const char *mapping = cache_map(&c, &p->mapped);
    size_t *missing = xmalloc(count * sizeof *missing), missing_count = 0, before = unreadable.count;
    for (size_t i = 0; i < count; i++)
        if (found[i] && cache_find(&c, hashes[i]) < 0) missing[missing_count++] = i;
    if (missing_count) {
        encode(&c, m, d, hashes, missing, missing_count, &unreadable);
        munmap((void *)mapping, p->mapped);
        mapping = cache_map(&c, &p->mapped);
    }

    // 3. The list.
    long cut = 0;
    const char *first_cut = NULL;
    p->mapping = (void *)mapping;
    p->list = xcalloc(count, sizeof *p->list);
    p->key = m->encoder;
    for (size_t i = 0; i < count; i++) {
        if (unreadable.at[i]) continue;
        const Sample *s = &d->samples[i];
        int record = cache_find(&c, hashes[i]);
        if (record < 0)
            die("%s: picture %s is missing though it was encoded: the file changes", c.path, s->path);
        Pair *pair = &p->list[i < trained ? p->count++ : p->count + p->held++];
        pair->name = s->name;
        pair->moments = (const float *)(const void *)(mapping + HEADER + (size_t)record * c.record + 16);
        tokens_of(pair, s, m, &cut, &first_cut);
        if (i >= trained) continue;
        p->key = hash_more(p->key, &hashes[i], sizeof hashes[i]);
        p->key = hash_more(p->key, pair->ids, (size_t)pair->captions * (size_t)m->tokens * sizeof(int));
    }
    if (cut)
        note("%ld captions are longer than %d tokens and are cut; the first is of %s", cut, m->tokens,
             first_cut);
    note("%s: %d pictures with captions (%s), %d held out, %zu encoded now, %zu cannot be read", data,
         p->count, d->layout, p->held, missing_count - (unreadable.count - before), unreadable.count);
    flock(c.file, LOCK_UN); // by name: a mapping keeps the file, and with it the lock, beyond close()
    close(c.file);
    names_free(&c.places);
    free(c.path), free(hashes), free(found), free(unreadable.at), free(missing);
    return p;
}

void pairs_close(Pairs *p) {
    munmap(p->mapping, p->mapped);
    for (int i = 0; i < p->count + p->held; i++) free(p->list[i].ids);
    dataset_close(p->data);
    free(p->list), free(p);
}

// z = scale (mean + exp(log variance / 2) noise), the logarithm kept within [-30, 20] as diffusers does.
void pairs_latents(const Pairs *p, int i, Random *r, float *out) {
    size_t pixels = (size_t)p->side * (size_t)p->side, channels = (size_t)p->channels;
    const float *moments = p->list[i].moments;
    random_normal(r, out, pixels * channels);
    for (size_t at = 0; at < pixels; at++, moments += 2 * channels, out += channels)
        for (size_t k = 0; k < channels; k++) {
            float log_variance = fminf(fmaxf(moments[channels + k], -30), 20);
            out[k] = p->scale * (moments[k] + expf(0.5f * log_variance) * out[k]);
        }
}

PairsBatch pairs_batch(const Pairs *p, int n) {
    if (n > p->count) die("a batch of %d is more than the %d captioned pictures that there are", n, p->count);
    size_t values = (size_t)n * (size_t)p->side * (size_t)p->side * (size_t)p->channels;
    PairsBatch b = {.n = n, .side = p->side, .channels = p->channels, .tokens = p->tokens};
    b.z = xmalloc(values * sizeof(float));
    b.ids = xmalloc((size_t)n * (size_t)p->tokens * sizeof(int));
    return b;
}

void pairs_draw(PairsBatch *b, const Pairs *p, Random *r) {
    size_t each = (size_t)p->side * (size_t)p->side * (size_t)p->channels, tokens = (size_t)p->tokens;
    free(b->names);
    b->names = xstrdup("");
    for (int i = 0; i < b->n; i++) {
        int which = p->turn ? p->count + ((p->turn - 1) * b->n + i) % p->held : random_below(r, p->count);
        const Pair *pair = &p->list[which];
        const int *caption = pair->ids + (size_t)random_below(r, pair->captions) * tokens;
        memcpy(b->ids + (size_t)i * tokens, caption, tokens * sizeof(int));
        pairs_latents(p, which, r, b->z + (size_t)i * each);
        format_more(&b->names, "%s%.*s", i ? ", " : "", utf8_fit(pair->name, 250), pair->name);
    }
}

void pairs_batch_free(PairsBatch *b) { free(b->z), free(b->ids), free(b->names); }
