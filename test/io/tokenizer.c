// tokenizer.c (test): CLIP's tokenizer against transformers' CLIPTokenizer, on hard strings: with a small
// vocabulary always, with CLIP's own where it is available. test/python/make_tokenizer.py made the expected
// ids. The Unicode tables need no test: test/python/make_unicode.py reads them from the library itself.
#define _POSIX_C_SOURCE 200809L
#include "lib/io/io.h"
#include "lib/io/unicode.h"
#include "test/test.h"

#include <setjmp.h>
#include <unistd.h>

static const char CLIP[] = "../shared/data/clip", CAPTIONS[] = "../shared/data/flickr8k/captions.txt";
static const char SMALL[] = "test/fixtures/tokenizer_small", SAVED[] = "test/fixtures/tokenizer_saved";
static const char TEXT[] = "test/fixtures/tokenizer_text.txt";

static jmp_buf on_die;
static char message[1024];
static char folder[64]; // for what the tests write

static void keep_message(const char *text) {
    snprintf(message, sizeof message, "%s", text);
    longjmp(on_die, 1);
}

static void write_file(const char *name, const char *text) {
    char *path = format("%s/%s", folder, name);
    Output *o = output_open(path);
    output_write(o, text, strlen(text));
    output_commit(o);
    free(path);
}

static void remove_files(void) {
    static const char *const names[] = {"vocab.json",
                                        "merges.txt",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "bpe_simple_vocab_16e6.txt",
                                        "tokenizer.json",
                                        "added_tokens.json"};
    for (int i = 0; i < 7; i++) {
        char *path = format("%s/%s", folder, names[i]);
        unlink(path);
        free(path);
    }
}

// A row of a fixture: [text, ids without start and end, where it was cut or -1].
static bool row_agrees(const Tokenizer *t, const Json *row) {
    int ids[256], max = tokenizer_max_length(t);
    long cut_at, cut_wanted = row->length > 2 ? (long)row->items[2].number : -1;
    const Json *want = &row->items[1];
    int n = tokenizer_encode(t, row->items[0].string, ids, max, &cut_at);
    bool same = n == (int)want->length + 2 && ids[0] == tokenizer_start(t) && ids[n - 1] == tokenizer_end(t);
    for (int i = 0; same && i < n - 2; i++) same = ids[i + 1] == (int)want->items[i].number;
    if (row->length > 2) same &= cut_at == cut_wanted;
    if (!same) {
        printf("text: %s\n  expected:", row->items[0].string);
        for (size_t i = 0; i < want->length; i++) printf(" %d", (int)want->items[i].number);
        printf(", cut at %ld\n  found:   ", cut_wanted);
        for (int i = 1; i < n - 1; i++) printf(" %d", ids[i]);
        printf(", cut at %ld\n", cut_at);
    }
    return same;
}

static void check_rows(const Tokenizer *t, const Json *rows, const char *what) {
    size_t agree = 0;
    for (size_t i = 0; i < rows->length; i++) agree += row_agrees(t, &rows->items[i]);
    char text[200];
    snprintf(text, sizeof text, "%zu of %zu %s have the ids of CLIPTokenizer", agree, rows->length, what);
    printf("%s\n", text);
    check(agree == rows->length && rows->length > 0, text);
}

static void test_small(void) {
    Tokenizer *t = tokenizer_open(SMALL);
    Json *fixture = json_load("test/fixtures/tokenizer_small.json");
    check(tokenizer_max_length(t) == 32 && tokenizer_start(t) == 638 && tokenizer_end(t) == 639 &&
              tokenizer_pad(t) == 639,
          "the small vocabulary's length and special tokens");
    check_rows(t, json_get(fixture, "cases"), "hard strings with a small vocabulary");
    json_free(fixture);
    tokenizer_close(t);
}

