// cli.c (test): the program from the outside. Every kind of bad input ends in one line that names it, with
// exit status 1 or 2 and no file left behind; the options of `sd sample` do what they should. Runs ./sd (or
// $SD) on a tiny model with made weights, in a temporary folder. networks.c tests what the pictures look
// like.
#define _GNU_SOURCE
#include "lib/base.h"
#include "lib/io/io.h"
#include "test/test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *program;
static char *dir; // the temporary folder, in which the child runs, too

// ---- running it -------------------------------------------------------------------------------------------

static struct {
    rlim_t file, memory; // bytes; 0: no limit
} limit;
static const char *input = "/dev/null";

static void set_limit(int what, rlim_t bytes) {
    struct rlimit r = {bytes, bytes};
    if (bytes) setrlimit(what, &r);
}

static pid_t start(const char *const *args) {
    fflush(stdout);
    pid_t child = fork();
    if (child) return child;
    if (chdir(dir)) _exit(99);
    int in = open(input, O_RDONLY), out = open("stdout", O_WRONLY | O_CREAT | O_TRUNC, 0666),
        err = open("stderr", O_WRONLY | O_CREAT | O_TRUNC, 0666);
    dup2(in, 0), dup2(out, 1), dup2(err, 2);
    set_limit(RLIMIT_FSIZE, limit.file), set_limit(RLIMIT_AS, limit.memory);
    execv(program, (char *const *)(uintptr_t)args);
    _exit(98);
}

typedef struct {
    int status; // 128 + n: killed by signal n
    char *out, *err;
} Result;

static char *at(const char *name) { return format("%s/%s", dir, name); }
static char *text_of(const char *name) {
    char *path = at(name), *text = read_file(path, NULL);
    free(path);
    return text;
}

static Result finish(pid_t child) {
    int status;
    waitpid(child, &status, 0);
    return (Result){WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), text_of("stdout"),
                    text_of("stderr")};
}

// The arguments in one string, separated by '|' (a prompt may hold blanks).
static const char **split(const char *args, char **copy) {
    static const char *list[64];
    int n = 0;
    list[n++] = "sd";
    *copy = xstrdup(args);
    for (char *s = *copy; s && n < 63;) list[n++] = strsep(&s, "|");
    list[n] = NULL;
    return list;
}

static Result sd(const char *args) {
    char *copy;
    const char **list = split(args, &copy);
    Result r = finish(start(list));
    free(copy);
    return r;
}

static void forget(Result r) { free(r.out), free(r.err); }

// ---- what is expected of a refusal ------------------------------------------------------------------------

static bool exists(const char *name) {
    char *path = at(name);
    bool there = file_exists(path);
    free(path);
    return there;
}

static int unfinished_files(void) {
    DIR *d = opendir(dir);
    int n = 0;
    for (struct dirent *e; (e = readdir(d));) n += strstr(e->d_name, ".part") != NULL;
    closedir(d);
    return n;
}

// Refused: that status, one line on stderr with all words of `names` (separated by '|'), no picture, nothing
// half-written.
static void refuses_with(int status, const char *what, const char *names, const char *args) {
    Result r = sd(args);
    size_t length = strlen(r.err);
    bool one_line = length > 1 && strchr(r.err, '\n') == r.err + length - 1 && !strncmp(r.err, "sd: ", 4);
    bool named = true;
    char *copy = xstrdup(names);
    for (char *s = copy; s;) {
        const char *name = strsep(&s, "|");
        named = named && strstr(r.err, name);
    }
    bool quiet = strstr(args, "|--json") ? !strncmp(r.out, "{\"error\": \"", 11) : !*r.out;
    bool clean = !exists("o.png") && !unfinished_files() && quiet;
    if (r.status != status || !one_line || !named || !clean)
        printf("        status %d (expected %d)%s%s; expected \"%s\" in: %s", r.status, status,
               one_line ? "" : ", not one line", clean ? "" : ", something was left behind", names, r.err);
    check(r.status == status && one_line && named && clean, what);
    free(copy);
    forget(r);
}
static void refuses(const char *what, const char *names, const char *args) {
    refuses_with(1, what, names, args);
}

static Result works(const char *what, const char *args) {
    Result r = sd(args);
    if (r.status) printf("        status %d: %s", r.status, r.err);
    check(r.status == 0 && !unfinished_files(), what);
    check(*r.err != '\n' && !strstr(r.err, "\n\n"), "its messages have no empty line");
    return r;
}

#define DRAW "sample|-q|-t|1|--steps|1|-W|64|-H|64|-o|o.png|-p|a|-m|"

static void put(const char *name, const void *data, size_t bytes) {
    char *path = at(name);
    unlink(path); // it may be a link to the good one
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, bytes, f) != bytes || fclose(f)) die("cannot write %s", path);
    free(path);
}

// ---- a damaged model --------------------------------------------------------------------------------------

#define UNET "unet/diffusion_pytorch_model.safetensors"
#define VAE "vae/diffusion_pytorch_model.safetensors"

// bad/: the model once more, as links to its files: replacing one of them leaves the good model as it is.
static void fresh_bad_model(void) {
    static const char *const files[] = {
        "model_index.json",     "scheduler/scheduler_config.json",         "text_encoder/config.json",
        "unet/config.json",     "text_encoder/model.safetensors",          UNET,
        "vae/config.json",      "vae/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json",
        "tokenizer/merges.txt", "tokenizer/tokenizer_config.json"};
    static const char *const folders[] = {"bad",      "bad/scheduler", "bad/text_encoder",
                                          "bad/unet", "bad/vae",       "bad/tokenizer"};
    for (int i = 0; i < 6; i++) {
        char *path = at(folders[i]);
        mkdir(path, 0777);
        free(path);
    }
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char *from = format("%s/good/%s", dir, files[i]), *to = format("%s/bad/%s", dir, files[i]);
        unlink(to);
        if (symlink(from, to)) die("cannot link %s", to);
        free(from), free(to);
    }
}

static char *unet_file; // the good one's bytes
static size_t unet_bytes;

