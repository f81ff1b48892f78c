// report.c: `sd report`: the results of `make paper` as one HTML file, or training runs of one's own. The
// page is report.html; its script draws from one JSON object, put together here: the last run's stages,
// times, pictures, training logs.
#define _POSIX_C_SOURCE 200809L // open_memstream, scandir
#include "commands.h"
#include "lib/io/io.h"
#include "options.h"

#include <dirent.h>
#include <libgen.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// ---- results ----------------------------------------------------------------------------------------------

static const struct {
    const char *name, *title; // stages are called "draw-<name>", "fid-<name>", ...
} systems[] = {{"base", "Base"},
               {"lora", "Fine-tuned LoRA"},
               {"lcm", "LCM"},
               {"lcm-lora-8k", "LCM-LoRA 8k"},
               {"lcm-lora-30k", "LCM-LoRA 30k"}};
enum { SYSTEMS = sizeof systems / sizeof *systems };

static const char *dir;
static Json **records; // of each stage: {"stage", "seconds", "command", "result", ...}
static int record_count;

static void read_records(void) {
    char *path = format("%s/stages.txt", dir);
    if (!file_exists(path))
        die("%s holds no results of `make paper` (stages.txt) and no training run (log.jsonl)", dir);
    char *stages = read_file(path, NULL);
    for (char *name = strtok(stages, "\n"); name; name = strtok(NULL, "\n")) {
        if (record_count == 1000) die("%s/stages.txt lists more than 1000 stages", dir);
        path = format("%s/made/%s.json", dir, name);
        if (!file_exists(path)) continue;
        records = xrealloc(records, (size_t)(record_count + 1) * sizeof *records);
        records[record_count++] = json_load(path);
    }
}

static const Json *result_of(const char *kind, const char *system) {
    char *stage = format("%s%s", kind, system);
    const Json *result = NULL;
    for (int i = 0; i < record_count; i++)
        if (!strcmp(json_get_string(records[i], "stage", ""), stage)) result = json_get(records[i], "result");
    free(stage);
    return result;
}

static double fid_of(int i) { return json_get_number(result_of("fid-", systems[i].name), "fid", NAN); }

// The items of an array; none of anything else.
static size_t length_of(const Json *array) { return array && array->kind == JSON_ARRAY ? array->length : 0; }

// ---- times ------------------------------------------------------------------------------------------------

enum { MOST_STEPS = 1000, MOST_TIMES = 256 };

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// Least, median and greatest of what the calls of a system took in so many steps; false where there are none.
// The stage "speed" is [{"system", "steps", "sample": {"picture_s": [...], "text_s", ...}}, ...].
static bool times_of(const char *system, int steps, const char *what, double times[3]) {
    const Json *calls = result_of("speed", "");
    double all[MOST_TIMES];
    int n = 0;
    for (size_t i = 0; i < length_of(calls); i++) {
        const Json *call = &calls->items[i], *time = json_get(json_get(call, "sample"), what);
        if (json_get_number(call, "steps", 0) != steps) continue;
        if (strcmp(json_get_string(call, "system", ""), system)) continue;
        if (time && time->kind == JSON_NUMBER && n < MOST_TIMES) all[n++] = time->number;
        for (size_t k = 1; k < length_of(time) && n < MOST_TIMES; k++) // the first picture of a call warms up
            all[n++] = time->items[k].number;
    }
    if (!n) return false;
    qsort(all, (size_t)n, sizeof *all, compare);
    times[0] = all[0], times[1] = (all[(n - 1) / 2] + all[n / 2]) / 2, times[2] = all[n - 1];
    return true;
}

// ---- the JSON object --------------------------------------------------------------------------------------

// Long arrays, such as the names of all pictures, become null: nothing draws them.
static void shorten(Json *j) {
    if (j->kind == JSON_ARRAY && j->length > 100) j->kind = JSON_NULL;
    bool has_items = j->kind == JSON_ARRAY || j->kind == JSON_OBJECT;
    for (size_t i = 0; has_items && i < j->length; i++) shorten(&j->items[i]);
}

static void write_timings(FILE *f, const char *system) {
    static const char *const whats[] = {"picture_s", "text_s", "unet_step_s", "unet_evaluations", "vae_s"};
    const char *before = "";
    double t[3];
    for (int steps = MOST_STEPS; steps > 0; steps--) {
        if (!times_of(system, steps, "picture_s", t)) continue;
        fprintf(f, "%s{\"steps\": %d", before, steps);
        for (int i = 0; i < 5; i++)
            if (times_of(system, steps, whats[i], t))
                fprintf(f, ", \"%s\": [%g, %g, %g]", whats[i], t[0], t[1], t[2]);
        fprintf(f, "}");
        before = ", ";
    }
}

