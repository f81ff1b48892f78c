// tokenizer.c: CLIP's byte-pair encoder, from text to token ids, and the training of its merges. It does what
// transformers' CLIPTokenizer does, not what OpenAI's first tokenizer did (which also mended broken text and
// HTML).
//
//   text -> special tokens cut out -> NFC, one blank for each white space, lower case -> words
//        -> bytes -> pairs merged, the earliest merge of the list first -> ids
//
// Each byte stands in the vocabulary as a visible character, once for the inside of a word and once, with
// "</w>" behind it, for its end. Source: Sennrich et al. 2016 (byte pairs), Radford et al. 2019 (bytes,
// splitting rule).
#include "io.h"
#include "unicode.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

static const char START[] = "<|startoftext|>", END[] = "<|endoftext|>", WORD_END[] = "</w>";

typedef struct {
    int left, right; // ids; left is -1 in a free place
    int rank, result;
} Merge;

// A token that stands in the text as it is. `folded` ones are searched in lower-case text, so that any
// spelling of theirs matches (added tokens with "normalized": true), the others before that.
typedef struct {
    char *content;
    size_t length; // in bytes
    int id;
    bool folded;
    Point *points; // of a folded one: what is searched for
    size_t point_count;
} Special;

struct Tokenizer {
    int byte_id[2][256]; // of a byte within a word, at its end
    Merge *merges;       // hash table, open addressing
    size_t merge_mask;   // its size - 1
    Special *specials;
    size_t special_count;
    int start, end, pad, unknown, max_length;
};

// ---- vocabulary: a hash table from a token's text to its id, needed only while a tokenizer is made -----

typedef struct {
    const char *text; // not NUL-terminated, not owned; NULL in a free place
    size_t length;
    int id;
} Entry;

typedef struct {
    Entry *entries;
    size_t size, count; // size is a power of two
} Vocabulary;

static uint64_t hash_bytes(const char *s, size_t n) { // FNV-1a
    uint64_t h = 0xcbf29ce484222325;
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)s[i]) * 0x100000001b3;
    return h ^ h >> 32;
}

// The entry of a text, or the free place where it belongs.
static Entry *vocabulary_find(const Vocabulary *v, const char *text, size_t length) {
    for (size_t i = (size_t)hash_bytes(text, length);; i++) {
        Entry *e = &v->entries[i & (v->size - 1)];
        if (!e->text || (e->length == length && !memcmp(e->text, text, length))) return e;
    }
}

// Adds a token, or gives it another id where it is there already.
static void vocabulary_set(Vocabulary *v, const char *text, size_t length, int id) {
    if (2 * (v->count + 1) > v->size) { // at most half full, so that a search is short
        Vocabulary larger = {.size = v->size ? 2 * v->size : 1024, .count = v->count};
        larger.entries = xcalloc(larger.size, sizeof(Entry));
        for (size_t i = 0; i < v->size; i++) {
            Entry *e = &v->entries[i];
            if (e->text) *vocabulary_find(&larger, e->text, e->length) = *e;
        }
        free(v->entries);
        *v = larger;
    }
    Entry *e = vocabulary_find(v, text, length);
    if (!e->text) v->count++;
    *e = (Entry){text, length, id};
}

static int vocabulary_get(const Vocabulary *v, const char *text, size_t length) {
    const Entry *e = v->size ? vocabulary_find(v, text, length) : NULL;
    return e && e->text ? e->id : -1;
}

// The character that stands for each byte: itself where it is visible in Latin-1, else the next one from
// U+0100 on. `order` (may be NULL) becomes the order in which CLIP's vocabulary lists the bytes: the visible
// ones first.
static void byte_symbols(char symbols[256][3], unsigned char *order) {
    size_t listed = 0, moved = 0;
    for (int visible = 1; visible >= 0; visible--)
        for (int b = 0; b < 256; b++) {
            if (((b > ' ' && b < 127) || (b > 160 && b != 173)) != visible) continue;
            int length = utf8_put(symbols[b], visible ? (uint32_t)b : (uint32_t)(256 + moved++));
            symbols[b][length] = 0; // at most two bytes, so that three hold it
            if (order) order[listed++] = (unsigned char)b;
        }
}

// ---- merges --------------------------------------------------------------------------------------------

