// spellings.c (test): the same weights under every spelling of their names, written from the tiny model's
// names and read back equal: model folders, LoRA files, doubles. Single files are too large for this: their
// names are compared here, their pictures by test/python/check_ldm.py.
#define _POSIX_C_SOURCE 200809L
#include "sd.h"
#include "lib/io/architectures.h"
#include "weights/toy/made.h"
#include "test/io/files.h"

static Json *parsed(const char *text) { return json_parse(text, strlen(text), "a configuration"); }

// The tiny model with made weights.
static Params tiny(void) {
    Params p = {0};
    const Architecture *a = architecture("tiny");
    Json *text = parsed(a->text_encoder), *net = parsed(a->unet), *decoder = parsed(a->vae);
    text_encoder_free(text_encoder_new(text_config(text), &p));
    free(unet_new(unet_config(net), &p));
    free(vae_new(vae_config(decoder), &p));
    made_params(&p, "", MADE_SOFT, F32);
    json_free(text), json_free(net), json_free(decoder);
    return p;
}

static const struct {
    ModelParts part;
    const char *prefix, *file;
    int spellings;
} networks[] = {{NEED_TEXT, "text_encoder.", "text_encoder/model.safetensors", 24},
                {NEED_UNET, "unet.", "unet/diffusion_pytorch_model.safetensors", 10},
                {NEED_VAE, "vae.", "vae/diffusion_pytorch_model.safetensors", 12}};

// Writes a network; the parameter `other` (-1: none) in another spelling, its first value `first`.
static void write_network(const Params *p, int k, int spelling, int other, int its, Type type, double first) {
    StoreWriter *w = store_create(in_folder(networks[k].file));
    int64_t shape[4];
    char name[512];
    for (int i = 0; i < p->count; i++) {
        if (!name_spelling(p->list[i].name, i == other ? its : spelling, name, sizeof name)) abort();
        store_declare(w, name, type, param_file_shape(p->list[i].tensor, shape), shape);
    }
    for (int i = 0; i < p->count; i++) {
        size_t n = tensor_count(p->list[i].tensor);
        float *x = param_read(p->list[i].tensor);
        if (i == other && type == F64) {
            store_data(w, &first, sizeof first);
            store_data_f32(w, x + 1, n - 1);
        } else
            store_data_f32(w, x, n);
        free(x);
    }
    store_commit(w);
}

static bool same(const Params *a, const Params *b) {
    if (a->count != b->count) return false;
    bool equal = true;
    for (int i = 0; i < a->count && equal; i++) {
        size_t n = tensor_count(a->list[i].tensor);
        float *x = tensor_read(a->list[i].tensor), *y = tensor_read(b->list[i].tensor);
        equal = tensor_count(b->list[i].tensor) == n && !memcmp(x, y, n * sizeof *x);
        free(x), free(y);
    }
    return equal;
}

static void test_models(const Params *all) {
    char name[512];
    architecture_write(architecture("tiny"), folder);
    for (int k = 0; k < 3; k++) {
        Params p = params_part(all, networks[k].prefix);
        int count = 0, equal = 0;
        for (; name_spelling(p.list[0].name, count, name, sizeof name); count++) {
            write_network(&p, k, count, -1, 0, F32, 0);
            Model *m = model_load(folder, NULL, networks[k].part);
            equal += same(&p, &m->params);
            model_free(m);
        }
        printf("%s %d of %d spellings are read\n", networks[k].prefix, equal, count);
        check(count == networks[k].spellings && equal == count, networks[k].prefix);
        write_network(&p, k, 1, -1, 0, F64, 0);
        Model *m = model_load(folder, NULL, networks[k].part);
        check(same(&p, &m->params), "weights as doubles");
        model_free(m);
        // A file has one spelling; what it has in another one is missing, by the name that it should have.
        static int other;
        other = p.count / 2;
        while (!strstr(p.list[other].name, ".to_q.") && !strstr(p.list[other].name, ".q_proj.")) other++;
        write_network(&p, k, 0, other, networks[k].spellings - 1, F32, 0);
        name_spelling(p.list[other].name, 0, name, sizeof name);
        CHECK_DIES("a tensor in another spelling", name, model_load(folder, NULL, networks[k].part));
        write_network(&p, k, 0, other, 0, F64, 1e39);
        CHECK_DIES("a double beyond fp32", "NaN or an infinity at element 0 (in fp32, which ends at 3.4e38)",
                   model_load(folder, NULL, networks[k].part));
        write_network(&p, k, 0, other, 0, F64, NAN);
        CHECK_DIES("a NaN among doubles", name, model_load(folder, NULL, networks[k].part));
    }
}