static void write_base64(FILE *f, const unsigned char *data, size_t bytes) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < bytes; i += 3) {
        unsigned v = 0; // three bytes, or zeros behind the last one
        for (size_t k = i; k < i + 3; k++) v = v << 8 | (k < bytes ? data[k] : 0u);
        char four[4] = {digits[v >> 18], digits[v >> 12 & 63], digits[v >> 6 & 63], digits[v & 63]};
        for (size_t k = bytes - i; k < 3; k++) four[k + 1] = '=';
        fwrite(four, 1, 4, f);
    }
}

// A picture as a data URI, made smaller where it is wider than `most`.
static void write_picture(FILE *f, const char *path, int most) {
    Image *image = image_load(path);
    int width = image->width < most ? image->width : most, height = width * image->height / image->width;
    Image *shown = image_resize(image, width, height ? height : 1, RESIZE_BICUBIC);
    int bytes;
    unsigned char *data = image_png(path, shown, &bytes);
    fprintf(f, "\"data:image/png;base64,");
    write_base64(f, data, (size_t)bytes);
    putc('"', f);
    free(data), image_free(image), image_free(shown);
}

// The picture of that path, null where it is gone. Its last `parts` are looked for in the folder of the
// results, which may have moved since.
static void write_found(FILE *f, const Json *path, int parts, int most) {
    const char *name = path && path->kind == JSON_STRING ? path->string : "", *tail = name + strlen(name);
    for (; tail > name && (tail[-1] != '/' || --parts); tail--) {}
    char *here = format("%s/%s", dir, tail);
    if (*tail && file_exists(here))
        write_picture(f, here, most);
    else
        fprintf(f, "null");
    free(here);
}

// Figure 3's of a system, null where one is gone. A pixel takes at most 4 letters, all pictures 2.5 million.
static void write_pictures(FILE *f, const char *system) {
    const Json *images = json_get(result_of("figure3-", system), "images");
    size_t count = length_of(images) < 4 ? length_of(images) : 4;
    int most = (int)fmin(256, sqrt(2500000.0 / 4 / (double)(SYSTEMS * count)));
    for (size_t i = 0; i < count; i++) {
        fprintf(f, i ? ",\n" : "\n");
        write_found(f, &images->items[i], 1, most);
    }
}

// Drawn pictures, each beside the picture of the training set that is nearest to it.
static void write_nearest(FILE *f, const char *system) {
    const Json *pairs = json_get(result_of("nearest-", system), "nearest");
    for (size_t i = 0; i < length_of(pairs); i++) {
        fprintf(f, "%s\n{\"distance\": %g, \"drawn\": ", i ? "," : "",
                json_get_number(&pairs->items[i], "distance", 0));
        write_found(f, json_get(&pairs->items[i], "picture"), 2, 128);
        fprintf(f, ", \"real\": ");
        write_found(f, json_get(&pairs->items[i], "nearest"), 3, 128);
        fprintf(f, "}");
    }
}

// Of each training run of the paper its log, as write_log() wrote it.
static void write_trainings(FILE *f) {
    const char *logs = format("%s/logs", dir), *before = "";
    struct dirent **files = NULL;
    int count = scandir(logs, &files, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        char *name = files[i]->d_name;
        if (!ends_with(name, ".jsonl")) continue;
        const char *path = format("%s/%s", logs, name);
        *strstr(name, ".jsonl") = 0;
        fprintf(f, "%s\n{\"name\": %s, \"log\": [", before, json_quote(name));
        before = "";
        for (char *line = strtok(read_file(path, NULL), "\n"); line; line = strtok(NULL, "\n")) {
            Json *j = json_parse(line, strlen(line), path);
            if (!*before && !json_get(j, "run")) break;
            fprintf(f, "%s%s", before, json_text(j, '"'));
            json_free(j);
            before = ", ";
        }
        if (!*before) die("%s: its first line does not tell of the run", path);
        fprintf(f, "]}");
        before = ",";
    }
}

// ---- runs of one's own ------------------------------------------------------------------------------------

// The points of a run's log, a line each: a hundred at most, with the mean loss of their part of the run, and
// the lines of the validation as they are. Returns the last step.
static Json *write_points(FILE *f, const char *before, const char *path) {
    char *log = read_file(path, NULL);
    long left = 0, count = 0;
    for (char *c = log; *c; c += strcspn(c, "\n") + 1, left++)
        if (!strchr(c, '\n')) { // half a line, of a run that goes on
            *c = 0;
            break;
        }
    const long each = (left + 99) / 100;
    Json *last = NULL;
    double sum = 0;
    for (char *line = strtok(log, "\n"); line; line = strtok(NULL, "\n"), left--) {
        Json *j = json_parse(line, strlen(line), path);
        if (json_get(j, "validation")) {
            fprintf(f, "%s\n%s", before, line);
        } else {
            double loss = json_get_number(j, "loss", NAN);
            if (!isfinite(loss)) die("%s: step %g has no loss", path, json_get_number(j, "step", 0));
            sum += loss, count++;
            last = j;
        }
        if (!count || (count < each && left > 1)) continue;
        fprintf(f, "%s\n{\"step\": %g, \"loss\": %.5g, \"seconds\": %g}", before,
                json_get_number(last, "step", 0), sum / (double)count, json_get_number(last, "seconds", 0));
        sum = 0, count = 0;
    }
    if (!json_get(last, "step")) die("%s: there is no step of a training in it", path);
    free(log);
    return last;
}

