// architectures.h: the configurations that the program carries with it: the JSON texts of diffusers folders.
#ifndef ARCHITECTURES_H
#define ARCHITECTURES_H

typedef struct {
    const char *name; // "sd15", "sd15-lcm", "tiny", "tiny-lcm"
    const char *text_encoder, *unet, *vae, *scheduler, *model_index;
} Architecture;

const Architecture *architecture(const char *name);              // NULL where unknown
void architecture_write(const Architecture *a, const char *dir); // the folder's JSON files

#endif
