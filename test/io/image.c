// image.c (test): pictures read as PIL reads them, Pillow's resize bit for bit, PNGs that we write, damaged
// files.
#define _GNU_SOURCE // memmem
#include "files.h"

// ---- reading ---------------------------------------------------------------------------------------------

static void test_reading(void) {
    // pictures.safetensors holds what PIL's convert("RGB") makes of each file: (height, width, 3).
    Store *s = store_open(FIXTURES "pictures.safetensors");
    for (size_t i = 0; i < store_count(s); i++) {
        const Stored *want = store_at(s, i);
        char path[300];
        const char *reason = NULL;
        snprintf(path, sizeof path, FIXTURES "%s", want->name);
        bool differs; // the reference reads as one measures
        Image *image = image_try_measure(path, &reason, &differs);
        int ok = image && image->height == want->shape[0] && image->width == want->shape[1];
        if (!image) printf("%s: %s\n", path, reason);
        int worst = 0;
        double sum = 0;
        for (size_t k = 0; ok && k < want->count; k++) {
            int d = abs((int)image->rgb[k] - ((const unsigned char *)want->data)[k]);
            if (d > worst) worst = d; // whole numbers
            sum += d;
        }
        // JPEG decoders may round differently, by about one level each in the IDCT, the chroma upsampling and
        // the colour conversion; CMYK multiplies two such values. PNG is exact.
        bool jpeg = strstr(want->name, ".jpg") != NULL;
        int tolerance = jpeg ? 4 : 0;
        if (jpeg && ok)
            printf("%s: largest difference %d of %d allowed, mean %.3f\n", want->name, worst, tolerance,
                   sum / (double)want->count);
        check(ok && worst <= tolerance && sum <= 0.5 * (double)want->count, want->name);
        image_free(image);
    }
    check(store_count(s) == 18, "all pictures were there");
    store_close(s);
}

static void check_reason(const char *what, const char *path, const char *words) {
    const char *reason = "";
    Image *image = image_try_load(path, &reason);
    if (image || !strstr(reason, words))
        printf("%s: got '%s', expected '%s'\n", what, image ? "a picture" : reason, words);
    check(!image && strstr(reason, words), what);
    image_free(image);
}

static void put_big_endian(unsigned char *p, uint32_t v) {
    for (int i = 0; i < 4; i++) p[i] = (unsigned char)(v >> (24 - 8 * i));
}

static void test_damage(void) {
    check_reason("an absent file", in_folder("absent.png"), "No such file");
    check_reason("a folder", folder, "it is a folder");
    check_reason("an empty file", write_text("empty", ""), "no picture");
    check_reason("a GIF", write_text("x.png", "GIF89a...."), "neither JPEG nor PNG but a GIF picture");
    check_reason("a text", write_text("x.png", "text."),
                 "neither JPEG nor PNG (it begins with the bytes 74 65 78 74)");
    CHECK_DIES("image_load names the file", "absent.png: No such file", image_load(in_folder("absent.png")));
    static const char *const files[] = {"rgb.png", "baseline.jpg", "progressive.jpg"};
    for (int f = 0; f < 3; f++) {
        char path[300];
        size_t n;
        snprintf(path, sizeof path, FIXTURES "%s", files[f]);
        char *good = read_file(path, &n);
        int survived = 0;
        for (size_t cut = 0; cut < n; cut++) {
            Image *image = image_try_load(write_bytes("cut", good, cut), NULL);
            survived += image != NULL;
            image_free(image);
        }
        if (survived) printf("%s: %d cuts went unnoticed\n", files[f], survived);
        check(survived == 0, "a picture cut short at any byte is refused");
        if (f == 0) {
            good[n / 2] ^= 1;
            check_reason("a flipped bit in a PNG", write_bytes("flipped", good, n), "checksum");
        }
        free(good);
    }
    // A PNG header that claims 20,000 x 20,000 pixels, with a correct checksum.
    size_t n, m;
    unsigned char *png = (unsigned char *)read_file(FIXTURES "rgb.png", &n);
    put_big_endian(png + 16, 20000), put_big_endian(png + 20, 20000);
    put_big_endian(png + 29, crc32_update(0, png + 12, 17));
    check_reason("a picture of 400 million pixels", write_bytes("huge", png, n),
                 "20000 x 20000 pixels: 1 to");
    unsigned char *jpeg = (unsigned char *)read_file(FIXTURES "baseline.jpg", &m),
                  *frame = memmem(jpeg, m, "\xff\xc0\0\x11\x08", 5);
    if (!frame) die("baseline.jpg has no frame header");
    memcpy(frame + 5, "\x4e\x20\x4e\x20", 4);
    check_reason("a JPEG that claims as many", write_bytes("huge.jpg", jpeg, m),
                 "20000 x 20000 pixels: 1 to");
    free(jpeg);
    put_big_endian(png + 16, 0);
    put_big_endian(png + 29, crc32_update(0, png + 12, 17));
    check_reason("a picture without pixels", write_bytes("none", png, n), "0 x 20000");
    // A decompression bomb: one pixel, but data that inflates to 30 MB. The decoder's memory is bounded.
    static unsigned char bomb[8 + 25 + 12 + 30000 + 12];
    memcpy(bomb, png, 8 + 25);
    put_big_endian(bomb + 16, 1), put_big_endian(bomb + 20, 1);
    put_big_endian(bomb + 29, crc32_update(0, bomb + 12, 17));
    unsigned char *p = bomb + 33;
    put_big_endian(p, 30000), memcpy(p + 4, "IDAT\x78\x9c\x63", 7);
    // A fixed block: the literal 0 (00110000), then copies of 258 bytes from 1 back (11000101, 00000), as
    // bits written one after another until the space is full.
    size_t bit = 3;
    p[10] = 3; // the last block, fixed codes
    static const char first[] = "00110000", copy[] = "1100010100000";
    for (const char *c = first; *c; c++, bit++) p[10 + bit / 8] |= (unsigned char)((*c - '0') << bit % 8);
    while (bit / 8 + 20 < 29000)
        for (const char *c = copy; *c; c++, bit++) p[10 + bit / 8] |= (unsigned char)((*c - '0') << bit % 8);
    put_big_endian(p + 8 + 30000, crc32_update(0, p + 4, 4 + 30000));
    memcpy(p + 12 + 30000, "\0\0\0\0IEND\xae\x42\x60\x82", 12);
    check_reason("a decompression bomb", write_bytes("bomb.png", bomb, sizeof bomb), "decoder says");
    free(png);
}

