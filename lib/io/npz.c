// npz.c: NumPy's .npz, a zip archive of .npy arrays, and the inflate that it and .gz files need. See io.h.
//
// FID statistics come in this form (`mu`, `sigma`), written by np.savez or np.savez_compressed. Only that is
// here: no encryption, no archives in several files, no compression but stored and deflate; writing stores.
// In this file: CRC-32, inflate (RFC 1951), gzip and zlib around it (RFC 1952, 1950), zip (PKWARE's APPNOTE),
// .npy (numpy.lib.format), reading, writing.
#define _POSIX_C_SOURCE 200809L // pthread_once
#include "io.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

// ---- CRC-32 --------------------------------------------------------------------------------------------

// Remainders of all bytes, divided by x^32 + x^26 + ... + 1 with the lowest bit first (0xedb88320): row 0 of a byte
// alone, row k of a byte that k zero bytes follow. So eight bytes need eight lookups, and none waits for another.
static uint32_t crc_table[8][256];
static void crc_table_fill(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t r = i;
        for (int bit = 0; bit < 8; bit++) r = r >> 1 ^ (r & 1 ? 0xedb88320 : 0);
        crc_table[0][i] = r;
    }
    for (int k = 1; k < 8; k++)
        for (int i = 0; i < 256; i++) {
            uint32_t r = crc_table[k - 1][i];
            crc_table[k][i] = r >> 8 ^ crc_table[0][r & 255];
        }
}

uint32_t crc32_update(uint32_t crc, const void *data, size_t bytes) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, crc_table_fill);
    const unsigned char *p = data;
    crc = ~crc;
    for (; bytes >= 8; bytes -= 8, p += 8) {
        uint32_t next = 0;
        for (int k = 0; k < 8; k++) next ^= crc_table[7 - k][p[k] ^ (k < 4 ? crc >> 8 * k & 255 : 0)];
        crc = next;
    }
    for (; bytes > 0; bytes--) crc = crc >> 8 ^ crc_table[0][(crc ^ *p++) & 255];
    return ~crc;
}

// ---- inflate -------------------------------------------------------------------------------------------
//
// A deflate stream is a sequence of blocks of symbols: a literal byte, the end of the block, or a copy of
// `length` bytes from `distance` bytes back. Symbols are Huffman codes, bits read from the lowest up.

enum { MAX_CODE = 15, MAX_SYMBOLS = 288 };

typedef struct {
    const unsigned char *in;
    size_t in_size, in_at;
    uint64_t bits; // the next ones, lowest first
    int bit_count;
    unsigned char *out;
    size_t out_size, out_capacity, out_limit;
    bool broken; // it is reported once, at the end: meanwhile bits read as 0
} Inflater;

static void fill_bits(Inflater *s) {
    while (s->bit_count <= 56 && s->in_at < s->in_size) {
        s->bits |= (uint64_t)s->in[s->in_at++] << s->bit_count;
        s->bit_count += 8;
    }
}

static unsigned take_bits(Inflater *s, int n) { // n <= 16
    if (s->bit_count < n) fill_bits(s);
    if (s->bit_count < n) {
        s->broken = true;
        return 0;
    }
    unsigned v = (unsigned)(s->bits & ((1u << n) - 1));
    s->bits >>= n, s->bit_count -= n;
    return v;
}

// Room for n more bytes, or broken where that would pass the limit.
static bool make_room(Inflater *s, size_t n) {
    if (n > s->out_limit - s->out_size)
        s->broken = true;
    else if (n > s->out_capacity - s->out_size) {
        size_t wanted = s->out_capacity * 2 > s->out_size + n ? s->out_capacity * 2 : s->out_size + n;
        s->out_capacity = wanted < s->out_limit ? wanted : s->out_limit;
        s->out = xrealloc(s->out, s->out_capacity);
    }
    return !s->broken;
}

