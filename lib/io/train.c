// train.c: a training run: resume, step, log, checkpoint, end. See train.h.
#define _XOPEN_SOURCE 700 // truncate
#include "train.h"
#include "lib/nn/ranks.h"
#include "pairs.h" // hash_file

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char *in_dir(const Run *r, const char *name) { return format("%s/%s", r->dir, name); }
static const char newest[] = "checkpoint.safetensors", before_it[] = "checkpoint.previous.safetensors";

// ---- the checkpoint ---------------------------------------------------------------------------------------

// Counters and the random generator are metadata text, so that they can be read by eye.
static char *random_text(const Random *r) {
    char *text = xmalloc(624 * 9 + 200), *at = text;
    at += sprintf(at, "%d %d %a %d %llu %llu", r->next, r->has_spare, r->spare, r->philox,
                  (unsigned long long)r->seed, (unsigned long long)r->offset);
    for (int i = 0; i < 624; i++) at += sprintf(at, " %x", r->state[i]);
    return text;
}

static bool random_parse(Random *r, const char *text) {
    int spare, philox, read;
    unsigned long long seed, offset;
    if (sscanf(text, "%d %d %la %d %llu %llu%n", &r->next, &spare, &r->spare, &philox, &seed, &offset,
               &read) != 6)
        return false;
    if (r->next < 0 || r->next > 624 || spare < 0 || spare > 1 || philox < 0 || philox > 1 ||
        !isfinite(r->spare))
        return false;
    r->has_spare = spare, r->philox = philox, r->seed = seed, r->offset = offset;
    for (int i = 0; i < 624; i++) {
        char *end;
        r->state[i] = (uint32_t)strtoul(text += i ? 0 : read, &end, 16);
        if (end == text) return false;
        text = end;
    }
    return !*text;
}

// A whole text as a number of that range.
static bool number_parse(const char *text, double least, double most, double *x) {
    char *end;
    *x = text ? strtod(text, &end) : 0;
    return text && *text && !*end && *x >= least && *x <= most;
}

// The optimiser's memory, a list of arrays a kind: weights, moments m and v, maybe moving averages.
static const char *const kinds[] = {"weight", "m", "v", "ema"};

static float *memory_of(const Optimiser *o, int kind, int i) {
    float *const *lists[] = {NULL, o->m, o->v, o->ema};
    return kind == 0 ? o->tensors[i]->data : lists[kind][i];
}

static int kinds_of(const Optimiser *o) { return o->ema ? 4 : 3; }

void run_checkpoint(Run *r) {
    if (ranks_mine()) return; // all ranks have the same
    const Optimiser *o = r->optimiser;
    if (r->shards > 1) random_seed(&r->random, r->seed); // each shard begins its own
    char *path = in_dir(r, newest), *previous = in_dir(r, before_it), *random = random_text(&r->random),
         text[64];
    OptimiserState state = optimiser_read(o);
    if (fsync(fileno(r->log))) die("cannot write %s/log.jsonl: %s", r->dir, strerror(errno));
    StoreWriter *w = store_create(path);
    store_seal(w);
    snprintf(text, sizeof text, "%ld", r->step), store_metadata_add(w, "step", text);
    snprintf(text, sizeof text, "%.3f", run_seconds(r)), store_metadata_add(w, "seconds", text);
    snprintf(text, sizeof text, "%a", (double)r->loss), store_metadata_add(w, "loss", text);
    store_metadata_add(w, "config", r->config);
    store_metadata_add(w, "random", random);
    store_declare(w, "optimiser.state", F32, 1, (int64_t[]){sizeof state / sizeof(float)});
    for (int k = 0; k < kinds_of(o); k++)
        for (int i = 0; i < o->count; i++) {
            char *name = format("%s.%s", kinds[k], o->names[i]);
            store_declare(w, name, F32, 1, (int64_t[]){(int64_t)tensor_count(o->tensors[i])});
            free(name);
        }
    store_data(w, &state, sizeof state);
    for (int k = 0; k < kinds_of(o); k++)
        for (int i = 0; i < o->count; i++) {
            size_t bytes = tensor_count(o->tensors[i]) * sizeof(float);
            float *host = xmalloc(bytes);
            backend.download(host, memory_of(o, k, i), bytes);
            store_data(w, host, bytes);
            free(host);
        }
    // The old checkpoint gets its second name before it loses the first: at every moment one of them is
    // there.
    if (r->keep_one || !file_exists(path))
        unlink(previous);
    else if (unlink(previous), link(path, previous) && rename(path, previous)) // some disks have no links
        die("cannot write %s: %s", previous, strerror(errno));
    store_commit(w);
    free(path), free(previous), free(random);
    r->saved_at = seconds();
}

