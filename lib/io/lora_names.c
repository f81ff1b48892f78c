// lora_names.c: LoRA files of the wide world, read and written. The adapters themselves are in ../lora.c.
//
// A file holds, for each layer, `down` (rank, in) and `up` (out, rank), in one of these spellings:
//   PEFT, diffusers today       unet.down_blocks.0.attentions.0.....to_q.lora_A.weight, .lora_B.weight
//   diffusers before PEFT       ....to_q.lora.down.weight, .lora.up.weight; ....attn1.processor.to_q_lora.down.weight
//   its text encoder            text_encoder.text_model.....q_proj.lora_linear_layer.down.weight
//   kohya (also lcm-lora-sdv1-5)    lora_unet_down_blocks_0_attentions_0_..._to_q.lora_down.weight, .lora_up.weight, .alpha
// A layer is found by its name with every dot made an underscore; so one comparison serves all spellings.
//
// What is not understood is refused by name. A LoRA that is applied in part draws a picture that looks right and
// is not, and nobody would notice.
#include "sd.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- what a key says --------------------------------------------------------------------------------------------

typedef enum { DOWN, UP, ALPHA, NO_ROLE } Role;

static const struct {
    const char *ending;
    Role role;
} endings[] = {{".lora_A.weight", DOWN},
               {".lora_B.weight", UP},
               {".lora_down.weight", DOWN},
               {".lora_up.weight", UP},
               {".lora.down.weight", DOWN},
               {".lora.up.weight", UP},
               {"_lora.down.weight", DOWN},
               {"_lora.up.weight", UP},
               {".lora_linear_layer.down.weight", DOWN},
               {".lora_linear_layer.up.weight", UP},
               {".alpha", ALPHA}};

// Relatives of LoRA that need other arithmetic, and other models' files.
static const struct {
    const char *part, *what;
} foreign[] = {{"hada_w", "a LoHa (Hadamard products)"},
               {"hada_t", "a LoHa (Hadamard products)"},
               {"lokr_", "a LoKr (Kronecker products)"},
               {"dora_scale", "a DoRA (magnitudes)"},
               {"lora_magnitude_vector", "a DoRA (magnitudes)"},
               {"lora_mid", "a LoRA with Tucker-decomposed convolutions"},
               {"oft_", "an OFT (orthogonal matrices)"},
               {"on_input", "an IA3"},
               {"model.diffusion_model.", "a whole model, not a LoRA"},
               {".diff", "a file of whole weight differences"},
               {"lora_B.bias", "a LoRA with biases"},
               {"lora_embedding", "a LoRA on embeddings"},
               {"w_norm", "a LoRA on norms"},
               {"lora_te1_", "a LoRA for SDXL"},
               {"lora_te2_", "a LoRA for SDXL"},
               {"text_encoder_2.", "a LoRA for SDXL"},
               {"add_embedding", "a LoRA for SDXL"},
               {"lora_unet_input_blocks", "a LoRA for SDXL (or in the original code's names)"},
               {"lora_unet_output_blocks", "a LoRA for SDXL (or in the original code's names)"},
               {"lora_unet_middle_block", "a LoRA for SDXL (or in the original code's names)"},
               {"transformer.", "a LoRA for a diffusion transformer (SD 3, Flux)"},
               {"double_blocks", "a LoRA for a diffusion transformer (SD 3, Flux)"}};

static const char *foreign_kind(const char *key) {
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++)
        if (strstr(key, foreign[i].part)) return foreign[i].what;
    return NULL;
}

static Role role_of(const char *key, size_t *stem) {
    size_t n = strlen(key);
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        size_t m = strlen(endings[i].ending);
        if (n <= m || strcmp(key + n - m, endings[i].ending)) continue;
        *stem = n - m;
        return endings[i].role;
    }
    return NO_ROLE;
}

// Replaces the first `from` in `text` (room for 512) by `to`, if it is there and, where `at_start`, at the start.
static bool replace(char *text, const char *from, const char *to, bool at_start) {
    char *at = strstr(text, from), rest[512];
    if (!at || (at_start && at != text)) return false;
    snprintf(rest, sizeof rest, "%s", at + strlen(from));
    snprintf(at, 512 - (size_t)(at - text), "%s%s", to, rest);
    return true;
}

