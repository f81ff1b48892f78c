# fid.c: to be written: the kernel inception distance
# try: fid run/paper/reference/Images run/paper/base --paired
/^static KidFigures kid_of_subset/,/^}/ s/^    f.kid = .*/    f.kid = 0; \/\/ to be written: the estimate of [F10] from kx, ky (their lower triangles are filled) and kxy/
