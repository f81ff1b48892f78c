// plan.h: how much memory a training step of a UNet will take, told before it is taken.
#ifndef PLAN_H
#define PLAN_H

#include "sd.h"

// Bytes of activations and their gradients at the peak of a step: n pictures, h x w latents, `tokens` a caption.
// The larger of a recorded pass with its backward, and a pass of 2 n that is not recorded (a guided teacher).
// lora: the adapters that hang on the network, or NULL.
size_t plan_activations(const UNetConfig *c, const Lora *lora, int n, int h, int w, int tokens,
                        bool checkpoints);
size_t plan_available(void); // bytes of memory that this machine could give now; 0 where it does not say
double plan_weights(const Params *p); // bytes of them

// A whole run.
typedef struct {
    const UNetConfig *unet;
    const Lora *lora;           // what learns, if adapters do
    const TextConfig *text;     // whose adapters learn too, or NULL
    int batch, tokens;          // pictures a step, tokens a caption
    double models;              // bytes that are there already, and stay
    double numbers;             // that learn
    bool average, checkpointed; // with a moving average; gradient checkpointing was asked for
} Plan;
// Prints what the run will hold and dies where it cannot. Returns bytes. Sets `checkpointing` where it is needed.
double plan_run(const Plan *p);

#endif