static void read_one(const Store *s, const char *path, const char *prefix, const char *name, void *to,
                     size_t count) {
    char *full = format("%s.%s", prefix, name);
    const Stored *t = store_find(s, full);
    if (!t) die("%s: tensor %s is missing", path, full);
    if (t->type != F32 || t->count != count)
        die("%s: tensor %s holds %zu values, %zu are expected", path, full, t->count, count);
    float *x = store_floats(t, path);
    backend.upload(to, x, count * sizeof(float));
    backend.sync();
    free(full), free(x);
}

// Where two configurations differ: JSON objects of strings, numbers and booleans.
static char *differences(const char *before, const char *now) {
    Json *a = json_parse(before, strlen(before), "the checkpoint's configuration");
    Json *b = json_parse(now, strlen(now), "the run's configuration");
    char *all = xstrdup("");
    if (a->kind != JSON_OBJECT) a->length = 0; // a list's items have no names
    for (size_t i = 0; i < b->length + a->length; i++) {
        const char *key = i < b->length ? b->items[i].key : a->items[i - b->length].key;
        const Json *old = json_get(a, key), *new = json_get(b, key);
        if (i >= b->length && new) continue; // compared already
        char *was = old ? json_text(old, '\'') : xstrdup("nothing"),
             *is = new ? json_text(new, '\'') : xstrdup("nothing");
        if (strcmp(was, is)) format_more(&all, "%s%s was %s, now %s", *all ? "; " : "", key, was, is);
        free(was), free(is);
    }
    json_free(a), json_free(b);
    if (!*all) free(all), all = xstrdup("another version of the program made it");
    return all;
}

static void resume(Run *r, const char *path) {
    Optimiser *o = r->optimiser;
    if (!store_sealed(path)) {
        char *previous = in_dir(r, before_it);
        bool good = strcmp(path, previous) && file_exists(previous) && store_sealed(previous);
        die("%s is damaged: its digest is not that of its bytes; %s%s", path,
            good ? "to go on from the one before, remove it; that is whole: " : "begin anew by --fresh",
            good ? previous : "");
    }
    Store *s = store_open(path);
    const char *config = store_metadata(s, "config"), *step = store_metadata(s, "step"),
               *random = store_metadata(s, "random");
    double steps, spent, loss;
    bool whole = number_parse(step, 0, 1e15, &steps) && steps == floor(steps) &&
                 number_parse(store_metadata(s, "seconds"), 0, 1e12, &spent) &&
                 number_parse(store_metadata(s, "loss"), -FLT_MAX, FLT_MAX, &loss);
    if (!config || !whole || !random || !random_parse(&r->random, random))
        die("%s is no checkpoint of a training run", path);
    if (strcmp(config, r->config))
        die("%s belongs to another run: %s; take another folder or --fresh", path,
            differences(config, r->config));
    r->step = o->steps = (long)steps, r->earlier = spent, r->loss = (float)loss;
    read_one(s, path, "optimiser", "state", o->state, sizeof(OptimiserState) / sizeof(float));
    for (int k = 0; k < kinds_of(o); k++)
        for (int i = 0; i < o->count; i++)
            read_one(s, path, kinds[k], o->names[i], memory_of(o, k, i), tensor_count(o->tensors[i]));
    store_close(s);
    note(r->step < r->total ? "resuming %s at step %ld of %ld"
                            : "%s is at step %ld already: nothing is left of %ld",
         r->dir, r->step, r->total);
}

// ---- the log ----------------------------------------------------------------------------------------------

// A run that was killed may have logged steps after its last checkpoint, and half a line: they are cut off.
static void log_open(Run *r) {
    char *path = in_dir(r, "log.jsonl");
    if (file_exists(path)) {
        size_t bytes, keep = 0;
        char *text = read_file(path, &bytes);
        for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1) {
            long step = -1;
            if (sscanf(line, "{\"step\": %ld", &step) != 1 || step < 0 || step > r->step) break;
            if (starts_with(strchr(line, ',') + 1, " \"validation\"")) r->validated = step;
            keep = (size_t)(end + 1 - text);
        }
        free(text);
        if (truncate(path, (off_t)keep)) die("cannot write %s: %s", path, strerror(errno));
    }
    r->log = fopen(path, "a");
    if (!r->log) die("cannot write %s: %s", path, strerror(errno));
    free(path);
}

