// The largest difference of two pictures' values, of 255: differs A.png B.png
#include "lib/base.h"
#include "lib/io/io.h"

#include <stdlib.h>

int main(int argc, char **argv) {
    if (argc != 3) die_usage("two pictures");
    Image *a = image_load(argv[1]), *b = image_load(argv[2]);
    if (a->width != b->width || a->height != b->height) die("they are of different sizes");
    int most = 0;
    for (size_t i = 0; i < 3 * (size_t)a->width * (size_t)a->height; i++) {
        int d = abs(a->rgb[i] - b->rgb[i]);
        if (!(d <= most)) most = d;
    }
    printf("%d\n", most);
    return 0;
}