// ---- pictures to look at ---------------------------------------------------------------------------------

// A picture of the letters in `rows`, one pixel each, in a PNG with that chunk behind its header.
static const char *lettered(const char *rows, int width, int height, const char *type, const void *data,
                            size_t n) {
    Image *image = image_new(width, height);
    for (int i = 0; i < width * height; i++) memset(image->rgb + 3 * i, rows[i], 3);
    image_save_png(in_folder("letters.png"), image, NULL);
    image_free(image);
    size_t size;
    unsigned char *png = (unsigned char *)read_file(in_folder("letters.png"), &size),
                  *out = xmalloc(size + n + 12);
    memcpy(out, png, 33);
    put_big_endian(out + 33, (uint32_t)n), memcpy(out + 37, type, 4), memcpy(out + 41, data, n);
    put_big_endian(out + 41 + n, crc32_update(crc32_update(0, type, 4), data, n));
    memcpy(out + 45 + n, png + 33, size - 33);
    const char *path = write_bytes("turned.png", out, size + n + 12);
    free(png), free(out);
    return path;
}

// The letters of a picture, rows separated by bars.
static void check_letters(const char *what, Image *image, const char *want) {
    char got[32] = "", *out = got;
    for (int y = 0; image && y < image->height; y++) {
        for (int x = 0; x < image->width; x++) *out++ = (char)image->rgb[3 * (y * image->width + x)];
        *out++ = '|';
    }
    *out = 0;
    if (strcmp(got, want)) printf("%s: got %s, expected %s\n", what, got, want);
    check(!strcmp(got, want), what);
    image_free(image);
}

// TIFF data of one list with one entry.
static const void *exif(unsigned char out[26], bool big, int tag, int type, int count, int value) {
    int numbers[] = {big ? 0x4d4d : 0x4949, 42, 8, 1, tag, type, count, value, 0},
        bytes[] = {2, 2, 4, 2, 2, 2, 4, 4, 4};
    if (big && type == 3) numbers[7] <<= 16; // a short stands in front in its 4 bytes
    unsigned char *p = out;
    for (int i = 0; i < 8; p += bytes[i++])
        for (int k = 0; k < bytes[i]; k++)
            p[k] = (unsigned char)(numbers[i] >> 8 * (big ? bytes[i] - 1 - k : k));
    return out;
}