// A Huffman code in canonical form: codes of one length are consecutive numbers, in the order of the symbols,
// and lengths follow one another. So the number of codes of each length and the symbols in order say it all.
// The codes of up to FAST_BITS bits are looked up in one step besides.
enum { FAST_BITS = 10 };
typedef struct {
    uint16_t count[MAX_CODE + 1], symbol[MAX_SYMBOLS];
    uint16_t fast[1 << FAST_BITS]; // symbol * 16 + length, by the next bits; 0: a longer code, or none
} Huffman;

// False where the lengths claim more codes than there are, or fewer. Fewer is allowed for a single code only
// (one distance, RFC 1951 3.2.7) or none at all.
static bool make_huffman(Huffman *h, const unsigned char *lengths, int n) {
    memset(h, 0, sizeof *h);
    for (int i = 0; i < n; i++) h->count[lengths[i]]++;
    int used = n - h->count[0];
    h->count[0] = 0;
    int left = 1, code = 0, next_code[MAX_CODE + 1] = {0}, next_place[MAX_CODE + 1] = {0};
    for (int length = 1; length <= MAX_CODE; length++) {
        left = 2 * left - h->count[length];
        if (left < 0) return false;
        code = (code + h->count[length - 1]) * 2;
        next_code[length] = code;
        next_place[length] = next_place[length - 1] + h->count[length - 1];
    }
    if (left > 0 && !(used == 0 || (used == 1 && h->count[1] == 1))) return false;
    for (int i = 0; i < n; i++) {
        int length = lengths[i];
        if (!length) continue;
        h->symbol[next_place[length]++] = (uint16_t)i;
        int reversed = 0, number = next_code[length]++; // codes are sent highest bit first
        for (int k = 0; k < length; k++) reversed |= (number >> k & 1) << (length - 1 - k);
        if (length <= FAST_BITS)
            for (int k = reversed; k < 1 << FAST_BITS; k += 1 << length)
                h->fast[k] = (uint16_t)(i * 16 + length);
    }
    return true;
}

static int take_symbol(Inflater *s, const Huffman *h) {
    if (s->bit_count < MAX_CODE) fill_bits(s);
    unsigned entry = h->fast[s->bits & ((1 << FAST_BITS) - 1)];
    int length = (int)(entry & 15);
    if (length && length <= s->bit_count) {
        s->bits >>= length, s->bit_count -= length;
        return (int)(entry >> 4);
    }
    // Bit by bit: `code` is what was read so far, `first` the first code of this length, `place` where its symbol is.
    int code = 0, first = 0, place = 0;
    for (length = 1; length <= MAX_CODE; length++) {
        code |= (int)take_bits(s, 1);
        if (s->broken) return -1;
        int count = h->count[length];
        if (code - first < count) return h->symbol[place + code - first];
        place += count;
        first = (first + count) * 2;
        code *= 2;
    }
    s->broken = true;
    return -1;
}