static unsigned char *unet_copy(void) { return memcpy(xmalloc(unet_bytes), unet_file, unet_bytes); }

// Replaces the first `old` in the header by a text of the same length.
static void edit_header(unsigned char *file, const char *old, const char *new) {
    unsigned char *found = memmem(file + 8, unet_bytes - 8, old, strlen(old));
    if (!found || strlen(old) != strlen(new)) die("the header has no %s", old);
    memcpy(found, new, strlen(new));
}

static void unet_case(const char *what, const char *names, unsigned char *file, size_t bytes) {
    put("bad/" UNET, file, bytes);
    refuses(what, names, DRAW "bad");
    free(file);
}

static void edited(const char *what, const char *names, const char *old, const char *new) {
    unsigned char *file = unet_copy();
    edit_header(file, old, new);
    unet_case(what, names, file, unet_bytes);
}

// Where the data of a tensor begins.
static float *tensor_at(unsigned char *file, const char *name) {
    uint64_t header;
    memcpy(&header, file, 8);
    char *key = format("\"%s\"", name);
    char *entry = memmem(file + 8, (size_t)header, key, strlen(key));
    char *offsets = entry ? strstr(entry, "data_offsets\":[") : NULL;
    if (!offsets) die("the header has no %s", name);
    free(key);
    return (float *)(void *)(file + 8 + header + strtoull(offsets + 15, NULL, 10));
}

static void damaged_weights(void) {
    fresh_bad_model();
    uint64_t header;
    memcpy(&header, unet_file, 8);
    const size_t cuts[] = {0,
                           4,
                           8,
                           8 + (size_t)header / 2,
                           8 + (size_t)header,
                           8 + (size_t)header + 4,
                           unet_bytes / 2,
                           unet_bytes - 1};
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        char *what = format("weights cut after %zu of %zu bytes", cuts[i], unet_bytes);
        unet_case(what, "bad/" UNET, unet_copy(), cuts[i]);
        free(what);
    }
    const uint64_t lengths[] = {0, unet_bytes, 200000000, (uint64_t)1 << 63, UINT64_MAX, UINT64_MAX - 7};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        unsigned char *file = unet_copy();
        memcpy(file, &lengths[i], 8);
        unet_case("a header of absurd length", "bad/" UNET "|header", file, unet_bytes);
    }
    edited("offsets that go backwards", UNET "|conv_in.weight|data_offsets", "[0,6912]",
           "[6912,0]"); // more in safetensors.c
}

static void wrong_tensors(void) {
    fresh_bad_model();
    edited("a tensor of another type", UNET "|conv_in.weight", "\"conv_in.weight\":{\"dtype\":\"F32\"",
           "\"conv_in.weight\":{\"dtype\":\"I32\"");
    edited("a type nobody knows", UNET "|conv_in.weight|Q99", "\"conv_in.weight\":{\"dtype\":\"F32\"",
           "\"conv_in.weight\":{\"dtype\":\"Q99\"");
    edited("a tensor of another shape", UNET "|conv_in.weight|(4, 48, 3, 3)|(48, 4, 3, 3)", "[48,4,3,3]",
           "[4,48,3,3]");
    edited("a tensor under another name", UNET "|conv_in.weight is missing", "\"conv_in.weight\"",
           "\"conx_in.weight\"");
    const float bad[] = {NAN, INFINITY, -INFINITY};
    const int places[] = {7, 4096, 144 * 144 - 1};
    for (int i = 0; i < 3; i++) {
        unsigned char *file = unet_copy();
        tensor_at(file, "mid_block.attentions.0.proj_in.weight")[places[i]] = bad[i];
        char message[200];
        snprintf(message, sizeof message, UNET "|mid_block.attentions.0.proj_in.weight|element %d",
                 places[i]);
        unet_case("a NaN or an infinity in the weights", message, file, unet_bytes);
    }
}

// Finite weights whose products overflow.
static void nan_while_drawing(void) {
    fresh_bad_model();
    unsigned char *file = unet_copy();
    float *w = tensor_at(file, "down_blocks.1.resnets.0.conv1.weight");
    for (int i = 0; i < 1000; i++) w[i] = 3e38f;
    unet_case("a NaN that arises while drawing names its block", "unet.down_blocks.1.resnets.0", file,
              unet_bytes);
    file = unet_copy();
    for (int i = 0; i < 1000; i++) {
        tensor_at(file, "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight")[i] = 3e38f;
        tensor_at(file, "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k.weight")[i] = 3e38f;
    }
    unet_case("attention whose logits overflow", "unet.up_blocks.1.attentions.0", file, unet_bytes);
}

static void extra_tensors(void) {
    fresh_bad_model();
    char *good = at("good/" UNET), *path = at("bad/" UNET);
    unlink(path);
    Store *s = store_open(good);
    StoreWriter *w = store_create(path);
    for (size_t i = 0; i < store_count(s); i++)
        store_declare(w, store_at(s, i)->name, F32, store_at(s, i)->ndim, store_at(s, i)->shape);
    store_declare(w, "unheard.of.weight", F32, 1, (int64_t[]){2});
    store_declare(w, "text_model.embeddings.position_ids", F32, 1, (int64_t[]){1});
    for (size_t i = 0; i < store_count(s); i++)
        store_data_f32(w, store_at(s, i)->data, store_at(s, i)->count);
    store_data_f32(w, (float[]){1, 2, 3}, 2), store_data_f32(w, (float[]){0}, 1);
    store_commit(w), store_close(s);
    free(good), free(path);
    Result r = works("tensors beyond the network's are no harm",
                     "sample|-v|-t|1|--steps|1|-W|64|-H|64|-o|o.png|-p|a|-m|bad");
    check(strstr(r.err, "unheard.of.weight") && !strstr(r.err, "position_ids"), "under -v they are named");
    forget(r), forget(r = works("and without -v", DRAW "bad"));
    char *picture = at("o.png");
    unlink(picture);
    free(picture);
}

