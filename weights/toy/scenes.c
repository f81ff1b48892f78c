// scenes.c: draws the toy world (see scenes.h) and writes it as a captioned data set.
//
// This is no general vector graphics library. The rasteriser draws one thing, a filled shape whose outline
// may be thickened by a round pen, which is enough for figures, houses and trees.
//
// All arithmetic is on integers, so that a scene has the same bytes under every compiler, flag and processor:
// floating point would differ where one machine fuses a multiplication with an addition and another does not.
//
// In order: random numbers; angles and colours; the rasteriser; looks; places; people; dogs; the camera;
// combinations and captions; files.
#include "scenes.h"

#include "lib/io/io.h" // image_save_png, json_*, output_*, Progress

#include <stdlib.h>
#include <string.h>

// ---- random numbers --------------------------------------------------------------------------------------

// SplitMix64 (Steele, Lea, Flood 2014): one 64-bit word of state, any seed is as good as another.
typedef struct {
    uint64_t state;
} Dice;

static uint64_t mix64(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static uint32_t next32(Dice *r) { return (uint32_t)(mix64(r->state += 0x9e3779b97f4a7c15u) >> 32); }
static int below(Dice *r, int n) { return (int)(((uint64_t)next32(r) * (uint64_t)n) >> 32); }
static int between(Dice *r, int low, int high) { return low + below(r, high - low + 1); } // both included
// Two draws never stand in one expression: C leaves open which is evaluated first.
static int one_of(Dice *r, int a, int b, int spread) {
    int x = below(r, 2) ? a : b;
    return x + between(r, -spread, spread);
}

// ---- angles and colours ----------------------------------------------------------------------------------

// Sine of whole degrees times 2^14, by Bhaskara's rational formula (7th century): within 0.0017.
static int sine(int degrees) {
    int d = ((degrees % 360) + 360) % 360, half = d % 180, p = half * (180 - half);
    int s = 65536 * p / (40500 - p);
    return d < 180 ? s : -s;
}
static int cosine(int degrees) { return sine(degrees + 90); }

typedef struct {
    int r, g, b;
} Colour; // 0 to 255 each

static int limit(int x, int low, int high) { return x < low ? low : x > high ? high : x; }
static Colour mix(Colour a, Colour b, int t) { // t = 0: a, t = 256: b
    return (Colour){a.r + (b.r - a.r) * t / 256, a.g + (b.g - a.g) * t / 256, a.b + (b.b - a.b) * t / 256};
}
static Colour scaled(Colour c, int r, int g, int b) { // 256 leaves a channel as it is
    return (Colour){limit(c.r * r / 256, 0, 255), limit(c.g * g / 256, 0, 255), limit(c.b * b / 256, 0, 255)};
}
static Colour shade(Colour c, int k) { return scaled(c, k, k, k); }
// k scales the distance from the colour's grey: 256 leaves it as it is, 0 makes it grey.
static Colour saturate(Colour c, int k) {
    int grey = (77 * c.r + 150 * c.g + 29 * c.b) / 256;
    return (Colour){limit(grey + (c.r - grey) * k / 256, 0, 255),
                    limit(grey + (c.g - grey) * k / 256, 0, 255),
                    limit(grey + (c.b - grey) * k / 256, 0, 255)};
}

// ---- the rasteriser --------------------------------------------------------------------------------------

typedef struct {
    int x, y;
} Point;

// Drawing units to 1/256 pixel: x' = (xx x + xy y) / 2^16 + tx, y' = (yx x + yy y) / 2^16 + ty.
typedef struct {
    int64_t xx, xy, yx, yy, tx, ty;
} Transform;

static Point apply(const Transform *t, Point p) {
    return (Point){(int)((t->xx * p.x + t->xy * p.y) / 65536 + t->tx),
                   (int)((t->yx * p.x + t->yy * p.y) / 65536 + t->ty)};
}
// First turn by so many degrees (clockwise on the screen) about (x, y), then t.
static Transform turned(Transform t, int degrees, int x, int y) {
    int64_t s = sine(degrees), c = cosine(degrees);
    Transform u = {(t.xx * c + t.xy * s) / 16384,
                   (t.xy * c - t.xx * s) / 16384,
                   (t.yx * c + t.yy * s) / 16384,
                   (t.yy * c - t.yx * s) / 16384,
                   0,
                   0};
    Point before = apply(&t, (Point){x, y}), after = apply(&u, (Point){x, y});
    u.tx = before.x - after.x;
    u.ty = before.y - after.y;
    return u;
}

// A figure is drawn by the same code three times: to learn its extent, as a silhouette a little larger in the
// outline's colour, and in its own colours on top.
typedef enum { PAINT, MEASURE, OUTLINE } Pass;

enum { N = SCENE_SIZE, SUB = 8 }; // SUB scan lines a pixel row; along a line coverage is exact to 1/256

typedef struct {
    int x, direction, next;
} Crossing;
typedef struct {
    uint16_t pixel[N][N][3]; // 256 times the 8-bit value, so that gradients stay smooth until the end
    Transform t;
    int pen; // one drawing unit, in 2^-16 of 1/256 pixel; scales line widths
    Pass pass;
    int outline; // width in 1/256 pixel
    Colour outline_colour;
    int box[4];         // MEASURE: left, top, right, bottom in 1/256 pixel
    int first[N * SUB]; // by scan line, the crossing that lies furthest left, or -1
    int top, bottom;    // scan lines in use: top <= line < bottom
    Crossing *crossings;
    int count, room;
} Canvas;

static void mask_clear(Canvas *c) {
    for (int i = c->top; i < c->bottom; i++) c->first[i] = -1;
    c->top = N * SUB, c->bottom = 0, c->count = 0;
}

static Point on_ellipse(int x, int y, int rx, int ry, int degrees) { // 0: right, 90: below
    return (Point){x + rx * cosine(degrees) / 16384, y + ry * sine(degrees) / 16384};
}

// Adds where the edge a-b crosses the middle of each scan line to that line's list, from left to right.
static void mask_edge(Canvas *c, Point a, Point b, int direction) {
    if (a.y == b.y) return;
    if (a.y > b.y) {
        Point swap = a;
        a = b, b = swap, direction = -direction;
    }
    const int step = 256 / SUB, half = step / 2;
    int line = a.y <= half ? 0 : (a.y - half + step - 1) / step;
    if (line < 0) line = 0;
    for (; line < N * SUB; line++) {
        int y = line * step + half;
        if (y >= b.y) break;
        int x = a.x + (int)((int64_t)(b.x - a.x) * (y - a.y) / (b.y - a.y));
        if (c->count == c->room)
            c->crossings = xrealloc(c->crossings, (size_t)(c->room *= 2) * sizeof(Crossing));
        int *link = &c->first[line];
        while (*link >= 0 && c->crossings[*link].x < x) link = &c->crossings[*link].next;
        c->crossings[c->count] = (Crossing){limit(x, 0, N * 256), direction, *link};
        *link = c->count++;
        if (line < c->top) c->top = line;
        if (line >= c->bottom) c->bottom = line + 1;
    }
}

// A closed path in 1/256 pixel. A pixel is inside where the winding number is positive. Paths get the same
// direction, so overlapping ones unite. A hole gets the other direction, so it is cut out.
static void mask_path(Canvas *c, const Point *p, int n, bool hole) {
    int64_t area = 0;
    for (int i = 0; i < n; i++) {
        Point a = p[i], b = p[(i + 1) % n];
        area += (int64_t)a.x * b.y - (int64_t)b.x * a.y;
    }
    int direction = (area > 0) != hole ? -1 : 1; // the left edge counts 1
    for (int i = 0; i < n; i++) mask_edge(c, p[i], p[(i + 1) % n], direction);
}

static void mask_disc(Canvas *c, Point at, int radius, bool hole) {
    Point p[36];
    int n = radius < 512 ? 12 : radius < 1536 ? 18 : 36;
    for (int i = 0; i < n; i++) p[i] = on_ellipse(at.x, at.y, radius, radius, i * 360 / n);
    mask_path(c, p, n, hole);
}

// Paints through the mask, from `above` in its first row to `below` in its last; a silhouette in one colour.
static void mask_paint(Canvas *c, Colour above, Colour below, int alpha) {
    if (c->top >= c->bottom) return;
    if (c->pass == OUTLINE) above = below = c->outline_colour, alpha = 256;
    int first = c->top / SUB, last = (c->bottom - 1) / SUB;
    for (int y = first; y <= last; y++) {
        int change[N + 2] = {0}, left = N, right = 0; // coverage as differences from one pixel to the next
        for (int line = y * SUB; line < (y + 1) * SUB; line++) {
            int winding = 0;
            for (int i = c->first[line]; i >= 0; i = c->crossings[i].next) {
                int before = winding > 0;
                winding += c->crossings[i].direction;
                int sign = (winding > 0) - before;
                if (!sign) continue;
                int x = c->crossings[i].x / 256, fraction = c->crossings[i].x % 256;
                change[x] += sign * (256 - fraction);
                change[x + 1] += sign * fraction;
                if (x < left) left = x;
                if (x + 1 > right) right = x + 1;
            }
        }
        Colour k = mix(above, below, last > first ? (y - first) * 256 / (last - first) : 0);
        int want[3] = {k.r * 256, k.g * 256, k.b * 256}, cover = 0;
        if (right > N) right = N;
        for (int x = left; x < right || (cover && x < N); x++) {
            cover += change[x]; // of 256 SUB
            for (int i = 0; i < 3; i++) {
                int had = c->pixel[y][x][i];
                c->pixel[y][x][i] =
                    (uint16_t)(had + (int64_t)(want[i] - had) * cover * alpha / (256 * SUB * 256));
            }
        }
    }
}

static void extend(Canvas *c, Point p, int r) {
    if (p.x - r < c->box[0]) c->box[0] = p.x - r;
    if (p.y - r < c->box[1]) c->box[1] = p.y - r;
    if (p.x + r > c->box[2]) c->box[2] = p.x + r;
    if (p.y + r > c->box[3]) c->box[3] = p.y + r;
}

enum { POINTS = 96 };

// The one thing that is drawn: a closed shape, thickened by a round pen. Two points make a line.
static void shape_gradient(Canvas *c, const Point *points, int n, int width, Colour above, Colour below,
                           int alpha) {
    Point p[POINTS];
    int r = (int)((int64_t)width * c->pen / 65536 / 2);
    if (c->pass == OUTLINE) r += c->outline;
    for (int i = 0; i < n; i++) p[i] = apply(&c->t, points[i]);
    if (c->pass == MEASURE) {
        for (int i = 0; i < n; i++) extend(c, p[i], r);
        return;
    }
    mask_clear(c);
    if (n > 2) mask_path(c, p, n, false);
    for (int i = 0; r && i < (n == 2 ? 1 : n); i++) {
        Point a = p[i], b = p[(i + 1) % n];
        int64_t dx = b.x - a.x, dy = b.y - a.y, length = 1;
        while (length * length < dx * dx + dy * dy) length += length / 16 + 1;
        while (length > 1 && (length - 1) * (length - 1) >= dx * dx + dy * dy) length--;
        int nx = (int)(-dy * r / length), ny = (int)(dx * r / length);
        Point band[4] = {
            {a.x + nx, a.y + ny}, {b.x + nx, b.y + ny}, {b.x - nx, b.y - ny}, {a.x - nx, a.y - ny}};
        mask_path(c, band, 4, false);
        mask_disc(c, a, r, false);
        if (n == 2) mask_disc(c, b, r, false);
    }
    mask_paint(c, above, below, alpha);
}
static void shape(Canvas *c, const Point *p, int n, int width, Colour k) {
    shape_gradient(c, p, n, width, k, k, 256);
}
static void line(Canvas *c, int x0, int y0, int x1, int y1, int width, Colour k) {
    shape(c, (Point[]){{x0, y0}, {x1, y1}}, 2, width, k);
}
static void rectangle(Canvas *c, int x, int y, int w, int h, Colour k) {
    shape(c, (Point[]){{x, y}, {x + w, y}, {x + w, y + h}, {x, y + h}}, 4, 0, k);
}
static void triangle(Canvas *c, int x0, int y0, int x1, int y1, int x2, int y2, Colour k) {
    shape(c, (Point[]){{x0, y0}, {x1, y1}, {x2, y2}}, 3, 0, k);
}
// Part of an ellipse, from one angle to another (0: right, 90: below), closed by the chord.
static void arc(Canvas *c, int x, int y, int rx, int ry, int from, int to, Colour k, int alpha) {
    Point p[31];
    for (int i = 0; i <= 30; i++) p[i] = on_ellipse(x, y, rx, ry, from + (to - from) * i / 30);
    // The pen, as for every shape, grows the silhouette in the pass that draws outlines.
    shape_gradient(c, p, to - from == 360 ? 30 : 31, 0, k, k, alpha);
}
static void ellipse(Canvas *c, int x, int y, int rx, int ry, Colour k) {
    arc(c, x, y, rx, ry, 0, 360, k, 256);
}
static void disc(Canvas *c, int x, int y, int r, Colour k) { ellipse(c, x, y, r, r, k); }
static void ring(Canvas *c, int x, int y, int r, int width, Colour k) {
    Point at = apply(&c->t, (Point){x, y});
    int radius = (int)((int64_t)r * c->pen / 65536), half = (int)((int64_t)width * c->pen / 65536 / 2);
    if (c->pass == OUTLINE) half += c->outline;
    if (c->pass == MEASURE) {
        extend(c, at, radius + half);
        return;
    }
    mask_clear(c);
    mask_disc(c, at, radius + half, false);
    mask_disc(c, at, radius - half, true);
    mask_paint(c, k, k, 256);
}
// A smooth closed curve from n control points: corners are cut three times (Chaikin 1974).
static void blob(Canvas *c, const Point *control, int n, Colour above, Colour below) {
    Point a[POINTS], b[POINTS];
    memcpy(a, control, (size_t)n * sizeof *a);
    for (int round = 0; round < 3; round++, n *= 2) {
        for (int i = 0; i < n; i++) {
            Point p = a[i], q = a[(i + 1) % n];
            b[2 * i] = (Point){(3 * p.x + q.x) / 4, (3 * p.y + q.y) / 4};
            b[2 * i + 1] = (Point){(p.x + 3 * q.x) / 4, (p.y + 3 * q.y) / 4};
        }
        memcpy(a, b, 2 * (size_t)n * sizeof *a);
    }
    shape_gradient(c, a, n, 0, above, below, 256);
}

// ---- looks -----------------------------------------------------------------------------------------------

typedef enum { CLEAR, CLOUDS, RAIN, FOG } Weather;

// How a picture is taken, not what it shows.
typedef struct {
    int saturation, tint[3]; // of the background's colours; 256 leaves them as they are
    int film[3], lift;       // the whole picture: gain a channel, and how far black is raised (0 to 255)
    int vignette, grain;     // darkening in the corners of 256; largest noise of 255
    int outline;             // round the figure, 1/256 pixel; 0: none
    Colour outline_colour;
    int shading;             // how much darker a garment is at its lower end, of 256
    int tilt;                // degrees
    int horizon;             // tenths of a pixel
    int size_low, size_high; // a standing adult's height in pixels
    Weather weather;
} Look;

static Look look_broad(Dice *r, int time) {
    static const int tints[5][4] = {{256, 256, 256, 256},
                                    {244, 256, 268, 260},
                                    {262, 252, 260, 236},
                                    {250, 262, 250, 300},
                                    {268, 264, 252, 216}};
    static const Colour inks[3] = {{24, 22, 34}, {40, 32, 84}, {250, 250, 244}};
    const int *t = tints[below(r, 5)];
    Look k = {.saturation = t[3], .tint = {t[0], t[1], t[2]}, .film = {256, 256, 256}};
    k.grain = below(r, 4) ? 0 : 3;
    k.outline = below(r, 4) ? between(r, 130, 380) : 0;
    k.outline_colour = inks[time == NIGHT ? 2 : below(r, 5) % 3];
    if (time == NIGHT) k.outline = between(r, 130, 300);
    k.shading = below(r, 3) ? 0 : between(r, 20, 50);
    k.tilt = below(r, 2) ? between(r, -4, 4) : 0;
    k.horizon = between(r, -50, 50);
    k.size_low = 68, k.size_high = 80;
    int w = below(r, 10);
    k.weather = w < 5 ? CLEAR : w < 8 ? CLOUDS : w < 9 ? RAIN : FOG;
    return k;
}

// One camera, one film: warm, blacks a little raised, corners darker, fine grain, a soft contour.
static Look look_flickr(Dice *r, int time) {
    Look k = {.saturation = 214, .tint = {256, 252, 240}, .film = {254, 243, 216}, .lift = 14};
    k.vignette = 80, k.grain = 5, k.outline = 170, k.shading = 44;
    k.outline_colour = time == NIGHT ? (Colour){214, 206, 190} : (Colour){78, 54, 44};
    k.horizon = between(r, -15, 15);
    k.size_low = 76, k.size_high = 85;
    k.weather = below(r, 3) ? CLEAR : CLOUDS;
    return k;
}

static Colour lit(Colour c, int time) { // a colour of the background by the time of day
    if (time == NIGHT) return scaled((Colour){c.r + 6, c.g + 8, c.b + 20}, 106, 116, 148);
    if (time == SUNSET) return scaled((Colour){c.r + 18, c.g, c.b}, 252, 210, 188);
    return c;
}
// Night and sunset change a figure's colours less than the background's, so that each can still be named.
static Colour lit_figure(Colour c, int time) {
    if (time == NIGHT) return scaled(c, 216, 218, 226);
    if (time == SUNSET) return scaled(c, 256, 244, 232);
    return c;
}
static Colour tinted(const Look *k, Colour c) {
    return scaled(saturate(c, k->saturation), k->tint[0], k->tint[1], k->tint[2]);
}
static Colour place_colour(const Look *k, int time, int r, int g, int b) {
    return lit(tinted(k, (Colour){r, g, b}), time);
}

// ---- places ----------------------------------------------------------------------------------------------
// Drawn in tenths of a pixel: (0, 0) is the upper left corner, (1280, 1280) the lower right one. What lies at
// the borders reaches beyond them, because the camera may tilt.

// The stairs in the entryway: the step that the rear foot stands on has its middle at x and its top at y.
typedef struct {
    int x, y, rise, run;
} Stairs;

#define P(red, green, blue) place_colour(k, time, red, green, blue)

static void night_sky_moon(Canvas *c, int x, int y, int r, Colour sky) {
    disc(c, x, y, r, (Colour){246, 242, 214});
    disc(c, x + r / 2, y - r / 4, r * 7 / 8, sky);
}

static const Colour sky_above[3] = {{96, 178, 240}, {226, 96, 84}, {14, 18, 58}};
static const Colour sky_below[3] = {{204, 234, 252}, {255, 208, 120}, {44, 54, 116}};

static void sky(Canvas *c, const Look *k, Dice *r, int time) {
    Colour a = tinted(k, sky_above[time]), b = tinted(k, sky_below[time]);
    shape_gradient(c, (Point[]){{-300, -300}, {1580, -300}, {1580, 900}, {-300, 900}}, 4, 0, a, b, 256);
    int x = one_of(r, 180, 1090, 60), y = between(r, 170, 230);
    if (time == DAY) {
        arc(c, x, y, 150, 150, 0, 360, (Colour){255, 250, 210}, 70);
        disc(c, x, y, 95, (Colour){255, 238, 120});
    } else if (time == SUNSET) {
        y += 330;
        arc(c, x, y, 210, 210, 0, 360, (Colour){255, 226, 140}, 90);
        disc(c, x, y, 130, (Colour){255, 236, 160});
    } else {
        night_sky_moon(c, x, y, 100, mix(a, b, 50));
        for (int i = 0; i < 14; i++) {
            int sx = between(r, 0, 1280), sy = between(r, 20, 520), size = between(r, 7, 13);
            disc(c, sx, sy, size, (Colour){236, 236, 214});
        }
    }
    if (k->weather == CLOUDS) {
        static const Colour clouds[3] = {{250, 252, 255}, {255, 190, 160}, {70, 78, 128}};
        Colour cloud = clouds[time];
        for (int i = 0; i < 2; i++) {
            int cx = between(r, 80, 1200), cy = between(r, 90, 300), w = between(r, 90, 130);
            ellipse(c, cx, cy, 2 * w, w / 2, cloud);
            disc(c, cx - w / 2, cy - w / 3, w * 2 / 3, cloud);
            disc(c, cx + w / 2, cy - w / 4, w / 2, cloud);
        }
    }
}

static void conifer(Canvas *c, const Look *k, int time, int x, int y, int h, bool snow) {
    Colour green = place_colour(k, time, 30, 98, 70), white = place_colour(k, time, 242, 247, 255);
    rectangle(c, x - h / 18, y - h / 5, h / 9, h / 5, place_colour(k, time, 96, 66, 44));
    for (int i = 2; i >= 0; i--) {
        int top = y - h + i * h / 4, w = h * (3 + i) / 16, bottom = top + h * 2 / 5;
        triangle(c, x - w, bottom, x, top, x + w, bottom, green);
        if (snow)
            triangle(c, x - w * 9 / 20, top + h * 9 / 50, x, top, x + w * 9 / 20, top + h * 9 / 50, white);
    }
}

static void beach(Canvas *c, const Look *k, Dice *r, int time) {
    shape_gradient(c, (Point[]){{-300, 620}, {1580, 620}, {1580, 900}, {-300, 900}}, 4, 0, P(16, 116, 190),
                   P(40, 160, 206), 256);
    for (int i = 0; i < 3; i++) {
        int x = between(r, 0, 1100), y = 680 + 60 * i;
        line(c, x, y, x + between(r, 120, 220), y, 14, P(130, 206, 232));
    }
    if (below(r, 2)) { // a sail
        int x = between(r, 560, 1000);
        triangle(c, x, 470, x, 610, x + 90, 610, P(250, 250, 245));
        shape(c, (Point[]){{x - 60, 622}, {x + 110, 622}, {x + 80, 650}, {x - 40, 650}}, 4, 0,
              P(140, 84, 60));
    }
    shape(c, (Point[]){{-300, 862}, {1580, 850}, {1580, 905}, {-300, 915}}, 4, 0, P(238, 246, 246));
    shape_gradient(c, (Point[]){{-300, 885}, {1580, 880}, {1580, 1580}, {-300, 1580}}, 4, 0, P(246, 220, 156),
                   P(226, 190, 120), 256);
    int x = one_of(r, 170, 1110, 50);
    line(c, x, 640, x, 1020, 26, P(150, 104, 70));
    arc(c, x, 690, 185, 185, 180, 360, P(222, 72, 66), 256);
    arc(c, x, 690, 62, 185, 180, 360, P(252, 246, 232), 256);
    for (int i = 0; i < 4; i++) {
        int px = between(r, 40, 1240), py = between(r, 1120, 1260);
        ellipse(c, px, py, 22, 12, P(206, 168, 104));
    }
}

static void park(Canvas *c, const Look *k, Dice *r, int time) {
    ellipse(c, between(r, 200, 400), 900, 720, 260, P(126, 190, 104));
    ellipse(c, between(r, 950, 1200), 910, 660, 250, P(108, 178, 92));
    shape_gradient(c, (Point[]){{-300, 835}, {1580, 835}, {1580, 1580}, {-300, 1580}}, 4, 0, P(104, 186, 78),
                   P(72, 154, 58), 256);
    int side = below(r, 2), x = (side ? 1120 : 160) + between(r, -50, 50);
    for (int i = 0; i < 2; i++, x = (side ? 150 : 1130) + between(r, -60, 60)) {
        if (i && below(r, 2)) break;
        int d = i ? 3 : 4; // the second tree is smaller
        rectangle(c, x - 9 * d, 560, 18 * d, 330, P(122, 80, 50));
        Colour leaf = P(42, 126, 52), light = P(66, 154, 66);
        disc(c, x - 28 * d, 540, 26 * d, leaf);
        disc(c, x + 28 * d, 545, 26 * d, leaf);
        disc(c, x, 450, 42 * d, leaf);
        disc(c, x - 10 * d, 430, 24 * d, light);
    }
    for (int i = 0; i < 6; i++) {
        int fx = between(r, 20, 1260), fy = between(r, 930, 1260);
        disc(c, fx, fy, 16, i % 2 ? P(250, 244, 250) : P(250, 222, 110));
        disc(c, fx, fy, 7, P(222, 150, 60));
    }
}

static void street(Canvas *c, const Look *k, Dice *r, int time) {
    static const Colour walls[4] = {{186, 112, 92}, {158, 160, 172}, {216, 186, 136}, {142, 118, 130}};
    int which = below(r, 4);
    for (int x = -300 - between(r, 0, 150); x < 1580; which++) {
        int w = between(r, 300, 400), h = between(r, 420, 640);
        Colour wall = walls[which % 4];
        rectangle(c, x, 870 - h, w, h + 10, P(wall.r, wall.g, wall.b));
        rectangle(c, x - 8, 870 - h, w + 16, 26, P(wall.r * 3 / 4, wall.g * 3 / 4, wall.b * 3 / 4));
        for (int y = 870 - h + 70; y < 800; y += 150)
            for (int i = 0; i < 3; i++)
                rectangle(c, x + w * (3 + 10 * i) / 32, y, w * 6 / 32, 88,
                          time == NIGHT && (which + i + y / 150) % 4 ? (Colour){255, 222, 122}
                                                                     : P(176, 212, 232));
        x += w;
    }
    rectangle(c, -300, 866, 1880, 84, P(190, 188, 184));
    rectangle(c, -300, 936, 1880, 18, P(140, 140, 142));
    rectangle(c, -300, 950, 1880, 700, P(92, 94, 102));
    for (int x = -300 + between(r, 0, 250); x < 1580; x += 330)
        rectangle(c, x, 1210, 180, 34, P(244, 236, 196));
    if (below(r, 2)) { // a street lamp
        int x = one_of(r, 90, 1190, 30);
        line(c, x, 330, x, 930, 26, P(66, 70, 80));
        if (time != DAY) arc(c, x, 320, 120, 120, 0, 360, (Colour){255, 232, 150}, 110);
        disc(c, x, 320, 44, time == DAY ? P(232, 232, 220) : (Colour){255, 242, 190});
    }
}

static void snow(Canvas *c, const Look *k, Dice *r, int time) {
    ellipse(c, between(r, 100, 300), 920, 700, 250, P(208, 222, 242));
    ellipse(c, between(r, 1000, 1200), 930, 700, 260, P(220, 232, 248));
    int side = below(r, 2);
    conifer(c, k, time, (side ? 1130 : 150) + between(r, -40, 40), 910, 480, true);
    conifer(c, k, time, (side ? 180 : 1100) + between(r, -60, 60), 880, 300, true);
    shape_gradient(c, (Point[]){{-300, 850}, {300, 836}, {900, 852}, {1580, 840}, {1580, 1580}, {-300, 1580}},
                   6, 0, P(238, 244, 255), P(212, 226, 246), 256);
    if (below(r, 2)) { // a snowman
        int x = side ? 130 : 1150;
        disc(c, x, 900, 92, P(250, 252, 255));
        disc(c, x, 780, 64, P(250, 252, 255));
        triangle(c, x, 772, x, 794, x + 60, 790, P(240, 140, 50));
        disc(c, x - 18, 764, 9, (Colour){40, 40, 48});
        disc(c, x + 20, 764, 9, (Colour){40, 40, 48});
        rectangle(c, x - 46, 660, 92, 64, P(60, 60, 72));
        rectangle(c, x - 72, 714, 144, 18, P(60, 60, 72));
    }
}
static void snowflakes(Canvas *c, Dice *r, int time) {
    Colour k = time == NIGHT ? (Colour){206, 214, 236} : (Colour){255, 255, 255};
    for (int i = 0; i < 16; i++) {
        int x = between(r, 10, 1270), y = between(r, 20, 1150), size = between(r, 12, 20);
        disc(c, x, y, size, k);
    }
}

static void mountain(Canvas *c, const Look *k, Dice *r, int time) {
    int shift = between(r, -90, 90), low = between(r, 500, 580), high = between(r, 560, 640);
    int which = below(r, 2); // of the two mountains is the lower one
    triangle(c, 300 + shift, 860, 660 + shift, 440, 1050 + shift, 860, P(142, 150, 178));
    for (int i = 0; i < 2; i++) {
        int x = (i ? 1000 : 240) + shift, h = i == which ? low : high, w = 560, top = 860 - h;
        triangle(c, x - w, 860, x, top, x + w, 860, P(112, 118, 142));
        triangle(c, x, top, x + w, 860, x + w / 6, 860, P(92, 96, 122)); // the side away from the sun
        int s = h * 3 / 10, v = w * 3 / 10;
        Point cap[6] = {{x - v, top + s},     {x, top},
                        {x + v, top + s},     {x + v / 2, top + s * 3 / 4},
                        {x + v / 8, top + s}, {x - v / 3, top + s * 7 / 10}};
        shape(c, cap, 6, 0, P(246, 248, 254));
    }
    shape_gradient(c, (Point[]){{-300, 838}, {500, 820}, {1580, 846}, {1580, 1580}, {-300, 1580}}, 5, 0,
                   P(150, 132, 98), P(126, 104, 78), 256);
    shape(c, (Point[]){{-300, 838}, {500, 820}, {1580, 846}, {1580, 892}, {700, 876}, {-300, 900}}, 6, 0,
          P(96, 128, 74));
    if (below(r, 2)) conifer(c, k, time, below(r, 2) ? 120 : 1170, 900, 280, false);
    for (int i = 0; i < 3; i++) {
        int x = between(r, 20, 1260), y = between(r, 1080, 1250), w = between(r, 50, 90), u = w * 3 / 4;
        Point rock[5] = {{x - w, y}, {x - u, y - w / 2}, {x, y - u}, {x + u, y - w / 3}, {x + w, y}};
        shape(c, rock, 5, 14, P(148, 144, 142));
    }
}

static void entryway(Canvas *c, const Look *k, Dice *r, int time, Stairs s) {
    static const Colour walls[3][3] = {{{240, 222, 186}, {228, 206, 188}, {214, 222, 206}},
                                       {{244, 176, 124}, {240, 160, 126}, {236, 172, 132}},
                                       {{66, 70, 108}, {74, 66, 104}, {60, 74, 108}}};
    Colour w = tinted(k, walls[time][below(r, 3)]);
    shape_gradient(c, (Point[]){{-300, -300}, {1580, -300}, {1580, 1580}, {-300, 1580}}, 4, 0, w,
                   shade(w, 232), 256);
    Colour frame = P(246, 240, 228), wood = P(140, 84, 48),
           sky_colour = mix(sky_above[time], sky_below[time], 110);
    // A window shows the time of day: the sun, the red sky or the moon.
    rectangle(c, 50, 60, 290, 270, frame);
    rectangle(c, 76, 86, 238, 218, sky_colour);
    if (time == DAY) disc(c, 240, 160, 52, (Colour){255, 238, 120});
    if (time == SUNSET) disc(c, 200, 250, 70, (Colour){255, 236, 160});
    if (time == NIGHT) night_sky_moon(c, 220, 170, 56, sky_colour);
    rectangle(c, 186, 76, 18, 240, frame);
    // The door at the upper end, half hidden by the stairs, with a lamp.
    int x = between(r, 900, 930);
    rectangle(c, x - 30, 40, 330, 900, frame);
    rectangle(c, x, 72, 270, 900, wood);
    rectangle(c, x + 45, 120, 180, 150, time == DAY ? (Colour){190, 226, 240} : sky_colour);
    rectangle(c, x + 45, 310, 180, 120, shade(wood, 210));
    disc(c, x + 28, 330, 17, P(244, 214, 110));
    if (time == NIGHT) {
        arc(c, x - 120, 170, 190, 190, 0, 360, (Colour){255, 226, 150}, 90);
        arc(c, x - 120, 170, 110, 110, 0, 360, (Colour){255, 232, 160}, 90);
    }
    shape(c, (Point[]){{x - 160, 210}, {x - 140, 130}, {x - 100, 130}, {x - 80, 210}}, 4, 0,
          time == NIGHT ? (Colour){255, 244, 200} : P(206, 196, 170));
    rectangle(c, -300, 1170, 1880, 500, P(166, 128, 96));
    rectangle(c, -300, 1150, 1880, 30, P(232, 224, 210));
    for (int i = -3; i < 8; i++) {
        int left = s.x - s.run / 2 + i * s.run, top = s.y - i * s.rise;
        if (top > 1180 || left > 1400) continue;
        if (left < 80 && i) continue;
        Colour stone = P(176 - 7 * i, 172 - 7 * i, 172 - 6 * i);
        rectangle(c, left, top, 1600 - left, 1400 - top, stone);
        rectangle(c, left - 8, top, 1600 - left, 24, P(230, 226, 222));
    }
}
#undef P

// ---- people ----------------------------------------------------------------------------------------------
// A figure is drawn in thousandths of an adult's height, the hip at (0, 0), looking to the right.

static const Colour garment_colours[11] = {
    [RED] = {216, 34, 36},   [PINK] = {250, 130, 190}, [ORANGE] = {248, 138, 22}, [YELLOW] = {250, 220, 40},
    [GREEN] = {30, 152, 60}, [BLUE] = {28, 88, 222},   [PURPLE] = {126, 44, 176}, [WHITE] = {246, 246, 246},
    [BLACK] = {28, 28, 32},  [BROWN] = {128, 72, 32},  [TAN] = {224, 176, 110}};

typedef struct {
    int thigh[2], shin[2], upper[2], fore[2], lean, apart;
} Pose; // degrees from straight down; [0] in front
static const Pose poses[] = {
    [STAND] = {{5, -5}, {3, -3}, {14, -14}, {4, -4}, 0, 100},
    [RUN] = {{64, -34}, {-8, -98}, {-58, 62}, {20, 148}, 14, 20},
    [JUMP] = {{44, -44}, {14, -14}, {146, -146}, {158, -158}, 0, 100},
    [CLIMB] = {{86, -8}, {2, -16}, {54, -24}, {100, 20}, 10, 20},
    [SIT] = {{88, 82}, {4, -6}, {26, 14}, {66, 56}, 0, 20},
    [THROW] = {{28, -26}, {12, -32}, {128, -62}, {166, -30}, -6, 60},
    [RIDE] = {{58, 40}, {-16, -10}, {50, 42}, {8, 2}, 24, 20},
};

typedef struct {
    int twist[8]; // each joint a few degrees off
    Colour skin, hair, garment;
    int ball, detail, shading;
} Person;

static Person person_make(Dice *r, const Scene *s, const Look *k) {
    static const Colour skins[4] = {{250, 212, 176}, {232, 178, 132}, {184, 126, 84}, {128, 84, 56}};
    static const Colour hairs[4] = {{58, 34, 22}, {118, 68, 34}, {222, 180, 92}, {34, 30, 32}};
    Person p = {.shading = k->shading};
    p.ball = between(r, 0, 60);
    p.detail = below(r, 4);
    for (int i = 0; i < 8; i++) p.twist[i] = between(r, -4, 4);
    int tone = below(r, 4);
    p.skin = lit_figure(skins[tone], s->time);
    p.hair = lit_figure(hairs[tone == 3 ? 3 : below(r, 4)], s->time);
    int bright = between(r, 244, 264); // the same colour varies a little
    p.garment = lit_figure(shade(garment_colours[s->colour], bright), s->time);
    return p;
}

static Point along(Point from, int degrees, int length) {
    return (Point){from.x + length * sine(degrees) / 16384, from.y + length * cosine(degrees) / 16384};
}

// Where a foot of the climbing pose is, so that the stairs can be built under it. leg: half a leg.
static Point climbing_foot(int leg, int i) {
    const Pose *q = &poses[CLIMB];
    Point hip = {(i ? -1 : 1) * q->apart * 58 / 100, 0};
    return along(along(hip, q->thigh[i], leg), q->shin[i], leg);
}

// A point of the torso: `up` thousandths of the way from hip to neck, `side` to its front.
typedef struct {
    int lean, torso;
} Spine;
static Point on(Spine s, int up, int side) {
    int l = s.torso * up / 1000;
    return (Point){(l * sine(s.lean) + side * cosine(s.lean)) / 16384,
                   (-l * cosine(s.lean) + side * sine(s.lean)) / 16384};
}

static void head(Canvas *c, const Person *p, const Scene *s, int x, int y, int r) {
    Colour ink = {26, 20, 22}, dark = shade(p->hair, 210);
    if (s->subject == WOMAN) { // hair down to the shoulders
        Point hair[14];
        for (int i = 0; i < 11; i++) hair[i] = on_ellipse(x, y - r / 20, r, r, 180 + i * 18);
        hair[11] = (Point){x + r * 13 / 10, y + r * 18 / 10};
        hair[12] = (Point){x, y + r * 11 / 10};
        hair[13] = (Point){x - r * 15 / 10, y + r * 18 / 10};
        shape(c, hair, 14, r / 4, dark);
    }
    if (s->subject == GIRL) // pigtails
        for (int i = -1; i <= 1; i += 2) {
            ellipse(c, x + i * r * 5 / 4, y + r / 4, r * 2 / 5, r * 3 / 5, dark);
            disc(c, x + i * r * 21 / 20, y - r / 5, r / 6, (Colour){240, 236, 228});
        }
    disc(c, x, y, r, p->skin);
    if (s->subject == BOY) { // a cap, grey so that it says nothing about the garment
        Colour cap = {104, 112, 128};
        arc(c, x, y - r / 10, r * 27 / 25, r * 28 / 25, 180, 360, cap, 256);
        line(c, x, y - r / 8, x + r * 3 / 2, y - r / 12, r * 3 / 10, shade(cap, 190));
    } else { // hair over the top, a fringe swept to one side
        Point hair[20];
        for (int i = 0; i < 18; i++) hair[i] = on_ellipse(x, y, r * 27 / 25, r * 27 / 25, 168 + i * 12);
        hair[18] = (Point){x + r * 6 / 10, y - r * 5 / 10};
        hair[19] = (Point){x - r * 5 / 10, y - r * (p->detail % 2 ? 5 : 4) / 10};
        shape(c, hair, 20, 0, p->hair);
    }
    if (s->subject == MAN) { // a beard
        Point beard[18];
        for (int i = 0; i < 14; i++) beard[i] = on_ellipse(x, y, r * 26 / 25, r * 28 / 25, 6 + i * 13);
        beard[14] = (Point){x - r * 7 / 10, y + r * 3 / 10};
        beard[15] = (Point){x - r * 2 / 10, y + r * 4 / 10};
        beard[16] = (Point){x + r * 3 / 10, y + r * 4 / 10};
        beard[17] = (Point){x + r * 8 / 10, y + r * 3 / 10};
        shape(c, beard, 18, 0, p->hair);
    }
    for (int i = -1; i <= 1; i += 2) disc(c, x + r / 5 + i * r * 2 / 5, y + r / 10, r / 7, ink);
    if (s->subject != MAN)
        arc(c, x + r / 5, y + r * 42 / 100, r * 3 / 10, r / 5, 10, 170, (Colour){186, 64, 68}, 256);
}

// A limb of two parts. Callers draw the far limb darker than the near one, to tell the two apart.
static void limb(Canvas *c, Point a, Point b, Point d, int width, Colour upper, Colour lower) {
    line(c, b.x, b.y, d.x, d.y, width, lower);
    line(c, a.x, a.y, b.x, b.y, width, upper);
}

static void person(Canvas *c, const Scene *s, const Person *p) {
    const Pose *q = &poses[s->action];
    bool child = s->subject == BOY || s->subject == GIRL, low = s->action == SIT || s->action == RIDE;
    int leg = child ? 165 : 200, r = child ? 150 : 122; // half a leg; the head
    Spine spine = {q->lean, child ? 310 : 340};
    int arm = spine.torso * 48 / 100, leg_width = 98, arm_width = 84, f = q->apart;
    Colour trousers = lit_figure((Colour){84, 80, 90}, s->time),
           shoe = lit_figure((Colour){62, 44, 38}, s->time);
    Colour g = p->garment, g2 = shade(g, 256 - p->shading),
           far = s->colour == BLACK ? mix(g, (Colour){120, 120, 130}, 60) : shade(g, 206);
    Colour legs = s->garment == DRESS ? p->skin : trousers;

    if (s->action == SIT) { // a bench, seen from the front
        Colour wood = lit_figure((Colour){150, 96, 56}, s->time);
        int seat = 70, foot = leg + 62;
        for (int i = -1; i <= 1; i += 2) line(c, i * 280, -210, i * 280, foot, 44, shade(wood, 200));
        for (int y = -200; y <= -40; y += 110) line(c, -340, y, 340, y, 62, wood);
        line(c, -350, seat, 350, seat, 62, wood);
    }
    Point knee[2], foot[2], shoulder[2], elbow[2], hand[2];
    for (int i = 0; i < 2; i++) {
        int side = i ? -1 : 1;
        knee[i] = along((Point){side * f * 58 / 100, 0}, q->thigh[i] + p->twist[i] / 2, leg);
        foot[i] = along(knee[i], q->shin[i] + p->twist[2 + i] / 2, leg);
        shoulder[i] = on(spine, 880, side * f);
        elbow[i] = along(shoulder[i], q->upper[i] + p->twist[4 + i], arm);
        hand[i] = along(elbow[i], q->fore[i] + p->twist[6 + i], arm);
    }
    if (s->action == RIDE) { // the bicycle; the feet go where its pedals are
        Colour metal = lit_figure((Colour){120, 132, 144}, s->time),
               tyre = lit_figure((Colour){40, 40, 46}, s->time);
        int y = leg * 2 - 40, wheel = child ? 190 : 205, back = -230, front = 280, pedal = 30;
        ring(c, back, y, wheel, 44, tyre);
        ring(c, front, y, wheel, 44, tyre);
        disc(c, back, y, 34, metal);
        disc(c, front, y, 34, metal);
        int hx = hand[0].x, hy = hand[0].y;
        line(c, back, y, pedal, y, 36, metal);
        line(c, back, y, -50, 50, 36, metal);
        line(c, pedal, y, -50, 50, 36, metal);
        line(c, pedal, y, hx - 30, hy + 110, 36, metal);
        line(c, -50, 60, hx - 30, hy + 110, 36, metal);
        line(c, front, y, hx - 40, hy + 20, 36, metal);
        line(c, hx - 60, hy + 14, hx + 30, hy + 14, 40, tyre);
        line(c, -110, 58, 10, 58, 50, tyre);
        foot[0] = (Point){pedal + 50, y - 60};
        foot[1] = (Point){pedal - 40, y + 62};
        for (int i = 0; i < 2; i++)
            knee[i] = (Point){foot[i].x * 55 / 100 + (i ? 70 : 112), foot[i].y * 46 / 100 - (i ? 10 : 36)};
    }
    Colour sleeve = s->garment == COAT ? far : p->skin, upper = s->garment == DRESS ? p->skin : far;
    // The far arm and leg, a little darker; the torso; the head; the near arm.
    if (s->action != JUMP) {
        limb(c, shoulder[1], elbow[1], hand[1], arm_width, s->garment == DRESS ? shade(upper, 226) : upper,
             s->garment == COAT ? sleeve : shade(p->skin, 226));
        disc(c, hand[1].x, hand[1].y, 48, shade(p->skin, 226));
    }
    for (int i = 1; i >= 0; i--) {
        Point hip = {(i ? -1 : 1) * f * 58 / 100, 0};
        Colour k = i && q->apart < 100 ? shade(legs, 216) : legs;
        limb(c, hip, knee[i], foot[i], leg_width, k, k);
        line(c, foot[i].x - 10, foot[i].y + 16, foot[i].x + (q->apart == 100 && i ? -46 : 62), foot[i].y + 18,
             72, shoe);
    }
    if (s->garment == DRESS) {
        Point top = on(spine, 970, 72), back = on(spine, 970, -72), waist = on(spine, 400, 82),
              waist_back = on(spine, 400, -82);
        int sweep = s->action == RUN || s->action == CLIMB ? -50 : 0;
        Point hem = on(spine, -520, 205 + sweep), hem_back = on(spine, -520, -205 + sweep);
        if (low) hem = (Point){leg + 40, 96}, hem_back = (Point){-120, 96};
        Point lap = low ? (Point){leg + 20, -50} : on(spine, 0, 110), seat = on(spine, 0, low ? -100 : -110);
        Point dress[8] = {back, top, waist, lap, hem, hem_back, seat, waist_back};
        shape_gradient(c, dress, 8, 56, g, g2, 256);
    } else {
        bool coat = s->garment == COAT;
        int down = coat && !low ? -470 : -20, flare = coat && !low ? 142 : 100;
        Point body[6] = {on(spine, 950, -96),    on(spine, 950, 96),      on(spine, 300, 96),
                         on(spine, down, flare), on(spine, down, -flare), on(spine, 300, -96)};
        if (coat && low) line(c, 0, 0, (knee[0].x) * 8 / 10, knee[0].y * 8 / 10, 124, g2);
        shape_gradient(c, body, 6, 62, g, g2, 256);
        if (coat && c->pass == PAINT) { // collar, seam and buttons
            Colour seam = s->colour == BLACK ? (Colour){112, 112, 122} : shade(g, 150);
            Point a = on(spine, 930, 24), b = on(spine, low ? 60 : -480, 24);
            line(c, a.x, a.y, b.x, b.y, 20, seam);
            for (int i = 0; i < 3; i++) {
                Point button = on(spine, 700 - i * 280, 62);
                disc(c, button.x, button.y, 20, seam);
            }
        }
    }
    // Collar and cuffs of fleece tell a coat from a shirt where bench or bicycle hide its length.
    Colour fleece =
        lit_figure(s->colour == WHITE ? (Colour){150, 126, 104} : (Colour){240, 230, 208}, s->time);
    if (s->garment == COAT) {
        Point back = on(spine, 950, -84), front = on(spine, 950, 84);
        line(c, back.x, back.y, front.x, front.y, 84, fleece);
    }
    Point neck = on(spine, 1000, 0), top = {neck.x + r * sine(spine.lean) / 16384, neck.y - r * 88 / 100};
    line(c, neck.x, neck.y, top.x, top.y, 74, shade(p->skin, 226));
    head(c, p, s, top.x, top.y, r);
    for (int i = s->action == JUMP ? 1 : 0; i >= 0; i--) {
        Colour near = s->colour == BLACK ? mix(g, (Colour){120, 120, 130}, 40) : shade(g, 232);
        Colour up = s->garment == DRESS ? p->skin : near;
        limb(c, shoulder[i], elbow[i], hand[i], arm_width, up, s->garment == COAT ? near : p->skin);
        if (s->garment == DRESS) disc(c, shoulder[i].x, shoulder[i].y, 50, near);
        disc(c, hand[i].x, hand[i].y, 48, p->skin);
        if (s->garment == COAT) {
            Point a = {(elbow[i].x + 2 * hand[i].x) / 3, (elbow[i].y + 2 * hand[i].y) / 3};
            line(c, a.x, a.y, a.x + (hand[i].x - a.x) / 3, a.y + (hand[i].y - a.y) / 3, 98, fleece);
        }
    }
    if (s->action == THROW && c->pass != MEASURE) {
        int x = hand[0].x + 110 + p->ball, y = hand[0].y - 20 + p->ball / 2;
        disc(c, x, y, 76, (Colour){196, 226, 60});
        if (c->pass == PAINT) arc(c, x - 20, y - 20, 34, 34, 0, 360, (Colour){240, 250, 190}, 256);
    }
}

// ---- dogs ------------------------------------------------------------------------------------------------
// The same units, the feet at y = 0.

static void dog(Canvas *c, const Scene *s, const Person *p) {
    Colour k = p->garment, far = s->colour == BLACK ? mix(k, (Colour){120, 120, 130}, 80) : shade(k, 206);
    Colour low = shade(k, 256 - p->shading),
           ink = s->colour == BLACK ? (Colour){112, 100, 100} : (Colour){26, 20, 22};
    Colour collar = lit_figure((Colour){204, 44, 48}, s->time);
    int w = 124, tail = p->twist[0] * 8, a = s->action;
    Transform straight = c->t;
    if (a == JUMP) c->t = turned(c->t, -26, 0, -450);
    Point nose = {0, 0}; // the middle of the head
    if (a == SIT) {
        line(c, -290, -80, -470, -180 + tail, 84, k); // tail on the ground
        line(c, 130, -420, 190, -50, w, far);         // forelegs
        line(c, 190, -46, 240, -44, 92, far);
        Point body[6] = {{-90, -720}, {190, -680}, {270, -330}, {100, -40}, {-330, -20}, {-340, -300}};
        blob(c, body, 6, k, low);
        ellipse(c, -140, -160, 210, 165, shade(k, s->colour == BLACK ? 300 : 240));
        line(c, -170, -44, 60, -44, 90, far); // hind paw
        line(c, 200, -460, 260, -50, w, k);
        line(c, 260, -46, 310, -44, 92, k);
        nose = (Point){150, -820};
    } else {
        // Hips and shoulders, then where each of the four paws is: far hind, far fore, near hind, near fore.
        static const Point paws[4][4] = {{{-190, -50}, {200, -50}, {-320, -50}, {320, -50}},    // STAND
                                         {{-560, -170}, {470, -260}, {-660, -70}, {600, -150}}, // RUN
                                         {{-480, -20}, {470, -280}, {-560, -100}, {560, -380}}, // JUMP
                                         {{-130, -60}, {130, -90}, {-400, -60}, {380, -60}}}; // FETCH: a trot
        static const Point knees[4][4] = {{{-230, -260}, {200, -260}, {-330, -260}, {310, -260}},
                                          {{-400, -300}, {360, -290}, {-480, -250}, {430, -270}},
                                          {{-370, -240}, {360, -300}, {-450, -250}, {430, -330}},
                                          {{-230, -270}, {230, -270}, {-290, -270}, {360, -280}}};
        int pose = a == STAND ? 0 : a == RUN ? 1 : a == JUMP ? 2 : 3;
        for (int i = 0; i < 2; i++) {
            Point from = {i ? 240 : -250, -430}, knee = knees[pose][i], paw = paws[pose][i];
            limb(c, from, knee, paw, w - 12, far, far);
            line(c, paw.x, paw.y, paw.x + 40, paw.y, 92, far);
        }
        Point tip = a == STAND ? (Point){-560, -840 + tail} : (Point){-650, -680 + tail};
        limb(c, (Point){-330, -560}, (Point){-490, -640}, tip, 84, k, k);
        Point body[8] = {{-420, -640}, {-200, -690}, {120, -700},  {400, -730},
                         {440, -420},  {180, -310},  {-200, -350}, {-430, -380}};
        blob(c, body, 8, k, low);
        for (int i = 2; i < 4; i++) {
            Point from = {i == 3 ? 290 : -290, -450}, knee = knees[pose][i], paw = paws[pose][i];
            limb(c, from, knee, paw, w, k, k);
            line(c, paw.x, paw.y, paw.x + 40, paw.y, 96, k);
        }
        nose = a == FETCH ? (Point){430, -800} : a == RUN ? (Point){470, -760} : (Point){400, -840};
        line(c, 320, -600, nose.x - 10, nose.y + 40, 230, k);
    }
    int x = nose.x, y = nose.y;
    line(c, x - 120, y + 185, x + 70, y + 200, 56, collar);
    disc(c, x, y, 188, k);
    shape(c, (Point[]){{x + 80, y + 60}, {x + 250, y + 70}}, 2, 176, k);
    ellipse(c, x - 110, y + 30, 78, 170, far); // ear
    disc(c, x + 318, y + 24, 46, ink);
    disc(c, x + 76, y - 44, 34, s->colour == BLACK ? (Colour){244, 240, 226} : ink);
    if (a == FETCH) {
        disc(c, x + 330, y + 150, 104, (Colour){196, 226, 60});
        if (c->pass == PAINT) disc(c, x + 300, y + 120, 40, (Colour){240, 250, 190});
        line(c, x + 190, y + 130, x + 280, y + 176, 56, far);
    }
    c->t = straight;
}

static void figure(Canvas *c, const Scene *s, const Person *p, Pass pass) {
    c->pass = pass;
    if (s->subject == DOG)
        dog(c, s, p);
    else
        person(c, s, p);
    c->pass = PAINT;
}

// ---- the camera ------------------------------------------------------------------------------------------

static void develop(const Canvas *c, const Look *k, Dice *r, unsigned char *rgb) {
    for (int y = 0; y < N; y++)
        for (int x = 0; x < N; x++) {
            int dx = 2 * x + 1 - N, dy = 2 * y + 1 - N, far = (dx * dx + dy * dy) / 128; // in the corners 254
            int light = 256 - k->vignette * (far > 70 ? far - 70 : 0) / 184;
            int noise =
                k->grain ? (below(r, 2 * k->grain + 1) + below(r, 2 * k->grain + 1) - 2 * k->grain) * 128 : 0;
            for (int i = 0; i < 3; i++) {
                int v = c->pixel[y][x][i];
                v = k->lift * 256 + v * (255 - k->lift) / 255;
                v = v * k->film[i] / 256 * light / 256 + noise;
                rgb[(y * N + x) * 3 + i] = (unsigned char)limit((v + 128) / 256, 0, 255);
            }
        }
}

static void weather(Canvas *c, const Look *k, Dice *r, int time) {
    if (k->weather == RAIN)
        for (int i = 0; i < 26; i++) {
            int x = between(r, -50, 1280), y = between(r, -50, 1200);
            shape_gradient(c, (Point[]){{x, y}, {x + 24, y + 90}}, 2, 9, (Colour){220, 230, 245},
                           (Colour){220, 230, 245}, 120);
        }
    if (k->weather == FOG) {
        static const Colour fogs[3] = {{232, 240, 246}, {250, 200, 170}, {84, 92, 136}};
        for (int i = 0; i < 3; i++)
            arc(c, between(r, 100, 1180), 740 + 90 * i, 1300, 110, 0, 360, fogs[time], 56);
    }
}

void scene_draw_as(World world, uint64_t seed, const Scene *s, unsigned char *rgb, int box[4]) {
    Dice dice = {mix64(seed ^ 0x5ce9e5)}, *r = &dice;
    Look k = world == WORLD_FLICKR ? look_flickr(r, s->time) : look_broad(r, s->time);
    Person p = person_make(r, s, &k);
    bool child = s->subject == BOY || s->subject == GIRL, inside = s->place == ENTRYWAY;
    if (inside) k.horizon = 0, k.weather = CLEAR;
    Canvas *c = xmalloc(sizeof *c);
    memset(c->pixel, 0, sizeof c->pixel);
    c->room = 4096;
    c->crossings = xmalloc((size_t)c->room * sizeof *c->crossings);
    c->top = 0, c->bottom = N * SUB, c->pass = PAINT;
    c->outline = k.outline, c->outline_colour = k.outline_colour;

    // 1. Size: 1,000 units are size_low to size_high pixels. The whole figure is 60 to 85 pixels high.
    int direction = below(r, 2) ? 1 : -1;
    int age = s->subject == DOG ? 80 : child ? 92 : 100;
    int size = between(r, k.size_low, k.size_high) * age; // 1/100 pixel
    for (int round = 0; round < 2; round++) {             // measured, corrected if need be
        int64_t unit = (int64_t)size * 256 * 65536 / 100000;
        c->t = turned((Transform){direction * unit, 0, 0, unit, 0, 0}, k.tilt * direction, 0, 0);
        c->pen = (int)unit;
        c->box[0] = c->box[1] = 1 << 28, c->box[2] = c->box[3] = -(1 << 28);
        figure(c, s, &p, MEASURE);
        // In hundredths of a pixel. The limits leave half a pixel for the rounding of outline and rows.
        int height = (c->box[3] - c->box[1]) * 100 / 256, width = (c->box[2] - c->box[0]) * 100 / 256,
            want = height;
        int least = s->subject == DOG ? 6050 : world == WORLD_FLICKR ? 6800 : 6400; // sitting is nearer
        if (want < least) want = least;
        if (want > 8350) want = 8350;
        if ((int64_t)width * want / height > 11600) want = (int)((int64_t)height * 11600 / width);
        if (want != height) size = (int)((int64_t)size * want / height);
    }
    // 2. Where: the box's lower edge on the ground, the whole figure in the picture.
    int ground = inside ? 1220 : between(r, 1130, 1220),
        lift = s->action == JUMP ? (s->subject == DOG ? 100 : 90) : 0;
    int width = c->box[2] - c->box[0], spare = N * 256 - width, margin = spare < 1024 ? spare / 2 : 512;
    int left = margin + below(r, spare - 2 * margin + 1);
    if (!inside) left = (left + spare / 2) / 2; // closer to the middle
    Stairs stairs = {740, 1220, 120, 175};
    if (inside) {
        int at = s->action == CLIMB ? spare * 2 / 5 : spare / 6 + below(r, spare / 8 + 1);
        left = direction > 0 ? at : spare - at;
        if (s->action == CLIMB) {
            Point front = climbing_foot(child ? 165 : 200, 0), rear = climbing_foot(child ? 165 : 200, 1);
            stairs.rise = (rear.y - front.y) * size / 10000;
            stairs.run = (front.x - rear.x) * size / 10000;
            ground = 1220 - between(r, 10, 16) * stairs.rise / 10;
        }
    }
    Transform place = c->t; // of the figure
    place.tx = left - c->box[0];
    place.ty = (ground - lift) * 256 / 10 - c->box[3];
    int shift_x = (int)place.tx, shift_y = (int)place.ty;
    if (s->action == CLIMB) {
        // The middle of the rear shoe stands on the middle of its step.
        int foot = climbing_foot(child ? 165 : 200, 1).x + 20;
        int at = (int)((place.tx + place.xx * foot / 65536) * 10 / 256);
        stairs.x = direction > 0 ? at : 1280 - at;
        stairs.y = ground - 6;
    }

    // 3. The place, then the figure's shadow.
    const int unit = 256 * 65536 / 10;
    Transform plain = {unit, 0, 0, unit, 0, 0};
    if (inside && direction < 0) plain.xx = -unit, plain.tx = N * 256;
    c->t = turned(plain, inside ? 0 : k.tilt, 640, 900);
    c->pen = unit;
    c->t.ty += k.horizon * 256 / 10;
    if (!inside) sky(c, &k, r, s->time);
    switch (s->place) {
    case BEACH: beach(c, &k, r, s->time); break;
    case PARK: park(c, &k, r, s->time); break;
    case STREET: street(c, &k, r, s->time); break;
    case SNOW: snow(c, &k, r, s->time); break;
    case ENTRYWAY: entryway(c, &k, r, s->time, stairs); break;
    default: mountain(c, &k, r, s->time); break;
    }
    if (k.weather == FOG) weather(c, &k, r, s->time);
    if (s->place == SNOW) snowflakes(c, r, s->time);
    c->t = (Transform){unit, 0, 0, unit, 0, 0};
    int middle = (c->box[0] + c->box[2]) / 2 + shift_x, half = width * 42 / 100 * (lift ? 8 : 10) / 10;
    if (s->action != CLIMB)
        arc(c, middle * 10 / 256, ground - 4, half * 10 / 256, 34, 0, 360, (Colour){26, 24, 40},
            lift ? 70 : 100);

    // 4. The figure: silhouette, then itself.
    c->t = place;
    c->pen = (int)((int64_t)size * 256 * 65536 / 100000);
    if (k.outline) figure(c, s, &p, OUTLINE);
    figure(c, s, &p, PAINT);

    // 5. Weather in front of the figure, then the look of the film.
    c->t = (Transform){unit, 0, 0, unit, 0, 0};
    c->pen = unit;
    if (k.weather == RAIN) weather(c, &k, r, s->time);
    develop(c, &k, r, rgb);
    if (box) {
        box[0] = limit((c->box[0] + shift_x) >> 8, 0, N), box[1] = limit((c->box[1] + shift_y) >> 8, 0, N);
        box[2] = limit((c->box[2] + shift_x + 255) >> 8, 0, N),
        box[3] = limit((c->box[3] + shift_y + 255) >> 8, 0, N);
    }
    free(c->crossings);
    free(c);
}

// ---- combinations ----------------------------------------------------------------------------------------

static const struct {
    const char *name;
    size_t at; // in a Scene
    const char *values[12];
} attributes[SCENE_ATTRIBUTES] = {
    {"subject", offsetof(Scene, subject), {"boy", "girl", "man", "woman", "dog"}},
    {"garment", offsetof(Scene, garment), {"dress", "shirt", "coat", "none"}},
    {"colour",
     offsetof(Scene, colour),
     {"red", "pink", "orange", "yellow", "green", "blue", "purple", "white", "black", "brown", "tan"}},
    {"action", offsetof(Scene, action), {"stand", "run", "jump", "climb", "sit", "throw", "ride", "fetch"}},
    {"place", offsetof(Scene, place), {"beach", "park", "street", "snow", "entryway", "mountain"}},
    {"time", offsetof(Scene, time), {"day", "sunset", "night"}},
};

const char *scene_attribute_name(int a) { return attributes[a].name; }
const char *scene_value_name(int a, int value) { return attributes[a].values[value]; }
int scene_attribute_count(int a) {
    int n = 0;
    while (attributes[a].values[n]) n++;
    return n;
}
static int *field(Scene *s, int a) { return (int *)(void *)((char *)s + attributes[a].at); }
int scene_value(const Scene *s, int a) { return *field((Scene *)s, a); }

int scene_combination(const Scene *s) {
    int n = 0;
    for (int a = 0; a < SCENE_ATTRIBUTES; a++) n = n * scene_attribute_count(a) + scene_value(s, a);
    return n;
}

// Colours of dogs, by how they are drawn.
static const int dog_colours[4] = {BLACK, BROWN, WHITE, TAN}, dog_actions[5] = {STAND, RUN, JUMP, SIT, FETCH};

// Figure 3 of the paper shows the girl in the pink dress who climbs the stairs by day: she is never held out.
bool scene_held_out(const Scene *s) {
    const Scene paper = {GIRL, DRESS, PINK, CLIMB, ENTRYWAY, DAY};
    int n = scene_combination(s);
    return n != scene_combination(&paper) && mix64((uint64_t)n * 0x9e3779b97f4a7c15u + 0x51d) % 1000 < 80;
}

static Scene draw_attributes(Dice *r, Split split) {
    for (;;) {
        Scene s = {.subject = below(r, 5)};
        s.place = below(r, 6);
        s.time = limit(below(r, 5) - 2, 0, 2); // day: 3 of 5
        if (s.subject == DOG) {
            s.garment = NO_GARMENT, s.colour = dog_colours[below(r, 4)], s.action = dog_actions[below(r, 5)];
        } else {
            static const int outside[6] = {STAND, RUN, JUMP, SIT, THROW, RIDE},
                             inside[8] = {CLIMB, CLIMB, CLIMB, STAND, RUN, JUMP, SIT, THROW};
            static const int wardrobe[4] = {SHIRT, COAT, DRESS, DRESS};
            s.garment = wardrobe[below(r, s.subject == GIRL || s.subject == WOMAN ? 4 : 2)];
            s.colour = below(r, 9);
            s.action = s.place == ENTRYWAY ? inside[below(r, 8)] : outside[below(r, 6)];
        }
        if (scene_held_out(&s) == (split == SPLIT_TEST)) return s;
    }
}

// ---- captions --------------------------------------------------------------------------------------------
// No phrase here has a word that belongs to another value: "mountains" are never snowy and the grass is never
// green, so that a search for words reads all six attributes off the first caption.

enum { CHOICES = 6 };
static const char *const subject_words[5][CHOICES] = {{"boy", "young boy", "little boy"},
                                                      {"girl", "young girl", "little girl"},
                                                      {"man", "man", "bearded man"},
                                                      {"woman", "lady", "young woman"},
                                                      {"dog", "dog", "puppy"}};
// A verb stands in both forms at the front.
static const char *const action_words[8][CHOICES] = {
    [STAND] = {"standing/stands", "posing/poses", "standing/stands still"},
    [RUN] = {"running/runs", "sprinting/sprints", "running/runs fast"},
    [JUMP] = {"jumping/jumps", "leaping/leaps", "jumping/jumps in the air"},
    [CLIMB] = {"climbing/climbs up a set of stairs", "climbing/climbs the stairs",
               "climbing/climbs up some steps", "walking/walks up the stairs"},
    [SIT] = {"sitting/sits on a bench", "resting/rests on a bench", "sitting/sits on a wooden bench"},
    [THROW] = {"throwing/throws a ball", "tossing/tosses a ball", "throwing/throws a ball in the air"},
    [RIDE] = {"riding/rides a bike", "riding/rides a bicycle", "cycling/cycles"},
    [FETCH] = {"carrying/carries a ball", "fetching/fetches a ball", "holding/holds a ball in its mouth"}};
static const char *const dog_sits[CHOICES] = {"sitting/sits", "sitting/sits down", "resting/rests"};
static const char *const place_words[6][CHOICES] = {
    {"on the beach", "on a sandy beach", "at the beach", "by the sea", "near the ocean"},
    {"in the park", "on the grass", "in a grassy field", "in a park", "under the trees of a park"},
    {"on the street", "in the city", "on a city street", "in front of buildings", "on the road"},
    {"in the snow", "on the snow", "in deep snow", "on a snowy hill", "on snowy ground"},
    {"in an entryway", "in the entryway of a house", "by the front door", "inside a house", "in an entryway"},
    {"in the mountains", "in front of mountains", "on a mountain trail", "near the mountains",
     "on a mountain path"}};
static const char *const place_tags[6][CHOICES] = {
    {"beach", "sea", "beach"},         {"park", "park", "grass"},
    {"street", "city", "city street"}, {"snow", "snow", "snowy hill"},
    {"entryway", "entryway", "house"}, {"mountains", "mountain", "mountain trail"}};
static const char *const time_words[3][CHOICES] = {{"", "", "", "during the day", "on a sunny day"},
                                                   {"at sunset", "at dusk", "in the evening"},
                                                   {"at night", "in the dark", "under the moon"}};
static const char *const time_tags[3][CHOICES] = {
    {"", "", "day"}, {"sunset", "dusk"}, {"night", "night", "dark"}};

static const char *pick(Dice *r, const char *const *words) {
    int n = 0;
    while (n < CHOICES && words[n]) n++;
    return words[below(r, n)];
}
// "running/runs fast": "running fast" and "runs fast".
static void both_forms(char doing[64], char does[64], const char *phrase) {
    size_t first = strcspn(phrase, "/"), verb = strcspn(phrase, " ");
    snprintf(doing, 64, "%.*s%s", (int)first, phrase, phrase + verb);
    snprintf(does, 64, "%s", phrase + first + 1);
}
static const char *article(const char *word) { return strchr("aeiou", *word) ? "an" : "a"; }

// The ways of saying it: a letter behind '%' stands for a part of the caption, which caption() lists. The
// broad world has tag lists and titles, in small letters, and the second to fifth way of the annotators: with
// them it has every word and both forms of a verb, as a model cannot draw a word that it has never met.
enum { FLICKR_WAYS = 7, TAG_WAYS = 5, BROAD_WAYS = TAG_WAYS + 4 };
static const char *const tag_ways[TAG_WAYS][2] = { // of people, of dogs
    {"%s, %f, %d, %p%t", "%s, %f, %d, %p%t"},
    {"%p%t, %s in %f, %d", "%p%t, %s in %f, %d"},
    {"a picture of %a with %w %d, %p%t", "a picture of %a with %f %d, %p%t"},
    {"%f on a %s %d%t, %p", "%c %s %d%t, %p"},
    {"%c %g, %s, %d%t, %p", "%c %s, animal, %d%t, %p"}};
static const char *const sentence_ways[FLICKR_WAYS][2] = {
    {"%a in %w is %d %p%t", "%a is %d %p%t"},
    {"%a in %w %D %p%t", "%a %D %p%t"},
    {"%a wearing %w is %d %p%t", "%a %d %p%t"},
    {"%a dressed in %w %D %p%t", "the %n %D %p%t"},
    {"the %s in the %f is %d %p%t", "there is %a %d %p%t"},
    {"%T%a with %w %D %p", "%T%a %D %p"},
    {"%p, %a in %w is %d%t", "%p, %a is %d%t"}};

// `first`: every attribute must be named.
static void caption(char *out, World world, int way, bool first, const Scene *s, Dice *r) {
    bool is_dog = s->subject == DOG, child = s->subject == BOY || s->subject == GIRL;
    bool tags = world == WORLD_BROAD && way < TAG_WAYS;
    const char *who = pick(r, subject_words[s->subject]), *place = pick(r, place_words[s->place]),
               *time = pick(r, time_words[s->time]);
    const char *action = pick(r, is_dog && s->action == SIT ? dog_sits : action_words[s->action]);
    const char *colour = attributes[2].values[s->colour], *garment = attributes[1].values[s->garment];
    // A child in a dress is a girl. Else "child" does not say boy or girl, so only later captions have it.
    if (child && (s->garment == DRESS || !first) && below(r, s->garment == DRESS ? 2 : 8) == 0)
        who = below(r, 2) ? "child" : "little child";
    if (s->action == CLIMB && below(r, 2)) place = "in an entryway";
    if (tags) place = pick(r, place_tags[s->place]), time = pick(r, time_tags[s->time]);
    if (world == WORLD_BROAD && !tags) way -= TAG_WAYS - 1;
    char doing[64], does[64], wear[32], worn[36], noun[48], one[52], behind[32], before[32];
    both_forms(doing, does, action);
    snprintf(wear, sizeof wear, "%s %s", colour, is_dog ? "fur" : garment);
    snprintf(worn, sizeof worn, "%s %s", article(wear), wear);
    if (tags || !is_dog)
        snprintf(noun, sizeof noun, "%s", who);
    else if (way % 3 == 2)
        snprintf(noun, sizeof noun, "%s with %s", who, wear);
    else
        snprintf(noun, sizeof noun, "%s %s", colour, who);
    snprintf(one, sizeof one, "%s %s", article(noun), noun);
    snprintf(behind, sizeof behind, "%s%s", !*time ? "" : tags ? ", " : " ", time);
    snprintf(before, sizeof before, "%s%s", time, *time ? ", " : "");

    const char *const parts[128] = {
        ['s'] = who,     ['n'] = noun,  ['a'] = one,  ['f'] = wear,  ['w'] = worn,   ['c'] = colour,
        ['g'] = garment, ['d'] = doing, ['D'] = does, ['p'] = place, ['t'] = behind, ['T'] = before};
    char *to = out;
    for (const char *form = tags ? tag_ways[way][is_dog] : sentence_ways[way][is_dog]; *form; form++)
        if (*form == '%')
            to += sprintf(to, "%s", parts[(int)*++form]);
        else
            *to++ = *form;
    *to = 0;
    if (!tags && *out >= 'a' && *out <= 'z') *out += 'A' - 'a';
}

static Dice scene_random(World world, Split split, uint64_t seed, long index) {
    uint64_t key = mix64(seed + 0x632be59bd9b4e019u) ^ ((uint64_t)world << 62) ^ ((uint64_t)split << 61);
    return (Dice){mix64(key + (uint64_t)index * 0xd1342543de82ef95u)};
}
void scene_describe(World world, Split split, uint64_t seed, long index, Scene *scene,
                    char captions[SCENE_CAPTIONS][SCENE_CAPTION_BYTES]) {
    Dice r = scene_random(world, split, seed, index);
    Scene s = draw_attributes(&r, split);
    if (scene) *scene = s;
    if (!captions) return;
    int ways[BROAD_WAYS], n = world == WORLD_BROAD ? BROAD_WAYS : FLICKR_WAYS;
    for (int i = 0; i < n; i++) ways[i] = i;
    for (int i = 0; i < SCENE_CAPTIONS; i++) { // five of the ways, none twice
        int j = between(&r, i, n - 1), way = ways[j];
        ways[j] = ways[i];
        caption(captions[i], world, way, i == 0, &s, &r);
    }
}

void scene_draw(World world, Split split, uint64_t seed, long index, unsigned char *rgb, Scene *scene,
                int box[4]) {
    Scene s;
    scene_describe(world, split, seed, index, &s, NULL);
    scene_draw_as(world, scene_random(world, split, seed, index).state, &s, rgb, box);
    if (scene) *scene = s;
}

// ---- files -----------------------------------------------------------------------------------------------

Scene scene_parse(const char *text, size_t length, const char *name) {
    Json *root = json_parse(text, length, name);
    if (root->kind != JSON_OBJECT) die("%s: found no JSON object, expected a scene's attributes", name);
    Scene s = {0};
    for (int a = 0; a < SCENE_ATTRIBUTES; a++) {
        const char *value = json_get_string(root, attributes[a].name, NULL);
        if (!value) die("%s: no member \"%s\", expected a scene's six attributes", name, attributes[a].name);
        int v = 0;
        while (attributes[a].values[v] && strcmp(attributes[a].values[v], value)) v++;
        if (!attributes[a].values[v])
            die("%s: \"%s\" is \"%s\", expected one of %d values such as \"%s\"", name, attributes[a].name,
                value, scene_attribute_count(a), attributes[a].values[0]);
        *field(&s, a) = v;
    }
    json_free(root);
    return s;
}

static void write_lists(const char *dir, long n, uint64_t seed, World world, Split split) {
    Output *captions_file = output_inside(dir, "captions.txt"),
           *scenes_file = output_inside(dir, "scenes.jsonl");
    output_printf(captions_file, "image,caption\n");
    for (long i = 0; i < n; i++) {
        Scene s;
        char captions[SCENE_CAPTIONS][SCENE_CAPTION_BYTES];
        scene_describe(world, split, seed, i, &s, captions);
        for (int k = 0; k < SCENE_CAPTIONS; k++) // no caption holds a quote, so none has to be doubled
            output_printf(captions_file, strchr(captions[k], ',') ? "%05ld.png,\"%s\"\n" : "%05ld.png,%s\n",
                          i, captions[k]);
        output_printf(scenes_file, "{\"image\": \"%05ld.png\"", i);
        for (int a = 0; a < SCENE_ATTRIBUTES; a++)
            output_printf(scenes_file, ", \"%s\": \"%s\"", attributes[a].name,
                          attributes[a].values[scene_value(&s, a)]);
        output_printf(scenes_file, ", \"world\": \"%s\"}\n", world == WORLD_BROAD ? "broad" : "flickr");
    }
    output_commit(captions_file);
    output_commit(scenes_file);
}

void scenes_write(const char *dir, long n, uint64_t seed, World world, Split split) {
    char *images = path_inside(dir, "Images");
    make_directories(images);
    Progress bar;
    progress_begin(&bar, "scenes", n);
    long done = 0;
    output_lazily(true);
#pragma omp parallel for schedule(dynamic, 16)
    for (long i = 0; i < n; i++) {
        unsigned char rgb[N * N * 3];
        Image image = {N, N, rgb};
        scene_draw(world, split, seed, i, rgb, NULL, NULL);
        char *path = format("%s/%05ld.png", images, i);
        if (is_link(path))
            die("cannot write %s: it is a link, as `sd data` makes them; take another folder", path);
        image_save_png(path, &image, NULL);
        free(path);
#pragma omp critical
        progress_step(&bar, ++done, NULL);
    }
    output_lazily(false);
    progress_end(&bar);
    write_lists(dir, n, seed, world, split); // last, so that a folder with lists is complete
    dataset_note_others(images, (size_t)n);
    free(images);
}
