// samplers.c: every sampler, step by step, and every key of scheduler_config.json, against diffusers.
// Expected: test/fixtures/samplers.safetensors, see its README.md; make_sampler_fixture.py wrote it.
#define _DEFAULT_SOURCE // mkdtemp
#include "sd.h"
#include "test/io/files.h"
#include "test/test.h"

enum { SIZE = 16 }; // (1, 4, 2, 2)

// The made network: out = 0.5 x + sin(1.7 i + 0.9 k) + t / 2000 at element i in PyTorch's order.
static Tensor *network(Tensor *x, int k, float t) {
    float wave[SIZE];
    for (int i = 0; i < SIZE; i++) wave[i] = (float)(sin(1.7 * i + 0.9 * k) + (double)t / 2000);
    float *nhwc = nchw_to_nhwc(wave, 1, 4, 2, 2);
    Tensor *out = combine(0.5f, x, 1, tensor_from(SHAPE(1, 2, 2, 4), nhwc));
    free(nhwc);
    return out;
}

static Tensor *noise_of(Random *r) {
    float x[SIZE];
    random_normal(r, x, SIZE);
    float *nhwc = nchw_to_nhwc(x, 1, 4, 2, 2);
    Tensor *t = tensor_from(SHAPE(1, 2, 2, 4), nhwc);
    free(nhwc);
    return t;
}

// The pipeline's loop, from seed 0. rows, (steps, 2 + SIZE): what the fixture has of each step; or NULL. The
// last latents go to `end`.
static void draw(Scheduler *s, const float *clean, float *rows, float end[SIZE]) {
    Random r;
    random_seed(&r, 0);
    Scope all = scope_begin();
    Tensor *start = NULL;
    if (clean) {
        float *nhwc = nchw_to_nhwc(clean, 1, 4, 2, 2);
        start = tensor_from(SHAPE(1, 2, 2, 4), nhwc);
        free(nhwc);
    }
    Tensor *z = scheduler_start(s, start, noise_of(&r));
    for (int k = 0; s->at < s->count; k++) {
        float t = s->timesteps[s->at];
        Tensor *out = network(scheduler_input(s, z), k, t);
        z = scheduler_step(s, z, out, scheduler_wants_noise(s) ? noise_of(&r) : NULL);
        float *x = tensor_read(z), *nchw = nhwc_to_nchw(x, 1, 4, 2, 2);
        memcpy(end, nchw, SIZE * sizeof(float));
        free(x), free(nchw);
        if (!rows) continue;
        rows[k * (2 + SIZE)] = (float)k, rows[k * (2 + SIZE) + 1] = t;
        memcpy(rows + k * (2 + SIZE) + 2, end, SIZE * sizeof(float));
    }
    scope_end(all, NULL);
}

static float *values(const Stored *t) {
    float *x = xmalloc(t->count * sizeof *x);
    store_read_f32(t, x);
    return x;
}

static Json *config_of(const char *text) {
    return json_parse(text, strlen(text), "the test's configuration");
}

static void step_by_step(const Store *s) {
    double all = 0;
    int runs = 0;
    for (size_t i = 0; i < store_count(s); i++) {
        const Stored *t = store_at(s, i);
        char name[16], spacing[16], prediction[16];
        int karras, steps, eta, image, kind = 0;
        if (sscanf(t->name, "run.%15[^.].%15[^.].%15[^.].%d.%d.%d.%d", name, spacing, prediction, &karras,
                   &steps, &eta, &image) != 7)
            continue;
        while (strcmp(samplers[kind].name, name)) kind++;
        char *text =
            format("{\"beta_start\": 0.00085, \"beta_end\": 0.012, \"beta_schedule\": \"scaled_linear\", "
                   "\"skip_prk_steps\": true, \"timestep_spacing\": \"%s\", \"prediction_type\": \"%s\", "
                   "\"use_karras_sigmas\": %s}",
                   spacing, prediction, karras ? "true" : "false");
        Json *j = config_of(text);
        Scheduler sampler;
        SchedulerConfig c = scheduler_config(j, kind);
        c.eta = eta / 10.0;
        scheduler_init(&sampler, c);
        scheduler_set_timesteps(&sampler, steps);
        float clean[SIZE], end[SIZE], *want = values(t);
        for (int k = 0; k < SIZE; k++) clean[k] = cosf((float)k);
        if (image) scheduler_skip(&sampler, steps - (int)(steps * 0.55));
        int evaluations = sampler.count - sampler.at;
        float *rows = xcalloc((size_t)evaluations, (2 + SIZE) * sizeof *rows);
        draw(&sampler, image ? clean : NULL, rows, end);
        double worst = t->shape[0] > 0 ? 0 : INFINITY;
        for (int64_t k = 0; k < t->shape[0]; k++) {
            const float *theirs = want + k * (2 + SIZE), *ours = rows + (int)theirs[0] * (2 + SIZE);
            bool same = theirs[0] < (float)evaluations && fabsf(ours[1] - theirs[1]) <= 1e-4f;
            keep_largest(&worst, same ? max_error(ours + 2, theirs + 2, SIZE, 1e-30) : INFINITY);
        }
        if (evaluations != (int)want[(t->shape[0] - 1) * (2 + SIZE)] + 1) worst = INFINITY;
        if (!(worst <= 1e-5)) printf("%s: error %.2g\n", t->name, worst);
        keep_largest(&all, worst);
        runs++;
        scheduler_free(&sampler);
        free(rows), free(want), free(text), json_free(j);
    }
    printf("%d runs: largest error %.2g\n", runs, all);
    check(runs > 250 && all <= 1e-5,
          "each step of each sampler in each spacing and prediction type is diffusers'");
}