// A run's log for a report: a line of the whole, then its points. pictures: of the data set, or NULL.
static void write_log(FILE *f, const char *run, const char *pictures, const char *command,
                      const char *between) {
    char *points, *path = xstrdup(run); // basename() may write into it
    FILE *p = open_memstream(&points, &(size_t){0});
    if (!p) die("out of memory");
    Json *last = write_points(p, between, format("%s/log.jsonl", run));
    fclose(p);
    fprintf(f, "{\"run\": %s, \"pictures\": %s, \"command\": %s, ", json_quote(basename(path)),
            pictures ? pictures : "null", json_quote(command));
    fprintf(f, "\"steps\": %g, \"seconds\": %g, \"peak_mb\": %g}%s", json_get_number(last, "step", 0),
            json_get_number(last, "seconds", 0), json_get_number(last, "peak_mb", 0), points);
    free(points), free(path);
}

// The samples of a run are STEP-I.png: those of six of its steps, from the first to the last.
static void write_samples(FILE *f, const char *folder) {
    struct dirent **files = NULL;
    int all = is_directory(folder) ? scandir(folder, &files, NULL, alphasort) : 0, count = 0, steps = 0;
    int *first = xmalloc(((size_t)all + 1) * sizeof *first); // of each step, the first of its files
    for (int i = 0; i < all; i++) {
        if (!ends_with(files[i]->d_name, ".png")) continue;
        files[count] = files[i];
        if (!count || atol(files[count]->d_name) != atol(files[count - 1]->d_name)) first[steps++] = count;
        count++;
    }
    first[steps] = count;
    int shown = steps < 6 ? steps : 6;
    for (int row = 0; row < shown; row++) {
        int step = shown > 1 ? row * (steps - 1) / (shown - 1) : 0;
        for (int i = first[step]; i < first[step + 1]; i++) {
            const char *name = files[i]->d_name;
            fprintf(f, "%s\n{\"step\": %ld, \"src\": ", i ? "," : "", atol(name));
            write_picture(f, format("%s/%s", folder, name), 128);
            fprintf(f, "}");
        }
    }
    free(first);
}

static void write_run(FILE *f, const char *run) {
    const char *config = format("%s/config.json", run);
    fprintf(f, "{\"name\": %s, \"log\": [", json_quote(run));
    write_log(f, run, NULL, file_exists(config) ? json_text(json_load(config), '"') : "", ",");
    fprintf(f, "],\n\"samples\": [");
    write_samples(f, format("%s/samples", run));
    fprintf(f, "]}");
}

static void write_results(FILE *f, const Json *paper, char *const *runs) {
    const char *before = "";
    fprintf(f, "{\"paper\": %s,\n\"missing\": [", paper ? json_text(paper, '"') : "null");
    for (int i = 0; i < SYSTEMS; i++)
        if (isnan(fid_of(i))) fprintf(f, "%s\"%s\"", before, systems[i].title), before = ", ";
    fprintf(f, "],\n\"systems\": [");
    for (int i = 0; i < SYSTEMS; i++) {
        fprintf(f, "%s\n{\"name\": \"%s\", \"title\": \"%s\", \"timings\": [", i ? "," : "", systems[i].name,
                systems[i].title);
        write_timings(f, systems[i].name);
        fprintf(f, "], \"pictures\": [");
        write_pictures(f, systems[i].name);
        fprintf(f, "], \"nearest\": [");
        write_nearest(f, systems[i].name);
        fprintf(f, "]}");
    }
    fprintf(f, "],\n\"stages\": [");
    for (int i = 0; i < record_count; i++) {
        shorten(records[i]);
        fprintf(f, "%s%s", i ? ",\n" : "\n", json_text(records[i], '"'));
    }
    fprintf(f, "],\n\"trainings\": [");
    if (!*runs) write_trainings(f);
    for (int i = 0; runs[i]; i++) fprintf(f, i ? ",\n" : ""), write_run(f, runs[i]);
    fprintf(f, "]}");
}

// ---- the command ------------------------------------------------------------------------------------------

