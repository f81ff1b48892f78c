// model_folder.c: writes a latent consistency model as a diffusers folder. See model_folder.h.
#define _XOPEN_SOURCE 700 // open_memstream, realpath, symlink
#include "model_folder.h"
#include "lib/io/architectures.h"
#include "options.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// ---- JSON: a configuration with some members changed ------------------------------------------------------

// Whole numbers without point or exponent, since Python tells 1000 from 1e3; others as short as reads back.
static void write_number(FILE *f, double x) {
    char text[40];
    bool whole = x == floor(x) && fabs(x) < 1e15;
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, whole ? "%.*f" : "%.*g", whole ? 0 : digits, x);
        if (strtod(text, NULL) == x) break;
    }
    fputs(text, f);
}

static void write_json(FILE *f, const Json *j) {
    bool object = j->kind == JSON_OBJECT;
    switch (j->kind) {
    case JSON_NULL: fputs("null", f); break;
    case JSON_BOOL: fputs(j->number != 0 ? "true" : "false", f); break;
    case JSON_NUMBER: write_number(f, j->number); break;
    case JSON_STRING: print_json_string(f, j->string); break;
    case JSON_ARRAY:
    case JSON_OBJECT:
        putc(object ? '{' : '[', f);
        for (size_t i = 0; i < j->length; i++) {
            if (i) fputs(", ", f);
            if (object) print_json_string(f, j->items[i].key), fputs(": ", f);
            write_json(f, &j->items[i]);
        }
        putc(object ? '}' : ']', f);
        break;
    }
}

// `base` with the members `set` ({key, JSON text}, ended by a NULL key) in place of its own (a NULL text:
// without it). A new string, with a member a line as diffusers writes it.
static char *json_changed(const Json *base, const char *const set[][2]) {
    char *text;
    FILE *f = open_memstream(&text, &(size_t){0});
    if (!f) die("out of memory");
    const char *before = "{\n  ";
    for (size_t i = 0; base && i < base->length; i++) {
        bool changed = false;
        for (int k = 0; set[k][0]; k++) changed |= !strcmp(base->items[i].key, set[k][0]);
        if (changed) continue;
        fprintf(f, "%s\"%s\": ", before, base->items[i].key);
        write_json(f, &base->items[i]);
        before = ",\n  ";
    }
    for (int k = 0; set[k][0]; k++)
        if (set[k][1]) fprintf(f, "%s\"%s\": %s", before, set[k][0], set[k][1]), before = ",\n  ";
    fputs("\n}\n", f);
    fclose(f);
    return text;
}

static Json *parsed(const char *text) {
    return json_parse(text, strlen(text), "Stable Diffusion's configuration");
}

StudentConfigs student_configs(const Model *teacher, LcmConfig c, bool guidance) {
    StudentConfigs s;
    const Architecture *sd15 = architecture("sd15"); // what an LDM file is
    char *path = format("%s/unet/config.json", teacher->path);
    Json *unet = file_exists(path) ? json_load(path) : parsed(sd15->unet);
    s.unet =
        json_changed(unet, (const char *const[][2]){{"time_cond_proj_dim", guidance ? "256" : "null"}, {0}});
    json_free(unet), free(path);

    FewSteps how = {.scheduler = LCM, .steps = 4, .cfg = guidance ? 1 + (c.w_min + c.w_max) / 2 : 1};
    few_steps_configs(teacher, how, c, &s.scheduler, &s.index);
    return s;
}

void few_steps_configs(const Model *m, FewSteps how, LcmConfig c, char **scheduler, char **index) {
    int steps = scheduler_config(m->scheduler_json, LCM).num_train_timesteps / c.k;
    char class[64], named[80], original[32], scaling[32], defaults[96];
    snprintf(class, sizeof class, "\"%s\"", scheduler_classes[how.scheduler]);
    snprintf(named, sizeof named, "[\"diffusers\", %s]", class);
    snprintf(original, sizeof original, "%d", steps > 50 ? 50 : steps);
    snprintf(scaling, sizeof scaling, "%g", (double)c.timestep_scaling);
    int n = snprintf(defaults, sizeof defaults, "{\"steps\": %d, \"guidance_scale\": %g", how.steps,
                     (double)how.cfg);
    snprintf(defaults + n, sizeof defaults - (size_t)n, how.eta > 0 ? ", \"eta\": %g}" : "}",
             (double)how.eta);
    const char *const distilled[][2] = {
        {"_class_name", class}, {"original_inference_steps", original}, {"timestep_scaling", scaling}, {0}};
    const char *const trailing[][2] = {{"_class_name", class}, {"timestep_spacing", "\"trailing\""}, {0}};
    *scheduler = json_changed(m->scheduler_json, how.trailing ? trailing : distilled);
    Json *other = m->index_json ? NULL : parsed(architecture("sd15")->model_index);
    *index = json_changed(other ? other : m->index_json,
                          (const char *const[][2]){{"scheduler", named},
                                                   {"sd_defaults", NULL}, // the name before
                                                   {"_sd_defaults", defaults},
                                                   {0}});
    if (other) json_free(other);
}

