// image.c: pictures. Reading JPEG and PNG, writing PNG with its `parameters` text, Pillow's resize. See io.h.
//
// The codecs are the distribution's stb_image and stb_image_write (public domain,
// https://github.com/nothings/stb). stb shows a damaged or truncated file as far as it can, with gray where
// the data ran out. That is right for a viewer and wrong for an FID. So PNG checksums and the end of a JPEG
// are checked first, and memory is bounded before anything is unpacked.
//
// Colours come out as PIL's convert("RGB") gives them, since that is what the field's tools compute on. PNGs
// agree to the bit. JPEGs do not quite: the standard leaves the rounding of the inverse DCT and of the
// chroma upsampling free, and stb and libjpeg-turbo differ there by a few of 255 levels.
//
// There are two doors. Pictures that people look at are turned as their EXIF says (PIL's exif_transpose,
// which diffusers' load_image calls), and 16-bit gray is scaled. Pictures that are measured are taken as
// pytorch-fid takes them: PIL's open() does neither.
#define _GNU_SOURCE // memmem
#include "io.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void *bounded_malloc(size_t bytes);
static void *bounded_realloc(void *old, size_t bytes);
#define STBI_MALLOC bounded_malloc
#define STBI_REALLOC bounded_realloc
#define STBI_FREE free
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#define STBI_NO_STDIO
#define STBI_NO_LINEAR
#define STBI_NO_HDR
#define STB_IMAGE_IMPLEMENTATION
#include "stb_image.h"
#define STBI_WRITE_NO_STDIO
#define STB_IMAGE_WRITE_IMPLEMENTATION
#include "stb_image_write.h"

// Pillow calls a picture above twice its warning size a decompression bomb and refuses it; so here. While it
// is decoded it may take 2 GB, and the scans of a JPEG together may cover 2^32 pixels: seconds. Of pictures
// that take more than 256 MB, as many threads as there are decode one at a time.
enum { MAX_PIXELS = 178956970, MAX_FILE = 1 << 30, LARGE = 1 << 28 };
#define MAX_MEMORY (1ull << 31)
#define MAX_SCANNED (1ull << 32)

static _Thread_local char why[200]; // the reason of the last failure
static _Thread_local size_t memory_bound;

// No block that stb asks for may be larger than the bound, which decode() sets from the picture's size. So a
// PNG of one pixel whose data inflates to gigabytes is refused as "out of memory". All blocks begin as zeros:
// else a JPEG that uses a Huffman table it never defined would read whatever was there.
static void *bounded_malloc(size_t bytes) { return bytes <= memory_bound ? calloc(1, bytes) : NULL; }
static void *bounded_realloc(void *old, size_t bytes) {
    return bytes <= memory_bound ? realloc(old, bytes) : NULL;
}

static const char *because(const char *fmt, ...) PRINTF_LIKE(1, 2);
static const char *because(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(why, sizeof why, fmt, args);
    va_end(args);
    return why;
}

// ---- the two formats, as far as checking needs ---------------------------------------------------------

static bool is_png(const unsigned char *bytes, size_t size) {
    return size >= 8 && !memcmp(bytes, "\x89PNG\r\n\x1a\n", 8);
}

// A PNG is its signature and chunks: length, type, data, CRC-32 of type and data.
typedef struct {
    const char *type; // 4 letters, no NUL
    const unsigned char *data;
    size_t length;
} Chunk;

static bool chunk_is(const Chunk *c, const char *type) { return !memcmp(c->type, type, 4); }

// The chunk at *at, which moves behind it. NULL, or the reason why there is none.
static const char *next_chunk(const unsigned char *bytes, size_t size, size_t *at, Chunk *chunk) {
    if (size - *at < 12) return because("it is cut short: %zu bytes, and no end", size);
    const unsigned char *p = bytes + *at;
    chunk->length = big_endian_32(p);
    chunk->type = (const char *)p + 4;
    chunk->data = p + 8;
    if (chunk->length > size - *at - 12) return because("it is cut short: %zu bytes, and no end", size);
    if (crc32_update(0, p + 4, 4 + chunk->length) != big_endian_32(p + 8 + chunk->length))
        return because("it is damaged: the checksum of the chunk at byte %zu is wrong", *at);
    *at += 12 + chunk->length;
    return NULL;
}

