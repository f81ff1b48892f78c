// deflate.c: compressed data (deflate, RFC 1951) in its wrappings: gzip files (RFC 1952), zlib streams (RFC
// 1950); and the checksum of gzip, zip and PNG. stb_image, which is compiled in image.c, inflates; it checks
// no checksums, so they are checked here. See io.h.
#define _GNU_SOURCE // memmem
#include "io.h"

#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define STBI_NO_STDIO
#include "stb_image.h"

uint64_t little_endian(const unsigned char *p, int bytes) {
    uint64_t v = 0;
    for (int i = 0; i < bytes; i++) v |= (uint64_t)p[i] << 8 * i;
    return v;
}

uint32_t big_endian_32(const unsigned char *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

// ---- CRC-32 -----------------------------------------------------------------------------------------------

// Remainders of polynomials over GF(2) by x^32 + x^26 + ... + 1, the lowest bit first (0xedb88320), by byte.
static uint32_t crc_table[256];
static void crc_table_fill(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t r = i;
        for (int bit = 0; bit < 8; bit++) r = r >> 1 ^ (r & 1 ? 0xedb88320 : 0);
        crc_table[i] = r;
    }
}

uint32_t crc32_update(uint32_t crc, const void *data, size_t bytes) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, crc_table_fill);
    crc = ~crc;
    for (const unsigned char *p = data, *end = p + bytes; p < end; p++)
        crc = crc >> 8 ^ crc_table[(crc ^ *p) & 255];
    return ~crc;
}

// ---- inflate ----------------------------------------------------------------------------------------------

size_t inflate_into(void *out, size_t room, const unsigned char *data, size_t bytes) {
    if (room > INT_MAX || bytes > INT_MAX) return SIZE_MAX;
    int n = stbi_zlib_decode_noheader_buffer(out, (int)room, (const char *)data, (int)bytes);
    return n < 0 ? SIZE_MAX : (size_t)n;
}

// For a length that is not known beforehand: ever more room, up to what deflate can make of so many bytes.
static unsigned char *inflate(const unsigned char *data, size_t bytes, size_t *out_bytes) {
    for (size_t room = 4 * bytes + 1024;; room *= 4) {
        unsigned char *out = xmalloc(room);
        *out_bytes = inflate_into(out, room, data, bytes);
        if (*out_bytes != SIZE_MAX) return out;
        free(out);
        if (room / MOST_INFLATED > bytes || room > INT_MAX / 4) return NULL;
    }
}

static uint32_t adler32(const unsigned char *p, size_t n) {
    uint32_t a = 1, b = 0;
    for (size_t i = 0; i < n; i++) a = (a + p[i]) % 65521, b = (b + a) % 65521;
    return b << 16 | a;
}

// Header (2 bytes), deflated data, Adler-32 of the result.
static unsigned char *inflate_zlib(const unsigned char *data, size_t bytes, size_t *out_bytes) {
    // Method 8 in the low half byte, both bytes a multiple of 31, no preset dictionary.
    bool header = bytes >= 6 && (data[0] & 15) == 8 && data[0] >> 4 <= 7 &&
                  (data[0] << 8 | data[1]) % 31 == 0 && !(data[1] & 32);
    unsigned char *out = header ? inflate(data + 2, bytes - 2, out_bytes) : NULL;
    if (out && adler32(out, *out_bytes) == big_endian_32(data + bytes - 4)) return out;
    free(out);
    return NULL;
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
    return at + 2 <= n ? at : 0;
}

unsigned char *inflate_gzip(const unsigned char *data, size_t bytes, size_t *out_bytes) {
    if (bytes < 2 || data[0] != 0x1f || data[1] != 0x8b) return inflate_zlib(data, bytes, out_bytes);
    unsigned char *out = NULL;
    const unsigned char *end = data + bytes;
    *out_bytes = 0;
    while (end - data >= 2 && data[0] == 0x1f && data[1] == 0x8b) { // a member; their results are joined
        size_t n = 0, header = gzip_header(data, (size_t)(end - data));
        data += header;
        unsigned char *part = header ? inflate(data, (size_t)(end - data), &n) : NULL, trailer[8];
        // CRC and length of the result follow. stb does not say where the data ended: search for them.
        uint64_t sums = part ? crc32_update(0, part, n) | (uint64_t)n << 32 : 0;
        for (int i = 0; i < 8; i++) trailer[i] = (unsigned char)(sums >> 8 * i);
        // No data has fewer bytes than 2.
        data = part ? memmem(data + 2, (size_t)(end - data) - 2, trailer, 8) : NULL;
        if (data) {
            out = xrealloc(out, *out_bytes + n);
            memcpy(out + *out_bytes, part, n);
            *out_bytes += n;
            data += 8;
        }
        free(part);
        if (!data) break;
    }
    while (data && data < end && !*data) data++; // zeros may fill up a tape's block
    if (data == end) return out;
    free(out);
    return NULL;
}
