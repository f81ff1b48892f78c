// npz.c: NumPy's .npz, a zip archive of .npy arrays. See io.h.
//
// FID statistics come in this form (`mu`, `sigma`), written by np.savez or np.savez_compressed. Only that is
// here, by PKWARE's APPNOTE and numpy.lib.format: no encryption, no archives in several files.
#include "io.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- zip -----------------------------------------------------------------------------------------------
//
// A zip ends with a record that says where the central directory is; that lists the members, each with the
// place of its data. 64-bit values stand in an extra field wherever the 32-bit one holds ffffffff.

typedef struct {
    const char *path;
    const unsigned char *bytes;
    size_t size;
} Zip;

typedef struct {
    const char *name; // name_length bytes, no NUL
    size_t name_length;
    int flags, method;
    uint32_t crc;
    uint64_t packed, unpacked, header_at;
} Member;

static bool has_signature(const Zip *z, uint64_t at, size_t record, const char *signature) {
    return at <= z->size && z->size - at >= record && !memcmp(z->bytes + at, signature, 4);
}

static _Noreturn void die_of_pickle(const char *where) {
    die("%s is a pickle, which can run code; where you trust it: python -c \"import sys, numpy as n; "
        "d = n.load(sys.argv[1], allow_pickle=True); d = getattr(d, 'item', lambda: d)(); "
        "n.savez(sys.argv[2], **{k: n.float64(d[k].tolist()) for k in ('mu', 'sigma')})\" OLD NEW.npz",
        where);
}

// Dies where the file is no zip.
static void check_zip(const Zip *z) {
    const char *kind = file_kind(z->bytes, z->size);
    bool array = kind && !strcmp(kind, "a NumPy array");
    char header[256] = ""; // of an .npy: see below
    int length = z->size < 10 + sizeof header ? (int)z->size - 10 : (int)sizeof header;
    if (array && length > 0) snprintf(header, sizeof header, "%.*s", length, z->bytes + 10);
    if ((kind && !strcmp(kind, "a pickle")) || strstr(header, "'|O'")) die_of_pickle(z->path);
    if (array)
        die("%s is one array (.npy); statistics are an .npz of two: numpy.savez(\"NEW.npz\", mu=..., sigma=...)",
            z->path);
    if (z->size >= 2 && memcmp(z->bytes, "PK", 2))
        die("%s: no .npz file: %s%s", z->path, kind ? "it is " : "it does not begin with PK",
            kind ? kind : "");
    if (z->size < 22) die("%s: %zu bytes are too few for an .npz file", z->path, z->size);
}

// Where the central directory begins and how many members it lists.
static void find_directory(const Zip *z, uint64_t *at, uint64_t *members) {
    check_zip(z);
    size_t end = z->size - 22; // the end record is 22 bytes, and a comment of up to 65535
    while (memcmp(z->bytes + end, "PK\5\6", 4) ||
           little_endian(z->bytes + end + 20, 2) != z->size - 22 - end) {
        if (end == 0 || z->size - 22 - end >= 65535)
            die("%s: the archive's directory is missing (was it cut short?)", z->path);
        end--;
    }
    const unsigned char *p = z->bytes + end;
    *members = little_endian(p + 10, 2), *at = little_endian(p + 16, 4);
    if ((*members == 0xffff || *at == 0xffffffff) && end >= 20 && !memcmp(p - 20, "PK\6\7", 4)) { // zip64
        uint64_t record = little_endian(p - 20 + 8, 8);
        if (!has_signature(z, record, 56, "PK\6\6"))
            die("%s: the archive's zip64 end record is missing", z->path);
        *members = little_endian(z->bytes + record + 32, 8);
        *at = little_endian(z->bytes + record + 48, 8);
    }
}

static _Noreturn void bad_directory(const Zip *z, uint64_t at) {
    die("%s: the archive's directory is damaged at byte %llu", z->path, (unsigned long long)at);
}

