// json.c: any bytes as JSON; the result is a document or a message, never a crash.
#include "lib/io/io.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

static jmp_buf on_die;
static void leave(const char *message) {
    (void)message;
    longjmp(on_die, 1);
}

// Reads every value, so that an invalid pointer is found.
static size_t walk(const Json *value) {
    size_t sum = (size_t)value->kind + (value->key ? strlen(value->key) : 0);
    if (value->kind == JSON_STRING) return sum + strlen(value->string);
    if (value->kind != JSON_ARRAY && value->kind != JSON_OBJECT) return sum;
    for (size_t i = 0; i < value->length; i++) {
        sum += walk(&value->items[i]);
        if (value->kind == JSON_OBJECT && !json_get(value, value->items[i].key)) abort();
    }
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    die_hook = leave;
    if (setjmp(on_die)) return 0;
    Json *root = json_parse((const char *)data, size, "fuzz");
    walk(root);
    json_free(root);
    return 0;
}