static uint64_t fnv(uint64_t hash, const int *ids, int n) {
    for (int i = 0; i < n; i++) hash = (hash ^ (uint64_t)ids[i]) * 0x100000001b3;
    return hash;
}

static void test_clip(void) {
    char *zipped = format("%s/bpe_simple_vocab_16e6.txt.gz", CLIP);
    if (!file_exists(zipped))
        skip("CLIP's own vocabulary", "its merges are not at hand (../shared/data/clip)");
    else {
        double started = seconds();
        Tokenizer *t = tokenizer_open(CLIP);
        printf("CLIP's merge list opened in %.0f ms\n", 1e3 * (seconds() - started));
        Json *fixture = json_load("test/fixtures/tokenizer_clip.json");
        check(tokenizer_max_length(t) == 77 && tokenizer_start(t) == 49406 && tokenizer_end(t) == 49407,
              "CLIP's own ids");
        check_rows(t, json_get(fixture, "cases"), "hard strings with CLIP's vocabulary");
        int ids[8];
        check(tokenizer_encode(t, "a a a a a a a", ids, 5, NULL) == 5 && ids[3] == 320 && ids[4] == 49407,
              "a shorter limit");
        check(tokenizer_encode(t, "a", ids, 2, NULL) == 2 && ids[0] == 49406 && ids[1] == 49407,
              "the shortest limit");

        if (!file_exists(CAPTIONS))
            skip("3,000 captions", "they are not at hand (../shared/data/flickr8k)");
        else {
            size_t bytes, lines = 0;
            char *text = read_file(CAPTIONS, &bytes);
            uint64_t hash = 0xcbf29ce484222325;
            int caption_ids[77];
            started = seconds();
            strtok(text, "\n"); // the header
            for (char *line; (line = strtok(NULL, "\n")); lines++)
                hash =
                    fnv(hash, caption_ids, tokenizer_encode(t, strchr(line, ',') + 1, caption_ids, 77, NULL));
            printf("%zu captions in %.0f ms\n", lines, 1e3 * (seconds() - started));
            char *hex = format("%016llx", (unsigned long long)hash);
            check(!strcmp(hex, json_get_string(fixture, "captions_fnv", "")),
                  "3,000 captions have the ids of CLIPTokenizer");
            free(hex), free(text);
        }
        tokenizer_close(t);

        // The same merges with the released model's configuration, which finds the start token in upper and
        // lower case.
        size_t bytes, count;
        char *gz = read_file(zipped, &bytes),
             *list = (char *)inflate_gzip((unsigned char *)gz, bytes, &count);
        list = xrealloc(list, count + 1), list[count] = 0;
        static const char token[] =
            "{\"content\": \"<|%softext|>\", \"lstrip\": false, \"normalized\": true}";
        char *start = format(token, "start"), *end = format(token, "end");
        char *map = format(
            "{\"bos_token\": %s, \"eos_token\": %s, \"unk_token\": %s, \"pad_token\": \"<|endoftext|>\"}",
            start, end, end);
        write_file("bpe_simple_vocab_16e6.txt", list);
        write_file("special_tokens_map.json", map);
        t = tokenizer_open(folder);
        check_rows(t, json_get(fixture, "released"),
                   "strings with special tokens and the released configuration");
        tokenizer_close(t);
        remove_files();
        free(gz), free(list), free(start), free(end), free(map);
        json_free(fixture);
    }
    free(zipped);
}

static bool same_file(const char *name) {
    char *made = format("%s/%s", folder, name), *wanted = format("%s/%s", SMALL, name);
    size_t a, b;
    char *x = read_file(made, &a), *y = read_file(wanted, &b);
    bool same = a == b && !memcmp(x, y, a);
    free(made), free(wanted), free(x), free(y);
    return same;
}

