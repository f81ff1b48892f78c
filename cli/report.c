// report.c: `sd report`, the paper's table, figures and claims from the results that `make paper` left in a folder,
// as one HTML file that needs nothing else. It computes nothing but medians and ratios; what is missing is marked as
// missing, and results that the last run of `make paper` did not reach are left out.
#include "charts.h"
#include "commands.h"
#include "lib/io/io.h"

#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// ---- results ----------------------------------------------------------------------------------------------------

enum { SYSTEMS = 5, MOST_STEPS = 9, MOST_TIMES = 256, MOST_PICTURES = 4 };
enum { PICTURE_LETTERS = 2500000 }; // of Figure 3's pictures in the page, all together: it stays under 3 MB
enum { BASE, FINETUNED, TEACHER, SMALL, LARGE };

typedef struct {
    int steps, evaluations, count; // evaluations of the UNet: PNDM's are one more than its steps
    double pictures[MOST_TIMES], text[MOST_TIMES], step[MOST_TIMES], vae[MOST_TIMES]; // seconds
    int calls;
} Timing;

typedef struct {
    const char *name, *title;  // stages are called "fid-<name>", ...
    double paper_fid, paper_s; // the paper's own, NAN where it gives none
    // measured; NAN where missing
    double fid, low, high, kid, kid_error, fidelity, count;
    double sweep_steps[MOST_STEPS], sweep_fid[MOST_STEPS], sweep_fidelity[MOST_STEPS];
    int sweep;
    Timing timing[MOST_STEPS];
    int timings;
    char *pictures[MOST_PICTURES];         // of Figure 3, as base64
    char *drawn_by, *judged_by, *shown_by; // commands; the last draws Figure 3
} System;

static System systems[SYSTEMS] = {
    {.name = "base", .title = "Base", .paper_fid = NAN, .paper_s = 2.07},
    {.name = "lora", .title = "Fine-tuned LoRA", .paper_fid = NAN, .paper_s = NAN},
    {.name = "lcm", .title = "LCM", .paper_fid = NAN, .paper_s = NAN},
    {.name = "lcm-lora-8k", .title = "LCM-LoRA 8k", .paper_fid = 26.95, .paper_s = 0.86},
    {.name = "lcm-lora-30k", .title = "LCM-LoRA 30k", .paper_fid = 24.85, .paper_s = 0.86},
};

static const char *dir;
static char **stages; // those that the last run reached, in its order
static int stage_count;

static void read_stages(void) {
    char *path = format("%s/stages.txt", dir);
    if (!file_exists(path)) die("%s holds no results of `make paper`: there is no stages.txt", dir);
    char *text = read_file(path, NULL);
    for (char *name = strtok(text, "\n"); name; name = strtok(NULL, "\n")) {
        stages = xrealloc(stages, (size_t)(stage_count + 1) * sizeof *stages);
        stages[stage_count++] = xstrdup(name);
    }
    free(text), free(path);
}

// A stage's record: {"stage", "seconds", "command", "result"}; NULL where the last run did not reach it.
static Json *record_of(const char *kind, const char *name) {
    char *stage = format("%s%s", kind, name), *path = format("%s/made/%s.json", dir, stage);
    bool reached = false;
    for (int i = 0; i < stage_count; i++) reached |= !strcmp(stages[i], stage);
    Json *j = reached && file_exists(path) ? json_load(path) : NULL;
    free(stage), free(path);
    return j;
}

static void read_judgement(const char *name, double *fid, double *fidelity, System *whole) {
    Json *j = record_of("fid-", name);
    const Json *r = json_get(j, "result"), *interval = json_get(r, "fid_interval");
    *fid = json_get_number(r, "fid", NAN);
    if (whole) {
        whole->kid = json_get_number(r, "kid", NAN), whole->kid_error = json_get_number(r, "kid_stderr", NAN);
        whole->count = json_get_number(r, "n_b", NAN);
        bool both = interval && interval->kind == JSON_ARRAY && interval->length == 2;
        whole->low = both ? interval->items[0].number : NAN,
        whole->high = both ? interval->items[1].number : NAN;
        whole->judged_by = xstrdup(json_get_string(j, "command", ""));
    }
    json_free(j), j = record_of("fidelity-", name);
    *fidelity = json_get_number(json_get(j, "result"), "fidelity", NAN);
    json_free(j);
}

// A picture as base64, at most 256 wide and `most` letters long: a larger one is made smaller, by way of `scratch`.
static char *picture(const char *path, const char *scratch, size_t most) {
    Image *image = image_load(path);
    char *text = NULL;
    for (int width = 256; width >= 64 && (!text || strlen(text) > most); width -= 32) {
        bool large = image->width > width;
        if (large) {
            int height = width * image->height / image->width;
            Image *small = image_resize(image, width, height ? height : 1, RESIZE_BICUBIC);
            image_save_png(scratch, small, "");
            image_free(small);
        }
        size_t bytes;
        char *data = read_file(large ? scratch : path, &bytes);
        free(text);
        text = base64((unsigned char *)data, bytes);
        free(data);
        if (large) unlink(scratch);
    }
    image_free(image);
    return text;
}