// Literals and copies up to the end of the block.
static void inflate_symbols(Inflater *s, const Huffman *literals, const Huffman *distances) {
    static const uint16_t length_base[29] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                             31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
    static const unsigned char length_extra[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                                   2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
    static const uint16_t distance_base[30] = {1,    2,    3,    4,    5,    7,    9,    13,    17,    25,
                                               33,   49,   65,   97,   129,  193,  257,  385,   513,   769,
                                               1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
    static const unsigned char distance_extra[30] = {0, 0, 0, 0, 1, 1, 2, 2,  3,  3,  4,  4,  5,  5,  6,
                                                     6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13};
    while (!s->broken) {
        int symbol = take_symbol(s, literals);
        if (symbol < 0 || symbol == 256) return;
        if (symbol < 256) {
            if (make_room(s, 1)) s->out[s->out_size++] = (unsigned char)symbol;
            continue;
        }
        symbol -= 257;
        int d = -1;
        size_t length = 0, distance = 0;
        if (symbol < 29) {
            length = length_base[symbol] + take_bits(s, length_extra[symbol]);
            d = take_symbol(s, distances);
        }
        if (d >= 0 && d < 30) distance = distance_base[d] + take_bits(s, distance_extra[d]);
        if (s->broken || distance == 0 || distance > s->out_size) {
            s->broken = true;
            return;
        }
        if (!make_room(s, length)) return;
        // Byte by byte: where distance < length, the copy reads what it has just written.
        for (size_t i = 0; i < length; i++, s->out_size++)
            s->out[s->out_size] = s->out[s->out_size - distance];
    }
}

static void inflate_stored(Inflater *s) {
    take_bits(s, s->bit_count % 8); // to the next whole byte
    size_t length = take_bits(s, 16), complement = take_bits(s, 16);
    if (s->broken || (length ^ complement) != 0xffff) {
        s->broken = true;
        return;
    }
    s->in_at -= (size_t)s->bit_count / 8, s->bits = 0, s->bit_count = 0; // give whole bytes back
    if (length > s->in_size - s->in_at) s->broken = true;
    if (s->broken || !make_room(s, length)) return;
    if (length) memcpy(s->out + s->out_size, s->in + s->in_at, length);
    s->in_at += length, s->out_size += length;
}

static void inflate_fixed(Inflater *s) {
    unsigned char lengths[MAX_SYMBOLS];
    for (int i = 0; i < MAX_SYMBOLS; i++) lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
    Huffman literals, distances;
    make_huffman(&literals, lengths, MAX_SYMBOLS);
    for (int i = 0; i < 32; i++) lengths[i] = 5; // 30 and 31 complete the code and never occur
    make_huffman(&distances, lengths, 32);
    inflate_symbols(s, &literals, &distances);
}

// The two codes come first, as code lengths that are themselves run-length and Huffman coded.
static void inflate_dynamic(Inflater *s) {
    static const unsigned char order[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    int literal_count = (int)take_bits(s, 5) + 257, distance_count = (int)take_bits(s, 5) + 1;
    int length_count = (int)take_bits(s, 4) + 4;
    unsigned char lengths[MAX_SYMBOLS + 32] = {0};
    for (int i = 0; i < length_count; i++) lengths[order[i]] = (unsigned char)take_bits(s, 3);
    Huffman code, literals, distances;
    if (s->broken || literal_count > 286 || distance_count > 30 || !make_huffman(&code, lengths, 19)) {
        s->broken = true;
        return;
    }
    int n = 0, total = literal_count + distance_count;
    while (n < total && !s->broken) {
        int symbol = take_symbol(s, &code), repeat = 1;
        unsigned char length = 0;
        if (symbol < 0) break;
        if (symbol < 16)
            length = (unsigned char)symbol;
        else if (symbol == 16) { // the last one again, 3 to 6 times
            if (n == 0)
                s->broken = true;
            else
                length = lengths[n - 1];
            repeat = 3 + (int)take_bits(s, 2);
        } else if (symbol == 17)
            repeat = 3 + (int)take_bits(s, 3); // zeros
        else
            repeat = 11 + (int)take_bits(s, 7);
        if (repeat > total - n) s->broken = true;
        for (; repeat > 0 && !s->broken; repeat--) lengths[n++] = length;
    }
    if (s->broken || lengths[256] == 0 || !make_huffman(&literals, lengths, literal_count) ||
        !make_huffman(&distances, lengths + literal_count, distance_count)) {
        s->broken = true;
        return;
    }
    inflate_symbols(s, &literals, &distances);
}

// The output of one raw deflate stream, at most `limit` bytes, or NULL; *used says how many bytes of input it took.
static unsigned char *inflate_raw(const unsigned char *data, size_t bytes, size_t limit, size_t *out_bytes,
                                  size_t *used) {
    Inflater s = {.in = data, .in_size = bytes, .out_limit = limit};
    s.out_capacity = bytes * 4 < limit ? bytes * 4 : limit;
    s.out = xmalloc(s.out_capacity);
    bool last = false;
    while (!last && !s.broken) {
        last = take_bits(&s, 1);
        switch (take_bits(&s, 2)) {
        case 0: inflate_stored(&s); break;
        case 1: inflate_fixed(&s); break;
        case 2: inflate_dynamic(&s); break;
        default: s.broken = true;
        }
    }
    if (s.broken) {
        free(s.out);
        return NULL;
    }
    *used = s.in_at - (size_t)s.bit_count / 8;
    *out_bytes = s.out_size;
    return s.out;
}

static uint32_t little_endian(const unsigned char *p, int bytes) {
    uint32_t v = 0;
    for (int i = 0; i < bytes; i++) v |= (uint32_t)p[i] << 8 * i;
    return v;
}

static uint32_t adler32(const unsigned char *p, size_t n) {
    uint32_t a = 1, b = 0;
    for (size_t i = 0; i < n; i++) a = (a + p[i]) % 65521, b = (b + a) % 65521;
    return b << 16 | a;
}

// The length of a gzip member's header, or 0 where it is damaged.
static size_t gzip_header(const unsigned char *p, size_t n) {
    enum { CRC = 2, EXTRA = 4, NAME = 8, COMMENT = 16 };
    if (n < 18 || p[2] != 8 || p[3] & 0xe0) return 0;
    size_t at = 10;
    if (p[3] & EXTRA) at += 2 + little_endian(p + 10, 2);
    for (int text = NAME; text <= COMMENT; text *= 2)
        if (p[3] & text) {
            const unsigned char *end = at < n ? memchr(p + at, 0, n - at) : NULL;
            if (!end) return 0;
            at = (size_t)(end - p) + 1;
        }
    if (p[3] & CRC) at += 2;
    return at <= n ? at : 0;
}

unsigned char *inflate_gzip(const unsigned char *data, size_t bytes, size_t *out_bytes) {
    const size_t no_limit = SIZE_MAX / 2;
    size_t used, n, at = 0;
    unsigned char *out = NULL;
    if (bytes >= 2 && data[0] == 0x1f && data[1] == 0x8b) { // gzip: members, their outputs joined
        *out_bytes = 0;
        while (bytes - at >= 2 && data[at] == 0x1f && data[at + 1] == 0x8b) {
            size_t header = gzip_header(data + at, bytes - at);
            unsigned char *part =
                header ? inflate_raw(data + at + header, bytes - at - header, no_limit, &n, &used) : NULL;
            at += header + (part ? used : 0);
            bool right = part && bytes - at >= 8 && little_endian(data + at, 4) == crc32_update(0, part, n) &&
                         little_endian(data + at + 4, 4) == (uint32_t)n;
            at += 8;
            if (right) {
                out = xrealloc(out, *out_bytes + n);
                if (n) memcpy(out + *out_bytes, part, n);
                *out_bytes += n;
            }
            free(part);
            if (!right) {
                free(out);
                return NULL;
            }
        }
        for (; at < bytes; at++) // zeros may fill up a tape's block; anything else does not belong here
            if (data[at]) {
                free(out);
                return NULL;
            }
        return out;
    }
    // zlib: method 8 in the low half byte, both bytes a multiple of 31, no preset dictionary.
    bool zlib = bytes >= 6 && (data[0] & 15) == 8 && data[0] >> 4 <= 7 &&
                (data[0] << 8 | data[1]) % 31 == 0 && !(data[1] & 32);
    if (zlib) {
        out = inflate_raw(data + 2, bytes - 2, no_limit, &n, &used);
        if (out && bytes - 2 - used >= 4) {
            const unsigned char *sum = data + 2 + used; // big-endian
            uint32_t stored =
                (uint32_t)sum[0] << 24 | (uint32_t)sum[1] << 16 | (uint32_t)sum[2] << 8 | sum[3];
            if (stored == adler32(out, n)) {
                *out_bytes = n;
                return out;
            }
        }
        free(out);
        return NULL;
    }
    out = inflate_raw(data, bytes, no_limit, &n, &used);
    if (out) *out_bytes = n;
    return out;
}

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

static uint64_t little_endian_64(const unsigned char *p) {
    return little_endian(p, 4) | (uint64_t)little_endian(p + 4, 4) << 32;
}

static bool has_signature(const Zip *z, uint64_t at, size_t record, const char *signature) {
    return at <= z->size && z->size - at >= record && !memcmp(z->bytes + at, signature, 4);
}

// Where the central directory begins and how many members it lists.
static void find_directory(const Zip *z, uint64_t *at, uint64_t *members) {
    if (z->size < 22) die("%s: %zu bytes are too few for an .npz file", z->path, z->size);
    if (memcmp(z->bytes, "PK", 2)) die("%s: no .npz file: it does not begin with PK", z->path);
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
        uint64_t record = little_endian_64(p - 20 + 8);
        if (!has_signature(z, record, 56, "PK\6\6"))
            die("%s: the archive's zip64 end record is missing", z->path);
        *members = little_endian_64(z->bytes + record + 32);
        *at = little_endian_64(z->bytes + record + 48);
    }
}

// The entry at *at of the central directory, which moves behind it.
static Member read_entry(const Zip *z, uint64_t *at) {
    if (!has_signature(z, *at, 46, "PK\1\2"))
        die("%s: the archive's directory is damaged at byte %llu", z->path, (unsigned long long)*at);
    const unsigned char *p = z->bytes + *at;
    size_t name = little_endian(p + 28, 2), extra = little_endian(p + 30, 2),
           comment = little_endian(p + 32, 2);
    if (name + extra + comment > z->size - *at - 46)
        die("%s: the archive's directory is damaged at byte %llu", z->path, (unsigned long long)*at);
    Member m = {.name = (const char *)p + 46,
                .name_length = name,
                .flags = (int)little_endian(p + 8, 2),
                .method = (int)little_endian(p + 10, 2),
                .crc = little_endian(p + 16, 4),
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
                if (*wide[i] == 0xffffffff && v_end - v >= 8) *wide[i] = little_endian_64(v), v += 8;
        }
        e = v_end;
    }
    *at += 46 + name + extra + comment;
    return m;
}

// A member's bytes, checked against its length and CRC: within the archive, or unpacked, which the caller frees.
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
    uint64_t skip = 30 + (uint64_t)little_endian(p + 26, 2) + little_endian(p + 28, 2),
             left = z->size - m->header_at;
    if (skip > left || m->packed > left - skip)
        die("%s: %s reaches beyond the end of the file (was it cut short?)", z->path, name);
    p += skip;
    *unpacked = NULL;
    size_t n = (size_t)m->packed, used;
    // Deflate makes 258 bytes of 2 bits at best, so a length above 1032 times the packed one is a lie.
    if (m->method == 0 ? m->unpacked != m->packed : m->unpacked / 1032 > m->packed)
        die("%s: %s claims %llu bytes, packed in %llu", z->path, name, (unsigned long long)m->unpacked,
            (unsigned long long)m->packed);
    const unsigned char *data = p;
    if (m->method == 8) data = *unpacked = inflate_raw(p, (size_t)m->packed, (size_t)m->unpacked, &n, &used);
    if (!data || n != m->unpacked) die("%s: the compressed data of %s is damaged", z->path, name);
    uint32_t crc = crc32_update(0, data, n);
    if (crc != m->crc) die("%s: %s is damaged: its CRC is %08x, expected %08x", z->path, name, crc, m->crc);
    return data;
}

