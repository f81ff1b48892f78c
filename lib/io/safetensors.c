// safetensors.c: named tensors in a file, read through a mapping and written in one pass. See io.h.
//
// The format (https://github.com/huggingface/safetensors):
//   8 bytes    N, the length of the header, unsigned little-endian
//   N bytes    JSON: {"__metadata__": {"key": "value", ...},
//                     "name": {"dtype": "F16", "shape": [320, 4, 3, 3], "data_offsets": [begin, end]}, ...}
//   the rest   the tensors' bytes, row-major, little-endian; offsets count from here, without holes
//
// A header only claims what the file holds. All of it is checked against the file's size before a pointer is
// formed. So a truncated download or a hostile file ends in one line, never in a wrong picture. Pickles can
// run code, so nothing reads them.
#include "io.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "values are used as the file has them: for little-endian machines only"
#endif

enum { MAX_HEADER = 100000000, MAX_NDIM = 8 }; // the format's own limit on N; Stored's on dimensions

static const struct {
    const char *name;
    size_t bytes;
} type_info[] = {[F32] = {"F32", 4}, [F16] = {"F16", 2}, [BF16] = {"BF16", 2}, [F64] = {"F64", 8},
                 [I8] = {"I8", 1},   [U8] = {"U8", 1},   [I16] = {"I16", 2},   [U16] = {"U16", 2},
                 [I32] = {"I32", 4}, [I64] = {"I64", 8}, [BOOL8] = {"BOOL", 1}};
enum { TYPES = sizeof type_info / sizeof type_info[0] };

static size_t bytes_of(const Stored *t) { return t->count * type_info[t->type].bytes; }

// The limit holds for the product of the sizes that are not 0, so that no order of them overflows. An element
// takes at least a byte, so no tensor that fits a file comes near it.
bool shape_count(const int64_t *shape, int ndim, size_t *count) {
    const uint64_t most = sizeof(size_t) < 8 ? SIZE_MAX / 8 : (uint64_t)1 << 53;
    uint64_t product = 1;
    bool empty = false;
    for (int i = 0; i < ndim; i++) {
        uint64_t factor = shape[i] ? (uint64_t)shape[i] : 1;
        if (product > most / factor) return false;
        product *= factor, empty |= shape[i] == 0;
    }
    *count = empty ? 0 : (size_t)product;
    return true;
}

// ---- half precision ------------------------------------------------------------------------------------

static inline uint32_t bits_of(float f) {
    uint32_t b;
    memcpy(&b, &f, 4);
    return b;
}

static inline float float_of(uint32_t b) {
    float f;
    memcpy(&f, &b, 4);
    return f;
}

// fp16 has 1 sign bit, 5 exponent bits (bias 15), 10 mantissa bits; fp32 has 1, 8 (bias 127), 23. Shifting
// the magnitude left by 13 bits aligns the fields; adding 127 - 15 = 112 to the exponent corrects the bias.
// There are no branches, so that the loop in store_read_f32 vectorises.
float f16_to_f32(uint16_t h) {
    uint32_t magnitude = h & 0x7fffu;
    uint32_t bits = (magnitude << 13) + (112u << 23);
    // Infinity and NaN: exponent 31 becomes 255, another 112 on top.
    uint32_t special = bits + (112u << 23);
    // Subnormal m * 2^-24: with exponent 113 the bits read 2^-14 + m * 2^-24, and the subtraction is exact.
    uint32_t small = bits_of(float_of(bits + (1u << 23)) - 0x1p-14f);
    bits = magnitude >= 0x7c00 ? special : bits;
    bits = magnitude < 0x0400 ? small : bits;
    return float_of(bits | (uint32_t)(h & 0x8000u) << 16);
}

uint16_t f32_to_f16(float f) {
    uint32_t x = bits_of(f), sign = x >> 16 & 0x8000, magnitude = x & 0x7fffffff;
    // Round to nearest even: add half a unit of the last kept bit, less one, plus it. 65520 is infinite.
    uint32_t h = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
    // Below 2^-14 the result is a multiple of 2^-24, the spacing of floats at 0.5: adding 0.5 rounds.
    uint32_t small = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    uint32_t nan = 0x7e00 | (magnitude >> 13 & 0x3ff); // made quiet
    h = magnitude < 0x38800000 ? small : h;
    h = magnitude >= 0x47800000 ? 0x7c00 : h; // 65536 or more
    h = magnitude > 0x7f800000 ? nan : h;
    return (uint16_t)(sign | h);
}