// The timesteps of every number of steps.
static void grids(const Store *s) {
    static const char *const spacings[] = {"leading", "trailing", "linspace"};
    for (int n = 0; n < 6; n++) {
        int kind = n < 3 ? DDIM : DPMPP_2M, right = 0;
        char *name = format("grid.%s.%s", samplers[kind].name, spacings[n % 3]);
        char *text = format("{\"timestep_spacing\": \"%s\"}", spacings[n % 3]);
        Json *j = config_of(text);
        const Stored *t = store_find(s, name);
        int *want = xmalloc(t->count * sizeof *want);
        memcpy(want, t->data, t->count * sizeof *want);
        Scheduler sampler;
        scheduler_init(&sampler, scheduler_config(j, kind));
        int most = n == 3 ? 998 : 999; // 999 leading ones of DPM-Solver++ would begin at 1000
        for (int steps = 1; steps <= most; steps++) {
            scheduler_set_timesteps(&sampler, steps);
            long sum = 0;
            for (int i = 0; i < steps; i++) sum += (i + 1) * (long)sampler.timesteps[i];
            right += sum == want[steps - 1];
            if (sum != want[steps - 1]) printf("%s: other timesteps at %d steps\n", name, steps);
        }
        scheduler_free(&sampler);
        check(right == most, name);
        free(name), free(text), free(want), json_free(j);
    }
}

// Draws with one scheduler_config.json. False: it is refused, and last_words has why. lost: how much larger
// than the picture the noise is at the beginning, which is how much larger the rounding of fp32 becomes.
static bool outcome(const char *path, int kind, float ends[2 * SIZE], double *lost) {
    static Scheduler s[2];
    die_hook = on_death;
    if (setjmp(death)) {
        die_hook = NULL;
        return false;
    }
    Json *j = scheduler_load(path);
    for (int i = 0; i < 2; i++) {
        scheduler_init(&s[i], scheduler_config(j, kind));
        scheduler_set_timesteps(&s[i], i ? 16 : 5);
    }
    die_hook = NULL;
    float a = s[0].alphas_cumprod[(int)s[0].timesteps[0]];
    *lost = a > 0 ? 1 / sqrt((double)a) : 1;
    for (int i = 0; i < 2; i++) draw(&s[i], NULL, NULL, ends + i * SIZE), scheduler_free(&s[i]);
    json_free(j);
    return true;
}

// Is a key in quotes that the message has also in the configuration? The absent skip_prk_steps counts, too.
static bool names_a_key(const char *message, const char *config) {
    const char *at = strchr(message, '"'), *end = at ? strchr(at + 1, '"') : NULL;
    if (!end) return false;
    char *key = format("%.*s", (int)(end + 1 - at), at);
    bool named = strstr(config, key) || !strcmp(key, "\"skip_prk_steps\"");
    free(key);
    return named;
}

static void sweep(const Store *s) {
    const Stored *t = store_find(s, "sweep");
    const char *lines = store_metadata(s, "sweep"), *line, *end;
    size_t length;
    float *want = values(t), ends[2 * SIZE];
    int equal = 0, refused = 0, wrong = 0, n = 0;
    folder_begin();
    const char *path = xstrdup(in_folder("scheduler_config.json"));
    verbosity = -1;
    for (end = lines + strlen(lines); next_line(&lines, end, &line, &length); n++) {
        const char *tab = strchr(line, '\t');
        int kind = -1;
        for (int i = 0; i <= TCD; i++)
            if ((int)strlen(samplers[i].name) == tab - line &&
                !strncmp(line, samplers[i].name, (size_t)(tab - line)))
                kind = i;
        bool based = tab[1] == '+';
        char *own = format("%.*s", (int)(line + length - tab - 1 - based), tab + 1 + based);
        char *config = format("%s%s", own, "");
        if (based) {
            own[strlen(own) - 1] = 0; // its '}'
            free(config);
            config = format("%s, \"beta_start\": 0.00085, \"beta_end\": 0.012, "
                            "\"beta_schedule\": \"scaled_linear\", \"skip_prk_steps\": true}",
                            own);
        }
        write_text("scheduler_config.json", config);
        const float *theirs = want + n * 2 * SIZE;
        double lost = 0, worst = INFINITY;
        bool drawn = outcome(path, kind, ends, &lost), fine = false;
        if (!drawn) // where diffusers fails there may be more than one key to name
            fine = isnan(theirs[SIZE]) || names_a_key(last_words, config), refused += fine;
        else {
            worst = max_error(ends, theirs, SIZE, 1e-30);
            keep_largest(&worst, max_error(ends + SIZE, theirs + SIZE, SIZE, 1e-30));
            // beta_start 0: no noise at the last timestep, and 0 / 0 in diffusers; here it is drawn
            if (strstr(config, "\"beta_start\": 0,") && isnan(theirs[0])) worst = 0;
            fine = worst <= 1e-5 + 3e-8 * lost, equal += fine;
        }
        if (!fine) {
            wrong++;
            printf("%.*s\n    %s", (int)length, line, drawn ? "another result" : last_words);
            printf(" (%.2g)\n", worst);
        }
        free(own), free(config);
    }
    printf("%d scheduler_config.json: %d equal, %d refused by name, %d wrong\n", n, equal, refused, wrong);
    check(n == (int)t->shape[0] && n > 1000 && equal > n / 2,
          "the sweep has its cases, most of which are drawn");
    check(wrong == 0, "each is obeyed as diffusers obeys it, or refused by name");
    folder_end();
    free(want), free((void *)path);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    backend_init(1);
    Store *s = store_open("test/fixtures/samplers.safetensors");
    step_by_step(s);
    grids(s);
    sweep(s);
    store_close(s);
    return test_report();
}
