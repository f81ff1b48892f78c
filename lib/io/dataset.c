// dataset.c: pictures with captions, in the file layouts that Flickr8k and Flickr30k come in. See io.h.
//
//   captions.txt              CSV (RFC 4180) with a header: image,caption (Kaggle's Flickr8k), or
//                             image_name,comment_number,comment (Kaggle's Flickr30k)
//   Flickr8k.token.txt        name.jpg#0<TAB>caption (the original releases)
//   results_20130124.token    the same
//   results.csv               image_name| comment_number| comment (Kaggle's other Flickr30k)
//   dataset_flickr8k.json     Karpathy's splits: {"images": [{"filename", "split", "sentences": [{"raw"}]}]};
//   dataset_flickr30k.json    also dataset.json
//
// The first of these that is there counts. Pictures are in the order in which the file first names them, and
// each has its captions in the file's order. The pictures themselves are not opened here.
#define _DEFAULT_SOURCE // strcasecmp, readdir
#include "io.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { MOST_CAPTIONS = 1 << 22 };
static const char *const picture_folders[] = {"", "Images/", "images/", "flickr30k_images/",
                                              "Flicker8k_Dataset/"};

// ---- collecting ----------------------------------------------------------------------------------------

typedef struct {
    Dataset *set;
    const char *file; // the captions file's path, for messages
    size_t room;      // for samples
    Names names;      // of the samples -> their places
    long bare;        // rows without a caption
    long captions;
} Builder;

// The sample of that name, a new one where there is none yet.
static Sample *sample_of(Builder *b, const char *name, size_t length) {
    Dataset *set = b->set;
    int known = names_get(&b->names, name, length);
    if (known >= 0) return &set->samples[known];
    if (set->count == b->room) {
        b->room = 2 * b->room + 64;
        set->samples = xrealloc(set->samples, b->room * sizeof *set->samples);
    }
    Sample *s = &set->samples[set->count];
    *s = (Sample){.name = format("%.*s", (int)length, name)};
    names_set(&b->names, s->name, length, (int)set->count++);
    return s;
}

static bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

// One caption of one picture, without the blanks around both.
static void add_caption(Builder *b, long line, const char *name, size_t name_length, const char *text,
                        size_t length) {
    while (name_length && is_blank(*name)) name++, name_length--;
    while (name_length && is_blank(name[name_length - 1])) name_length--;
    while (length && is_blank(*text)) text++, length--;
    while (length && is_blank(text[length - 1])) length--;
    if (!name_length || name_length > 4096) die("%s: line %ld: the picture's name is missing", b->file, line);
    if (!length) {
        if (!b->bare++)
            note("%s: line %ld: the caption of %.*s is missing; such rows are left out", b->file, line,
                 (int)name_length, name);
        return;
    }
    if (length > 1 << 20)
        die("%s: line %ld: a caption of %zu bytes; is a quote missing?", b->file, line, length);
    if (++b->captions > MOST_CAPTIONS) die("%s: more than %d captions", b->file, MOST_CAPTIONS);
    Sample *s = sample_of(b, name, name_length);
    s->captions = xrealloc(s->captions, ((size_t)s->caption_count + 1) * sizeof *s->captions);
    s->captions[s->caption_count++] = format("%.*s", (int)length, text);
}

// ---- the layouts ---------------------------------------------------------------------------------------

typedef struct {
    const char *p, *end;
    long line; // counted from 1
} Reader;

static bool read_line(Reader *r, const char **line, size_t *length) {
    r->line++;
    return next_line(&r->p, r->end, line, length);
}

// A CSV field, decoded in place: plain up to the comma, or quoted, where "" is a quote and commas and line
// ends are text. The last column of a row, where it is not quoted, takes the rest of the line, commas too:
// files made by hand often leave the quotes out. Returns whether the row ended here.
static bool read_field(Reader *r, const char *file, bool last_column, const char **field, size_t *length) {
    char *out = (char *)r->p;
    bool quoted = r->p < r->end && *r->p == '"', ended = true;
    long first_line = r->line;
    *field = out;
    if (quoted) r->p++;
    while (r->p < r->end) {
        char c = *r->p++;
        r->line += c == '\n';
        if (!quoted && (c == '\n' || (c == ',' && !last_column))) {
            ended = c == '\n';
            break;
        }
        bool doubled = quoted && c == '"' && r->p < r->end && *r->p == '"';
        if (doubled) r->p++;
        if (!quoted || c != '"' || doubled) {
            *out++ = c;
            continue;
        }
        quoted = false;
        if (r->p < r->end && *r->p == '\r') r->p++;
        if (r->p < r->end && *r->p != '\n' && (*r->p != ',' || last_column))
            die("%s: line %ld: expected the end of the field behind a closing quote", file, r->line);
    }
    if (quoted) die("%s: line %ld: a quote is opened and not closed", file, first_line);
    *length = (size_t)(out - *field);
    return ended;
}

