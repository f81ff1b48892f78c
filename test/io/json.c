// json.c (test): what the JSON reader accepts, what it refuses and with which words. The texts are corner
// cases of RFC 8259, which decides what is valid. Python's json agrees, except that it allows NaN and
// Infinity, half surrogate pairs, numbers beyond a double, and any depth.
#include "lib/io/io.h"
#include "test/test.h"

#include <setjmp.h>
#include <unistd.h>

static jmp_buf on_die;
static char message[1024];

static void keep_message(const char *text) {
    snprintf(message, sizeof message, "%s", text);
    longjmp(on_die, 1);
}

// The document, or NULL where it is refused; then `message` holds the reason. The copy of the text ends with
// its allocation, so that a sanitizer finds a read past the end.
static Json *parse(const char *text, size_t length) {
    char *copy = xmalloc(length);
    memcpy(copy, text, length);
    Json *volatile root = NULL;
    message[0] = 0;
    if (!setjmp(on_die)) root = json_parse(copy, length, "t.json");
    free(copy);
    return root;
}

static void check_accepted(const char *text) {
    Json *root = parse(text, strlen(text));
    check(root != NULL, text);
    json_free(root);
}

static void check_refused(const char *text, size_t length, const char *reason) {
    Json *root = parse(text, length);
    bool right = !root && strstr(message, reason) && !strncmp(message, "t.json: line ", 13);
    if (!right) printf("found: %s\nexpected: %s\n", root ? "accepted" : message, reason);
    check(right, text);
    json_free(root);
}
#define REFUSED(text, reason) check_refused(text, sizeof text - 1, reason)

static void test_values(void) {
    const char *text = " { \"a\" : [ 1 , -2.5e3 , \"x\" , true , false , null , [ ] , { } ] "
                       ",\n\t\"b\":{\"c\":0}, \"a2\":\"\" }\r\n";
    Json *root = parse(text, strlen(text));
    const Json *a = json_get(root, "a"), *b = json_get(root, "b");
    check(root && root->kind == JSON_OBJECT && root->length == 3 && !root->key,
          "an object with three members");
    check(a && a->kind == JSON_ARRAY && a->length == 8 && !strcmp(a->key, "a"), "an array of eight");
    check(a && a->items[0].kind == JSON_NUMBER && a->items[0].number == 1 && a->items[1].number == -2500,
          "numbers");
    check(a && a->items[2].kind == JSON_STRING && !strcmp(a->items[2].string, "x"), "a string");
    check(a && a->items[3].kind == JSON_BOOL && a->items[3].number == 1 && a->items[4].number == 0,
          "true and false");
    check(a && a->items[5].kind == JSON_NULL, "null");
    check(a && a->items[6].kind == JSON_ARRAY && !a->items[6].length && a->items[7].kind == JSON_OBJECT,
          "empty ones");
    check(b && json_get_number(b, "c", 7) == 0 && json_get_number(b, "d", 7) == 7,
          "a number or its fallback");
    check(!json_get(root, "z") && !json_get(NULL, "a") && !json_get(a, "a"), "absent members");
    check(!strcmp(json_get_string(root, "a2", "no"), "") && !strcmp(json_get_string(root, "z", "no"), "no"),
          "strings");
    check(json_get_bool(root, "z", true) && !json_get_bool(root, "z", false),
          "a fallback for true and false");
    if (!setjmp(on_die)) {
        json_get_number(root, "a2", 1);
        check(false, "a string is no number");
    } else
        check(!strcmp(message, "t.json: \"a2\" is a string, expected a number"), message);
    json_free(root);

    static const char *const roots[] = {"1",   "\"s\"", "[]",   "{}",     "null", "-0",
                                        "0.5", "1E+2",  "1e-9", "[[[]]]", "\t1\n"};
    for (size_t i = 0; i < sizeof roots / sizeof *roots; i++) check_accepted(roots[i]);
    root = parse("{\"k\":1,\"k\":2,\"k\":{\"k\":3}}", 25);
    check(root && root->length == 3 && json_get(root, "k")->kind == JSON_OBJECT,
          "of equal keys the last one counts");
    json_free(root);
}

static void test_numbers(void) {
    static const char *const texts[] = {
        "0.1", "123456789012345678", "1.7976931348623157e308", "5e-324", "1e-400", "2.5E-3"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        Json *root = parse(texts[i], strlen(texts[i]));
        check(root && root->number == strtod(texts[i], NULL), texts[i]);
        json_free(root);
    }
    REFUSED("01", "line 1, column 2: expected the end of the text, found '1'");
    REFUSED("-", "a digit");
    REFUSED("+1", "a value");
    REFUSED(".5", "a value");
    REFUSED("1.", "a digit behind the decimal point, found the end");
    REFUSED("1e", "a digit of the exponent");
    REFUSED("0x10", "the end of the text, found 'x'");
    REFUSED("1e400", "larger than a double can hold");
    REFUSED("NaN", "a value");
    REFUSED("-Infinity", "a digit, found 'I'");
    REFUSED("1_0", "found '_'");
}

