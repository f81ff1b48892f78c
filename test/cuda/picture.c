// picture.c A.png B.png [MOST]: two pictures of the same size whose 8-bit values differ by at most MOST (1).
// test/cuda/model.sh compares two backends with it. picture latents A B LIMIT: the latents of two files that
// `sd sample --dump` wrote; the root mean square of their difference is at most LIMIT of A's.
#include "lib/io/io.h"
#include "test/test.h"

static int compare_latents(const char *a, const char *b, double limit) {
    Store *first = store_open(a), *second = store_open(b);
    const Stored *x = store_find(first, "latents"), *y = store_find(second, "latents");
    if (!x || !y || x->count != y->count) return 2;
    float *want = store_floats(x, a), *got = store_floats(y, b);
    double difference = 0, size = 0;
    for (size_t i = 0; i < x->count; i++) {
        double d = (double)got[i] - (double)want[i];
        difference += d * d, size += (double)want[i] * (double)want[i];
    }
    double share = sqrt(difference / size);
    printf("latents differ by %.4f of their size, limit %.4f\n", share, limit);
    return !(share <= limit);
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    if (argc == 5 && !strcmp(argv[1], "latents")) return compare_latents(argv[2], argv[3], atof(argv[4]));
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
