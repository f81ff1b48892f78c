# lib/nn/ops.c: a gradient
/^static void combine_backward/,/^}/ s/grad(r->in\[1\]), r->b, dy/grad(r->in[1]), r->a, dy/
