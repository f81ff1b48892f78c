// tokenizer.c: CLIP's byte-pair encoder, from text to token ids, and the training of its merges. It does what
// transformers' CLIPTokenizer does; OpenAI's first tokenizer also repaired broken text and HTML.
//
//   text -> special tokens cut out -> NFC, one blank for each white space, lower case -> words
//        -> bytes -> pairs merged, the earliest merge of the list first -> ids
//
// Each byte stands in the vocabulary as a visible character, once for the inside of a word and once, with
// "</w>" behind it, for its end. Sennrich et al. 2016 (byte pairs), Radford et al. 2019 (bytes, splitting).
#include "io.h"
#include "unicode.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_SPECIALS = 10000, MOST_BYTES = 1 << 24 };
#define START "<|startoftext|>"
#define END "<|endoftext|>"

// A token that stands in the text as it is. `folded` ones are searched in lower-case text, so that any
// spelling of theirs matches (added tokens with "normalized": true), the others before that.
typedef struct {
    char *content;
    size_t length; // in bytes
    int id;
    bool folded, added; // added: not in the vocabulary itself
    Point *points;      // of a folded one: what is searched for
    size_t point_count;
} Special;

struct Tokenizer {
    int byte_id[2][256]; // of a byte within a word, at its end
    Names merges;        // two ids, as bytes -> rank in the list
    int *results;        // by rank: the id of what a merge makes
    Special *specials;
    size_t special_count;
    int start, end, pad, unknown, max_length;
    int last; // the largest id
};

// ---- byte tokens ---------------------------------------------------------------------------------------

// The 512 tokens of one byte in the order of CLIP's vocabulary: all bytes within a word, then, with "</w>"
// behind, at its end. A byte that is visible in Latin-1 stands for itself; these come first. The others are
// U+0100, U+0101, ... Returns their texts; place[b] (unless NULL) is where byte b is among the first 256.
static const char (*byte_tokens(int place[256]))[8] {
    static char texts[512][8];
    int listed = 0;
    for (int visible = 1; visible >= 0; visible--)
        for (int b = 0, moved = 0; b < 256; b++) {
            if (((b > ' ' && b < 127) || (b > 160 && b != 173)) != visible) continue;
            char symbol[5] = "";
            utf8_put(symbol, (uint32_t)(visible ? b : 256 + moved++));
            snprintf(texts[listed], 8, "%.2s", symbol);
            snprintf(texts[256 + listed], 8, "%.2s</w>", symbol);
            if (place) place[b] = listed;
            listed++;
        }
    return texts;
}

static void add_byte_tokens(Names *vocabulary) {
    const char(*texts)[8] = byte_tokens(NULL);
    for (int i = 0; i < 512; i++) names_set(vocabulary, texts[i], strlen(texts[i]), i);
}

// Their ids. One that the vocabulary lacks is the unknown token wherever it comes up.
static void find_bytes(Tokenizer *t, const Names *vocabulary) {
    int place[256];
    const char(*texts)[8] = byte_tokens(place);
    for (int i = 0; i < 512; i++) {
        const char *text = texts[i / 256 * 256 + place[i % 256]];
        int id = names_get(vocabulary, text, strlen(text));
        t->byte_id[i / 256][i % 256] = id >= 0 ? id : t->unknown;
    }
}

// ---- merges --------------------------------------------------------------------------------------------

// Splits "left right" in place and returns the right token; NULL where the text has another form.
static char *split_merge(char *text) {
    char *blank = strchr(text, ' ');
    if (!blank || blank == text || !blank[1] || strchr(blank + 1, ' ')) return NULL;
    *blank = 0;
    return blank + 1;
}

// Adds a merge; its tokens must all be in the vocabulary, but for what it makes where `makes`, an id for
// that, is not -1. number: of its line, for messages.
static void add_merge(Tokenizer *t, Names *vocabulary, const char *left, const char *right, int rank,
                      int makes, const char *path, size_t number) {
    char *joined = format("%s%s", left, right);
    if (makes >= 0) names_set(vocabulary, joined, strlen(joined), makes);
    const char *texts[] = {left, right, joined};
    int ids[3];
    for (int k = 0; k < 3; k++)
        if ((ids[k] = names_get(vocabulary, texts[k], strlen(texts[k]))) < 0)
            die("%s: line %zu: the token \"%.80s\" is not in the vocabulary", path, number, texts[k]);
    names_set(&t->merges, (const char *)ids, 2 * sizeof *ids, rank);
    t->results[rank] = ids[2];
    free(joined);
}