float bf16_to_f32(uint16_t h) { return float_of((uint32_t)h << 16); }

uint16_t f32_to_bf16(float f) {
    uint32_t x = bits_of(f);
    if ((x & 0x7fffffff) > 0x7f800000) return (uint16_t)(x >> 16 | 0x40); // NaN, made quiet
    return (uint16_t)((x + 0x7fff + (x >> 16 & 1)) >> 16);
}

// ---- opening and checking ------------------------------------------------------------------------------

typedef struct {
    char *path;
    const unsigned char *bytes; // the whole file
    size_t size;
    Json *header; // owns the tensors' names
} Part;

struct Store {
    Part *parts; // one, or one a shard
    size_t part_count;
    Stored *tensors; // by shard, within it by offset
    size_t count;
    Names by_name; // -> places in tensors
};

// A whole number of 0 ... 2^53 (JSON's doubles are exact so far), or false.
static bool whole_number(const Json *j, size_t *out) {
    if (j->kind != JSON_NUMBER || !(j->number >= 0 && j->number <= 0x1p53)) return false;
    *out = (size_t)j->number;
    return (double)*out == j->number;
}

// One entry of the header: everything that can be said about it alone.
static Stored read_entry(const char *path, const Json *entry, const unsigned char *data, size_t data_size) {
    const char *name = entry->key;
    Stored t = {.name = name, .file = path};
    if (entry->kind != JSON_OBJECT)
        die("%s: tensor %s: expected an object with dtype, shape and data_offsets", path, name);

    const Json *dtype = json_get(entry, "dtype");
    if (!dtype || dtype->kind != JSON_STRING) die("%s: tensor %s: dtype is missing or no string", path, name);
    size_t type = 0;
    while (type < TYPES && strcmp(type_info[type].name, dtype->string)) type++;
    if (type == TYPES)
        die("%s: tensor %s: type %.20s is not supported (F32, F16, BF16, F64, I8 ... I64, U8, U16, BOOL are)",
            path, name, dtype->string);
    t.type = (Type)type;

    const Json *shape = json_get(entry, "shape");
    if (!shape || shape->kind != JSON_ARRAY) die("%s: tensor %s: shape is missing or no list", path, name);
    if (shape->length > MAX_NDIM)
        die("%s: tensor %s: %zu dimensions, expected at most %d", path, name, shape->length, MAX_NDIM);
    t.ndim = (int)shape->length;
    for (size_t i = 0; i < shape->length; i++) {
        size_t n;
        if (!whole_number(&shape->items[i], &n))
            die("%s: tensor %s: dimension %zu of its shape is no whole number", path, name, i);
        t.shape[i] = (int64_t)n;
    }
    if (!shape_count(t.shape, t.ndim, &t.count)) die("%s: tensor %s: its shape overflows", path, name);

    const Json *offsets = json_get(entry, "data_offsets");
    size_t begin, end;
    if (!offsets || offsets->kind != JSON_ARRAY || offsets->length != 2 ||
        !whole_number(&offsets->items[0], &begin) || !whole_number(&offsets->items[1], &end))
        die("%s: tensor %s: data_offsets is no pair of whole numbers", path, name);
    if (begin > end)
        die("%s: tensor %s: data_offsets begin at %zu and end before that, at %zu", path, name, begin, end);
    if (end > data_size)
        die("%s: tensor %s: its data ends at byte %zu, but the file holds %zu bytes of data (was it cut "
            "short?)",
            path, name, end, data_size);
    if (end - begin != bytes_of(&t))
        die("%s: tensor %s: data_offsets span %zu bytes, but its shape and type need %zu", path, name,
            end - begin, bytes_of(&t));
    t.data = data + begin;
    return t;
}