// The merge of a pair, or the free place where it belongs.
static Merge *merge_find(const Tokenizer *t, int left, int right) {
    uint64_t key = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15;
    for (size_t i = (size_t)(key >> 32);; i++) {
        Merge *m = &t->merges[i & t->merge_mask];
        if (m->left < 0 || (m->left == left && m->right == right)) return m;
    }
}

static void merges_allocate(Tokenizer *t, size_t count) {
    size_t size = 16;
    while (size < 2 * count) size *= 2;
    t->merges = xmalloc(size * sizeof *t->merges);
    t->merge_mask = size - 1;
    for (size_t i = 0; i < size; i++) t->merges[i].left = -1;
}

// A line of a merge list: "left right". Returns false where it has another form.
static bool split_merge(const char *line, size_t length, const char **right) {
    const char *blank = memchr(line, ' ', length);
    if (!blank || blank == line || blank + 1 == line + length) return false;
    *right = blank + 1;
    return !memchr(*right, ' ', (size_t)(line + length - *right));
}

// Calls for each line of a text; the line's length leaves out "\n" and "\r\n".
static const char *next_line(const char *line, const char *text_end, size_t *length) {
    const char *newline = memchr(line, '\n', (size_t)(text_end - line));
    const char *end = newline ? newline : text_end;
    *length = (size_t)(end - line);
    if (*length && end[-1] == '\r') --*length;
    return newline ? newline + 1 : text_end;
}

// Reads the merges of a list, at most `limit`, whose tokens must all be in the vocabulary.
static void read_merges(Tokenizer *t, const Vocabulary *v, const char *text, size_t bytes, size_t limit,
                        const char *path) {
    size_t lines = 1, length, number = 0, rank = 0;
    for (size_t i = 0; i < bytes; i++) lines += text[i] == '\n';
    merges_allocate(t, lines < limit ? lines : limit);
    char *joined = xmalloc(bytes);
    for (const char *line = text, *next; line < text + bytes && rank < limit; line = next) {
        next = next_line(line, text + bytes, &length);
        number++;
        if (length == 0 || (length >= 8 && !memcmp(line, "#version", 8)) || (number == 1 && *line == '"'))
            continue;
        const char *right;
        if (!split_merge(line, length, &right))
            die("%s: line %zu: expected two tokens with a blank between them, found \"%.*s\"", path, number,
                length < 80 ? (int)length : 80, line);
        size_t left_length = (size_t)(right - 1 - line), right_length = length - left_length - 1;
        memcpy(joined, line, left_length);
        memcpy(joined + left_length, right, right_length);
        int a = vocabulary_get(v, line, left_length), b = vocabulary_get(v, right, right_length);
        int result = vocabulary_get(v, joined, length - 1);
        if (a < 0 || b < 0 || result < 0) {
            const char *missing = a < 0 ? line : b < 0 ? right : joined;
            size_t n = a < 0 ? left_length : b < 0 ? right_length : length - 1;
            die("%s: line %zu: the token \"%.*s\" is not in the vocabulary", path, number,
                n < 80 ? (int)n : 80, missing);
        }
        *merge_find(t, a, b) = (Merge){a, b, (int)rank++, result};
    }
    free(joined);
}

// ---- special tokens ------------------------------------------------------------------------------------

// Adds a special token, or changes one: of several that read the same, the last one counts.
static void add_special(Tokenizer *t, const char *content, size_t length, int id, bool folded) {
    if (!length) return;
    Special *s = NULL;
    for (size_t i = 0; i < t->special_count; i++)
        if (t->specials[i].length == length && !memcmp(t->specials[i].content, content, length))
            s = &t->specials[i];
    if (!s) {
        t->specials = xrealloc(t->specials, (t->special_count + 1) * sizeof *t->specials);
        s = &t->specials[t->special_count++];
        *s = (Special){.content = memcpy(xmalloc(length), content, length), .length = length};
        s->points = unicode_normalize(content, length, 0, &s->point_count);
    }
    s->id = id;
    s->folded = folded;
}

// ---- from text to words --------------------------------------------------------------------------------

typedef struct {
    int special;         // id of a special token, or -1:
    size_t first, count; // a word's characters in Words.points
    size_t at;           // where it began in the text
} Word;

