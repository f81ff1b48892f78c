# The target stands at the nearer point of the path, so it must be told the nearer timestep: f(z_near, w, c, t_near).
# Told the farther one it takes too much noise away, and the boundary condition, which holds at t = 0 alone, is lost.
/^Tensor \*lcm_loss/,/^}/ s/consistency(l, l->target, z_near, far,/consistency(l, l->target, z_near, near,/