static int by_offset(const void *a, const void *b) {
    const Stored *x = a, *y = b;
    if (x->data != y->data) return (const char *)x->data < (const char *)y->data ? -1 : 1;
    if (!x->count != !y->count) return x->count ? 1 : -1; // an empty tensor comes before its neighbour
    return (x->name > y->name) - (x->name < y->name);     // names lie in the order of the header
}

// Checks one file, whole in memory or mapped, and adds its tensors to the store.
static void add_part(Store *s, const char *given_path, const unsigned char *bytes, size_t size) {
    s->parts = xrealloc(s->parts, (s->part_count + 1) * sizeof *s->parts);
    Part *part = &s->parts[s->part_count++];
    *part = (Part){.path = xstrdup(given_path), .bytes = bytes, .size = size};
    const char *path = part->path;

    if (size < 8) die("%s: %zu bytes are too few for a safetensors file", path, size);
    uint64_t length = little_endian(bytes, 8);
    const char *kind = file_kind(bytes, size < 512 ? size : 512);
    bool other = kind && strcmp(kind, "a safetensors file"), lfs = other && strstr(kind, "LFS");
    // PyTorch's own files: a zip or, before its release 1.6, a pickle of protocol 2 as it is.
    if (other && (!strcmp(kind, "a zip archive") || !strcmp(kind, "a pickle")))
        die("%s is a pickle, which can run code; convert it: see \"Model files\" in README.md", path);
    if (other)
        die("%s is no safetensors file but %s%s", path, kind, lfs ? "; `git lfs pull` fetches it" : "");
    if (length > MAX_HEADER)
        die("%s: no safetensors file: its header would be %llu bytes long, at most %d are allowed", path,
            (unsigned long long)length, MAX_HEADER);
    if (length > size - 8)
        die("%s: the header should be %llu bytes long, but the file ends after %zu of them (was it "
            "cut short?)",
            path, (unsigned long long)length, size - 8);
    if (length == 0 || bytes[8] != '{') die("%s: no safetensors file: the header is no JSON object", path);
    part->header = json_parse((const char *)bytes + 8, (size_t)length, path);
    if (part->header->kind != JSON_OBJECT) die("%s: the header is no JSON object", path);

    const unsigned char *data = bytes + 8 + length;
    size_t data_size = size - 8 - (size_t)length;
    s->tensors = xrealloc(s->tensors, (s->count + part->header->length) * sizeof *s->tensors);
    Stored *own = s->tensors + s->count;
    size_t count = 0, at = 0;
    for (size_t i = 0; i < part->header->length; i++) {
        const Json *entry = &part->header->items[i];
        if (strcmp(entry->key, "__metadata__")) {
            own[count++] = read_entry(path, entry, data, data_size);
            continue;
        }
        if (entry->kind != JSON_OBJECT) die("%s: __metadata__ is no object", path);
        for (size_t k = 0; k < entry->length; k++)
            if (entry->items[k].kind != JSON_STRING)
                die("%s: __metadata__: the value of %s is no string", path, entry->items[k].key);
    }

    // Together the tensors cover the data exactly: no overlap, no hole, nothing behind the last one.
    qsort(own, count, sizeof *own, by_offset);
    for (size_t i = 0; i < count; i++) {
        size_t begin = (size_t)((const unsigned char *)own[i].data - data);
        if (begin < at)
            die("%s: tensor %s: begins at byte %zu, inside tensor %s, which ends at %zu", path, own[i].name,
                begin, own[i - 1].name, at);
        if (begin > at)
            die("%s: tensor %s: begins at byte %zu, expected %zu: a hole", path, own[i].name, begin, at);
        at = begin + bytes_of(&own[i]);
    }
    s->count += count;
    if (at != data_size)
        die("%s: the tensors end at byte %zu, but there are %zu bytes of data", path, at, data_size);
}

static void map_part(Store *s, const char *path) {
    size_t size;
    const unsigned char *bytes = map_file(path, &size);
    add_part(s, path, bytes, size);
}

// Once all tensors are in: the index by name. A name that came twice would leave it open which one counts.
static void finish_names(Store *s) {
    for (size_t i = 0; i < s->count; i++) {
        const Stored *t = &s->tensors[i], *other = store_find(s, t->name);
        if (other)
            die("%s: tensor %s: the name occurs twice%s%s", t->file, t->name,
                other->file != t->file ? ", also in " : "", other->file != t->file ? other->file : "");
        names_set(&s->by_name, t->name, strlen(t->name), (int)i);
    }
}

