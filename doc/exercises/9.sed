# sd.c: to be written: x0 and eps of a network that predicts v
s/^\/\/   v        alpha z - sigma out  .*/\/\/   v        (to be written)                       (to be written)/
/^Tensor \*predicted_x0/,/^}/ {
s|^    bool v = .*|    // v: to be written|
s/a\[i\] = v ? at.alpha\[i\] : /a[i] = /
s/b\[i\] = v ? -at.sigma\[i\] : /b[i] = /
}
/^Tensor \*predicted_eps/,/^}/ {
s|^.*V_PREDICTION.*|    // v: to be written|
}
