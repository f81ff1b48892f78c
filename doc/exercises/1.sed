# sd.c: the step of a sampler
/^static void ddim_step/,/^}/ s/sqrtf(1 - previous), mem(eps)/sqrtf(1 - a), mem(eps)/