// {"weight_map": {"tensor": "model-00001-of-00002.safetensors", ...}, ...}; the shards lie beside it.
static void open_index(Store *s, const char *path) {
    Json *index = json_load(path);
    const Json *map = json_get(index, "weight_map");
    if (!map || map->kind != JSON_OBJECT) die("%s: weight_map is missing or no object", path);
    const char *slash = strrchr(path, '/');
    int folder = slash ? (int)(slash - path) + 1 : 0;

    Names shards = {0}; // those that are open
    for (size_t i = 0; i < map->length; i++) {
        const Json *entry = &map->items[i];
        if (entry->kind != JSON_STRING || !*entry->string || strchr(entry->string, '/'))
            die("%s: tensor %s: expected the name of a file in the same folder", path, entry->key);
        if (names_get(&shards, entry->string, strlen(entry->string)) >= 0) continue;
        char *shard = format("%.*s%s", folder, path, entry->string);
        if (!file_exists(shard)) die("%s: tensor %s: its shard %s is missing", path, entry->key, shard);
        names_set(&shards, entry->string, strlen(entry->string), 0);
        map_part(s, shard);
        free(shard);
    }
    finish_names(s);
    for (size_t i = 0; i < map->length; i++) {
        const Json *entry = &map->items[i];
        const Stored *t = store_find(s, entry->key);
        if (!t || strcmp(t->file + folder, entry->string))
            die("%s: tensor %s: its shard %.*s%s does not hold it", path, entry->key, folder, path,
                entry->string);
    }
    names_free(&shards);
    json_free(index);
}

Store *store_open(const char *path) {
    Store *s = xcalloc(1, sizeof *s);
    if (ends_with(path, ".json"))
        open_index(s, path);
    else
        map_part(s, path), finish_names(s);
    if (!s->count) die("%s holds no tensors", path);
    return s;
}

static void store_free(Store *s, bool mapped) {
    for (size_t i = 0; i < s->part_count; i++) {
        if (mapped) unmap_file(s->parts[i].bytes, s->parts[i].size);
        json_free(s->parts[i].header);
        free(s->parts[i].path);
    }
    names_free(&s->by_name);
    free(s->parts), free(s->tensors), free(s);
}

void store_close(Store *s) {
    if (s) store_free(s, true);
}

// ---- reading -------------------------------------------------------------------------------------------

size_t store_count(const Store *s) { return s->count; }

const Stored *store_at(const Store *s, size_t i) { return &s->tensors[i]; }

const Stored *store_find(const Store *s, const char *name) {
    int i = names_get(&s->by_name, name, strlen(name));
    return i < 0 ? NULL : &s->tensors[i];
}

const char *store_metadata(const Store *s, const char *key) {
    for (size_t i = 0; i < s->part_count; i++) {
        const char *value = json_get_string(json_get(s->parts[i].header, "__metadata__"), key, NULL);
        if (value) return value;
    }
    return NULL;
}

const char *shape_text(char text[200], const int64_t *shape, int ndim) {
    int at = sprintf(text, "(");
    for (int i = 0; i < ndim; i++) at += sprintf(text + at, "%s%lld", i ? ", " : "", (long long)shape[i]);
    sprintf(text + at, ")");
    return text;
}

// memcpy, because the data may be unaligned; compilers make a plain (vector) load of it.
#define CONVERT(c_type, expression)                                                                          \
    for (size_t i = 0; i < t->count; i++) {                                                                  \
        c_type v;                                                                                            \
        memcpy(&v, in + i * sizeof v, sizeof v);                                                             \
        out[i] = (expression);                                                                               \
    }                                                                                                        \
    break

