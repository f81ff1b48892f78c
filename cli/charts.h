// charts.h: bar and line charts as inline SVG for `sd report`. Colours are the page's: classes c0, c1, ... fill, k0, k1,
// ... stroke; class "axis" for lines and "mark" for error bars. Text is the page's own, so that it stays legible.
#ifndef CHARTS_H
#define CHARTS_H

#include "lib/base.h"

enum { BAR_PARTS = 3 };
typedef struct {
    const char *label;
    double part[BAR_PARTS]; // lengths, one behind the other; most bars have one
    double low, high;       // error bar; NAN: none
    int colour;             // of the first part; the next ones take the next
    bool hollow;            // somebody else's figure
} Bar;
// A bar that is NAN is left out; without any, nothing is drawn. digits: behind the point of the figure beside a bar.
void chart_bars(Output *o, const char *title, const char *unit, int digits, const Bar *bars, int count);

typedef struct {
    const char *label;
    int colour, count;
    const double *x, *y;
} Line;
typedef struct {
    const char *title, *x_title;
    bool x_doubling; // the x axis has a tick at each x, at equal distances for 1, 2, 4, 8
    bool y_log;
    bool y_from_zero;
} LineChart;
void chart_lines(Output *o, LineChart c, const Line *lines, int count);
// A small one without legend: the course of one training run.
void chart_spark(Output *o, const char *title, const Line *line);

char *base64(const unsigned char *data, size_t bytes);
void html_text(Output *o, const char *s); // escaped

#endif
