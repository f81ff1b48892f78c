# The derivative is eps, so a step of length sigma' - sigma adds (sigma' - sigma) eps. As z = x0 + sigma eps, what comes out is
# x0 + sigma' eps: the same picture with less of the same noise. With new noise to come, it is sigma_down instead of sigma'.
s|^//   z' = (to be written)$|//   z' = z + (sigma' - sigma) eps = x0 + sigma' eps|
s/^\/\/   z' = (to be written),                       /\/\/   z' = x0 + sigma_down eps + sigma_up noise, /
/^Tensor \*euler_step/,/^}/ s/^    Tensor \*down = .*/    Tensor *down = combine(1, x0, (float)sqrt(next * next - up * up), eps);/