static void edit_configuration(const char *file, const char *old, const char *new) {
    fresh_bad_model();
    char *name = format("good/%s", file), *text = text_of(name), *to = format("bad/%s", file);
    char *found = strstr(text, old);
    if (!found) die("%s has no %s", file, old);
    char *changed = format("%.*s%s%s", (int)(found - text), text, new, found + strlen(old));
    put(to, changed, strlen(changed));
    free(name), free(text), free(to), free(changed);
}

static void config_case(const char *what, const char *names, const char *file, const char *old,
                        const char *new) {
    edit_configuration(file, old, new);
    refuses(what, names, DRAW "bad");
}

static void bad_configurations(void) {
    config_case("the UNet's width contradicts the weights", "down_blocks.3|shape|is expected|192",
                "unet/config.json", "144, 144]", "144, 192]");
    config_case("the text's width contradicts the weights", "shape|is expected|256",
                "text_encoder/config.json", "\"hidden_size\": 128", "\"hidden_size\": 256");
    config_case("a tokenizer with more tokens than the text encoder", "901 tokens|768",
                "tokenizer/vocab.json", "\"<|endoftext|>\": 513", "\"<|endoftext|>\": 900");
    config_case("groups that do not divide", "48 channels|7 groups", "unet/config.json",
                "\"norm_num_groups\": 12", "\"norm_num_groups\": 7");
    config_case("heads that do not divide", "heads", "unet/config.json", "\"attention_head_dim\": 4",
                "\"attention_head_dim\": 5");
    config_case("a negative number of layers", "layers_per_block", "unet/config.json",
                "\"layers_per_block\": 1", "\"layers_per_block\": -1");
    config_case("a text where a list should be", "block_out_channels", "vae/config.json", "[16, 32, 64, 64]",
                "\"x\"");
    config_case("an unknown scheduler", "EulerScheduler", "scheduler/scheduler_config.json", "DDIMScheduler",
                "EulerScheduler");
    config_case("a key of the scheduler that is not obeyed", "thresholding|true",
                "scheduler/scheduler_config.json", "\"clip_sample\": false", "\"thresholding\": true");
    config_case("two schedulers in one model", "PNDMScheduler|DDIMScheduler", "model_index.json",
                "DDIMScheduler", "PNDMScheduler");
    config_case("JSON that ends too early", "unet/config.json", "unet/config.json", "\"act_fn\": \"silu\",",
                "\"act_fn\"");
    char deep[20001];
    memset(deep, '[', 10000), memset(deep + 10000, ']', 10000);
    static const char *const files[] = {"unet/config.json", "model_index.json",
                                        "scheduler/scheduler_config.json", "tokenizer/vocab.json"};
    for (int i = 0; i < 4; i++) {
        fresh_bad_model();
        char *to = format("bad/%s", files[i]);
        put(to, deep, 20000);
        refuses("JSON nested 10,000 deep", strrchr(to, '/') + 1, DRAW "bad");
        free(to);
    }
    static const char *const missing[] = {"unet/config.json", UNET, "tokenizer/merges.txt",
                                          "scheduler/scheduler_config.json"};
    for (int i = 0; i < 4; i++) {
        fresh_bad_model();
        char *name = format("bad/%s", missing[i]), *path = at(name);
        unlink(path);
        refuses("a file of the model is missing", i == 1 ? "diffusion_pytorch_model.safetensors" : missing[i],
                DRAW "bad");
        free(name), free(path);
    }
}

// ---- bad words --------------------------------------------------------------------------------------------

static void bad_options(void) {
    refuses("no such model", "nowhere", DRAW "nowhere");
    put("old.ckpt", "PK\3\4\0\0\0\0", 8);
    refuses("a pickle", "old.ckpt|pickle", DRAW "old.ckpt");
    refuses("a prompt that is not UTF-8", "UTF-8|byte 1", DRAW "good|-p|a\xff z");
    refuses("a surrogate in a prompt", "UTF-8|byte 0", DRAW "good|-p|\xed\xa0\x80");
    refuses("a negative prompt that is not UTF-8", "UTF-8|negative", DRAW "good|--negative|\xc3");
    put("list.txt", "one\ntwo \xf0\x28\n", 11);
    refuses("a line of --prompts that is not UTF-8", "UTF-8|list.txt",
            "sample|-q|-m|good|--prompts|list.txt|--out|drawn");
    refuses_with(2, "a width that is no multiple of 8", "100|multiple of 8", DRAW "good|-W|100");
    refuses_with(2, "a height that is no multiple of 8", "63|multiple of 8", DRAW "good|-H|63");
    refuses_with(2, "no step", "--steps|0", DRAW "good|--steps|0");
    refuses_with(2, "100,000 steps", "--steps|100000", DRAW "good|--steps|100000");
    refuses("more steps than LCM has", "60|50", DRAW "good|--scheduler|lcm|--steps|60");
    refuses_with(2, "steps in words", "--steps|ten", DRAW "good|--steps|ten");
    refuses_with(2, "a guidance scale that is none", "--cfg|nan", DRAW "good|--cfg|nan");
    refuses_with(2, "a scheduler that is none", "--scheduler|dpm", DRAW "good|--scheduler|dpm");
    refuses_with(2, "a strength beyond 1", "--strength|1.5", DRAW "good|--strength|1.5");
    refuses_with(2, "a seed that is none", "--seed|-1", DRAW "good|--seed|-1");
    refuses_with(2, "no prompt", "--prompt", "sample|-m|good|-o|o.png");
    refuses_with(2, "no such command", "paint", "paint|-m|good");
    refuses("a picture that is none", "list.txt", DRAW "good|--init|list.txt");
    refuses("a picture that is not there", "none.png", DRAW "good|--init|none.png");
    refuses("noise that is not there", "none.safetensors", DRAW "good|--latents|none.safetensors");
    refuses("encode: no such picture", "none.png", "encode|none.png|-m|good|-o|o.safetensors");
    refuses("decode: no such file", "none.safetensors", "decode|none.safetensors|-m|good|-o|o.png");
    refuses("verify: no trace", "inputs.", "verify|good/" UNET "|-m|good");
    refuses("info: nothing there", "nowhere", "info|nowhere");
    refuses_with(2, "an option that is none", "--bogus", DRAW "good|--bogus");
    refuses_with(2, "an option without its value", "requires an argument", "sample|-m|good|-p");
    refuses_with(2, "a picture that is no PNG", "o.jpg|.png", "sample|-m|good|-p|a|-o|o.jpg");
    refuses_with(2, "decode: a picture that is no PNG", "o.jpg|.png", "decode|z|-m|good|-o|o.jpg");
    refuses_with(2, "info has no figures", "--json", "info|good|--json");
    refuses("synth: no tokenizer", "nowhere/vocab.json", "synth|o.png|--arch|tiny|--tokenizer|nowhere");
    refuses("tokenize: not UTF-8", "UTF-8", "tokenize|-m|good|-p|\xff");
    Result r = works("an empty prompt is a prompt", DRAW "good|-p|");
    check(exists("o.png"), "and is drawn");
    char *picture = at("o.png");
    unlink(picture);
    free(picture);
    forget(r);
}

