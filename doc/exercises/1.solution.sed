# DDIM keeps the predicted picture and the predicted noise and mixes them as the next timestep has them,
# sqrt(a_prev) x0 + sqrt(1 - a_prev) eps. With as much noise as the current timestep has, no noise ever goes away, and the
# decoder gets a latent that is far too large.
/^static Tensor \*ddim_step/,/^}/ s/sqrtf(1 - cumprod_at(s, t)), eps/sqrtf(1 - a_prev), eps/
