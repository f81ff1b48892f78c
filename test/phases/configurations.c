// configurations.c: every key of the reference's constructors, with every value of a list: what we compute is
// what the reference computes, or the key is refused by name. What the reference makes of them is in
// test/fixtures/configurations.json (make_sweep_fixture.py, which also says what is compared).
#define _POSIX_C_SOURCE 200809L
#include "sd.h"
#include "weights/toy/made.h"
#include "test/test.h"

#include <setjmp.h>
#include <unistd.h>

static char folder[] = "/tmp/sd-configurations-XXXXXX"; // a copy of weights/tiny, its weights linked

static jmp_buf back;
static char message[2048];
static void caught(const char *text) {
    snprintf(message, sizeof message, "%s", text);
    longjmp(back, 1);
}

// The configuration `base` (texts of JSON by key) with another value of a key; "absent": without it.
static void write_configuration(const char *file, const Json *base, const char *key, const char *value) {
    char *path = format("%s/%s", folder, file), *comma = "";
    unlink(path);
    FILE *f = fopen(path, "w");
    if (!f) die("cannot write %s", path);
    putc('{', f);
    for (size_t i = 0; i < base->length; i++)
        if (strcmp(base->items[i].key, key))
            fprintf(f, "%s\"%s\": %s", comma, base->items[i].key, base->items[i].string), comma = ", ";
    if (strcmp(value, "absent")) fprintf(f, "%s\"%s\": %s", comma, key, value);
    putc('}', f);
    fclose(f), free(path);
}

static Tensor *made_input(const char *name, int n, int c, int h, int w) {
    int64_t shape[] = {n, c, h, w};
    float *x = xmalloc((size_t)(n * c * h * w) * sizeof *x);
    made_fill(name, 4, shape, MADE_SOFT, x);
    float *nhwc = nchw_to_nhwc(x, n, c, h, w);
    Tensor *t = tensor_from(SHAPE(n, h, w, c), nhwc);
    free(x), free(nhwc);
    return t;
}

// Three entries of a tensor, in PyTorch's order.
static float *pick(float *out, const Tensor *t) {
    float *x = tensor_read(t);
    if (t->dims == 4) {
        float *nchw = nhwc_to_nchw(x, t->shape[0], t->shape[3], t->shape[1], t->shape[2]);
        free(x), x = nchw;
    }
    for (size_t k = 0; k < 3; k++) *out++ = x[(k * 2654435761u + 12345) % tensor_count(t)];
    free(x);
    return out;
}

// A part's configuration as it is read.
typedef union {
    TextConfig text;
    UNetConfig unet;
    VaeConfig vae;
} Config;

static Config read_configuration(const char *file) {
    Config c;
    memset(&c, 0, sizeof c);
    char *path = format("%s/%s", folder, file);
    Json *j = json_load(path);
    if (*file == 'u') c.unet = unet_config(j);
    if (*file == 'v') c.vae = vae_config(j);
    if (starts_with(file, "text")) c.text = text_config(j);
    json_free(j), free(path);
    return c;
}

// ---- what is computed with a configuration; returns behind the last number --------------------------------

static float *run_unet(float *out) {
    Model *m = model_load(folder, NULL, NEED_UNET);
    float context[32 * 128], w = 0, t = 501;
    made_fill("input.unet.context", 3, (int64_t[]){1, 32, 128}, MADE_SOFT, context);
    Tensor *x = made_input("input.unet.sample", 1, 4, 8, 8);
    out = pick(out, unet(m->unet, x, &t, tensor_from(SHAPE(1, 32, 128), context), &w));
    *out++ = (float)m->unet_config.sample_size;
    model_free(m);
    return out;
}

static float *run_vae(float *out) {
    Model *m = model_load(folder, NULL, NEED_VAE);
    float factor = m->vae_config.scaling_factor;
    Tensor *moments = vae_encode(m->vae, made_input("input.vae.image", 1, 3, 64, 64));
    out = pick(out, scale(slice(moments, 0, 4), factor));
    out = pick(out, vae_decode(m->vae, scale(made_input("input.vae.latents", 1, 4, 8, 8), 1 / factor)));
    model_free(m);
    return out;
}