static void write_latents(const char *name, const char *key, int h, int w, float value) {
    char *path = at(name);
    StoreWriter *writer = store_create(path);
    float *x = xcalloc((size_t)(4 * h * w), sizeof *x);
    x[5] = value;
    store_declare(writer, key, F32, 4, (int64_t[]){1, 4, h, w});
    store_data_f32(writer, x, (size_t)(4 * h * w));
    store_commit(writer);
    free(x), free(path);
}

static void bad_latents(void) {
    write_latents("nan.safetensors", "latents", 8, 8, NAN);
    write_latents("small.safetensors", "latents", 8, 6, 0);
    write_latents("key.safetensors", "noise", 8, 8, 0);
    write_latents("zero.safetensors", "latents", 8, 8, 1);
    fresh_bad_model();
    size_t bytes;
    char *path = at("good/" VAE), *vae = read_file(path, &bytes);
    float *w = tensor_at((unsigned char *)vae, "decoder.conv_in.weight");
    for (int i = 0; i < 1000; i++) w[i] = 3e38f;
    put("bad/" VAE, vae, bytes);
    free(path), free(vae);
    refuses("a NaN that arises while decoding", "a NaN or an infinity|zero.safetensors",
            "decode|zero.safetensors|-m|bad|-o|o.png");
    refuses("noise with a NaN", "nan.safetensors|latents|element 5", DRAW "good|--latents|nan.safetensors");
    refuses("noise of another size", "small.safetensors|(1, 4, 8, 8)",
            DRAW "good|--latents|small.safetensors");
    refuses("noise under another key", "key.safetensors|latents is missing",
            DRAW "good|--latents|key.safetensors");
    refuses("decode: a NaN", "nan.safetensors|element 5", "decode|nan.safetensors|-m|good|-o|o.png");
    refuses("decode: another key", "key.safetensors|latents", "decode|key.safetensors|-m|good|-o|o.png");
}

// ---- nowhere to write, no memory, an impatient user -------------------------------------------------------

static void nowhere_to_write(void) {
    refuses("a folder that is not there", "none/o.png", DRAW "good|-o|none/o.png");
    refuses("a folder in place of a file", "good|folder", DRAW "good|-o|good");
    refuses("a file in place of a folder", "list.txt",
            "sample|-q|-m|good|--prompts|list.txt|--out|old.ckpt/x");
    refuses("a full disk", "/dev/full|No space", DRAW "good|-o|/dev/full");
    refuses("a trace to a full disk", "/dev/full|No space", DRAW "good|--dump|/dev/full");
    limit.file = 2048; // the disk becomes full while a file is written
    refuses("a picture that finds no more room", "o.png|File too large", DRAW "good");
    refuses("a model that finds no more room", "File too large", "synth|model|--arch|tiny|-q");
    limit.file = 0;
}

static void no_memory(void) {
#if defined(__SANITIZE_ADDRESS__)
    skip("little memory", "AddressSanitizer reserves more than any limit");
#else
    int refused = 0, drew = 0, wrong = 0;
    for (rlim_t megabytes = 16; megabytes <= 1024; megabytes *= 2) {
        limit.memory = megabytes << 20;
        Result r = sd(DRAW "good");
        bool one_line = strchr(r.err, '\n') == r.err + strlen(r.err) - 1 &&
                        (strstr(r.err, "memory") || strstr(r.err, "shared"));
        if (r.status == 0)
            drew++;
        else if ((r.status == 1 && one_line) || r.status == 127)
            refused++; // 127: the program could not even be loaded
        else
            wrong++, printf("        %llu MB: status %d, %s", (unsigned long long)megabytes, r.status, r.err);
        forget(r);
    }
    limit.memory = 0;
    check(refused > 0 && !wrong, "with too little memory a line says so");
    check(drew > 0, "with enough there is a picture");
    char *picture = at("o.png");
    unlink(picture);
    free(picture);
#endif
}

static void interrupt(void) {
    char *copy;
    const char **args =
        split("sample|-q|-t|1|-m|good|-p|a|-W|64|-H|64|--steps|2|-n|100000|-o|many.png", &copy);
    pid_t child = start(args);
    for (int i = 0; i < 600 && !exists("many-1.png"); i++) usleep(50000);
    usleep(30000);
    kill(child, SIGINT);
    Result r = finish(child);
    check(r.status == 1 && !unfinished_files(), "Ctrl-C ends with status 1 and leaves nothing half-written");
    bool whole = true;
    for (int i = 0; i < 100000; i++) {
        char *name = format("many-%d.png", i), *path = at(name);
        bool there = file_exists(path);
        if (there) {
            const char *reason;
            Image *image = image_try_load(path, &reason);
            whole = whole && image;
            if (image) image_free(image);
            unlink(path);
        }
        free(name), free(path);
        if (!there) break;
    }
    check(whole, "the pictures that are there are whole");
    forget(r), free(copy);
}