// Trained merges against those of a simple trainer in Python; and a vocabulary of bytes alone.
static void test_train(void) {
    size_t bytes, count = 0;
    char *text = read_file(TEXT, &bytes), *lines[64];
    for (char *line = strtok(text, "\n"); line && count < 64; line = strtok(NULL, "\n"))
        lines[count++] = line;
    tokenizer_train(folder, (const char *const *)lines, count, 640, 32);
    check(same_file("merges.txt"), "training finds the merges of the plain trainer, in its order");
    char *made_path = format("%s/vocab.json", folder), *wanted_path = format("%s/vocab.json", SMALL);
    Json *made = json_load(made_path), *wanted = json_load(wanted_path);
    size_t same = 0;
    for (size_t i = 0; i < made->length && i < wanted->length; i++)
        same += !strcmp(made->items[i].key, wanted->items[i].key) &&
                made->items[i].number == wanted->items[i].number;
    check(same == 640 && made->length == 640 && wanted->length == 640, "and its vocabulary");
    json_free(made), json_free(wanted);
    free(made_path), free(wanted_path);
    Tokenizer *t = tokenizer_open(folder);
    Json *fixture = json_load("test/fixtures/tokenizer_small.json");
    check_rows(t, json_get(fixture, "cases"), "hard strings with the trained vocabulary");
    json_free(fixture);
    tokenizer_close(t);

    if (!setjmp(on_die)) {
        tokenizer_train(folder, (const char *const *)lines, 1, 2000, 32);
        check(false, "a text too small for the vocabulary is refused");
    } else
        check(strstr(message, "the texts give a vocabulary of") && strstr(message, "expected 2000"), message);

    tokenizer_train(folder, NULL, 0, 514, 77);
    t = tokenizer_open(folder);
    int ids[77], n = tokenizer_encode(t, "A \xc3\xa9!", ids, 77, NULL);
    // 94 visible ASCII characters come first, then 12 from 161 on, then those from 174 on.
    const int want[] = {512, 256 + 'a' - '!', 94 + 12 + 0xc3 - 174, 256 + 94 + 0xa9 - 161, 256, 513};
    check(n == 6 && !memcmp(ids, want, sizeof want), "bytes alone, in CLIP's order");
    tokenizer_close(t);
    remove_files();
    free(text);
}

static void check_open_dies(const char *reason) {
    if (!setjmp(on_die)) {
        Tokenizer *t = tokenizer_open(folder);
        tokenizer_close(t);
        snprintf(message, sizeof message, "it opened");
    }
    bool right = strstr(message, reason) != NULL;
    if (!right) printf("found: %s\n", message);
    check(right, reason);
}

static void test_bad_files(void) {
    static const char vocab[] =
        "{\"a\": 0, \"b</w>\": 1, \"ab</w>\": 2, \"<|startoftext|>\": 3, \"<|endoftext|>\": 4}";
    check_open_dies("expected vocab.json with merges.txt, or bpe_simple_vocab_16e6.txt[.gz]");
    write_file("vocab.json", "[1]");
    check_open_dies("vocab.json: expected an object of tokens and ids");
    write_file("vocab.json", "{\"a\": 0.5}");
    check_open_dies("the id of \"a\" is not a whole number");
    write_file("vocab.json", "{\"a\": -1}");
    check_open_dies("the id of \"a\" is not a whole number");
    write_file("vocab.json", "{\"a\": 1}");
    check_open_dies("bos_token is \"<|startoftext|>\", which is not in the vocabulary");
    write_file("vocab.json", vocab);
    check_open_dies("merges.txt");
    write_file("merges.txt", "#version: 0.2\na b</w>\nab\n");
    check_open_dies("merges.txt: line 3: expected two tokens with a blank between them, found \"ab\"");
    write_file("merges.txt", "a c\n");
    check_open_dies("merges.txt: line 1: the token \"c\" is not in the vocabulary");
    write_file("merges.txt", "#version: 0.2\r\na b</w>\r\n\r\n");
    write_file("tokenizer_config.json", "{\"model_max_length\": \"77\"}");
    check_open_dies("\"model_max_length\" is a string, expected a number");
    write_file("tokenizer_config.json",
               "{\"pad_token\": {\"content\": \"<|endoftext|>\", \"lstrip\": true}}");
    check_open_dies("\"lstrip\" is true, which is not supported");
    write_file("tokenizer_config.json", "{\"pad_token\": \"a\", \"model_max_length\": 1e30}");
    if (setjmp(on_die))
        check(false, message);
    else {
        Tokenizer *t = tokenizer_open(folder);
        int ids[77], n = tokenizer_encode(t, "xab", ids, 77, NULL); // "a" is special as the pad token
        check(n == 5 && ids[1] == 4 && ids[2] == 0 && ids[3] == 1,
              "a byte that the vocabulary lacks becomes the unknown token");
        check(tokenizer_pad(t) == 0 && tokenizer_max_length(t) == 77,
              "a pad token of its own; no limit means 77");
        if (!setjmp(on_die)) {
            tokenizer_encode(t, "ab\xff", ids, 77, NULL);
            check(false, "broken UTF-8 is refused");
        } else
            check(!strcmp(message, "the text is not valid UTF-8: byte 2 is 0xff"), message);
        tokenizer_close(t);
    }
    remove_files();
}

