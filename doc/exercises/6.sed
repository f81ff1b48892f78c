# cuda/gemm.cu: the tiled product
/^    gemm_tiled(/,/^}/ { /all have read them/d
}
