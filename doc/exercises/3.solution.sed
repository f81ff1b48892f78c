# KL(P || Q) weighs by P, the teacher: the student is punished where the teacher is large. KL(Q || P) is a divergence too,
# trains too, and is another one: it weighs by what the student already does.
/^static Tensor \*kl_of_softmax/,/^}/ s/activation(log_q, EXP), combine(1, log_p, -1, log_q)/activation(log_p, EXP), combine(1, log_q, -1, log_p)/