// The folder becomes the small tokenizer as transformers 5 saves it, with `from` replaced by `to` in
// tokenizer.json.
static void write_saved(const char *from, const char *to) {
    char *path = format("%s/tokenizer.json", SAVED), *text = read_file(path, NULL), *at = strstr(text, from);
    if (!at) printf("%s has no %s\n", path, from), exit(1);
    char *changed = format("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    write_file("tokenizer.json", changed);
    free(path), free(text), free(changed);
}

static bool has_ids(const char *text, const int *want, int count) {
    if (setjmp(on_die)) {
        puts(message);
        return false;
    }
    int ids[77];
    Tokenizer *t = tokenizer_open(folder);
    bool same =
        tokenizer_encode(t, text, ids, 77, NULL) == count + 2 && !memcmp(ids + 1, want, (size_t)count * 4);
    tokenizer_close(t);
    return same;
}

static void test_saved(void) {
    static const char *const rows[] = {"tokenizer_small.json", "tokenizer_saved.json"};
    Tokenizer *t = tokenizer_open(SAVED);
    for (int i = 0; i < 2; i++) {
        char *path = format("test/fixtures/%s", rows[i]);
        Json *fixture = json_load(path);
        check_rows(t, json_get(fixture, "cases"),
                   i ? "strings with a learnt token" : "hard strings, saved anew,");
        json_free(fixture), free(path);
    }
    check(tokenizer_last(t) == 640 && tokenizer_end(t) == 639 && tokenizer_max_length(t) == 32,
          "its length, and the learnt token behind the others");
    tokenizer_close(t);

    static const char pair[] = "[\"t\",\"h\"]";
    write_saved(pair, "\"t h\"");
    check(has_ids("a <cat-toy>", (int[]){320, 640}, 2), "a merge as a string");
    // Learnt tokens beside the older files: any case where they are not special. A decoder counts alone.
    write_file("added_tokens.json", "{\"<y>\": 642, \"<x>\": 641}");
    check(has_ids("<X><y>", (int[]){641, 642}, 2), "added_tokens.json beside tokenizer.json");
    write_file("tokenizer_config.json", "{\"extra_special_tokens\": [\"<z>\"]}");
    check(has_ids("<z><x>", (int[]){643, 641}, 2), "one more special token");
    write_file("tokenizer_config.json", "{\"added_tokens_decoder\": {\"640\": {\"content\": \"<x>\"}}}");
    check(has_ids("<x><x>", (int[]){640, 640}, 2), "added_tokens_decoder");
    remove_files();
    write_file("vocab.json", "{\"a\": 0, \"a</w>\": 1, \"<|startoftext|>\": 2, \"<|endoftext|>\": 3}");
    write_file("merges.txt", "#version: 0.2\n");
    write_file("added_tokens.json", "{\"<x>\": 4}");
    check(has_ids("a<X>aa", (int[]){1, 4, 0, 1}, 4), "added_tokens.json beside vocab.json");
    write_file("added_tokens.json", "{\"<x>\": 5}");
    check_open_dies("the added token \"<x>\" has the id 5, expected 4");
    write_file("added_tokens.json", "{\"<x>\": 4, \"<y>\": 4}");
    check_open_dies("has the id 4, expected 5");
    write_file("added_tokens.json", "{\"<x>\": \"4\"}");
    check_open_dies("the id of \"<x>\" is not a whole number");
    write_file("added_tokens.json", "\"<x>\"");
    check_open_dies("added_tokens.json: expected an object of tokens and ids");
    write_saved("<Cat-Toy>", "<x>"); // it counts before vocab.json
    write_file("added_tokens.json", "{\"<x>\": 640}");
    check(has_ids("<x>", (int[]){640}, 1), "tokenizer.json before vocab.json");
    remove_files();
    static const char *const others[][3] = {
        {"\"type\":\"NFC\"", "\"type\":\"NFKC\"",
         "its normalizer is NFKC Replace Lowercase, expected CLIP's"},
        {"\"type\":\"Split\"", "\"type\":\"Whitespace\"", "its pre_tokenizer is Whitespace ByteLevel"},
        {"\"RobertaProcessing\"", "\"BertProcessing\"", "its post_processor is BertProcessing"},
        {"\"BPE\"", "\"Unigram\"", "its model is Unigram"},
        {pair, "[\"t\",\"h\",\"s\"]", "is neither two tokens with a blank between them nor a pair"},
        {pair, "[\"t\",\"unn\"]", "the token \"unn\" is not in the vocabulary"},
        {"\"merges\"", "\"no merges\"", "its model has no list of merges"},
        {"\"added_tokens\":", "\"added_tokens\":\"<x>\",\"\":", "\"added_tokens\": expected a list"},
        {"{", "<html>{", "is no JSON text but a web page"}};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        write_saved(others[i][0], others[i][1]);
        check_open_dies(others[i][2]);
    }
    remove_files();
}

