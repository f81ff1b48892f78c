// plan.h: how much memory a training step of a UNet will take, told before it is taken.
#ifndef PLAN_H
#define PLAN_H

#include "../sd.h"

// Bytes of activations and their gradients at the peak of a step: n pictures, h x w latents, `tokens` a caption.
// The larger of a recorded pass with its backward, and a pass of 2 n that is not recorded (a guided teacher).
size_t plan_activations(const UNetConfig *c, int n, int h, int w, int tokens, bool checkpoints);
size_t plan_available(void); // bytes of memory that this machine could give now; 0 where it does not say

#endif
