// recipe.c: the text in a PNG from which the picture can be drawn again. See recipe.h.
#include "recipe.h"
#include "lib/io/pairs.h" // hash_file
#include "sd.h"           // samplers

#include <stdlib.h>
#include <string.h>

// The settings as they are written. A row here is all that an option of sd sample needs to be written, read
// and drawn again; --prompt and --negative stand above the settings.
static const struct {
    const char *key, *option;
    enum { PLAIN, SAMPLER, SIZE, PATH, HASHED } kind; // HASHED: a path, and the hash of that file
} settings[] = {
    {"Steps", "steps", PLAIN},
    {"Sampler", "scheduler", SAMPLER},
    {"Eta", "eta", PLAIN},
    {"Spacing", "spacing", PLAIN},
    {"CFG scale", "cfg", PLAIN},
    {"Seed", "seed", PLAIN},
    {"Size", "width", SIZE}, // and height: "512x512"
    {"RNG", "rng", PLAIN},
    {"Precision", "dtype", PLAIN},
    {"Init", "init", HASHED},
    {"Denoising strength", "strength", PLAIN},
    {"Latents", "latents", HASHED},
    {"Model", "model", PATH},
    {"Tokenizer", "tokenizer", PATH},
    {"LoRA", "lora", PATH},
};
enum { SETTINGS = sizeof settings / sizeof *settings };

static const char negative_line[] = "Negative prompt:";

static Option *find(const Option *options, const char *name) {
    while (!options->name || strcmp(options->name, name)) options++;
    return (Option *)options;
}

// Where "Negative prompt:" stands at the beginning of a line, or NULL. Blanks before it do not count.
static char *find_negative(const char *text) {
    for (const char *line = text; line; line = strchr(line, '\n'), line += line != NULL) {
        const char *words = line + strspn(line, " \t\r");
        if (starts_with(words, negative_line)) return (char *)words;
    }
    return NULL;
}

static char *file_hash(const char *path) {
    uint64_t hash;
    if (!hash_file(path, &hash)) die("cannot read %s", path);
    return format("%016llx", (unsigned long long)hash);
}

// ---- writing ----------------------------------------------------------------------------------------------

// Adds "key: value, ". A value that would not be read back as it is stands in quotes, escaped as in JSON.
static void append(char **text, const char *key, const char *value) {
    size_t n = strlen(value);
    bool plain = n && !strpbrk(value, ",\"\\\n\r") && value[0] != ' ' && value[n - 1] != ' ';
    char *quoted = plain ? xstrdup(value) : json_quote(value);
    format_more(text, "%s: %s, ", key, quoted);
    free(quoted);
}

static void append_setting(char **text, const Option *options, int i) {
    const Option *o = find(options, settings[i].option);
    const char *key = settings[i].key;
    const Texts *list = o->to;
    for (int k = 0; o->kind == A_LIST && k < list->count; k++) append(text, key, list->at[k]);
    char *value = option_text(o);
    if (!value) return;
    if (settings[i].kind == SIZE) format_more(&value, "x%s", option_text(find(options, "height")));
    append(text, key, settings[i].kind == SAMPLER ? samplers[*(int *)o->to].title : value);
    if (settings[i].kind == HASHED) {
        char *hash_key = format("%s hash", key), *hash = file_hash(value);
        append(text, hash_key, hash);
        free(hash_key), free(hash);
    }
    free(value);
}

char *recipe_write(const Option *options) {
    char *prompt = option_text(find(options, "prompt")), *negative = option_text(find(options, "negative"));
    bool alike = find_negative(prompt) != NULL; // a line of it looks like the other one
    char *text = xstrdup(prompt);
    // To CLIP a line's end is a blank like any other. So other readers, too, see one prompt.
    for (char *c = text; alike && *c; c++)
        if (*c == '\n') *c = ' ';
    if (negative) format_more(&text, "\n%s %s", negative_line, negative);
    format_more(&text, "\n");
    for (int i = 0; i < SETTINGS; i++) append_setting(&text, options, i);
    if (alike) { // as it was
        append(&text, "Prompt", prompt);
        if (negative) append(&text, "Negative prompt", negative);
    }
    format_more(&text, "Version: sd.c");
    utf8_mend(text); // a path may be none
    free(prompt), free(negative);
    return text;
}

