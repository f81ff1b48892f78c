// Every arrow of the tower points down: a file includes headers of its own room and of the rooms below, no
// files include each other in a cycle, a phase calls only the phases below it, and options are read in cli/
// alone. Prints the tower.
#define _POSIX_C_SOURCE 200809L // popen
#include "lib/base.h"
#include "test/test.h"

#include <ctype.h>

// From the top. A room is a path or how paths begin; the longest that fits counts. Rooms of one floor lie
// side by side and do not include each other. Floor 0 stands beside the tower: these implement
// lib/nn/kernels.h, and ranks.h, of which they may include what the contract is written with, and nothing
// includes them. The linker chooses one.
static const struct {
    const char *path;
    int floor;
    const char *what;
} rooms[] = {{"cli/", 9, "the program: one file a command"},
             {"weights/toy/", 8, "the toy world, and the training of what is shipped"},
             {"lora.c", 7, "Phase 3"},
             {"lcm.c", 6, "Phase 2"},
             {"fid.c", 6, "Phase 4"},
             {"sd.c", 5, "Phase 1"},
             {"sd.h", 4, "the header of the four phases, a section each"},
             {"lib/io/", 3, "files in and out"},
             {"lib/nn/", 2, "tensors, operations, tape, optimiser"},
             {"lib/base", 1, "errors, memory, progress"},
             {"cpu/", 0, "the kernels for processors"},
             {"cuda/", 0, "the kernels for NVIDIA GPUs"},
             {"cuda/emulate/", 0, "runs them on the processor"}};
enum { ROOMS = sizeof rooms / sizeof *rooms, MOST = 400 };

// ---- the files --------------------------------------------------------------------------------------------

typedef struct {
    char *path, *text;
    char *code; // the text with blanks for comments, strings and characters
    int room, state;
    int includes[64], count; // files, by their index
} File;
static File files[MOST];
static int file_count;

static char *findings[MOST];
static int found;
static void finding(char *what) {
    if (found < MOST) findings[found++] = what;
}

static int room_of(const char *path) {
    int room = -1;
    size_t longest = 0;
    if (!strcmp(path, "samplers.c")) path = "sd.c"; // Phase 1 has two files
    for (int r = 0; r < ROOMS; r++) {
        size_t n = strlen(rooms[r].path);
        if (n > longest && !strncmp(path, rooms[r].path, n)) room = r, longest = n;
    }
    return room;
}

static int file_at(const char *path) {
    for (int i = 0; i < file_count; i++)
        if (!strcmp(files[i].path, path)) return i;
    return -1;
}

// The comment, string or character that begins at `c`: its length, or 0.
static size_t no_code(const char *c) {
    if (!strncmp(c, "//", 2)) return strcspn(c, "\n");
    if (!strncmp(c, "/*", 2)) return strstr(c, "*/") ? (size_t)(strstr(c, "*/") + 2 - c) : strlen(c);
    if (*c != '"' && *c != '\'') return 0;
    size_t n = 1;
    while (c[n] && c[n] != *c && c[n] != '\n') n += c[n] == '\\' && c[n + 1] ? 2 : 1;
    return n + (c[n] == *c);
}

static char *code_of(const char *text) {
    char *code = xstrdup(text);
    for (char *c = code; *c;) {
        size_t n = no_code(c);
        for (char *end = c + n; c < end; c++)
            if (*c != '\n') *c = ' ';
        if (!n) c++;
    }
    return code;
}

static void find_files(void) {
    FILE *p =
        popen("find *.[ch] cli weights lib cpu cuda -name '*.[ch]' -o -name '*.cc' -o -name '*.cu'", "r");
    char path[256];
    while (p && fgets(path, sizeof path, p) && file_count < MOST) {
        path[strcspn(path, "\n")] = 0;
        File *f = &files[file_count++];
        f->path = xstrdup(path), f->text = read_file(path, NULL), f->room = room_of(path);
    }
    if (!p || pclose(p) || file_count == MOST) die("cannot list the files of the product");
}

// ---- includes ---------------------------------------------------------------------------------------------