static void read_system(System *s, const char *scratch) {
    read_judgement(s->name, &s->fid, &s->fidelity, s);
    Json *j = record_of("draw-", s->name);
    s->drawn_by = xstrdup(json_get_string(j, "command", ""));
    double own = json_get_number(json_get(j, "result"), "steps", NAN);
    json_free(j);
    for (int steps = 1; steps <= 100 && s->sweep < MOST_STEPS; steps++) {
        char *name = steps == own ? xstrdup(s->name) : format("%s-at-%d", s->name, steps);
        int k = s->sweep;
        s->sweep_steps[k] = steps;
        read_judgement(name, &s->sweep_fid[k], &s->sweep_fidelity[k], NULL);
        s->sweep += isfinite(s->sweep_fid[k]);
        free(name);
    }
    j = record_of("figure3-", s->name);
    s->shown_by = xstrdup(json_get_string(j, "command", ""));
    const Json *images = json_get(json_get(j, "result"), "images");
    size_t count = images && images->kind == JSON_ARRAY ? images->length : 0;
    if (count > MOST_PICTURES) count = MOST_PICTURES;
    for (size_t i = 0; i < count; i++) {
        const char *path = images->items[i].kind == JSON_STRING ? images->items[i].string : "",
                   *slash = strrchr(path, '/');
        char *here = format("%s/%s", dir, slash ? slash + 1 : path); // the folder may have moved since
        if (*path && file_exists(here))
            s->pictures[i] = picture(here, scratch, PICTURE_LETTERS / (SYSTEMS * count));
        free(here);
    }
    json_free(j);
}

// [{"system", "steps", "sample": {"picture_s": [...], "text_s", "unet_step_s", "unet_evaluations", "vae_s"}}, ...]; the
// first picture of each call warmed up.
static void read_speed(void) {
    Json *j = record_of("speed", "");
    const Json *calls = json_get(j, "result");
    for (size_t i = 0; calls && calls->kind == JSON_ARRAY && i < calls->length; i++) {
        const Json *call = &calls->items[i], *sample = json_get(call, "sample"),
                   *each = json_get(sample, "picture_s");
        int steps = (int)json_get_number(call, "steps", 0), k = 0;
        System *s = NULL;
        for (int n = 0; n < SYSTEMS; n++)
            if (!strcmp(systems[n].name, json_get_string(call, "system", ""))) s = &systems[n];
        if (!s || !each || each->kind != JSON_ARRAY) continue;
        while (k < s->timings && s->timing[k].steps != steps) k++;
        if (k == MOST_STEPS) continue;
        Timing *t = &s->timing[k];
        if (k == s->timings) {
            s->timings++, t->steps = steps;
            t->evaluations = (int)json_get_number(sample, "unet_evaluations", steps);
        }
        if (t->calls == MOST_TIMES) continue;
        t->text[t->calls] = json_get_number(sample, "text_s", NAN),
        t->vae[t->calls] = json_get_number(sample, "vae_s", NAN);
        t->step[t->calls++] = json_get_number(sample, "unet_step_s", NAN);
        for (size_t p = 1; p < each->length && t->count < MOST_TIMES; p++)
            t->pictures[t->count++] = each->items[p].number;
    }
    json_free(j);
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// The value below which `share` of them lie; 0.5: the median.
static double quantile(const double *v, int n, double share) {
    if (!n) return NAN;
    double *sorted = xmalloc((size_t)n * sizeof *sorted);
    memcpy(sorted, v, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, compare);
    double at = share * (n - 1);
    int i = (int)at;
    double x = i + 1 < n ? sorted[i] + (at - i) * (sorted[i + 1] - sorted[i]) : sorted[i];
    free(sorted);
    return x;
}

static double median(const double *v, int n) { return quantile(v, n, 0.5); }

// Seconds a picture as the system is used: with guidance in the most steps that were timed, else in the fewest.
static const Timing *usual(int system) {
    const System *s = &systems[system];
    const Timing *best = s->timings ? &s->timing[0] : NULL;
    for (int i = 1; i < s->timings; i++)
        if (system <= FINETUNED ? s->timing[i].steps > best->steps : s->timing[i].steps < best->steps)
            best = &s->timing[i];
    return best;
}

static double usual_seconds(int system) {
    const Timing *t = usual(system);
    return t ? median(t->pictures, t->count) : NAN;
}

// ---- training runs, DIR/logs/NAME.jsonl: see weights/thin.sh ---------------------------------------------------------

typedef struct {
    char *name, *command;
    double pictures, steps, seconds, peak_mb; // NAN where not known
    double *step, *loss;
    int points;
} Training;

static Training read_training(const char *path, const char *name) {
    Training t = {.name = xstrdup(name)};
    char *text = read_file(path, NULL);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        Json *j = json_parse(line, strlen(line), path);
        if (json_get(j, "run")) {
            t.command = xstrdup(json_get_string(j, "command", ""));
            t.pictures = json_get_number(j, "pictures", NAN), t.steps = json_get_number(j, "steps", NAN);
            t.seconds = json_get_number(j, "seconds", NAN), t.peak_mb = json_get_number(j, "peak_mb", NAN);
        } else {
            t.step = xrealloc(t.step, (size_t)(t.points + 1) * sizeof *t.step);
            t.loss = xrealloc(t.loss, (size_t)(t.points + 1) * sizeof *t.loss);
            t.step[t.points] = json_get_number(j, "step", NAN),
            t.loss[t.points++] = json_get_number(j, "loss", NAN);
        }
        json_free(j);
    }
    free(text);
    if (!t.command) die("%s: its first line does not tell of the run", path);
    return t;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const Training *)a)->name, ((const Training *)b)->name);
}

