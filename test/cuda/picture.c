// picture.c A.png B.png [MOST]: two pictures of the same size whose 8-bit values differ by at most MOST (1).
// test/cuda/model.sh compares two backends with it.
#include "lib/io/io.h"
#include "test/test.h"

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    Image *a = image_load(argv[1]), *b = image_load(argv[2]);
    int most = argc > 3 ? atoi(argv[3]) : 1, worst = 0, differ = 0, low = 255, high = 0;
    check(a->width == b->width && a->height == b->height, "the size is the same");
    if (tests_failed) return test_report();
    for (int i = 0; i < 3 * a->width * a->height; i++) {
        int d = abs(a->rgb[i] - b->rgb[i]);
        if (d > worst) worst = d;               // whole numbers
        if (a->rgb[i] < low) low = a->rgb[i];   // whole numbers
        if (a->rgb[i] > high) high = a->rgb[i]; // whole numbers
        differ += d != 0;
    }
    printf("%d x %d pixels, values %d to %d: %d of them differ, by at most %d\n", a->width, a->height, low,
           high, differ, worst);
    check(worst <= most, "the pictures are the same");
    check(high - low > 30, "the picture shows something");
    image_free(a), image_free(b);
    return test_report();
}
