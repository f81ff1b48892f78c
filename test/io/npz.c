// npz.c (test): archives that NumPy wrote, streams that zlib wrote, archives that we write, damaged files.
#define _POSIX_C_SOURCE 200809L
#include "files.h"

// ---- inflate ---------------------------------------------------------------------------------------------

// A compressed fixture. Deflated data without a wrapping gets gzip's: a header, CRC and length of what
// level9.zlib holds, too.
static unsigned char *read_compressed(const char *name, size_t *size) {
    char path[300];
    snprintf(path, sizeof path, FIXTURES "%s", name);
    unsigned char *data = (unsigned char *)read_file(path, size);
    if (strcmp(name, "raw.deflate")) return data;
    size_t packed = *size, bytes, n = 0;
    unsigned char *zlib = (unsigned char *)read_file(FIXTURES "level9.zlib", &bytes),
                  *wrapped = xcalloc(packed + 18, 1), *out = inflate_gzip(zlib, bytes, &n);
    uint64_t trailer = crc32_update(0, out, n) | (uint64_t)n << 32;
    memcpy(wrapped, "\x1f\x8b\x08", 3);
    memcpy(wrapped + 10, data, packed);
    for (int i = 0; i < 8; i++) wrapped[10 + packed + (size_t)i] = (unsigned char)(trailer >> 8 * i);
    free(zlib), free(out), free(data);
    *size = packed + 18;
    return wrapped;
}

static void test_inflate(void) {
    static const struct {
        const char *file, *hash;
    } whole[] = {
        {"level0.zlib", "stream-2000"}, {"rle.zlib", "stream-2000"}, {"huffman.zlib", "stream-2000"},
        {"level1.zlib", "stream"},      {"level9.zlib", "stream"},   {"fixed.zlib", "stream"},
        {"raw.deflate", "stream"},      {"members.gz", "stream"},    {"skewed.zlib", "stream-skewed"}};
    for (size_t i = 0; i < sizeof whole / sizeof whole[0]; i++) {
        size_t n = 0, size;
        unsigned char *data = read_compressed(whole[i].file, &size), *out = inflate_gzip(data, size, &n);
        if (!out) printf("%s is refused\n", whole[i].file);
        check_hash(whole[i].hash, out ? fnv1a(FNV_START, out, n) : 0);
        free(out);
        // Cut at any byte it is damaged; with a checksum, also with any bit turned.
        int survived = 0;
        for (size_t cut = 0; cut < size; cut += cut < 50 || size - cut < 50 ? 1 : 37) {
            unsigned char *part = xmalloc(cut); // ends with its allocation, for the sanitizer
            memcpy(part, data, cut);
            out = inflate_gzip(part, cut, &n);
            // A gzip file cut between its two members is complete.
            if (out && fnv1a(FNV_START, out, n) != FNV_START) survived++;
            free(out), free(part);
        }
        check(survived <= (i == 7), "a stream cut short is refused");
        survived = 0;
        for (size_t at = 12; at < size; at += 97) {
            data[at] ^= 1 << at % 8;
            out = inflate_gzip(data, size, &n);
            // Some bits of gzip's header are ignored (time, name): then the result must be correct.
            if (out) {
                check_hash(whole[i].hash, fnv1a(FNV_START, out, n));
                survived += i != 7;
            }
            free(out);
            data[at] ^= 1 << at % 8;
        }
        check(survived == 0, "a stream with a flipped bit is refused");
        free(data);
    }
    size_t n;
    static const unsigned char far_back[12] = {0x63, 0x00, 0x42}; // a literal, then a copy from too far back
    unsigned char out[100];
    check(inflate_into(out, sizeof out, far_back, sizeof far_back) == SIZE_MAX,
          "a copy from before the beginning");
    check(!inflate_gzip((const unsigned char *)"", 0, &n), "no bytes at all");
    check(crc32_update(0, "123456789", 9) == 0xcbf43926, "the check value of CRC-32");
    check(crc32_update(crc32_update(0, "1234", 4), "56789", 5) == 0xcbf43926, "CRC-32 in two pieces");
}

// ---- what NumPy wrote ------------------------------------------------------------------------------------

static void check_array(const char *path, const char *key, int want_ndim, const int64_t *want_shape,
                        double first, double step) {
    int64_t shape[4];
    int ndim;
    double *a = npz_read(path, key, 1 << 20, shape, &ndim);
    int ok = ndim == want_ndim;
    int64_t count = 1;
    for (int i = 0; i < want_ndim; i++) ok = ok && shape[i] == want_shape[i], count *= want_shape[i];
    for (int64_t i = 0; ok && i < count; i++) ok = ok && a[i] == first + step * (double)i;
    if (!ok) printf("%s in %s\n", key, path);
    check(ok, "an array as NumPy wrote it");
    free(a);
}