// ---- what a user asks for ---------------------------------------------------------------------------------

static bool same_file(const char *a, const char *b) {
    char *x = at(a), *y = at(b);
    size_t n = 0, m = 1;
    char *p = file_exists(x) ? read_file(x, &n) : NULL, *q = file_exists(y) ? read_file(y, &m) : NULL;
    bool same = p && q && n == m && !memcmp(p, q, n);
    free(x), free(y), free(p), free(q);
    return same;
}

static bool same_picture(const char *a, const char *b) {
    char *x = at(a), *y = at(b);
    const char *reason;
    Image *p = image_try_load(x, &reason), *q = image_try_load(y, &reason);
    bool same = p && q && p->width == q->width && p->height == q->height &&
                !memcmp(p->rgb, q->rgb, (size_t)(3 * p->width * p->height));
    if (p) image_free(p);
    if (q) image_free(q);
    free(x), free(y);
    return same;
}

// ---- mistakes that `sd verify` must find, and name --------------------------------------------------------

// A trace of bad/, a model with the planted mistake, is compared with the good model.
static void planted(const char *what, const char *block, const char *why) {
    forget(works("a trace of a mistaken model", DRAW "bad|--cfg|3|--dump|planted.safetensors"));
    char *picture = at("o.png");
    unlink(picture);
    free(picture);
    Result r = sd("verify|-t|1|-m|good|--json|planted.safetensors");
    Json *j = json_parse(r.out, strlen(r.out), "stdout");
    const char *first = json_get_string(j, "first", ""), *said = json_get_string(j, "why", "");
    bool found = r.status == 1 && !strcmp(first, block), named = strstr(said, why) != NULL;
    if (!found || !named) printf("        first \"%s\", why \"%s\"\n", first, said);
    check(found, what), check(named, why);
    json_free(j), forget(r);
}

static void planted_configuration(const char *what, const char *block, const char *why, const char *file,
                                  const char *old, const char *new) {
    edit_configuration(file, old, new);
    planted(what, block, why);
}

static void planted_weights(const char *what, const char *block, const char *why, unsigned char *file) {
    fresh_bad_model();
    put("bad/" UNET, file, unet_bytes);
    free(file);
    planted(what, block, why);
}

static void scale_numbers(float *w, size_t n, float by) {
    for (size_t i = 0; i < n; i++) w[i] *= by;
}

// rotates (n): the part from `by` on comes first
static void roll_numbers(float *w, size_t n, size_t by) {
    float *was = memcpy(xmalloc(n * sizeof *w), w, n * sizeof *w);
    for (size_t i = 0; i < n; i++) w[i] = was[(i + by) % n];
    free(was);
}

static void transpose_maps(float *w, size_t maps, size_t side) {
    for (size_t k = 0; k < maps; k++)
        for (size_t i = 0; i < side; i++)
            for (size_t j = 0; j < i; j++) {
                float *a = &w[(k * side + i) * side + j], *b = &w[(k * side + j) * side + i], held = *a;
                *a = *b, *b = held;
            }
}

static void planted_mistakes(void) {
    unsigned char *file = unet_copy();
    scale_numbers(tensor_at(file, "down_blocks.1.resnets.0.conv2.bias"), 96, 0);
    planted_weights("a missing bias", "unet.down_blocks.1.resnets.0",
                    "the bias unet.down_blocks.1.resnets.0.conv2.bias", file);
    file = unet_copy();
    float *ones = tensor_at(file, "mid_block.attentions.0.norm.weight");
    for (int i = 0; i < 144; i++) ones[i] = 1;
    planted_weights("a missing scale", "unet.mid_block.attentions.0",
                    "the scale unet.mid_block.attentions.0.norm.weight", file);
    file = unet_copy();
    transpose_maps(tensor_at(file, "down_blocks.0.resnets.0.conv1.weight"), 48 * 48, 3);
    planted_weights("a kernel by columns", "unet.down_blocks.0.resnets.0", "height and width exchanged",
                    file);
    file = unet_copy();
    transpose_maps(tensor_at(file, "mid_block.attentions.0.transformer_blocks.0.attn1.to_v.weight"), 1, 144);
    planted_weights("a transposed matrix", "unet.mid_block.attentions.0",
                    "transposed: unet.mid_block.attentions.0", file);
    file = unet_copy(); // heads of 12 channels
    scale_numbers(tensor_at(file, "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"),
                  48 * 48, sqrtf(12));
    scale_numbers(tensor_at(file, "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.weight"),
                  48 * 48, sqrtf(12));
    planted_weights("unscaled logits", "unet.down_blocks.0.attentions.0", "1 / sqrt(d)", file);
    file = unet_copy();
    roll_numbers(tensor_at(file, "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj.weight"),
                 8 * 48 * 48, 4 * 48 * 48);
    roll_numbers(tensor_at(file, "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj.bias"),
                 8 * 48, 4 * 48);
    planted_weights("the gate first", "unet.down_blocks.0.attentions.0", "GEGLU", file);
    file = unet_copy(); // 144 channels from below, 144 of the skip connection
    roll_numbers(tensor_at(file, "up_blocks.0.resnets.0.norm1.weight"), 288, 144);
    roll_numbers(tensor_at(file, "up_blocks.0.resnets.0.norm1.bias"), 288, 144);
    for (size_t row = 0; row < 144; row++) {
        roll_numbers(tensor_at(file, "up_blocks.0.resnets.0.conv1.weight") + row * 288 * 9, 288 * 9, 144 * 9);
        roll_numbers(tensor_at(file, "up_blocks.0.resnets.0.conv_shortcut.weight") + row * 288, 288, 144);
    }
    planted_weights("the skip connection first", "unet.up_blocks.0.resnets.0", "skip connection", file);

    planted_configuration("sine before cosine", "unet.time_embedding", "sine and cosine", "unet/config.json",
                          "\"flip_sin_to_cos\": true", "\"flip_sin_to_cos\": false");
    planted_configuration("another epsilon", "unet.down_blocks.0.resnets.0", "epsilon 0.001",
                          "unet/config.json", "\"norm_eps\": 1e-05", "\"norm_eps\": 1e-03");
    planted_configuration("another number of heads", "unet.down_blocks.0.attentions.0",
                          "8 heads instead of 4", "unet/config.json", "\"attention_head_dim\": 4",
                          "\"attention_head_dim\": 8");
    planted_configuration("GELU for quick GELU", "text_encoder.text_model.encoder.layers.0",
                          "gelu for quick_gelu", "text_encoder/config.json", "quick_gelu", "gelu");
}