// What a file's header says, before it is decoded.
typedef struct {
    size_t width, height;
    size_t memory;   // bytes a pixel that its decoding takes
    bool gray16;     // one channel of 16 bits
    int orientation; // 1 to 8, as EXIF has it; 0: it is silent
} Claims;

// An orientation by the EXIF standard: how the stored picture becomes the one to look at.
enum { ORIENTATION = 0x112, MOST_TURNS = 8 };

static uint32_t tiff_number(const unsigned char *p, int bytes, bool big) {
    uint32_t x = 0;
    for (int i = 0; i < bytes; i++) x = x << 8 | p[big ? i : bytes - 1 - i];
    return x;
}

// Of EXIF data, which is a TIFF file: byte order, 42, the place of a list; the list is a count and entries of
// tag, type, count, value (2, 2, 4, 4 bytes). What is damaged tells nothing, as in PIL.
static int exif_orientation(const unsigned char *p, size_t n) {
    static const char size_of[] = "\0\0\0\2\4\0\1\0\2\4"; // of the types of numbers; PIL takes no BYTE
    bool big = n >= 8 && !memcmp(p, "MM\0*", 4);
    if (n < 8 || (!big && memcmp(p, "II*\0", 4))) return 0;
    size_t at = tiff_number(p + 4, 4, big);
    if (at > n - 2) return 0;
    uint32_t count = tiff_number(p + at, 2, big);
    for (at += 2; count-- && n - at >= 12; at += 12) {
        uint32_t type = tiff_number(p + at + 2, 2, big);
        if (tiff_number(p + at, 2, big) != ORIENTATION) continue;
        if (type >= sizeof size_of || !size_of[type] || tiff_number(p + at + 4, 4, big) != 1) return 0;
        uint32_t value = tiff_number(p + at + 8, size_of[type], big);
        return value <= MOST_TURNS ? (int)value : 0;
    }
    return 0;
}

// Of XMP, which is XML: tiff:Orientation="6", or between tags. PIL looks there where EXIF is silent.
static int xmp_orientation(const unsigned char *p, size_t n) {
    static const char key[] = "tiff:Orientation";
    const char *at = memmem(p, n, key, strlen(key)), *end = (const char *)p + n;
    if (at) at += strlen(key), at += at < end && *at == '=';
    return at && end - at >= 2 && strchr("\">", *at) && at[1] >= '1' && at[1] <= '8' ? at[1] - '0' : 0;
}

// Walks the chunks of a PNG to its end; NULL, or what is wrong.
static const char *check_png(const unsigned char *bytes, size_t size, Claims *claims) {
    size_t at = 8;
    for (Chunk c = {0};;) {
        const char *reason = next_chunk(bytes, size, &at, &c);
        if (reason) return reason;
        if (chunk_is(&c, "IHDR") && c.length >= 10) {
            claims->width = big_endian_32(c.data), claims->height = big_endian_32(c.data + 4);
            claims->gray16 = c.data[8] == 16 && c.data[9] == 0;
            static const unsigned char channels[] = {1, 0, 3, 1, 2, 0, 4}; // of the colour types
            size_t samples = c.data[9] < sizeof channels ? channels[c.data[9]] : 4u;
            claims->memory = samples * c.data[8] / 4; // before and after unfiltering
        }
        bool front = chunk_is(&c, "eXIf") && c.length >= 6 && !memcmp(c.data, "Exif\0", 6); // as in a JPEG
        if (chunk_is(&c, "eXIf"))
            claims->orientation = exif_orientation(c.data + 6 * front, c.length - 6 * front);
        if (chunk_is(&c, "iTXt") && !claims->orientation)
            claims->orientation = xmp_orientation(c.data, c.length);
        if (chunk_is(&c, "IEND")) return NULL;
    }
}

// A Huffman segment is tables of a class, 16 counts and as many symbols. stb up to 2.28 writes beyond its own
// table where there are more than 256 symbols.
static bool huffman_tables_fit(const unsigned char *p, size_t n) {
    while (n >= 17) {
        size_t symbols = 0;
        for (int i = 1; i <= 16; i++) symbols += p[i];
        if (symbols > 256 || symbols > n - 17) return false;
        p += 17 + symbols, n -= 17 + symbols;
    }
    return n == 0;
}

