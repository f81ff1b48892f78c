// json.c: a JSON reader for model configurations, tokenizer vocabularies and safetensors headers. It accepts
// what RFC 8259 allows and nothing else: no comments, no NaN, no trailing commas.
#include "io.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DEEPEST = 64, MOST_VALUES = 1 << 24 }; // arrays and objects within one another; all values

// A document takes one block of memory: first its values, then its strings. The text bounds its size: each
// value but the first stands behind a '[', '{' or ',', and a decoded string is never longer than what was
// between its quotes. So nothing grows while it is parsed, and the whole is freed at once.
typedef struct {
    const char *text, *at, *end, *name;
    Json *block;   // finished children of finished arrays and objects, each family side by side
    size_t placed; // how many
    Json *waiting; // a stack: the values whose array or object is still open (behind the finished ones)
    size_t depth, waits;
    char *strings;    // where the next string goes
    const char *file; // the name as arrays and objects have it
} Parser;

static _Noreturn void fail(Parser *p, const char *at, const char *problem) {
    size_t line = 1, column = 1;
    for (const char *c = p->text; c < at; c++) {
        if (*c == '\n') line++, column = 0;
        if (((unsigned char)*c & 0xC0) != 0x80) column++; // count characters, not the bytes that continue one
    }
    free(p->block), free(p->waiting);
    die("%s: line %zu, column %zu: %s", p->name, line, column, problem);
}

// "expected X, found Y" with Y taken from the text.
static _Noreturn void fail_expected(Parser *p, const char *expected) {
    char problem[160];
    const char *c = p->at;
    if (c == p->end)
        snprintf(problem, sizeof problem, "expected %s, found the end of the text", expected);
    else if (*c > ' ' && *c < 127)
        snprintf(problem, sizeof problem, "expected %s, found '%c'", expected, *c);
    else
        snprintf(problem, sizeof problem, "expected %s, found byte 0x%02x", expected, (unsigned char)*c);
    fail(p, c, problem);
}

static void skip_blanks(Parser *p) {
    while (p->at < p->end && (*p->at == ' ' || *p->at == '\t' || *p->at == '\n' || *p->at == '\r')) p->at++;
}

static bool next_is(const Parser *p, char c) { return p->at < p->end && *p->at == c; }

static uint32_t parse_hex4(Parser *p) {
    uint32_t value = 0;
    for (int i = 0; i < 4; i++) {
        static const char digits[] = "0123456789abcdef";
        const char *digit = p->at < p->end && *p->at ? strchr(digits, tolower((unsigned char)*p->at)) : NULL;
        if (!digit) fail_expected(p, "four hexadecimal digits behind \\u");
        value = value << 4 | (uint32_t)(digit - digits);
        p->at++;
    }
    return value;
}

// Behind "\u". Points above U+FFFF come as two surrogates, and half a pair is no character.
static uint32_t parse_escaped_point(Parser *p) {
    const char *start = p->at - 2;
    uint32_t point = parse_hex4(p);
    if (point >= 0xDC00 && point <= 0xDFFF) fail(p, start, "a low surrogate without the high one before it");
    if (point < 0xD800 || point > 0xDBFF) return point;
    if (p->end - p->at < 2 || p->at[0] != '\\' || p->at[1] != 'u')
        fail(p, start, "a high surrogate without the low one behind it");
    p->at += 2;
    uint32_t low = parse_hex4(p);
    if (low < 0xDC00 || low > 0xDFFF) fail(p, start, "a high surrogate without the low one behind it");
    return 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
}