// The first column of the headers below is the picture, the last the caption. Case, blanks and quotes do not
// count. There may be one more column in front: the index that pandas writes.
static void read_csv(Builder *b, Reader r) {
    static const char *const known[] = {"image,caption", "image_name,comment_number,comment"};
    const char *header = "";
    size_t header_length = 0;
    int columns = 1, extra = -1;
    read_line(&r, &header, &header_length);
    char *plain = xmalloc(header_length + 1), *out = plain;
    for (size_t i = 0; i < header_length; i++) {
        columns += header[i] == ',';
        if (header[i] != ' ' && header[i] != '"') *out++ = (char)tolower((unsigned char)header[i]);
    }
    *out = 0;
    const char *comma = strchr(plain, ',');
    for (int i = 0; i < 2; i++) {
        if (!strcmp(plain, known[i])) extra = 0;
        if (comma && !strcmp(comma + 1, known[i])) extra = 1;
    }
    free(plain);
    if (extra < 0)
        die("%s: it begins with '%.*s', expected the header image,caption", b->file,
            (int)(header_length < 60 ? header_length : 60), header);
    r.line++; // the one that is read next
    while (r.p < r.end) {
        if (*r.p == '\n' || *r.p == '\r') { // an empty line
            if (*r.p++ == '\n') r.line++;
            continue;
        }
        const char *field[4];
        size_t length[4];
        long line = r.line;
        int n = 0;
        for (bool ended = false; n < columns && !ended; n++)
            ended = read_field(&r, b->file, n == columns - 1, &field[n], &length[n]);
        if (n < columns) die("%s: line %ld: %d fields, expected %d", b->file, line, n, columns);
        add_caption(b, line, field[extra], length[extra], field[n - 1], length[n - 1]);
    }
}

// name.jpg#0<TAB>caption
static void read_token(Builder *b, Reader r) {
    const char *line;
    size_t length;
    while (read_line(&r, &line, &length)) {
        if (!length) continue;
        const char *tab = memchr(line, '\t', length);
        const char *hash = tab;
        while (hash && hash > line && *hash != '#') hash--;
        if (!tab || *hash != '#')
            die("%s: line %ld: expected name#number, a tab and a caption", b->file, r.line);
        add_caption(b, r.line, line, (size_t)(hash - line), tab + 1, (size_t)(line + length - tab) - 1);
    }
}

// name| number| caption. One row of the release lacks the second bar ("2199200615.jpg| 4   A dog runs ..."),
// so whatever stands behind the number is the caption. No quotes here: a " is text.
static void read_bars(Builder *b, Reader r) {
    const char *line;
    size_t length;
    if (!read_line(&r, &line, &length) || length < 10 || strncmp(line, "image_name", 10) ||
        !memchr(line, '|', length))
        die("%s: it does not begin with the header image_name| comment_number| comment", b->file);
    while (read_line(&r, &line, &length)) {
        if (!length) continue;
        const char *end = line + length, *bar = memchr(line, '|', length);
        const char *p = bar ? bar + 1 : end;
        while (p < end && is_blank(*p)) p++;
        const char *number = p;
        while (p < end && *p >= '0' && *p <= '9') p++;
        if (!bar || p == number) die("%s: line %ld: expected name| number| caption", b->file, r.line);
        while (p < end && is_blank(*p)) p++;
        if (p < end && *p == '|') p++;
        add_caption(b, r.line, line, (size_t)(bar - line), p, (size_t)(end - p));
    }
}