// The entry at *at of the central directory; *at moves behind it.
static Member read_entry(const Zip *z, uint64_t *at) {
    if (!has_signature(z, *at, 46, "PK\1\2")) bad_directory(z, *at);
    const unsigned char *p = z->bytes + *at;
    size_t name = little_endian(p + 28, 2), extra = little_endian(p + 30, 2);
    size_t comment = little_endian(p + 32, 2);
    if (name + extra + comment > z->size - *at - 46) bad_directory(z, *at);
    Member m = {.name = (const char *)p + 46,
                .name_length = name,
                .flags = (int)little_endian(p + 8, 2),
                .method = (int)little_endian(p + 10, 2),
                .crc = (uint32_t)little_endian(p + 16, 4),
                .packed = little_endian(p + 20, 4),
                .unpacked = little_endian(p + 24, 4),
                .header_at = little_endian(p + 42, 4)};
    for (const unsigned char *e = p + 46 + name, *e_end = e + extra; e_end - e >= 4;) {
        size_t length = little_endian(e + 2, 2);
        if (length > (size_t)(e_end - e) - 4) break;
        const unsigned char *v = e + 4, *v_end = v + length;
        if (little_endian(e, 2) == 1) { // zip64: only the values that did not fit, in this order
            uint64_t *wide[] = {&m.unpacked, &m.packed, &m.header_at};
            for (int i = 0; i < 3; i++)
                if (*wide[i] == 0xffffffff && v_end - v >= 8) *wide[i] = little_endian(v, 8), v += 8;
        }
        e = v_end;
    }
    *at += 46 + name + extra + comment;
    return m;
}

// A member's bytes, checked against length and CRC: in the archive, or *unpacked, which the caller frees.
static const unsigned char *read_member(const Zip *z, const Member *m, const char *name,
                                        unsigned char **unpacked) {
    if (m->flags & 1) die("%s: %s is encrypted", z->path, name);
    if (m->method != 0 && m->method != 8)
        die("%s: %s is compressed with method %d, expected 0 (stored) or 8 (deflate)", z->path, name,
            m->method);
    if (!has_signature(z, m->header_at, 30, "PK\3\4"))
        die("%s: %s is missing at byte %llu", z->path, name, (unsigned long long)m->header_at);
    // The local header repeats the entry and may differ in the length of its own extra field.
    const unsigned char *p = z->bytes + m->header_at;
    uint64_t skip = 30 + little_endian(p + 26, 2) + little_endian(p + 28, 2), left = z->size - m->header_at;
    if (skip > left || m->packed > left - skip)
        die("%s: %s reaches beyond the end of the file (was it cut short?)", z->path, name);
    if (m->method == 0 ? m->unpacked != m->packed : m->unpacked / MOST_INFLATED > m->packed)
        die("%s: %s claims %llu bytes, packed in %llu", z->path, name, (unsigned long long)m->unpacked,
            (unsigned long long)m->packed);
    const unsigned char *data = p + skip;
    if (m->method == 8) {
        // stb looks a few bytes ahead; the next member or the directory is there.
        size_t ahead = left - skip - m->packed < 8 ? left - skip - m->packed : 8;
        *unpacked = xmalloc(m->unpacked);
        if (inflate_into(*unpacked, m->unpacked, data, m->packed + ahead) != m->unpacked)
            die("%s: the compressed data of %s is damaged", z->path, name);
        data = *unpacked;
    }
    uint32_t crc = crc32_update(0, data, m->unpacked);
    if (crc != m->crc) die("%s: %s is damaged: its CRC is %08x, expected %08x", z->path, name, crc, m->crc);
    return data;
}

// ---- .npy ----------------------------------------------------------------------------------------------
//
// \x93NUMPY, version (2 bytes), length of the header (2 bytes in version 1, else 4), the header, the data.
// The header is a Python dictionary with exactly these three keys:
//   {'descr': '<f8', 'fortran_order': False, 'shape': (2048, 2048), }

enum { MAX_HEADER = 1 << 16 };