// Walks a JPEG's segments (FF, marker, length, data) and scans to the end marker. In the data of a scan an FF
// is followed by 00 or a restart marker; any other marker ends the scan.
static const char *check_jpeg(const unsigned char *bytes, size_t size, Claims *claims) {
    enum { SOF0 = 0xc0, SOF2 = 0xc2, DHT = 0xc4, RST0 = 0xd0 };
    enum { SOI = 0xd8, EOI = 0xd9, SOS = 0xda, APP1 = 0xe1, APP14 = 0xee };
    size_t components = 0, scans = 0;
    bool adobe = false, progressive = false;
    size_t at = 2;
    for (;;) {
        while (at < size && bytes[at] != 0xff) at++; // a scan's data; or stray bytes, as occur in the wild
        while (at < size && bytes[at] == 0xff) at++; // several FFs are one
        if (at == size) return because("it is cut short: %zu bytes, and no end", size);
        int marker = bytes[at];
        if (marker == EOI) break;
        if (marker <= 1 || (marker >= RST0 && marker <= SOI)) { // no segment: on with the scan
            at++;
            continue;
        }
        size_t length = size - at >= 3 ? (size_t)bytes[at + 1] << 8 | bytes[at + 2] : 0;
        const unsigned char *data = bytes + at + 3;
        if (length < 2 || length > size - at - 1)
            return because("it is cut short or damaged at byte %zu", at);
        if (marker == DHT && !huffman_tables_fit(data, length - 2))
            return because("it is damaged: the Huffman table at byte %zu", at);
        if (marker == APP14 && length >= 14 && !memcmp(data, "Adobe", 5)) adobe = true;
        if (marker >= SOF0 && marker <= SOF2 && length >= 8) { // bits, height, width, components
            claims->width = (size_t)data[3] << 8 | data[4], claims->height = (size_t)data[1] << 8 | data[2];
            components = data[5], progressive = marker == SOF2;
        }
        if (marker == APP1 && length >= 8 && !memcmp(data, "Exif\0", 6) && !claims->orientation)
            claims->orientation = exif_orientation(data + 6, length - 8);
        if (marker == APP1 && !claims->orientation) claims->orientation = xmp_orientation(data, length - 2);
        scans += marker == SOS;
        at += 1 + length;
    }
    claims->memory = progressive ? 3 * components + 3 : components + 3; // coefficients, channels, colours
    if ((uint64_t)scans * claims->width * claims->height > MAX_SCANNED)
        return because("it has %zu scans", scans);
    if (!scans) return because("it is damaged: it ends before the picture begins");
    // stb takes four channels without this marker for colours of another kind.
    if (components == 4 && !adobe) return because("a CMYK JPEG without Adobe's marker is not supported");
    return NULL;
}

// ---- reading -------------------------------------------------------------------------------------------

static bool size_is_sane(int width, int height) {
    return width > 0 && height > 0 && (size_t)width * (size_t)height <= MAX_PIXELS;
}

Image *image_new(int width, int height) {
    if (!size_is_sane(width, height))
        die("a picture of %d x %d pixels: 1 to %d are allowed", width, height, MAX_PIXELS);
    Image *image = xmalloc(sizeof *image);
    *image = (Image){width, height, xcalloc((size_t)width * (size_t)height, 3)};
    return image;
}

void image_free(Image *image) {
    if (!image) return;
    free(image->rgb);
    free(image);
}

// A new array: the picture as one looks at it. *w and *h follow.
static unsigned char *turned(const unsigned char *rgb, int *w, int *h, int orientation) {
    bool swap = orientation >= 5, flip_x = strchr("\2\3\7\10", orientation),
         flip_y = strchr("\3\4\6\7", orientation);
    int width = swap ? *h : *w, height = swap ? *w : *h;
    unsigned char *out = xmalloc(3 * (size_t)width * (size_t)height), *o = out;
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++, o += 3) {
            int from_x = swap ? y : x, from_y = swap ? x : y;
            if (flip_x) from_x = *w - 1 - from_x;
            if (flip_y) from_y = *h - 1 - from_y;
            memcpy(o, rgb + 3 * ((size_t)from_y * (size_t)*w + (size_t)from_x), 3);
        }
    *w = width, *h = height;
    return out;
}