static float *run_text(float *out) {
    Model *m = model_load(folder, NULL, NEED_TEXT);
    int ids[32] = {766}, last = 31;
    for (int i = 1; i < 32; i++) ids[i] = i <= 20 ? 7 * (i - 1) % 760 : 767;
    Tensor *states = text_encode(m->text_encoder, ids, 1);
    out = pick(out, states);
    float *x = tensor_read(states);
    out = pick(out, tensor_from(SHAPE(1, 128), x + last * 128));
    free(x);
    model_free(m);
    return out;
}

static float *run_tokenizer(float *out) {
    char dogs[256] = "", *path = format("%s/tokenizer", folder);
    for (int i = 0; i < 20; i++) strcat(dogs, "a dog runs ");
    const char *texts[] = {"A brown dog <|endoftext|> Caf\u00c9 <cat-toy>!! a", dogs};
    Tokenizer *t = tokenizer_open(path);
    int max = tokenizer_max_length(t), ids[1000];
    for (int i = 0; i < 2 && max <= 100; i++) {
        int used = tokenizer_encode(t, texts[i], ids, max, NULL);
        while (used < max) ids[used++] = tokenizer_pad(t);
        for (int k = 0; k < max; k++) *out++ = (float)ids[k];
    }
    tokenizer_close(t);
    free(path);
    return out;
}

// An adapter of four layers, as PEFT's own files have it.
#define BLOCK ".attentions.0.transformer_blocks.0."
static const struct {
    const char *name;
    int out, in;
} adapted[] = {{"mid_block" BLOCK "attn1.to_q", 144, 144},
               {"mid_block" BLOCK "attn2.to_k", 144, 128},
               {"down_blocks.0" BLOCK "attn1.to_q", 48, 48},
               {"down_blocks.1" BLOCK "attn1.to_out.0", 96, 96}};
enum { RANK = 2 };

static void write_adapter(const char *path) {
    StoreWriter *w = store_create(path);
    float x[2 * 144];
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 8; i++) {
            int64_t down[] = {RANK, adapted[i / 2].in}, up[] = {adapted[i / 2].out, RANK},
                    *shape = i % 2 ? up : down;
            char *key = format("base_model.model.%s.lora_%c.weight", adapted[i / 2].name, "AB"[i % 2]);
            char *input = format("input.%s", key);
            made_fill(input, 2, shape, MADE_SOFT, x);
            if (round)
                store_data_f32(w, x, (size_t)(shape[0] * shape[1]));
            else
                store_declare(w, key, F32, 2, shape);
            free(key), free(input);
        }
    store_commit(w);
}

// What it adds to one weight of each layer.
static float *run_adapter(float *out) {
    static Model *m;
    if (!m) m = model_load("weights/tiny", NULL, NEED_UNET);
    char *path = format("%s/adapter/adapter_model.safetensors", folder);
    Lora *l = lora_load(&m->params, path);
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < l->count; k++) {
            const LoraPart *p = &l->parts[k];
            if (strcmp(p->layer->name + strlen("unet."), adapted[i].name)) continue;
            int in = adapted[i].in, at = 12345 % (adapted[i].out * in);
            float *down = tensor_read(p->adapter.down), *up = tensor_read(p->adapter.up), sum = 0;
            for (int r = 0; r < RANK; r++) sum += up[at / in * RANK + r] * down[r * in + at % in];
            *out++ = p->alpha / RANK * sum;
            free(down), free(up);
        }
    lora_free(l);
    free(path);
    return out;
}

// ---- the sweep --------------------------------------------------------------------------------------------

static const struct {
    const char *file;
    float *(*run)(float *out);
} kinds[] = {{"unet/config.json", run_unet},
             {"vae/config.json", run_vae},
             {"text_encoder/config.json", run_text},
             {"tokenizer/tokenizer_config.json", run_tokenizer},
             {"adapter/adapter_config.json", run_adapter}};

static int obeyed, refused, unlike;
static Config first; // without a change, and its numbers: what reads the same computes the same
static float first_numbers[512];
static size_t first_count;

