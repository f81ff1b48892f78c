# fid.c: the distance of two Gaussians
# try: fid run/paper/reference/Images run/paper/base
/^double frechet_distance/,/^}/ s/d += (mu1\[i\] - mu2\[i\]) \* (mu1\[i\] - mu2\[i\]) + c1/d += c1/
