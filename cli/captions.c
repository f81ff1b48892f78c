// captions.c: captions as they are typed. See captions.h.
#include "captions.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

char **read_lines(const char *path, int *count) {
    size_t bytes;
    char *text = read_file(path, &bytes), **lines = NULL;
    *count = 0;
    const char *line;
    size_t length;
    for (const char *at = text; next_line(&at, text + bytes, &line, &length);) {
        if (*count == MOST_PICTURES) die("%s has more than %d captions", path, MOST_PICTURES);
        if (memchr(line, 0, length)) die("%s: line %d holds a NUL", path, *count + 1);
        lines = xrealloc(lines, (size_t)(*count + 1) * sizeof *lines);
        lines[(*count)++] = format("%.*s", (int)length, line);
    }
    if (!*count) die("%s holds no caption", path);
    return lines;
}

void check_text(const char *where, const char *text) {
    size_t at;
    if (text && !utf8_valid(text, strlen(text), &at))
        die("%s: the text is not UTF-8: byte %zu, 0x%02x", where, at, (unsigned char)text[at]);
}

// A model that was trained on few words lists them, a line each, beside its tokenizer. Of other words it
// knows the letters at most, so they are named. `folder` is the tokenizer's; texts (count) may hold NULLs.
void note_new_words(const char *folder, const char *const *texts, int count) {
    static const char between[] = " \t\n\r.,;:!?\"'()[]-/0123456789";
    char *list = format("%s/words.txt", folder), *fresh = xstrdup("");
    size_t bytes, length;
    if (!file_exists(list)) return;
    Names known = {0}; // and those that were named
    const char *words = read_file(list, &bytes), *line;
    for (const char *at = words; next_line(&at, words + bytes, &line, &length);)
        names_set(&known, line, length, 0);
    for (int i = 0; i < count; i++) {
        char *text = xstrdup(texts[i] ? texts[i] : "");
        for (char *c = text; *c; c++) *c = (char)tolower((unsigned char)*c);
        for (const char *at = text; *(at += strspn(at, between)); at += length) {
            length = strcspn(at, between);
            if (names_get(&known, at, length) >= 0) continue;
            names_set(&known, at, length, 0);
            format_more(&fresh, "%s%.*s", *fresh ? ", " : "", (int)length, at);
        }
    }
    if (*fresh)
        note("the model was trained without these words (%s lists those that it knows): %s", list, fresh);
}

// CLIP's tokenizer joins no letters across a blank, so each word has as many tokens as it has alone.
Word *caption_words(const Model *m, const char *caption, int *count) {
    int room = m->text_config.max_position_embeddings, *ids = xmalloc((size_t)room * sizeof *ids), at = 1;
    Word *words = NULL;
    size_t length;
    *count = 0;
    for (; *(caption += strspn(caption, " \t\r\n")); caption += length) {
        length = strcspn(caption, " \t\r\n");
        Word w = {format("%.*s", (int)length, caption), at, 0};
        w.count = tokenizer_encode(m->tokenizer, w.text, ids, room, NULL) - 2;
        if (at + w.count > room - 1) w.count = room - 1 - at > 0 ? room - 1 - at : 0; // cut off
        words = xrealloc(words, (size_t)(*count + 1) * sizeof *words);
        words[(*count)++] = w, at += w.count;
    }
    free(ids);
    return words;
}