static Training *read_trainings(int *count) {
    char *logs = format("%s/logs", dir);
    DIR *d = opendir(logs);
    Training *list = NULL;
    *count = 0;
    for (struct dirent *e; d && (e = readdir(d));) {
        char *end = strstr(e->d_name, ".jsonl");
        if (!end || end[6]) continue;
        char *path = format("%s/%s", logs, e->d_name),
             *name = format("%.*s", (int)(end - e->d_name), e->d_name);
        list = xrealloc(list, (size_t)(*count + 1) * sizeof *list);
        list[(*count)++] = read_training(path, name);
        free(path), free(name);
    }
    if (d) closedir(d);
    free(logs);
    if (list) qsort(list, (size_t)*count, sizeof *list, by_name);
    return list;
}

static const Training *training(const Training *list, int count, const char *name) {
    for (int i = 0; i < count; i++)
        if (!strcmp(list[i].name, name)) return &list[i];
    return NULL;
}

// ---- the page ---------------------------------------------------------------------------------------------------

static const char style[] =
    ":root{color-scheme:light dark;--ink:#1d1d1f;--paper:#fff;--line:#d4d4d8;--quiet:#5b5b63;--mark:#a40000;"
    "--c0:#6b7280;--c1:#b45309;--c2:#0f766e;--c3:#2563eb;--c4:#a21caf;--c5:#d97706;--c6:#2563eb;--c7:#16a34a}"
    "\n"
    "@media screen and (prefers-color-scheme:dark){:root{--ink:#e8e8ea;--paper:#18181b;--line:#3f3f46;"
    "--quiet:#a1a1aa;--mark:#ef8a8a;--c0:#9ca3af;--c1:#f59e0b;--c2:#2dd4bf;--c3:#60a5fa;--c4:#e879f9;"
    "--c5:#fbbf24;--c6:#60a5fa;--c7:#4ade80}}\n"
    "*{box-sizing:border-box}body{font:16px/1.5 "
    "system-ui,sans-serif;color:var(--ink);background:var(--paper);"
    "margin:0 auto;max-width:72rem;padding:1rem}\n"
    "h1{font-size:1.6rem;line-height:1.25}h2{font-size:1.2rem;margin:2.2rem 0 .6rem}p{max-width:46rem}\n"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .6rem;"
    "border-bottom:1px solid var(--line);vertical-align:baseline}thead th{border-bottom-width:2px}"
    "td.n{font-variant-numeric:tabular-nums}\n"
    ".quiet,.how{color:var(--quiet);font-size:.88rem}.mark{color:var(--mark)}"
    "code{font-size:.85em;overflow-wrap:anywhere}code span{white-space:nowrap}\n"
    "figure{margin:0;min-width:0}figcaption{font-weight:600;margin-bottom:.2rem}"
    ".charts,.sparks{display:grid;gap:1.2rem 2rem}"
    ".charts{grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),1fr))}"
    ".sparks{grid-template-columns:repeat(auto-fill,minmax(min(100%,16rem),1fr))}"
    ".chart{max-width:30rem}table+.charts{margin-top:1.4rem}.spark{max-width:20rem}"
    ".chart>svg,.spark>svg{width:100%;display:block}.spark figcaption{font-size:.9rem}\n"
    ".grid{display:grid;gap:.5rem;grid-template-columns:minmax(0,max-content) "
    "repeat(var(--n),minmax(0,12rem));"
    "align-items:center}.grid img{width:100%;display:block;border:1px solid var(--line)}\n"
    ".legend{font-size:.85rem;margin:.2rem 0}.legend span{white-space:nowrap;margin-right:.8rem}"
    ".swatch{width:.75em;height:.75em}\n"
    "svg text{fill:var(--ink);font:13px system-ui,sans-serif}.spark text{font-size:14px}"
    ".axis{stroke:var(--line);fill:none}.mark path,path.mark{stroke:var(--ink);stroke-width:1.5;fill:none}"
    ".line{fill:none;stroke-width:2.2}.hollow{fill:none;stroke-width:1.6}\n"
    "@media print{:root{color-scheme:light}"
    "body{font-size:11pt;-webkit-print-color-adjust:exact;print-color-adjust:exact}"
    "figure,tr,.grid img{break-inside:avoid}h2{break-after:avoid}.charts{grid-template-columns:1fr 1fr}}\n"
    // On a telephone: a table's cells one below the other, each with its label.
    "@media screen and (max-width:44rem){table,tbody,tr,td,th[scope=row]{display:block}thead{display:none}"
    "tr{border-bottom:2px solid var(--line);padding:.4rem 0}td,th[scope=row]{border:0;padding:.1rem 0}"
    "td[data-l]{display:flex;gap:1rem;justify-content:space-between}"
    "td[data-l]::before{content:attr(data-l);color:var(--quiet)}td[data-l].text{display:block}"
    "td[data-l].text::before{display:block}.grid{grid-template-columns:repeat(var(--n),minmax(0,12rem))}"
    ".grid .name{grid-column:1/-1}}\n";

static void write_style(Output *o) {
    output_write(o, style, sizeof style - 1);
    for (int i = 0; i < 8; i++) output_printf(o, ".c%d{fill:var(--c%d)}.k%d{stroke:var(--c%d)}", i, i, i, i);
}

static void missing(Output *o, const char *label) {
    output_printf(o, "<td data-l=\"%s\" class=\"n quiet\">missing</td>", label);
}

static void number(Output *o, const char *label, double x, int digits) {
    if (isnan(x))
        missing(o, label);
    else
        output_printf(o, "<td data-l=\"%s\" class=\"n\">%.*f</td>", label, digits, x);
}

