// model_folder.c: parts of diffusers' folders; a latent consistency model's folder. See model_folder.h.
#define _XOPEN_SOURCE 700 // open_memstream, realpath, symlink
#include "model_folder.h"
#include "options.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const Network networks[3] = {{"text_encoder", "text_encoder.", "text_encoder/model.safetensors"},
                             {"unet", "unet.", "unet/diffusion_pytorch_model.safetensors"},
                             {"vae", "vae.", "vae/diffusion_pytorch_model.safetensors"}};

void network_write(const Network *n, const Params *all, const char *dir, Type type) {
    Params part = params_part(all, n->prefix);
    char *path = path_inside(dir, n->weights);
    params_save(&part, path, strlen(n->prefix), type, NULL, NULL);
    free(path);
}

static Json *config_of(const char *folder, const char *file, const char *known) {
    if (!folder) return json_parse(known, strlen(known), file);
    char *path = format("%s/%s", folder, file);
    Json *j = starts_with(file, "scheduler/") ? scheduler_load(path) : json_load(path);
    free(path);
    return j;
}

Model *model_declared(const char *folder, const Architecture *a) {
    static const Architecture none;
    if (folder) a = &none;
    Json *text = config_of(folder, "text_encoder/config.json", a->text_encoder),
         *unet = config_of(folder, "unet/config.json", a->unet),
         *vae = config_of(folder, "vae/config.json", a->vae);
    Model *m = xcalloc(1, sizeof *m);
    m->text_config = text_config(text), m->unet_config = unet_config(unet), m->vae_config = vae_config(vae);
    m->scheduler_json = config_of(folder, "scheduler/scheduler_config.json", a->scheduler);
    m->text_encoder = text_encoder_new(m->text_config, &m->params);
    m->unet = unet_new(m->unet_config, &m->params), m->vae = vae_new(m->vae_config, &m->params);
    json_free(text), json_free(unet), json_free(vae);
    return m;
}

// ---- JSON: a configuration with some members changed ------------------------------------------------------

// `base` with the members `set` ({key, JSON text}, ended by a NULL key) in place of its own (a NULL text:
// without it). A new string, with a member a line as diffusers writes it.
static char *json_changed(const Json *base, const char *const set[][2]) {
    char *text = xstrdup("");
    for (size_t i = 0; base && i < base->length; i++) {
        const char *key = base->items[i].key;
        bool changed = false;
        for (int k = 0; set[k][0]; k++) changed |= !strcmp(key, set[k][0]);
        if (changed) continue;
        format_more(&text, "%s\n  %s: %s", *text ? "," : "{", json_quote(key),
                    json_text(&base->items[i], '"'));
    }
    for (int k = 0; set[k][0]; k++)
        if (set[k][1]) format_more(&text, "%s\n  \"%s\": %s", *text ? "," : "{", set[k][0], set[k][1]);
    format_more(&text, "\n}\n");
    return text;
}

Configs few_steps_configs(const Model *m, FewSteps how, LcmConfig c) {
    int steps = scheduler_config(m->scheduler_json, LCM).num_train_timesteps / c.k;
    const char *class = format("\"%s\"", samplers[how.scheduler].class),
               *named = format("[\"diffusers\", %s]", class),
               *original = format("%d", steps > 50 ? 50 : steps),
               *scaling = format("%g", (double)c.timestep_scaling),
               *eta = how.eta > 0 ? format(", \"eta\": %g", (double)how.eta) : "",
               *defaults =
                   format("{\"steps\": %d, \"guidance_scale\": %g%s}", how.steps, (double)how.cfg, eta);
    const char *const distilled[][2] = {
        {"_class_name", class}, {"original_inference_steps", original}, {"timestep_scaling", scaling}, {0}};
    const char *const trailing[][2] = {{"_class_name", class}, {"timestep_spacing", "\"trailing\""}, {0}};
    const char *const drawn[][2] = {{"scheduler", named},
                                    {"sd_defaults", NULL},
                                    {"_sd_defaults", defaults},
                                    {0}}; // NULL: the name before
    const Json *index = m->index_json;
    if (!index) index = config_of(NULL, "model_index.json", architecture("sd15")->model_index);
    return (Configs){.scheduler = json_changed(m->scheduler_json, how.trailing ? trailing : distilled),
                     .index = json_changed(index, drawn)};
}

Configs student_configs(const Model *teacher, LcmConfig c, bool guidance) {
    FewSteps how = {.scheduler = LCM, .steps = 4, .cfg = guidance ? 1 + (c.w_min + c.w_max) / 2 : 1};
    Configs s = few_steps_configs(teacher, how, c);
    const char *folder = is_directory(teacher->path) ? teacher->path : NULL; // else as an LDM file is
    const char *const set[][2] = {{"time_cond_proj_dim", guidance ? "256" : "null"}, {0}};
    s.unet = json_changed(config_of(folder, "unet/config.json", architecture("sd15")->unet), set);
    return s;
}

// ---- files and folders ------------------------------------------------------------------------------------

