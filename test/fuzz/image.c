// image.c: any bytes as a JPEG or PNG. Built with -fno-sanitize=shift,signed-integer-overflow: on invalid
// data stb's JPEG decoder shifts too far and overflows, which gives a wrong pixel or an error. It must not
// leave its memory.
#include "lib/io/image.c"
#include "fuzz.h"
#include "png.h"

static void fuzz_one(unsigned char *data, size_t size) {
    mend_png(data, size);
    // Large sizes only cost time: the checks before the decoder are the same.
    Claims claims = {0};
    if (is_png(data, size))
        check_png(data, size, &claims);
    else if (size >= 3 && !memcmp(data, "\xff\xd8\xff", 3))
        check_jpeg(data, size, &claims);
    if (claims.height && claims.width > 200000 / claims.height) return;
    bool differs;
    Image *image = NULL;
    const char *reason = decode(data, size, &image, size % 2 ? &differs : NULL); // to measure, to look at
    if (!image == !reason) abort();
    if (!image) return;
    unsigned sum = 0;
    for (size_t i = 0; i < 3 * (size_t)image->width * (size_t)image->height; i++) sum += image->rgb[i];
    volatile unsigned sink = sum;
    (void)sink;
    int w = 1 + data[size / 2] % 32, h = 1 + data[size / 3] % 32;
    image_free(image_resize(image, w, h, (Resize)(data[size - 1] % 3)));
    image_free(image);
}