// ---- shards -----------------------------------------------------------------------------------------------

void run_check_shards(int batch, int shards) {
    int ranks = ranks_count();
    if (shards & (shards - 1)) die_usage("--shards is %d; it must be a power of two", shards);
    if (batch % shards) die_usage("--batch is %d; --shards %d does not divide it", batch, shards);
    if (shards % ranks)
        die_usage("%d ranks were started; --shards is %d, which they do not divide", ranks, shards);
}

int run_sums(int shards) {
    int sums = 0, ranks = ranks_count();
    while (shards > ranks << sums) sums++;
    return sums || ranks == 1 ? sums : 1; // one at least for what the ranks exchange
}

// y = scale x (+ y) for all gradients and, behind them, the values for the log. Where x or y is NULL it is
// these in their own places, else one array.
static void combine_all(Run *r, float *y, float *x, float scale, bool add) {
    const Optimiser *o = r->optimiser;
    for (int i = 0; i <= o->count; i++) {
        float *own = i < o->count ? o->tensors[i]->gradient : r->values, *to = y ? y : own;
        size_t n = i < o->count ? tensor_count(o->tensors[i]) : 1 + RUN_PARTS;
        backend.combine((Mem){to, F32}, scale, (Mem){x ? x : own, F32}, 0, (Mem){0}, add, n);
        if (y) backend.fill((Mem){own, F32}, 0, n), y += n;
        if (x) x += n;
    }
}

// Takes the gradients of this rank's next shard, and `values`. True when the step has all of its shards: then
// both are means over them. As a binary counter carries, two sums of 2^k shards become one of 2^(k + 1).
static bool add_shard(Run *r, float *values) {
    int level = 0, bits = r->shard;
    backend.upload(r->values, values, (1 + RUN_PARTS) * sizeof(float));
    for (; bits & 1; bits >>= 1) combine_all(r, NULL, r->sums[level++], 1, true);
    if (++r->shard < r->shards / ranks_count()) {
        combine_all(r, r->sums[level], NULL, 1, false);
        return false;
    }
    float mean = 1 / (float)r->shards; // a power of two: exact
    if (ranks_count() > 1) combine_all(r, r->sums[0], NULL, 1, false), ranks_sum(r->sums[0], r->summed);
    combine_all(r, NULL, ranks_count() > 1 ? r->sums[0] : NULL, mean, false);
    backend.download(values, r->values, (1 + RUN_PARTS) * sizeof(float));
    r->shard = 0;
    return true;
}

static void shards_begin(Run *r) {
    if (r->shards <= 1) return;
    char *config = format("%.*s, \"shards\": %d}", (int)strlen(r->config) - 1, r->config, r->shards);
    r->config = config, r->batch /= r->shards;
    for (int i = 0; i < r->optimiser->count; i++) r->summed += tensor_count(r->optimiser->tensors[i]);
    r->summed += 1 + RUN_PARTS;
    r->sums = xcalloc((size_t)run_sums(r->shards) + 1, sizeof *r->sums);
    for (int i = 0; i < run_sums(r->shards); i++) r->sums[i] = backend.alloc(r->summed * sizeof(float));
    r->values = backend.alloc((1 + RUN_PARTS) * sizeof(float));
}

static void ranks_agree(const Run *r) {
    if (ranks_count() == 1) return;
    uint64_t config = hash_more(0, r->config, strlen(r->config));
    char device[64] = "";
    const char *name = backend.name();
    snprintf(device, sizeof device, "%.*s", (int)strcspn(name, ","), name); // threads may differ
    ranks_must_agree("device", device, sizeof device);
    ranks_must_agree("configuration (options, data or model)", &config, sizeof config);
    ranks_must_agree("number of steps", &r->total, sizeof r->total);
}

// ---- the run ----------------------------------------------------------------------------------------------

// A file that rank 0 has just written: is it the same one for all?
static void folder_is_shared(const Run *r) {
    struct stat s = {0};
    char *path = in_dir(r, "config.json");
    ranks_barrier();
    stat(path, &s);
    uint64_t file[] = {(uint64_t)s.st_ino, (uint64_t)s.st_mtime, (uint64_t)s.st_size};
    ranks_must_agree("run folder (all ranks must see the same files)", file, sizeof file);
    free(path);
}