// "lora_unet_down_blocks_0_...", "unet.down_blocks.0...." -> "unet_down_blocks_0_...".
static void flat_name(char flat[512], const char *key, size_t length) {
    snprintf(flat, 512, "%.*s", (int)(length < 400 ? length : 400), key);
    replace(flat, "base_model.model.", "", true); // PEFT's own save_pretrained
    replace(flat, ".processor.", ".", false);
    for (char *c = flat; *c; c++)
        if (*c == '.') *c = '_';
    if (!replace(flat, "lora_te_", "text_encoder_", true)) replace(flat, "lora_unet_", "unet_", true);
    if (!strncmp(flat, "text_encoder_", 13)) {
        static const char *const old[][2] = {
            {"_to_q", "_q_proj"}, {"_to_k", "_k_proj"}, {"_to_v", "_v_proj"}, {"_to_out", "_out_proj"}};
        for (int i = 0; i < 4; i++) replace(flat, old[i][0], old[i][1], false);
        replace(flat, "text_encoder_encoder_", "text_encoder_text_model_encoder_",
                true); // as transformers 5 has it
    }
    size_t n = strlen(flat);
    if (n > 7 && !strcmp(flat + n - 7, "_to_out")) strcat(flat, "_0");
}

// The layer that a key's stem means, or -1. Files of one network leave its name out.
static int layer_of(const char *key, size_t stem, char *const *flats, int count) {
    char flat[512], full[600];
    flat_name(flat, key, stem);
    static const char *const owners[] = {"", "unet_", "text_encoder_", "text_encoder_text_model_"};
    for (int o = 0; o < 4; o++) {
        snprintf(full, sizeof full, "%s%s", owners[o], flat);
        for (int i = 0; i < count; i++)
            if (!strcmp(full, flats[i])) return i;
    }
    return -1;
}

// What a cross-attention's width tells about the model that a file was made for.
static const char *made_for(const Store *s) {
    for (size_t i = 0; i < store_count(s); i++) {
        const Stored *t = store_at(s, i);
        size_t stem;
        if (t->ndim < 2 || role_of(t->name, &stem) != DOWN || !strstr(t->name, "attn2") ||
            !strstr(t->name, "to_k"))
            continue;
        if (t->shape[1] == 768) return "; it was made for Stable Diffusion 1";
        if (t->shape[1] == 1024) return "; it was made for Stable Diffusion 2";
        if (t->shape[1] == 2048) return "; it was made for SDXL";
    }
    return "";
}

// ---- reading ----------------------------------------------------------------------------------------------------

typedef struct {
    const Stored *down, *up, *alpha;
} Found; // what a file has for one layer

