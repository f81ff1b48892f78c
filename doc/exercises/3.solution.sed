# KL(P || Q) weighs by P, the teacher: the student is punished where the teacher is large. KL(Q || P) is a divergence too,
# and one can train with it, but it weighs by what the student already does.
/^static Tensor \*kl_of_softmax/,/^}/ s/exponential(log_q), sub(log_q, log_p)/exponential(log_p), sub(log_p, log_q)/
