// plain_names.h: compiles cpu/plain.c a second time under other names (cc -include test/nn/plain_names.h), so that
// test/nn/kernels.c can call the definition of a kernel beside the kernel that is linked. Memory is the backend's.
#ifndef PLAIN_NAMES_H
#define PLAIN_NAMES_H
#define k_init plain_init
#define k_name plain_name
#define k_fill plain_fill
#define k_copy plain_copy
#define k_gemm plain_gemm
#define k_conv2d plain_conv2d
#define k_conv2d_backward_input plain_conv2d_backward_input
#define k_conv2d_backward_weight plain_conv2d_backward_weight
#define k_sum_rows plain_sum_rows
#define k_attention plain_attention
#define k_attention_backward plain_attention_backward
#define k_group_norm plain_group_norm
#define k_group_norm_backward plain_group_norm_backward
#define k_layer_norm plain_layer_norm
#define k_layer_norm_backward plain_layer_norm_backward
#define k_activation plain_activation
#define k_activation_backward plain_activation_backward
#define k_geglu plain_geglu
#define k_geglu_backward plain_geglu_backward
#define k_combine plain_combine
#define k_combine_rows plain_combine_rows
#define k_clamp plain_clamp
#define k_multiply plain_multiply
#define k_add_vector plain_add_vector
#define k_copy_columns plain_copy_columns
#define k_upsample plain_upsample
#define k_upsample_backward plain_upsample_backward
#define k_pool plain_pool
#define k_pool_backward plain_pool_backward
#define k_embed plain_embed
#define k_embed_backward plain_embed_backward
#define k_sinusoid plain_sinusoid
#define k_loss plain_loss
#define k_loss_backward plain_loss_backward
#define k_log_softmax plain_log_softmax
#define k_log_softmax_backward plain_log_softmax_backward
#define k_pick plain_pick
#define k_pick_backward plain_pick_backward
#define k_sum_square plain_sum_square
#define k_optimiser_begin plain_optimiser_begin
#define k_adamw plain_adamw
#define k_ema plain_ema
#endif
