// safetensors.c (test): exact conversions of half precision, files of the safetensors library, files that we
// write, and headers that are wrong in every way.
#define _POSIX_C_SOURCE 200809L
#include "files.h"

// ---- half precision --------------------------------------------------------------------------------------

static void test_halves(void) {
    // The definition, by arithmetic.
    int wrong = 0, nan = 0;
    uint64_t hash = FNV_START;
    for (int h = 0; h < 65536; h++) {
        float got = f16_to_f32((uint16_t)h);
        int exponent = h >> 10 & 31, mantissa = h & 1023;
        double want = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
        if (exponent == 31) want = mantissa ? NAN : INFINITY;
        if (h >> 15) want = -want;
        if (isnan(want))
            nan += isnan(got) ? 1 : 0;
        else {
            wrong += !(got == want && !signbit(got) == !signbit(want));
            hash = fnv1a(hash, &got, 4);
        }
        if (!isnan(want))
            wrong += f32_to_f16(got) != h;
        else
            wrong += (f32_to_f16(got) & 0x7c00) != 0x7c00 || !(f32_to_f16(got) & 0x3ff);
        float wide = bf16_to_f32((uint16_t)h);
        uint32_t bits;
        memcpy(&bits, &wide, 4);
        wrong += bits != (uint32_t)h << 16;
        if (!isnan(wide))
            wrong += f32_to_bf16(wide) != h;
        else
            wrong += !isnan(bf16_to_f32(f32_to_bf16(wide)));
    }
    check(wrong == 0, "all 65,536 halves go to fp32 and back");
    check(nan == 2 * 1023, "NaN stays NaN");
    check_hash("f16_to_f32", hash);
}

static uint64_t hash_half, hash_brain;
static void hash_both(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    if (isnan(f)) return;
    uint16_t h = f32_to_f16(f), b = f32_to_bf16(f);
    hash_half = fnv1a(hash_half, &h, 2);
    hash_brain = fnv1a(hash_brain, &b, 2);
}

static void test_rounding(void) {
    hash_half = hash_brain = FNV_START;
    for (uint64_t i = 0; i < 1 << 19; i++) hash_both((uint32_t)(i * 8209));
    for (int side = -1; side <= 1; side++) // just below, at and above the middle between neighbouring halves
        for (int h = 0; h < 0x7bff; h++) {
            float middle = (f16_to_f32((uint16_t)h) + f16_to_f32((uint16_t)(h + 1))) / 2;
            uint32_t bits;
            memcpy(&bits, &middle, 4);
            hash_both(bits + (uint32_t)side);
        }
    check_hash("f32_to_f16", hash_half);
    check_hash("f32_to_bf16", hash_brain);
    check(f32_to_f16(65519.996f) == 0x7bff && f32_to_f16(65520) == 0x7c00,
          "65520 is where fp16 becomes infinite");
}

// ---- files of the library --------------------------------------------------------------------------------

static void check_values(const Store *s, const char *name, Type type, int count, float step, float first) {
    const Stored *t = store_find(s, name);
    int ok = t && t->type == type && t->count == (size_t)count;
    if (ok) {
        float out[64];
        store_read_f32(t, out);
        for (int i = 0; i < count; i++) ok = ok && out[i] == first + step * (float)i;
    }
    check(ok, name);
}

