// dataset.c (test): a tiny data set in every layout, mistakes that real files have, and 600 photos of
// Flickr8k where they are available.
#define _POSIX_C_SOURCE 200809L
#include "files.h"
#include "lib/io/pairs.h"

#include <sys/stat.h>

// Makes a data set: a captions file and a folder of pictures, empty files that are never opened.
static const char *make_set(const char *name, const char *file, const char *text, const char *pictures,
                            const char *const *names) {
    char path[900];
    const char *dir = format("%s", in_folder(name)); // a copy: in_folder() reuses its memory
    mkdir(dir, 0777);
    snprintf(path, sizeof path, "%s/%s", name, file);
    write_text(path, text);
    if (*pictures) {
        snprintf(path, sizeof path, "%s/%s", dir, pictures);
        mkdir(path, 0777);
    }
    for (; *names; names++) {
        snprintf(path, sizeof path, "%s/%s/%s", name, pictures, *names);
        write_text(path, "");
    }
    return dir;
}

static const char *const two[] = {"a.jpg", "b.jpg", NULL};

static void check_sample(const char *what, const Dataset *d, size_t i, const char *name, const char *in,
                         int count, const char *last) {
    int ok = i < d->count;
    if (ok) {
        const Sample *s = &d->samples[i];
        ok = !strcmp(s->name, name) && strstr(s->path, in) && s->caption_count == count &&
             !strcmp(s->captions[count - 1], last);
        if (!ok)
            printf("%s: %s at %s, %d captions, the last '%s'\n", what, s->name, s->path, s->caption_count,
                   s->caption_count ? s->captions[s->caption_count - 1] : "");
    }
    check(ok, what);
}

static void test_layouts(void) {
    // Kaggle's CSV, in the order of the file. Quoted fields hold commas, quotes and line ends. Real files
    // have byte order marks, CRLF and empty lines at the end.
    Dataset *d = dataset_open(make_set(
        "csv", "captions.txt",
        "\xef\xbb\xbfimage,caption\r\nb.jpg,A dog .\r\na.jpg,\"A cat, a \"\"tabby\"\" , sleeps .\"\r\n"
        "b.jpg,\"Two\nlines .\"\r\na.jpg,no quotes, but a comma .\r\nb.jpg,last one\r\n\r\n",
        "Images", two));
    check(d->count == 2 && !strcmp(d->layout, "captions.txt") && !d->samples[0].split, "captions.txt");
    check_sample("the first picture of the file is the first", d, 0, "b.jpg", "/Images/b.jpg", 3, "last one");
    check(!strcmp(d->samples[0].captions[1], "Two\nlines ."), "a line end in quotes");
    check_sample("a comma without quotes", d, 1, "a.jpg", "/Images/a.jpg", 2, "no quotes, but a comma .");
    check(!strcmp(d->samples[1].captions[0], "A cat, a \"tabby\" , sleeps ."), "commas and quotes in quotes");
    dataset_close(d);

    d = dataset_open(make_set("csv30k", "captions.txt",
                              "image_name,comment_number,comment\na.jpg,0, One .\na.jpg,1,\"Two, or more\"",
                              "flickr30k_images", two));
    check(d->count == 1, "a picture without captions is not in the set");
    check_sample("the other header", d, 0, "a.jpg", "/flickr30k_images/a.jpg", 2, "Two, or more");
    dataset_close(d);

    d = dataset_open(make_set("token", "Flickr8k.token.txt",
                              "a.jpg#0\tA man # 1 .\na.jpg#1\tTwo\tmen .\nb.jpg#0\t  A dog .  \n",
                              "Flicker8k_Dataset", two));
    check_sample("Flickr8k.token.txt", d, 0, "a.jpg", "/Flicker8k_Dataset/a.jpg", 2, "Two\tmen .");
    check_sample("blanks around a caption go", d, 1, "b.jpg", "/Flicker8k_Dataset/b.jpg", 1, "A dog .");
    dataset_close(d);

    d = dataset_open(
        make_set("token30k", "results_20130124.token", "b.jpg#0\tA dog .\na.jpg#0\tA man .", "", two));
    check_sample("results_20130124.token, pictures beside it", d, 1, "a.jpg", "/a.jpg", 1, "A man .");
    check(!strcmp(d->layout, "results_20130124.token"), "the layout's name");
    dataset_close(d);

    d = dataset_open(make_set("bars", "results.csv",
                              "image_name| comment_number| comment\na.jpg| 0| A \"big\" dog , runs .\na.jpg| "
                              "4   A dog runs across the grass .\n",
                              "images", two));
    check_sample("results.csv, and a row that lacks a bar", d, 0, "a.jpg", "/images/a.jpg", 2,
                 "A dog runs across the grass .");
    check(!strcmp(d->samples[0].captions[0], "A \"big\" dog , runs ."), "quotes are text there");
    dataset_close(d);

    static const char *const files[] = {"dataset_flickr8k.json", "dataset_flickr30k.json", "dataset.json"};
    for (int i = 0; i < 3; i++) {
        d = dataset_open(
            make_set(files[i], files[i],
                     "{\"dataset\":\"flickr8k\",\"images\":[{\"sentids\":[0],\"filename\":\"b.jpg\","
                     "\"split\":\"train\",\"sentences\":"
                     "[{\"tokens\":[\"a\"],\"raw\":\"A dog .\"},{\"raw\":\"A \\u732b .\"}]},"
                     "{\"filename\":\"a.jpg\",\"split\":\"test\",\"sentences\":[{\"raw\":\"A man .\"}]}]}",
                     "images", two));
        check(!strcmp(d->layout, files[i]) && !strcmp(d->samples[0].split, "train") &&
                  !strcmp(d->samples[1].split, "test"),
              "splits");
        check(dataset_trains(&d->samples[0]) && !dataset_trains(&d->samples[1]),
              "train is trained on, test is not");
        check_sample("Karpathy's JSON", d, 0, "b.jpg", "/images/b.jpg", 2, "A \xe7\x8c\xab .");
        dataset_close(d);
    }
}