// Names of published files.
static void test_names(void) {
#define TEXT "text_encoder.text_model.encoder.layers.7.self_attn.q_proj.bias"
#define ATTENTION "vae.decoder.mid_block.attentions.0.to_q.weight"
    static const char *const pairs[][2] = {
        {"unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k.weight",
         "model.diffusion_model.output_blocks.5.1.transformer_blocks.0.attn2.to_k.weight"},
        {"unet.down_blocks.3.resnets.1.time_emb_proj.bias",
         "model.diffusion_model.input_blocks.11.0.emb_layers.1.bias"},
        {"unet.up_blocks.0.upsamplers.0.conv.weight", "model.diffusion_model.output_blocks.2.1.conv.weight"},
        {"unet.mid_block.resnets.1.conv2.weight", "diffusion_model.middle_block.2.out_layers.3.weight"},
        {"unet.time_embedding.linear_2.weight", "lora_unet.time_embed.2.weight"},
        {ATTENTION, "first_stage_model.decoder.mid.attn_1.q.weight"},
        {ATTENTION, "first_stage_model.decoder.mid.attn_1.to_q.weight"},
        {ATTENTION, "decoder.mid_block.attentions.0.query.weight"},
        {"vae.encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
         "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight"},
        {"vae.decoder.up_blocks.0.resnets.2.norm1.weight",
         "first_stage_model.decoder.up.3.block.2.norm1.weight"},
        {TEXT, "cond_stage_model.transformer.text_model.encoder.layers.7.self_attn.q_proj.bias"},
        {TEXT, "cond_stage_model.transformer.encoder.layers.7.self_attn.q_proj.bias"},
        {TEXT, "conditioner.embedders.0.transformer.text_model.encoder.layers.7.self_attn.q_proj.bias"},
        {TEXT, "text_encoders.clip_l.transformer.text_model.encoder.layers.7.self_attn.q_proj.bias"},
        {TEXT, "clip_l.text_model.encoder.layers.7.self_attn.q_proj.bias"},
        {TEXT, "lora_te1.text_model.encoder.layers.7.self_attn.q_proj.bias"},
        {TEXT, "text_encoder.text_model.encoder.layers.7.self_attn.to_q.bias"},
        {TEXT, "encoder.layers.7.self_attn.q_proj.bias"}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        char name[512];
        bool found = false;
        for (int k = 0; !found && name_spelling(pairs[i][0], k, name, sizeof name); k++)
            found = !strcmp(name, pairs[i][1]);
        check(found, pairs[i][1]);
    }
    char name[8];
    check(!name_spelling("other.conv.weight", 0, name, sizeof name), "a network that is none");
}

// Writes the adapters with one spelling of their layers, by dots or by underscores, and one of the endings.
static void write_lora(const Lora *l, int spelling, bool flat, const char *const ends[2]) {
    StoreWriter *w = store_create(in_folder("lora.safetensors"));
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 2 * l->count; i++) {
            const LoraPart *part = &l->parts[i / 2];
            Tensor *t = i % 2 ? part->adapter.up : part->adapter.down;
            int64_t shape[4];
            int dims = param_file_shape(t, shape);
            if (round) {
                float *x = param_read(t);
                store_data_f32(w, x, tensor_count(t));
                free(x);
                continue;
            }
            char *weight = format("%s.weight", part->layer->name), name[512];
            if (!name_spelling(weight, spelling, name, sizeof name)) check(false, weight);
            name[strlen(name) - strlen(".weight")] = 0;
            for (char *c = name; flat && *c; c++)
                if (*c == '.') *c = '_';
            char *key = format("%s%s", name, ends[i % 2]);
            store_declare(w, key, F32, dims, shape);
            free(weight), free(key);
        }
    store_commit(w);
}

static void test_loras(const Params *all) {
    static const char *const ends[][2] = {{".lora_A.weight", ".lora_B.weight"},
                                          {".lora_down.weight", ".lora_up.weight"},
                                          {".lora.down.weight", ".lora.up.weight"},
                                          {"_lora.down.weight", "_lora.up.weight"},
                                          {".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"},
                                          {".lora_A.default.weight", ".lora_B.default.weight"}};
    for (int k = 0; k < 2; k++) {
        Random r;
        random_seed(&r, 0);
        Lora *l = lora_new(all, k ? "unet." : "text", 1, 1, &r);
        made_params(&l->params, "lora.", MADE_SOFT, F32);
        int count = 2 * networks[k].spellings, equal = 0;
        for (int i = 0; i < count; i++) {
            write_lora(l, i / 2, i % 2, ends[i % 6]);
            Lora *again = lora_load(all, in_folder("lora.safetensors"));
            bool right = again->count == l->count && same(&again->params, &l->params);
            for (int j = 0; right && j < l->count; j++) right = again->parts[j].layer == l->parts[j].layer;
            equal += right;
            lora_free(again);
        }
        printf("LoRA, %s %d of %d spellings are read\n", networks[k].prefix, equal, count);
        check(equal == count, "a LoRA in every spelling");
        lora_free(l);
    }
}

// Tensors that are read piece by piece: each number comes to its place, and a NaN is found in the last piece.
// Memory that is read as a mapped file's is given back, so the source is empty afterwards.
static const Stored *given(void *stored, const char *name) {
    (void)name;
    return stored;
}
static void test_pieces(void) {
    Params p = {0};
    layer_linear(&p, 2047, 3001, false, "linear");
    layer_conv(&p, 701, 1203, 3, 3, false, "conv");
    for (int i = 0; i < p.count; i++) {
        Params one = {.list = &p.list[i], .count = 1};
        Stored s = {.name = p.list[i].name, .type = F32, .file = "large"};
        s.ndim = param_file_shape(p.list[i].tensor, s.shape);
        s.count = tensor_count(p.list[i].tensor);
        float *x = xmalloc(s.count * sizeof *x);
        for (size_t j = 0; j < s.count; j++) x[j] = (float)j;
        s.data = x;
        params_load(&one, given, &s, "here");
        float *y = param_read(p.list[i].tensor);
        size_t right = 0;
        for (size_t j = 0; j < s.count; j++) right += y[j] == (float)j;
        check(right == s.count, "a large tensor");
        x[s.count - 2] = x[s.count - 1] = NAN;
        char message[99];
        snprintf(message, sizeof message, "infinity at element %zu", s.count - 2);
        CHECK_DIES("a NaN at its end", message, params_load(&one, given, &s, "here"));
        free(x), free(y);
    }
    params_free(&p);
}

int main(void) {
    backend_init(1); // it reads and writes; nothing to compute
    verbosity = -1;
    folder_begin();
    output_lazily(true);
    Params p = tiny();
    test_names();
    test_models(&p);
    test_loras(&p);
    test_pieces();
    params_free(&p);
    output_lazily(false);
    folder_end();
    return test_report();
}
