// image.c: pictures. Reading JPEG and PNG, writing PNG with its `parameters` text, Pillow's resize. See io.h.
//
// The codecs are the distribution's stb_image and stb_image_write (public domain, https://github.com/nothings/stb).
// Around them stands what a measuring program needs besides: stb shows a damaged or truncated file as far as
// it can, with gray where the data ran out, which is right for a viewer and wrong for an FID. So PNG
// checksums and the end of a JPEG are checked first, and memory is bounded before anything is unpacked.
//
// Colours come out as PIL's convert("RGB") gives them, since that is what the field's tools compute on. PNGs
// agree to the bit. JPEGs do not quite: the standard leaves the rounding of the inverse DCT and of the
// chroma upsampling free, and stb and libjpeg-turbo differ there by a few of 255 levels. An EXIF orientation
// is ignored, as PIL (and so pytorch-fid) does.
#define _POSIX_C_SOURCE 200809L
#include "io.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

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

// Pillow calls a picture above twice its warning size a decompression bomb and refuses it; so here.
enum { MAX_PIXELS = 178956970, MAX_FILE = 1 << 30 };

static _Thread_local char why[200]; // the reason of the last failure
static _Thread_local size_t memory_bound;

// No single block that stb asks for may pass the bound, which decode() sets from the picture's size: a PNG
// of one pixel whose data inflates to gigabytes ends as "out of memory" and not with the machine. And all begins as
// zeros: a JPEG that uses a Huffman table it never defined would else read a wild one.
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