// The paper's own figure, or a word where it gives none.
static void theirs(Output *o, const char *label, double x, const char *none) {
    if (isnan(x))
        output_printf(o, "<td data-l=\"%s\" class=\"quiet\">%s</td>", label, none);
    else
        output_printf(o, "<td data-l=\"%s\" class=\"n quiet\">%.2f</td>", label, x);
}

static void begin_table(Output *o, const char *const *heads) {
    output_printf(o, "<table><thead><tr>");
    for (; *heads; heads++) output_printf(o, "<th scope=\"col\">%s</th>", *heads);
    output_printf(o, "</tr></thead><tbody>\n");
}

// A command whose options are not torn apart at their hyphens where the line ends.
static void write_command(Output *o, const char *command) {
    output_printf(o, "<code>");
    while (*command) {
        int blank = (int)strspn(command, " "), word = (int)strcspn(command + blank, " ");
        bool option = command[blank] == '-';
        char *text = format("%.*s", word, command + blank);
        output_printf(o, "%.*s%s", blank, command, option ? "<span>" : "");
        html_text(o, text);
        output_printf(o, "%s", option ? "</span>" : "");
        free(text), command += blank + word;
    }
    output_printf(o, "</code>");
}

static void begin_row(Output *o, const char *title) {
    output_printf(o, "<tr><th scope=\"row\">");
    html_text(o, title);
    output_printf(o, "</th>");
}

// Where a figure comes from. The command is the base's; the others differ in their model.
static void how(Output *o, const char *command, const char *machine, const char *more) {
    output_printf(o, "<p class=\"how\">");
    if (command && *command) {
        write_command(o, command);
        output_printf(o, " (and likewise for the others) on ");
    }
    html_text(o, machine);
    output_printf(o, ". %s</p>\n", more);
}

static void write_table(Output *o, const char *machine, bool judged) {
    output_printf(o, "<h2>Table: FID and speed</h2>\n");
    const char *heads[] = {"system",
                           "FID",
                           "95&nbsp;% interval",
                           "KID &#215; 1000",
                           "prompt fidelity",
                           "s a picture",
                           "the paper&#8217;s FID",
                           "the paper&#8217;s s a picture",
                           NULL};
    if (!judged) memmove(heads + 4, heads + 5, 4 * sizeof *heads);
    begin_table(o, heads);
    for (int i = 0; i < SYSTEMS; i++) {
        const System *s = &systems[i];
        begin_row(o, s->title);
        number(o, "FID", s->fid, 2);
        if (isnan(s->low))
            missing(o, "95 % interval");
        else
            output_printf(o, "<td data-l=\"95 %% interval\" class=\"n\">%.2f to %.2f</td>", s->low, s->high);
        if (isnan(s->kid))
            missing(o, "KID x 1000");
        else
            output_printf(o, "<td data-l=\"KID x 1000\" class=\"n\">%.2f &#177; %.2f</td>", 1000 * s->kid,
                          1000 * s->kid_error);
        if (judged) number(o, "prompt fidelity", s->fidelity, 3);
        const Timing *t = usual(i);
        if (!t)
            missing(o, "s a picture");
        else
            output_printf(o, "<td data-l=\"s a picture\" class=\"n\">%.3f in %d step%s</td>",
                          median(t->pictures, t->count), t->steps, t->steps == 1 ? "" : "s");
        theirs(o, "the paper's FID", s->paper_fid, i == FINETUNED ? "the lowest" : "not given");
        theirs(o, "the paper's s a picture", s->paper_s, "not given");
        output_printf(o, "</tr>\n");
    }
    output_printf(o, "</tbody></table>\n");
    how(o, systems[BASE].judged_by, machine,
        "Every system draws the same captions from the same noise, base and fine-tuned LoRA in the steps "
        "named above; "
        "their time is that of the steps in the table. Lower FID and KID are better; the "
        "interval is of the "
        "pictures drawn (bootstrap). The paper&#8217;s figures are of other data, another network and a GPU: "
        "they stand "
        "beside for their order, not their size.");
}

static Bar bar(int system, double value, double low, double high) {
    return (Bar){.label = systems[system].title, .part = {value}, .low = low, .high = high, .colour = system};
}

static void write_figure2(Output *o, const char *machine) {
    Bar fid[SYSTEMS], time[SYSTEMS], their_fid[SYSTEMS], their_time[SYSTEMS];
    for (int i = 0; i < SYSTEMS; i++) {
        const System *s = &systems[i];
        const Timing *t = usual(i);
        fid[i] = bar(i, s->fid, s->low, s->high);
        time[i] = bar(i, usual_seconds(i), t ? quantile(t->pictures, t->count, 0) : NAN,
                      t ? quantile(t->pictures, t->count, 1) : NAN);
        their_fid[i] = bar(i, s->paper_fid, NAN, NAN), their_time[i] = bar(i, s->paper_s, NAN, NAN);
        their_fid[i].hollow = their_time[i].hollow = true;
    }
    output_printf(o, "<h2>Figure 2: quality and time</h2>\n<div class=\"charts\">\n");
    chart_bars(o, "FID, measured here (lower is better)", "", 1, fid, SYSTEMS);
    chart_bars(o, "Seconds a picture, measured here", " s", 3, time, SYSTEMS);
    chart_bars(o, "FID, the paper's own", "", 2, their_fid, SYSTEMS);
    chart_bars(o, "Seconds a picture, the paper's own", " s", 2, their_time, SYSTEMS);
    output_printf(o, "</div>\n");
    how(o, NULL, machine,
        "Lines across the bars: the FID&#8217;s 95&nbsp;% interval; the fastest and the slowest picture. "
        "Base and fine-tuned LoRA are guided (two passes of the UNet a step), the LCM systems are not.");
}

