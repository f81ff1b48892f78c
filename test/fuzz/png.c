// png.c: any bytes as a PNG with parameters.
#include "lib/io/image.c"
#include "fuzz.h"
#include "png.h"

static void fuzz_one(unsigned char *data, size_t size) {
    mend_png(data, size);
    char *text = find_parameters("x", data, size);
    volatile size_t length = text ? strlen(text) : 0;
    (void)length;
    free(text);
}