static unsigned char *unpack(const unsigned char *bytes, size_t size, bool clipped, int *width, int *height) {
    int channels;
    if (!clipped) return stbi_load_from_memory(bytes, (int)size, width, height, &channels, 3);
    // PIL reads 16-bit gray as "I;16" and convert("RGB") clips there: 256 and all above are white. Elsewhere,
    // stb takes the high byte, as PIL does with 16-bit colours.
    uint16_t *gray = stbi_load_16_from_memory(bytes, (int)size, width, height, &channels, 1);
    size_t n = gray ? (size_t)*width * (size_t)*height : 0;
    unsigned char *rgb = gray ? xmalloc(3 * n) : NULL;
    for (size_t i = 0; i < n; i++) memset(rgb + 3 * i, gray[i] < 255 ? gray[i] : 255, 3);
    free(gray);
    return rgb;
}

// NULL and the picture, or the reason why there is none. measured: NULL for a picture to look at; else
// whether one would look at another one is stored there.
static const char *decode(const unsigned char *bytes, size_t size, Image **image, bool *measured) {
    Claims claims = {0};
    if (size > MAX_FILE) return because("%zu bytes are too many", size);
    bool png = is_png(bytes, size), jpeg = size >= 3 && !memcmp(bytes, "\xff\xd8\xff", 3);
    if (!png && !jpeg)
        return size < 4                 ? because("%zu bytes are no picture", size)
               : file_kind(bytes, size) ? because("it is neither JPEG nor PNG but %s", file_kind(bytes, size))
                                        : because("it is neither JPEG nor PNG (it begins with the bytes %02x "
                                                  "%02x %02x %02x)",
                                                  bytes[0], bytes[1], bytes[2], bytes[3]);
    const char *reason = png ? check_png(bytes, size, &claims) : check_jpeg(bytes, size, &claims);
    if (reason) return reason;
    if (claims.width == 0 || claims.height == 0 || claims.width > MAX_PIXELS / claims.height)
        return because("%zu x %zu pixels: 1 to %d are allowed", claims.width, claims.height, MAX_PIXELS);
    size_t need = (claims.memory > 8 ? claims.memory : 8) * claims.width * claims.height;
    if (need > MAX_MEMORY)
        return because("%zu MB are needed to decode it, %llu are allowed", need >> 20, MAX_MEMORY >> 20);
    // The largest honest blocks: rows with a filter's byte, coefficients in whole blocks, compressed data.
    memory_bound = need + 128 * (claims.width + claims.height) + 2 * size + (1 << 20);
    int width, height;
    unsigned char *rgb;
    if (measured) *measured = claims.gray16 || claims.orientation > 1;
    if (need <= LARGE) {
        rgb = unpack(bytes, size, claims.gray16 && measured, &width, &height);
    } else {
#pragma omp critical(large_pictures)
        rgb = unpack(bytes, size, claims.gray16 && measured, &width, &height);
    }
    if (!rgb) return because("the decoder says: %s", stbi_failure_reason());
    if (claims.orientation > 1 && !measured) {
        unsigned char *stored = rgb;
        rgb = turned(stored, &width, &height, claims.orientation);
        free(stored);
    }
    *image = xmalloc(sizeof **image);
    **image = (Image){width, height, rgb};
    return NULL;
}

Image *image_try_measure(const char *path, const char **reason, bool *differs) {
    size_t size;
    const char *wrong;
    const unsigned char *bytes = map_try(path, &size, &wrong);
    Image *image = NULL;
    if (!wrong) wrong = decode(bytes, size, &image, differs);
    if (reason) *reason = wrong;
    unmap_file(bytes, size);
    return image;
}

Image *image_try_load(const char *path, const char **reason) { return image_try_measure(path, reason, NULL); }

bool image_is_whole(const char *path) {
    Image *image = image_try_load(path, NULL);
    image_free(image);
    return image != NULL;
}

Image *image_load(const char *path) {
    const char *reason;
    Image *image = image_try_load(path, &reason);
    if (!image) die("cannot read the picture %s: %s", path, reason);
    return image;
}

// ---- PNG with parameters -------------------------------------------------------------------------------

// UTF-8 to Latin-1 where every character has a place there (code points 1 to 255), else false.
static bool to_latin1(const char *utf8, unsigned char *out, size_t *length) {
    *length = 0;
    if (!utf8_valid(utf8, strlen(utf8), NULL)) return false;
    while (*utf8) {
        uint32_t point = utf8_get(&utf8);
        if (point > 255) return false;
        out[(*length)++] = (unsigned char)point;
    }
    return true;
}