static void write_speed(Output *o, const char *machine, const char *command) {
    enum { ROWS = SYSTEMS * MOST_STEPS };
    Bar bars[ROWS];
    char *labels[ROWS];
    int n = 0;
    if (!systems[BASE].timings) return;
    output_printf(o, "<h2>Speed, and where the time goes</h2>\n");
    begin_table(o, (const char *const[]){"system", "steps", "s a picture (median)", "lowest to highest",
                                         "text, s", "UNet, s", "VAE, s", NULL});
    for (int i = 0; i < SYSTEMS; i++)
        for (int k = 0; k < systems[i].timings; k++) {
            const Timing *t = &systems[i].timing[k];
            double text = median(t->text, t->calls), net = t->evaluations * median(t->step, t->calls),
                   vae = median(t->vae, t->calls);
            begin_row(o, systems[i].title);
            output_printf(o, "<td data-l=\"steps\" class=\"n\">%d</td>", t->steps);
            number(o, "s a picture (median)", median(t->pictures, t->count), 3);
            output_printf(o, "<td data-l=\"lowest to highest\" class=\"n\">%.3f to %.3f</td>",
                          quantile(t->pictures, t->count, 0), quantile(t->pictures, t->count, 1));
            number(o, "text, s", text, 4), number(o, "UNet, s", net, 3), number(o, "VAE, s", vae, 3);
            output_printf(o, "</tr>\n");
            labels[n] = format("%s, %d", systems[i].title, t->steps);
            bars[n] =
                (Bar){.label = labels[n], .part = {text, net, vae}, .low = NAN, .high = NAN, .colour = 5};
            n++;
        }
    output_printf(o, "</tbody></table>\n<div class=\"charts\">\n");
    chart_bars(o, "Seconds a picture, by system and steps: text encoder, UNet, VAE", " s", 3, bars, n);
    output_printf(o, "</div><p class=\"legend\">");
    static const char *const parts[] = {"text encoder", "UNet", "VAE"};
    for (int i = 0; i < 3; i++)
        output_printf(o,
                      "<span><svg viewBox=\"0 0 12 12\" class=\"swatch\" aria-hidden=\"true\"><rect "
                      "class=\"c%d\" width=\"12\" height=\"12\"/></svg> %s</span> ",
                      5 + i, parts[i]);
    output_printf(o, "</p>\n");
    how(o, NULL, machine,
        "The first picture of each call warms up and does not count. The length of the caption does not "
        "matter: the text "
        "encoder always reads the full number of tokens.");
    output_printf(o, "<p class=\"how\">");
    write_command(o, command);
    output_printf(o, "</p>\n");
    for (int i = 0; i < n; i++) free(labels[i]);
}

static void write_figure3(Output *o, const char *machine) {
    int columns = 0;
    for (int i = 0; i < SYSTEMS; i++)
        for (int k = 0; k < MOST_PICTURES; k++)
            if (systems[i].pictures[k] && k >= columns) columns = k + 1;
    if (!columns) return;
    output_printf(o,
                  "<h2>Figure 3: one caption, every model</h2>\n<p>&#8220;A child in a pink dress is "
                  "climbing up a set of "
                  "stairs in an entryway&#8221;; a column has the same noise.</p>\n<div class=\"grid\" "
                  "style=\"--n:%d\">\n",
                  columns);
    for (int i = 0; i < SYSTEMS; i++) {
        if (!systems[i].pictures[0]) continue;
        output_printf(o, "<div class=\"name\">%s</div>", systems[i].title);
        for (int k = 0; k < columns; k++)
            if (systems[i].pictures[k])
                output_printf(o, "<img alt=\"drawn by %s, noise %d\" src=\"data:image/png;base64,%s\">\n",
                              systems[i].title, k + 1, systems[i].pictures[k]);
            else
                output_printf(o, "<div></div>");
    }
    output_printf(o, "</div>\n");
    how(o, systems[BASE].shown_by, machine, "");
}

static void write_sweep(Output *o, const char *machine, bool judged) {
    Line fid[SYSTEMS], fidelity[SYSTEMS];
    int n = 0;
    for (int i = 0; i < SYSTEMS; i++) {
        const System *s = &systems[i];
        if (s->sweep < 2) continue;
        fid[n] = (Line){s->title, i, s->sweep, s->sweep_steps, s->sweep_fid};
        fidelity[n++] = (Line){s->title, i, s->sweep, s->sweep_steps, s->sweep_fidelity};
    }
    if (!n) return;
    output_printf(o, "<h2>Steps against quality</h2>\n<div class=\"charts\">\n");
    chart_lines(o, (LineChart){"FID (lower is better)", "steps", true, false, true}, fid, n);
    if (judged)
        chart_lines(o, (LineChart){"Prompt fidelity (higher is better)", "steps", true, false, true},
                    fidelity, n);
    output_printf(o, "</div>\n");
    how(o, systems[TEACHER].drawn_by, machine,
        "The same captions and noise as in the table, with other <code><span>--steps</span></code>.");
}

