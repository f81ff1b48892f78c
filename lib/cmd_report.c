// cmd_report.c: `sd report`, the paper's table, figures and claims from the results that `make paper` left in a folder,
// as one HTML file that needs nothing else. It computes nothing but ratios; what is missing is marked as missing.
#include "commands.h"
#include "io.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

// ---- results ----------------------------------------------------------------------------------------------------

typedef struct {
    const char *name, *title, *file; // file: of its results, "fid-<file>.json"
    double paper_fid, paper_s;       // the paper's own, NAN where it gives none
    // measured; NAN where missing
    double fid, low, high, kid, kid_error, fidelity, seconds, text_s, step_s, vae_s, count;
    int steps;
    char *picture; // figure3-<file>.png as base64
} System;

static System systems[] = {
    {.name = "base", .title = "Base", .file = "base", .paper_fid = NAN, .paper_s = 2.07},
    {.name = "lora", .title = "Fine-tuned LoRA", .file = "lora", .paper_fid = NAN, .paper_s = NAN},
    {.name = "lcm", .title = "LCM", .file = "lcm", .paper_fid = NAN, .paper_s = NAN},
    {.name = "lcm-lora-8k",
     .title = "LCM-LoRA 8k",
     .file = "lcm-lora-8k",
     .paper_fid = 26.95,
     .paper_s = 0.86},
    {.name = "lcm-lora-30k",
     .title = "LCM-LoRA 30k",
     .file = "lcm-lora-30k",
     .paper_fid = 24.85,
     .paper_s = 0.86},
};
enum { SYSTEMS = sizeof systems / sizeof *systems };

static Json *result(const char *dir, const char *kind, const char *name) {
    char *path = format("%s/%s-%s.json", dir, kind, name);
    Json *j = file_exists(path) ? json_load(path) : NULL;
    free(path);
    return j;
}

static char *base64(const unsigned char *data, size_t bytes) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *text = xmalloc((bytes + 2) / 3 * 4 + 1), *at = text;
    for (size_t i = 0; i < bytes; i += 3) {
        unsigned v = (unsigned)data[i] << 16 | (i + 1 < bytes ? (unsigned)data[i + 1] << 8 : 0) |
                     (i + 2 < bytes ? data[i + 2] : 0);
        *at++ = digits[v >> 18], *at++ = digits[v >> 12 & 63];
        *at++ = i + 1 < bytes ? digits[v >> 6 & 63] : '=', *at++ = i + 2 < bytes ? digits[v & 63] : '=';
    }
    *at = 0;
    return text;
}

static void read_system(System *s, const char *dir) {
    s->fid = s->low = s->high = s->kid = s->kid_error = s->fidelity = s->seconds = s->text_s = s->step_s =
        s->vae_s = s->count = NAN;
    Json *fid = result(dir, "fid", s->file), *fidelity = result(dir, "fidelity", s->file),
         *speed = result(dir, "speed", s->file);
    if (fid) {
        const Json *interval = json_get(fid, "fid_interval");
        s->fid = json_get_number(fid, "fid", NAN), s->kid = json_get_number(fid, "kid", NAN);
        s->kid_error = json_get_number(fid, "kid_stderr", NAN), s->count = json_get_number(fid, "n_b", NAN);
        if (interval && interval->kind == JSON_ARRAY && interval->length == 2)
            s->low = interval->items[0].number, s->high = interval->items[1].number;
    }
    if (fidelity) s->fidelity = json_get_number(fidelity, "fidelity", NAN);
    if (speed) {
        const Json *images = json_get(speed, "images");
        double drawn = images && images->kind == JSON_ARRAY ? (double)images->length : 1;
        s->seconds = json_get_number(speed, "seconds", NAN) / drawn;
        s->text_s = json_get_number(speed, "text_s", NAN),
        s->step_s = json_get_number(speed, "unet_step_s", NAN);
        s->vae_s = json_get_number(speed, "vae_s", NAN), s->steps = (int)json_get_number(speed, "steps", 0);
    }
    char *path = format("%s/figure3-%s.png", dir, s->file);
    if (file_exists(path)) {
        size_t bytes;
        char *data = read_file(path, &bytes);
        s->picture = base64((unsigned char *)data, bytes);
        free(data);
    }
    free(path);
    if (fid) json_free(fid);
    if (fidelity) json_free(fidelity);
    if (speed) json_free(speed);
}