static char *from_latin1(const unsigned char *text, size_t length) {
    char *out = xmalloc(2 * length + 1), *o = out;
    for (size_t i = 0; i < length; i++) {
        char utf8[4];
        int n = utf8_put(utf8, text[i]);
        memcpy(o, utf8, (size_t)n), o += n;
    }
    *o = 0;
    return out;
}

static void write_big_endian_32(Output *o, uint32_t v) {
    unsigned char bytes[] = {(unsigned char)(v >> 24), (unsigned char)(v >> 16), (unsigned char)(v >> 8),
                             (unsigned char)v};
    output_write(o, bytes, 4);
}

static void write_chunk(Output *o, const char *type, const unsigned char *data, size_t length) {
    write_big_endian_32(o, (uint32_t)length);
    output_write(o, type, 4);
    output_write(o, data, length);
    write_big_endian_32(o, crc32_update(crc32_update(0, type, 4), data, length));
}

// stb writes signature, IHDR (13 bytes in 25), IDAT, IEND (12).
enum { PNG_HEAD = 8 + 25, PNG_END = 12 };

unsigned char *image_png(const char *name, const Image *image, int *size) {
    if (!size_is_sane(image->width, image->height))
        die("%s: a picture of %d x %d pixels: 1 to %d are allowed", name, image->width, image->height,
            MAX_PIXELS);
    unsigned char *png =
        stbi_write_png_to_mem(image->rgb, 3 * image->width, image->width, image->height, 3, size);
    if (!png) die("out of memory: the picture %s", name);
    return png;
}

void image_save_png(const char *path, const Image *image, const char *parameters) {
    int size;
    unsigned char *png = image_png(path, image, &size);
    Output *o = output_open(path);
    output_write(o, png, PNG_HEAD);
    if (parameters) {                                         // before the pixels: found early
        static const char latin1_head[] = "parameters";       // keyword, NUL; the text follows
        static const char utf8_head[] = "parameters\0\0\0\0"; // keyword, plain, language, translation
        char *valid = xstrdup(parameters);
        utf8_mend(valid); // else no program shows the text
        size_t length = strlen(parameters), n;
        if (length > INT_MAX / 2) die("%s: %zu bytes of parameters are too many", path, length);
        unsigned char *text = xmalloc(sizeof utf8_head + length);
        bool latin1 = to_latin1(valid, text + sizeof latin1_head, &n);
        size_t front = latin1 ? sizeof latin1_head : sizeof utf8_head;
        memcpy(text, latin1 ? latin1_head : utf8_head, front);
        if (!latin1) memcpy(text + front, valid, n = length);
        write_chunk(o, latin1 ? "tEXt" : "iTXt", text, front + n);
        free(valid), free(text);
    }
    output_write(o, png + PNG_HEAD, (size_t)(size - PNG_HEAD));
    output_commit(o);
    free(png);
}

static unsigned char *put_big_endian(unsigned char *at, uint32_t v, int bytes) {
    for (int i = 0; i < bytes; i++) at[i] = (unsigned char)(v >> 8 * (bytes - 1 - i));
    return at + bytes;
}

// An animated PNG (PNG, third edition, 2025): acTL says how many frames, fcTL precedes each, and the pixels
// of all but the first are in fdAT, which is IDAT with a number before it.
void image_save_film(const char *path, Image *const *frames, int count, int frame_ms, int last_ms) {
    Output *o = output_open(path);
    uint32_t number = 0;
    for (int i = 0; i < count; i++) {
        int size;
        unsigned char *png = image_png(path, frames[i], &size), control[26] = {0};
        if (i == 0) {
            output_write(o, png, PNG_HEAD);
            put_big_endian(put_big_endian(control, (uint32_t)count, 4), 0, 4); // 0: for ever
            write_chunk(o, "acTL", control, 8);
        }
        unsigned char *at = put_big_endian(control, number++, 4);
        at = put_big_endian(at, (uint32_t)frames[i]->width, 4);
        at = put_big_endian(at, (uint32_t)frames[i]->height, 4);
        at = put_big_endian(at, 0, 4), at = put_big_endian(at, 0, 4); // the whole picture
        at = put_big_endian(at, (uint32_t)(i + 1 < count ? frame_ms : last_ms), 2);
        put_big_endian(at, 1000, 2);
        write_chunk(o, "fcTL", control, sizeof control);
        unsigned char *data = png + PNG_HEAD + 8;
        size_t length = (size_t)(size - PNG_HEAD - PNG_END - 12);
        if (i) put_big_endian(data - 4, number++, 4); // in place of the chunk's type
        write_chunk(o, i ? "fdAT" : "IDAT", i ? data - 4 : data, i ? length + 4 : length);
        if (i + 1 == count) output_write(o, png + size - PNG_END, PNG_END);
        free(png);
    }
    output_commit(o);
}