static void write_training(Output *o, const Training *list, int count) {
    if (!count) return;
    output_printf(o, "<h2>Training</h2>\n<div class=\"sparks\">\n");
    for (int i = 0; i < count; i++) {
        Line l = {list[i].name, 3, list[i].points, list[i].step, list[i].loss};
        char *title = format("%s: loss", list[i].name);
        chart_spark(o, title, &l);
        free(title);
    }
    output_printf(o, "</div>\n<h2>Time and memory by size of the data set</h2>\n");
    begin_table(o,
                (const char *const[]){"run", "pictures", "steps", "minutes", "memory, MB", "command", NULL});
    for (int i = 0; i < count; i++) {
        const Training *t = &list[i];
        begin_row(o, t->name);
        if (isnan(t->pictures))
            output_printf(o, "<td data-l=\"pictures\" class=\"quiet\">drawn on the way</td>");
        else
            number(o, "pictures", t->pictures, 0);
        number(o, "steps", t->steps, 0), number(o, "minutes", t->seconds / 60, 1),
            number(o, "memory, MB", t->peak_mb, 0);
        output_printf(o, "<td data-l=\"command\" class=\"text\">");
        write_command(o, t->command);
        output_printf(o, "</td></tr>\n");
    }
    output_printf(o, "</tbody></table>\n");
}

// ---- the claims -------------------------------------------------------------------------------------------------

static void claim(Output *o, const char *says, const char *verdict, const char *measured, const char *why) {
    bool quiet = !strcmp(verdict, "not measured");
    output_printf(
        o, "<tr><td data-l=\"the paper says\" class=\"text\">%s</td><td data-l=\"here\" class=\"%s\">%s</td>",
        says,
        quiet                           ? "quiet"
        : !strncmp(verdict, "holds", 5) ? ""
                                        : "mark",
        verdict);
    output_printf(
        o, "<td data-l=\"measured\" class=\"text\">%s</td><td data-l=\"why\" class=\"text\">%s</td></tr>\n",
        quiet ? "" : measured, why);
}

// Is a's FID lower than b's? With intervals that overlap nobody can tell.
static const char *lower(const System *a, const System *b) {
    if (isnan(a->fid + b->fid)) return "not measured";
    if (a->high < b->low) return "holds";
    if (a->low > b->high) return "does not hold";
    return "cannot be told: the intervals overlap";
}

// Appends "label 1.23" to a list in words, where the number is known.
static void listed(char text[512], const char *label, double x, int digits) {
    size_t at = strlen(text);
    if (!isnan(x)) snprintf(text + at, 512 - at, "%s%s %.*f", at ? ", " : "", label, digits, x);
}

static void write_claims(Output *o, const Training *trainings, int training_count) {
    const System *base = &systems[BASE], *lora = &systems[FINETUNED], *lcm = &systems[TEACHER],
                 *small = &systems[SMALL], *large = &systems[LARGE];
    char text[512];
    output_printf(o, "<h2>The paper&#8217;s claims</h2>\n");
    begin_table(o, (const char *const[]){"the paper says", "here", "measured", "why", NULL});

    const char *worst = "holds";
    const System *others[] = {base, lcm, small, large};
    bool beaten = false, open = false;
    for (int i = 0; i < 4; i++) {
        if (isnan(others[i]->fid) && others[i] != base) continue;
        const char *v = lower(lora, others[i]);
        beaten |= !strcmp(v, "does not hold"), open |= !strncmp(v, "cannot", 6);
        if (!strcmp(v, "not measured")) worst = v;
    }
    if (strcmp(worst, "not measured"))
        worst = beaten ? "does not hold" : open ? "cannot be told: the intervals overlap" : "holds";
    *text = 0;
    for (int i = 0; i < SYSTEMS; i++) listed(text, systems[i].title, systems[i].fid, 2);
    claim(o, "The fine-tuned LoRA has the lowest FID", worst, text,
          "It alone has seen the look of the pictures that FID compares with and still takes all its guided "
          "steps.");

    double ratio = usual_seconds(BASE) / usual_seconds(SMALL);
    snprintf(text, sizeof text,
             "%.1f times as fast (the paper: 2.07 s / 0.86 s = 2.4); FID %.2f against %.2f", ratio,
             small->fid, base->fid);
    bool faster = ratio > 1;
    claim(o, "LCM-LoRA is faster, at a higher FID",
          isnan(ratio + small->fid + base->fid) ? "not measured"
          : !faster                             ? "does not hold"
          : small->fid > base->fid
              ? (small->low > base->high ? "holds" : "holds for the time; the FID&#8217;s intervals overlap")
              : "holds for the time; the FID is lower",
          text,
          "4 evaluations of the UNet instead of 100. It learns from the Flickr pictures, which the base has "
          "never seen: that "
          "can outweigh in FID what the missing steps cost.");

    snprintf(text, sizeof text, "%.2f (%.2f to %.2f) against %.2f (%.2f to %.2f)", large->fid, large->low,
             large->high, small->fid, small->low, small->high);
    claim(o, "30k pictures give a lower FID than 8k", lower(large, small), text,
          "More pictures help where the smaller set is seen so often that it is learnt by heart; a short "
          "training sees neither set many times.");

    const Timing *a = usual(SMALL), *b = usual(LARGE);
    double change = 100 * (usual_seconds(LARGE) / usual_seconds(SMALL) - 1);
    if (a && b)
        snprintf(text, sizeof text,
                 "%.4f s (%.4f to %.4f) against %.4f s (%.4f to %.4f), %+.1f&nbsp;%%; an evaluation of the "
                 "UNet %.4f s against %.4f s",
                 median(b->pictures, b->count), quantile(b->pictures, b->count, 0),
                 quantile(b->pictures, b->count, 1), median(a->pictures, a->count),
                 quantile(a->pictures, a->count, 0), quantile(a->pictures, a->count, 1), change,
                 median(b->step, b->calls), median(a->step, a->calls));
    claim(o, "30k pictures reduce inference time", isnan(change) ? "not measured" : "cannot hold", text,
          "The adapters have the same layers and ranks, so a step is the same arithmetic on other numbers. "
          "What differs between the two is noise.");

    const Training *runs[2][2] = {
        {training(trainings, training_count, "lcm-8k"), training(trainings, training_count, "lcm-30k")},
        {training(trainings, training_count, "lcm-lora-8k"),
         training(trainings, training_count, "lcm-lora-30k")}};
    bool known = true;
    double minutes[2] = {0}, memory[2] = {0};
    for (int size = 0; size < 2; size++)
        for (int phase = 0; phase < 2; phase++) {
            known = known && runs[phase][size];
            if (!runs[phase][size]) continue;
            minutes[size] += runs[phase][size]->seconds / 60;
            memory[size] = fmax(memory[size], runs[phase][size]->peak_mb);
        }
    snprintf(text, sizeof text,
             "Phases 2 and 3: %.1f minutes and %.0f MB with the smaller set, %.1f minutes and %.0f MB with "
             "the larger",
             minutes[0], memory[0], minutes[1], memory[1]);
    claim(
        o, "Larger data costs more resources",
        !known ? "not measured"
        : minutes[1] > 1.1 * minutes[0] || memory[1] > 1.1 * memory[0]
            ? "holds"
            : "does not hold for the training itself",
        text,
        "A step costs the same whatever the set&#8217;s size. Drawing or fetching the pictures, encoding "
        "them once and keeping their "
        "latents on disk grow with it, and so does the training where each picture is to be seen as often.");

    *text = 0;
    for (int i = 0; i < SYSTEMS; i++) listed(text, systems[i].title, systems[i].fidelity, 3);
    double lag = base->fidelity - fmin(lcm->fidelity, small->fidelity);
    claim(o, "LCM lags behind the base in fidelity",
          isnan(lag) ? "not measured"
          : lag > 0  ? "holds"
                     : "does not hold",
          text,
          isnan(lag) ? "Fidelity has a judge in the toy world only."
                     : "Each of its few steps must answer for many of the teacher&#8217;s, at a guidance "
                       "that is fixed.");
    output_printf(o, "</tbody></table>\n");
}