static void test_orientation(void) {
    static const char *const want[] = {"abc|def|",  "abc|def|",  "cba|fed|",  "fed|cba|",  "def|abc|",
                                       "ad|be|cf|", "da|eb|fc|", "fc|eb|da|", "cf|be|ad|", "abc|def|"};
    unsigned char e[26];
    bool differs;
    for (int o = 0; o <= 9; o++)
        for (int big = 0; big < 2; big++) {
            const char *path = lettered("abcdef", 3, 2, "eXIf", exif(e, big, 0x112, 3, 1, o), 22);
            check_letters("a picture is turned as EXIF says", image_load(path), want[o]);
            check_letters("one that is measured is not", image_try_measure(path, NULL, &differs), "abc|def|");
            check(differs == (o >= 2 && o <= 8), "and it is known that they differ");
        }
    static const struct {
        const char *what, *want;
        int tag, type, count, value;
    } cases[] = {{"a long", "da|eb|fc|", 0x112, 4, 1, 6},
                 {"two values", "abc|def|", 0x112, 3, 2, 6},
                 {"a fraction", "abc|def|", 0x112, 5, 1, 6},
                 {"a byte", "abc|def|", 0x112, 1, 1, 6},
                 {"another tag", "abc|def|", 0x113, 3, 1, 6}};
    for (int i = 0; i < 5; i++)
        check_letters(cases[i].what,
                      image_load(lettered(
                          "abcdef", 3, 2, "eXIf",
                          exif(e, true, cases[i].tag, cases[i].type, cases[i].count, cases[i].value), 22)),
                      cases[i].want);
    unsigned char longer[28] = "Exif\0";
    memcpy(longer + 6, exif(e, true, 0x112, 3, 1, 6), 22);
    check_letters("EXIF with a JPEG's beginning", image_load(lettered("abcdef", 3, 2, "eXIf", longer, 28)),
                  "da|eb|fc|");
    static const char *const xmp[] = {"XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation=\"6\"/>",
                                      "XML:com.adobe.xmp\0\0\0\0\0<tiff:Orientation>6</tiff:Orientation>"};
    for (int i = 0; i < 2; i++)
        check_letters("XMP turns it, too", image_load(lettered("abcdef", 3, 2, "iTXt", xmp[i], i ? 60 : 47)),
                      "da|eb|fc|");
    check_letters("XMP that is cut short does not", image_load(lettered("abcdef", 3, 2, "iTXt", xmp[0], 42)),
                  "abc|def|");
    for (size_t n = 0; n < 22; n++)
        check_letters("EXIF that is cut short tells nothing",
                      image_load(lettered("abcdef", 3, 2, "eXIf", e, n)), "abc|def|");
    e[4] = 0xff;
    check_letters("nor does a list beyond the end", image_load(lettered("abcdef", 3, 2, "eXIf", e, 22)),
                  "abc|def|");
    // A JPEG, which holds it in a segment of its own; and one whose EXIF turns it.
    size_t n;
    unsigned char *jpeg = (unsigned char *)read_file(FIXTURES "baseline.jpg", &n), *out = xmalloc(n + 32);
    memcpy(out,
           "\xff\xd8\xff\xe1\0\x1e"
           "Exif\0",
           12);
    memcpy(out + 12, exif(e, false, 0x112, 3, 1, 6), 22), memcpy(out + 34, jpeg + 2, n - 2);
    Image *plain = image_load(FIXTURES "baseline.jpg"),
          *turned = image_load(write_bytes("turned.jpg", out, n + 32));
    check(plain->width == turned->height && plain->height == turned->width &&
              !memcmp(turned->rgb + 3 * (turned->width - 1), plain->rgb, 3),
          "the first pixel of a JPEG comes to the upper right");
    image_free(plain), image_free(turned), free(jpeg), free(out);

    // Gray of 16 bits: the high byte to look at; cut at 255, as PIL does, to measure.
    const char *path = FIXTURES "gray16.png";
    Image *seen = image_load(path), *measured = image_try_measure(path, NULL, &differs);
    int white = 0, same = 0;
    for (int i = 0; i < 3 * seen->width * seen->height; i++)
        white += measured->rgb[i] == 255, same += seen->rgb[i] == 255;
    check(differs && white > 2 * same, "16 bits of gray are scaled");
    image_free(seen), image_free(measured);
}

// ---- resizing --------------------------------------------------------------------------------------------

static Image *made(int width, int height, bool hard) {
    Image *image = image_new(width, height);
    size_t n = 3 * (size_t)width * (size_t)height;
    noise(image->rgb, n, (uint32_t)width);
    for (size_t i = 0; hard && i < n; i++) image->rgb[i] = image->rgb[i] / 128 * 255;
    return image;
}

static void check_image(const char *what, Image *image) {
    check_hash(what, fnv1a(FNV_START, image->rgb, 3 * (size_t)image->width * (size_t)image->height));
    image_free(image);
}