void store_read_f32(const Stored *t, float *restrict out) {
    const unsigned char *restrict in = t->data;
    if (!t->count) return;
    switch (t->type) {
    case F32: memcpy(out, in, t->count * sizeof *out); break;
    case F16: CONVERT(uint16_t, f16_to_f32(v));
    case BF16: CONVERT(uint16_t, bf16_to_f32(v));
    case F64: CONVERT(double, (float)v);
    case I8: CONVERT(int8_t, v);
    case U8: CONVERT(uint8_t, v);
    case I16: CONVERT(int16_t, v);
    case U16: CONVERT(uint16_t, v);
    case I32: CONVERT(int32_t, (float)v);
    case I64: CONVERT(int64_t, (float)v);
    case BOOL8: CONVERT(uint8_t, v != 0);
    }
}

float *store_floats(const Stored *t, const char *path) {
    float *x = xmalloc(t->count * sizeof *x);
    store_read_f32(t, x);
    for (size_t i = 0; i < t->count; i++)
        if (!isfinite(x[i]))
            die("%s: tensor %s has a NaN or an infinity at element %zu%s", path, t->name, i,
                t->type == F64 ? " (in fp32, which ends at 3.4e38)" : "");
    return x;
}

void store_done_with(const Stored *t) { pages_done_with(t->data, bytes_of(t)); }

// ---- writing -------------------------------------------------------------------------------------------

struct StoreWriter {
    Output *out;
    char *path;
    char **metadata; // key, value, key, value, ...
    size_t metadata_count;
    Stored *tensors; // without data
    size_t count;
    Names names; // of the tensors
    bool header_written, seal;
    size_t current, done; // the tensor being delivered, and how many of its bytes came
};

StoreWriter *store_create(const char *path) {
    StoreWriter *w = xcalloc(1, sizeof *w);
    w->out = output_open(path);
    w->path = xstrdup(path);
    return w;
}

void store_metadata_add(StoreWriter *w, const char *key, const char *value) {
    if (w->header_written) die("%s: metadata %s comes after the first data", w->path, key);
    if (!utf8_valid(key, strlen(key), NULL) || !utf8_valid(value, strlen(value), NULL))
        die("%s: metadata %s is not UTF-8, which JSON demands", w->path, key);
    w->metadata = xrealloc(w->metadata, (w->metadata_count + 2) * sizeof *w->metadata);
    w->metadata[w->metadata_count++] = xstrdup(key);
    w->metadata[w->metadata_count++] = xstrdup(value);
}

static const char digest_mark[] = "\"digest\":\"";

void store_seal(StoreWriter *w) {
    w->seal = true;
    store_metadata_add(w, "digest", "0000000000000000");
}

bool store_sealed(const char *path) { return sealed(path, digest_mark); }

void store_declare(StoreWriter *w, const char *name, Type type, int ndim, const int64_t *shape) {
    if (w->header_written) die("%s: tensor %s is declared after the first data", w->path, name);
    if (!utf8_valid(name, strlen(name), NULL)) die("%s: the tensor name %s is not UTF-8", w->path, name);
    if (ndim < 0 || ndim > MAX_NDIM)
        die("%s: tensor %s: %d dimensions, expected at most %d", w->path, name, ndim, MAX_NDIM);
    Stored t = {.name = xstrdup(name), .type = type, .ndim = ndim};
    for (int i = 0; i < ndim; i++) {
        if (shape[i] < 0) die("%s: tensor %s: dimension %d is %lld", w->path, name, i, (long long)shape[i]);
        t.shape[i] = shape[i];
    }
    if (!shape_count(shape, ndim, &t.count)) die("%s: tensor %s: its shape overflows", w->path, name);
    if (names_get(&w->names, name, strlen(name)) >= 0) die("%s: tensor %s is declared twice", w->path, name);
    names_set(&w->names, name, strlen(name), (int)w->count);
    w->tensors = xrealloc(w->tensors, (w->count + 1) * sizeof *w->tensors);
    w->tensors[w->count++] = t;
}

static void add_quoted(char **text, const char *before, const char *s) {
    char *quoted = json_quote(s);
    format_more(text, "%s%s", before, quoted);
    free(quoted);
}