// The text of a tEXt, zTXt or iTXt chunk behind its keyword and NUL; NULL where it is damaged.
static char *chunk_text(const Chunk *c, const unsigned char *p, size_t n) {
    bool international = chunk_is(c, "iTXt"), compressed = chunk_is(c, "zTXt");
    if (international) { // compressed?, method, language, NUL, translated keyword, NUL, text
        if (n < 2) return NULL;
        compressed = p[0] == 1;
        p += 2, n -= 2;
        for (int i = 0; i < 2; i++) {
            const unsigned char *end = memchr(p, 0, n);
            if (!end) return NULL;
            n -= (size_t)(end + 1 - p), p = end + 1;
        }
    } else if (compressed) { // method, text
        if (n < 1) return NULL;
        p++, n--;
    }
    unsigned char *inflated = compressed ? inflate_gzip(p, n, &n) : NULL;
    if (compressed && !inflated) return NULL;
    if (compressed) p = inflated;
    char *text = international ? memcpy(xcalloc(n + 1, 1), p, n) : from_latin1(p, n);
    free(inflated);
    return text;
}

static char *find_parameters(const char *path, const unsigned char *bytes, size_t size) {
    static const char keyword[] = "parameters";
    if (!is_png(bytes, size)) return NULL;
    size_t at = 8;
    for (Chunk c = {0};;) {
        const char *reason = next_chunk(bytes, size, &at, &c);
        if (reason) die("cannot read the picture %s: %s", path, reason);
        if (chunk_is(&c, "IEND")) return NULL;
        if ((!chunk_is(&c, "tEXt") && !chunk_is(&c, "zTXt") && !chunk_is(&c, "iTXt")) ||
            c.length < sizeof keyword || memcmp(c.data, keyword, sizeof keyword))
            continue;
        char *text = chunk_text(&c, c.data + sizeof keyword, c.length - sizeof keyword);
        if (!text) die("cannot read the picture %s: its parameters text is damaged", path);
        return text;
    }
}

char *image_png_parameters(const char *path) {
    size_t size;
    const unsigned char *bytes = map_file(path, &size);
    char *text = find_parameters(path, bytes, size);
    unmap_file(bytes, size);
    return text;
}

// ---- resizing ------------------------------------------------------------------------------------------
//
// Pillow's resize is a convolution whose filter is stretched by the scale when shrinking, so that every
// source pixel counts (antialiasing). It runs along rows and along columns; equal bits need the same steps,
// roundings and order. 8-bit pictures have weights in fixed point and 8-bit pixels in between.

static double bilinear(double x) {
    x = fabs(x);
    return x < 1 ? 1 - x : 0;
}

static double bicubic(double x) { // Keys' kernel with a = -1/2
    const double a = -0.5;
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
    return 0;
}

static double sinc(double x) {
    const double pi = 3.14159265358979323846;
    return x == 0 ? 1 : sin(x * pi) / (x * pi);
}

static double lanczos(double x) { return -3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0; }

static const struct {
    double (*filter)(double);
    double support; // the filter is 0 beyond it
} filters[] = {
    [RESIZE_BILINEAR] = {bilinear, 1}, [RESIZE_BICUBIC] = {bicubic, 2}, [RESIZE_LANCZOS] = {lanczos, 3}};

// For every output position: which inputs it sees and with which weights. Pillow multiplies by 1 / stretch;
// that may change a double's last bit, which is none of the 22 bits of fixed point.
typedef struct {
    int *first, *count; // (out)
    double *weight;     // (out, taps)
    int taps;
} Weights;