void run_begin(Run *r, uint64_t seed, bool fresh) {
    bool first = ranks_mine() == 0; // this one writes
    if (!r->shards) r->shards = 1;
    shards_begin(r);
    ranks_agree(r);
    char *checkpoint = in_dir(r, newest), *previous = in_dir(r, before_it),
         *checkpoints[] = {previous, checkpoint}, *config = in_dir(r, "config.json"),
         *log = in_dir(r, "log.jsonl");
    if (first && file_exists(config) && !file_exists(log)) // a model's part has the first, too
        die("%s is no training run's folder: it has a config.json, but no log.jsonl; take another one",
            r->dir);
    if (first) make_directories(r->dir), lock_folder(r->dir);
    may_replace(r->dir);
    random_seed(&r->random, seed);
    r->step = 0, r->earlier = 0, r->loss = 0, r->lowest = INFINITY, r->seed = seed;
    if (!r->checkpoint_every) r->checkpoint_every = 120;
    // Begun anew: the old checkpoints go at once, or a kill would leave them beside the new log.
    for (int i = 0; fresh && first && i < 2; i++)
        if (file_exists(checkpoints[i]) && unlink(checkpoints[i]))
            die("cannot remove %s: %s", checkpoints[i], strerror(errno));
    ranks_barrier();
    if (file_exists(checkpoint))
        resume(r, checkpoint);
    else if (file_exists(previous))
        resume(r, previous);
    ranks_must_agree("checkpoint", &r->step, sizeof r->step);
    r->validated = -1, r->held_out = xcalloc(1 + RUN_PARTS, sizeof *r->held_out);
    if (r->validate) r->turns = r->validate > r->batch ? r->validate / r->batch : 1;
    if (first) {
        log_open(r); // its name is on disk with that of config.json
        char *line = format("%s\n", r->config);
        write_text_file(r->dir, "config.json", line);
        free(line);
    }
    ranks_give(&r->validated, sizeof r->validated, 0);
    folder_is_shared(r);
    ranks_watch(r->dir);
    free(checkpoint), free(previous), free(config), free(log);
    r->started = r->saved_at = seconds();
    progress_begin(&r->bar, r->what, r->total - r->step);
    interrupt_catch();
}

double run_seconds(const Run *r) { return r->earlier + seconds() - r->started; }

// Ends a run whose loss or gradient is not finite, and says where that began.
static void die_not_finite(const Run *r, Tensor *loss, float norm, const char *batch_name) {
    const Optimiser *o = r->optimiser;
    FirstNan c = tape_first_nan(loss);
    const char *parameter = NULL;
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < o->count && !parameter; j++)
            if (c.inputs[i] == o->tensors[j]) parameter = o->names[j];
    die("step %ld: the %s is not finite (loss %g, gradient norm %g): it began in %s%s%s%s; batch: %s; "
        "the last good checkpoint is in %s",
        r->step, c.backward ? "gradient" : "loss", (double)tensor_item(loss), (double)norm,
        c.backward ? "the backward of " : "", c.operation ? c.operation : "no single operation",
        parameter ? " with " : "", parameter ? parameter : "", batch_name ? batch_name : "?", r->dir);
}

// Whether the round of the loop that comes is one of validation: after each fiftieth of the steps, and at
// both ends of the run.
static bool validation_is_due(const Run *r) {
    long every = r->total > 50 ? r->total / 50 : 1;
    return r->turns && r->shard == 0 && r->validated < r->step &&
           (r->step % every == 0 || r->step == r->total);
}

bool run_continues(Run *r) {
    if (r->turn) r->random = r->before; // the last round was one
    bool due = validation_is_due(r), stops = r->shard == 0 && ranks_first_bad(interrupted()) >= 0,
         ends = stops || (r->step >= r->total && !due);
    r->turn = due && !ends ? r->turn + 1 : 0;
    if (r->pairs) r->pairs->turn = r->turn;
    tape_mute(r->turn);
    if (ends) return false;
    if (r->turn) {
        r->before = r->random, r->portion = r->turn - 1;
        random_seed(&r->random, (uint64_t)r->turn);
        return true;
    }
    // A shard's random numbers begin at a place of their own, whichever rank makes it.
    r->portion = (r->step * ranks_count() + ranks_mine()) * (r->shards / ranks_count()) + r->shard;
    if (r->shards > 1) random_seed(&r->random, hash_more(0, &r->seed, sizeof r->seed) + (uint64_t)r->portion);
    return true;
}

