# lcm.c: one pass of Algorithm 1
# try: lcm --data run/flickr8k -o run/lcm-wrong --steps 300 --sample-every 50 --schedule cosine --w-min 2 --w-max 5
/^Tensor \*lcm_loss/,/^}/ s/consistency(l, l->target, z_near, near,/consistency(l, l->target, z_near, far,/