typedef struct {
    Point *points;
    Word *words;
    size_t point_count, word_count, word_capacity;
} Words;

static void add_word(Words *w, Word word) {
    if (w->word_count == w->word_capacity) {
        w->word_capacity = w->word_capacity ? 2 * w->word_capacity : 64;
        w->words = xrealloc(w->words, w->word_capacity * sizeof *w->words);
    }
    w->words[w->word_count++] = word;
}

static bool points_start_with(const Point *p, size_t n, const char *ascii) {
    size_t i = 0;
    while (ascii[i] && i < n && p[i].point == (unsigned char)ascii[i]) i++;
    return !ascii[i];
}

// Length of the word at p. The rule is the regular expression
//   <|startoftext|>|<|endoftext|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+
// where the first alternative that matches counts. 0: a blank, which belongs to no word.
static size_t word_length(const Point *p, size_t n) {
    static const char *const contractions[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    for (size_t i = 0; p->point == '\'' && i < 7; i++)
        if (points_start_with(p, n, contractions[i])) return strlen(contractions[i]);
    size_t length = 0;
    if (unicode_is_number(p->point)) return 1;
    if (unicode_is_letter(p->point)) {
        while (length < n && unicode_is_letter(p[length].point)) length++;
        return length;
    }
    while (length < n && !unicode_is_blank(p[length].point) && !unicode_is_letter(p[length].point) &&
           !unicode_is_number(p[length].point))
        length++;
    return length;
}

// Splits p[first .. end) into words. A second expression runs over the words of the first one; the only words
// it changes are "<|startoftext|>" and "<|endoftext|>" (where they are not special): "<|", the letters, "|>".
static void split_words(Words *w, size_t first, size_t end) {
    while (first < end) {
        const Point *p = w->points + first;
        bool whole = points_start_with(p, end - first, START) || points_start_with(p, end - first, END);
        size_t length = whole ? 2 : word_length(p, end - first);
        if (length) add_word(w, (Word){-1, first, length, p->at});
        first += length ? length : 1;
        if (!whole) continue;
        length = word_length(w->points + first, end - first);
        add_word(w, (Word){-1, first, length, w->points[first].at});
        first += length;
        add_word(w, (Word){-1, first, 2, w->points[first].at});
        first += 2;
    }
}

// A piece of the text without special tokens of the unfolded kind: normalise, cut out the folded ones, split.
static void split_piece(const Tokenizer *t, Words *w, const char *text, size_t bytes, size_t start) {
    size_t n;
    Point *points = unicode_normalize(text, bytes, start, &n);
    size_t i = w->point_count, plain = i, end = i + n;
    w->points = xrealloc(w->points, end * sizeof *w->points);
    memcpy(w->points + i, points, n * sizeof *points);
    w->point_count = end;
    free(points);
    while (i < end) {
        const Special *found = NULL;
        for (size_t k = 0; k < t->special_count; k++) {
            const Special *s = &t->specials[k];
            size_t same = 0;
            if (!s->folded || s->point_count > end - i || (found && found->point_count >= s->point_count))
                continue;
            while (same < s->point_count && w->points[i + same].point == s->points[same].point) same++;
            if (same == s->point_count) found = s;
        }
        if (!found) {
            i++;
            continue;
        }
        split_words(w, plain, i);
        add_word(w, (Word){.special = found->id, .at = w->points[i].at});
        plain = i += found->point_count;
    }
    split_words(w, plain, end);
}

static Words split_text(const Tokenizer *t, const char *text, size_t bytes) {
    Words w = {0};
    size_t plain = 0;
    for (size_t i = 0; i < bytes;) {
        const Special *found = NULL;
        for (size_t k = 0; k < t->special_count; k++) {
            const Special *s = &t->specials[k];
            if (!s->folded && text[i] == *s->content && s->length <= bytes - i &&
                !memcmp(text + i, s->content, s->length) && (!found || found->length < s->length))
                found = s;
        }
        if (!found) {
            i++;
            continue;
        }
        if (plain < i) split_piece(t, &w, text + plain, i - plain, plain);
        add_word(&w, (Word){.special = found->id, .at = i});
        plain = i += found->length;
    }
    if (plain < bytes) split_piece(t, &w, text + plain, bytes - plain, plain);
    return w;
}

static void words_free(Words *w) { free(w->points), free(w->words); }

// ---- from a word to tokens -----------------------------------------------------------------------------

typedef struct {
    int id;             // -1: merged into the one before
    int previous, next; // -1 at the ends
    size_t at;
} Symbol;

// A heap of merges that wait: rank << 32 | place, so that the smallest is the earliest merge, leftmost first.
// It keeps a long word (a hostile prompt without blanks) from taking quadratic time.
typedef struct {
    uint64_t *keys;
    size_t count;
} Heap;

static void heap_push(Heap *h, uint64_t key) {
    size_t i = h->count++;
    for (; i > 0 && h->keys[(i - 1) / 2] > key; i = (i - 1) / 2) h->keys[i] = h->keys[(i - 1) / 2];
    h->keys[i] = key;
}

static uint64_t heap_pop(Heap *h) {
    uint64_t top = h->keys[0], key = h->keys[--h->count];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < h->count; i = child) {
        if (child + 1 < h->count && h->keys[child + 1] < h->keys[child]) child++;
        if (h->keys[child] >= key) break;
        h->keys[i] = h->keys[child];
    }
    h->keys[i] = key;
    return top;
}