// At the opening quote. Returns the decoded string, with a NUL behind it.
static const char *parse_string(Parser *p) {
    static const char escapes[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    char *out = p->strings, *start = out;
    for (p->at++; !next_is(p, '"');) {
        if (p->at == p->end) fail_expected(p, "the closing quote of a string");
        unsigned char c = (unsigned char)*p->at;
        if (c < ' ') fail_expected(p, "a character of a string (control characters must be escaped)");
        if (c != '\\') {
            *out++ = *p->at++;
            continue;
        }
        p->at++;
        const char *which = p->at < p->end && *p->at ? strchr(escapes, *p->at) : NULL;
        if (!which && !next_is(p, 'u')) fail_expected(p, "one of \"\\/bfnrtu behind a backslash");
        p->at++;
        if (which) {
            *out++ = meanings[which - escapes];
            continue;
        }
        const char *escape = p->at - 2;
        uint32_t point = parse_escaped_point(p);
        if (!point) fail(p, escape, "U+0000: names and captions would end there");
        out += utf8_put(out, point);
    }
    p->at++;
    *out++ = 0;
    p->strings = out;
    return start;
}

static void skip_digits(Parser *p, const char *expected) {
    if (p->at == p->end || *p->at < '0' || *p->at > '9') fail_expected(p, expected);
    while (p->at < p->end && *p->at >= '0' && *p->at <= '9') p->at++;
}

static double parse_number(Parser *p) {
    const char *start = p->at;
    if (next_is(p, '-')) p->at++;
    if (next_is(p, '0'))
        p->at++; // no digit may follow a leading zero
    else
        skip_digits(p, "a digit");
    if (next_is(p, '.')) {
        p->at++;
        skip_digits(p, "a digit behind the decimal point");
    }
    if (next_is(p, 'e') || next_is(p, 'E')) {
        p->at++;
        if (next_is(p, '+') || next_is(p, '-')) p->at++;
        skip_digits(p, "a digit of the exponent");
    }
    // strtod() wants a NUL, which the text need not have; the place of the next string is free for a moment.
    size_t length = (size_t)(p->at - start);
    memcpy(p->strings, start, length);
    p->strings[length] = 0;
    double value = strtod(p->strings, NULL);
    if (isinf(value)) fail(p, start, "a number larger than a double can hold");
    return value;
}

static void parse_word(Parser *p, const char *word) {
    size_t length = strlen(word);
    if ((size_t)(p->end - p->at) < length || memcmp(p->at, word, length)) fail_expected(p, "a value");
    p->at += length;
}

static Json parse_value(Parser *p);

// At '[' or '{'. The children wait on the stack until the last one is there, then move to the block together.
static Json parse_family(Parser *p, JsonKind kind) {
    char close = kind == JSON_OBJECT ? '}' : ']';
    if (++p->depth > DEEPEST) fail(p, p->at, "more than 64 arrays and objects within one another");
    size_t first = p->waits;
    p->at++;
    skip_blanks(p);
    while (first == p->waits ? !next_is(p, close) : next_is(p, ',')) {
        const char *key = NULL;
        if (first != p->waits) p->at++;
        if (kind == JSON_OBJECT) {
            skip_blanks(p);
            if (!next_is(p, '"')) fail_expected(p, "a member's name in quotes");
            key = parse_string(p);
            skip_blanks(p);
            if (!next_is(p, ':')) fail_expected(p, "':' behind a member's name");
            p->at++;
        }
        Json child = parse_value(p);
        child.key = key;
        p->waiting[p->waits++] = child;
    }
    if (!next_is(p, close)) fail_expected(p, kind == JSON_OBJECT ? "',' or '}'" : "',' or ']'");
    p->at++;
    Json family = {.kind = kind, .file = p->file, .items = p->block + p->placed, .length = p->waits - first};
    memcpy(family.items, p->waiting + first, family.length * sizeof(Json));
    p->placed += family.length;
    p->waits = first;
    p->depth--;
    return family;
}

// Blanks before and behind the value are skipped.
static Json parse_value(Parser *p) {
    Json v = {.kind = JSON_NULL, .file = p->file};
    skip_blanks(p);
    switch (p->at < p->end ? *p->at : 0) {
    case '{': v = parse_family(p, JSON_OBJECT); break;
    case '[': v = parse_family(p, JSON_ARRAY); break;
    case '"': v.kind = JSON_STRING, v.string = parse_string(p); break;
    case 't': v.kind = JSON_BOOL, v.number = 1, parse_word(p, "true"); break;
    case 'f': v.kind = JSON_BOOL, parse_word(p, "false"); break;
    case 'n': parse_word(p, "null"); break;
    default:
        if (p->at == p->end || !*p->at || !strchr("-0123456789", *p->at)) fail_expected(p, "a value");
        v.kind = JSON_NUMBER, v.number = parse_number(p);
    }
    skip_blanks(p);
    return v;
}

Json *json_parse(const char *text, size_t length, const char *name) {
    Parser p = {.text = text, .at = text, .end = text + length, .name = name};
    size_t bad_at, values = 1;
    if (!utf8_valid(text, length, &bad_at)) fail(&p, text + bad_at, "invalid UTF-8");
    for (size_t i = 0; i < length; i++) values += text[i] == ',' || text[i] == '[' || text[i] == '{';
    if (values > MOST_VALUES) fail(&p, text, "more than 2^24 values"); // 96 bytes each while it is read
    size_t named = strlen(name) + 1;
    p.block = xmalloc(values * sizeof(Json) + named + length + 1);
    p.strings = (char *)memcpy(p.block + values, name, named) + named, p.file = p.strings - named;
    p.waiting = malloc(values * sizeof(Json));
    if (!p.waiting) fail(&p, text, "too large for this machine's memory");
    p.placed = 1; // the root is the block's first
    p.block[0] = parse_value(&p);
    if (p.at < p.end) fail_expected(&p, "the end of the text");
    free(p.waiting);
    return p.block;
}

Json *json_load(const char *path) {
    size_t length;
    char *text = read_file(path, &length);
    const char *kind = file_kind((const unsigned char *)text, length);
    if (kind) die("%s is no JSON text but %s", path, kind);
    Json *root = json_parse(text, length, path);
    free(text);
    return root;
}

void json_free(Json *root) { free(root); }

// ---- access --------------------------------------------------------------------------------------------

const Json *json_get(const Json *object, const char *key) {
    if (!object || object->kind != JSON_OBJECT) return NULL;
    for (size_t i = object->length; i-- > 0;) // backwards: of equal keys the last one counts
        if (!strcmp(object->items[i].key, key)) return &object->items[i];
    return NULL;
}

const char *json_file(const Json *value) { return value && value->file ? value->file : "the configuration"; }

static const Json *get_kind(const Json *object, const char *key, JsonKind kind) {
    static const char *const names[] = {"null",     "true or false", "a number",
                                        "a string", "an array",      "an object"};
    const Json *value = json_get(object, key);
    if (!value || value->kind == JSON_NULL) return NULL;
    if (value->kind != kind)
        die("%s: \"%s\" is %s, expected %s", json_file(object), key, names[value->kind], names[kind]);
    return value;
}

double json_get_number(const Json *object, const char *key, double fallback) {
    const Json *value = get_kind(object, key, JSON_NUMBER);
    return value ? value->number : fallback;
}

bool json_get_bool(const Json *object, const char *key, bool fallback) {
    const Json *value = get_kind(object, key, JSON_BOOL);
    return value ? value->number != 0 : fallback;
}

const char *json_get_string(const Json *object, const char *key, const char *fallback) {
    const Json *value = get_kind(object, key, JSON_STRING);
    return value ? value->string : fallback;
}

char *json_text(const Json *value, char quote) {
    bool object = value->kind == JSON_OBJECT, quoted = quote == '"';
    double x = value->number;
    switch (value->kind) {
    case JSON_NULL: return xstrdup("null");
    case JSON_BOOL: return xstrdup(x != 0 ? "true" : "false");
    case JSON_NUMBER: // whole without point or exponent, since Python tells 1000 from 1e3
        return x == floor(x) && fabs(x) < 1e15 ? format("%.0f", x) : number_text(x, false);
    case JSON_STRING: return quoted ? json_quote(value->string) : format("'%s'", value->string);
    default: break;
    }
    char *text = xstrdup(object ? "{" : "[");
    for (size_t i = 0; i < value->length; i++) {
        char *key = object ? json_quote(value->items[i].key) : NULL,
             *item = json_text(&value->items[i], quote);
        format_more(&text, "%s%s%s%s", i ? ", " : "", key ? key : "", key ? ": " : "", item);
        free(key), free(item);
    }
    format_more(&text, object ? "}" : "]");
    return text;
}

void json_check_keys(const Json *object, const char *file, const JsonKey *keys) {
    static const char *const kinds[] = {"null", "boolean", "number", "string", "list", "object"};
    if (!object || object->kind != JSON_OBJECT) die("%s: an object with keys is expected", file);
    for (size_t i = 0; i < object->length; i++) {
        const Json *value = json_get(object, object->items[i].key);
        const char *name = value->key;
        const JsonKey *known = keys;
        while (known->key && place_in(known->key, name) < 0 &&
               (known->key[0] != '*' || !ends_with(name, known->key + 1)))
            known++;
        bool says_nothing = value->kind == JSON_NULL || (value->kind == JSON_BOOL && value->number == 0);
        char *text = json_text(value, '\'');
        if (known->key && known->obeyed && place_in(known->obeyed, text) < 0 &&
            place_in(known->obeyed, kinds[value->kind]) < 0)
            die("%s: \"%s\" is %s; what is supported is %s", file, name, text, known->obeyed);
        if (!known->key && !says_nothing && name[0] != '_')
            note("%s: \"%s\" is not known; its value, %s, is ignored", file, name, text);
        free(text);
    }
}

// ---- writing -------------------------------------------------------------------------------------------

char *json_quote(const char *s) {
    size_t left = strlen(s);
    char *out = xmalloc(6 * left + 3), *to = out;
    *to++ = '"';
    for (size_t length; left; s += length, left -= length) {
        length = utf8_length(s, left);
        if (!length) {
            to += sprintf(to, "\\ufffd");
            length = 1;
        } else if ((unsigned char)*s < ' ' || *s == 0x7f) {
            to += sprintf(to, "\\u%04x", *s);
        } else {
            if (*s == '"' || *s == '\\') *to++ = '\\';
            to = (char *)memcpy(to, s, length) + length;
        }
    }
    *to++ = '"', *to = 0;
    return out;
}
