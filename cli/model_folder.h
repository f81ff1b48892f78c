// model_folder.h: model folders as diffusers has them: their parts, and what a training or a merge leaves
// behind.
#ifndef MODEL_FOLDER_H
#define MODEL_FOLDER_H

#include "lib/io/architectures.h"
#include "sd.h"

// A network's folder, how its parameters' names begin, and the file of its weights.
typedef struct {
    const char *name, *prefix, *weights;
} Network;
extern const Network networks[3]; // text_encoder, unet, vae
void network_write(const Network *n, const Params *all, const char *dir, Type type);

// The networks of a diffusers folder or, where that is NULL, of an architecture: declared, not filled. For
// model_free().
Model *model_declared(const char *folder, const Architecture *a);

// The configuration files of a latent consistency model, made from those of its teacher: JSON texts.
typedef struct {
    char *unet, *scheduler, *index;
} StudentConfigs;
// guidance: the UNet has a guidance embedding.
StudentConfigs student_configs(const Model *teacher, LcmConfig c, bool guidance);
// scheduler_config.json and model_index.json of a model that draws in a few steps: JSON texts.
void few_steps_configs(const Model *m, FewSteps how, LcmConfig c, char **scheduler, char **index);

// Where an LCM goes, and what it takes over from its teacher: text encoder, VAE and tokenizer.
typedef struct {
    const char *out, *tokenizer; // tokenizer: NULL for the teacher's own
    bool copy;                   // the other networks are copies; else they are links to the teacher's
    Type type;                   // of the weights written
} ModelFolder;
// Dies before the training where model_folder_write() could not do its work after it.
void model_folder_check(const ModelFolder *f, const char *teacher);
void model_folder_write(const ModelFolder *f, const Model *teacher, const StudentConfigs *c,
                        const Params *unet);

// but: names in that folder which are not copied, ended by NULL; or NULL.
void copy_folder(const char *from, const char *to, const char *const *but);
bool same_folder(const char *a, const char *b); // false where one does not exist

#endif
