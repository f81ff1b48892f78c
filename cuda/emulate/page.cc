// page.cc: the counters as a page, under the names that Nsight Compute has for them: each kernel's source,
// beside each line its figures, and for the worst access of a line where its 32 lanes went.
#include "inside.h"

#include <algorithm>
#include <fstream>
#include <map>

struct PageKernel {
    std::string name, launch;
    const void *entry;
    std::vector<Counted> counts;
};
static std::vector<PageKernel> kernels;

void page_add(const Launch &l, const Counted &c) {
    if (kernels.empty() || kernels.back().entry != l.call->kernel) {
        char text[120];
        snprintf(text, sizeof text, "grid (%u,%u,%u), block (%u,%u,%u)", l.grid.x, l.grid.y, l.grid.z,
                 l.block.x, l.block.y, l.block.z);
        kernels.push_back({l.kernel->name, text, l.call->kernel, {}});
    }
    kernels.back().counts.push_back(c);
}

static std::string escaped(const std::string &s) {
    std::string out;
    for (char c : s) c == '<' ? out += "&lt;" : c == '&' ? out += "&amp;" : out += c;
    return out;
}

// The worst access in cells of 4 bytes, in each the lane that wants it: a row is a pass, or a sector.
static void draw(FILE *f, const Counted &c) {
    unsigned at_once = c.shared ? std::min(32u, 128 / std::max(c.bytes, 4u)) : 32, passes = 0;
    std::map<uintptr_t, std::map<unsigned, unsigned>> rows;
    std::map<std::pair<unsigned, uintptr_t>, unsigned> wanted, words_of_bank;
    for (unsigned lane = 0; lane < 32; lane++)
        for (uintptr_t at = c.worst.at[lane], w = at / 4; c.worst.mask >> lane & 1 && w * 4 < at + c.bytes;
             w++) {
            unsigned turn = lane / at_once;
            if (!wanted.insert({{turn, w}, lane}).second) continue;
            uintptr_t row = c.shared ? turn * 32 + words_of_bank[{turn, w % 32}]++ : w / 8;
            rows[row][w % (c.shared ? 32 : 8)] = lane;
        }
    for (auto &[row, cells] : rows) {
        fprintf(f, c.shared ? "<div><s>pass %d</s>" : "<div><s>+%d</s>",
                c.shared ? (int)++passes : (int)(row - rows.begin()->first) * 32);
        for (unsigned i = 0; i < (c.shared ? 32u : 8u); i++)
            cells.count(i) ? fprintf(f, "<i style='--l:%u'>%u</i>", cells[i], cells[i])
                           : fprintf(f, "<i></i>");
        fprintf(f, "</div>\n");
    }
}

static void write_line(FILE *f, int number, const std::string &text,
                       const std::vector<const Counted *> &counts, const std::vector<std::string> &places) {
    uint64_t accesses = 0, lanes = 0, sum[2] = {}, ideal[2] = {}, requests[2] = {}, bytes = 0;
    size_t worst = 0;
    for (size_t i = 0; i < counts.size(); i++) {
        const Counted &c = *counts[i];
        accesses += c.accesses, lanes += c.lanes, bytes += c.lanes * c.bytes;
        sum[c.shared] += c.cost, ideal[c.shared] += c.ideal, requests[c.shared] += c.accesses;
        if (c.cost - c.ideal > counts[worst]->cost - counts[worst]->ideal) worst = i;
    }
    fprintf(f, "<tr%s><td>%d<td><pre>%s</pre>", sum[0] > ideal[0] || sum[1] > ideal[1] ? " class=x" : "",
            number, escaped(text).c_str());
    if (accesses) {
        const Counted &c = *counts[worst];
        fprintf(f, "<details><summary>%s, %u bytes a lane, %s</summary>\n", c.shared ? "32 banks" : "sectors",
                c.bytes, escaped(places[worst]).c_str());
        draw(f, c);
        fprintf(f, "</details><td>%llu<td>%.1f<td>%llu", (unsigned long long)accesses,
                (double)lanes / (double)accesses, (unsigned long long)bytes);
        for (int shared = 0; shared < 2; shared++)
            if (requests[shared])
                fprintf(f, "<td>%llu<td>%llu<td>%.2f", (unsigned long long)sum[shared],
                        (unsigned long long)(sum[shared] - ideal[shared]),
                        (double)sum[shared] / (double)(shared ? ideal[1] : requests[0]));
            else
                fprintf(f, "<td><td><td>");
    }
    fprintf(f, "</tr>\n");
}

