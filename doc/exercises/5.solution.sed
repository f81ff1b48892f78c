# y = a x + b z, so dz = b dy. With a in its place every sum a x + a z stays right, and add() is one of those: that is why
# networks train with this mistake, only worse.
/^static void combine_backward/,/^}/ s/(r->in\[1\], r->a, dy)/(r->in[1], r->b, dy)/