static uint32_t big_endian_32(const unsigned char *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static const unsigned char png_signature[8] = {137, 'P', 'N', 'G', '\r', '\n', 26, '\n'};

static bool is_png(const unsigned char *bytes, size_t size) {
    return size >= 8 && !memcmp(bytes, png_signature, 8);
}

static bool is_jpeg(const unsigned char *bytes, size_t size) {
    return size >= 3 && bytes[0] == 0xff && bytes[1] == 0xd8 && bytes[2] == 0xff;
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

// What a file says of itself before it is decoded.
typedef struct {
    size_t width, height;
    bool gray16; // one channel of 16 bits
} Claims;

// Walks a PNG to its end.
static const char *check_png(const unsigned char *bytes, size_t size, Claims *claims) {
    size_t at = 8;
    for (Chunk c = {0};;) {
        const char *reason = next_chunk(bytes, size, &at, &c);
        if (reason) return reason;
        if (chunk_is(&c, "IHDR") && c.length >= 10)
            *claims =
                (Claims){big_endian_32(c.data), big_endian_32(c.data + 4), c.data[8] == 16 && c.data[9] == 0};
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

// Walks a JPEG's segments (FF, marker, length, data) and scans to the end marker. In the data of a scan an FF is
// followed by 00 or a restart marker; any other marker ends the scan.
static const char *check_jpeg(const unsigned char *bytes, size_t size, Claims *claims) {
    enum {
        SOF0 = 0xc0,
        SOF2 = 0xc2,
        DHT = 0xc4,
        RST0 = 0xd0,
        SOI = 0xd8,
        EOI = 0xd9,
        SOS = 0xda,
        APP14 = 0xee
    };
    int components = 0;
    bool adobe = false, scanned = false;
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
            *claims = (Claims){(size_t)data[3] << 8 | data[4], (size_t)data[1] << 8 | data[2], false};
            components = data[5];
        }
        if (marker == SOS) scanned = true;
        at += 1 + length;
    }
    if (!scanned) return because("it is damaged: it ends before the picture begins");
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

static Image *decode(const unsigned char *bytes, size_t size, const char **reason) {
    Claims claims = {0};
    if (is_png(bytes, size))
        *reason = check_png(bytes, size, &claims);
    else if (is_jpeg(bytes, size))
        *reason = check_jpeg(bytes, size, &claims);
    else if (size < 4)
        *reason = because("%zu bytes are no picture", size);
    else
        *reason = because("it is neither JPEG nor PNG (it begins with the bytes %02x %02x %02x %02x)",
                          bytes[0], bytes[1], bytes[2], bytes[3]);
    if (*reason) return NULL;
    if (claims.width == 0 || claims.height == 0 || claims.width > MAX_PIXELS / claims.height) {
        *reason = because("%zu x %zu pixels: 1 to %d are allowed", claims.width, claims.height, MAX_PIXELS);
        return NULL;
    }
    // The largest honest blocks: 16-bit RGBA before and after unfiltering (8 bytes a pixel and 1 a row, in
    // buffers that grow by doubling), coefficients of a progressive JPEG in whole blocks, the compressed data.
    memory_bound =
        16 * claims.width * claims.height + 128 * (claims.width + claims.height) + 2 * size + (1 << 20);
    int width, height, channels;
    unsigned char *rgb = NULL;
    if (claims.gray16) {
        // PIL reads this as "I;16" and convert("RGB") clips there: 256 and all above are white.
        uint16_t *gray = stbi_load_16_from_memory(bytes, (int)size, &width, &height, &channels, 1);
        size_t n = gray ? (size_t)width * (size_t)height : 0;
        if (gray) rgb = xmalloc(3 * n);
        for (size_t i = 0; i < n; i++) memset(rgb + 3 * i, gray[i] < 255 ? gray[i] : 255, 3);
        free(gray);
    } else {
        rgb = stbi_load_from_memory(bytes, (int)size, &width, &height, &channels, 3);
    }
    if (!rgb) {
        *reason = because("the decoder says: %s", stbi_failure_reason());
        return NULL;
    }
    Image *image = xmalloc(sizeof *image);
    *image = (Image){width, height, rgb};
    return image;
}

// The file's bytes, or NULL and a reason: unlike read_file, for pictures that may be left out.
static unsigned char *read_bytes(const char *path, size_t *size, const char **reason) {
    struct stat info; // asked before the file is opened: opening a pipe waits for a writer
    FILE *f = NULL;
    bool found = !stat(path, &info);
    if (found && !S_ISREG(info.st_mode))
        *reason = because("it is no regular file");
    else if (!found || !(f = fopen(path, "rb")))
        *reason = because("%s", strerror(errno));
    if (!f) return NULL;
    unsigned char *bytes = NULL;
    if (info.st_size > MAX_FILE)
        *reason = because("%lld bytes are too many", (long long)info.st_size);
    else {
        *size = (size_t)info.st_size;
        bytes = xmalloc(*size);
        if (fread(bytes, 1, *size, f) != *size) {
            *reason = because("it could not be read: %s", strerror(errno));
            free(bytes);
            bytes = NULL;
        }
    }
    fclose(f);
    return bytes;
}

Image *image_try_load(const char *path, const char **reason) {
    const char *ignored;
    if (!reason) reason = &ignored;
    *reason = NULL;
    size_t size;
    unsigned char *bytes = read_bytes(path, &size, reason);
    Image *image = bytes ? decode(bytes, size, reason) : NULL;
    free(bytes);
    return image;
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
    size_t n = 0;
    for (const unsigned char *p = (const unsigned char *)utf8; *p; p++) {
        if (*p < 0x80)
            out[n++] = *p;
        else if ((*p == 0xc2 || *p == 0xc3) && (p[1] & 0xc0) == 0x80) { // two bytes: 110000xx 10xxxxxx
            out[n++] = (unsigned char)(*p << 6 | (p[1] & 0x3f));
            p++;
        } else
            return false;
    }
    *length = n;
    return true;
}

static char *from_latin1(const unsigned char *text, size_t length) {
    char *out = xmalloc(2 * length + 1), *o = out;
    for (size_t i = 0; i < length; i++) {
        if (text[i] < 0x80)
            *o++ = (char)text[i];
        else
            *o++ = (char)(0xc0 | text[i] >> 6), *o++ = (char)(0x80 | (text[i] & 0x3f));
    }
    *o = 0;
    return out;
}

static void put_big_endian_32(unsigned char *p, uint32_t v) {
    for (int i = 0; i < 4; i++) p[i] = (unsigned char)(v >> (24 - 8 * i));
}

static void write_chunk(Output *o, const char *type, const unsigned char *data, size_t length) {
    unsigned char number[4];
    put_big_endian_32(number, (uint32_t)length);
    output_write(o, number, 4);
    output_write(o, type, 4);
    output_write(o, data, length);
    put_big_endian_32(number, crc32_update(crc32_update(0, type, 4), data, length));
    output_write(o, number, 4);
}

void image_save_png(const char *path, const Image *image, const char *parameters) {
    if (!size_is_sane(image->width, image->height))
        die("%s: a picture of %d x %d pixels: 1 to %d are allowed", path, image->width, image->height,
            MAX_PIXELS);
    int size;
    unsigned char *png =
        stbi_write_png_to_mem(image->rgb, 3 * image->width, image->width, image->height, 3, &size);
    if (!png) die("out of memory: the picture %s", path);
    Output *o = output_open(path);
    // stb writes signature, IHDR (13 bytes in 25), IDAT, IEND. The text comes before the pixels, where a
    // reader that stops early finds it, too.
    const int head = 8 + 25;
    output_write(o, png, (size_t)head);
    if (parameters) {
        static const char latin1_head[] = "parameters"; // keyword, NUL, text
        static const char utf8_head[] =
            "parameters\0\0\0\0"; // keyword, NUL, 0 plain, 0, language "", "" translated
        size_t length = strlen(parameters), n;
        if (length > INT_MAX / 2) die("%s: %zu bytes of parameters are too many", path, length);
        unsigned char *text = xmalloc(sizeof utf8_head + length);
        if (to_latin1(parameters, text + sizeof latin1_head, &n)) {
            memcpy(text, latin1_head, sizeof latin1_head);
            write_chunk(o, "tEXt", text, sizeof latin1_head + n);
        } else {
            memcpy(text, utf8_head, sizeof utf8_head);
            memcpy(text + sizeof utf8_head, parameters, length);
            write_chunk(o, "iTXt", text, sizeof utf8_head + length);
        }
        free(text);
    }
    output_write(o, png + head, (size_t)(size - head));
    output_commit(o);
    free(png);
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
    unsigned char *inflated = NULL;
    if (compressed) {
        inflated = inflate_gzip(p, n, &n);
        if (!inflated) return NULL;
        p = inflated;
    }
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
    const char *reason = NULL;
    size_t size;
    unsigned char *bytes = read_bytes(path, &size, &reason);
    if (!bytes) die("cannot read the picture %s: %s", path, reason);
    char *text = find_parameters(path, bytes, size);
    free(bytes);
    return text;
}

// ---- resizing ------------------------------------------------------------------------------------------
//
// Pillow's resize is a convolution whose filter is stretched by the scale when shrinking, so that every source
// pixel counts (antialiasing). It runs along rows and along columns, with weights in fixed point and 8-bit
// pixels in between; equal bits need the same steps, roundings and order included.

enum { FRACTION_BITS = 32 - 8 - 2 }; // of a weight: 8 bits hold the pixel, 2 are for the filters' overshoot

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

// For every output position: which inputs it sees and with which weights.
typedef struct {
    int *first, *count; // (out)
    int32_t *weight;    // (out, taps)
    int taps;
} Weights;

static Weights make_weights(int in, int out, Resize filter) {
    double scale = (double)in / out, stretch = scale < 1 ? 1 : scale,
           support = filters[filter].support * stretch;
    Weights w = {.taps = (int)ceil(support) * 2 + 1};
    w.first = xcalloc((size_t)out, sizeof *w.first);
    w.count = xcalloc((size_t)out, sizeof *w.count);
    w.weight = xcalloc((size_t)out * (size_t)w.taps, sizeof *w.weight);
    double *exact = xcalloc((size_t)w.taps, sizeof *exact);
    for (int i = 0; i < out; i++) {
        double center = (i + 0.5) * scale, sum = 0;
        int first = (int)(center - support + 0.5), end = (int)(center + support + 0.5);
        if (first < 0) first = 0;
        if (end > in) end = in;
        for (int k = 0; k < end - first; k++) {
            exact[k] = filters[filter].filter((k + first - center + 0.5) * (1 / stretch));
            sum += exact[k];
        }
        for (int k = 0; k < end - first; k++) {
            double v = (sum != 0 ? exact[k] / sum : exact[k]) * (1 << FRACTION_BITS);
            w.weight[(size_t)i * (size_t)w.taps + (size_t)k] = (int32_t)(v < 0 ? v - 0.5 : v + 0.5);
        }
        w.first[i] = first, w.count[i] = end - first;
    }
    free(exact);
    return w;
}

static void free_weights(Weights *w) { free(w->first), free(w->count), free(w->weight); }

static inline unsigned char from_fixed(int32_t v) {
    v >>= FRACTION_BITS;
    return (unsigned char)(v < 0 ? 0 : v > 255 ? 255 : v);
}

static Image *resize_rows(const Image *image, int width, Resize filter) {
    Image *result = image_new(width, image->height);
    Weights w = make_weights(image->width, width, filter);
    for (size_t y = 0; y < (size_t)image->height; y++) {
        const unsigned char *row = image->rgb + 3 * y * (size_t)image->width;
        unsigned char *out = result->rgb + 3 * y * (size_t)width;
        for (int x = 0; x < width; x++, out += 3) {
            const int32_t *weight = w.weight + (size_t)x * (size_t)w.taps;
            const unsigned char *in = row + 3 * (size_t)w.first[x];
            int32_t r = 1 << (FRACTION_BITS - 1), g = r, b = r; // one half: the shift then rounds
            for (int k = 0; k < w.count[x]; k++, in += 3)
                r += in[0] * weight[k], g += in[1] * weight[k], b += in[2] * weight[k];
            out[0] = from_fixed(r), out[1] = from_fixed(g), out[2] = from_fixed(b);
        }
    }
    free_weights(&w);
    return result;
}

static Image *resize_columns(const Image *image, int height, Resize filter) {
    Image *result = image_new(image->width, height);
    Weights w = make_weights(image->height, height, filter);
    size_t stride = 3 * (size_t)image->width;
    int32_t *sum = xmalloc(stride * sizeof *sum);
    for (size_t y = 0; y < (size_t)height; y++) {
        for (size_t i = 0; i < stride; i++) sum[i] = 1 << (FRACTION_BITS - 1);
        for (int k = 0; k < w.count[y]; k++) { // a row at a time: reads memory in order, and vectorises
            const unsigned char *in = image->rgb + stride * (size_t)(w.first[y] + k);
            int32_t weight = w.weight[y * (size_t)w.taps + (size_t)k];
            for (size_t i = 0; i < stride; i++) sum[i] += in[i] * weight;
        }
        for (size_t i = 0; i < stride; i++) result->rgb[stride * y + i] = from_fixed(sum[i]);
    }
    free(sum);
    free_weights(&w);
    return result;
}

static Image *image_copy(const Image *image) {
    Image *copy = image_new(image->width, image->height);
    memcpy(copy->rgb, image->rgb, 3 * (size_t)image->width * (size_t)image->height);
    return copy;
}

Image *image_resize(const Image *image, int width, int height, Resize filter) {
    if (width == image->width && height == image->height) return image_copy(image);
    if (height == image->height) return resize_rows(image, width, filter);
    if (width == image->width) return resize_columns(image, height, filter);
    // Rows first, unless the height shrinks by more than twice as many pixels as the width: then columns first is
    // less work. So since Pillow 13 (its pull request 9549); before that it was always rows first.
    bool columns_first = height < image->height && image->height - height > 2 * (image->width - width);
    Image *half = columns_first ? resize_columns(image, height, filter) : resize_rows(image, width, filter);
    Image *result = columns_first ? resize_rows(half, width, filter) : resize_columns(half, height, filter);
    image_free(half);
    return result;
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

// Half of n, an odd n to the even neighbour: Python's round(), by which torchvision's CenterCrop finds the corner.
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