static const Merge *merge_at(const Tokenizer *t, const Symbol *symbols, int i) {
    if (i < 0 || symbols[i].id < 0 || symbols[i].next < 0) return NULL;
    const Merge *m = merge_find(t, symbols[i].id, symbols[symbols[i].next].id);
    return m->left < 0 ? NULL : m;
}

static void heap_offer(Heap *h, const Tokenizer *t, const Symbol *symbols, int i) {
    const Merge *m = merge_at(t, symbols, i);
    if (m) heap_push(h, (uint64_t)m->rank << 32 | (uint32_t)i);
}

// Turns n symbols into tokens; those that are left have id >= 0. `heap` has room for 3 n keys.
static void merge_symbols(const Tokenizer *t, Symbol *symbols, int n, Heap *heap) {
    heap->count = 0;
    for (int i = 0; i < n; i++) {
        symbols[i].previous = i - 1;
        symbols[i].next = i + 1 < n ? i + 1 : -1;
    }
    for (int i = 0; i + 1 < n; i++) heap_offer(heap, t, symbols, i);
    while (heap->count) {
        uint64_t key = heap_pop(heap);
        int i = (int)(uint32_t)key;
        const Merge *m = merge_at(t, symbols, i);
        if (!m || (uint64_t)m->rank != key >> 32) continue; // a neighbour has changed since
        int gone = symbols[i].next;
        symbols[i].id = m->result;
        symbols[i].next = symbols[gone].next;
        symbols[gone].id = -1;
        if (symbols[i].next >= 0) symbols[symbols[i].next].previous = i;
        heap_offer(heap, t, symbols, symbols[i].previous);
        heap_offer(heap, t, symbols, i);
    }
}

int tokenizer_encode(const Tokenizer *t, const char *text, int *ids, int max_length, long *cut_at) {
    size_t bytes = strlen(text), bad_at = 0;
    if (max_length < 2) die("a text of at most %d tokens was asked for, expected at least 2", max_length);
    if (!utf8_valid(text, bytes, &bad_at))
        die("the text is not valid UTF-8: byte %zu is 0x%02x", bad_at, (unsigned char)text[bad_at]);
    if (bytes > INT_MAX / 16) die("the text has %zu bytes, expected at most %d", bytes, INT_MAX / 16);

    Words w = split_text(t, text, bytes);
    size_t longest = 1; // a special token takes one symbol
    for (size_t i = 0; i < w.word_count; i++)
        if (w.words[i].count > longest) longest = w.words[i].count;
    Symbol *symbols = xmalloc(4 * longest * sizeof *symbols); // a character has at most 4 bytes
    Heap heap = {.keys = xmalloc(3 * 4 * longest * sizeof *heap.keys)};
    long cut = -1;
    int count = 1;
    ids[0] = t->start;
    for (size_t i = 0; i < w.word_count && cut < 0; i++) {
        const Word *word = &w.words[i];
        int n = 0;
        for (size_t k = word->first; k < word->first + word->count; k++) {
            char utf8[4];
            int length = utf8_put(utf8, w.points[k].point);
            for (int b = 0; b < length; b++)
                symbols[n++] = (Symbol){.id = t->byte_id[0][(unsigned char)utf8[b]], .at = w.points[k].at};
            if (k + 1 == word->first + word->count)
                symbols[n - 1].id = t->byte_id[1][(unsigned char)utf8[length - 1]];
        }
        if (word->special >= 0)
            symbols[n++] = (Symbol){.id = word->special, .at = word->at};
        else
            merge_symbols(t, symbols, n, &heap);
        for (int k = 0; k < n && cut < 0; k++) {
            if (symbols[k].id < 0) continue;
            if (count < max_length - 1)
                ids[count++] = symbols[k].id;
            else
                cut = (long)symbols[k].at;
        }
    }
    ids[count++] = t->end;
    free(symbols), free(heap.keys);
    words_free(&w);
    if (cut_at) *cut_at = cut;
    return count;
}