typedef struct {
    char kind; // 'b' bool, 'i', 'u' integers, 'f' floating point
    int bytes;
    bool swapped, fortran;
    int ndim;
    int64_t shape[4];
} Npy;

static _Noreturn void bad_header(const char *where) { die("%s: its .npy header is not understood", where); }

// The dictionary as JSON: other quotes and brackets, true and false in lower case, no last comma. Lists, as
// NumPy writes them for records, are refused.
static Json *python_to_json(const char *text, size_t length, const char *where) {
    static const char python[] = "'()TF[]", json[] = "\"[]tf??";
    char *out = xmalloc(length + 1), *comma = NULL; // a comma that only blanks follow so far
    bool quoted = false;
    for (size_t i = 0; i < length; i++) {
        const char *at = text[i] ? strchr(python, text[i]) : NULL;
        quoted ^= text[i] == '\'';
        out[i] = at && (!quoted || text[i] == '\'') ? json[at - python] : text[i];
        if (comma && (out[i] == ']' || out[i] == '}')) *comma = ' ';
        if (out[i] != ' ' && out[i] != '\n') comma = out[i] == ',' ? out + i : NULL;
    }
    char *name = format("%s: its .npy header", where);
    Json *j = json_parse(out, length, name);
    free(name), free(out);
    return j;
}