static void test_reading(void) {
    Store *s = store_open(FIXTURES "types.safetensors");
    check_values(s, "float32", F32, 24, 0.25f, -3);
    check_values(s, "float16", F16, 24, 0.25f, -3);
    check_values(s, "bfloat16", BF16, 24, 0.25f, -3);
    check_values(s, "wide.f64", F64, 6, 1, -2);
    check_values(s, "int8", I8, 7, 9, -30);
    check_values(s, "int16", I16, 7, 9, -30);
    check_values(s, "int32", I32, 7, 9, -30);
    check_values(s, "int64", I64, 7, 9, -30);
    check_values(s, "uint8", U8, 5, 40, 0);
    check_values(s, "uint16", U16, 5, 40, 0);
    check_values(s, "scalar", F32, 1, 0, 2.5f);
    check_values(s, "empty", F32, 0, 0, 0);
    const Stored *t = store_find(s, "bool");
    float b[3] = {9, 9, 9};
    if (t) store_read_f32(t, b);
    check(t && t->type == BOOL8 && b[0] == 1 && b[1] == 0 && b[2] == 1, "bool");
    t = store_find(s, "float32");
    check(t && t->ndim == 3 && t->shape[0] == 2 && t->shape[1] == 3 && t->shape[2] == 4, "a shape");
    check(store_find(s, "scalar")->ndim == 0, "a scalar has no dimensions");
    check(store_count(s) == 13 && !store_find(s, "float") && !store_find(s, "float322"), "names match whole");
    const char *m = store_metadata(s, "quote\"d");
    check(m && !strcmp(m, "back\\slash, line\nfeed, \xc3\xa9, \xe7\x8c\xab"), "metadata");
    check(!store_metadata(s, "absent"), "absent metadata");
    store_close(s);
}

// ---- what we write ---------------------------------------------------------------------------------------

static void test_writing(void) {
    const char *path = in_folder("written.safetensors");
    float data[15];
    for (int i = 0; i < 15; i++) data[i] = 0.3f * (float)i;
    int64_t integers[2] = {-1, (int64_t)1 << 40};
    StoreWriter *w = store_create(path);
    store_metadata_add(w, "prompt", "a \"cat\",\n\ta \\ and a \xe7\x8c\xab");
    store_metadata_add(w, "format", "pt");
    store_declare(w, "full", F32, 2, (int64_t[]){3, 5});
    store_declare(w, "half", F16, 2, (int64_t[]){3, 5}); // 30 bytes: what follows is not aligned
    store_declare(w, "empty", F32, 2, (int64_t[]){0, 4});
    store_declare(w, "integers", I64, 1, (int64_t[]){2});
    store_declare(w, "brain", BF16, 1, (int64_t[]){15});
    store_data_f32(w, data, 7), store_data_f32(w, data + 7, 8);
    store_data_f32(w, data, 15);
    store_data(w, (char *)integers, 3), store_data(w, (char *)integers + 3, 13);
    check(!file_exists(path), "nothing under the name before the commit");
    store_data_f32(w, data, 15);
    store_commit(w);

    Store *s = store_open(path);
    check(store_count(s) == 5 && !strcmp(store_at(s, 0)->name, "full") &&
              !strcmp(store_at(s, 4)->name, "brain"),
          "tensors in the declared order");
    const Stored *full = store_find(s, "full");
    check(((uintptr_t)full->data & 7) == 0, "data begins at a multiple of 8");
    check(!memcmp(full->data, data, sizeof data), "fp32 comes back as it was");
    float out[15];
    int right = 1;
    store_read_f32(store_find(s, "half"), out);
    for (int i = 0; i < 15; i++) right = right && out[i] == f16_to_f32(f32_to_f16(data[i]));
    store_read_f32(store_find(s, "brain"), out);
    for (int i = 0; i < 15; i++) right = right && out[i] == bf16_to_f32(f32_to_bf16(data[i]));
    check(right, "fp16 and bf16 come back rounded");
    check(!memcmp(store_find(s, "integers")->data, integers, 16), "an unaligned tensor");
    check(!strcmp(store_metadata(s, "prompt"), "a \"cat\",\n\ta \\ and a \xe7\x8c\xab"),
          "metadata comes back");
    store_close(s);

    int64_t two = 2;
    float big[2] = {1, 70000};
    path = in_folder("bad.safetensors");
    CHECK_DIES("a value beyond fp16", "70000 does not fit fp16", w = store_create(path);
               store_declare(w, "x", F16, 1, &two); store_data_f32(w, big, 2));
    CHECK_DIES("too much data", "at most 8", w = store_create(path); store_declare(w, "x", F32, 1, &two);
               store_data(w, data, 12));
    CHECK_DIES("data behind the last tensor", "behind the last", w = store_create(path);
               store_declare(w, "x", F32, 1, &two); store_data(w, data, 8); store_data(w, data, 1));
    CHECK_DIES("missing data", "4 bytes of data are missing", w = store_create(path);
               store_declare(w, "x", F32, 1, &two); store_data(w, data, 4); store_commit(w));
    CHECK_DIES("a tensor declared twice", "declared twice", w = store_create(path);
               store_declare(w, "x", F32, 1, &two); store_declare(w, "y", F32, 1, &two);
               store_declare(w, "x", F32, 1, &two); store_data(w, data, 8));
    CHECK_DIES("a declaration after data", "after the first data", w = store_create(path);
               store_declare(w, "x", F32, 1, &two); store_data(w, data, 8);
               store_declare(w, "y", F32, 1, &two));
    CHECK_DIES("a shape that overflows", "overflows", w = store_create(path);
               store_declare(w, "x", F32, 3, (int64_t[]){1 << 30, 1 << 30, 1 << 30}));
    CHECK_DIES("metadata in Latin-1", "not UTF-8", w = store_create(path);
               store_metadata_add(w, "a", "caf\xe9"));
    check(!file_exists(path), "a failed write leaves nothing under the name");
}