// ---- files and folders ------------------------------------------------------------------------------------

void copy_folder(const char *from, const char *to, bool config_only) {
    DIR *folder = opendir(from);
    if (!folder) die("cannot read the folder %s: %s", from, strerror(errno));
    make_directories(to);
    for (struct dirent *e; (e = readdir(folder));) {
        if (e->d_name[0] == '.') continue;
        char *a = format("%s/%s", from, e->d_name), *b = path_inside(to, e->d_name);
        if (is_directory(a))
            copy_folder(a, b, false);
        else if (!config_only || !strcmp(e->d_name, "config.json"))
            copy_file(a, b);
        free(a), free(b);
    }
    closedir(folder);
}

bool same_folder(const char *a, const char *b) {
    char *x = realpath(a, NULL), *y = realpath(b, NULL);
    bool same = x && y && !strcmp(x, y);
    free(x), free(y);
    return same;
}

// The way from folder `from` to `to`, both absolute and without links: "../tiny/vae".
static char *relative_path(const char *from, const char *to) {
    size_t same = 0, at = 0; // `same`: what they have in common, up to and with a slash
    while (from[at] && from[at] == to[at]) {
        if (from[at] == '/') same = at + 1;
        at++;
    }
    if (!from[at] && to[at] == '/') same = at + 1; // `to` lies below `from`
    char *path = xstrdup(to + same);
    for (const char *rest = strlen(from) > same ? from + same : ""; *rest;) {
        char *longer = format("../%s", path);
        free(path), path = longer;
        const char *slash = strchr(rest, '/');
        rest = slash ? slash + 1 : "";
    }
    return path;
}

// OUT/name becomes the folder `from`: a copy, or a relative link so that both folders can move together.
static void take_over(const ModelFolder *f, const char *name, const char *from) {
    char *to = format("%s/%s", f->out, name), *source = realpath(from, NULL), *here = realpath(f->out, NULL);
    if (!source || !here) die("%s: %s", source ? f->out : from, strerror(errno));
    if (is_link(to) && unlink(to)) die("cannot replace %s: %s", to, strerror(errno));
    if (f->copy) {
        copy_folder(source, to, false);
    } else {
        char *link = relative_path(here, source);
        if (symlink(link, to)) die("cannot make the link %s: %s", to, strerror(errno));
        free(link);
    }
    free(to), free(source), free(here);
}

static void write_network(const ModelFolder *f, const Params *all, const char *prefix, const char *file) {
    Params part = params_part(all, prefix);
    char *path = path_inside(f->out, file);
    params_save(&part, path, strlen(prefix), f->type);
    free(path);
}

// ---- the folder -------------------------------------------------------------------------------------------

static const char *const taken_over[] = {"text_encoder", "vae", "tokenizer"};

void model_folder_check(const ModelFolder *f, const char *teacher) {
    if (same_folder(f->out, teacher))
        die("--output is the teacher itself, %s; the student needs its own folder", f->out);
    if (file_exists(f->out) && !is_directory(f->out)) die("%s is no folder", f->out);
    for (int i = 0; i < 3 && !f->copy; i++) {
        char *path = format("%s/%s", f->out, taken_over[i]);
        if (is_directory(path) && !is_link(path))
            die("%s is a folder already, where a link to the teacher's is to be; remove it, or use --copy",
                path);
        free(path);
    }
}

// [L12] A model folder as diffusers has it: the new UNet and scheduler beside the teacher's other networks.
void model_folder_write(const ModelFolder *f, const Model *teacher, const StudentConfigs *c,
                        const Params *unet) {
    make_directories(f->out);
    write_text_file(f->out, "scheduler/scheduler_config.json", c->scheduler);
    write_text_file(f->out, "unet/config.json", c->unet);
    write_network(f, unet, "unet.", "unet/diffusion_pytorch_model.safetensors");
    if (is_directory(teacher->path)) {
        for (int i = 0; i < 3; i++) {
            char *from = i == 2 && f->tokenizer ? xstrdup(f->tokenizer)
                                                : format("%s/%s", teacher->path, taken_over[i]);
            take_over(f, taken_over[i], from);
            free(from);
        }
    } else { // one LDM file: its parts are written out
        const Architecture *a = architecture("sd15");
        write_text_file(f->out, "text_encoder/config.json", a->text_encoder);
        write_text_file(f->out, "vae/config.json", a->vae);
        write_network(f, &teacher->params, "text_encoder.", "text_encoder/model.safetensors");
        write_network(f, &teacher->params, "vae.", "vae/diffusion_pytorch_model.safetensors");
        take_over(f, "tokenizer", f->tokenizer);
    }
    write_text_file(f->out, "model_index.json", c->index); // last: it makes the folder a model
}