// ---- opening -------------------------------------------------------------------------------------------

// Ids of the 512 byte tokens. One that the vocabulary lacks is the unknown token wherever it comes up.
static void find_bytes(Tokenizer *t, const Vocabulary *v) {
    char symbols[256][3];
    byte_symbols(symbols, NULL);
    for (int b = 0; b < 256; b++)
        for (int at_end = 0; at_end < 2; at_end++) {
            char text[8];
            int n = snprintf(text, sizeof text, "%s%s", symbols[b], at_end ? WORD_END : "");
            int id = vocabulary_get(v, text, (size_t)n);
            t->byte_id[at_end][b] = id >= 0 ? id : t->unknown;
        }
}

// An added token as the configuration has it: its text alone, or an object with "content" and how to search
// it.
static void read_added_token(Tokenizer *t, const Json *token, const char *name, int id, const Vocabulary *v,
                             const char *path) {
    static const char *const unsupported[] = {"lstrip", "rstrip", "single_word"};
    const Json *content = token->kind == JSON_OBJECT ? json_get(token, "content") : token;
    if (!content || content->kind != JSON_STRING)
        die("%s: %s: expected a string or an object with \"content\"", path, name);
    for (int i = 0; i < 3; i++)
        if (json_get_bool(token, unsupported[i], false))
            die("%s: %s: \"%s\" is true, which is not supported", path, name, unsupported[i]);
    int known = vocabulary_get(v, content->string, content->length);
    if (known >= 0) id = known;
    if (id < 0) die("%s: %s is \"%s\", which is not in the vocabulary", path, name, content->string);
    add_special(t, content->string, content->length, id, json_get_bool(token, "normalized", false));
}

// The special tokens and the length from the folder's configuration files; what they leave out stays CLIP's
// own. special_tokens_map.json overrides tokenizer_config.json unless that has "added_tokens_decoder" (newer
// files).
static void read_configuration(Tokenizer *t, const Vocabulary *v, const char *dir) {
    static const char *const names[] = {"bos_token", "eos_token", "unk_token", "pad_token"};
    const char *const fallbacks[] = {START, END, END, END};
    int *const ids[] = {&t->start, &t->end, &t->unknown, &t->pad};
    char *config_path = format("%s/tokenizer_config.json", dir),
         *map_path = format("%s/special_tokens_map.json", dir);
    Json *config = file_exists(config_path) ? json_load(config_path) : NULL;
    const Json *added = json_get(config, "added_tokens_decoder");
    Json *map = !added && file_exists(map_path) ? json_load(map_path) : NULL;

    double length = json_get_number(config, "model_max_length", 77);
    t->max_length = length >= 1 && length <= 1e6 ? (int)length : 77; // files without a limit say 1e30
    for (int i = 0; i < 4; i++) {
        const Json *token = json_get(map, names[i]);
        const char *path = token ? map_path : config_path;
        if (!token) token = json_get(config, names[i]);
        Json standard = {.kind = JSON_STRING, .string = fallbacks[i], .length = strlen(fallbacks[i])};
        if (!token || token->kind == JSON_NULL) token = &standard;
        const Json *content = token->kind == JSON_OBJECT ? json_get(token, "content") : token;
        // The newer files say there how the token is searched.
        for (size_t k = 0; added && content && content->kind == JSON_STRING && k < added->length; k++) {
            const char *also = json_get_string(&added->items[k], "content", "");
            if (!strcmp(also, content->string)) token = &added->items[k];
        }
        read_added_token(t, token, names[i], -1, v, path);
        content = token->kind == JSON_OBJECT ? json_get(token, "content") : token;
        *ids[i] = vocabulary_get(v, content->string, content->length);
    }
    for (size_t k = 0; added && k < added->length; k++) {
        char *end;
        long id = added->kind == JSON_OBJECT ? strtol(added->items[k].key, &end, 10) : -1;
        if (id < 0 || id > INT_MAX || *end)
            die("%s: added_tokens_decoder: expected an object of ids", config_path);
        read_added_token(t, &added->items[k], "added_tokens_decoder", (int)id, v, config_path);
    }
    json_free(config), json_free(map);
    free(config_path), free(map_path);
}