// ---- the page ---------------------------------------------------------------------------------------------------

static const char head[] =
    "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
    "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>The paper on the toy "
    "world</title>\n<style>\n"
    ":root{color-scheme:light "
    "dark;--ink:#1d1d1f;--paper:#fff;--line:#d0d0d5;--quiet:#66666e;--bar:#3465a4;--mark:#a40000}\n"
    "@media(prefers-color-scheme:dark){:root{--ink:#e8e8ea;--paper:#18181b;--line:#3f3f46;--quiet:#a1a1aa;--"
    "bar:#729fcf;--mark:#ef8a8a}}\n"
    "@media print{:root{--ink:#000;--paper:#fff;--line:#bbb;--quiet:#444;--bar:#3465a4}}\n"
    "body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:0 "
    "auto;max-width:64rem;padding:1rem}\n"
    "h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem}.wide{overflow-x:auto}table{border-collapse:"
    "collapse;width:100%}\n"
    "th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid "
    "var(--line);vertical-align:top}td.n{font-variant-numeric:tabular-nums}\n"
    ".quiet{color:var(--quiet);font-size:.9rem}.mark{color:var(--mark)}figure{margin:0}.grid{display:grid;"
    "gap:.8rem;"
    "grid-template-columns:repeat(auto-fit,minmax(8rem,1fr))}.grid "
    "img{width:100%;image-rendering:auto;border:1px solid var(--line)}\n"
    "svg text{fill:var(--ink);font:12px system-ui,sans-serif}svg rect{fill:var(--bar)}svg "
    ".err{stroke:var(--ink);stroke-width:1.5}\n"
    "</style></head><body>\n";

static void number(Output *o, double x, int digits) {
    if (isnan(x))
        output_printf(o, "<td class=\"n quiet\">missing</td>");
    else
        output_printf(o, "<td class=\"n\">%.*f</td>", digits, x);
}

static void write_table(Output *o) {
    output_printf(o, "<h2>Table: FID and speed</h2>\n<div "
                     "class=\"wide\"><table><thead><tr><th>system</th><th>FID</th><th>95 %% interval</th>"
                     "<th>KID x 1000</th><th>prompt fidelity</th><th>s a picture</th><th>steps</th><th "
                     "class=\"quiet\">the paper's FID</th>"
                     "<th class=\"quiet\">the paper's s</th></tr></thead><tbody>\n");
    for (int i = 0; i < SYSTEMS; i++) {
        const System *s = &systems[i];
        output_printf(o, "<tr><th>%s</th>", s->title);
        number(o, s->fid, 2);
        if (isnan(s->low))
            output_printf(o, "<td class=\"n quiet\">missing</td>");
        else
            output_printf(o, "<td class=\"n\">%.2f to %.2f</td>", s->low, s->high);
        number(o, 1000 * s->kid, 2), number(o, s->fidelity, 3), number(o, s->seconds, 3);
        output_printf(o, "<td class=\"n\">%d</td>", s->steps);
        if (isnan(s->paper_fid))
            output_printf(o, "<td class=\"quiet\">lower</td>");
        else
            output_printf(o, "<td class=\"n quiet\">%.2f</td>", s->paper_fid);
        if (isnan(s->paper_s))
            output_printf(o, "<td></td>");
        else
            output_printf(o, "<td class=\"n quiet\">%.2f</td>", s->paper_s);
        output_printf(o, "</tr>\n");
    }
    output_printf(o,
                  "</tbody></table></div>\n<p class=\"quiet\">FID and fidelity: %.0f held-out captions, the "
                  "same seeds for every system; the toy world's "
                  "Inception. The paper's figures are of other data, another network and a GPU: they stand "
                  "beside for their order, not their size.</p>\n",
                  isnan(systems[0].count) ? 0 : systems[0].count);
}