// ---- what is wrong ---------------------------------------------------------------------------------------

static int files_made;
__attribute__((noinline)) static void check_dies(const char *what, const char *words, const char *file,
                                                 const char *text) {
    char name[40];
    snprintf(name, sizeof name, "bad-%d", files_made++);
    const char *dir = make_set(name, file, text, "images", two);
    CHECK_DIES(what, words, dataset_open(dir));
    check(strstr(last_words, name) && strstr(last_words, file), "the message names the file");
}

static void test_refusals(void) {
    CHECK_DIES("no folder", "no such folder", dataset_open(in_folder("absent")));
    CHECK_DIES("no captions", "expected captions.txt, Flickr8k.token.txt",
               dataset_open(make_set("none", "readme.txt", "x", "images", two)));
    check_dies("an empty file", "it is empty", "captions.txt", "");
    check_dies("only a header", "lists no picture", "captions.txt", "image,caption\n");
    check_dies("no header", "expected the header image,caption", "captions.txt", "a.jpg,A dog .\n");
    check_dies("a zero byte is no text, nor is Latin-1", "not UTF-8: byte 20 is e9", "captions.txt",
               "image,caption\na.jpg,\xe9\n");
    check_dies("a row of one field", "line 3: 1 fields, expected 2", "captions.txt",
               "image,caption\na.jpg,A dog .\nb.jpg\n");
    check_dies("a missing name", "line 2: the picture's name", "captions.txt", "image,caption\n,A dog .\n");
    check_dies("an open quote", "line 2: a quote is opened", "captions.txt",
               "image,caption\na.jpg,\"A dog .\nb.jpg,A cat .\n");
    check_dies("text behind a quote", "line 2: expected the end of the field", "captions.txt",
               "image,caption\na.jpg,\"A dog\" .\n");
    check_dies("lines are counted through quotes", "line 4: the picture's name", "captions.txt",
               "image,caption\na.jpg,\"A\ndog\"\n,A cat .\n");
    check_dies("no tab", "line 2: expected name#number", "Flickr8k.token.txt",
               "a.jpg#0\tA dog .\nb.jpg#0 A dog .\n");
    check_dies("no number sign", "line 1: expected name#number", "Flickr8k.token.txt", "a.jpg\tA dog .\n");
    check_dies("no caption at all", "lists no pictures with a caption", "Flickr8k.token.txt", "a.jpg#0\t\n");
    check_dies("no picture at all", "2 of the 2 pictures that it lists are absent: c.jpg, d.jpg (looked",
               "captions.txt", "image,caption\nc.jpg,A dog .\nd.jpg,A cat .\n");
    check_dies("no header", "does not begin with the header", "results.csv", "a.jpg| 0| A dog .\n");
    check_dies("no number", "line 2: expected name| number", "results.csv",
               "image_name| comment_number| comment\na.jpg| A dog .\n");
    check_dies("no images", "\"images\" is missing", "dataset.json", "{}");
    check_dies("a list of images alone", "\"images\" is missing", "dataset.json", "[]");
    check_dies("no file name", "picture 0 has no filename", "dataset.json",
               "{\"images\":[{\"sentences\":[{\"raw\":\"x\"}]}]}");
    check_dies("no sentences", "picture a.jpg has no sentences", "dataset.json",
               "{\"images\":[{\"filename\":\"a.jpg\"}]}");
    check_dies("an empty list of sentences", "has no sentences", "dataset.json",
               "{\"images\":[{\"filename\":\"a.jpg\",\"sentences\":[]}]}");
    check_dies("an empty sentence", "sentence 0 is missing", "dataset.json",
               "{\"images\":[{\"filename\":\"a.jpg\",\"sentences\":[{\"raw\":\" \"}]}]}");
    check_dies("a picture twice", "picture a.jpg occurs twice", "dataset.json",
               "{\"images\":[{\"filename\":\"a.jpg\",\"sentences\":[{\"raw\":\"x\"}]},{\"filename\":\"a."
               "jpg\",\"sentences\":[{\"raw\":\"x\"}]}]}");
    check_dies("a split that is a number", "dataset.json: \"split\" is a number, expected a string",
               "dataset.json", "{\"images\":[{\"filename\":\"a.jpg\",\"split\":1}]}");
    check_dies("JSON that is cut short", "dataset.json", "dataset.json", "{\"images\":[{\"file");
}

