# DDIM keeps the direction and moves on: the predicted picture and the predicted noise are mixed anew as the next
# timestep has them, sqrt(a') x0 + sqrt(1 - a') eps. With the noise's share of the timestep that is left behind, no noise
# ever goes away, and the decoder is handed a latent that is far too loud.
/^static void ddim_step/,/^}/ s/sqrtf(1 - a), mem(eps)/sqrtf(1 - previous), mem(eps)/
