// unicode.c: classes of characters, NFC and lower case, for the tokenizer. See unicode.h.
//
// The tables come from test/python/make_unicode.py and follow the library that CLIPTokenizer uses, also where
// that library is behind the newest Unicode. The algorithms: Unicode Standard, section 3.11 (normalisation
// forms) and 3.12 (Hangul syllables, which are composed by arithmetic).
#include "unicode.h"

#include <stdlib.h>
#include <string.h>

#include "unicode_tables.h"

#define ROWS(table) (sizeof(table) / sizeof *(table))

// Index of the row whose range row[0] ... row[last] holds the point, or -1. Rows of `width` entries, sorted.
static long find_range(const uint32_t *table, size_t rows, size_t width, size_t last, uint32_t point) {
    size_t low = 0, high = rows;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const uint32_t *row = table + middle * width;
        if (point < row[0])
            high = middle;
        else if (point > row[last])
            low = middle + 1;
        else
            return (long)middle;
    }
    return -1;
}

bool unicode_is_letter(uint32_t point) { return find_range(letters[0], ROWS(letters), 2, 1, point) >= 0; }
bool unicode_is_number(uint32_t point) { return find_range(numbers[0], ROWS(numbers), 2, 1, point) >= 0; }
bool unicode_is_blank(uint32_t point) { return find_range(blanks[0], ROWS(blanks), 2, 1, point) >= 0; }

// ---- canonical decomposition and composition -----------------------------------------------------------

// Hangul: a syllable is leading consonant x vowel x trailing consonant (or none).
enum { SYLLABLE = 0xAC00, LEAD = 0x1100, VOWEL = 0x1161, TRAIL = 0x11A7 };
enum { LEADS = 19, VOWELS = 21, TRAILS = 28 };

// Canonical combining class: 0 for a character that others attach to, else where a mark attaches.
static unsigned combining_class(uint32_t point) {
    if (point < marks[0][0]) return 0;
    long row = find_range(marks[0], ROWS(marks), 3, 1, point);
    return row < 0 ? 0 : marks[row][2];
}

// Writes the full decomposition of a character (at most 4) and returns its length.
static size_t decompose(uint32_t point, Point *out, size_t at) {
    if (point >= SYLLABLE && point < SYLLABLE + LEADS * VOWELS * TRAILS) {
        uint32_t index = point - SYLLABLE, trail = index % TRAILS;
        out[0] = (Point){LEAD + index / (VOWELS * TRAILS), at};
        out[1] = (Point){VOWEL + index / TRAILS % VOWELS, at};
        if (trail) out[2] = (Point){TRAIL + trail, at};
        return trail ? 3 : 2;
    }
    long pair = point < pairs[0][0] ? -1 : find_range(pairs[0], ROWS(pairs), 3, 0, point);
    if (pair >= 0) {
        size_t n = decompose(pairs[pair][1], out, at);
        out[n] = (Point){pairs[pair][2], at};
        return n + 1;
    }
    uint32_t to = point;
    for (size_t i = 0, before = 0; i < ROWS(singles) && point >= singles[i][0]; i++) {
        if (point <= singles[i][1]) to = single_to[before + point - singles[i][0]];
        before += singles[i][1] - singles[i][0] + 1;
    }
    *out = (Point){to, at};
    return 1;
}

// The character that two compose to, or 0.
static uint32_t compose_pair(uint32_t first, uint32_t last) {
    if (first >= LEAD && first < LEAD + LEADS && last >= VOWEL && last < VOWEL + VOWELS)
        return SYLLABLE + ((first - LEAD) * VOWELS + (last - VOWEL)) * TRAILS;
    if (first >= SYLLABLE && first < SYLLABLE + LEADS * VOWELS * TRAILS && (first - SYLLABLE) % TRAILS == 0 &&
        last > TRAIL && last < TRAIL + TRAILS)
        return first + (last - TRAIL);
    size_t low = 0, high = last < marks[0][0] ? 0 : ROWS(compositions); // no plain letter is a last part
    while (low < high) {
        size_t middle = (low + high) / 2;
        const uint32_t *pair = pairs[compositions[middle]];
        if (pair[1] == first && pair[2] == last) return pair[0];
        if (pair[1] < first || (pair[1] == first && pair[2] < last))
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

// Sorts each run of marks by class and keeps the order within a class: counting sort, so that a text of
// nothing but marks takes no longer than another.
static void order_marks(Point *p, size_t n) {
    Point *sorted = NULL;
    for (size_t i = 0, end; i < n; i = end + 1) {
        bool unordered = false;
        unsigned class, previous = 0;
        for (end = i; end < n && (class = combining_class(p[end].point)); end++) {
            unordered |= class < previous;
            previous = class;
        }
        if (!unordered) continue;
        size_t place[256] = {0};
        for (size_t j = i; j < end; j++) place[combining_class(p[j].point) + 1]++; // at most 240
        for (int c = 1; c < 256; c++) place[c] += place[c - 1];
        if (!sorted) sorted = xmalloc(n * sizeof *sorted);
        for (size_t j = i; j < end; j++) sorted[place[combining_class(p[j].point)]++] = p[j];
        memcpy(p + i, sorted, (end - i) * sizeof *p);
    }
    free(sorted);
}

// In place: each character with class 0 takes up what follows it, up to the next such one, unless a mark of
// the same or a larger class stands between.
static size_t compose(Point *p, size_t n) {
    size_t written = 0, base = 0;
    bool have_base = false;
    unsigned last_class = 0; // of the mark written last
    for (size_t i = 0; i < n; i++) {
        unsigned class = combining_class(p[i].point);
        bool reachable = have_base && (written == base + 1 || last_class < class);
        uint32_t composed = reachable ? compose_pair(p[base].point, p[i].point) : 0;
        if (composed) {
            p[base].point = composed;
            continue;
        }
        if (class == 0) base = written, have_base = true;
        last_class = class;
        p[written++] = p[i];
    }
    return written;
}

// ---- lower case ----------------------------------------------------------------------------------------

// Character by character, as Rust's char::to_lowercase: a final sigma is lowered like any other. A row of the
// table is first, last, step, distance: every step-th character of the range has a lower case, so far away.
static uint32_t lower_case(uint32_t point) {
    long row = find_range((const uint32_t *)lowers[0], ROWS(lowers), 4, 1, point);
    if (row < 0 || ((int32_t)point - lowers[row][0]) % lowers[row][2]) return point;
    return (uint32_t)((int32_t)point + lowers[row][3]);
}

Point *unicode_normalize(const char *text, size_t bytes, size_t start, size_t *count) {
    size_t n = 0, written = 0;
    Point *composed = xmalloc(bytes * 4 * sizeof *composed);
    for (const char *s = text; s < text + bytes;) {
        size_t at = start + (size_t)(s - text);
        n += decompose(utf8_get(&s), composed + n, at);
    }
    order_marks(composed, n);
    n = compose(composed, n);

    Point *out = xmalloc(2 * n * sizeof *out); // one character, U+0130, becomes two
    for (size_t i = 0; i < n; i++) {
        uint32_t point = composed[i].point;
        if (unicode_is_blank(point)) {
            if (i > 0 && unicode_is_blank(composed[i - 1].point)) continue;
            point = ' ';
        }
        bool dotted = point == 0x130; // capital I with a dot: the dot stays as a mark of its own
        out[written++] = (Point){dotted ? 'i' : lower_case(point), composed[i].at};
        if (dotted) out[written++] = (Point){0x307, composed[i].at};
    }
    free(composed);
    *count = written;
    return out;
}