static size_t compute(int kind, float *got) {
    Config c = read_configuration(kinds[kind].file);
    bool network = kind < 3;
    if (network && first_count && !memcmp(&c, &first, sizeof c)) {
        memcpy(got, first_numbers, sizeof first_numbers);
        return first_count;
    }
    size_t count = (size_t)(kinds[kind].run(got) - got);
    if (!first_count) first = c, first_count = count, memcpy(first_numbers, got, sizeof first_numbers);
    return count;
}

// `want`: the reference's numbers; NULL where it fails itself, and we may do as we like, but say it.
static void try_value(int kind, const Json *base, const char *key, const char *value, const Json *want) {
    static float got[512];
    write_configuration(kinds[kind].file, base, key, value);
    Scope s = scope_begin();
    die_hook = caught;
    bool ended = setjmp(back) != 0, right = ended;
    size_t count = ended ? 0 : compute(kind, got);
    die_hook = NULL;
    scope_end(s, NULL);
    if (!ended && want) {
        right = count == want->length && count > 0;
        for (size_t i = 0; right && i < count; i++)
            right =
                fabs((double)got[i] - want->items[i].number) <= 1e-4 * fmax(1, fabs(want->items[i].number));
    }
    if (ended && want && want->length) right = strstr(message, key) != NULL; // else weights are missing
    if (!right && want) {
        printf("FAILED  %s: \"%s\": %s %s\n", kinds[kind].file, key, value,
               ended ? message : "is another result");
        unlike++;
    }
    if (!right && !want && getenv("VERBOSE"))
        printf("        %s: \"%s\": %s: only the reference fails\n", kinds[kind].file, key, value);
    obeyed += !ended, refused += ended;
}

static void sweep(int kind, const Json *all) {
    const Json *keys = json_get(all, "keys"), *base = json_get(all, "base");
    obeyed = refused = unlike = 0, first_count = 0;
    try_value(kind, base, "", "absent", json_get(all, "unchanged"));
    for (size_t i = 0; i < keys->length; i++) {
        const Json *key = &keys->items[i], *same = json_get(key, "same"), *other = json_get(key, "other"),
                   *error = json_get(key, "error");
        for (size_t k = 0; k < same->length; k++)
            try_value(kind, base, key->key, same->items[k].string, json_get(all, "unchanged"));
        for (size_t k = 0; k < other->length; k++)
            try_value(kind, base, key->key, other->items[k].items[0].string, &other->items[k].items[1]);
        for (size_t k = 0; k < error->length; k++)
            try_value(kind, base, key->key, error->items[k].string, NULL);
    }
    write_configuration(kinds[kind].file, base, "", "absent");
    char *what =
        format("%s: %zu keys, %d values obeyed, %d refused", kinds[kind].file, keys->length, obeyed, refused);
    check(unlike == 0 && obeyed > 0 && refused > 0, what);
    printf("        %s\n", what);
    free(what);
}

// ---- networks that do not fit, other pipelines, what a single file says -----------------------------------

// model_load() must die with a message that contains both parts.
static void refuses(const char *path, const char *part, const char *other) {
    die_hook = caught;
    bool ended = setjmp(back) != 0;
    if (!ended) model_load(path, NULL, NEED_ALL);
    die_hook = NULL;
    if (!ended || !strstr(message, part) || !strstr(message, other))
        printf("        \"%s\" and \"%s\" are expected in \"%s\"\n", part, other,
               ended ? message : "nothing");
    check(ended && strstr(message, part) && strstr(message, other), part);
}

// Writes a UNet of made weights whose ends are others.
static void write_unet(const Json *base, int in, int out) {
    char value[16], *file = format("%s/unet/diffusion_pytorch_model.safetensors", folder);
    snprintf(value, sizeof value, "%d", in);
    write_configuration("unet/config.json", base, "in_channels", value);
    UNetConfig c = read_configuration("unet/config.json").unet;
    c.out_channels = out;
    Params p = {0};
    free(unet_new(c, &p));
    made_params(&p, "", MADE_SOFT, F16);
    unlink(file);
    params_save(&p, file, strlen("unet."), F16, NULL, NULL);
    params_free(&p);
    free(file);
    Json changed = *base;
    char outs[16];
    snprintf(outs, sizeof outs, "%d", out);
    changed.items = xmalloc((base->length + 1) * sizeof(Json));
    memcpy(changed.items, base->items, base->length * sizeof(Json));
    for (size_t i = 0; i < base->length; i++)
        if (!strcmp(changed.items[i].key, "in_channels")) changed.items[i].string = value;
    write_configuration("unet/config.json", &changed, "out_channels", outs);
    free(changed.items);
}

