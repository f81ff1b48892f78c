// judge.h: the toy world's judge. A small Inception (fid.c) and, behind its features, a linear layer that
// reads the attributes of a scene off its picture, a head an attribute. Two things are measured with it:
// prompt fidelity, the fraction of attributes that a drawn picture shows as its caption asked for them, and
// the toy FID, on the features.
#ifndef JUDGE_H
#define JUDGE_H

#include "sd.h"

// The configuration of the Inception has two more entries here:
//   "heads": {"subject": ["boy", "girl", ...], ...}    an attribute's classes, in the order of fc's rows
//   "ceiling": 0.997    once trained: the fraction of attributes that it reads right on true scenes
typedef struct {
    Inception *net;
    Layer *fc; // features -> logits, one head behind another; its parameters follow those of net
    Json *config;
    const Json *heads;
    double ceiling; // negative: not known
} Judge;
Judge *judge_new(const char *config); // declares; nothing loaded
Judge *judge_load(const char *path);
void judge_free(Judge *j);
// The most likely class of each head, (n, heads), of pictures' features (n, dim). A new array.
int *judge_answers(const Judge *j, const float *features, int n);

// The fraction of attributes that the pictures 00000.png, 00001.png, ... of `dir` show as its prompts.jsonl
// asks, a line a picture: of each head, and returned their mean, with its 95 % interval. count: of the
// pictures that could be read.
double judge_pictures(const Judge *j, const char *dir, FidOptions o, double *fraction, double interval[2],
                      long *count);

// After training, the statistics of batch norm: between the two calls pictures go through the network; the
// second sets every running_mean and running_var to what came out of the convolutions.
void judge_gather_begin(void);
void judge_gather_end(Judge *j);

#endif
