// captions.h: captions as they are typed: read from a file, checked, and taken apart into words.
#ifndef CAPTIONS_H
#define CAPTIONS_H

#include "sd.h"

enum { MOST_PICTURES = 1000000 };
char **read_lines(const char *path, int *count);
void check_text(const char *where, const char *text); // dies where it is no UTF-8; text may be NULL
// Names words that the model was trained without. folder: of its tokenizer; of the texts some may be NULL.
void note_new_words(const char *folder, const char *const *texts, int count);

// A caption's words, with where their tokens stand.
typedef struct {
    char *text;
    int from, count;
} Word;
Word *caption_words(const Model *m, const char *caption, int *count);

#endif
