// model_folder.h: diffusers' model folders: their parts, and what a training or a merge leaves behind.
#ifndef MODEL_FOLDER_H
#define MODEL_FOLDER_H

#include "lib/io/architectures.h"
#include "options.h"
#include "sd.h"

// A network's folder, how its parameters' names begin, and the file of its weights.
typedef struct {
    const char *name, *prefix, *weights;
} Network;
extern const Network networks[3]; // text_encoder, unet, vae
void network_write(const Network *n, const Params *all, const char *dir, Type type);

// The networks of a diffusers folder (NULL: of an architecture): declared, not filled. For model_free().
Model *model_declared(const char *folder, const Architecture *a);

// Configurations, as JSON texts, of a model that draws as `m` in a few steps. unet: NULL where it stays.
typedef struct {
    char *unet, *scheduler, *index;
} Configs;
Configs few_steps_configs(const Model *m, FewSteps how, LcmConfig c);
// Of a latent consistency model. guidance: the UNet has a guidance embedding.
Configs student_configs(const Model *teacher, LcmConfig c, bool guidance);

// Adds adapters to a model, into its weights (merged) or beside them. Tells which networks that changed, and
// returns how to draw with the first of the adapters that is made for a few steps. See lora.c.
enum { ADAPTED = 2 }; // the first two networks can have adapters
FewSteps add_loras(const Model *m, Texts specs, bool merged, bool changed[ADAPTED]);

// Where an LCM goes, and what it takes over from its teacher: text encoder, VAE and tokenizer.
typedef struct {
    const char *out, *tokenizer; // tokenizer: NULL for the teacher's own
    bool copy;                   // the other networks are copies; else they are links to the teacher's
    Type type;                   // of the weights written
} ModelFolder;
// Dies before the training where model_folder_write() could not do its work after it.
void model_folder_check(const ModelFolder *f, const char *teacher);
void model_folder_write(const ModelFolder *f, const Model *teacher, const Configs *c, const Params *unet);

// but: names in that folder which are not copied, ended by NULL; or NULL.
void copy_folder(const char *from, const char *to, const char *const *but);
bool same_folder(const char *a, const char *b); // false where one does not exist
// Dies where the folder that --output names would be in one that the command reads. Links are followed.
void refuse_inside(const char *out, const char *read);

#endif
