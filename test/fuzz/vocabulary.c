// vocabulary.c: any bytes as tokenizer.json (or vocab.json of the fixtures beside), tokenizer_config.json,
// special_tokens_map.json, added_tokens.json and a prompt, with bytes 0xff between them.
#include "fuzz.h"
#include "folder.h"
#include "lib/io/io.h"

static void fuzz_one(unsigned char *data, size_t size) {
    static const char *const files[] = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                        "added_tokens.json"};
    static const char *const fixed[] = {"vocab.json", "merges.txt"};
    for (int i = 0; i < 2; i++) {
        size_t bytes;
        char *from = format("test/fixtures/tokenizer_small/%s", fixed[i]), *text = read_file(from, &bytes);
        fuzz_write(fixed[i], text, bytes);
        free(from), free(text);
    }
    for (int i = 0; i < 4; i++) {
        size_t length;
        unsigned char *piece = fuzz_piece(&data, &size, &length);
        if (length)
            fuzz_write(files[i], piece, length);
        else
            unlink(fuzz_path(files[i]));
    }
    char *text = xmalloc(size + 1);
    memcpy(text, data, size), text[size] = 0;
    Tokenizer *t = tokenizer_open(fuzz_path(""));
    int max = tokenizer_max_length(t), *ids = xmalloc((size_t)max * sizeof *ids);
    long cut;
    int n = tokenizer_encode(t, text, ids, max, &cut);
    if (n < 2 || n > max) abort();
    free(ids), free(text);
    tokenizer_close(t);
}