static Weights make_weights(int in, int out, Resize filter) {
    double scale = (double)in / out, stretch = fmax(scale, 1), support = filters[filter].support * stretch;
    Weights w = {.taps = (int)ceil(support) * 2 + 1};
    w.first = xcalloc((size_t)out, sizeof *w.first);
    w.count = xcalloc((size_t)out, sizeof *w.count);
    w.weight = xcalloc((size_t)out * (size_t)w.taps, sizeof *w.weight);
    for (int i = 0; i < out; i++) {
        double center = (i + 0.5) * scale, sum = 0, *weight = w.weight + (size_t)i * (size_t)w.taps;
        int first = (int)fmax(center - support + 0.5, 0), end = (int)fmin(center + support + 0.5, in);
        for (int k = 0; k < end - first; k++)
            sum += weight[k] = filters[filter].filter((first + k + 0.5 - center) / stretch);
        for (int k = 0; k < end - first && sum != 0; k++) weight[k] /= sum;
        w.first[i] = first, w.count[i] = end - first;
    }
    return w;
}

static void free_weights(Weights *w) { free(w->first), free(w->count), free(w->weight); }

enum { FRACTION_BITS = 32 - 8 - 2 }; // of a weight: 8 bits hold the pixel, 2 are for the filters' overshoot

static int32_t *to_fixed(const Weights *w, int out) {
    size_t n = (size_t)out * (size_t)w->taps;
    int32_t *fixed = xmalloc(n * sizeof *fixed);
    for (size_t i = 0; i < n; i++) {
        double v = w->weight[i] * (1 << FRACTION_BITS);
        fixed[i] = (int32_t)(v < 0 ? v - 0.5 : v + 0.5);
    }
    return fixed;
}

static inline unsigned char from_fixed(int32_t v) {
    v >>= FRACTION_BITS;
    return (unsigned char)(v < 0 ? 0 : v > 255 ? 255 : v);
}

// out[o, i, e] = sum over k of weight[i, k] in[o, first[i] + k, e]: `outer` times `inner` elements, of which
// `in` become `out`. Along rows `outer` is the height and `inner` a pixel's 3 bytes; along columns they are 1
// and a row's bytes, whose sums are taken together: that reads memory in order, and vectorises.
static void resample(unsigned char *to, const unsigned char *from, int outer, int in, int out, size_t inner,
                     Resize filter) {
    Weights w = make_weights(in, out, filter);
    int32_t *fixed = to_fixed(&w, out), *restrict sum = xmalloc(inner * sizeof *sum);
    for (int o = 0; o < outer; o++, from += (size_t)in * inner)
        for (int i = 0; i < out; i++, to += inner) {
            const int32_t *weight = fixed + (size_t)i * (size_t)w.taps;
            const unsigned char *x = from + inner * (size_t)w.first[i];
            for (size_t e = 0; e < inner; e++)
                sum[e] = 1 << (FRACTION_BITS - 1); // a half: the shift then rounds
            for (int k = 0; k < w.count[i]; k++, x += inner)
                for (size_t e = 0; e < inner; e++) sum[e] += x[e] * weight[k];
            for (size_t e = 0; e < inner; e++) to[e] = from_fixed(sum[e]);
        }
    free(sum), free(fixed), free_weights(&w);
}

// Along one axis: along rows where the width is another one.
static Image *resize_axis(const Image *image, int width, int height, Resize filter) {
    Image *out = image_new(width, height);
    if (width != image->width)
        resample(out->rgb, image->rgb, height, image->width, width, 3, filter);
    else
        resample(out->rgb, image->rgb, 1, image->height, height, 3 * (size_t)width, filter);
    return out;
}

// The same on floats, with sums in double.
static void resample_f32(float *to, const float *from, int outer, int in, int out, size_t inner,
                         Resize filter) {
    Weights w = make_weights(in, out, filter);
    for (int o = 0; o < outer; o++, from += (size_t)in * inner)
        for (int i = 0; i < out; i++)
            for (size_t e = 0; e < inner; e++) {
                const float *x = from + inner * (size_t)w.first[i] + e;
                const double *weight = w.weight + (size_t)i * (size_t)w.taps;
                double sum = 0;
                for (int k = 0; k < w.count[i]; k++) sum += weight[k] * x[(size_t)k * inner];
                *to++ = (float)sum;
            }
    free_weights(&w);
}