// Reads merges.txt; or OpenAI's list, which has a header and more merges than CLIP uses, and makes the
// vocabulary: what a merge makes is the next token. Returns how many there were. Behind the text is a NUL.
static int read_merges(Tokenizer *t, Names *vocabulary, char *text, size_t bytes, bool list,
                       const char *path) {
    enum { USED = 49152 - 256 - 2 }; // 48,894 merges
    size_t lines = 1, length, number = 0;
    for (size_t i = 0; i < bytes; i++) lines += text[i] == '\n';
    t->results = xmalloc(lines * sizeof *t->results);
    int rank = 0;
    const char *at = text, *line;
    while (!(list && rank == USED) && next_line(&at, text + bytes, &line, &length)) {
        char *left = text + (line - text), *right;
        left[length] = 0;
        number++;
        if (!length || starts_with(left, "#version") || (number == 1 && (list || *left == '"'))) continue;
        if (strlen(left) < length || !(right = split_merge(left)))
            die("%s: line %zu: expected two tokens with a blank between them, found \"%.80s\"", path, number,
                left);
        add_merge(t, vocabulary, left, right, rank, list ? 512 + rank : -1, path, number);
        rank++;
    }
    return rank;
}

// The same from tokenizer.json, where a merge is a string, "a b", or a pair, ["a", "b"].
static void read_json_merges(Tokenizer *t, Names *vocabulary, const Json *merges, const char *path) {
    if (!merges || merges->kind != JSON_ARRAY) die("%s: its model has no list of merges", path);
    t->results = xmalloc(merges->length * sizeof *t->results);
    for (size_t i = 0; i < merges->length; i++) {
        const Json *m = &merges->items[i], *parts = m->items;
        bool pair = m->kind == JSON_ARRAY && m->length == 2 && parts[0].kind == JSON_STRING &&
                    parts[1].kind == JSON_STRING;
        char *left = pair ? format("%s %s", parts[0].string, parts[1].string)
                          : xstrdup(m->kind == JSON_STRING ? m->string : "");
        char *right = split_merge(left);
        if (!right)
            die("%s: merge %zu is neither two tokens with a blank between them nor a pair", path, i + 1);
        add_merge(t, vocabulary, left, right, (int)i, -1, path, i + 1);
        free(left);
    }
}

// ---- special tokens ------------------------------------------------------------------------------------

static Special *find_special(const Tokenizer *t, const char *content) {
    for (size_t i = 0; i < t->special_count; i++)
        if (!strcmp(t->specials[i].content, content)) return &t->specials[i];
    return NULL;
}

// Adds a special token, or changes one: of several that read the same, the last one counts. It gets the
// vocabulary's id; one that is new there, `id`.
static void add_special(Tokenizer *t, Names *vocabulary, const char *content, int id, bool folded) {
    Special *s = find_special(t, content);
    size_t length = strlen(content);
    if (!length) return;
    if (!s && t->special_count == MOST_SPECIALS)
        die("a tokenizer with more than %d special tokens", MOST_SPECIALS);
    if (!s) {
        t->specials = xrealloc(t->specials, (t->special_count + 1) * sizeof *t->specials);
        s = &t->specials[t->special_count++];
        *s = (Special){.content = xstrdup(content), .length = length};
        s->points = unicode_normalize(content, length, 0, &s->point_count);
    }
    int known = names_get(vocabulary, content, length);
    s->id = known >= 0 ? known : id;
    s->folded = folded;
    if (known >= 0) return;
    s->added = true;
    names_set(vocabulary, content, length, id);
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
    size_t point_count, word_count, room;
} Words;