// Pages that were released have the same contents when they are read again.
static void test_done_with(void) {
    const char *path = in_folder("pages.safetensors");
    enum { N = 40000 };
    float *data = xmalloc(N * sizeof *data), *out = xmalloc(N * sizeof *out);
    for (int i = 0; i < N; i++) data[i] = (float)i;
    StoreWriter *w = store_create(path);
    store_declare(w, "a", F32, 1, (int64_t[]){N});
    store_declare(w, "b", F32, 1, (int64_t[]){N});
    store_data_f32(w, data, N), store_data_f32(w, data, N);
    store_commit(w);
    Store *s = store_open(path);
    store_read_f32(store_find(s, "a"), out);
    store_done_with(store_find(s, "a"));
    store_done_with(store_find(s, "b"));
    store_read_f32(store_find(s, "a"), out);
    check(!memcmp(out, data, N * sizeof *data), "a tensor is whole after its pages left memory");
    store_close(s);
    free(data), free(out);
}

// A linear layer's weights come as (out, in) or as a 1x1 convolution's, and the other way round; a
// convolution's as (out, in, kh, kw).
static const Stored *find_weight(void *store, const char *name) { return store_find(store, name); }
static void test_params(void) {
    static const struct {
        bool conv;
        int kh, dims;
        int64_t shape[4];
        bool fits;
    } cases[] = {{false, 1, 2, {2, 3}, true},       {false, 1, 4, {2, 3, 1, 1}, true},
                 {true, 1, 2, {2, 3}, true},        {true, 2, 4, {2, 3, 2, 1}, true},
                 {false, 1, 3, {2, 3, 2}, false},   {false, 1, 2, {3, 2}, false},
                 {true, 2, 4, {2, 3, 1, 2}, false}, {true, 2, 2, {2, 3}, false}};
    float x[12];
    backend_init(1);
    for (int i = 0; i < 12; i++) x[i] = (float)i;
    for (int i = 0; i < 8; i++) {
        const char *path = in_folder("layer.safetensors");
        StoreWriter *w = store_create(path);
        size_t count = 1;
        for (int k = 0; k < cases[i].dims; k++) count *= (size_t)cases[i].shape[k];
        store_declare(w, "a.weight", F32, cases[i].dims, cases[i].shape);
        store_data_f32(w, x, count);
        store_commit(w);
        Params p = {0};
        Layer *l = cases[i].conv ? layer_conv(&p, 3, 2, cases[i].kh, 1, false, "a")
                                 : layer_linear(&p, 3, 2, false, "a");
        Store *s = store_open(path);
        if (!cases[i].fits) {
            CHECK_DIES("another shape", "has the shape", params_load(&p, find_weight, s, path));
            continue;
        }
        params_load(&p, find_weight, s, path);
        float *got = param_read(l->weight), *memory = tensor_read(l->weight);
        check(!memcmp(got, x, count * sizeof *x), "a layer's weights are those of the file");
        check(memory[1] == (cases[i].kh == 2 ? 2 : 1),
              "in memory a convolution's channels are the last axis");
        free(got), free(memory);
        params_free(&p), store_close(s);
    }
}

// ---- lies ------------------------------------------------------------------------------------------------

