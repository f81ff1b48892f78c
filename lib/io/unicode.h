// unicode.h: the part of Unicode that CLIP's tokenizer stands on: three classes of characters, canonical
// composition, lower case. Not a general library: no collation, no titles, no locales.
#ifndef UNICODE_H
#define UNICODE_H

#include "lib/base.h"

// A character on its way through the tokenizer, with the place in the text that it came from.
typedef struct {
    uint32_t point;
    size_t at; // byte offset
} Point;

bool unicode_is_letter(uint32_t point); // \p{L}
bool unicode_is_number(uint32_t point); // \p{N}
bool unicode_is_blank(uint32_t point);  // \s

// Brings valid UTF-8 to composed form (NFC), then each run of white space to one blank, then letters to lower
// case. Returns *count characters, which the caller frees; `at` counts from `start`.
Point *unicode_normalize(const char *text, size_t bytes, size_t start, size_t *count);

#endif
