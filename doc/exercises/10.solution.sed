# W x + s B (A x) = (W + s B A) x, with s = strength alpha / rank. adapter_add() in lib/nn/ops.c is that product and sum; with
# tensor_read(), three loops and tensor_write() it is the same. A convolution's A is (rank, kh kw in) in memory, as W is (out, kh kw in).
/^void lora_merge/,/^}/ s/^        \/\/ to be written: .*/        adapter_add(sum, \&p->adapter, strength * p->alpha \/ (float)rank);/
