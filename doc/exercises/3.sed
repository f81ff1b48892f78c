# lora.c: the KL divergence of two latents
/^static Tensor \*kl_of_softmax/,/^}/ s/exponential(log_p), sub(log_p, log_q)/exponential(log_q), sub(log_q, log_p)/