void copy_folder(const char *from, const char *to, const char *const *but) {
    DIR *folder = opendir(from);
    if (!folder) die("cannot read the folder %s: %s", from, strerror(errno));
    make_directories(to);
    for (struct dirent *e; (e = readdir(folder));) {
        bool skipped = e->d_name[0] == '.';
        for (const char *const *name = but; name && *name; name++) skipped |= !strcmp(e->d_name, *name);
        if (skipped) continue;
        char *a = format("%s/%s", from, e->d_name), *b = path_inside(to, e->d_name);
        if (is_directory(a))
            copy_folder(a, b, NULL);
        else
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

// Where a path leads, without links, "." and "..". What is not there yet is taken as a plain folder.
static char *place_of(const char *path) {
    char *at = realpath(*path == '/' ? "/" : ".", NULL);
    if (!at) die("cannot tell where %s is: %s", path, strerror(errno));
    while (*(path += strspn(path, "/"))) {
        int length = (int)strcspn(path, "/");
        char *next = format("%s/%.*s", at, length, path), *real = realpath(next, NULL);
        if (real) free(next), next = real;
        if (!real && length == 1 && *path == '.') strcpy(next, at);
        if (!real && length == 2 && starts_with(path, "..")) strcpy(next, at), *strrchr(next, '/') = 0;
        free(at), at = next, path += length;
    }
    return at;
}

static bool lies_in(const char *path, const char *dir) {
    char *a = place_of(path), *b = place_of(dir);
    size_t n = strlen(b);
    bool inside = starts_with(a, b) && (a[n] == '/' || !a[n]);
    free(a), free(b);
    return inside;
}

void refuse_inside(const char *out, const char *read) {
    DIR *folder = opendir(read);
    bool inside = folder && lies_in(out, read);
    for (struct dirent *e; folder && !inside && (e = readdir(folder));) { // its folders may be links
        char *part = format("%s/%s", read, e->d_name);
        if (e->d_name[0] != '.' && is_directory(part)) inside = lies_in(out, part);
        free(part);
    }
    if (folder) closedir(folder);
    if (inside) die("--output %s is inside %s, which this command reads; take another folder", out, read);
}

// The way from folder `from` to `to`, both absolute and without links: "../tiny/vae".
static char *relative_path(const char *from, const char *to) {
    char *a = format("%s/", from), *b = format("%s/", to), *path = xstrdup("");
    size_t same = 0; // what they have in common, up to and with a slash
    for (size_t i = 0; a[i] && a[i] == b[i]; i++)
        if (a[i] == '/') same = i + 1;
    for (const char *c = a + same; *c; c++)
        if (*c == '/') format_more(&path, "../");
    format_more(&path, "%s", same < strlen(to) ? to + same : "");
    return path;
}

// OUT/name becomes the folder `from`: a copy, or a relative link so that both folders can move together.
static void take_over(const ModelFolder *f, const char *name, const char *from) {
    char *to = format("%s/%s", f->out, name), *source = realpath(from, NULL), *here = realpath(f->out, NULL);
    if (!source || !here) die("%s: %s", source ? f->out : from, strerror(errno));
    if (is_link(to) && unlink(to)) die("cannot replace %s: %s", to, strerror(errno));
    if (f->copy)
        copy_folder(source, to, NULL);
    else if (symlink(relative_path(here, source), to))
        die("cannot make the link %s: %s", to, strerror(errno));
}

// ---- the folder -------------------------------------------------------------------------------------------

static const char *const taken_over[] = {"text_encoder", "vae", "tokenizer"};

void model_folder_check(const ModelFolder *f, const char *teacher) {
    if (same_folder(f->out, teacher))
        die("--output is the teacher itself, %s; the student needs its own folder", f->out);
    refuse_inside(f->out, teacher);
    if (file_exists(f->out) && !is_directory(f->out)) die("%s is no folder", f->out);
    for (int i = 0; i < 3 && !f->copy; i++) {
        char *path = format("%s/%s", f->out, taken_over[i]);
        if (is_directory(path) && !is_link(path))
            die("%s is a folder already, where a link to the teacher's is to be; remove it, or use --copy",
                path);
    }
}

// [L12] A model folder as diffusers has it: the new UNet and scheduler beside the teacher's other networks.
void model_folder_write(const ModelFolder *f, const Model *teacher, const Configs *c, const Params *unet) {
    make_directories(f->out);
    write_text_file(f->out, "scheduler/scheduler_config.json", c->scheduler);
    write_text_file(f->out, "unet/config.json", c->unet);
    network_write(&networks[1], unet, f->out, f->type);
    if (is_directory(teacher->path)) {
        for (int i = 0; i < 3; i++) {
            const char *own = format("%s/%s", teacher->path, taken_over[i]);
            take_over(f, taken_over[i], i == 2 && f->tokenizer ? f->tokenizer : own);
        }
    } else { // one LDM file: its parts are written out
        const Architecture *a = architecture("sd15");
        write_text_file(f->out, "text_encoder/config.json", a->text_encoder);
        write_text_file(f->out, "vae/config.json", a->vae);
        network_write(&networks[0], &teacher->params, f->out, f->type);
        network_write(&networks[2], &teacher->params, f->out, f->type);
        take_over(f, "tokenizer", f->tokenizer);
    }
    write_text_file(f->out, "model_index.json", c->index); // last: it makes the folder a model
}
