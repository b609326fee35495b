# ruff: noqa: E501
"""GPT-2, Llama, Gemma, Whisper, T5, Mamba, mixtures of experts, LoRA."""

# Transformers' stores kernels (out, in).
GPT2_LINEN = """
transformer/wte/embedding                50257,768  embedding  1x50257x768
transformer/wpe/embedding                1024,768   embedding  1x1024x768
transformer/h/0/{ln_1,ln_2}/{scale,bias}  768       vector     1x1x768
transformer/h/0/attn/c_attn/kernel       2304,768   hidden     1x768x2304
transformer/h/0/attn/c_attn/bias         2304       vector     1x1x2304
transformer/h/0/attn/c_proj/kernel       768,768    hidden     1x768x768
transformer/h/0/mlp/c_fc/kernel          3072,768   hidden     1x768x3072
transformer/h/0/mlp/c_proj/kernel        768,3072   hidden     1x3072x768
transformer/ln_f/{scale,bias}            768        vector     1x1x768
"""

GPT2_NNX = """
wte/embedding                  50257,768  embedding  1x50257x768
wpe/embedding                  1024,768   embedding  1x1024x768
h/0/{ln_1,ln_2}/scale          768        vector     1x1x768
h/0/attn/c_attn/kernel         768,2304   hidden     1x768x2304
h/0/attn/c_proj/kernel         768,768    hidden     1x768x768
h/0/mlp/c_fc/kernel            768,3072   hidden     1x768x3072
h/0/mlp/c_proj/kernel          3072,768   hidden     1x3072x768
ln_f/scale                     768        vector     1x1x768
lm_head/kernel                 768,50257  head       1x768x50257
"""

GPT2_EQUINOX = """
transformer/wte/weight                    50257,768  embedding  1x50257x768
transformer/wpe/weight                    1024,768   embedding  1x1024x768
transformer/h/0/{ln_1,ln_2}/{weight,bias}  768       vector     1x1x768
transformer/h/0/attn/c_attn/weight        2304,768   hidden     1x768x2304
transformer/h/0/attn/c_proj/weight        768,768    hidden     1x768x768
transformer/h/0/mlp/c_fc/weight           3072,768   hidden     1x768x3072
transformer/h/0/mlp/c_proj/weight         768,3072   hidden     1x3072x768
lm_head/weight                            50257,768  head       1x768x50257
"""

LLAMA_LINEN = """
model/embed_tokens/embedding                          32000,4096  embedding  1x32000x4096
model/layers/0/self_attn/{q_proj,o_proj}/kernel       4096,4096   hidden     1x4096x4096
model/layers/0/self_attn/{k_proj,v_proj}/kernel       4096,1024   hidden     1x4096x1024
model/layers/0/mlp/{gate_proj,up_proj}/kernel         4096,11008  hidden     1x4096x11008
model/layers/0/mlp/down_proj/kernel                   11008,4096  hidden     1x11008x4096
model/layers/0/{input,post_attention}_layernorm/weight  4096      vector     1x1x4096
model/norm/weight                                     4096        vector     1x1x4096
lm_head/kernel                                        4096,32000  head       1x4096x32000
"""

# Tunix: heads as axes.
LLAMA_NNX = """
embedder/input_embedding                 128256,4096  embedding  1x128256x4096
layers/0/attn/q_proj/w                   4096,32,128  hidden     1x4096x4096
layers/0/attn/{k_proj,v_proj}/w          4096,8,128   hidden     1x4096x1024
layers/0/attn/o_proj/w                   32,128,4096  hidden     1x4096x4096
layers/0/mlp/{gate_proj,up_proj}/kernel  4096,14336   hidden     1x4096x14336
layers/0/mlp/down_proj/kernel            14336,4096   hidden     1x14336x4096
layers/0/{input_layernorm,post_attention_layernorm}/w  4096  vector  1x1x4096
final_norm/w                             4096         vector     1x1x4096
lm_head/w                                4096,128256  head       1x4096x128256
"""

