# lcm.c: one pass of Algorithm 1
/^Tensor \*lcm_loss/,/^}/ s/consistency(l, l->target, z_near, near,/consistency(l, l->target, z_near, far,/
