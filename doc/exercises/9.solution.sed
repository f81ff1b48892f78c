# z = alpha x0 + sigma eps and v = alpha eps - sigma x0 are a rotation of (x0, eps), as alpha^2 + sigma^2 = 1. Rotated back:
# x0 = alpha z - sigma v, eps = alpha v + sigma z. Nothing is divided by alpha or sigma, so it holds at both ends of the path.
s/^\/\/   v        (to be written) .*/\/\/   v        alpha z - sigma out                   alpha out + sigma z/
/^Tensor \*predicted_x0/,/^}/ {
s|^    // v: to be written|    bool v = s->config.prediction_type == V_PREDICTION;|
s/a\[i\] = /a[i] = v ? at.alpha[i] : /
s/b\[i\] = /b[i] = v ? -at.sigma[i] : /
}
/^Tensor \*predicted_eps/,/^}/ {
s|^    // v: to be written|    if (s->config.prediction_type == V_PREDICTION) return combine_each(at.alpha, out, at.sigma, z);|
}