static const char page[] =
#include "cli/report.html.h" // a string a line, made by the Makefile
    ;

static void print_table(void) {
    bool judged = false; // the toy world's judge knows no other pictures
    for (int i = 0; i < SYSTEMS; i++) judged |= result_of("fidelity-", systems[i].name) != NULL;
    printf("%-16s %8s %18s %9s %s  s a picture\n", "", "FID", "95 % interval", "KID x1000",
           judged ? " fidelity" : "");
    for (int i = 0; i < SYSTEMS; i++) {
        const char *name = systems[i].name, *before = " ";
        double times[3];
        const Json *r = result_of("fid-", name), *interval = json_get(r, "fid_interval");
        if (isnan(fid_of(i))) continue;
        printf("%-16s %8.2f ", systems[i].title, fid_of(i));
        if (length_of(interval) == 2)
            printf("%8.2f to %6.2f ", interval->items[0].number, interval->items[1].number);
        else
            printf("%18s ", "-"); // of less than four pictures
        printf("%9.2f ", 1000 * json_get_number(r, "kid", NAN));
        const Json *fidelity = result_of("fidelity-", name);
        if (fidelity)
            printf("%9.3f ", json_get_number(fidelity, "fidelity", NAN));
        else if (judged)
            printf("%9s ", "-");
        for (int steps = MOST_STEPS; steps > 0; steps--) {
            if (!times_of(name, steps, "picture_s", times)) continue;
            printf("%s%.3f in %d steps", before, times[1], steps);
            before = ", ";
        }
        printf("\n");
    }
}

static Json *read_paper(void) {
    read_records();
    char *path = format("%s/paper.json", dir);
    if (!file_exists(path)) die("%s holds no results of `make paper`: there is no paper.json", dir);
    for (int i = 0; i < SYSTEMS; i++)
        if (!isnan(fid_of(i))) return json_load(path);
    die("%s holds no results yet: no system has been judged", dir);
}

int command_report(int argc, char **argv) {
    const char *output = NULL;
    bool quote = false, log = false;
    Option options[] = {{'o', "output", TEXT(&output, "FILE.html"),
                         "the page (default: report/index.html; of runs report/runs.html)"},
                        {0, "quote", FLAG(&quote), "only print DIR, any text, as a JSON string"},
                        {0, "log", FLAG(&log),
                         "only print the log of a run, thinned to a hundred points; its words are RUN, the "
                         "size of its data set, and its command"},
                        {0}};
    char **words =
        options_parse(argc, argv, options, "sd report DIR [options] | sd report RUN... [options]",
                      "Writes the paper's table, figures and claims from the results that `make "
                      "paper` left in DIR, as one HTML file. Or the loss and the sample pictures of "
                      "training runs, whose folders hold log.jsonl and perhaps samples/.",
                      "sd report run/paper\n  sd report run/lcm run/lcm-lora -o run/report.html");
    if (log && !(words[0] && words[1] && words[2] && !words[3]))
        die_usage("--log takes RUN, PICTURES and COMMAND");
    if (!words[0]) die_usage("sd report takes one folder of results, or folders of training runs");
    dir = words[0];
    if (quote) return puts(json_quote(one_word(words, "--quote takes one text"))), 0;
    if (log) {
        const char *pictures = words[1] + strspn(words[1], " "); // as wc writes it
        if (pictures[strspn(pictures, "0123456789")]) die_usage("\"%s\" is no number of pictures", pictures);
        write_log(stdout, words[0], *pictures ? pictures : NULL, words[2], "");
        return putchar('\n'), 0;
    }
    char **runs = words;
    Json *paper = NULL;
    for (int i = 0; words[i]; i++) {
        if (!is_directory(words[i])) die("%s is no folder; `make paper` or a training makes it", words[i]);
        if (file_exists(format("%s/log.jsonl", words[i]))) continue;
        if (words[1]) die("%s holds no training run: there is no log.jsonl", words[i]);
        paper = read_paper(), runs++;
    }
    if (!output) output = paper ? "report/index.html" : "report/runs.html";
    char *folder = xstrdup(output), *text;
    make_directories(dirname(folder));
    if (paper) print_table();
    FILE *f = open_memstream(&text, &(size_t){0});
    if (!f) die("out of memory");
    write_results(f, paper, runs);
    fclose(f);
    Output *o = output_open(output);
    const char *place = strstr(page, "RESULTS");
    output_write(o, page, (size_t)(place - page));
    for (const char *c = text; *c; c++)
        if (*c == '<') // within a string: so that it does not end the script that holds it
            output_printf(o, "\\u003c");
        else
            output_write(o, c, 1);
    output_printf(o, "%s", place + strlen("RESULTS"));
    output_commit(o);
    printf("%s\n", output);
    return 0;
}
