# sd.c: the step of a sampler
/^static Tensor \*ddim_step/,/^}/ s/sqrtf(1 - a_prev), eps/sqrtf(1 - cumprod_at(s, t)), eps/
