// gradients.c: `sd verify --gradients` does one training step again, on the inputs that a trace names, and
// keeps its loss and gradients. With inputs.index the step is Phase 2's, else Phase 3's: see doc/TRACE.md.
#include "options.h"
#include "verify.h"

#include <stdlib.h>

// backward() comes to the last layers first, so they stand first.
static void keep_gradients(Tensor *loss, const Params *p) {
    backward(loss);
    keep(xstrdup("loss"), 1, (int64_t[]){1}, tensor_read(loss));
    for (int i = p->count - 1; i >= 0; i--) {
        Tensor gradient = *p->list[i].tensor;
        gradient.data = gradient.gradient;
        int64_t shape[4];
        int dims = param_file_shape(&gradient, shape);
        keep(format("gradient.%s", p->list[i].name), dims, shape, param_read(&gradient));
    }
}

void gradients_again(const Model *m, const Store *s, const char *path, const char *lora) {
    bool lcm = store_find(s, "inputs.index") != NULL;
    UNetConfig c = m->unet_config;
    if (c.time_cond_proj_dim) die("%s has a guidance embedding; a step begins with its base", m->path);
    if (!lcm && !lora) die("%s holds a step of adapters; --lora FILE names them", path);
    params_to_f32(&m->params);
    int64_t shape[4] = {-1, c.in_channels, -1, -1};
    Tensor *z = trace_tensor(s, path, "inputs.z", 4, shape),
           *noise = trace_tensor(s, path, "inputs.noise", 4, shape);
    int n = z->shape[0];
    int64_t states[3] = {lcm ? 2 * n : n, -1, c.cross_attention_dim}, list[1] = {n};
    Tensor *text = trace_tensor(s, path, "inputs.context", 3, states);
    Lcm l;
    lcm_init(&l, lcm_defaults, scheduler_config(m->scheduler_json, lcm ? LCM : -1), m->unet, NULL, NULL);
    Params student = {0};
    c.time_cond_proj_dim = 256;
    if (lcm) l.student = l.target = lcm_student(m, c, &student);
    Lora *adapters = lcm ? NULL : lora_load(&m->params, lora);
    if (adapters) params_to_f32(&adapters->params), lora_attach(adapters, 1);
    const Params *learnt = lcm ? &student : &adapters->params;
    for (int i = 0; i < learnt->count; i++) param_trainable(learnt->list[i].tensor);
    int *t = lcm ? trace_wholes(s, path, "inputs.index", 1, list, l.solver_steps)
                 : trace_wholes(s, path, "inputs.timesteps", 1, list, l.schedule.config.num_train_timesteps);
    float *w = lcm ? read_tensor(s, path, "inputs.w", 1, list) : NULL;
    tape_begin();
    if (lcm)
        keep_gradients(lcm_loss(&l, &(LcmBatch){n, z, noise, take(text, n, n), take(text, 0, n), t, w}),
                       learnt);
    else
        keep_gradients(lora_finetune_loss(&l.schedule, m->unet, z, noise, text, t, 0), learnt);
    tape_end();
}