LLAMA_EQUINOX = """
embed_tokens/weight                               32000,4096  embedding  1x32000x4096
layers/0/self_attn/{q_proj,o_proj}/weight         4096,4096   hidden     1x4096x4096
layers/0/self_attn/{k_proj,v_proj}/weight         1024,4096   hidden     1x4096x1024
layers/0/mlp/{gate_proj,up_proj}/weight           11008,4096  hidden     1x4096x11008
layers/0/mlp/down_proj/weight                     4096,11008  hidden     1x11008x4096
layers/0/{input_layernorm,post_attention_layernorm}/weight  4096  vector  1x1x4096
norm/weight                                       4096        vector     1x1x4096
lm_head/weight                                    32000,4096  head       1x4096x32000
"""

# Meta's own names.
LLAMA_META = """
tok_embeddings/embedding                 32000,4096  embedding  1x32000x4096
layers_0/attention/{wq,wo}/kernel        4096,4096   hidden     1x4096x4096
layers_0/attention/{wk,wv}/kernel        4096,1024   hidden     1x4096x1024
layers_0/feed_forward/{w1,w3}/kernel     4096,11008  hidden     1x4096x11008
layers_0/feed_forward/w2/kernel          11008,4096  hidden     1x11008x4096
layers_0/{attention,ffn}_norm/scale      4096        vector     1x1x4096
model/output/kernel                      4096,32000  head       1x4096x32000
"""

# Levanter's, as Haliax flattens named arrays; several axes have to be told apart.
LLAMA_LEVANTER = """
embeddings/token_embeddings/weight/array           32000,4096  embedding  1x32000x4096
transformer/layers/0/mlp/{gate_proj,up_proj}/weight/array  4096,11008  hidden?  1x4096x11008
transformer/norm/weight/array                      4096        vector     1x1x4096
lm_head/weight/array                               4096,32000  head?      1x4096x32000
"""

GEMMA_LINEN = """
embedder/input_embedding                  256128,2048   embedding  1x256128x2048
layer_0/attn/q_einsum/w                   8,2048,256    hidden     1x2048x2048
layer_0/attn/kv_einsum/w                  2,1,2048,256  hidden     2x2048x256
layer_0/attn/attn_vec_einsum/w            8,256,2048    hidden     1x2048x2048
layer_0/attn/{query_norm,key_norm}/scale  256           vector     1x1x256
layer_0/mlp/gating_einsum                 2,2048,16384  hidden     2x2048x16384
layer_0/mlp/linear                        16384,2048    hidden     1x16384x2048
layer_0/{pre_attention_norm,pre_ffw_norm}/scale  2048   vector     1x1x2048
final_norm/scale                          2048          vector     1x1x2048
"""

# Of Gemma 3: the gates are stored (2, out, in).
GEMMA_NNX = """
embedder/input_embedding                   262144,2560   embedding  1x262144x2560
layers/0/attn/q_einsum/w                   8,2560,256    hidden     1x2560x2048
layers/0/attn/kv_einsum/w                  2,4,2560,256  hidden     2x2560x1024
layers/0/attn/attn_vec_einsum/w            8,256,2560    hidden     1x2048x2560
layers/0/attn/{_query_norm,_key_norm}/scale  256         vector     1x1x256
layers/0/mlp/gating_einsum/w               2,10240,2560  hidden     2x2560x10240
layers/0/mlp/linear/w                      10240,2560    hidden     1x10240x2560
layers/0/attn1/qkv_einsum/w                3,16,3072,256 hidden     3x3072x4096
"""

WHISPER_LINEN = """
model/encoder/conv1/kernel                        3,80,384   conv(3)    1x240x384
model/encoder/conv2/kernel                        3,384,384  conv(3)    1x1152x384
model/encoder/conv2/bias                          384        vector     1x1x384
model/encoder/embed_positions/embedding           1500,384   embedding  1x1500x384
model/encoder/layers/0/self_attn/{q_proj,k_proj,v_proj,out_proj}/kernel  384,384  hidden  1x384x384
model/encoder/layers/0/{self_attn,final}_layer_norm/{scale,bias}  384  vector  1x1x384
model/encoder/layers/0/fc1/kernel                 384,1536   hidden     1x384x1536
model/encoder/layers/0/fc2/kernel                 1536,384   hidden     1x1536x384
model/encoder/layer_norm/scale                    384        vector     1x1x384
model/decoder/embed_tokens/embedding              51865,384  embedding  1x51865x384
model/decoder/embed_positions/embedding           448,384    embedding  1x448x384
model/decoder/layers/0/encoder_attn/{q_proj,k_proj,v_proj,out_proj}/kernel  384,384  hidden  1x384x384
"""