// ---- how it was made --------------------------------------------------------------------------------------------

static double plan_of(const Json *plan, const char *stage, const char *key) {
    for (size_t i = 0; plan && plan->kind == JSON_ARRAY && i < plan->length; i++)
        if (!strcmp(json_get_string(&plan->items[i], "stage", ""), stage))
            return json_get_number(&plan->items[i], key, NAN);
    return NAN;
}

static void write_stages(Output *o) {
    Json *plan_record = record_of("plan", "");
    const Json *plan = json_get(plan_record, "result");
    double total = 0;
    output_printf(o,
                  "<h2>Stages</h2>\n<details open><summary>Every stage of the run, with its time, its memory "
                  "and its command</summary>\n");
    begin_table(o, plan ? (const char *const[]){"stage", "seconds", "planned, s", "memory, MB", "planned, MB",
                                                "command", NULL}
                        : (const char *const[]){"stage", "seconds", "memory, MB", "command", NULL});
    for (int i = 0; i < stage_count; i++) {
        Json *j = record_of("", stages[i]);
        if (!j) continue;
        double s = json_get_number(j, "seconds", NAN);
        const Json *result = json_get(j, "result");
        total += s;
        begin_row(o, stages[i]);
        number(o, "seconds", s, 0);
        double mb = result && result->kind == JSON_OBJECT ? json_get_number(result, "peak_mb", NAN) : NAN;
        double planned_s = plan_of(plan, stages[i], "seconds"), planned_mb = plan_of(plan, stages[i], "mb");
        if (plan)
            output_printf(o,
                          isnan(planned_s) ? "<td></td>" : "<td data-l=\"planned, s\" class=\"n\">%.0f</td>",
                          planned_s);
        output_printf(o, isnan(mb) ? "<td></td>" : "<td data-l=\"memory, MB\" class=\"n\">%.0f</td>", mb);
        if (plan)
            output_printf(
                o, !(planned_mb > 0) ? "<td></td>" : "<td data-l=\"planned, MB\" class=\"n\">%.0f</td>",
                planned_mb);
        output_printf(o, "<td data-l=\"command\" class=\"text\">");
        write_command(o, json_get_string(j, "command", ""));
        output_printf(o, "</td></tr>\n");
        json_free(j);
    }
    output_printf(o,
                  "</tbody></table></details>\n<p class=\"quiet\">All together %.0f s (%.1f minutes).</p>\n",
                  total, total / 60);
    json_free(plan_record);
}

static void print_table(void) {
    bool judged = false; // the toy world's judge knows no other pictures
    for (int i = 0; i < SYSTEMS; i++) judged |= isfinite(systems[i].fidelity);
    printf("%-16s %8s %18s %9s %s  s a picture\n", "", "FID", "95 % interval", "KID x1000",
           judged ? " fidelity" : "");
    for (int i = 0; i < SYSTEMS; i++) {
        const System *s = &systems[i];
        if (isnan(s->fid)) continue;
        printf("%-16s %8.2f %8.2f to %6.2f %9.2f ", s->title, s->fid, s->low, s->high, 1000 * s->kid);
        if (isfinite(s->fidelity))
            printf("%9.3f ", s->fidelity);
        else if (judged)
            printf("%9s ", "-");
        for (int k = 0; k < s->timings; k++)
            printf("%s%.3f in %d steps", k ? ", " : " ", median(s->timing[k].pictures, s->timing[k].count),
                   s->timing[k].steps);
        printf("\n");
    }
}