static void read_karpathy(Builder *b, Reader r) {
    Json *root = json_parse(r.p, (size_t)(r.end - r.p), b->file);
    const Json *images = json_get(root, "images");
    if (!images || images->kind != JSON_ARRAY) die("%s: the list \"images\" is missing", b->file);
    for (size_t i = 0; i < images->length; i++) {
        const Json *image = &images->items[i];
        if (image->kind != JSON_OBJECT) die("%s: picture %zu is no object", b->file, i);
        const char *name = json_get_string(image, "filename", ""),
                   *split = json_get_string(image, "split", NULL);
        const Json *sentences = json_get(image, "sentences");
        if (!*name) die("%s: picture %zu has no filename", b->file, i);
        if (!sentences || sentences->kind != JSON_ARRAY || !sentences->length)
            die("%s: picture %s has no sentences", b->file, name);
        size_t before = b->set->count;
        for (size_t k = 0; k < sentences->length; k++) {
            const char *raw = json_get_string(&sentences->items[k], "raw", "");
            if (!raw[strspn(raw, " \t\r\n")])
                die("%s: picture %s: sentence %zu is missing", b->file, name, k);
            add_caption(b, 1, name, strlen(name), raw, strlen(raw));
        }
        if (b->set->count == before) die("%s: picture %s occurs twice", b->file, name);
        if (split) b->set->samples[before].split = xstrdup(split);
    }
    json_free(root);
}

static const struct {
    const char *file;
    void (*read)(Builder *, Reader);
} layouts[] = {{"captions.txt", read_csv},
               {"Flickr8k.token.txt", read_token},
               {"results_20130124.token", read_token},
               {"results.csv", read_bars},
               {"dataset_flickr8k.json", read_karpathy},
               {"dataset_flickr30k.json", read_karpathy},
               {"dataset.json", read_karpathy}};
enum { LAYOUTS = sizeof layouts / sizeof layouts[0] };

// ---- opening -------------------------------------------------------------------------------------------

static void free_sample(Sample *s) {
    for (int i = 0; i < s->caption_count; i++) free(s->captions[i]);
    free(s->captions), free(s->path), free(s->name), free(s->split);
}

// Finds every picture's file; the absent ones are named and left out. Few of them are usual: Flickr8k's own
// list has one that was never in the archive.
static void find_pictures(Dataset *set, const char *dir, const char *file) {
    enum { FEW = 10 };
    size_t listed = set->count;
    char *absent_names = xstrdup("");
    set->count = 0;
    for (size_t i = 0, absent = 0; i < listed; i++) {
        Sample *s = &set->samples[i];
        char *inside = format("/%s/", s->name);
        if (s->name[0] == '/' || strstr(inside, "/../"))
            die("%s: the picture \"%s\" would lie outside of the data set", file, s->name);
        free(inside);
        for (size_t k = 0; k < sizeof picture_folders / sizeof picture_folders[0] && !s->path; k++) {
            s->path = format("%s/%s%s", dir, picture_folders[k], s->name);
            if (!is_regular(s->path)) free(s->path), s->path = NULL;
        }
        if (s->path) {
            set->samples[set->count++] = *s;
            continue;
        }
        if (absent++ < FEW)
            format_more(&absent_names, "%s%.*s", absent > 1 ? ", " : "", utf8_fit(s->name, 100), s->name);
        free_sample(s);
    }
    size_t absent = listed - set->count;
    const char *more = absent > FEW ? ", ..." : "";
    if (!set->count || (absent > FEW && absent * 100 > listed))
        die("%s: %zu of the %zu pictures that it lists are absent: %s%s (looked for in %s, its Images, images, "
            "flickr30k_images and Flicker8k_Dataset)",
            file, absent, listed, absent_names, more, dir);
    if (absent)
        note("%s: %zu of %zu pictures are absent and left out: %s%s", file, absent, listed, absent_names,
             more);
    free(absent_names);
}