#define PLAIN "sample|-q|-t|1|-m|good|--steps|2|-W|64|-H|48"

static void many_pictures(void) {
    forget(works("one picture", PLAIN "|-p|a dog|--seed|8|-o|one.png"));
    forget(works("the same again", PLAIN "|-p|a dog|--seed|8|-o|again.png"));
    check(same_file("one.png", "again.png"), "the same bytes");
    forget(works("another number of threads", PLAIN "|-p|a dog|--seed|8|-t|2|-o|threads.png"));
    check(same_file("one.png", "threads.png"), "the same bytes, whatever the number of threads");
    forget(works("-n 2", PLAIN "|-p|a dog|--seed|7|-n|2|-o|n.png"));
    check(exists("n-0.png") && same_picture("n-1.png", "one.png"), "picture i of -n uses seed + i");
    put("list.txt", "a cat\na dog\r\n", 13);
    forget(works("--prompts", PLAIN "|--prompts|list.txt|--out|drawn|--seed|7"));
    check(exists("drawn/00000.png") && same_picture("drawn/00001.png", "one.png"),
          "picture i of --prompts uses seed + i");
    char *path = at("one.png"), *text = image_png_parameters(path);
    check(text && strstr(text, "a dog") && strstr(text, "Seed: 8") && strstr(text, "Steps: 2"),
          "the PNG says how it was made");
    free(path), free(text);
    forget(works("a negative prompt", PLAIN "|-p|a dog|--seed|8|--negative|rain|-o|negative.png"));
    check(!same_picture("negative.png", "one.png"), "a negative prompt changes the picture");
    forget(works("no guidance", PLAIN "|-p|a dog|--seed|8|--cfg|1|-o|plain.png"));
    forget(works("no guidance, a negative prompt",
                 PLAIN "|-p|a dog|--seed|8|--cfg|1|--negative|rain|-o|plain2.png"));
    check(same_picture("plain.png", "plain2.png"), "without guidance it does not");
    forget(works("--rng philox", PLAIN "|-p|a dog|--seed|8|--rng|philox|-o|philox.png"));
    check(!same_picture("philox.png", "one.png"), "the GPU's generator draws another picture");
}

// Peak memory (resident, MB) of a run that succeeds; else infinite.
static double memory_of(const char *args) {
    char *copy;
    int status;
    struct rusage used;
    wait4(start(split(args, &copy)), &status, 0, &used);
    free(copy);
    return status ? INFINITY : (double)used.ru_maxrss / 1024;
}

static void memory(void) {
#define MANY "sample|-m|good|-q|-t|2|--steps|8|-p|a dog|-o|many.png|-n|"
    double one = memory_of(MANY "1"), five = memory_of(MANY "5");
    printf("one picture %.0f MB, five pictures %.0f MB\n", one, five);
    check(five < one + 30, "five pictures with two threads need no more memory than one");
}

static void traces(void) {
    forget(works("--dump", PLAIN "|-p|a dog|--seed|8|-o|traced.png|--dump|trace.safetensors"));
    check(same_picture("traced.png", "one.png"), "--dump changes nothing");
    Result r =
        works("sd verify agrees with itself", "verify|-t|1|-m|good|--tolerance|0|--json|trace.safetensors");
    Json *j = json_parse(r.out, strlen(r.out), "stdout");
    const Json *blocks = json_get(j, "blocks");
    check(json_get_bool(j, "ok", false) && blocks && blocks->length > 60,
          "every block is compared, bit by bit");
    json_free(j), forget(r);
    // The noise of a trace as --latents.
    char *path = at("trace.safetensors"), *noise = at("noise.safetensors");
    Store *s = store_open(path);
    const Stored *t = store_find(s, "inputs.latents");
    StoreWriter *w = store_create(noise);
    store_declare(w, "latents", F32, t->ndim, t->shape), store_data_f32(w, t->data, t->count);
    store_commit(w), store_close(s);
    free(path), free(noise);
    forget(works("--latents", PLAIN "|-p|a dog|--seed|99|--latents|noise.safetensors|-o|given.png"));
    check(same_picture("given.png", "one.png"), "--latents begins with that noise");
    forget(works("--dump of LCM's steps",
                 PLAIN "|-p|a dog|--scheduler|lcm|--steps|4|-o|lcm.png|--dump|lcm.safetensors"));
    forget(works("sd verify of LCM's steps", "verify|-t|1|-m|good|--tolerance|0|lcm.safetensors"));
    forget(works("--dump of TCD's steps",
                 PLAIN "|-p|a dog|--scheduler|tcd|--eta|0.5|--steps|3|-o|lcm.png|--dump|tcd.safetensors"));
    forget(works("sd verify of TCD's steps", "verify|-t|1|-m|good|--tolerance|0|tcd.safetensors"));
    forget(works("--dump of image-to-image",
                 "sample|-q|-t|1|-m|good|--steps|5|--init|one.png|--strength|0.5|-p|a dog|-o|i2i.png|"
                 "--scheduler|pndm|--dump|i2i.safetensors"));
    forget(works("sd verify of image-to-image", "verify|-t|1|-m|good|--tolerance|0|i2i.safetensors"));
}

// A trace with one thing changed: a tensor (all: ""; each number by `by`, its name to `new`), tensors left
// out whose names begin with one of `drop`, the sampler's name.
static struct {
    const char *tensor, *new, *drop, *sampler;
    float (*by)(float);
} change;

