# The distance of the means is missing. Without it a set of pictures that is shifted as a whole, every one of them the
# same bit brighter, is at distance 0.
/^double frechet_distance/,/^}/ s/d += c1/d += (mu1[i] - mu2[i]) * (mu1[i] - mu2[i]) + c1/
