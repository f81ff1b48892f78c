// folder.h: after fuzz.h: a folder of this process's in memory, and an input cut into the files that lie
// there.
#ifndef FUZZ_FOLDER_H
#define FUZZ_FOLDER_H

#include <sys/stat.h>
#include <unistd.h>

static char *fuzz_path(const char *name) {
    static char dir[64];
    if (!*dir) {
        snprintf(dir, sizeof dir, "%s/sd-fuzz-%ld", is_directory("/dev/shm") ? "/dev/shm" : "/tmp",
                 (long)getpid());
        mkdir(dir, 0777);
    }
    return format("%s%s%s", dir, *name ? "/" : "", name);
}

// What stands before the next byte 0xff; *data and *size move behind it.
static inline unsigned char *fuzz_piece(unsigned char **data, size_t *size, size_t *length) {
    unsigned char *piece = *data, *end = *size ? memchr(piece, 0xff, *size) : NULL;
    *length = end ? (size_t)(end - piece) : *size;
    *data += *length + (end != NULL), *size -= *length + (end != NULL);
    return piece;
}

static inline void fuzz_write(const char *name, const void *data, size_t size) {
    char *path = fuzz_path(name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f)) abort();
    free(path);
}

// A safetensors file: a header, a byte 0xff, the data. The header's length is put in front.
static inline void fuzz_write_store(const char *name, unsigned char *data, size_t size) {
    size_t length;
    unsigned char *header = fuzz_piece(&data, &size, &length), *all = malloc(8 + length + size);
    for (int i = 0; i < 8; i++) all[i] = (unsigned char)((uint64_t)length >> 8 * i);
    memcpy(all + 8, header, length);
    if (size) memcpy(all + 8 + length, data, size);
    fuzz_write(name, all, 8 + length + size);
    free(all);
}

#endif