static void read_type(Npy *a, const char *type, const char *where) {
    static const char *const known[] = {"b1", "i1", "i2", "i4", "i8", "u1",
                                        "u2", "u4", "u8", "f2", "f4", "f8"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (*type && strchr("<>=|", *type) && !strcmp(type + 1, known[i])) {
            a->kind = type[1], a->bytes = type[2] - '0', a->swapped = *type == '>';
            return;
        }
    if (!strcmp(type, "|O")) die_of_pickle(where);
    die("%s: its type is '%s', expected integers or floating point of up to 8 bytes, as '<f8'", where, type);
}

static Npy read_npy_header(const char *text, size_t length, const char *where) {
    Npy a = {0};
    Json *j = python_to_json(text, length, where);
    const Json *type = json_get(j, "descr"), *order = json_get(j, "fortran_order"),
               *shape = json_get(j, "shape");
    if (!type || !order || !shape || j->length != 3 || type->kind != JSON_STRING ||
        order->kind != JSON_BOOL || shape->kind != JSON_ARRAY)
        bad_header(where);
    const char *tuple = memchr(text, '(', length);
    if (shape->length == 1 && !memchr(tuple, ',', (size_t)((const char *)memchr(tuple, ')', length) - tuple)))
        bad_header(where); // (5,) is a tuple, (5) a number
    if (shape->length > 4) die("%s: it has more than 4 dimensions", where);
    for (size_t i = 0; i < shape->length; i++) {
        double n = shape->items[i].number;
        if (shape->items[i].kind != JSON_NUMBER || n != floor(n)) bad_header(where);
        if (!(n >= 0 && n <= 0x1p40)) die("%s: dimension %zu is %g", where, i, n);
        a.shape[a.ndim++] = (int64_t)n;
    }
    a.fortran = order->number != 0;
    read_type(&a, type->string, where);
    json_free(j);
    return a;
}

static double element(const Npy *a, const unsigned char *p) {
    uint64_t v = 0; // its bytes, the lowest first
    for (int i = 0; i < a->bytes; i++) v |= (uint64_t)p[a->swapped ? a->bytes - 1 - i : i] << 8 * i;
    float f;
    double d;
    memcpy(&f, &v, 4), memcpy(&d, &v, 8);
    if (a->kind == 'f')
        return a->bytes == 2 ? (double)f16_to_f32((uint16_t)v) : a->bytes == 4 ? (double)f : d;
    int unused = 64 - 8 * a->bytes; // of a signed integer: move its sign up to bit 63 and back down
    return a->kind == 'i' ? (double)((int64_t)(v << unused) >> unused) : (double)v;
}

static double *read_npy(const unsigned char *data, size_t size, const char *where, int64_t shape[4],
                        int *ndim) {
    if (size < 10 || memcmp(data, "\x93NUMPY", 6)) die("%s: it does not begin as a .npy array does", where);
    int version = data[6], prefix = version == 1 ? 10 : 12;
    if (version < 1 || version > 3 || data[7] != 0)
        die("%s: .npy version %d.%d, expected 1.0, 2.0 or 3.0", where, version, data[7]);
    if (size < (size_t)prefix) die("%s: it is cut short", where);
    size_t header = little_endian(data + 8, prefix - 8);
    if (header > MAX_HEADER) bad_header(where);
    if (header > size - (size_t)prefix) die("%s: it is cut short", where);
    Npy a = read_npy_header((const char *)data + prefix, header, where);

    size_t count;
    if (!shape_count(a.shape, a.ndim, &count)) die("%s: its shape overflows", where);
    const unsigned char *elements = data + prefix + header;
    size_t bytes = size - (size_t)prefix - header;
    if (bytes != count * (size_t)a.bytes)
        die("%s: it holds %zu bytes of data, but its shape and type need %zu", where, bytes,
            count * (size_t)a.bytes);

    double *out = xmalloc(count * sizeof *out);
    // In Fortran order the first index runs fastest: walk the output in row-major order and step through the
    // input by its own strides. A missing dimension is one of size 1.
    size_t n[4] = {1, 1, 1, 1}, stride[4] = {0};
    for (int i = 0; i < a.ndim; i++) n[i] = (size_t)a.shape[i];
    for (size_t k = 0, step = (size_t)a.bytes; k < 4; k++) {
        size_t i = a.fortran ? k : 3 - k;
        stride[i] = step;
        step *= n[i];
    }
    double *o = out;
    for (size_t i = 0; count && i < n[0]; i++)
        for (size_t j = 0; j < n[1]; j++)
            for (size_t k = 0; k < n[2]; k++)
                for (size_t l = 0; l < n[3]; l++)
                    *o++ =
                        element(&a, elements + i * stride[0] + j * stride[1] + k * stride[2] + l * stride[3]);
    *ndim = a.ndim;
    for (int i = 0; i < 4; i++) shape[i] = i < a.ndim ? a.shape[i] : 1;
    return out;
}

// Its name is NULL where there is none.
static Member find_member(const Zip *z, const char *name) {
    uint64_t at, members;
    find_directory(z, &at, &members);
    Member found = {0};
    for (uint64_t i = 0; i < members; i++) {
        Member m = read_entry(z, &at);
        if (m.name_length != strlen(name) || memcmp(m.name, name, m.name_length)) continue;
        if (found.name) die("%s: it holds two arrays of the name %s", z->path, name);
        found = m;
    }
    return found;
}

static double *read_archive(const Zip *z, const char *key, size_t most, int64_t shape[4], int *ndim) {
    char *name = format("%s.npy", key);
    Member found = find_member(z, name);
    if (!found.name) die("%s: it holds no array %s", z->path, key);
    if (found.unpacked > 8 * most + 2 * MAX_HEADER) // before it is unpacked
        die("%s: array %s has %llu bytes; at most %zu numbers are expected", z->path, key,
            (unsigned long long)found.unpacked, most);
    unsigned char *unpacked = NULL;
    const unsigned char *data = read_member(z, &found, name, &unpacked);
    char *where = format("%s: array %s", z->path, key);
    double *out = read_npy(data, (size_t)found.unpacked, where, shape, ndim);
    free(where), free(unpacked), free(name);
    return out;
}

double *npz_read(const char *path, const char *key, size_t most, int64_t shape[4], int *ndim) {
    size_t size;
    const unsigned char *bytes = map_file(path, &size);
    double *out = read_archive(&(Zip){path, bytes, size}, key, most, shape, ndim);
    unmap_file(bytes, size);
    return out;
}

bool npz_has(const char *path, const char *key) {
    size_t size;
    const unsigned char *bytes = map_file(path, &size);
    char *name = format("%s.npy", key);
    bool has = find_member(&(Zip){path, bytes, size}, name).name;
    free(name);
    unmap_file(bytes, size);
    return has;
}

// ---- writing -------------------------------------------------------------------------------------------

typedef struct {
    char bytes[256];
    size_t n;
} Record;

static void put(Record *r, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) r->bytes[r->n++] = (char)(value >> 8 * i);
}