// #include "name": beside the file, or from the root. Other names (stb_image.h) are not the project's.
static void read_includes(File *f) {
    f->count = 0;
    for (const char *line = f->text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        char name[128];
        line += strspn(line, " \t");
        if (*line != '#' || sscanf(line, "# include \"%127[^\"]\"", name) != 1) continue;
        const char *slash = strrchr(f->path, '/');
        char *beside = format("%.*s%s", slash ? (int)(slash + 1 - f->path) : 0, f->path, name);
        int at = file_at(beside) >= 0 ? file_at(beside) : file_at(name);
        free(beside);
        if (at >= 0 && f->count < 64) f->includes[f->count++] = at;
    }
}

static bool points_down(const File *from, const File *to) {
    int above = rooms[from->room].floor, below = rooms[to->room].floor;
    if (from->room == to->room) return true;
    static const char *const contracts[] = {"lib/nn/kernels.h", "lib/nn/ranks.h", "lib/base.h"};
    for (size_t i = 0; above == 0 && i < sizeof contracts / sizeof *contracts; i++)
        if (!strcmp(to->path, contracts[i])) return true;
    if (above == 0) return false;
    return above > below && below > 0;
}

static void check_arrows(void) {
    for (int i = 0; i < file_count; i++) {
        File *f = &files[i];
        if (f->room < 0) finding(format("%s stands in no room of the tower", f->path));
        for (int k = 0; k < f->count && f->room >= 0; k++) {
            const File *to = &files[f->includes[k]];
            if (to->room < 0 || points_down(f, to)) continue;
            finding(format("%s includes %s: %s is not below %s", f->path, to->path, rooms[to->room].path,
                           rooms[f->room].path));
        }
    }
}

// Depth first; a file that is met again while it is still open closes a cycle.
static void visit(int i, const char *way) {
    File *f = &files[i];
    char *here = format("%s%s", way, f->path);
    if (f->state == 1) finding(format("a cycle of includes: %s", here));
    if (f->state == 0) {
        f->state = 1;
        char *next = format("%s -> ", here);
        for (int k = 0; k < f->count; k++) visit(f->includes[k], next);
        f->state = 2;
        free(next);
    }
    free(here);
}

static void check_cycles(void) {
    for (int i = 0; i < file_count; i++) files[i].state = 0;
    for (int i = 0; i < file_count; i++) visit(i, "");
}

// ---- what is called ---------------------------------------------------------------------------------------

static bool of_name(char c) { return isalnum((unsigned char)c) || c == '_'; }

// Is `name` in the code, as a whole word and, where `called`, before a parenthesis?
static bool uses(const char *code, const char *name, size_t n, bool called) {
    for (const char *at = code; (at = strstr(at, name)); at++)
        if (!(at > code && of_name(at[-1])) && (called ? at[n] == '(' : !of_name(at[n]))) return true;
    return false;
}

// All files against one name that sd.h declares for the phase `room`: rooms not above it may not call it.
static void check_name(const char *name, size_t n, int room) {
    for (int i = 0; i < file_count; i++) {
        int r = files[i].room;
        if (r < 0 || r == room || rooms[r].floor > rooms[room].floor || i == file_at("sd.h")) continue;
        if (uses(files[i].code, name, n, true))
            finding(
                format("%s calls %s of %s, which is not below it", files[i].path, name, rooms[room].path));
    }
}

// sd.h has a section a phase, "// ---- Phase 2: lcm.c ---"; of a declaration the first name before a
// parenthesis counts.
static int check_phases(void) {
    int names = 0, header = file_at("sd.h");
    const char *text = header < 0 ? "" : files[header].text;
    for (const char *at = text; (at = strstr(at, "// ---- Phase ")); at++) {
        char phase[32];
        if (sscanf(at, "// ---- Phase %*d: %31s", phase) != 1) continue;
        const char *next = strstr(at + 1, "// ---- "), *code = files[header].code;
        size_t end = next ? (size_t)(next - text) : strlen(text);
        int depth = 0;
        bool named = false;
        for (size_t i = (size_t)(at - text); i < end; i++) {
            depth += (code[i] == '{') - (code[i] == '}');
            if (depth == 0 && (code[i] == ';' || code[i] == '}')) named = false;
            if (depth || named || code[i] != '(') continue;
            size_t begin = i;
            while (of_name(code[begin - 1])) begin--;
            char *name = format("%.*s", (int)(i - begin), code + begin);
            named = *name;
            if (named) check_name(name, i - begin, room_of(phase)), names++;
            free(name);
        }
    }
    return names;
}