// ---- .npy ----------------------------------------------------------------------------------------------
//
// \x93NUMPY, version (2 bytes), length of the header (2 bytes in version 1, else 4), the header, the data.
// The header is a Python dictionary with exactly these three keys:
//   {'descr': '<f8', 'fortran_order': False, 'shape': (2048, 2048), }

typedef struct {
    const char *p, *end;
    const char *where; // file and array, for messages
} Text;

static void skip_blanks(Text *t) {
    while (t->p < t->end && (*t->p == ' ' || *t->p == '\n' || *t->p == '\t')) t->p++;
}

static bool accept(Text *t, const char *word) {
    skip_blanks(t);
    size_t n = strlen(word);
    if ((size_t)(t->end - t->p) < n || memcmp(t->p, word, n)) return false;
    t->p += n;
    return true;
}

static _Noreturn void bad_header(const Text *t) { die("%s: its .npy header is not understood", t->where); }

static void expect(Text *t, const char *word) {
    if (!accept(t, word)) bad_header(t);
}

// A quoted string of at most 15 characters.
static void read_quoted(Text *t, char out[16]) {
    skip_blanks(t);
    if (t->p == t->end || (*t->p != '\'' && *t->p != '"')) bad_header(t);
    char quote = *t->p++;
    size_t n = 0;
    while (t->p < t->end && *t->p != quote && n < 15) out[n++] = *t->p++;
    if (t->p == t->end || *t->p != quote) bad_header(t);
    t->p++;
    out[n] = 0;
}