static void put_name(Record *r, const char *key) { r->n += (size_t)sprintf(r->bytes + r->n, "%s.npy", key); }

// Blanks fill up the header, so that the data begins at a multiple of 64 within the .npy.
static Record npy_header(const NpzArray *a) {
    char shape[100] = "";
    for (int k = 0; k < a->ndim; k++)
        sprintf(shape + strlen(shape), k ? " %lld," : "%lld,", (long long)a->shape[k]);
    if (a->ndim > 1) shape[strlen(shape) - 1] = 0; // (5,) but (2, 3)
    Record r = {"\x93NUMPY\1", 8};
    size_t length = (size_t)snprintf(r.bytes + 10, sizeof r.bytes - 10,
                                     "{'descr': '<f8', 'fortran_order': False, 'shape': (%s), }", shape);
    size_t end = (10 + length + 1 + 63) / 64 * 64;
    put(&r, end - 10, 2);
    memset(r.bytes + 10 + length, ' ', end - 10 - length);
    r.bytes[end - 1] = '\n';
    r.n = end;
    return r;
}

// What a member's own header and its entry in the directory have in common.
static void put_member(Record *r, const char *key, uint32_t crc, uint64_t size) {
    put(r, 20, 2), put(r, 0, 2), put(r, 0, 2); // needs version 2.0; flags; stored
    put(r, 0, 2), put(r, 0x21, 2);             // 0:00 on 1980-01-01, so that equal arrays make equal files
    put(r, crc, 4), put(r, size, 4), put(r, size, 4);
    put(r, strlen(key) + strlen(".npy"), 2), put(r, 0, 2); // length of the extra field
}

void npz_write(const char *path, const NpzArray *arrays, int count) {
    Output *o = output_open(path);
    Record *directory = xcalloc((size_t)count, sizeof *directory);
    uint64_t at = 0;
    for (int i = 0; i < count; i++) {
        const NpzArray *a = &arrays[i];
        size_t bytes = sizeof(double);
        for (int k = 0; k < a->ndim; k++) bytes *= (size_t)a->shape[k];
        Record npy = npy_header(a), local = {.n = 0}, *entry = &directory[i];
        uint64_t size = npy.n + bytes;
        if (at + size > 0xf0000000 || count > 1000)
            die("%s: more than 4 GB of arrays are not supported", path);
        if (strlen(a->key) > 96) die("%s: the array's name %s is too long", path, a->key);
        uint32_t crc = crc32_update(crc32_update(0, npy.bytes, npy.n), a->data, bytes);
        put(entry, 0x02014b50, 4), put(entry, 20, 2); // made by version 2.0
        put_member(entry, a->key, crc, size);
        put(entry, 0, 8), put(entry, 0, 2), put(entry, at, 4); // comment, disk, attributes: none
        put_name(entry, a->key);
        put(&local, 0x04034b50, 4);
        put_member(&local, a->key, crc, size);
        put_name(&local, a->key);
        output_write(o, local.bytes, local.n);
        output_write(o, npy.bytes, npy.n);
        output_write(o, a->data, bytes);
        at += local.n + size;
    }
    uint64_t begin = at;
    for (int i = 0; i < count; i++) output_write(o, directory[i].bytes, directory[i].n), at += directory[i].n;
    Record end = {.n = 0};
    put(&end, 0x06054b50, 4), put(&end, 0, 4); // disks
    put(&end, (uint64_t)count, 2), put(&end, (uint64_t)count, 2);
    put(&end, at - begin, 4), put(&end, begin, 4), put(&end, 0, 2);
    output_write(o, end.bytes, end.n);
    output_commit(o);
    free(directory);
}