// A file with this header and a number of bytes of data.
static const char *fake(const char *header, size_t data) {
    size_t n = strlen(header);
    unsigned char *bytes = xcalloc(8 + n + data, 1);
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)((uint64_t)n >> 8 * i);
    memcpy(bytes + 8, header, n);
    const char *path = write_bytes("fake.safetensors", bytes, 8 + n + data);
    free(bytes);
    return path;
}

// Not inlined, so that no variable of the caller's loop is live across longjmp().
__attribute__((noinline)) static void check_refused(const char *what, const char *words, const char *path) {
    CHECK_DIES(what, words, store_open(path));
}

__attribute__((noinline)) static int refuses(const char *path) {
    die_hook = on_death;
    if (setjmp(death)) return 1;
    store_close(store_open(path));
    return 0;
}

static void test_lies(void) {
#define ENTRY(dtype, shape, offsets)                                                                         \
    "\"a.weight\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
    static const struct {
        const char *what, *words, *header;
        size_t data;
    } lies[] = {
        {"an unknown type", "a.weight: type F8_E4M3", "{" ENTRY("F8_E4M3", "[4]", "[0,4]") "}", 4},
        {"a type in small letters", "type f32", "{" ENTRY("f32", "[1]", "[0,4]") "}", 4},
        {"no dtype", "dtype is missing", "{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4},
        {"a dtype that is a number", "dtype is missing",
         "{\"a\":{\"dtype\":1,\"shape\":[1],\"data_offsets\":[0,4]}}", 4},
        {"no shape", "shape is missing", "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4},
        {"no offsets", "no pair", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4},
        {"three offsets", "no pair", "{" ENTRY("F32", "[1]", "[0,4,8]") "}", 8},
        {"a negative dimension", "no whole number", "{" ENTRY("F32", "[-1]", "[0,4]") "}", 4},
        {"a fraction", "no whole number", "{" ENTRY("F32", "[1.5]", "[0,6]") "}", 6},
        {"a negative offset", "no pair", "{" ENTRY("F32", "[1]", "[-4,0]") "}", 4},
        {"a huge dimension", "no whole number", "{" ENTRY("F32", "[1e300]", "[0,4]") "}", 4},
        {"a shape whose product overflows", "overflows",
         "{" ENTRY("F32", "[4294967296,4294967296,4]", "[0,4]") "}", 4},
        {"the same hidden behind a zero", "overflows",
         "{" ENTRY("F32", "[0,4294967296,4294967296,4]", "[0,0]") "}", 0},
        {"nine dimensions", "9 dimensions", "{" ENTRY("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4},
        {"offsets that contradict the shape", "span 8 bytes, but its shape and type need 4",
         "{" ENTRY("F32", "[1]", "[0,8]") "}", 8},
        {"offsets the wrong way round", "end before", "{" ENTRY("F32", "[1]", "[4,0]") "}", 4},
        {"a tensor outside the file", "a.weight: its data ends at byte 8",
         "{" ENTRY("F32", "[2]", "[0,8]") "}", 7},
        {"overlap", "inside tensor",
         "{" ENTRY("F32", "[2]", "[0,8]") ",\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
         12},
        {"two tensors in one place", "inside tensor",
         "{" ENTRY("F32", "[2]", "[0,8]") ",\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
         8},
        {"a hole", "a hole",
         "{" ENTRY("F32", "[1]", "[0,4]") ",\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}}",
         12},
        {"a hole at the beginning", "a hole", "{" ENTRY("F32", "[1]", "[4,8]") "}", 8},
        {"bytes behind the last tensor", "end at byte 4, but there are 5",
         "{" ENTRY("F32", "[1]", "[0,4]") "}", 5},
        {"a name that occurs twice", "a.weight: the name occurs twice",
         "{" ENTRY("F32", "[1]", "[0,4]") "," ENTRY("F32", "[1]", "[4,8]") "}", 8},
        {"an entry that is no object", "expected an object", "{\"a\":[1,2]}", 0},
        {"metadata that is no object", "__metadata__", "{\"__metadata__\":\"x\"}", 0},
        {"metadata that is no string", "the value of k", "{\"__metadata__\":{\"k\":1}}", 0},
        {"a header that is a list", "no JSON object", "[1]", 0},
        {"JSON that is cut short", "fake.safetensors", "{\"a\":{\"dtype\"", 0},
        {"JSON with something behind it", "fake.safetensors", "{} x", 0},
        {"an empty header", "no JSON object", "", 0},
    };
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        check_refused(lies[i].what, lies[i].words, fake(lies[i].header, lies[i].data));
        check(strstr(last_words, "fake.safetensors") != NULL, "the message names the file");
    }
    char *deep = xcalloc(200000, 1);
    strcpy(deep, "{\"a\":");
    memset(deep + 5, '[', 100000);
    const char *path = fake(deep, 0);
    CHECK_DIES("JSON that is nested deep", "fake.safetensors", store_open(path));
    free(deep);

    unsigned char wild[16] = {255, 255, 255, 255, 255, 255, 255, 255, '{', '}'};
    path = write_bytes("wild", wild, 10);
    CHECK_DIES("a header of 2^64 - 1 bytes", "18446744073709551615", store_open(path));
    wild[4] = wild[5] = wild[6] = wild[7] = wild[3] = wild[2] = 0;
    path = write_bytes("wild", wild, 10);
    CHECK_DIES("a header longer than the file", "65535", store_open(path));
    path = write_bytes("wild", wild, 7);
    CHECK_DIES("a file of 7 bytes", "7 bytes are too few", store_open(path));
    path = write_bytes("wild", wild, 0);
    CHECK_DIES("an empty file", "0 bytes are too few", store_open(path));
    CHECK_DIES("PyTorch's zip", "a pickle, which can run code; convert it",
               store_open(write_bytes("x.pth", "PK\3\4\0\0\x08\x08\0\0\0\0", 12)));
    CHECK_DIES("PyTorch's older file", "a pickle, which can run code; convert it",
               store_open(write_bytes("x.pth", "\x80\2\x8a\nl\xfc\x9c\x46\xf9 j", 12)));
    CHECK_DIES("an absent file", "No such file", store_open(in_folder("absent.safetensors")));
    CHECK_DIES("a folder", "it is a folder", store_open(folder));
    path = write_text("pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 99\n");
    CHECK_DIES("a Git LFS pointer", "git lfs pull", store_open(path));

    // A good file, cut at every length.
    size_t n;
    char *good = read_file(FIXTURES "types.safetensors", &n);
    int survived = 0;
    for (size_t cut = 0; cut < n; cut++) survived += !refuses(write_bytes("cut", good, cut));
    die_hook = NULL;
    check(survived == 0, "a file cut short at any byte is refused");
    free(good);

    CHECK_DIES("an empty store", "holds no tensors", store_open(fake("{}      ", 0)));
    CHECK_DIES("metadata alone", "holds no tensors", store_open(fake("{\"__metadata__\":{\"a\":\"b\"}}", 0)));
}

// What a file is, by its first bytes, in the message of store_open(); and that a safetensors file is one
// whatever the length of its header looks like.
static void test_kinds(void) {
    static const struct {
        const char *bytes, *kind;
        size_t length;
    } files[] = {{"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a PNG picture", 16},
                 {"\xff\xd8\xff\xe0\0\x10JFIF", "a JPEG picture", 10},
                 {"GIF89a\1\0\1\0", "a GIF picture", 10},
                 {"RIFF\1\2\3\4WEBPVP8 ", "a WebP picture", 16},
                 {"BM\x36\x10\0\0\0\0\0\0\x36", "a BMP picture", 11},
                 {"\n <!DOCTYPE html><html>", "a web page", 22},
                 {"\xef\xbb\xbf<HTML><head>", "a web page", 15},
                 {"<?xml version=\"1.0\"?><Error>", "a web page", 28},
                 {"PK\3\4\x14\0\0\0", "a zip archive", 8},
                 {"\x80\2}q\1X\1\0\0\0", "a pickle", 10},
                 {"\x80\4\x95\n\0\0\0\0\0\0", "a pickle", 10},
                 {"GGUF\3\0\0\0\0\0", "a GGUF file", 10},
                 {"\x1f\x8b\x08\0\0\0\0\0\0\3", "a gzip archive", 10},
                 {"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer", 43},
                 {"\0\0\0\0\0\0\0\0\0\0\0\0", "nothing but zeros", 12}};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        const char *kind = file_kind((const unsigned char *)files[i].bytes, files[i].length);
        check(kind && strstr(kind, files[i].kind), files[i].kind);
        bool pickle = strstr(files[i].kind, " zip") || strstr(files[i].kind, "pickle");
        check_refused(files[i].kind, pickle ? "a pickle, which can run code" : files[i].kind,
                      write_bytes("other", files[i].bytes, files[i].length));
    }
    check(!file_kind((const unsigned char *)"{\"a\": 1}", 8) && !file_kind(NULL, 0),
          "a kind that is not known");
    check(!file_kind((const unsigned char *)"BMX and more of a text", 22), "a text that begins with BM");
    char header[0x280 + 1]; // 0x80, 0x02, 0, ...: a length that looks like a pickle
    int n = sprintf(header, "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}");
    memset(header + n, ' ', sizeof header - (size_t)n), header[0x280] = 0;
    Store *s = store_open(fake(header, 1));
    check(store_count(s) == 1, "a header of 640 bytes is no pickle");
    store_close(s);
}

// ---- shards ----------------------------------------------------------------------------------------------

static void write_shard(const char *name, const char *a, const char *b, float value) {
    StoreWriter *w = store_create(in_folder(name));
    store_declare(w, a, F32, 1, (int64_t[]){1});
    if (b) store_declare(w, b, F32, 1, (int64_t[]){1});
    store_data_f32(w, &value, 1);
    value += 1;
    if (b) store_data_f32(w, &value, 1);
    store_commit(w);
}

static void test_shards(void) {
    write_shard("m-1.safetensors", "a", "b", 1);
    write_shard("m-2.safetensors", "c", NULL, 3);
    const char *index =
        write_text("m.safetensors.index.json",
                   "{\"metadata\":{\"total_size\":12},\"weight_map\":{\"a\":\"m-1.safetensors\",\"c\":"
                   "\"m-2.safetensors\",\"b\":\"m-1.safetensors\"}}");
    Store *s = store_open(index);
    float a, b, c;
    store_read_f32(store_find(s, "a"), &a), store_read_f32(store_find(s, "b"), &b),
        store_read_f32(store_find(s, "c"), &c);
    check(store_count(s) == 3 && a == 1 && b == 2 && c == 3, "tensors of all shards");
    check(strstr(store_find(s, "c")->file, "m-2.safetensors") != NULL, "a tensor knows its shard");
    store_close(s);

    index =
        write_text("x.index.json", "{\"weight_map\":{\"a\":\"m-1.safetensors\",\"c\":\"m-3.safetensors\"}}");
    CHECK_DIES("a missing shard", "m-3.safetensors is missing", store_open(index));
    index =
        write_text("x.index.json", "{\"weight_map\":{\"a\":\"m-1.safetensors\",\"d\":\"m-2.safetensors\"}}");
    CHECK_DIES("a tensor that no shard holds", "tensor d: its shard", store_open(index));
    index =
        write_text("x.index.json", "{\"weight_map\":{\"b\":\"m-2.safetensors\",\"a\":\"m-1.safetensors\"}}");
    CHECK_DIES("a tensor in another shard", "tensor b: its shard", store_open(index));
    write_shard("m-4.safetensors", "a", NULL, 3);
    index =
        write_text("x.index.json", "{\"weight_map\":{\"a\":\"m-1.safetensors\",\"q\":\"m-4.safetensors\"}}");
    CHECK_DIES("a tensor in two shards", "occurs twice", store_open(index));
    index = write_text("x.index.json", "{\"weight_map\":{\"a\":\"../m-1.safetensors\"}}");
    CHECK_DIES("a shard in another folder", "same folder", store_open(index));
    index = write_text("x.index.json", "{\"weights\":{}}");
    CHECK_DIES("an index without its map", "weight_map is missing", store_open(index));
}

int main(void) {
    folder_begin();
    test_halves();
    test_rounding();
    test_reading();
    test_writing();
    test_done_with();
    test_params();
    test_lies();
    test_kinds();
    test_shards();
    folder_end();
    return test_report();
}