WHISPER_NNX = """
encoder/conv1/kernel                         3,80,384   conv(3)    1x240x384
encoder/pos_emb                              1500,384   embedding  1x1500x384
encoder/blocks/0/attn/{query,key,value}/kernel  384,6,64  hidden   1x384x384
encoder/blocks/0/attn/out/kernel             6,64,384   hidden     1x384x384
decoder/token_embedding/embedding            51865,384  embedding  1x51865x384
"""

WHISPER_EQUINOX = """
encoder/conv1/weight                          384,80,3   conv(3)    1x240x384
encoder/conv1/bias                            384,1      vector     1x1x384
encoder/conv2/weight                          384,384,3  conv(3)    1x1152x384
encoder/embed_positions/weight                1500,384   embedding  1x1500x384
encoder/layers/0/self_attn/{q_proj,k_proj,v_proj,out_proj}/weight  384,384  hidden  1x384x384
encoder/layers/0/fc1/weight                   1536,384   hidden     1x384x1536
encoder/layers/0/fc2/weight                   384,1536   hidden     1x1536x384
decoder/embed_tokens/weight                   51865,384  embedding  1x51865x384
decoder/embed_positions/weight                448,384    embedding  1x448x384
"""

T5_LINEN = """
token_embedder/embedding                      32128,512  embedding  1x32128x512
encoder/relpos_bias/rel_embedding             8,32       embedding  1x32x8
encoder/layers_0/attention/{query,key,value,out}/kernel  512,512  hidden  1x512x512
encoder/layers_0/mlp/{wi_0,wi_1}/kernel       512,1024   hidden     1x512x1024
encoder/layers_0/mlp/wo/kernel                1024,512   hidden     1x1024x512
encoder/layers_0/pre_attention_layer_norm/scale  512     vector     1x1x512
decoder/logits_dense/kernel                   512,32128  head       1x512x32128
"""

MAMBA_LINEN = """
backbone/embedding/embedding             50280,768  embedding  1x50280x768
backbone/layers_0/norm/scale             768        vector     1x1x768
backbone/layers_0/mixer/in_proj/kernel   768,3072   hidden     1x768x3072
backbone/layers_0/mixer/conv1d/kernel    4,1,1536   depthwise  1x4x1536
backbone/layers_0/mixer/conv1d/bias      1536       vector     1x1x1536
backbone/layers_0/mixer/x_proj/kernel    1536,80    hidden     1x1536x80
backbone/layers_0/mixer/dt_proj/kernel   48,1536    hidden     1x48x1536
backbone/layers_0/mixer/dt_proj/bias     1536       vector     1x1x1536
backbone/layers_0/mixer/A_log            1536,16    vector     1x1x24576
backbone/layers_0/mixer/D                1536       vector     1x1x1536
backbone/layers_0/mixer/out_proj/kernel  1536,768   hidden     1x1536x768
backbone/norm_f/scale                    768        vector     1x1x768
lm_head/kernel                           768,50280  head       1x768x50280
"""

# Mamba-2, one rate a head.
MAMBA_NNX = """
embedder/embedding                50280,768  embedding  1x50280x768
layers/0/mixer/in_proj/kernel     768,3352   hidden     1x768x3352
layers/0/mixer/conv1d/kernel      4,1,1792   depthwise  1x4x1792
layers/0/mixer/{A_log,D,dt_bias}  24         vector     1x1x24
layers/0/mixer/norm/scale         1536       vector     1x1x1536
layers/0/mixer/out_proj/kernel    1536,768   hidden     1x1536x768
"""

