# lib/nn/ops.c: a gradient
/^static void combine_backward/,/^}/ s/(r->in\[1\], r->b, dy)/(r->in[1], r->a, dy)/