static void add_word(Words *w, Word word) {
    if (w->word_count == w->room)
        w->words = xrealloc(w->words, (w->room = 2 * w->room + 64) * sizeof *w->words);
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
    while (length < n && unicode_is_letter(p[length].point)) length++;
    if (length) return length;
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

// The longest special token of the folded kind that the characters begin with, or NULL.
static const Special *folded_at(const Tokenizer *t, const Point *p, size_t n) {
    const Special *found = NULL;
    for (const Special *s = t->specials; s < t->specials + t->special_count; s++) {
        size_t same = 0;
        if (!s->folded || s->point_count > n || (found && found->point_count >= s->point_count)) continue;
        while (same < s->point_count && p[same].point == s->points[same].point) same++;
        if (same == s->point_count) found = s;
    }
    return found;
}

// A piece of the text without special tokens of the unfolded kind: normalise, cut out the folded ones, split.
static void split_piece(const Tokenizer *t, Words *w, const char *text, size_t bytes, size_t start) {
    size_t n, i = w->point_count, plain = i;
    Point *points = unicode_normalize(text, bytes, start, &n);
    size_t end = w->point_count += n;
    w->points = xrealloc(w->points, end * sizeof *w->points);
    memcpy(w->points + i, points, n * sizeof *points);
    free(points);
    while (i < end) {
        const Special *found = folded_at(t, w->points + i, end - i);
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

// The longest special token of the other kind that the text begins with, or NULL.
static const Special *unfolded_at(const Tokenizer *t, const char *text, size_t bytes) {
    const Special *found = NULL;
    for (const Special *s = t->specials; s < t->specials + t->special_count; s++)
        if (!s->folded && *text == *s->content && s->length <= bytes &&
            (!found || found->length < s->length) && !memcmp(text, s->content, s->length))
            found = s;
    return found;
}

static Words split_text(const Tokenizer *t, const char *text, size_t bytes) {
    Words w = {0};
    size_t plain = 0;
    for (size_t i = 0; i < bytes;) {
        const Special *found = unfolded_at(t, text + i, bytes - i);
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

// ---- from a word to tokens -----------------------------------------------------------------------------

typedef struct {
    int id;             // -1: merged into the one before
    int previous, next; // -1 at the ends
    size_t at;          // in the text
} Symbol;

// The bytes of a word, or a special token, as symbols: at most four for a character. Returns how many.
static int word_symbols(const Tokenizer *t, const Words *w, const Word *word, Symbol *symbols) {
    if (word->special >= 0) {
        symbols[0] = (Symbol){.id = word->special, .at = word->at};
        return 1;
    }
    int n = 0;
    for (const Point *p = w->points + word->first, *end = p + word->count; p < end; p++) {
        char utf8[4];
        int length = utf8_put(utf8, p->point);
        for (int b = 0; b < length; b++) {
            bool last = p + 1 == end && b + 1 == length;
            symbols[n++] = (Symbol){.id = t->byte_id[last][(unsigned char)utf8[b]], .at = p->at};
        }
    }
    return n;
}

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

// The rank of the merge of symbol i and the one behind it, or -1.
static int merge_at(const Tokenizer *t, const Symbol *symbols, int i) {
    if (i < 0 || symbols[i].id < 0 || symbols[i].next < 0) return -1;
    int pair[] = {symbols[i].id, symbols[symbols[i].next].id};
    return names_get(&t->merges, (const char *)pair, sizeof pair);
}

static void heap_offer(Heap *h, const Tokenizer *t, const Symbol *symbols, int i) {
    int rank = merge_at(t, symbols, i);
    if (rank >= 0) heap_push(h, (uint64_t)rank << 32 | (uint32_t)i);
}

// Merges n symbols; those that are left have id >= 0. `heap` has room for 3 n keys.
static void merge_symbols(const Tokenizer *t, Symbol *symbols, int n, Heap *heap) {
    heap->count = 0;
    for (int i = 0; i < n; i++) symbols[i].previous = i - 1, symbols[i].next = i + 1 < n ? i + 1 : -1;
    for (int i = 0; i + 1 < n; i++) heap_offer(heap, t, symbols, i);
    while (heap->count) {
        uint64_t key = heap_pop(heap);
        int i = (int)(uint32_t)key;
        int rank = (int)(key >> 32);
        if (merge_at(t, symbols, i) != rank) continue; // a neighbour has changed since
        int gone = symbols[i].next;
        symbols[i].id = t->results[rank];
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
    if (bytes > MOST_BYTES) die("the text has %zu bytes, expected at most %d", bytes, MOST_BYTES);

    Words w = split_text(t, text, bytes);
    size_t longest = 1;
    for (size_t i = 0; i < w.word_count; i++)
        if (w.words[i].count > longest) longest = w.words[i].count;
    Symbol *symbols = xmalloc(4 * longest * sizeof *symbols);
    Heap heap = {.keys = xmalloc(3 * 4 * longest * sizeof *heap.keys)};
    long cut = -1;
    int count = 1;
    ids[0] = t->start;
    for (size_t i = 0; i < w.word_count && cut < 0; i++) {
        int n = word_symbols(t, &w, &w.words[i], symbols);
        if (w.words[i].special < 0) merge_symbols(t, symbols, n, &heap);
        for (int k = 0; k < n && cut < 0; k++) {
            if (symbols[k].id < 0) continue;
            if (count < max_length - 1)
                ids[count++] = symbols[k].id;
            else
                cut = (long)symbols[k].at;
        }
    }
    ids[count++] = t->end;
    free(symbols), free(heap.keys), free(w.points), free(w.words);
    if (cut_at) *cut_at = cut;
    return count;
}

// ---- opening -------------------------------------------------------------------------------------------

// The text of a token as the configurations have it: by itself, or as "content" of an object. NULL: neither.
static const char *token_text(const Json *token) {
    const Json *content = token && token->kind == JSON_OBJECT ? json_get(token, "content") : token;
    return content && content->kind == JSON_STRING ? content->string : NULL;
}

static void read_added_token(Tokenizer *t, const Json *token, const char *name, int id, Names *vocabulary,
                             const char *path) {
    static const char *const unsupported[] = {"lstrip", "rstrip", "single_word"};
    const char *text = token_text(token);
    if (!text) die("%s: %s: expected a string or an object with \"content\"", path, name);
    for (int i = 0; i < 3; i++)
        if (json_get_bool(token, unsupported[i], false))
            die("%s: %s: \"%s\" is true, which is not supported", path, name, unsupported[i]);
    if (id < 0 && names_get(vocabulary, text, strlen(text)) < 0)
        die("%s: %s is \"%s\", which is not in the vocabulary", path, name, text);
    add_special(t, vocabulary, text, id, json_get_bool(token, "normalized", false));
}

static Json *load_if_there(const char *path) { return file_exists(path) ? json_load(path) : NULL; }

static int whole_id(const Json *id, const char *token, const char *path) {
    if (!id || id->kind != JSON_NUMBER || !(id->number >= 0 && id->number <= INT_MAX) ||
        id->number != (int)id->number)
        die("%s: the id of \"%s\" is not a whole number from 0 to %d", path, token, INT_MAX);
    return (int)id->number;
}

// Whatever the files say, transformers numbers new tokens on from the vocabulary, in their order. A text
// encoder learnt those numbers; another order or a gap would give it others.
static void check_added_ids(Tokenizer *t, const Names *vocabulary, size_t base, const char *dir) {
    for (const Special *s = t->specials, *end = s + t->special_count; s < end; s++) {
        size_t place = base;
        for (const Special *other = t->specials; other < end; other++)
            place += other != s && other->added && other->id <= s->id;
        if (s->added && (size_t)s->id != place)
            die("%s: the added token \"%s\" has the id %d, expected %zu, the next one", dir, s->content,
                s->id, place);
    }
    for (size_t i = 0; i < vocabulary->size; i++)
        if (vocabulary->entries[i].text && vocabulary->entries[i].number > t->last)
            t->last = vocabulary->entries[i].number;
}

// Of tokenizer_config.json and special_tokens_map.json. CLIP's tokenizer does not heed the last row but one.
static const JsonKey config_keys[] = {
    {"padding_side|truncation_side", "'right'"},
    {"split_special_tokens", "false"},
    {"merges|vocab", "null"},
    {"model_max_length", NULL}, // checked below
    {"additional_special_tokens|extra_special_tokens", "list|object|null"},
    {"added_tokens_decoder", "object|null"},
    {"bos_token|eos_token|pad_token|unk_token", "string|object|null"},
    {"add_bos_token|add_eos_token|add_prefix_space|backend|chat_template|clean_up_tokenization_spaces|"
     "do_lower_case|errors|is_local|local_files_only|model_input_names|name_or_path|processor_class|special_tokens_map_file|"
     "tokenizer_class|tokenizer_file|use_fast",
     NULL},
    {"*_token", "null"}, // transformers makes a special token of it
    {0}};

// The special tokens and the length from the folder's configuration files; what they leave out is CLIP's own.
// special_tokens_map.json overrides tokenizer_config.json. Learnt tokens are in added_tokens.json
// (transformers 4) or tokenizer.json. An "added_tokens_decoder" in tokenizer_config.json counts alone.
static void read_configuration(Tokenizer *t, Names *vocabulary, const char *dir, const Json *tokenizer) {
    static const char *const names[] = {"bos_token", "eos_token", "unk_token", "pad_token"};
    static const char *const lists[] = {"additional_special_tokens", "extra_special_tokens"};
    const char *const fallbacks[] = {START, END, END, END};
    int *const ids[] = {&t->start, &t->end, &t->unknown, &t->pad};
    char *config_path = format("%s/tokenizer_config.json", dir), *path = format("%s/tokenizer.json", dir);
    char *map_path = format("%s/special_tokens_map.json", dir),
         *added_path = format("%s/added_tokens.json", dir);
    Json *config = load_if_there(config_path);
    const Json *decoder = json_get(config, "added_tokens_decoder");
    Json *map = decoder ? NULL : load_if_there(map_path), *added = decoder ? NULL : load_if_there(added_path);
    const Json *all = decoder ? NULL : json_get(tokenizer, "added_tokens"), *named[4];
    Json standard[4];
    size_t base = vocabulary->count;
    if (config) json_check_keys(config, config_path, config_keys);
    if (map) json_check_keys(map, map_path, config_keys);
    double length = json_get_number(config, "model_max_length", 77);
    if (length > 1e6) length = 77; // files without a limit say 1e30
    if (length < 2 || length != (int)length)
        die("%s: \"model_max_length\" is %g; a whole number above 1 is expected", config_path, length);
    t->max_length = (int)length;
    for (int i = 0; i < 4; i++) {
        standard[i] = (Json){.kind = JSON_STRING, .string = fallbacks[i]};
        named[i] = json_get(map, names[i]);
        if (!named[i]) named[i] = json_get(config, names[i]);
        if (!named[i] || named[i]->kind == JSON_NULL) named[i] = &standard[i];
    }
    for (size_t k = 0; decoder && k < decoder->length; k++) {
        const Json *token = &decoder->items[k];
        char *end;
        long id = decoder->kind == JSON_OBJECT ? strtol(token->key, &end, 10) : -1;
        if (id < 0 || id > INT_MAX || *end)
            die("%s: added_tokens_decoder: expected an object of ids", config_path);
        const char *text = json_get_string(token, "content", "");
        if (id < (long)base && names_get(vocabulary, text, strlen(text)) < 0)
            die("%s: added_tokens_decoder: \"%s\" has the id %ld of another token", config_path, text, id);
        read_added_token(t, token, "added_tokens_decoder", (int)id, vocabulary, config_path);
    }
    if (added && added->kind != JSON_OBJECT) die("%s: expected an object of tokens and ids", added_path);
    for (size_t k = 0; added && k < added->length; k++) {
        const char *text = added->items[k].key;
        bool folded = true;
        for (int i = 0; i < 4; i++) folded &= !token_text(named[i]) || strcmp(token_text(named[i]), text);
        add_special(t, vocabulary, text, whole_id(&added->items[k], text, added_path), folded);
    }
    if (all && all->kind != JSON_ARRAY && all->kind != JSON_NULL)
        die("%s: \"added_tokens\": expected a list", path);
    for (size_t k = 0; all && k < all->length; k++)
        read_added_token(t, &all->items[k], "added_tokens",
                         whole_id(json_get(&all->items[k], "id"), "added_tokens", path), vocabulary, path);
    size_t listed = t->special_count; // how these are searched stands; the others are searched as they are
    for (int i = 0; i < 4; i++) {
        const char *text = token_text(named[i]);
        const Special *s = text ? find_special(t, text) : NULL;
        if (!s || s >= t->specials + listed)
            read_added_token(t, named[i], names[i], -1, vocabulary, map ? map_path : config_path);
        *ids[i] = names_get(vocabulary, text, strlen(text));
    }
    for (int i = 0; i < 2; i++) {
        const Json *list = json_get(map, lists[i]);
        if (!list) list = json_get(config, lists[i]);
        for (size_t k = 0; list && k < list->length; k++) {
            const char *text = token_text(&list->items[k]);
            if (!text || !find_special(t, text))
                read_added_token(t, &list->items[k], lists[i], (int)vocabulary->count, vocabulary,
                                 config_path);
        }
    }
    check_added_ids(t, vocabulary, base, dir);
    json_free(config), json_free(map), json_free(added);
    free(config_path), free(map_path), free(added_path), free(path);
}

// ---- tokenizer.json: what transformers 5 and the library "tokenizers" write -------------------------------

// The kinds of a step, which may be a sequence of them: "NFC Replace Lowercase".
static char *step_kinds(const Json *step) {
    static const char *const members[] = {"normalizers", "pretokenizers", "processors"};
    const Json *list = NULL;
    for (int i = 0; i < 3 && !list; i++) list = json_get(step, members[i]);
    char *kinds = xstrdup(list ? "" : json_get_string(step, "type", "null"));
    for (size_t i = 0; list && i < list->length; i++)
        format_more(&kinds, "%s%s", i ? " " : "", json_get_string(&list->items[i], "type", "null"));
    return kinds;
}

// It describes any tokenizer. transformers' CLIPTokenizer takes the vocabulary, the merges and the added
// tokens from it and has its own steps; here, a file with other steps than CLIP's is refused by name.
static void check_is_clip(const Json *tokenizer, const char *path) {
    static const struct {
        const char *step, *kinds[2];
    } steps[] = {{"normalizer", {"NFC Replace Lowercase"}},
                 {"pre_tokenizer", {"Split ByteLevel"}},
                 {"post_processor", {"RobertaProcessing", "TemplateProcessing"}},
                 {"model", {"BPE"}}};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        char *kinds = step_kinds(json_get(tokenizer, steps[i].step));
        if (strcmp(kinds, steps[i].kinds[0]) && (!steps[i].kinds[1] || strcmp(kinds, steps[i].kinds[1])))
            die("%s: its %s is %s, expected CLIP's, %s", path, steps[i].step, kinds, steps[i].kinds[0]);
        free(kinds);
    }
    const char *direction = json_get_string(json_get(tokenizer, "padding"), "direction", "Right");
    if (strcmp(direction, "Right"))
        die("%s: its padding's \"direction\" is '%s'; what is supported is 'Right'", path, direction);
}

// A folder of transformers. Its vocabulary gives each token's id. Where it has both tokenizer.json and
// vocab.json with merges.txt, tokenizer.json counts, as in transformers 5.
static void open_folder(Tokenizer *t, const char *dir, const char *path, bool whole) {
    Json *document = json_load(path);
    if (whole) check_is_clip(document, path);
    const Json *vocab = whole ? json_get(json_get(document, "model"), "vocab") : document;
    Names vocabulary = {0};
    if (!vocab || vocab->kind != JSON_OBJECT) die("%s: expected an object of tokens and ids", path);
    for (size_t i = 0; i < vocab->length; i++) {
        const Json *item = &vocab->items[i];
        names_set(&vocabulary, item->key, strlen(item->key), whole_id(item, item->key, path));
    }
    read_configuration(t, &vocabulary, dir, whole ? document : NULL);
    find_bytes(t, &vocabulary);
    if (whole) {
        read_json_merges(t, &vocabulary, json_get(json_get(document, "model"), "merges"), path);
    } else {
        size_t bytes;
        char *merges_path = format("%s/merges.txt", dir), *text = read_file(merges_path, &bytes);
        read_merges(t, &vocabulary, text, bytes, false, merges_path);
        free(text), free(merges_path);
    }
    names_free(&vocabulary);
    json_free(document);
}

// OpenAI's list of merges. The vocabulary follows from its order: bytes, bytes at a word's end, the result of
// each merge, the two special tokens.
static void open_list(Tokenizer *t, const char *dir, const char *path, bool zipped) {
    size_t bytes;
    char *text = read_file(path, &bytes);
    if (zipped) {
        char *unzipped = (char *)inflate_gzip((const unsigned char *)text, bytes, &bytes);
        if (!unzipped) die("%s: the gzip stream is damaged", path);
        free(text);
        text = xrealloc(unzipped, bytes + 1);
    }
    Names vocabulary = {0};
    add_byte_tokens(&vocabulary);
    int tokens = 512 + read_merges(t, &vocabulary, text, bytes, true, path);
    names_set(&vocabulary, START, strlen(START), tokens);
    names_set(&vocabulary, END, strlen(END), tokens + 1);
    read_configuration(t, &vocabulary, dir, NULL);
    find_bytes(t, &vocabulary);
    free(text);
    names_free(&vocabulary);
}

Tokenizer *tokenizer_open(const char *dir) {
    static const char *const files[] = {"tokenizer.json", "vocab.json", "bpe_simple_vocab_16e6.txt",
                                        "bpe_simple_vocab_16e6.txt.gz"};
    Tokenizer *t = xcalloc(1, sizeof *t);
    for (int i = 0; i < 4; i++) {
        char *path = format("%s/%s", dir, files[i]);
        bool there = file_exists(path);
        if (there && i < 2) open_folder(t, dir, path, i == 0);
        if (there && i >= 2) open_list(t, dir, path, i == 3);
        free(path);
        if (there) return t;
    }
    die("no tokenizer in %s: expected vocab.json with merges.txt, or bpe_simple_vocab_16e6.txt[.gz], or "
        "tokenizer.json",
        dir);
}

void tokenizer_close(Tokenizer *t) {
    if (!t) return;
    for (size_t i = 0; i < t->special_count; i++) free(t->specials[i].content), free(t->specials[i].points);
    names_free(&t->merges);
    free(t->specials), free(t->results), free(t);
}

int tokenizer_max_length(const Tokenizer *t) { return t->max_length; }
int tokenizer_start(const Tokenizer *t) { return t->start; }
int tokenizer_end(const Tokenizer *t) { return t->end; }
int tokenizer_last(const Tokenizer *t) { return t->last; }
int tokenizer_pad(const Tokenizer *t) { return t->pad; }

// ---- training ------------------------------------------------------------------------------------------

// A word that occurs, as the tokens it consists of so far.
typedef struct {
    int *tokens, length, occurrences;
} Trained;

// The texts' different words and how often each comes, in order of first appearance.
static Trained *collect_words(const char *const *texts, size_t count, size_t *word_count) {
    Names vocabulary = {0}, seen = {0}; // words by the bytes of their tokens
    Tokenizer *t = xcalloc(1, sizeof *t);
    add_byte_tokens(&vocabulary);
    find_bytes(t, &vocabulary);
    add_special(t, &vocabulary, START, 512, false); // these are no words
    add_special(t, &vocabulary, END, 513, false);
    Trained *out = NULL;
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        size_t bytes = strlen(texts[i]), bad_at;
        if (!utf8_valid(texts[i], bytes, &bad_at))
            die("text %zu is not valid UTF-8 at byte %zu", i + 1, bad_at);
        Words w = split_text(t, texts[i], bytes);
        for (size_t k = 0; k < w.word_count; k++) {
            const Word *word = &w.words[k];
            if (word->special >= 0) continue;
            Symbol *symbols = xmalloc(4 * word->count * sizeof *symbols);
            int length = word_symbols(t, &w, word, symbols), *tokens = xmalloc((size_t)length * sizeof(int));
            for (int j = 0; j < length; j++) tokens[j] = symbols[j].id;
            free(symbols);
            int known = names_get(&seen, (char *)tokens, (size_t)length * sizeof(int));
            if (known >= 0) {
                out[known].occurrences++;
                free(tokens);
                continue;
            }
            if ((n & (n - 1)) == 0) out = xrealloc(out, (n ? 2 * n : 1) * sizeof *out); // room doubles
            names_set(&seen, (char *)tokens, (size_t)length * sizeof(int), (int)n);
            out[n++] = (Trained){tokens, length, 1};
        }
        free(w.points), free(w.words);
    }
    names_free(&vocabulary), names_free(&seen);
    tokenizer_close(t);
    *word_count = n;
    return out;
}

typedef struct {
    int left, right, occurrences;
} Pair; // of tokens that stand side by side

// The pair that occurs most often; of equal ones that whose tokens come first in the order of their bytes.
// occurrences 0: there is none. `pairs` has room for all of them.
static Pair commonest_pair(const Trained *words, size_t word_count, char **names, Pair *pairs) {
    Names places = {0}; // two tokens, as bytes -> place in `pairs`
    int count = 0;
    for (size_t i = 0; i < word_count; i++)
        for (int k = 0; k + 1 < words[i].length; k++) {
            const int *at = words[i].tokens + k;
            int place = names_get(&places, (const char *)at, 2 * sizeof *at);
            if (place < 0) {
                pairs[place = count++] = (Pair){at[0], at[1], 0};
                names_set(&places, (const char *)at, 2 * sizeof *at, place);
            }
            pairs[place].occurrences += words[i].occurrences;
        }
    names_free(&places);
    Pair best = {.occurrences = 0};
    for (const Pair *p = pairs; p < pairs + count; p++) {
        if (p->occurrences < best.occurrences) continue;
        int order = p->occurrences > best.occurrences ? -1 : strcmp(names[p->left], names[best.left]);
        if (order == 0) order = strcmp(names[p->right], names[best.right]);
        if (order <= 0) best = *p;
    }
    return best;
}

static void merge_in_word(Trained *word, Pair pair, int result) {
    int written = 0;
    for (int k = 0; k < word->length; k++) {
        const int *at = word->tokens + k;
        bool merged = k + 1 < word->length && at[0] == pair.left && at[1] == pair.right;
        word->tokens[written++] = merged ? result : *at;
        k += merged;
    }
    word->length = written;
}

void tokenizer_train(const char *dir, const char *const *texts, size_t count, int vocab_size,
                     int max_length) {
    if (vocab_size < 514) die("a vocabulary of %d tokens was asked for, expected at least 514", vocab_size);
    Names vocabulary = {0};
    add_byte_tokens(&vocabulary);
    char **names = xmalloc((size_t)vocab_size * sizeof *names); // tokens by id
    for (int i = 0; i < 512; i++) names[i] = xstrdup(byte_tokens(NULL)[i]);

    size_t word_count, symbols = 0;
    Trained *words = collect_words(texts, count, &word_count);
    for (size_t i = 0; i < word_count; i++) symbols += (size_t)words[i].length;
    Pair *pairs = xmalloc(symbols * sizeof *pairs);

    Output *merges = output_inside(dir, "merges.txt");
    output_printf(merges, "#version: 0.2\n");
    int tokens = 512;
    while (tokens < vocab_size - 2) {
        Pair best = commonest_pair(words, word_count, names, pairs);
        if (!best.occurrences) {
            output_discard(merges);
            die("the texts give a vocabulary of %d tokens, expected %d", tokens + 2, vocab_size);
        }
        output_printf(merges, "%s %s\n", names[best.left], names[best.right]);
        // Two pairs may read the same (a+bc, ab+c): that is a second merge, but no second token.
        char *name = format("%s%s", names[best.left], names[best.right]);
        int result = names_get(&vocabulary, name, strlen(name));
        if (result < 0) {
            names[result = tokens++] = name;
            names_set(&vocabulary, name, strlen(name), result);
        } else
            free(name);
        for (size_t i = 0; i < word_count; i++) merge_in_word(&words[i], best, result);
    }
    output_commit(merges);

    Output *vocab = output_inside(dir, "vocab.json");
    output_printf(vocab, "{");
    for (int i = 0; i < tokens; i++) {
        char *quoted = json_quote(names[i]);
        output_printf(vocab, "%s: %d, ", quoted, i);
        free(quoted);
    }
    output_printf(vocab, "\"%s\": %d, \"%s\": %d}\n", START, tokens, END, tokens + 1);
    output_commit(vocab);

#define SPECIAL                                                                                              \
    "{\"bos_token\": \"" START "\", \"eos_token\": \"" END "\", \"pad_token\": \"" END                       \
    "\", \"unk_token\": \"" END "\""
    char *config =
        format(SPECIAL ", \"model_max_length\": %d, \"tokenizer_class\": \"CLIPTokenizer\"}\n", max_length);
    write_text_file(dir, "special_tokens_map.json", SPECIAL "}\n");
    write_text_file(dir, "tokenizer_config.json", config);
    free(config);

    for (int i = 0; i < tokens; i++) free(names[i]);
    for (size_t i = 0; i < word_count; i++) free(words[i].tokens);
    free(names), free(words), free(pairs);
    names_free(&vocabulary);
}