// Built in memory first, because its length comes before it.
static void write_header(StoreWriter *w) {
    w->header_written = true;
    char *text = xstrdup("{");
    for (size_t i = 0; i < w->metadata_count; i++)
        add_quoted(&text, i == 0 ? "\"__metadata__\":{" : i % 2 ? ":" : ",", w->metadata[i]);
    if (w->metadata_count) format_more(&text, w->count ? "}," : "}");
    for (size_t i = 0, at = 0; i < w->count; at += bytes_of(&w->tensors[i++])) {
        const Stored *t = &w->tensors[i];
        char shape[200] = "", *to = shape;
        for (int k = 0; k < t->ndim; k++) to += sprintf(to, "%s%lld", k ? "," : "", (long long)t->shape[k]);
        add_quoted(&text, i ? "," : "", t->name);
        format_more(&text, ":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
                    type_info[t->type].name, shape, at, at + bytes_of(t));
    }
    format_more(&text, "}");
    while (strlen(text) % 8) format_more(&text, " "); // so that the data begins at a multiple of 8
    uint64_t length = strlen(text);
    if (length > MAX_HEADER)
        die("%s: its header is %zu bytes long, at most %d are allowed", w->path, (size_t)length, MAX_HEADER);
    output_write(w->out, &length, 8);
    output_write(w->out, text, length);
    free(text);
}

// The tensor that the next byte belongs to; NULL when all are complete.
static const Stored *current_tensor(StoreWriter *w) {
    if (!w->header_written) write_header(w);
    while (w->current < w->count && w->done == bytes_of(&w->tensors[w->current])) w->current++, w->done = 0;
    return w->current < w->count ? &w->tensors[w->current] : NULL;
}

void store_data(StoreWriter *w, const void *data, size_t bytes) {
    const Stored *t = current_tensor(w);
    if (!bytes) return;
    if (!t) die("%s: %zu bytes of data behind the last tensor", w->path, bytes);
    if (bytes > bytes_of(t) - w->done)
        die("%s: tensor %s: %zu bytes of data, expected at most %zu", w->path, t->name, bytes,
            bytes_of(t) - w->done);
    output_write(w->out, data, bytes);
    w->done += bytes;
}

// fp16 ends at 65504. A finite weight that became infinite would draw a black picture much later.
static void to_halves(const StoreWriter *w, const Stored *t, uint16_t *out, const float *data, size_t n) {
    uint32_t overflow = 0;
    for (size_t i = 0; i < n; i++) {
        out[i] = f32_to_f16(data[i]);
        overflow |= (out[i] & 0x7fffu) == 0x7c00 && (bits_of(data[i]) & 0x7fffffff) != 0x7f800000;
    }
    for (size_t i = 0; overflow && i < n; i++)
        if ((out[i] & 0x7fff) == 0x7c00 && isfinite(data[i]))
            die("%s: tensor %s: the value %g does not fit fp16, which ends at 65504", w->path, t->name,
                (double)data[i]);
}

void store_data_f32(StoreWriter *w, const float *data, size_t count) {
    const Stored *t = current_tensor(w);
    if (!count) return;
    if (!t) die("%s: %zu values behind the last tensor", w->path, count);
    union {
        float same[4096];
        uint16_t half[4096];
        double wide[4096];
    } piece;
    for (size_t n; count; data += n, count -= n) {
        n = count < 4096 ? count : 4096;
        switch (t->type) {
        case F32: memcpy(piece.same, data, n * sizeof *data); break;
        case F16: to_halves(w, t, piece.half, data, n); break;
        case BF16:
            for (size_t i = 0; i < n; i++) piece.half[i] = f32_to_bf16(data[i]);
            break;
        case F64:
            for (size_t i = 0; i < n; i++) piece.wide[i] = data[i];
            break;
        default: die("%s: tensor %s: fp32 data for the type %s", w->path, t->name, type_info[t->type].name);
        }
        store_data(w, &piece, n * type_info[t->type].bytes);
    }
}

void store_commit(StoreWriter *w) {
    const Stored *t = current_tensor(w);
    if (t) die("%s: tensor %s: %zu bytes of data are missing", w->path, t->name, bytes_of(t) - w->done);
    if (w->seal) output_seal(w->out, digest_mark);
    output_commit(w->out);
    for (size_t i = 0; i < w->metadata_count; i++) free(w->metadata[i]);
    for (size_t i = 0; i < w->count; i++) free((char *)w->tensors[i].name);
    names_free(&w->names);
    free(w->metadata), free(w->tensors), free(w->path), free(w);
}