// A folder of transformers: vocab.json gives each token's id.
static void open_folder(Tokenizer *t, const char *dir) {
    char *vocab_path = format("%s/vocab.json", dir), *merges_path = format("%s/merges.txt", dir);
    Json *document = json_load(vocab_path);
    Vocabulary v = {0};
    if (document->kind != JSON_OBJECT) die("%s: expected an object of tokens and ids", vocab_path);
    for (size_t i = 0; i < document->length; i++) {
        const Json *item = &document->items[i];
        if (item->kind != JSON_NUMBER || !(item->number >= 0 && item->number <= INT_MAX) ||
            item->number != (int)item->number)
            die("%s: the id of \"%s\" is not a whole number from 0 to %d", vocab_path, item->key, INT_MAX);
        vocabulary_set(&v, item->key, strlen(item->key), (int)item->number);
    }
    read_configuration(t, &v, dir);
    find_bytes(t, &v);
    size_t bytes;
    char *text = read_file(merges_path, &bytes);
    read_merges(t, &v, text, bytes, SIZE_MAX, merges_path);
    free(text), free(v.entries), free(vocab_path), free(merges_path);
    json_free(document);
}

// The 512 byte tokens in CLIP's order, as one text with a NUL behind each.
static void add_byte_tokens(Vocabulary *v, char storage[512][8]) {
    char symbols[256][3];
    unsigned char order[256];
    byte_symbols(symbols, order);
    for (int i = 0; i < 512; i++) {
        int n = snprintf(storage[i], 8, "%s%s", symbols[order[i % 256]], i < 256 ? "" : WORD_END);
        vocabulary_set(v, storage[i], (size_t)n, i);
    }
}

// OpenAI's list: a header, then more merges than CLIP uses. The vocabulary follows from the order: bytes,
// bytes at a word's end, the result of each merge, the two special tokens.
static void open_list(Tokenizer *t, const char *dir, const char *path, bool zipped) {
    enum { USED = 49152 - 256 - 2 }; // 48,894 merges
    size_t bytes, length, merges = 0;
    char *text = read_file(path, &bytes);
    if (zipped) {
        size_t unzipped_bytes;
        char *unzipped = (char *)inflate_gzip((const unsigned char *)text, bytes, &unzipped_bytes);
        if (!unzipped) die("%s: the gzip stream is damaged", path);
        free(text);
        text = unzipped, bytes = unzipped_bytes;
    }
    static char byte_tokens[512][8];
    char *joined = xmalloc(bytes), *out = joined; // the merges' results, one behind the other
    Vocabulary v = {0};
    add_byte_tokens(&v, byte_tokens);
    const char *right, *line = next_line(text, text + bytes, &length);
    for (const char *next; line < text + bytes && merges < USED; line = next) {
        next = next_line(line, text + bytes, &length);
        if (!split_merge(line, length, &right)) continue; // read_merges() complains
        size_t left_length = (size_t)(right - 1 - line);
        memcpy(out, line, left_length);
        memcpy(out + left_length, right, length - 1 - left_length);
        vocabulary_set(&v, out, length - 1, 512 + (int)merges++);
        out += length - 1;
    }
    vocabulary_set(&v, START, strlen(START), 512 + (int)merges);
    vocabulary_set(&v, END, strlen(END), 513 + (int)merges);
    read_configuration(t, &v, dir);
    find_bytes(t, &v);
    read_merges(t, &v, text, bytes, USED, path);
    free(text), free(joined), free(v.entries);
}