static void test_strings(void) {
    const char *text = "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\u20AC\\ud83d\\ude00 \xc3\xa9\x7fz\"";
    const char want[] = "\"\\/\b\f\n\r\t\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80 \xc3\xa9\x7fz";
    Json *root = parse(text, strlen(text));
    check(root && !memcmp(root->string, want, sizeof want), "escapes");
    check(root && !root->length && !root->items, "a string has no items, so that no loop runs over them");
    check(!strcmp(json_file(root), "t.json"), "a message about a string can name its file");
    json_free(root);
    REFUSED("\"a", "closing quote of a string, found the end");
    REFUSED("\"a\nb\"", "control characters must be escaped), found byte 0x0a");
    REFUSED("\"\\x\"", "behind a backslash, found 'x'");
    REFUSED("\"\\u12g4\"", "four hexadecimal digits");
    REFUSED("\"\\", "behind a backslash, found the end");
    REFUSED("\"\\ud800\"", "high surrogate");
    REFUSED("\"\\ud800\\u0041\"", "high surrogate");
    REFUSED("\"\\udc00\"", "low surrogate");
    REFUSED("{\"a\\u0000\":1}", "U+0000");
    REFUSED("{\"a\":\"b\\u0000c\"}", "line 1, column 8: U+0000");
    REFUSED("'a'", "a value, found '''");
    REFUSED("\"\xff\"", "line 1, column 2: invalid UTF-8");
    REFUSED("\"\xc0\x80\"", "invalid UTF-8");
    REFUSED("\"\xed\xa0\x80\"", "invalid UTF-8");
    REFUSED("\"\xf4\x90\x80\x80\"", "invalid UTF-8");
    REFUSED("\"\xe2\x82", "invalid UTF-8");
    REFUSED("\xef\xbb\xbf{}", "a value, found byte 0xef");
}

static void test_structure(void) {
    REFUSED("", "a value, found the end of the text");
    REFUSED("[1,]", "column 4: expected a value, found ']'");
    REFUSED("[,1]", "a value");
    REFUSED("[1 2]", "',' or ']'");
    REFUSED("[1", "',' or ']', found the end");
    REFUSED("{\"a\":1,}", "a member's name in quotes, found '}'");
    REFUSED("{a:1}", "a member's name in quotes");
    REFUSED("{\"a\" 1}", "':' behind a member's name");
    REFUSED("{\"a\":}", "a value");
    REFUSED("{\"a\":1", "',' or '}'");
    REFUSED("[1}", "',' or ']', found '}'");
    REFUSED("{}{}", "the end of the text");
    REFUSED("[1] // no", "the end of the text");
    REFUSED("tru", "a value");
    REFUSED("nulll", "the end of the text");
    REFUSED("\n\n [\"\xc3\xa9\xc3\xa9\", x]", "line 3, column 9: expected a value, found 'x'");
    check_refused("1\0", 2, "the end of the text, found byte 0x00");
    check_refused("[\0]", 3, "a value, found byte 0x00");
    char deep[200];
    memset(deep, '[', 64), memset(deep + 64, ']', 64);
    Json *root = parse(deep, 128);
    check(root != NULL, "64 arrays within one another");
    json_free(root);
    memset(deep, '[', 65), memset(deep + 65, ']', 65), deep[130] = 0;
    check_refused(deep, 130, "more than 64 arrays and objects within one another");
}

// Any bytes that are written as a string read back the same.
static void test_writing(void) {
    char all[256], *path = format("/tmp/sd-test-json-%ld.json", (long)getpid());
    for (int i = 1; i < 128; i++) all[i - 1] = (char)i;
    memcpy(all + 127, "\xc3\xa9\xf0\x9f\x98\x80", 7);
    Output *o = output_open(path);
    char *quoted = json_quote(all);
    output_printf(o, "%s", quoted);
    free(quoted);
    output_commit(o);
    Json *root = json_load(path);
    check(root->kind == JSON_STRING && !strcmp(root->string, all), "a string that was written reads back");
    json_free(root);
    remove(path);
    free(path);
}

// The three UTF-8 functions of base.h against one another, over all code points.
static void test_utf8(void) {
    size_t wrong = 0, bad_at;
    for (uint32_t c = 0; c < 0x110000; c++) {
        char bytes[4];
        const char *at = bytes;
        int n = utf8_put(bytes, c);
        bool surrogate = c >= 0xD800 && c < 0xE000;
        if (utf8_valid(bytes, (size_t)n, &bad_at) == surrogate || utf8_get(&at) != c || at != bytes + n)
            wrong++;
        if (n > 1 && utf8_valid(bytes, (size_t)n - 1, NULL)) wrong++;
    }
    check(wrong == 0, "UTF-8 of every code point, whole and cut short");
    for (int c = 0x80; c < 0x100; c++) // and every first byte, before each second one
        for (int next = 0; next < 0x100; next++) {
            char bytes[] = {(char)c, (char)next, (char)0x80, (char)0x80, 'x'};
            bool begins = c >= 0xC2 && c <= 0xF4 && next >= 0x80 && next <= 0xBF;
            if (!begins && utf8_valid(bytes, 5, NULL)) wrong++;
        }
    check(wrong == 0, "bytes that begin no character are refused");
    check(!utf8_valid("ab\xe2\x82x", 5, &bad_at) && bad_at == 2, "the place of a broken sequence");
}

// A folder opens as a file does; what it is must be said.
static void test_folder(void) {
    if (!setjmp(on_die)) json_load("test");
    check(!strcmp(message, "cannot read test: it is a folder"), "a folder in place of a file");
}

int main(void) {
    die_hook = keep_message;
    test_values();
    test_numbers();
    test_strings();
    test_structure();
    test_writing();
    test_utf8();
    test_folder();
    return test_report();
}
