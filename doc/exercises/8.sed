# samplers.c: to be written: Euler's step
# try: sample -p "a dog" --seed 3 --scheduler euler --steps 10 -o run/euler.png
s|^//   z' = z + (sigma' - sigma) eps = x0 + sigma' eps$|//   z' = (to be written)|
s/^\/\/   z' = x0 + sigma_down eps + sigma_up noise, /\/\/   z' = (to be written),                       /
/^Tensor \*euler_step/,/^}/ s/^    Tensor \*down = .*/    Tensor *down = z; \/\/ to be written: Euler's step, from sigma to next; where up > 0 to sigma_down/
