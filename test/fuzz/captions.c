// captions.c: any bytes as each layout of captions; the first byte chooses.
#include "fuzz.h"
#include "folder.h"
#include "lib/io/io.h"

static void fuzz_one(unsigned char *data, size_t size) {
    static const char *const lists[] = {"captions.txt", "Flickr8k.token.txt", "results.csv", "dataset.json"};
    if (!size) return;
    for (int i = 0; i < 4; i++) unlink(fuzz_path(lists[i]));
    fuzz_write("a.png", "", 0), fuzz_write("b.png", "", 0);
    fuzz_write(lists[data[0] % 4], data + 1, size - 1);
    Dataset *d = dataset_open(fuzz_path(""));
    for (size_t i = 0; i < d->count; i++) {
        const Sample *s = &d->samples[i];
        if (!s->path || !s->name || s->caption_count < 1) abort();
        for (int k = 0; k < s->caption_count; k++)
            if (!*s->captions[k]) abort();
    }
    dataset_choose(d, (DatasetPart)(size % 3), 1);
    dataset_close(d);
}