typedef struct {
    char kind; // 'b' bool, 'i', 'u' integers, 'f' floating point
    int bytes;
    bool swapped, fortran;
    int ndim;
    int64_t shape[4];
} Npy;

static void read_shape(Text *t, Npy *a) {
    expect(t, "(");
    while (!accept(t, ")")) {
        skip_blanks(t);
        if (a->ndim == 4) die("%s: it has more than 4 dimensions", t->where);
        if (t->p == t->end || *t->p < '0' || *t->p > '9') bad_header(t);
        int64_t n = 0;
        for (; t->p < t->end && *t->p >= '0' && *t->p <= '9'; t->p++) {
            n = n * 10 + (*t->p - '0');
            if (n > (int64_t)1 << 40) die("%s: dimension %d is too large", t->where, a->ndim);
        }
        a->shape[a->ndim++] = n;
        if (accept(t, ",")) continue;
        expect(t, ")");
        if (a->ndim == 1) bad_header(t); // (5,) is a tuple, (5) a number
        break;
    }
}

static void read_type(Text *t, Npy *a) {
    char type[16];
    read_quoted(t, type);
    a->kind = type[0] ? type[1] : 0;
    a->bytes = a->kind && type[2] >= '1' && type[2] <= '8' && !type[3] ? type[2] - '0' : 0;
    a->swapped = type[0] == '>';
    bool known =
        strchr("<>=|", type[0]) &&
        ((a->kind == 'b' && a->bytes == 1) ||
         (strchr("iu", a->kind) && (a->bytes == 1 || a->bytes == 2 || a->bytes == 4 || a->bytes == 8)) ||
         (a->kind == 'f' && (a->bytes == 2 || a->bytes == 4 || a->bytes == 8)));
    if (!a->kind || !a->bytes || !known)
        die("%s: its type is '%s', expected integers or floating point of up to 8 bytes, as '<f8'", t->where,
            type);
}

