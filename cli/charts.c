// charts.c: numbers -> SVG. See charts.h.
#include "charts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void html_text(Output *o, const char *s) {
    for (; *s; s++) {
        const char *entity = *s == '<'   ? "&lt;"
                             : *s == '>' ? "&gt;"
                             : *s == '&' ? "&amp;"
                             : *s == '"' ? "&quot;"
                                         : NULL;
        if (entity)
            output_printf(o, "%s", entity);
        else
            output_write(o, s, 1);
    }
}

char *base64(const unsigned char *data, size_t bytes) {
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

static void open_figure(Output *o, const char *class, const char *title, double width, double height) {
    output_printf(o, "<figure class=\"%s\"><figcaption>", class);
    html_text(o, title);
    output_printf(o, "</figcaption><svg viewBox=\"0 0 %g %g\" role=\"img\" aria-label=\"", width, height);
    html_text(o, title);
    output_printf(o, "\">\n");
}

// ---- bars -------------------------------------------------------------------------------------------------------

static double length_of(const Bar *b) {
    double sum = b->part[0];
    for (int i = 1; i < BAR_PARTS; i++) sum += b->part[i];
    return sum;
}

void chart_bars(Output *o, const char *title, const char *unit, int digits, const Bar *bars, int count) {
    enum { LEFT = 150, WIDTH = 400, ROW = 26, THICK = 16, ROOM = 150 }; // ROOM: the longest bar
    double top = 0;
    int shown = 0;
    for (int i = 0; i < count; i++) {
        double length = length_of(&bars[i]);
        if (!isfinite(length)) continue;
        top = fmax(top, isnan(bars[i].high) ? length : fmax(length, bars[i].high));
        shown++;
    }
    if (!shown || top <= 0) return;
    open_figure(o, "chart", title, WIDTH, ROW * shown + 4);
    double scale = ROOM / top;
    int y = 4;
    for (int i = 0; i < count; i++) {
        const Bar *b = &bars[i];
        double length = length_of(b), x = LEFT;
        if (!isfinite(length)) continue;
        output_printf(o, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">", LEFT - 8, y + 13);
        html_text(o, b->label);
        output_printf(o, "</text>");
        for (int k = 0; k < BAR_PARTS; k++) {
            if (b->part[k] <= 0) continue;
            output_printf(o, "<rect class=\"%s%d\" x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\"/>",
                          b->hollow ? "hollow k" : "c", b->colour + k, x, y, fmax(1, b->part[k] * scale),
                          THICK);
            x += b->part[k] * scale;
        }
        double end = x;
        if (!isnan(b->low) && !isnan(b->high)) {
            double from = LEFT + b->low * scale, to = LEFT + b->high * scale;
            output_printf(o, "<path class=\"mark\" d=\"M%.1f %dH%.1fM%.1f %dv8M%.1f %dv8\"/>", from,
                          y + THICK / 2, to, from, y + THICK / 2 - 4, to, y + THICK / 2 - 4);
            end = fmax(end, to);
        }
        output_printf(o, "<text x=\"%.1f\" y=\"%d\">%.*f%s</text>\n", end + 6, y + 13, digits, length, unit);
        y += ROW;
    }
    output_printf(o, "</svg></figure>\n");
}

// ---- lines ------------------------------------------------------------------------------------------------------

typedef struct {
    double low, high, from, to; // of the numbers, and of the place
    bool log;
} Axis;

static double place(Axis a, double x) {
    double low = a.log ? log(a.low) : a.low, high = a.log ? log(a.high) : a.high, at = a.log ? log(x) : x;
    return a.from + (a.to - a.from) * (high > low ? (at - low) / (high - low) : 0.5);
}

// The step between ticks: 1, 2 or 5 times a power of ten, some four of them over the range.
static double tick_step(double range) {
    double raw = range / 4, power = pow(10, floor(log10(raw))), first = raw / power;
    return power * (first < 1.5 ? 1 : first < 3.5 ? 2 : first < 7.5 ? 5 : 10);
}

static void reach(Axis *a, const double *v, int n, bool positive) {
    for (int i = 0; i < n; i++)
        if (isfinite(v[i]) && (!positive || v[i] > 0))
            a->low = fmin(a->low, v[i]), a->high = fmax(a->high, v[i]);
}

// M x y L x y ..., and a dot at each point where there are few. below, above: how many lines are drawn before this one and
// after it; later ones have gaps and smaller dots, so that an equal one shows through.
static void draw_line(Output *o, const Line *l, Axis x, Axis y, int below, int above) {
    output_printf(o, "<path class=\"line k%d\"", l->colour);
    if (below) output_printf(o, " stroke-dasharray=\"%d %d\"", 6 * (above + 1), 6 * below);
    output_printf(o, " d=\"");
    bool begun = false;
    for (int i = 0; i < l->count; i++) {
        if (!isfinite(l->y[i]) || (y.log && l->y[i] <= 0)) continue;
        output_printf(o, "%s%.1f %.1f", begun ? "L" : "M", place(x, l->x[i]), place(y, l->y[i]));
        begun = true;
    }
    output_printf(o, "%s\"/>", begun ? "" : "M0 0");
    for (int i = 0; i < l->count && l->count <= 16; i++)
        if (isfinite(l->y[i]))
            output_printf(o, "<circle class=\"c%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"%g\"/>", l->colour,
                          place(x, l->x[i]), place(y, l->y[i]), 3.5 + 1.5 * above);
    output_printf(o, "\n");
}

void chart_lines(Output *o, LineChart c, const Line *lines, int count) {
    enum { WIDTH = 400, HEIGHT = 240, LEFT = 48, RIGHT = 14, TOP = 10, BOTTOM = 42 };
    Axis x = {INFINITY, -INFINITY, LEFT, WIDTH - RIGHT, c.x_doubling},
         y = {INFINITY, -INFINITY, HEIGHT - BOTTOM, TOP, c.y_log};
    for (int i = 0; i < count; i++)
        reach(&x, lines[i].x, lines[i].count, false), reach(&y, lines[i].y, lines[i].count, c.y_log);
    if (!(x.low <= x.high) || !(y.low <= y.high)) return;
    if (c.y_from_zero) y.low = 0;
    double step = tick_step(fmax(y.high - y.low, 1e-9));
    if (!c.y_log) y.low = floor(y.low / step) * step, y.high = ceil(y.high / step) * step;
    open_figure(o, "chart", c.title, WIDTH, HEIGHT);
    for (double t = y.low; t <= y.high + step / 2 && !c.y_log; t += step)
        output_printf(
            o,
            "<path class=\"axis\" d=\"M%d %.1fH%d\"/><text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>",
            LEFT, place(y, t), WIDTH - RIGHT, LEFT - 6, place(y, t) + 4, fabs(t) < step / 1e6 ? 0 : t);
    double drawn[32];
    int ticks = 0;
    for (int i = 0; i < count; i++) // a tick at each x, once
        for (int k = 0; k < lines[i].count && ticks < 32; k++) {
            bool known = false;
            for (int j = 0; j < ticks; j++) known |= drawn[j] == lines[i].x[k];
            if (known) continue;
            drawn[ticks++] = lines[i].x[k];
            output_printf(o, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g</text>",
                          place(x, lines[i].x[k]), HEIGHT - BOTTOM + 17, lines[i].x[k]);
        }
    output_printf(o, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">", (LEFT + WIDTH - RIGHT) / 2,
                  HEIGHT - 6);
    html_text(o, c.x_title);
    output_printf(o, "</text>\n");
    for (int i = 0; i < count; i++) draw_line(o, &lines[i], x, y, i, count - 1 - i);
    output_printf(o, "</svg><p class=\"legend\">");
    for (int i = 0; i < count; i++) {
        output_printf(o,
                      "<span><svg viewBox=\"0 0 12 12\" class=\"swatch\" aria-hidden=\"true\"><rect "
                      "class=\"c%d\" width=\"12\" height=\"12\"/></svg> ",
                      lines[i].colour);
        html_text(o, lines[i].label);
        output_printf(o, "</span> ");
    }
    output_printf(o, "</p></figure>\n");
}

void chart_spark(Output *o, const char *title, const Line *line) {
    enum { WIDTH = 300, HEIGHT = 130, LEFT = 60, RIGHT = 10, TOP = 10, BOTTOM = 24 };
    Axis x = {INFINITY, -INFINITY, LEFT, WIDTH - RIGHT, false},
         y = {INFINITY, -INFINITY, HEIGHT - BOTTOM, TOP, false};
    reach(&x, line->x, line->count, false), reach(&y, line->y, line->count, false);
    if (!(x.low <= x.high) || !(y.low <= y.high)) return;
    y.log = y.low > 0;
    open_figure(o, "spark", title, WIDTH, HEIGHT);
    output_printf(o, "<path class=\"axis\" d=\"M%d %dV%dH%d\"/>", LEFT, TOP, HEIGHT - BOTTOM, WIDTH - RIGHT);
    output_printf(o,
                  "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%.2g</text><text x=\"%d\" y=\"%d\" "
                  "text-anchor=\"end\">%.2g</text>",
                  LEFT - 4, TOP + 8, y.high, LEFT - 4, HEIGHT - BOTTOM, y.low);
    output_printf(o, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%g steps</text>\n", WIDTH - RIGHT,
                  HEIGHT - 7, x.high);
    draw_line(o, line, x, y, 0, 0);
    output_printf(o, "</svg></figure>\n");
}