Tokenizer *tokenizer_open(const char *dir) {
    Tokenizer *t = xcalloc(1, sizeof *t);
    char *vocab = format("%s/vocab.json", dir);
    char *list = format("%s/bpe_simple_vocab_16e6.txt", dir), *zipped = format("%s.gz", list);
    if (file_exists(vocab))
        open_folder(t, dir);
    else if (file_exists(list))
        open_list(t, dir, list, false);
    else if (file_exists(zipped))
        open_list(t, dir, zipped, true);
    else
        die("no tokenizer in %s: expected vocab.json with merges.txt, or bpe_simple_vocab_16e6.txt[.gz]",
            dir);
    free(vocab), free(list), free(zipped);
    return t;
}

void tokenizer_close(Tokenizer *t) {
    if (!t) return;
    for (size_t i = 0; i < t->special_count; i++) free(t->specials[i].content), free(t->specials[i].points);
    free(t->specials), free(t->merges), free(t);
}

int tokenizer_max_length(const Tokenizer *t) { return t->max_length; }
int tokenizer_start(const Tokenizer *t) { return t->start; }
int tokenizer_end(const Tokenizer *t) { return t->end; }
int tokenizer_pad(const Tokenizer *t) { return t->pad; }

// ---- training ------------------------------------------------------------------------------------------

// A word that occurs, as the tokens it consists of so far.
typedef struct {
    int *tokens;
    int length;
    long occurrences;
} Trained;

typedef struct {
    int left, right;
    long count; // 0 in a free place
} Pair;

// The texts' different words and how often each comes, in order of first appearance.
static Trained *collect_words(const char *const *texts, size_t count, const Vocabulary *v,
                              size_t *word_count) {
    Tokenizer t = {0}; // only its special tokens: they are no words
    add_special(&t, START, strlen(START), 0, false);
    add_special(&t, END, strlen(END), 0, false);
    Vocabulary seen = {0};
    Trained *out = NULL;
    size_t n = 0;
    char symbols[256][3];
    byte_symbols(symbols, NULL);
    for (size_t i = 0; i < count; i++) {
        size_t bytes = strlen(texts[i]), bad_at;
        if (!utf8_valid(texts[i], bytes, &bad_at))
            die("text %zu is not valid UTF-8 at byte %zu", i + 1, bad_at);
        Words w = split_text(&t, texts[i], bytes);
        for (size_t k = 0; k < w.word_count; k++) {
            const Word *word = &w.words[k];
            if (word->special >= 0) continue;
            char *text = xmalloc(word->count * 4);
            int length = 0;
            for (size_t j = 0; j < word->count; j++)
                length += utf8_put(text + length, w.points[word->first + j].point);
            int index = vocabulary_get(&seen, text, (size_t)length);
            if (index >= 0) {
                out[index].occurrences++;
                free(text);
                continue;
            }
            if ((n & (n - 1)) == 0) out = xrealloc(out, (n ? 2 * n : 1) * sizeof *out);
            out[n] = (Trained){xmalloc((size_t)length * sizeof(int)), length, 1};
            for (int j = 0; j < length; j++) {
                char token[8];
                int bytes_of = snprintf(token, sizeof token, "%s%s", symbols[(unsigned char)text[j]],
                                        j + 1 < length ? "" : WORD_END);
                out[n].tokens[j] = vocabulary_get(v, token, (size_t)bytes_of);
            }
            vocabulary_set(&seen, text, (size_t)length, (int)n++); // keeps `text`
        }
        words_free(&w);
    }
    for (size_t i = 0; i < seen.size; i++) free((char *)seen.entries[i].text);
    free(seen.entries);
    for (size_t i = 0; i < t.special_count; i++) free(t.specials[i].content), free(t.specials[i].points);
    free(t.specials);
    *word_count = n;
    return out;
}