static float tenth_more(float x) { return 1.1f * x; }
static float one_less(float x) { return x - 1; }
static float half(float x) { return f16_to_f32(f32_to_f16(x)); }
static float brain_half(float x) { return fabsf(x) >= 100 ? x : bf16_to_f32(f32_to_bf16(x)); } // not tokens

static bool dropped(const char *name) {
    char *copy = xstrdup(change.drop ? change.drop : "");
    bool drop = false;
    for (char *at = copy, *one; *copy && (one = strsep(&at, "|"));) drop = drop || starts_with(name, one);
    free(copy);
    return drop;
}

static void changed_trace(const char *old, const char *new) {
    char *from = at(old), *to = at(new);
    Store *s = store_open(from);
    StoreWriter *w = store_create(to);
    store_metadata_add(w, "sampler", change.sampler ? change.sampler : "ddim");
    for (int round = 0; round < 2; round++)
        for (size_t i = 0; i < store_count(s); i++) {
            const Stored *t = store_at(s, i);
            bool this = change.tensor && (!*change.tensor || !strcmp(t->name, change.tensor));
            if (dropped(t->name)) continue;
            float *x = store_floats(t, from);
            for (size_t k = 0; this && change.by && k < t->count; k++) x[k] = change.by(x[k]);
            if (round)
                store_data_f32(w, x, t->count);
            else
                store_declare(w, this && change.new ? change.new : t->name, F32, t->ndim, t->shape);
            free(x);
        }
    store_commit(w), store_close(s);
    free(from), free(to);
}

static void small_image(void) {
    char *path = at("small.safetensors"), *old = at("trace.safetensors");
    Store *s = store_open(old);
    StoreWriter *w = store_create(path);
    static const float pixels[3 * 7 * 8];
    store_metadata_add(w, "sampler", "ddim");
    for (size_t i = 0; i < store_count(s); i++)
        store_declare(w, store_at(s, i)->name, F32, store_at(s, i)->ndim, store_at(s, i)->shape);
    store_declare(w, "inputs.image", F32, 4, (const int64_t[]){1, 3, 7, 8});
    for (size_t i = 0; i < store_count(s); i++) {
        float *x = store_floats(store_at(s, i), old);
        store_data_f32(w, x, store_at(s, i)->count), free(x);
    }
    store_data_f32(w, pixels, 3 * 7 * 8);
    store_commit(w), store_close(s), free(path), free(old);
    refuses("verify: a picture without a latent", "8 x 8 is the least", "verify|-m|good|small.safetensors");
}

// `first` differs first ("": none does), `differ` blocks in all, the reason holds `why`, the lists `listed`.
static void verdict(const char *what, const char *args, const char *first, int differ, const char *why,
                    const char *listed) {
    Result r = sd(args);
    Json *j = json_parse(r.out, strlen(r.out), "stdout");
    const Json *blocks = json_get(j, "blocks");
    int bad = 0;
    for (size_t i = 0; blocks && i < blocks->length; i++)
        bad += !json_get_bool(&blocks->items[i], "ok", true);
    const char *lists = strstr(r.out, "\"absent\"");
    bool right = !strcmp(json_get_string(j, "first", ""), first) && bad == differ &&
                 r.status == (differ > 0) && strstr(json_get_string(j, "why", ""), why) && lists &&
                 strstr(lists, listed);
    if (!right) printf("        status %d, %d differ: %s%s\n", r.status, bad, lists ? lists : r.out, r.err);
    check(right, what);
    json_free(j), forget(r);
}

#define CHANGED "verify|-q|-t|1|-m|good|--json|changed.safetensors"
#define CHANGE(...)                                                                                          \
    change = (__typeof__(change)){__VA_ARGS__}, changed_trace("trace.safetensors", "changed.safetensors")

static void between_networks(void) {
    CHANGE("step.1.guidance", .by = tenth_more);
    verdict("a mistake in guidance", CHANGED, "step.1.guidance", 2, "with it times 4.4 (ours 4)", "");
    verdict("of two traces", "verify|-t|1|--json|trace.safetensors|changed.safetensors", "step.1.guidance", 1,
            "", "");
    CHANGE("", .by = tenth_more,
           .drop =
               "inputs.|text|latents|vae|step.0.unet.input|step.0.unet.down_blocks.0.resnets|step.0.unet.t");
    verdict("in the order of a run", "verify|-t|1|--json|changed.safetensors|trace.safetensors",
            "step.0.unet.conv_in", 69, "",
            "time_embedding\", \"step.0.unet.down_blocks.0.resnets.0\", \"latents\", \"vae.scaling\"");
    CHANGE("step.0.sampler", .by = tenth_more);
    verdict("a mistake in the sampler's step; the next input is the right one", CHANGED, "step.0.sampler", 3,
            "latents times", "");
    CHANGE("step.1.unet.input", .by = tenth_more);
    verdict("a scaled input", CHANGED, "step.1.unet.input", 33, "latents times 1.1 (ours 1)", "");
    CHANGE("vae.scaling", .by = tenth_more);
    verdict("another scaling factor", CHANGED, "vae.scaling", 18, "latents times 1.1", "");
    CHANGE("inputs.timesteps", .by = one_less);
    verdict("other timesteps", CHANGED, "inputs.timesteps", 67, "steps_offset 0", "");
    CHANGE("latents", .new = "unheard");
    verdict("a tensor that nobody knows", CHANGED, "", 0, "", "\"not_compared\": [\"unheard\"]");
    CHANGE("step.1.unet.input", .by = tenth_more, .drop = "step.0.guidance|step.0.sampler");
    verdict("blocks that are absent before the mistake", CHANGED, "step.1.unet.input", 33,
            "before it in what the trace lacks", "\"absent\": [\"step.0.guidance\", \"step.0.sampler\"]");
    CHANGE(.sampler = "heun");
    verdict("a sampler that is not known", CHANGED, "", 0, "",
            "\"not_compared\": [\"step.0.unet.input\", \"step.0.sampler\"");
    CHANGE("", .by = half, .drop = "inputs.noise");
    verdict("half precision", CHANGED, "", 0, "", "\"precision\": \"fp16\"");
    CHANGE("", .by = brain_half);
    verdict("bfloat16", CHANGED, "", 0, "", "\"precision\": \"bf16\"");
    CHANGE("text_encoder", .new = "inputs.context", .drop = "text_encoder.|inputs.ids");
    verdict("text states in place of tokens", CHANGED, "", 0, "", "\"absent\": []");
    CHANGE("text_encoder", .new = "text_encoder_2.final_layer_norm");
    refuses("a trace of another kind of model", "Stable Diffusion XL", CHANGED);
    refuses_with(2, "three traces", "one trace, or two", "verify|a|b|c");
#define STEP "verify|-t|1|-m|good|--json|--gradients|"
    static const char *const fixtures[] = {"trace-lcm.safetensors", "trace-lora.safetensors",
                                           "trace-adapters.safetensors"};
    for (int i = 0; i < 3; i++) {
        char *from = format("test/fixtures/%s", fixtures[i]), *to = at(fixtures[i]);
        copy_file(from, to);
        free(from), free(to);
    }
    change = (__typeof__(change)){"", .by = tenth_more};
    changed_trace("trace-adapters.safetensors", "wrong.safetensors");
    verdict("PyTorch's gradients of a step of Phase 2", STEP "trace-lcm.safetensors", "", 0, "",
            "gradient.unet.conv_in.weight");
    verdict("of Phase 3", STEP "trace-lora.safetensors|--lora|trace-adapters.safetensors", "", 0, "",
            "\"absent\": []");
    verdict("another strength", STEP "trace-lora.safetensors|--lora|wrong.safetensors", "loss", 5, "", "");
}