// A bar for each system that has the figure.
static void write_bars(Output *o, const char *title, const char *unit, const double *value, const double *low,
                       const double *high) {
    double top = 0;
    int shown = 0;
    for (int i = 0; i < SYSTEMS; i++)
        if (!isnan(value[i])) top = fmax(top, high && !isnan(high[i]) ? high[i] : value[i]), shown++;
    if (!shown || top <= 0) return;
    output_printf(o,
                  "<figure><svg viewBox=\"0 0 420 %d\" role=\"img\" aria-label=\"%s\" "
                  "width=\"100%%\">\n<text x=\"0\" y=\"14\">%s</text>\n",
                  28 + 26 * shown, title, title);
    for (int i = 0, y = 26; i < SYSTEMS; i++) {
        if (isnan(value[i])) continue;
        double scale = 220 / top;
        output_printf(
            o, "<text x=\"0\" y=\"%d\">%s</text><rect x=\"120\" y=\"%d\" width=\"%.1f\" height=\"16\"/>",
            y + 12, systems[i].title, y, value[i] * scale);
        if (low && !isnan(low[i]))
            output_printf(o, "<line class=\"err\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/>",
                          120 + low[i] * scale, 120 + high[i] * scale, y + 8, y + 8);
        output_printf(o, "<text x=\"%.1f\" y=\"%d\">%.3g%s</text>\n",
                      126 + fmax(value[i], high && !isnan(high[i]) ? high[i] : 0) * scale, y + 12, value[i],
                      unit);
        y += 26;
    }
    output_printf(o, "</svg></figure>\n");
}

static void write_figures(Output *o) {
    double fid[SYSTEMS], low[SYSTEMS], high[SYSTEMS], s[SYSTEMS];
    for (int i = 0; i < SYSTEMS; i++)
        fid[i] = systems[i].fid, low[i] = systems[i].low, high[i] = systems[i].high,
        s[i] = systems[i].seconds;
    output_printf(o, "<h2>Figure 2: quality and time</h2>\n");
    write_bars(o, "FID (lower is better)", "", fid, low, high);
    write_bars(o, "seconds a picture", " s", s, NULL, NULL);
    output_printf(o, "<h2>Figure 3: one caption, every model</h2>\n<p>A child in a pink dress is climbing up "
                     "a set of stairs in an entryway</p>\n<div class=\"grid\">\n");
    for (int i = 0; i < SYSTEMS; i++)
        if (systems[i].picture)
            output_printf(o,
                          "<figure><img alt=\"drawn by %s\" "
                          "src=\"data:image/png;base64,%s\"><figcaption>%s</figcaption></figure>\n",
                          systems[i].title, systems[i].picture, systems[i].title);
    output_printf(o, "</div>\n");
}

static void write_claim(Output *o, const char *claim, const char *verdict, const char *measured) {
    output_printf(o, "<tr><td>%s</td><td class=\"%s\">%s</td><td>%s</td></tr>\n", claim,
                  strcmp(verdict, "holds") ? "mark" : "", verdict, measured);
}

static const char *verdict(bool known, bool holds) {
    return !known ? "not measured" : holds ? "holds" : "does not hold";
}

