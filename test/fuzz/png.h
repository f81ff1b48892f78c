// png.h: after lib/io/image.c.
#ifndef FUZZ_PNG_H
#define FUZZ_PNG_H

static inline void put_big_endian_32(unsigned char *p, uint32_t v) {
    for (int i = 0; i < 4; i++) p[i] = (unsigned char)(v >> (24 - 8 * i));
}

// Puts the correct checksum on every chunk: a fuzzer cannot guess it, and would not get past it.
static void mend_png(unsigned char *data, size_t size) {
    if (!is_png(data, size)) return;
    for (size_t at = 8; size - at >= 12;) {
        size_t length = big_endian_32(data + at);
        if (length > size - at - 12) return;
        put_big_endian_32(data + at + 8 + length, crc32_update(0, data + at + 4, 4 + length));
        at += 12 + length;
    }
}

#endif