void image_resize_f32(float *out, const Image *image, int width, int height, Resize filter) {
    size_t count = 3 * (size_t)image->width * (size_t)image->height, row = 3 * (size_t)width;
    float *pixels = xmalloc(count * sizeof(float)),
          *narrow = xmalloc((size_t)image->height * row * sizeof(float));
    for (size_t i = 0; i < count; i++) pixels[i] = image->rgb[i];
    resample_f32(narrow, pixels, image->height, image->width, width, 3, filter);
    resample_f32(out, narrow, 1, image->height, height, row, filter);
    free(pixels), free(narrow);
}

Image *image_resize(const Image *image, int width, int height, Resize filter) {
    if (width == image->width && height == image->height) return image_crop(image, 0, 0, width, height);
    if (width == image->width || height == image->height) return resize_axis(image, width, height, filter);
    // Rows first, unless the height shrinks by more than twice as many pixels as the width: then columns
    // first is less work. So since Pillow 13 (its pull request 9549); before that it was always rows first.
    bool columns_first = height < image->height && image->height - height > 2 * (image->width - width);
    Image *half = columns_first ? resize_axis(image, image->width, height, filter)
                                : resize_axis(image, width, image->height, filter);
    Image *result = resize_axis(half, width, height, filter);
    image_free(half);
    return result;
}

// Output pixel i looks at the input around (i + 1/2) scale - 1/2, in fp32 as PyTorch does.
void image_interpolate(float *out, const Image *image, int width, int height) {
    int w = image->width, h = image->height;
    float scale_x = (float)w / (float)width, scale_y = (float)h / (float)height;
    for (int i = 0; i < height; i++) {
        float y = fmaxf(scale_y * ((float)i + 0.5f) - 0.5f, 0);
        int y0 = (int)y < h ? (int)y : h - 1, y1 = y0 < h - 1 ? y0 + 1 : y0;
        float below = y - (float)y0;
        const unsigned char *r0 = image->rgb + 3 * (size_t)y0 * (size_t)w;
        const unsigned char *r1 = image->rgb + 3 * (size_t)y1 * (size_t)w;
        for (int j = 0; j < width; j++) {
            float x = fmaxf(scale_x * ((float)j + 0.5f) - 0.5f, 0);
            int x0 = (int)x < w ? (int)x : w - 1, x1 = x0 < w - 1 ? x0 + 1 : x0;
            float right = x - (float)x0;
            for (int c = 0; c < 3; c++) {
                float p00 = r0[3 * x0 + c] / 255.0f, p01 = r0[3 * x1 + c] / 255.0f;
                float p10 = r1[3 * x0 + c] / 255.0f, p11 = r1[3 * x1 + c] / 255.0f;
                *out++ = (1 - below) * ((1 - right) * p00 + right * p01) +
                         below * ((1 - right) * p10 + right * p11);
            }
        }
    }
}

Image *image_crop(const Image *image, int left, int top, int width, int height) {
    if (left < 0 || top < 0 || width < 1 || height < 1 || left > image->width - width ||
        top > image->height - height)
        die("cannot cut %d x %d pixels at %d, %d out of a picture of %d x %d", width, height, left, top,
            image->width, image->height);
    Image *result = image_new(width, height);
    for (int y = 0; y < height; y++)
        memcpy(result->rgb + 3 * (size_t)y * (size_t)width,
               image->rgb + 3 * ((size_t)(top + y) * (size_t)image->width + (size_t)left), 3 * (size_t)width);
    return result;
}

// Half of n to the even neighbour: Python's round(), by which torchvision's CenterCrop finds the corner.
static int half_to_even(int n) { return n / 2 + (n % 2 && n / 2 % 2); }

Image *image_center_square(const Image *image, int size, Resize filter) {
    int w = image->width, h = image->height;
    if (size < 1) die("a picture of %d x %d pixels cannot be made", size, size);
    // torchvision's Resize(size): the long side is rounded down.
    int64_t wide = w <= h ? size : (int64_t)size * w / h, high = w <= h ? (int64_t)size * h / w : size;
    if (wide * high > MAX_PIXELS)
        die("a picture of %d x %d pixels becomes too large at a short side of %d", w, h, size);
    Image *resized = image_resize(image, (int)wide, (int)high, filter);
    Image *square = image_crop(resized, half_to_even(resized->width - size),
                               half_to_even(resized->height - size), size, size);
    image_free(resized);
    return square;
}