// A long word without blanks, and a long text of combining marks out of order, take about linear time.
static void test_long(void) {
    enum { N = 400000 };
    Tokenizer *t = tokenizer_open(SMALL);
    char *text = xmalloc(2 * N + 2);
    int ids[77];
    double started = seconds();
    for (int i = 0; i < N; i++) text[i] = "theandwalkdog"[i * 7 % 13];
    text[N] = 0;
    tokenizer_encode(t, text, ids, 77, NULL);
    text[0] = 'a';
    for (int i = 0; i < N; i++)
        memcpy(text + 1 + 2 * i, i % 2 ? "\xcc\xa3" : "\xcc\x81", 2); // classes 220 and 230
    text[2 * N + 1] = 0;
    tokenizer_encode(t, text, ids, 77, NULL);
    printf("long texts: %.2f s\n", seconds() - started);
    check(seconds() - started < 20,
          "long texts without blanks take no quadratic time"); // quadratic: many minutes
    free(text);
    tokenizer_close(t);
}

int main(void) {
    die_hook = keep_message;
    snprintf(folder, sizeof folder, "/tmp/sd-test-tokenizer-%ld", (long)getpid());
    if (setjmp(on_die)) {
        check(false, message); // a message that no test expects
        return test_report();
    }
    make_directories(folder);
    test_bad_files();
    if (setjmp(on_die)) {
        check(false, message);
        return test_report();
    }
    test_small();
    test_clip();
    test_train();
    test_saved();
    if (setjmp(on_die)) {
        check(false, message);
        return test_report();
    }
    test_long();
    rmdir(folder);
    return test_report();
}