// The pair that occurs most often; of equal ones that whose tokens come first in the order of their bytes.
static Pair commonest_pair(const Trained *words, size_t word_count, char **names, Pair *table, size_t size) {
    Pair best = {0};
    memset(table, 0, size * sizeof *table);
    for (size_t i = 0; i < word_count; i++)
        for (int k = 0; k + 1 < words[i].length; k++) {
            int left = words[i].tokens[k], right = words[i].tokens[k + 1];
            size_t place =
                (size_t)((((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15) >> 32);
            while (table[place & (size - 1)].count &&
                   (table[place & (size - 1)].left != left || table[place & (size - 1)].right != right))
                place++;
            Pair *p = &table[place & (size - 1)];
            *p = (Pair){left, right, p->count + words[i].occurrences};
        }
    for (size_t i = 0; i < size; i++) {
        const Pair *p = &table[i];
        if (!p->count || p->count < best.count) continue;
        if (p->count == best.count) {
            int order = strcmp(names[p->left], names[best.left]);
            if (order > 0 || (order == 0 && strcmp(names[p->right], names[best.right]) > 0)) continue;
        }
        best = *p;
    }
    return best;
}

static void write_text(const char *dir, const char *name, const char *text) {
    char *path = format("%s/%s", dir, name);
    Output *o = output_open(path);
    output_write(o, text, strlen(text));
    output_commit(o);
    free(path);
}

void tokenizer_train(const char *dir, const char *const *texts, size_t count, int vocab_size,
                     int max_length) {
    if (vocab_size < 514) die("a vocabulary of %d tokens was asked for, expected at least 514", vocab_size);
    Vocabulary v = {0};
    static char byte_tokens[512][8];
    add_byte_tokens(&v, byte_tokens);
    char **names = xmalloc((size_t)vocab_size * sizeof *names); // token texts by id
    for (int i = 0; i < 512; i++) names[i] = xstrdup(byte_tokens[i]);

    size_t word_count, symbols = 0, size = 1024;
    Trained *words = collect_words(texts, count, &v, &word_count);
    for (size_t i = 0; i < word_count; i++) symbols += (size_t)words[i].length;
    while (size < 2 * symbols) size *= 2;
    Pair *table = xmalloc(size * sizeof *table);

    make_directories(dir);
    char *path = format("%s/merges.txt", dir);
    Output *merges = output_open(path);
    output_printf(merges, "#version: 0.2\n");
    int tokens = 512;
    while (tokens < vocab_size - 2) {
        Pair best = commonest_pair(words, word_count, names, table, size);
        if (!best.count) {
            output_discard(merges);
            die("the texts give a vocabulary of %d tokens, expected %d", tokens + 2, vocab_size);
        }
        output_printf(merges, "%s %s\n", names[best.left], names[best.right]);
        // Two pairs may read the same (a+bc, ab+c): that is a second merge, but no second token.
        char *name = format("%s%s", names[best.left], names[best.right]);
        int result = vocabulary_get(&v, name, strlen(name));
        if (result < 0) {
            result = tokens++;
            names[result] = name;
            vocabulary_set(&v, name, strlen(name), result);
        } else
            free(name);
        for (size_t i = 0; i < word_count; i++) {
            Trained *word = &words[i];
            int written = 0;
            for (int k = 0; k < word->length; k++) {
                bool merged =
                    k + 1 < word->length && word->tokens[k] == best.left && word->tokens[k + 1] == best.right;
                word->tokens[written++] = merged ? result : word->tokens[k];
                k += merged;
            }
            word->length = written;
        }
    }
    output_commit(merges);
    free(path);

    path = format("%s/vocab.json", dir);
    Output *vocab = output_open(path);
    output_printf(vocab, "{");
    for (int i = 0; i < tokens; i++) {
        json_write_string(vocab, names[i]);
        output_printf(vocab, ": %d, ", i);
    }
    output_printf(vocab, "\"%s\": %d, \"%s\": %d}\n", START, tokens, END, tokens + 1);
    output_commit(vocab);
    free(path);

    char *map =
        format("\"bos_token\": \"%s\", \"eos_token\": \"%s\", \"pad_token\": \"%s\", \"unk_token\": \"%s\"",
               START, END, END, END);
    char *map_text = format("{%s}\n", map);
    char *config =
        format("{%s, \"model_max_length\": %d, \"tokenizer_class\": \"CLIPTokenizer\"}\n", map, max_length);
    write_text(dir, "special_tokens_map.json", map_text);
    write_text(dir, "tokenizer_config.json", config);

    free(map), free(map_text), free(config), free(table), free(v.entries);
    for (int i = 0; i < tokens; i++) free(names[i]);
    for (size_t i = 0; i < word_count; i++) free(words[i].tokens);
    free(names), free(words);
}