static void write_claims(Output *o) {
    const System *base = &systems[0], *lora = &systems[1], *small = &systems[3], *large = &systems[4];
    char text[320];
    output_printf(o, "<h2>The paper's claims</h2>\n<div "
                     "class=\"wide\"><table><thead><tr><th>claim</th><th>here</th><th>measured</th></tr></"
                     "thead><tbody>\n");
    snprintf(text, sizeof text, "%.2f; base %.2f, LCM-LoRA %.2f", lora->fid, base->fid, small->fid);
    write_claim(
        o, "The fine-tuned LoRA has the lowest FID",
        verdict(!isnan(lora->fid + base->fid + small->fid), lora->fid < base->fid && lora->fid < small->fid),
        text);
    double ratio = base->seconds / small->seconds;
    snprintf(text, sizeof text, "%.1f times as fast (the paper: 2.4); FID %.2f against %.2f", ratio,
             small->fid, base->fid);
    write_claim(o, "LCM-LoRA is faster, at a higher FID",
                verdict(!isnan(ratio + small->fid + base->fid), ratio > 1 && small->fid > base->fid), text);
    snprintf(text, sizeof text, "%.2f against %.2f", large->fid, small->fid);
    write_claim(o, "30k pictures give a lower FID than 8k",
                verdict(!isnan(large->fid + small->fid), large->fid < small->fid), text);
    double change = 100 * (large->seconds / small->seconds - 1);
    snprintf(text, sizeof text, "%+.0f %%: the network is the same, so what differs is noise", change);
    write_claim(o, "30k pictures reduce inference time", verdict(!isnan(change), change < -10), text);
    snprintf(text, sizeof text, "%.3f against %.3f", small->fidelity, base->fidelity);
    write_claim(o, "LCM-LoRA lags behind the base in fidelity",
                verdict(!isnan(small->fidelity + base->fidelity), small->fidelity < base->fidelity), text);
    output_printf(o, "</tbody></table></div>\n");
}

static const char help[] = "usage: sd report DIR [-o report/index.html]\n\n"
                           "The paper's table, figures and claims from the results that `make paper` left in "
                           "DIR, as one HTML file.\n";

int command_report(int argc, char **argv) {
    static const struct option options[] = {{"output", required_argument, 0, 'o'}, COMMON_LONG, {0}};
    Common common = common_defaults;
    const char *output = "report/index.html";
    int option;
    while ((option = getopt_long(argc, argv, "o:" COMMON_SHORT, options, NULL)) != -1)
        if (!common_option(&common, option, help)) output = optarg;
    if (optind != argc - 1) die_usage("sd report takes one folder of results");
    const char *dir = argv[optind];
    if (!is_directory(dir)) die("%s is no folder; `make paper` makes it", dir);
    int found = 0;
    for (int i = 0; i < SYSTEMS; i++) read_system(&systems[i], dir), found += !isnan(systems[i].fid);
    if (!found) die("%s holds no results: no fid-base.json or its like", dir);

    char *folder = xstrdup(output), *slash = strrchr(folder, '/');
    if (slash) *slash = 0, make_directories(folder);
    free(folder);
    Output *o = output_open(output);
    output_write(o, head, sizeof head - 1);
    output_printf(o, "<h1>Enhancing Image Generation with LCM LoRA Distillation, on the toy world</h1>\n");
    if (found < SYSTEMS)
        output_printf(o, "<p class=\"mark\">Partial: %d of %d systems have results.</p>\n", found, SYSTEMS);
    write_table(o);
    write_figures(o);
    write_claims(o);
    struct utsname machine;
    uname(&machine);
    output_printf(o,
                  "<p class=\"quiet\">Made by <code>make paper</code> on %s, %s. The caption's length does "
                  "not matter for the time: the text encoder "
                  "always reads the full number of tokens.</p>\n</body></html>\n",
                  machine.machine, machine.sysname);
    output_commit(o);
    for (int i = 0; i < SYSTEMS; i++) {
        const System *s = &systems[i];
        if (!isnan(s->fid))
            printf("%-16s FID %7.2f  fidelity %.3f  %7.3f s in %d steps\n", s->title, s->fid, s->fidelity,
                   s->seconds, s->steps);
        free(systems[i].picture);
    }
    printf("%s\n", output);
    return 0;
}