static void misfits(const Json *all) {
    const Json *unet = json_get(json_get(all, "unet/config.json"), "base");
    static const struct {
        int in, out;
        const char *part;
    } ends[] = {{9, 4, "reads 9 channels and writes 4"},
                {8, 4, "reads 8 channels and writes 4"},
                {4, 8, "reads 4 channels and writes 8"},
                {8, 8, "the VAE's latents have 4 channels, the UNet's 8"}};
    for (int i = 0; i < 4; i++) {
        write_unet(unet, ends[i].in, ends[i].out);
        refuses(folder, ends[i].part, folder);
    }
    write_unet(unet, 4, 4);
    Json index = {.kind = JSON_OBJECT};
    static const char *const others[][2] = {
        {"_class_name", "\"StableDiffusionInpaintPipeline\""},
        {"_class_name", "\"StableDiffusionXLPipeline\""},
        {"_class_name", "[\"pipeline\", \"Mine\"]"},
        {"unet", "[null, null]"},
        {"vae", "[\"diffusers\", \"AutoencoderTiny\"]"},
        {"text_encoder", "[\"transformers\", \"CLIPTextModelWithProjection\"]"},
        {"tokenizer", "[\"transformers\", \"T5Tokenizer\"]"}};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        write_configuration("model_index.json", &index, others[i][0], others[i][1]);
        refuses(folder, others[i][0], "what is supported is");
    }
    write_configuration("model_index.json", &index, "_class_name", "\"StableDiffusionImg2ImgPipeline\"");
    Model *m = model_load(folder, NULL, NEED_ALL);
    check(m->unet && m->vae && m->text_encoder,
          "a pipeline for pictures from pictures has the same networks");
    model_free(m);
}

static void single_files(void) {
    static const struct {
        const char *key, *value;
    } says[] = {{"modelspec.architecture", "stable-diffusion-xl-v1-base"},
                {"modelspec.architecture", "stable-diffusion-v2-768-v"},
                {"ss_base_model_version", "sdxl_base_v1-0"},
                {"modelspec.architecture", "stable-diffusion-v1/controlnet"},
                {"modelspec.predict_key", "flow"},
                {"modelspec.prediction_type", "flow"}};
    char *path = format("%s/single.safetensors", folder);
    for (int i = 0; i < 6; i++) {
        StoreWriter *w = store_create(path);
        store_metadata_add(w, says[i].key, says[i].value);
        store_declare(w, "model.diffusion_model.input_blocks.0.0.weight", F32, 1, (int64_t[]){1});
        store_data_f32(w, (float[]){0}, 1);
        store_commit(w);
        refuses(path, says[i].key, says[i].value);
    }
    free(path);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    backend_init(0);
    if (!mkdtemp(folder)) die("cannot make a folder in /tmp");
    char *command = format(
        "cp -rs \"$PWD\"/weights/tiny/* %s && mkdir %s/adapter && rm %s/tokenizer/special_tokens_map.json",
        folder, folder, folder);
    if (system(command)) die("cannot copy weights/tiny");
    free(command);
    char *path = format("%s/adapter/adapter_model.safetensors", folder);
    write_adapter(path);
    free(path);
    Json *all = json_load("test/fixtures/configurations.json");
    for (int i = 0; i < (int)(sizeof kinds / sizeof *kinds); i++)
        if (json_get(all, kinds[i].file)) sweep(i, json_get(all, kinds[i].file));
    misfits(all);
    single_files();
    json_free(all);
    command = format("rm -r %s", folder);
    check(system(command) == 0, "the copy is removed");
    free(command);
    return test_report();
}