bool recipe_is_of(const char *text, const char *png) {
    char *there = image_is_whole(png) ? image_png_parameters(png) : NULL;
    bool same = there && !strcmp(there, text);
    free(there);
    return same;
}

// ---- reading ----------------------------------------------------------------------------------------------

// The next "key: value" of the settings, as new strings. *at moves behind it. False at the end.
static bool next_setting(const char **at, char **key, char **value, const char *png) {
    *at += strspn(*at, ", ");
    if (!**at) return false;
    const char *colon = strchr(*at, ':');
    if (!colon) die("%s: its text ends in \"%s\"; settings (Steps: 20, ...) are expected", png, *at);
    *key = format("%.*s", (int)(colon - *at), *at);
    const char *text = colon + 1 + strspn(colon + 1, " "), *end = text + strcspn(text, ",");
    if (*text == '"') {
        for (end = text + 1; *end && *end != '"'; end++) end += *end == '\\' && end[1];
        end += *end == '"';
    }
    *at = end;
    *value = format("%.*s", (int)(end - text), text);
    if (*text == '"') *value = xstrdup(json_parse(*value, strlen(*value), png)->string);
    return true;
}

// As if it had been typed, unless it was.
static void set(const Option *options, const char *name, const char *text) {
    Option *o = find(options, name);
    if (!o->given) option_set(o, text);
}

// False where there is no such setting. `value` is kept.
static bool set_setting(const Option *options, const char *key, char *value, const char *png) {
    int i = 0;
    while (i < SETTINGS && !starts_with(key, settings[i].key)) i++;
    const char *rest = i < SETTINGS ? key + strlen(settings[i].key) : "none";
    bool is_hash = i < SETTINGS && settings[i].kind == HASHED && !strcmp(rest, " hash");
    if (*rest && !is_hash) return false;
    Option *o = find(options, settings[i].option);
    if (settings[i].kind == SIZE) {
        char *x = strchr(value, 'x');
        if (!x) die("%s: its size is \"%s\"; WIDTHxHEIGHT is expected", png, value);
        *x = 0;
        set(options, "height", x + 1);
    }
    if (o->given) return true;
    if (is_hash) {
        const char *path = *(const char **)o->to, *hash = file_hash(path);
        if (strcmp(hash, value))
            die("%s is not the file that %s was drawn with: its hash is %s, not %s; --%s says where that is",
                path, png, hash, value, o->name);
        return true;
    }
    if (settings[i].kind >= PATH) {
        const char *path = o->kind == A_LIST ? parse_lora(value, &(float){0}) : value; // FILE[:SCALE]
        if (!file_exists(path))
            die("%s was drawn with %s, which is not here; --%s says where it is", png, path, o->name);
    }
    for (int k = 0; settings[i].kind == SAMPLER && samplers[k].title; k++)
        if (!strcmp(value, samplers[k].title)) {
            *(int *)o->to = k;
            return true;
        }
    option_set(o, value);
    return true;
}

Image *recipe_read(const Option *options, const char *png) {
    char *text = image_png_parameters(png), *last = text ? strrchr(text, '\n') : NULL, *key, *value;
    if (!last) die("%s holds no recipe (a PNG's text \"parameters\"); it cannot be drawn again", png);
    *last = 0;
    bool exact = false; // the prompts come in quotes
    for (const char *at = last + 1; next_setting(&at, &key, &value, png);)
        if (!strcmp(key, "Prompt"))
            set(options, "prompt", value), exact = true;
        else if (!strcmp(key, "Negative prompt"))
            set(options, "negative", value);
        else if (strcmp(key, "Version") && !set_setting(options, key, value, png))
            die("%s asks for \"%s: %s\", which sd sample does not know", png, key, value);
    char *negative = exact ? NULL : find_negative(text);
    if (negative) {
        const char *words = negative + strlen(negative_line);
        set(options, "negative", words + (*words == ' '));
        while (negative > text && *negative != '\n') negative--;
        *negative = 0;
    }
    if (!exact) set(options, "prompt", text);
    return image_load(png);
}

void recipe_compare(const Image *image, const Image *original, const char *png) {
    bool same = image->width == original->width && image->height == original->height &&
                !memcmp(image->rgb, original->rgb, 3 * (size_t)image->width * (size_t)image->height);
    note(same ? "every pixel is as in %s"
              : "it differs from %s: by the options typed, or the model, an adapter, the program or the "
                "processor is another one",
         png);
}