// ---- the command ------------------------------------------------------------------------------------------------

static const char help[] = "usage: sd report DIR [-o report/index.html]\n\n"
                           "The paper's table, figures and claims from the results that `make paper` left in "
                           "DIR, as one HTML file.\n";

static void write_page(Output *o, const Json *paper, const Training *trainings, int training_count,
                       int found) {
    const char *world = json_get_string(paper, "world", "toy"),
               *machine = json_get_string(paper, "machine", "an unknown machine");
    const char *standin = json_get_string(paper, "standin", "");
    bool real = !strcmp(world, "real");
    output_printf(o, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
                     "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>The "
                     "paper, measured</title>\n<style>\n");
    write_style(o);
    output_printf(o,
                  "</style></head><body>\n<h1>Enhancing Image Generation with LCM LoRA Distillation%s</h1>\n",
                  real ? "" : ", on the toy world");
    double count = json_get_number(paper, "count", NAN);
    output_printf(o, "<p>Model <code>");
    html_text(o, json_get_string(paper, "model", "?"));
    output_printf(o, "</code>, pictures to compare with from ");
    html_text(o, json_get_string(paper, "data", "?"));
    output_printf(o, ", judged by <code>");
    html_text(o, json_get_string(paper, "inception", "?"));
    output_printf(o,
                  "</code>: %.0f captions, drawn by each system. Base and fine-tuned LoRA take %.0f guided "
                  "steps for FID, the LCM systems 4 unguided ones. ",
                  count, json_get_number(paper, "steps", NAN));
    html_text(o, machine);
    output_printf(o, "; sd.c ");
    html_text(o, json_get_string(paper, "version", "?"));
    output_printf(o, ".</p>\n");
    if (*standin) {
        output_printf(o, "<p class=\"mark\">Phase 2 did not run: <code>");
        html_text(o, standin);
        output_printf(
            o, "</code> stands in for its result. LCM and LCM-LoRA below say nothing of Phase 2.</p>\n");
    }
    if (!json_get_bool(paper, "finished", false) || found < SYSTEMS) {
        output_printf(o, "<p class=\"mark\">Partial: %d of %d systems have results", found, SYSTEMS);
        for (int i = 0, n = 0; i < SYSTEMS; i++)
            if (isnan(systems[i].fid)) output_printf(o, "%s%s", n++ ? ", " : "; missing: ", systems[i].title);
        output_printf(o, ".%s</p>\n",
                      json_get_bool(paper, "finished", false) ? ""
                                                              : " <code>make paper</code> has not finished.");
    }
    if (count < 200) output_printf(o, "<p class=\"mark\">An FID of %.0f pictures says little.</p>\n", count);
    write_table(o, machine, !real);
    write_figure2(o, machine);
    write_figure3(o, machine);
    Json *speed = record_of("speed", "");
    write_speed(o, machine, json_get_string(speed, "command", ""));
    json_free(speed);
    write_sweep(o, machine, !real);
    write_training(o, trainings, training_count);
    write_claims(o, trainings, training_count);
    write_stages(o);
    output_printf(o, "</body></html>\n");
}

int command_report(int argc, char **argv) {
    static const struct option options[] = {{"output", required_argument, 0, 'o'}, COMMON_LONG, {0}};
    Common common = common_defaults;
    const char *output = "report/index.html";
    int option;
    while ((option = getopt_long(argc, argv, "o:" COMMON_SHORT, options, NULL)) != -1)
        if (!common_option(&common, option, help)) output = optarg;
    if (optind != argc - 1) die_usage("sd report takes one folder of results");
    dir = argv[optind];
    if (!is_directory(dir)) die("%s is no folder; `make paper` makes it", dir);
    read_stages();
    char *path = format("%s/paper.json", dir), *scratch = format("%s.png", output);
    if (!file_exists(path)) die("%s holds no results of `make paper`: there is no paper.json", dir);
    Json *paper = json_load(path);
    char *folder = xstrdup(output), *slash = strrchr(folder, '/');
    if (slash) *slash = 0, make_directories(folder);
    free(folder);
    int found = 0, training_count;
    for (int i = 0; i < SYSTEMS; i++) read_system(&systems[i], scratch), found += !isnan(systems[i].fid);
    if (!found) die("%s holds no results yet: no system has been judged", dir);
    read_speed();
    Training *trainings = read_trainings(&training_count);

    Output *o = output_open(output);
    write_page(o, paper, trainings, training_count, found);
    output_commit(o);
    print_table();
    printf("%s\n", output);

    for (int i = 0; i < SYSTEMS; i++) {
        for (int k = 0; k < MOST_PICTURES; k++) free(systems[i].pictures[k]);
        free(systems[i].drawn_by), free(systems[i].judged_by), free(systems[i].shown_by);
    }
    for (int i = 0; i < training_count; i++)
        free(trainings[i].name), free(trainings[i].command), free(trainings[i].step), free(trainings[i].loss);
    for (int i = 0; i < stage_count; i++) free(stages[i]);
    free(stages), free(trainings), free(path), free(scratch);
    json_free(paper);
    return 0;
}