// What is usual in real files: headers of pandas and Kaggle, a row without a caption.
static void test_variants(void) {
    static const char *const texts[] = {
        ",image,caption\n0,a.jpg,A dog .\n1,b.jpg,\"A cat, asleep .\"\n",
        "Unnamed: 0,image,caption\n7,a.jpg,A dog .\n,b.jpg,\"A cat, asleep .\"",
        "Image, Caption\r\na.jpg, A dog .\r\nb.jpg,A cat, asleep .\r\n",
        "\"image\",\"caption\"\na.jpg,A dog .\n\"b.jpg\",\"A cat, asleep .\"",
        "image,caption\na.jpg,\na.jpg,A dog .\nb.jpg,A cat, asleep .\nb.jpg, \n",
        ",image_name,comment_number,comment\n0,a.jpg,0,A dog .\n1,b.jpg,0,"
        "\"A cat, asleep .\"\n"};
    verbosity = -1;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        char name[20];
        snprintf(name, sizeof name, "variant-%zu", i);
        Dataset *d = dataset_open(make_set(name, "captions.txt", texts[i], "Images", two));
        check(d->count == 2, texts[i]);
        check_sample("the first", d, 0, "a.jpg", "/Images/a.jpg", 1, "A dog .");
        check_sample("the second", d, 1, "b.jpg", "/Images/b.jpg", 1, "A cat, asleep .");
        dataset_close(d);
    }
    verbosity = 0;
}

// Pictures that are absent are left out. More than 10 and more than 1 % are too many.
static void test_absent(void) {
    char text[20000] = "image,caption\n", name[200][20];
    const char *names[201] = {NULL};
    for (int i = 0; i < 200; i++) {
        snprintf(name[i], sizeof name[i], "%03d.png", i);
        names[i] = name[i];
        sprintf(text + strlen(text), "%s,Number %d .\n%s,Again %d .\n", name[i], i, name[i], i);
    }
    names[0] = name[199], names[199] = NULL; // 000.png was never made
    verbosity = -1;
    Dataset *d = dataset_open(make_set("many", "captions.txt", text, "Images", names));
    check(d->count == 199, "an absent picture is left out");
    check_sample("the others follow", d, 0, "001.png", "/001.png", 2, "Again 1 .");
    check_sample("to the last", d, 198, "199.png", "/199.png", 2, "Again 199 .");
    dataset_close(d);
    names[190] = NULL;
    d = dataset_open(make_set("many2", "captions.txt", text, "Images", names));
    check(d->count == 190, "10 absent ones are few");
    dataset_close(d);
    names[189] = NULL;
    CHECK_DIES("11 of 200 are not", "11 of the 200 pictures that it lists are absent: 000.png, 189.png, ",
               dataset_open(make_set("many3", "captions.txt", text, "Images", names)));
    verbosity = 0;
}