MAMBA_EQUINOX = """
embedding/weight                   50280,768  embedding  1x50280x768
layers/0/mixer/in_proj/weight      3072,768   hidden     1x768x3072
layers/0/mixer/conv1d/weight       1536,1,4   depthwise  1x4x1536
layers/0/mixer/conv1d/bias         1536,1     vector     1x1x1536
layers/0/mixer/x_proj/weight       80,1536    hidden     1x1536x80
layers/0/mixer/A_log               1536,16    vector     1x1x24576
layers/0/mixer/D                   1536       vector     1x1x1536
layers/0/mixer/out_proj/weight     768,1536   hidden     1x1536x768
"""

GRIFFIN_HAIKU = """
embedder/input_embedding                   256000,2560  embedding  1x256000x2560
blocks.0/recurrent_block/conv_1d/w         4,2560       depthwise  1x4x2560
blocks.0/recurrent_block/conv_1d/b         2560         vector     1x1x2560
blocks.0/recurrent_block/rg_lru/a_param    2560         vector     1x1x2560
blocks.0/recurrent_block/linear_x/w        2560,2560    hidden     1x2560x2560
"""

# MaxText's, not scanned.
MOE_LINEN = """
params/token_embedder/embedding                     32000,1024    embedding  1x32000x1024
params/decoder/layers_0/self_attention/query/kernel  1024,16,64   hidden     1x1024x1024
params/decoder/layers_0/self_attention/{key,value}/kernel  1024,4,64  hidden  1x1024x256
params/decoder/layers_0/self_attention/out/kernel   16,64,1024    hidden     1x1024x1024
params/decoder/layers_0/moe_block/gate/kernel       1024,8        hidden     1x1024x8
params/decoder/layers_0/moe_block/{wi_0,wi_1}       8,1024,3584   hidden     8x1024x3584
params/decoder/layers_0/moe_block/wo                8,3584,1024   hidden     8x3584x1024
params/decoder/layers_0/pre_self_attention_layer_norm/scale  1024  vector    1x1x1024
params/decoder/logits_dense/kernel                  1024,32000    head       1x1024x32000
"""

MOE_NNX = """
embedder/input_embedding                       151936,2048  embedding  1x151936x2048
layers/0/attn/q_proj/w                         2048,32,128  hidden     1x2048x4096
layers/0/attn/o_proj/w                         32,128,2048  hidden     1x4096x2048
layers/0/mlp/router/kernel                     2048,128     hidden     1x2048x128
layers/0/mlp/experts/{gate_proj,up_proj}       128,2048,768 hidden     128x2048x768
layers/0/mlp/experts/down_proj                 128,768,2048 hidden     128x768x2048
layers/0/mlp/shared_expert/up_proj/kernel      2048,768     hidden     1x2048x768
"""

MOE_EQUINOX = """
layers/0/moe/router/weight            8,1024        hidden  1x1024x8
layers/0/moe/experts/{w1,w3}/weight   8,3584,1024   hidden  8x1024x3584
layers/0/moe/experts/w2/weight        8,1024,3584   hidden  8x3584x1024
layers/0/moe/experts/w1/bias          8,3584        vector  8x1x3584
"""

LORA_LINEN = """
layers_0/attn/q_proj/kernel       4096,4096  hidden  1x4096x4096
layers_0/attn/q_proj/lora/a       4096,8     hidden  1x4096x8
layers_0/attn/q_proj/lora/b       8,4096     hidden  1x8x4096
layers_0/attn/v_proj/lora_{a,A}   4096,8     hidden  1x4096x8
layers_0/attn/v_proj/lora_{b,B}   8,4096     hidden  1x8x4096
"""

LORA_NNX = """
layers/0/attn/q_einsum/w          8,2048,256  hidden  1x2048x2048
layers/0/attn/q_einsum/lora_a     8,2048,16   hidden  8x2048x16
layers/0/attn/q_einsum/lora_b     8,16,256    hidden  8x16x256
layers/0/mlp/up/kernel            2048,8192   hidden  1x2048x8192
layers/0/mlp/up/lora/lora_a       2048,16     hidden  1x2048x16
layers/0/mlp/up/lora/lora_b       16,8192     hidden  1x16x8192
"""

LORA_EQUINOX = """
layers/0/q_proj/weight            4096,4096   hidden  1x4096x4096
layers/0/q_proj/lora_A/weight     8,4096      hidden  1x4096x8
layers/0/q_proj/lora_B/weight     4096,8      hidden  1x8x4096
"""