static Npy read_npy_header(Text t) {
    Npy a = {0};
    bool seen[3] = {false};
    expect(&t, "{");
    while (!accept(&t, "}")) {
        char key[16];
        read_quoted(&t, key);
        expect(&t, ":");
        int which = !strcmp(key, "descr")           ? 0
                    : !strcmp(key, "fortran_order") ? 1
                    : !strcmp(key, "shape")         ? 2
                                                    : -1;
        if (which < 0 || seen[which]) bad_header(&t);
        seen[which] = true;
        if (which == 0)
            read_type(&t, &a);
        else if (which == 2)
            read_shape(&t, &a);
        else if (accept(&t, "True"))
            a.fortran = true;
        else
            expect(&t, "False");
        if (!accept(&t, ",")) {
            expect(&t, "}");
            break;
        }
    }
    skip_blanks(&t);
    if (t.p != t.end || !seen[0] || !seen[1] || !seen[2]) bad_header(&t);
    return a;
}

// One element, its bytes in this machine's order, or in the other.
static double element(const Npy *a, const unsigned char *p) {
    uint64_t v = 0;
    for (int i = 0; i < a->bytes; i++) v |= (uint64_t)p[a->swapped ? a->bytes - 1 - i : i] << 8 * i;
    if (a->kind == 'f') {
        if (a->bytes == 2) return (double)f16_to_f32((uint16_t)v);
        if (a->bytes == 4) {
            float f;
            uint32_t bits = (uint32_t)v;
            memcpy(&f, &bits, 4);
            return (double)f;
        }
        double d;
        memcpy(&d, &v, 8);
        return d;
    }
    if (a->kind == 'i') {
        int unused = 64 - 8 * a->bytes; // move the sign up to bit 63 and back down
        return (double)((int64_t)(v << unused) >> unused);
    }
    return (double)v;
}