static char *shape_text(const Stored *t) {
    char text[128];
    size_t at = (size_t)snprintf(text, sizeof text, "(");
    for (int i = 0; i < t->ndim && at < sizeof text; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%lld", i ? ", " : "", (long long)t->shape[i]);
    return format("%s)", text);
}

// True if t is (rows, cols, kh, kw); a linear layer's tensor may come as a 1x1 convolution and the other way round.
static bool has_shape(const Stored *t, int64_t rows, int64_t cols, int64_t kh, int64_t kw) {
    if (t->ndim != 2 && t->ndim != 4) return false;
    return t->shape[0] == rows && t->shape[1] == cols && (t->ndim == 2 ? 1 : t->shape[2]) == kh &&
           (t->ndim == 2 ? 1 : t->shape[3]) == kw;
}

static char *check_part(const Found *f, const Layer *l, const Store *s) {
    const Tensor *w = l->weight;
    bool window = w->dims == 4;
    int64_t in = window ? w->shape[3] : w->shape[1], kh = window ? w->shape[1] : 1,
            kw = window ? w->shape[2] : 1;
    const Stored *any = f->down ? f->down : f->up ? f->up : f->alpha;
    if (!f->down || !f->up)
        return format("%s: %s has no %s beside it", any->file, any->name,
                      f->down ? "up (lora_B)"
                      : f->up ? "down (lora_A)"
                              : "weights");
    const Stored *pair[] = {f->down, f->up};
    for (int i = 0; i < 2; i++)
        if (pair[i]->type != F32 && pair[i]->type != F16 && pair[i]->type != BF16)
            return format("%s: tensor %s is neither F32, F16 nor BF16", any->file, pair[i]->name);
    int64_t rank = f->down->ndim ? f->down->shape[0] : 0;
    if (rank < 1 || rank > 65536 || !has_shape(f->down, rank, in, kh, kw)) {
        char *have = shape_text(f->down);
        char *text =
            format("%s: tensor %s has the shape %s; (rank, %lld, %lld, %lld) is expected for the layer %s%s",
                   any->file, f->down->name, have, (long long)in, (long long)kh, (long long)kw, l->name,
                   made_for(s));
        free(have);
        return text;
    }
    if (!has_shape(f->up, w->shape[0], rank, 1, 1)) {
        char *have = shape_text(f->up);
        char *text =
            format("%s: tensor %s has the shape %s; (%d, %lld) is expected: the layer's outputs and the rank "
                   "of %s%s",
                   any->file, f->up->name, have, w->shape[0], (long long)rank, f->down->name, made_for(s));
        free(have);
        return text;
    }
    if (f->alpha && f->alpha->count != 1)
        return format("%s: %s holds %zu numbers; one is expected", any->file, f->alpha->name,
                      f->alpha->count);
    return NULL;
}

// Sorts a file's tensors to the layers. Returns NULL, or what is wrong with the file for this model.
static char *sort_keys(Found *found, const Store *s, const char *path, Layer *const *layers, int count) {
    if (!store_count(s)) return format("%s holds no tensors", path);
    char **flats = xcalloc((size_t)count, sizeof *flats), *problem = NULL;
    for (int i = 0; i < count; i++) {
        flats[i] = xmalloc(512);
        flat_name(flats[i], layers[i]->name, strlen(layers[i]->name));
    }
    int alphas = 0, parts = 0;
    for (size_t i = 0; i < store_count(s) && !problem; i++) {
        const Stored *t = store_at(s, i);
        const char *kind = foreign_kind(t->name);
        size_t stem = 0;
        Role role = kind ? NO_ROLE : role_of(t->name, &stem);
        int at = role == NO_ROLE ? -1 : layer_of(t->name, stem, flats, count);
        const Stored **slot = at < 0         ? NULL
                              : role == DOWN ? &found[at].down
                              : role == UP   ? &found[at].up
                                             : &found[at].alpha;
        if (kind)
            problem = format("%s: the key %s belongs to %s, which cannot be applied", path, t->name, kind);
        else if (role == NO_ROLE)
            problem = format("%s: the key %s is none of a LoRA", path, t->name);
        else if (at < 0)
            problem =
                format("%s: the key %s belongs to no layer of this model%s", path, t->name, made_for(s));
        else if (*slot)
            problem = format("%s: the keys %s and %s mean the same tensor", path, (*slot)->name, t->name);
        else
            *slot = t;
        alphas += role == ALPHA;
    }
    const Layer *without = NULL;
    for (int i = 0; i < count && !problem; i++) {
        const Found *f = &found[i];
        if (!f->down && !f->up && !f->alpha) continue;
        problem = check_part(f, layers[i], s);
        parts++;
        if (!f->alpha) without = layers[i];
    }
    if (!problem && alphas && without)
        problem = format("%s: alpha is missing for the layer %s; %d of %d layers have one", path,
                         without->name, alphas, parts);
    for (int i = 0; i < count; i++) free(flats[i]);
    free(flats);
    return problem;
}

// PEFT's configuration: in the header under "lora_adapter_metadata", each key with the network's name in front; or,
// of PEFT's own files, beside them in adapter_config.json. NULL where there is none.
static Json *read_config(const Store *s, const char *path, bool *named) {
    const char *text = store_metadata(s, "lora_adapter_metadata");
    *named = text != NULL;
    if (text) return json_parse(text, strlen(text), path);
    if (!store_count(s) || strncmp(store_at(s, 0)->name, "base_model.", 11)) return NULL;
    const char *slash = strrchr(path, '/');
    char *beside = format("%.*sadapter_config.json", slash ? (int)(slash + 1 - path) : 0, path);
    if (!file_exists(beside)) die("%s: its adapter_config.json, which says alpha, is missing", path);
    Json *j = json_load(beside);
    free(beside);
    return j;
}

// Alpha by PEFT's configuration, whose "alpha_pattern" lists ends of layer names. Its "rslora" divides by the root of
// the rank: the same as an alpha that is the root of the rank as large.
static float config_alpha(const Json *config, bool named, const char *layer, int rank, const char *path) {
    int owner = named ? (int)(strchr(layer, '.') - layer) + 1 : 0;
    const char *rest = strchr(layer, '.') + 1;
    const struct {
        const char *key;
    } keys[] = {{"lora_alpha"}, {"alpha_pattern"}, {"use_rslora"}, {"use_dora"}, {"r"}};
    const Json *value[5];
    for (int i = 0; i < 5; i++) {
        char *key = format("%.*s%s", owner, layer, keys[i].key);
        value[i] = json_get(config, key);
        free(key);
    }
    if (value[3] && value[3]->kind == JSON_BOOL && value[3]->number != 0)
        die("%s: its configuration says use_dora: a DoRA (magnitudes), which cannot be applied", path);
    double alpha = rank;
    if (value[0]) {
        if (value[0]->kind != JSON_NUMBER) die("%s: lora_alpha of its configuration is no number", path);
        alpha = value[0]->number;
    }
    for (size_t i = 0; value[1] && value[1]->kind == JSON_OBJECT && i < value[1]->length; i++) {
        const Json *p = &value[1]->items[i];
        size_t n = strlen(rest), m = strlen(p->key);
        if (p->kind == JSON_NUMBER && n >= m && !strcmp(rest + n - m, p->key) &&
            (n == m || rest[n - m - 1] == '.'))
            alpha = p->number;
    }
    if (value[2] && value[2]->kind == JSON_BOOL && value[2]->number != 0) alpha *= sqrt(rank);
    return (float)alpha;
}

static void read_tensor(Tensor *t, const Stored *s) {
    float *x = xmalloc(s->count * sizeof(float));
    store_read_f32(s, x);
    for (size_t i = 0; i < s->count; i++)
        if (!isfinite(x[i]))
            die("%s: tensor %s has a NaN or an infinity at element %zu", s->file, s->name, i);
    param_write(t, x);
    backend.sync();
    store_done_with(s);
    free(x);
}

Lora *lora_load(const Params *model, const char *path) {
    int count;
    Layer **layers = lora_layers(model, &count);
    Found *found = xcalloc((size_t)count, sizeof *found);
    Store *s = store_open(path);
    char *problem = sort_keys(found, s, path, layers, count);
    if (problem) die("%s", problem);
    bool named, kohya = !strncmp(store_at(s, 0)->name, "lora_", 5);
    Json *config = read_config(s, path, &named);
    Lora *l = xcalloc(1, sizeof *l);
    const char *mode = store_metadata(s, "sd_mode");
    if (mode) l->mode = xstrdup(mode);
    bool guessed = false;
    for (int i = 0; i < count; i++) {
        const Found *f = &found[i];
        if (!f->down) continue;
        int rank = (int)f->down->shape[0];
        float alpha = (float)rank; // the world's convention where nothing says otherwise: a scale of 1
        if (f->alpha)
            store_read_f32(f->alpha, &alpha);
        else if (config)
            alpha = config_alpha(config, named, layers[i]->name, rank, path);
        else
            guessed = true;
        if (!isfinite(alpha)) die("%s: alpha of the layer %s is not finite", path, layers[i]->name);
        LoraPart *part = lora_add(l, layers[i], rank, alpha);
        read_tensor(part->adapter.down, f->down), read_tensor(part->adapter.up, f->up);
    }
    if (guessed && kohya) note("%s: alpha is missing; the rank is taken, a scale of 1", path);
    if (config) json_free(config);
    store_close(s);
    free(found), free(layers);
    return l;
}

bool lora_fits(const Params *model, const char *path) {
    int count;
    Layer **layers = lora_layers(model, &count);
    Found *found = xcalloc((size_t)count, sizeof *found);
    Store *s = store_open(path);
    char *problem = sort_keys(found, s, path, layers, count);
    bool fits = !problem;
    store_close(s);
    free(problem), free(found), free(layers);
    return fits;
}

// ---- writing ----------------------------------------------------------------------------------------------------

typedef struct {
    char *text;
    size_t used, room;
} Text;

static void text_add(Text *t, const char *piece) {
    size_t n = strlen(piece);
    if (t->used + n + 1 > t->room) t->text = xrealloc(t->text, t->room = 2 * (t->used + n + 1));
    memcpy(t->text + t->used, piece, n + 1);
    t->used += n;
}

// PEFT's LoraConfig of each network, in one object as diffusers writes it: {"unet.r": 8, "unet.lora_alpha": 8, ...}.
// The first layer's rank and alpha stand for all; layers that differ are listed by name. PEFT takes a name for the end
// of one, so "text_model.", which transformers 5 has no more, is left out.
static char *config_text(const Lora *l) {
    static const char *const owners[] = {"unet", "text_encoder"};
    Text t = {0};
    text_add(&t, "{");
    for (int o = 0; o < 2; o++) {
        Text ranks = {0}, alphas = {0}, targets = {0};
        size_t skip = strlen(owners[o]) + 1;
        const LoraPart *first = NULL;
        for (int i = 0; i < l->count; i++) {
            const LoraPart *p = &l->parts[i];
            if (strncmp(p->layer->name, owners[o], skip - 1) || p->layer->name[skip - 1] != '.') continue;
            if (!first) first = p;
            const char *rest = p->layer->name + skip;
            if (!strncmp(rest, "text_model.", 11)) rest += 11;
            int rank = p->adapter.down->shape[0];
            char *name = format("%s\"%s\"", targets.used ? ", " : "", rest);
            char *own_rank = format("%s\"%s\": %d", ranks.used ? ", " : "", rest, rank);
            char *own_alpha = format("%s\"%s\": %.9g", alphas.used ? ", " : "", rest, (double)p->alpha);
            text_add(&targets, name);
            if (rank != first->adapter.down->shape[0]) text_add(&ranks, own_rank);
            if (p->alpha != first->alpha) text_add(&alphas, own_alpha);
            free(name), free(own_rank), free(own_alpha);
        }
        if (!first) continue;
        char *whole = format(
            "%s\"%s.r\": %d, \"%s.lora_alpha\": %.9g, \"%s.rank_pattern\": {%s}, \"%s.alpha_pattern\": {%s}, "
            "\"%s.target_modules\": [%s]",
            t.used > 1 ? ", " : "", owners[o], first->adapter.down->shape[0], owners[o], (double)first->alpha,
            owners[o], ranks.text ? ranks.text : "", owners[o], alphas.text ? alphas.text : "", owners[o],
            targets.text);
        text_add(&t, whole);
        free(whole), free(ranks.text), free(alphas.text), free(targets.text);
    }
    text_add(&t, "}");
    return t.text;
}

static char *kohya_name(const char *layer, const char *ending) {
    bool text = !strncmp(layer, "text_encoder.", 13);
    char *name = format("%s%s", text ? "lora_te_" : "lora_unet_", strchr(layer, '.') + 1);
    for (char *c = name; *c; c++)
        if (*c == '.') *c = '_';
    char *full = format("%s.%s", name, ending);
    free(name);
    return full;
}

void lora_save(const Lora *l, const char *path, LoraFormat f, Type type) {
    StoreWriter *w = store_create(path);
    store_metadata_add(w, "format", "pt");
    if (l->mode) store_metadata_add(w, "sd_mode", l->mode);
    if (f == LORA_PEFT) {
        char *config = config_text(l);
        store_metadata_add(w, "lora_adapter_metadata", config);
        free(config);
    } else {
        store_metadata_add(w, "ss_network_module", "networks.lora"); // by which kohya's tools know their own
    }
    for (int round = 0; round < 2; round++) // declare, then deliver, in the same order
        for (int i = 0; i < l->count; i++) {
            const LoraPart *p = &l->parts[i];
            const char *layer = p->layer->name;
            const Tensor *down = p->adapter.down, *up = p->adapter.up;
            if (round) {
                float *x = param_read(down), *y = tensor_read(up);
                store_data_f32(w, x, tensor_count(down)), store_data_f32(w, y, tensor_count(up));
                if (f == LORA_KOHYA) store_data_f32(w, &p->alpha, 1);
                free(x), free(y);
                continue;
            }
            bool window = down->dims == 4;
            int64_t rank = down->shape[0];
            int64_t down_shape[] = {rank, window ? down->shape[3] : down->shape[1], down->shape[1],
                                    down->shape[2]};
            int64_t up_shape[] = {up->shape[0], rank, 1, 1};
            char *a =
                f == LORA_PEFT ? format("%s.lora_A.weight", layer) : kohya_name(layer, "lora_down.weight");
            char *b =
                f == LORA_PEFT ? format("%s.lora_B.weight", layer) : kohya_name(layer, "lora_up.weight");
            store_declare(w, a, type, window ? 4 : 2, down_shape),
                store_declare(w, b, type, window ? 4 : 2, up_shape);
            if (f == LORA_KOHYA) {
                char *c = kohya_name(layer, "alpha");
                store_declare(w, c, F32, 0, NULL);
                free(c);
            }
            free(a), free(b);
        }
    store_commit(w);
}

// ---- sd info ----------------------------------------------------------------------------------------------------

bool lora_describe(const char *path) {
    Store *s = store_open(path);
    int downs = 0, convolutions = 0, text = 0, alphas = 0;
    int64_t least = INT64_MAX, most = 0;
    float low = INFINITY, high = -INFINITY;
    const char *kind = NULL;
    for (size_t i = 0; i < store_count(s); i++) {
        const Stored *t = store_at(s, i);
        size_t stem;
        bool relative = strstr(t->name, "lora") || strstr(t->name, "hada_") || strstr(t->name, "lokr_");
        if (!kind && relative) kind = foreign_kind(t->name);
        Role role = role_of(t->name, &stem);
        if (role == ALPHA && t->count == 1) {
            float alpha;
            store_read_f32(t, &alpha);
            low = fminf(low, alpha), high = fmaxf(high, alpha), alphas++;
        }
        if (role != DOWN || t->ndim < 2) continue;
        downs++;
        convolutions += t->ndim == 4 && t->shape[2] * t->shape[3] > 1;
        text += !strncmp(t->name, "text_encoder.", 13) || !strncmp(t->name, "lora_te_", 8);
        if (t->shape[0] < least) least = t->shape[0];
        if (t->shape[0] > most) most = t->shape[0];
    }
    if (downs) {
        bool kohya = !strncmp(store_at(s, 0)->name, "lora_", 5);
        const char *mode = store_metadata(s, "sd_mode"), *config = store_metadata(s, "lora_adapter_metadata");
        printf(
            "LoRA          %s keys; %d layers, %d of them with a window, %d of the text encoder; rank %lld",
            kohya ? "kohya" : "diffusers/PEFT", downs, convolutions, text, (long long)least);
        if (most != least) printf(" to %lld", (long long)most);
        if (alphas)
            printf(low == high ? ", alpha %g\n" : ", alpha %g to %g\n", (double)low, (double)high);
        else
            puts(config ? ", alpha in the header" : ", alpha not said: the rank");
        if (mode)
            printf("trained by    sd lora %s%s\n", strcmp(mode, "finetune") ? "distill --mode " : "", mode);
    }
    if (kind) printf("cannot be applied: it is %s\n", kind);
    store_close(s);
    return downs > 0 || kind;
}
