# lora.c: the KL divergence of two latents
/^static Tensor \*kl_of_softmax/,/^}/ s/activation(log_p, EXP), combine(1, log_q, -1, log_p)/activation(log_q, EXP), combine(1, log_p, -1, log_q)/
