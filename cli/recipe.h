// recipe.h: the text in a picture's PNG from which the same picture can be drawn again. It is in the form
// that other tools read, too ("infotext"): the prompt, "Negative prompt: ...", and in its last line the
// settings, "Steps: 20, Sampler: DDIM, ...". Each is an option of sd sample: see the table in recipe.c.
#ifndef RECIPE_H
#define RECIPE_H

#include "options.h"

// The text, from what the variables behind the options hold now. The caller frees it.
char *recipe_write(const Option *options);
// Is this text what the picture in that file says? False where there is no whole picture.
bool recipe_is_of(const char *text, const char *png);
// Sets every option that was not typed to what the picture's text says, and returns the picture. Dies where
// it has no such text, of a setting that is no option, and of a file that is absent or no longer what it was.
Image *recipe_read(const Option *options, const char *png);
// A note: is `image` the picture that recipe_read() returned?
void recipe_compare(const Image *image, const Image *original, const char *png);

#endif
