// model_folder.h: what a training or a merge leaves behind: a model folder as diffusers has it.
#ifndef MODEL_FOLDER_H
#define MODEL_FOLDER_H

#include "sd.h"

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

void copy_folder(const char *from, const char *to, bool config_only); // config_only: only config.json
bool same_folder(const char *a, const char *b);                       // false where one does not exist

#endif