__attribute__((noinline)) static void check_dies(const char *what, const char *words, const char *path,
                                                 const char *key) {
    int64_t shape[4];
    int ndim;
    CHECK_DIES(what, words, npz_read(path, key, 1 << 20, shape, &ndim));
}

static void test_reading(void) {
    static const char *const files[] = {FIXTURES "stored.npz", FIXTURES "deflated.npz"};
    static const char *const with_sign[] = {"f2", "f4", "f8", "f2be", "f4be", "f8be", "i1",
                                            "i2", "i4", "i8", "i2be", "i4be", "i8be", "fortran"};
    static const char *const without[] = {"u1", "u2", "u4", "u8", "u2be", "u4be", "u8be"};
    static const int64_t block[] = {2, 3, 4}, five[] = {5}, nothing[] = {3, 0}, six[] = {6};
    int64_t shape[4];
    int ndim;
    for (int f = 0; f < 2; f++) {
        for (size_t i = 0; i < sizeof with_sign / sizeof *with_sign; i++)
            check_array(files[f], with_sign[i], 3, block, -50, 5);
        for (size_t i = 0; i < sizeof without / sizeof *without; i++)
            check_array(files[f], without[i], 3, block, 0, 9);
        check_array(files[f], "scalar", 0, NULL, 7, 0);
        check_array(files[f], "vector", 1, five, 0, 1);
        check_array(files[f], "empty", 2, nothing, 0, 0);
        double *a = npz_read(files[f], "bool", 1 << 20, shape, &ndim);
        int ok = 1;
        for (int i = 0; i < 24; i++) ok = ok && a[i] == (i % 3 == 0);
        check(ok, "booleans");
        free(a);
        a = npz_read(files[f], "large", 1 << 20, shape, &ndim);
        check(a[0] == -0x1p63 && a[1] == 0x1p63 && a[2] == -1, "the ends of int64");
        free(a);
        check_dies("complex numbers", "array complex: its type is '<c16'", files[f], "complex");
        check_dies("five dimensions", "more than 4", files[f], "five");
        check_dies("an absent array", "holds no array sigma", files[f], "sigma");
        check_dies("half a name", "holds no array f", files[f], "f");
    }
    check_array(FIXTURES "versions.npz", "v1", 1, six, 0, 0.125);
    check_array(FIXTURES "versions.npz", "v2", 1, six, 0, 0.125);
    check_array(FIXTURES "versions.npz", "v3", 1, six, 0, 0.125);
    check_array(FIXTURES "zip64.npz", "mu", 1, six, 0, 0.125);
}

// ---- what we write ---------------------------------------------------------------------------------------

static void test_writing(void) {
    double data[6];
    for (int i = 0; i < 6; i++) data[i] = 0.1 * i;
    const char *path = in_folder("written.npz");
    npz_write(path, (NpzArray[]){{"mu", data, 1, {6}}, {"sigma", data, 2, {2, 3}}, {"scalar", data, 0, {0}}},
              3);
    static const int64_t six[] = {6}, block[] = {2, 3};
    check_array(path, "mu", 1, six, 0, 0.1);
    check_array(path, "sigma", 2, block, 0, 0.1);
    check_array(path, "scalar", 0, NULL, 0, 0);
    npz_write(in_folder("again.npz"),
              (NpzArray[]){{"mu", data, 1, {6}}, {"sigma", data, 2, {2, 3}}, {"scalar", data, 0, {0}}}, 3);
    size_t n, m;
    char *a = read_file(path, &n), *b = read_file(in_folder("again.npz"), &m);
    check(n == m && !memcmp(a, b, n), "equal arrays make equal files");
    free(a), free(b);
}

// ---- damage ----------------------------------------------------------------------------------------------

__attribute__((noinline)) static int refused(const char *path, const char *key) {
    int64_t shape[4];
    int ndim;
    die_hook = on_death;
    if (setjmp(death)) return 1;
    free(npz_read(path, key, 1 << 20, shape, &ndim));
    return 0;
}