static void image_to_image(void) {
    char *path = at("i2i.png");
    Image *image = image_load(path);
    check(image->width == 64 && image->height == 48,
          "--init: the picture's size, unless -W and -H say otherwise");
    image_free(image), free(path);
    refuses("--init without a step", "--strength", DRAW "good|--init|one.png|--strength|0.1");
    forget(works("encode", "encode|-t|1|one.png|-q|-m|good|-o|z.safetensors"));
    Result r = works("decode", "decode|-t|1|z.safetensors|-m|good|-o|back.png|--json");
    Json *j = json_parse(r.out, strlen(r.out), "stdout");
    check(!strcmp(json_get_string(j, "output", ""), "back.png") && json_get_number(j, "seconds", -1) >= 0 &&
              !*r.err,
          "--json: output and seconds");
    json_free(j), forget(r);
}

static void figures(void) {
    Result r = works("--json", "sample|-t|1|-m|good|--scheduler|pndm|--steps|2|-W|64|-H|64|-p|a "
                               "dog|-n|2|-o|j\".png|--json|--seed|3");
    Json *j = json_parse(r.out, strlen(r.out), "stdout");
    const Json *images = json_get(j, "images");
    check(images && images->length == 2 && !strcmp(images->items[1].string, "j\"-1.png"), "images");
    static const char *const fields[] = {"seconds", "load_s", "text_s",  "unet_step_s", "unet_evaluations",
                                         "steps",   "vae_s",  "peak_mb", "seed"};
    bool all = true;
    for (int i = 0; i < 9; i++) all = all && json_get_number(j, fields[i], -1) >= 0;
    check(all && json_get_number(j, "seed", 0) == 3 && json_get_number(j, "steps", 0) == 2 &&
              json_get_number(j, "unet_evaluations", 0) == 3,
          "and every figure; PNDM evaluates the UNet once more than it has steps");
    json_free(j), forget(r);
    r = works("--preview", PLAIN "|-p|a dog|-o|p.png|--preview");
    check(strstr(r.err, "\xe2\x96\x80") && !*r.out, "draws half blocks on stderr");
    forget(r);
    r = works("-v", "sample|-v|-t|1|-m|good|--steps|1|-W|64|-H|64|-p|a|-o|v.png");
    check(strstr(r.err, "peak memory") != NULL, "says how much memory was needed");
    forget(r);
    r = works("a long caption", "sample|-t|1|-m|good|--steps|1|-W|64|-H|64|-o|v.png|-p|"
                                "one two three four five six seven eight nine ten eleven twelve");
    check(strstr(r.err, "longer than 32 tokens") != NULL, "is cut with a note");
    forget(r);
    r = works("tokenize", "tokenize|-m|good|-p|ab|--pad");
    int ids = 0;
    for (char *s = r.out; *s; s++) ids += *s == ' ' || *s == '\n';
    check(ids == 32, "--pad gives all tokens");
    forget(r);
    r = works("info", "info|good");
    check(strstr(r.out, "unet") && strstr(r.out, "DDIM"), "names the parts and the scheduler");
    forget(r);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    setenv("OMP_WAIT_POLICY", "passive", 0); // waiting threads leave the processor to others
    program = getenv("SD") ? getenv("SD") : "./sd";
    if (access(program, X_OK)) {
        skip("the command line", "there is no ./sd");
        return test_report();
    }
    program = realpath(program, NULL);
    dir = xstrdup("/tmp/sd-cli-XXXXXX");
    if (!mkdtemp(dir)) die("cannot make a folder under /tmp");
    forget(works("sd synth", "synth|good|--arch|tiny|-q"));
    unet_file = text_of("good/" UNET);
    char *path = at("good/" UNET);
    free(unet_file), unet_file = read_file(path, &unet_bytes);
    free(path);
    damaged_weights();
    wrong_tensors();
    nan_while_drawing();
    extra_tensors();
    bad_configurations();
    bad_options();
    bad_latents();
    nowhere_to_write();
    no_memory();
    interrupt();
    many_pictures();
    memory();
    traces();
    between_networks();
    small_image();
    planted_mistakes();
    image_to_image();
    figures();
    char *remove = format("rm -rf '%s'", dir);
    if (system(remove)) die("cannot remove %s", dir);
    free(remove), free(unet_file), free(dir), free((void *)(uintptr_t)program);
    return test_report();
}
