# sd.c: the step of a sampler
# try: sample -p "a girl in a red dress runs in the park at night" --seed 7 -o run/exercise.png
/^static Tensor \*ddim_step/,/^}/ s/sqrtf(1 - a_prev), eps/sqrtf(1 - cumprod_at(s, t)), eps/