static void check_options(void) {
    static const char *const words[] = {"argv", "getopt", "getopt_long", "optarg"};
    for (int i = 0; i < file_count; i++)
        for (size_t k = 0; k < sizeof words / sizeof *words; k++)
            if (strncmp(files[i].path, "cli/", 4) && uses(files[i].code, words[k], strlen(words[k]), false))
                finding(format("%s has %s, which belongs to cli/", files[i].path, words[k]));
}

static int study(void) {
    while (found) free(findings[--found]);
    for (int i = 0; i < file_count; i++) {
        read_includes(&files[i]);
        free(files[i].code), files[i].code = code_of(files[i].text);
    }
    check_arrows();
    check_cycles();
    check_options();
    return check_phases();
}

// ---- the test ---------------------------------------------------------------------------------------------

static void print_tower(void) {
    for (int r = 0; r < ROOMS; r++) {
        int count = 0;
        bool used[ROOMS] = {0};
        for (int i = 0; i < file_count; i++) {
            count += files[i].room == r;
            for (int k = 0; k < files[i].count && files[i].room == r; k++)
                if (files[files[i].includes[k]].room >= 0) used[files[files[i].includes[k]].room] = true;
        }
        printf("%d %-13s %2d files  %-51s uses", rooms[r].floor, rooms[r].path, count, rooms[r].what);
        for (int k = 0; k < ROOMS; k++)
            if (used[k] && k != r) printf(" %s", rooms[k].path);
        puts("");
    }
}

// A line more in a file must make a finding more, which has these words.
static void planted(const char *path, const char *line, const char *words) {
    study();
    int at = file_at(path), before = found;
    if (at < 0) die("%s is not there", path);
    char *text = files[at].text;
    files[at].text = format("%s\n%s\n", text, line);
    study();
    bool named = false;
    for (int i = 0; i < found; i++) named |= strstr(findings[i], path) && strstr(findings[i], words);
    char *what = format("\"%s\" in %s is found", line, path);
    check(*words ? found > before && named : found == before, what);
    free(what), free(files[at].text);
    files[at].text = text;
}

int main(void) {
    find_files();
    int names = study();
    print_tower();
    check(file_count > 80 && names > 50, "the product's files and the names of sd.h are read");
    check(found == 0, "every arrow points down");
    for (int i = 0; i < found; i++) printf("        %s\n", findings[i]);

    planted("lib/nn/ops.c", "#include \"sd.h\"", "not below");
    planted("lib/nn/nn.h", "  #  include \"lib/io/io.h\"", "not below");
    planted("lib/io/json.c", "#include \"cli/commands.h\"", "not below");
    planted("cpu/gemm.c", "#include \"lib/nn/nn.h\"", "not below");
    planted("cuda/norm.cu", "#include \"cpu/vector.h\"", "not below");
    planted("lib/nn/ops.c", "#include \"cpu/vector.h\"", "not below");
    planted("lib/base.c", "#include \"lib/nn/kernels.h\"", "not below");
    planted("lib/base.h", "#include \"lib/nn/nn.h\"", "cycle");
    planted("cpu/cpu.h", "#include \"vector.h\"", "cpu/vector.h -> cpu/cpu.h");
    planted("sd.c", "static void f(void) { lcm_free(0); }", "calls lcm_free of lcm.c");
    planted("samplers.c", "static void f(void) { lcm_free(0); }", "calls lcm_free of lcm.c");
    planted("lcm.c", "static void f(void) { lora_free(0); }", "calls lora_free of lora.c");
    planted("lcm.c", "static void f(void) { fid_distance(0, 0); }", "calls fid_distance of fid.c");
    planted("fid.c", "static void f(void) { lcm_free(0); }", "calls lcm_free of lcm.c");
    planted("lib/io/json.c", "static void f(void) { vae_decode(0, 0); }", "calls vae_decode of sd.c");
    planted("sd.c", "int main(int argc, char **argv) { return 0; }", "has argv");
    // and what is right is not blamed
    planted("lora.c",
            "#include \"lib/nn/kernels.h\"\nstatic void f(void) { lcm_free(0), unet(0, 0, 0, 0, 0); }", "");
    planted("sd.c",
            "// lcm_free() and argv\nstatic const char *s = \"lora_free(argv)\"; int my_lcm_free(void);", "");
    planted("cpu/gemm.c", "#include \"lib/base.h\"\n#include \"lib/nn/kernels.h\"\n#include <stdio.h>", "");
    return test_report();
}