static void log_values(const Run *r, const char *what, const double *values, const RunPart *parts) {
    fprintf(r->log, "{\"step\": %ld, \"%s\": %.6g", r->step, what, values[0]);
    for (int i = 0; parts && i < RUN_PARTS; i++)
        if (parts[i].text) fputs(", ", r->log), fprintf(r->log, parts[i].text, values[1 + i]);
}

static void log_step(const Run *r, const double *values, const RunPart *parts, const OptimiserState *s) {
    double used = run_seconds(r);
    log_values(r, "loss", values, parts);
    fprintf(r->log, ", \"norm\": %.4g, \"rate\": %.4g, \"samples_per_s\": %.2f, \"seconds\": %.1f, ",
            (double)s->norm, (double)s->rate, (double)r->batch * r->shards * (double)r->step / used, used);
    if (ranks_count() > 1)
        fprintf(r->log, "\"ranks\": %d, \"sent_mb\": %.3f, ", ranks_count(), ranks_sent() / 1e6);
    fprintf(r->log, "\"peak_mb\": %.0f}\n", (double)backend.peak() / 1e6);
    if (fflush(r->log)) die("cannot write %s/log.jsonl: %s", r->dir, strerror(errno));
}

// A batch of held-out samples; behind the last one a line in the log.
static void validate(Run *r, Tensor *loss, const RunPart *parts) {
    for (int i = 0; i <= RUN_PARTS; i++) {
        double value = i == 0 ? (double)tensor_item(loss) : parts ? parts[i - 1].value : 0;
        r->held_out[i] = (r->turn > 1 ? r->held_out[i] : 0) + value / r->turns;
    }
    if (r->turn < r->turns) return;
    r->validated = r->step;
    if (!isfinite(r->held_out[0])) die("step %ld: the loss on held-out samples is not finite", r->step);
    if (!r->log) return;
    log_values(r, "validation", r->held_out, parts);
    if (fputs("}\n", r->log) < 0 || fflush(r->log))
        die("cannot write %s/log.jsonl: %s", r->dir, strerror(errno));
}

enum { EXPLODED = 100 }; // the running mean of the loss over its lowest value so far

bool run_step(Run *r, Tensor *loss, const RunPart *parts, const char *batch_name) {
    double values[1 + RUN_PARTS] = {0};
    if (r->turn) {
        validate(r, loss, parts);
        return false;
    }
    if (r->shards > 1) {
        float each[1 + RUN_PARTS] = {tensor_item(loss)};
        if (!isfinite(each[0])) r->step++, die_not_finite(r, loss, 0, batch_name);
        for (int i = 0; parts && i < RUN_PARTS; i++) each[1 + i] = (float)parts[i].value;
        if (!add_shard(r, each)) return false;
        for (int i = 0; i <= RUN_PARTS; i++) values[i] = (double)each[i];
    }
    optimiser_step(r->optimiser);
    if (r->shards == 1) { // behind the step, since reading a value waits for a GPU
        values[0] = (double)tensor_item(loss);
        for (int i = 0; parts && i < RUN_PARTS; i++) values[1 + i] = parts[i].value;
    }
    OptimiserState s = optimiser_read(r->optimiser);
    float value = (float)values[0];
    r->step++;
    if (!isfinite(value) || !isfinite(s.norm)) die_not_finite(r, loss, s.norm, batch_name);
    r->loss = r->step == 1 ? value : 0.98f * r->loss + 0.02f * value;
    r->lowest = fminf(r->lowest, r->loss);
    if (r->log) log_step(r, values, parts, &s);
    if (r->step > 100 && r->loss > EXPLODED * r->lowest)
        die("step %ld: the loss explodes (mean %g, it was %g); batch: %s; the last checkpoint is in %s; "
            "a smaller --lr may help",
            r->step, (double)r->loss, (double)r->lowest, batch_name ? batch_name : "?", r->dir);
    char extra[64];
    snprintf(extra, sizeof extra, "loss %.4g", (double)r->loss);
    progress_step(&r->bar, r->bar.done + 1, extra);
    if (seconds() - r->saved_at >= r->checkpoint_every) run_checkpoint(r);
    return true;
}

bool run_end(Run *r) {
    progress_end(&r->bar);
    run_checkpoint(r);
    free(r->held_out);
    if (r->log) fclose(r->log), unlock_folder();
    if (r->step < r->total)
        note("stopped at step %ld of %ld; the same command continues from %s", r->step, r->total, r->dir);
    return r->step >= r->total;
}
