# sd.c: to be written: x0 and eps of a network that predicts v
s/^\/\/   v        alpha z - sigma out  .*/\/\/   v        (to be written)                       (to be written)/
/^Tensor \*predicted_x0/,/^}/ {
/^    bool v = /d
s/a\[i\] = v ? at.alpha\[i\] : /a[i] = /
s/b\[i\] = v ? -at.sigma\[i\] : /b[i] = /
}
/^Tensor \*predicted_eps/,/^}/ {
/V_PREDICTION/d
}
