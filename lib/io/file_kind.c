// file_kind.c: what a file is, by its first bytes. A download that failed, a picture under another name and
// half a clone are common; a message that says so is worth more than "no JSON object". See io.h.
#include "io.h"

#include <string.h>
#include <strings.h>

static const struct {
    size_t at, length;
    const char *bytes, *kind;
} magics[] = {
    {0, 8, "\x89PNG\r\n\x1a\n", "a PNG picture"},
    {0, 3, "\xff\xd8\xff", "a JPEG picture"},
    {0, 4, "GIF8", "a GIF picture"},
    {8, 4, "WEBP", "a WebP picture"},
    {4, 4, "ftyp", "an AVIF or HEIC picture"},
    {6, 4, "\0\0\0\0", "a BMP picture"}, // behind "BM" and the file's size
    {0, 4, "II*\0", "a TIFF picture"},
    {0, 4, "MM\0*", "a TIFF picture"},
    {0, 4, "PK\3\4", "a zip archive"},
    {0, 2, "\x1f\x8b", "a gzip archive"},
    {0, 6, "\x93NUMPY", "a NumPy array"},
    {0, 4, "GGUF", "a GGUF file"},
    {0, 13, "version https", "a Git LFS pointer (the file itself was not downloaded)"},
};

const char *file_kind(const unsigned char *bytes, size_t n) {
    // A safetensors file: the header's length, at most 100 MB, then its JSON. It comes first, because a
    // length can look like another format's few bytes.
    if (n > 8 && little_endian(bytes, 8) <= 100000000 && bytes[8] == '{') return "a safetensors file";
    for (size_t i = 0; i < sizeof magics / sizeof *magics; i++) {
        bool fits = magics[i].at + magics[i].length <= n &&
                    !memcmp(bytes + magics[i].at, magics[i].bytes, magics[i].length);
        if (fits && (magics[i].at != 6 || !memcmp(bytes, "BM", 2))) return magics[i].kind;
    }
    if (n > 2 && bytes[0] == 0x80 && bytes[1] >= 2 && bytes[1] <= 5) return "a pickle"; // and its protocol
    if (n > 2 && !memcmp(bytes, "\xef\xbb\xbf", 3)) bytes += 3, n -= 3;                 // a byte order mark
    while (n && strchr(" \t\r\n", *bytes) && *bytes) bytes++, n--;
    static const char *const tags[] = {"<!doctype", "<html", "<head", "<?xml", "<!--"};
    for (size_t i = 0; i < sizeof tags / sizeof *tags; i++)
        if (n >= strlen(tags[i]) && !strncasecmp((const char *)bytes, tags[i], strlen(tags[i])))
            return "a web page";
    size_t zeros = 0;
    while (zeros < n && !bytes[zeros]) zeros++;
    return n > 8 && zeros == n ? "nothing but zeros" : NULL;
}

const char *store_kind(const Store *s) {
    static const struct {
        const char *tensor, *kind;
    } known[] = {{"model.diffusion_model.input_blocks.0.0.weight", "an LDM checkpoint"},
                 {"Conv2d_1a_3x3.conv.weight", "an Inception"},
                 {"latents", "latents"},
                 {"inputs.ids", "a trace"},
                 {"conv_in.weight", "a UNet of a diffusers folder"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (store_find(s, known[i].tensor)) return known[i].kind;
    for (size_t i = 0; i < store_count(s); i++)
        if (strstr(store_at(s, i)->name, "lora")) return "a LoRA";
    return "tensors";
}