static void write_kernel(FILE *f, const PageKernel &k) {
    struct Text { // of one file: the kernel's own, or one that has a function of it which was not inlined
        int first, last;
        std::map<int, std::vector<const Counted *>> counts;
        std::map<int, std::vector<std::string>> places;
    };
    std::map<std::string, Text> texts;
    std::vector<void *> pcs;
    for (const Counted &c : k.counts) pcs.push_back((char *)c.pc - 1);
    pcs.push_back((void *)k.entry);
    std::vector<std::vector<Line>> lines = lines_of(pcs);
    for (size_t i = 0; i < lines.size(); i++) {
        if (lines[i].empty()) continue;
        int line = lines[i][0].number;
        Text &t = texts.insert({lines[i][0].file, {line, line, {}, {}}}).first->second;
        t.first = std::min(t.first, line), t.last = std::max(t.last, line);
        if (i < k.counts.size())
            t.counts[line].push_back(&k.counts[i]), t.places[line].push_back(place_name(lines[i]));
    }
    fprintf(f, "<h2>%s</h2><p>%s\n<table><tr><th><th>Source", escaped(k.name).c_str(), k.launch.c_str());
    for (const char *title :
         {"Instructions Executed", "Avg. Threads Executed", "Bytes", "L2 Theoretical Sectors Global",
          "Excessive", "Sectors/Req", "L1 Wavefronts Shared", "Excessive", "N-Way"})
        fprintf(f, "<th>%s", title);
    fprintf(f, "</tr>\n");
    for (auto &[file, t] : texts) {
        fprintf(f, "<tr><td><th>%s</tr>\n", file.substr(file.rfind('/') + 1).c_str());
        std::ifstream source(file);
        std::string text;
        for (int i = 1; i <= t.last; i++)
            if (std::getline(source, text), i >= t.first) write_line(f, i, text, t.counts[i], t.places[i]);
    }
    fprintf(f, "</table>\n");
}

void page_write(const char *path) {
    FILE *f = fopen(path, "w");
    if (!f) return emu_say("emulate: %s cannot be written\n", path);
    fputs(
        "<!doctype html><meta charset=utf-8><title>Kernels, line by line</title><style>\n"
        "body{font:14px sans-serif;margin:2em}pre{margin:0;white-space:pre-wrap}td,th{padding:1px 8px;"
        "text-align:right;vertical-align:top}th{max-width:6em}td:nth-child(2),th:nth-child(2){width:60em;"
        "text-align:left}.x td{background:#fdd}summary,s{color:#555}div{display:flex;height:15px}"
        "s{width:6em;text-decoration:none}i{width:20px;border:1px solid #ccc;font:11px monospace;"
        "text-align:center;background:hsl(calc(var(--l)*11),70%,85%)}i:empty{background:#fff}</style>\n"
        "<h1>Kernels, line by line</h1><p>As the emulator counted the first launch of each. Columns bear the "
        "names of Nsight Compute's source page; Bytes are those that lanes asked for. A line opens to its "
        "worst access: where the 32 lanes went, in cells of 4 bytes, a row a sector of 32 bytes, or a pass "
        "over the 32 banks of shared memory.\n",
        f);
    for (const PageKernel &k : kernels) write_kernel(f, k);
    fclose(f);
    emu_say("emulate: %s shows it line by line\n", path);
}