Dataset *dataset_open(const char *dir) {
    if (!is_directory(dir)) die("%s: no such folder (a data set was expected)", dir);
    size_t which = 0;
    char *file = NULL;
    for (; which < LAYOUTS; which++) {
        file = format("%s/%s", dir, layouts[which].file);
        if (file_exists(file)) break;
        free(file);
    }
    if (which == LAYOUTS)
        die("%s: no captions found: expected captions.txt, Flickr8k.token.txt, results_20130124.token, "
            "results.csv, dataset_flickr8k.json, dataset_flickr30k.json or dataset.json",
            dir);

    size_t size, bad_at;
    char *text = read_file(file, &size);
    Reader r = {text, text + size, 0};
    if (r.p == r.end) die("%s: it is empty", file);
    if (memchr(r.p, 0, (size_t)(r.end - r.p))) die("%s: it holds a zero byte: no text", file);
    if (!utf8_valid(text, size, &bad_at))
        die("%s: it is not UTF-8: byte %zu is %02x", file, bad_at, (unsigned char)text[bad_at]);

    Dataset *set = xcalloc(1, sizeof *set);
    set->layout = layouts[which].file;
    Builder b = {.set = set, .file = file};
    layouts[which].read(&b, r);
    if (b.bare > 1) note("%s: %ld rows have no caption and are left out", file, b.bare);
    if (!set->count) die("%s: it lists no pictures with a caption", file);
    find_pictures(set, dir, file);
    names_free(&b.names), free(text), free(file);
    return set;
}

void dataset_close(Dataset *set) {
    if (!set) return;
    for (size_t i = 0; i < set->count; i++) free_sample(&set->samples[i]);
    free(set->samples);
    free(set);
}

bool dataset_trains(const Sample *s) {
    return !s->split || !strcmp(s->split, "train") || !strcmp(s->split, "restval");
}

size_t dataset_choose(Dataset *set, DatasetPart part, size_t hold_out) {
    bool splits = false;
    for (size_t i = 0; i < set->count; i++) splits |= set->samples[i].split != NULL;
    if (hold_out > set->count / 2) hold_out = set->count / 2;
    size_t kept = 0;
    for (size_t i = 0; i < set->count; i++) {
        Sample s = set->samples[i];
        bool test = splits ? s.split && !strcmp(s.split, "test") : i >= set->count - hold_out;
        bool train = splits ? dataset_trains(&s) : !test;
        if ((part == PART_TRAIN && !train) || (part == PART_HELD_OUT && !test)) continue;
        set->samples[i] = set->samples[kept];
        set->samples[kept++] = s;
    }
    return kept;
}

// ---- folders of pictures -------------------------------------------------------------------------------

static int compare_paths(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool ends_in(const char *dot, const char *const *endings) {
    while (*endings && strcasecmp(dot, *endings)) endings++;
    return *endings != NULL;
}

typedef struct {
    char **paths;
    size_t count, others; // others: pictures of other types
    bool deep;
} Listing;

static void list_folder(Listing *l, const char *dir) {
    static const char *const known[] = {".png", ".jpg", ".jpeg", NULL};
    // Other programs read these, too. They would find another FID for the folder, so there is a note.
    static const char *const unknown[] = {".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp", NULL};
    DIR *folder = opendir(dir);
    if (!folder) die("cannot read the folder %s: %s", dir, strerror(errno));
    for (struct dirent *entry; (entry = readdir(folder));) {
        const char *name = entry->d_name, *dot = strrchr(name, '.');
        char *path = format("%s/%s", dir, name);
        if (is_directory(path)) {
            if (l->deep && name[0] != '.' && is_link(path)) // it may lead back here
                note("%s is a link to a folder and is not searched", path);
            else if (l->deep && name[0] != '.')
                list_folder(l, path);
        } else if (dot && dot != name && ends_in(dot, known)) {
            l->paths = xrealloc(l->paths, (l->count + 1) * sizeof *l->paths);
            l->paths[l->count++] = path, path = NULL;
        } else {
            l->others += dot && dot != name && ends_in(dot, unknown);
        }
        free(path);
    }
    closedir(folder);
}

char **list_images(const char *dir, bool deep, size_t *count) {
    Listing l = {.deep = deep};
    list_folder(&l, dir);
    if (l.others)
        note("%s: pictures of other types than .png, .jpg and .jpeg are left out: %zu; convert them to PNG",
             dir, l.others);
    if (l.count) qsort(l.paths, l.count, sizeof *l.paths, compare_paths);
    *count = l.count;
    return l.paths;
}

void dataset_note_others(const char *images, size_t count) {
    size_t there;
    char **paths = list_images(images, false, &there);
    if (there > count)
        note("%s: %zu pictures are not of this data set; an FID of the folder would count them", images,
             there - count);
    for (size_t i = 0; i < there; i++) free(paths[i]);
    free(paths);
}