// An archive with one array `x`, uncompressed: its header, and a number of bytes of data.
static const char *archive_of(const char *header, size_t bytes, int method, bool right_crc) {
    unsigned char z[2000] = {0};
    size_t text = strlen(header), length = 10 + text + bytes, at = 0;
    unsigned char npy[1000] = {0};
    memcpy(npy, "\x93NUMPY\1", 8);
    npy[8] = (unsigned char)text, npy[9] = (unsigned char)(text >> 8);
    memcpy(npy + 10, header, text);
    uint32_t crc = crc32_update(0, npy, length) + !right_crc;
    size_t begin[2];
    for (int k = 0; k < 2; k++) { // local header, directory
        unsigned char *p = z + at + (k ? 2 : 0);
        begin[k] = at;
        memcpy(z + at, k ? "PK\1\2" : "PK\3\4", 4);
        p[8] = (unsigned char)method;
        for (int i = 0; i < 4; i++)
            p[14 + i] = (unsigned char)(crc >> 8 * i),
                   p[18 + i] = p[22 + i] = (unsigned char)(length >> 8 * i);
        p[26] = 5;
        at += k ? 46 : 30;
        memcpy(z + at, "x.npy", 5), at += 5;
        if (!k) memcpy(z + at, npy, length), at += length;
    }
    memcpy(z + at, "PK\5\6", 4);
    z[at + 8] = z[at + 10] = 1;
    z[at + 12] = 51;
    z[at + 16] = (unsigned char)begin[1], z[at + 17] = (unsigned char)(begin[1] >> 8);
    return write_bytes("made.npz", z, at + 22);
}

static void test_damage(void) {
    static const char *const files[] = {"deflated.npz", "zip64.npz"};
    for (int f = 0; f < 2; f++) {
        char path[300];
        size_t n;
        snprintf(path, sizeof path, FIXTURES "%s", files[f]);
        char *good = read_file(path, &n);
        const char *key = f ? "mu" : "f8";
        int survived = 0;
        for (size_t cut = 0; cut < n; cut += f ? 1 : 13)
            survived += !refused(write_bytes("cut.npz", good, cut), key);
        check(survived == 0, "an archive cut short is refused");
        die_hook = NULL;
        free(good);
    }
#define GOOD "{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }\n"
    check_array(archive_of(GOOD, 16, 0, true), "x", 1, (int64_t[]){2}, 0, 0);
    check_dies("a wrong CRC", "x.npy is damaged: its CRC", archive_of(GOOD, 16, 0, false), "x");
    check_dies("another compression", "method 12", archive_of(GOOD, 16, 12, true), "x");
    check_dies("data that is no deflate", "compressed data of x.npy is damaged",
               archive_of(GOOD, 16, 8, true), "x");
    check_dies("too little data", "holds 8 bytes of data, but its shape and type need 16",
               archive_of(GOOD, 8, 0, true), "x");
    check_dies("too much data", "holds 24 bytes", archive_of(GOOD, 24, 0, true), "x");
    static const char *const headers[] = {
        "",
        "{}",
        "{'descr': '<f8', 'fortran_order': False}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2,)",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2 1), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 1 1), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-2,), }",
        "{'descr': '<f8', 'fortran_order': 0, 'shape': (2,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2,), 'more': 1}",
        "{'descr': '<f8', 'descr': '<f8', 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2,), } x",
        "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (2,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999999,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 1099511627776, 9), }",
        "{'descr': '<f16', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f3', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }",
        "{'descr': '', 'fortran_order': False, 'shape': (2,), }",
    };
    int survived = 0;
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++)
        if (!refused(archive_of(headers[i], 16, 0, true), "x"))
            printf("accepted: %s\n", headers[i]), survived++;
    die_hook = NULL;
    check(survived == 0, "headers that NumPy does not write are refused");
    check_dies("no zip", "no .npz file: it is a PNG picture", FIXTURES "rgb.png", "x");
    check_dies("a text", "does not begin with PK", write_text("text.npz", "text, but no array."), "x");
    check_dies("an array of objects", "is a pickle, which can run code; where you trust it: python -c",
               archive_of("{'descr': '|O', 'fortran_order': False, 'shape': (3,), }", 16, 0, true), "x");
    check_dies("a pickle", "is a pickle, which", write_bytes("raw.npz", "\x80\4\x95\0\0\0", 6), "x");
    check_dies("a pickle as .npy", "is a pickle, which",
               write_bytes("object.npy", "\x93NUMPY\1\0\x76\0{'descr': '|O', 'fortran_order': False}", 46),
               "x");
    check_dies("half of one", "is one array (.npy)", write_bytes("half.npy", "\x93NUMPY\1", 7), "x");
    check_dies("one array", "is one array (.npy); statistics are an .npz of two",
               write_bytes("one.npy", "\x93NUMPY\1\0\x76\0{'descr': '<f8', 'fortran_order': False}", 47),
               "x");
    check_dies("an empty file", "too few", write_text("empty.npz", ""), "x");
}

int main(void) {
    folder_begin();
    test_inflate();
    test_reading();
    test_writing();
    test_damage();
    folder_end();
    return test_report();
}
