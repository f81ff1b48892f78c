# A row has 64 bytes, so two rows share the 32 banks: rows 0, 2, 4 and 6 lie in the same half. The swizzle must send these
# four to four places, so it takes r / 2. With r itself rows 0 and 4 meet, and 2 and 6: each ldmatrix takes twice the passes.
/ int at(int r, int c)/,/^    }/ s/r \& 3/r >> 1 \& 3/