static void test_list(void) {
    static const char *const names[] = {"b.JPG", "a.png", "c.jpeg",     "d.txt",
                                        ".png",  "Z.jpg", "e.png.part", NULL};
    const char *dir = make_set("list", "x.csv", "", "", names);
    char path[900];
    snprintf(path, sizeof path, "%s/folder.png", dir);
    mkdir(path, 0777);
    size_t n;
    char **paths = list_images(dir, false, &n);
    static const char *const want[] = {"/Z.jpg", "/a.png", "/b.JPG", "/c.jpeg"};
    int ok = n == 4;
    for (size_t i = 0; ok && i < n; i++) ok = strstr(paths[i], want[i]) != NULL;
    check(ok, "pictures of a folder, sorted");
    for (size_t i = 0; i < n; i++) free(paths[i]);
    free(paths);
    // Folders within: but for hidden ones, and links, which may lead back.
    make_directories(in_folder("list/deep/er")), make_directories(in_folder("list/.git"));
    write_text("list/deep/x.png", ""), write_text("list/deep/er/y.png", ""),
        write_text("list/.git/z.png", "");
    snprintf(path, sizeof path, "%s/deep/loop", dir);
    if (symlink("..", path)) die("cannot make the link %s", path);
    verbosity = -1;
    paths = list_images(dir, true, &n);
    verbosity = 0;
    check(n == 6 && strstr(paths[4], "/deep/er/y.png") && strstr(paths[5], "/deep/x.png"),
          "and of those within it");
    for (size_t i = 0; i < n; i++) free(paths[i]);
    free(paths);
    CHECK_DIES("a folder that is not there", "cannot read the folder",
               list_images(in_folder("absent"), false, &n));
}

static void test_flickr8k(void) {
    const char *dir = "../shared/data/flickr8k";
    if (!is_directory(dir)) {
        skip("600 photos of Flickr8k", "../shared/data/flickr8k is not there");
        return;
    }
    Dataset *d = dataset_open(dir);
    size_t captions = 0, readable = 0;
    for (size_t i = 0; i < d->count; i++) {
        captions += (size_t)d->samples[i].caption_count;
        if (i % 10) continue;
        const char *reason;
        Image *image = image_try_load(d->samples[i].path, &reason);
        if (!image) printf("%s: %s\n", d->samples[i].path, reason);
        readable += image != NULL;
        image_free(image);
    }
    check(d->count == 600 && captions == 3000, "600 photos, 3,000 captions");
    check(readable == 60, "every tenth photo opens");
    check_sample("the paper's photo", d, 0, "1000268201_693b08cb0e.jpg", "/images/1000268201_693b08cb0e.jpg",
                 5, "A little girl in a pink dress going into a wooden cabin .");
    dataset_close(d);
}

// A latent is scale (mean + exp(log variance / 2) noise). The logarithm is cut to -30 and 20, as diffusers
// does.
static void test_latents(void) {
    enum { C = 4, VALUES = 2 * 2 * C };
    float moments[2 * VALUES], got[VALUES], want[VALUES], noise_drawn[VALUES];
    for (int i = 0; i < VALUES; i++) {
        float *at = moments + i / C * 2 * C + i % C;
        at[0] = 0.1f * (float)i - 1, at[C] = (float)(i - 8) * 0.5f;
    }
    moments[C] = 100, moments[C + 1] = -1000;
    Pair pair = {.moments = moments};
    Pairs p = {.list = &pair, .count = 1, .side = 2, .channels = C, .scale = 0.18215f};
    Random r;
    random_seed(&r, 4), random_normal(&r, noise_drawn, VALUES);
    random_seed(&r, 4), pairs_latents(&p, 0, &r, got);
    for (int i = 0; i < VALUES; i++) {
        const float *at = moments + i / C * 2 * C + i % C;
        double log_variance = fmin(fmax(at[C], -30), 20);
        want[i] = (float)(0.18215 * (at[0] + exp(log_variance / 2) * noise_drawn[i]));
    }
    check_close("latents, one of them of a huge variance", got, want, 1, 1e-6);
    check_close("latents", got + 1, want + 1, VALUES - 1, 1e-6);
}

int main(void) {
    folder_begin();
    test_layouts();
    test_refusals();
    test_variants();
    test_absent();
    test_list();
    test_flickr8k();
    test_latents();
    folder_end();
    return test_report();
}