static void test_resizing(void) {
    static const int sizes[][4] = {
        {37, 23, 19, 11},    {37, 23, 64, 51}, {37, 23, 37, 50},   {37, 23, 12, 23},   {37, 23, 1, 1},
        {1, 1, 7, 5},        {2, 3, 3, 2},     {64, 64, 32, 32},   {64, 64, 224, 224}, {299, 211, 128, 128},
        {100, 75, 299, 299}, {5, 300, 300, 5}, {500, 375, 17, 512}};
    static const char *const names[] = {"bilinear", "bicubic", "lanczos", "hard"};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (int f = 0; f < 4; f++) {
            const int *z = sizes[i];
            char what[80];
            snprintf(what, sizeof what, "resize-%d-%d-%d-%d-%s", z[0], z[1], z[2], z[3], names[f]);
            Image *image = made(z[0], z[1], f == 3);
            check_image(what, image_resize(image, z[2], z[3], f == 3 ? RESIZE_LANCZOS : (Resize)f));
            image_free(image);
        }
    static const int squares[][3] = {{37, 23, 16},  {23, 37, 16}, {40, 40, 16}, {100, 75, 64},
                                     {101, 75, 75}, {64, 67, 64}, {64, 69, 64}, {67, 64, 64}};
    for (size_t i = 0; i < sizeof squares / sizeof squares[0]; i++) {
        char what[80];
        snprintf(what, sizeof what, "square-%d-%d-%d", squares[i][0], squares[i][1], squares[i][2]);
        Image *image = made(squares[i][0], squares[i][1], false);
        check_image(what, image_center_square(image, squares[i][2], RESIZE_BILINEAR));
        image_free(image);
    }
    Image *image = made(10, 10, false);
    CHECK_DIES("no width", "1 to", image_resize(image, 0, 5, RESIZE_BICUBIC));
    CHECK_DIES("a crop outside", "cannot cut", image_crop(image, 5, 5, 6, 5));
    CHECK_DIES("a crop from outside", "cannot cut", image_crop(image, -1, 5, 5, 5));
    image_free(image);
}

// ---- writing ---------------------------------------------------------------------------------------------

static void check_text(const char *what, const char *path, const char *want) {
    char *text = image_png_parameters(path);
    check(want ? text && !strcmp(text, want) : !text, what);
    free(text);
}

static void test_writing(void) {
    Image *image = made(29, 13, false);
    static const struct {
        const char *file, *text;
    } cases[] = {{"written.png", NULL},
                 {"written-latin1.png", "a caf\xc3\xa9\nSteps: 20, Size: 29x13"},
                 {"written-utf8.png", "a \xe7\x8c\xab\nSteps: 20"}};
    for (int i = 0; i < 3; i++) {
        image_save_png(in_folder(cases[i].file), image, cases[i].text);
        Image *back = image_load(in_folder(cases[i].file));
        check(back->width == 29 && back->height == 13 && !memcmp(back->rgb, image->rgb, 29 * 13 * 3),
              "a PNG comes back as it was");
        image_free(back);
        check_text("and its parameters", in_folder(cases[i].file), cases[i].text);
    }
    size_t n, m;
    image_save_png(in_folder("again.png"), image, cases[2].text);
    char *a = read_file(in_folder("again.png"), &n), *b = read_file(in_folder("written-utf8.png"), &m);
    check(n == m && !memcmp(a, b, n), "the same picture makes the same bytes");
    check(memmem(a, n, "iTXt", 4) && !memmem(a, n, "tEXt", 4), "iTXt beyond Latin-1");
    free(a), free(b);
    a = read_file(in_folder("written-latin1.png"), &n);
    check(memmem(a, n, "tEXt", 4) && !memmem(a, n, "iTXt", 4), "tEXt within Latin-1");
    free(a);
    image_free(image);
    image = made(1, 1, false);
    image_save_png(in_folder("one.png"), image, "");
    check_text("empty parameters", in_folder("one.png"), "");
    CHECK_DIES("a folder that is not there", "cannot write",
               image_save_png(in_folder("no/one.png"), image, ""));
    image_free(image);
}

static void test_parameters(void) { // as PIL writes them
    char packed[1000] = "", packed_utf8[1000] = "";
    for (int i = 0; i < 50; i++)
        strcat(packed, "packed \xc3\xa9 "), strcat(packed_utf8, "packed \xe7\x8c\xab ");
    check_text("tEXt", FIXTURES "latin1.png", "a caf\xc3\xa9, 20 steps\nSteps: 20");
    check_text("iTXt", FIXTURES "utf8.png", "a \xe7\x8c\xab\nSteps: 20");
    check_text("zTXt", FIXTURES "packed.png", packed);
    check_text("compressed iTXt", FIXTURES "packed-utf8.png", packed_utf8);
    check_text("none", FIXTURES "rgb.png", NULL);
    check_text("none in a JPEG", FIXTURES "gray.jpg", NULL);
    size_t n;
    char *png = read_file(FIXTURES "utf8.png", &n);
    const char *path = write_bytes("cut.png", png, 60);
    CHECK_DIES("cut short", "cut.png: it is cut short", image_png_parameters(path));
    free(png);
}

int main(void) {
    folder_begin();
    test_reading();
    test_damage();
    test_resizing();
    test_writing();
    test_parameters();
    test_orientation();
    folder_end();
    return test_report();
}