static double *read_npy(const unsigned char *data, size_t size, const char *where, int64_t shape[4],
                        int *ndim) {
    if (size < 10 || memcmp(data, "\x93NUMPY", 6)) die("%s: it does not begin as a .npy array does", where);
    int version = data[6], prefix = version == 1 ? 10 : 12;
    if (version < 1 || version > 3 || data[7] != 0)
        die("%s: .npy version %d.%d, expected 1.0, 2.0 or 3.0", where, version, data[7]);
    if (size < (size_t)prefix) die("%s: it is cut short", where);
    size_t header = little_endian(data + 8, prefix - 8);
    if (header > size - (size_t)prefix) die("%s: it is cut short", where);
    const char *text = (const char *)data + prefix;
    Npy a = read_npy_header((Text){text, text + header, where});

    size_t count = 1;
    bool empty = false;
    for (int i = 0; i < a.ndim; i++) {
        if (a.shape[i] == 0)
            empty = true;
        else if (count > SIZE_MAX / 64 / (size_t)a.shape[i])
            die("%s: its shape overflows", where);
        else
            count *= (size_t)a.shape[i];
    }
    if (empty) count = 0;
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
    size_t step = (size_t)a.bytes;
    for (int k = 0; k < 4; k++) {
        int i = a.fortran ? k : 3 - k;
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

// ---- reading -------------------------------------------------------------------------------------------

static double *read_archive(const Zip *z, const char *key, int64_t shape[4], int *ndim) {
    uint64_t at, members;
    find_directory(z, &at, &members);
    char *name = format("%s.npy", key);
    Member found = {0};
    bool have = false;
    for (uint64_t i = 0; i < members; i++) {
        Member m = read_entry(z, &at);
        if (m.name_length != strlen(name) || memcmp(m.name, name, m.name_length)) continue;
        if (have) die("%s: it holds two arrays of the name %s", z->path, key);
        have = true;
        found = m;
    }
    if (!have) die("%s: it holds no array %s", z->path, key);
    unsigned char *unpacked;
    const unsigned char *data = read_member(z, &found, name, &unpacked);
    char *where = format("%s: array %s", z->path, key);
    double *out = read_npy(data, (size_t)found.unpacked, where, shape, ndim);
    free(where), free(unpacked), free(name);
    return out;
}

double *npz_read(const char *path, const char *key, int64_t shape[4], int *ndim) {
    size_t size;
    const unsigned char *bytes = map_file(path, &size);
    double *out = read_archive(&(Zip){path, bytes, size}, key, shape, ndim);
    unmap_file(bytes, size);
    return out;
}

// ---- writing -------------------------------------------------------------------------------------------

typedef struct {
    char bytes[256];
    size_t n;
} Record;

static void put(Record *r, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) r->bytes[r->n++] = (char)(value >> 8 * i);
}

void npz_write(const char *path, const NpzArray *arrays, int count) {
    Output *o = output_open(path);
    Record *directory = xcalloc((size_t)count, sizeof *directory);
    uint64_t at = 0;
    for (int i = 0; i < count; i++) {
        const NpzArray *a = &arrays[i];
        char shape[100] = "", header[256];
        size_t elements = 1;
        for (int k = 0; k < a->ndim; k++) {
            size_t used = strlen(shape);
            snprintf(shape + used, sizeof shape - used, "%s%lld%s", k ? " " : "", (long long)a->shape[k],
                     k + 1 < a->ndim || a->ndim == 1 ? "," : "");
            elements *= (size_t)a->shape[k];
        }
        // The header is filled up with blanks so that the data begins at a multiple of 64 within the .npy.
        int length = snprintf(header, sizeof header,
                              "{'descr': '<f8', 'fortran_order': False, 'shape': (%s), }", shape);
        int padded = (10 + length + 1 + 63) / 64 * 64 - 10;
        Record npy = {.n = 0};
        memcpy(npy.bytes, "\x93NUMPY\1\0", npy.n = 8);
        put(&npy, (uint64_t)padded, 2);
        memcpy(npy.bytes + 10, header, (size_t)length);
        memset(npy.bytes + 10 + length, ' ', (size_t)(padded - length - 1));
        npy.bytes[10 + padded - 1] = '\n';
        npy.n = 10 + (size_t)padded;

        uint64_t size = npy.n + (uint64_t)elements * 8;
        if (at + size > 0xf0000000 || count > 1000)
            die("%s: more than 4 GB of arrays are not supported", path);
        uint32_t crc = crc32_update(crc32_update(0, npy.bytes, npy.n), a->data, elements * 8);
        size_t name_length = strlen(a->key) + 4;
        if (name_length > 100) die("%s: the array's name %s is too long", path, a->key);
        Record local = {.n = 0}, *d = &directory[i];
        for (int k = 0; k < 2; k++) { // the same fields in the local header and in the directory
            Record *r = k ? d : &local;
            put(r, k ? 0x02014b50 : 0x04034b50, 4);
            if (k) put(r, 20, 2);                      // made by version 2.0
            put(r, 20, 2), put(r, 0, 2), put(r, 0, 2); // needs version 2.0; flags; stored
            put(r, 0, 2), put(r, 0x21, 2); // 0:00 on 1980-01-01, so that equal arrays make equal files
            put(r, crc, 4), put(r, size, 4), put(r, size, 4);
            put(r, name_length, 2), put(r, 0, 2);
            if (k)
                put(r, 0, 2), put(r, 0, 2), put(r, 0, 2), put(r, 0, 4),
                    put(r, at, 4); // no comment, disk 0, no attributes
            r->n += (size_t)snprintf(r->bytes + r->n, sizeof r->bytes - r->n, "%s.npy", a->key);
        }
        output_write(o, local.bytes, local.n);
        output_write(o, npy.bytes, npy.n);
        output_write(o, a->data, elements * 8);
        at += local.n + size;
    }
    uint64_t begin = at;
    for (int i = 0; i < count; i++) output_write(o, directory[i].bytes, directory[i].n), at += directory[i].n;
    Record end = {.n = 0};
    put(&end, 0x06054b50, 4), put(&end, 0, 4); // disks
    put(&end, (uint64_t)count, 2), put(&end, (uint64_t)count, 2), put(&end, at - begin, 4),
        put(&end, begin, 4), put(&end, 0, 2);
    output_write(o, end.bytes, end.n);
    output_commit(o);
    free(directory);
}
