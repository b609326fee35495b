# ruff: noqa: E501
"""ViT, ResNet, U-Net and CLIP."""

# big_vision: heads as axes, the class token and positions as arrays.
VIT_LINEN = """
params/cls                                                                          1,1,768      embedding    1x1x768
params/embedding/kernel                                                             16,16,3,768  conv(16,16)  1x768x768
params/embedding/bias                                                               768          vector       1x1x768
params/pos_embedding                                                                1,196,768    embedding    1x196x768
params/Transformer/encoderblock_0/LayerNorm_{0,1}/{scale,bias}                      768          vector       1x1x768
params/Transformer/encoderblock_0/MultiHeadDotProductAttention_0/{query,key,value}/kernel  768,12,64  hidden  1x768x768
params/Transformer/encoderblock_0/MultiHeadDotProductAttention_0/{query,key,value}/bias    12,64  vector      12x1x64
params/Transformer/encoderblock_0/MultiHeadDotProductAttention_0/out/kernel         12,64,768    hidden       1x768x768
params/Transformer/encoderblock_0/MultiHeadDotProductAttention_0/out/bias           768          vector       1x1x768
params/Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel                         768,3072     hidden       1x768x3072
params/Transformer/encoderblock_0/MlpBlock_0/Dense_0/bias                           3072         vector       1x1x3072
params/Transformer/encoderblock_0/MlpBlock_0/Dense_1/kernel                         3072,768     hidden       1x3072x768
params/Transformer/encoderblock_0/MlpBlock_0/Dense_1/bias                           768          vector       1x1x768
params/Transformer/encoder_norm/{scale,bias}                                        768          vector       1x1x768
params/MAPHead_0/probe                                                              1,1,768      embedding    1x1x768
params/MAPHead_0/MultiHeadDotProductAttention_0/{query,key,value}/kernel            768,12,64    hidden       1x768x768
params/MAPHead_0/MultiHeadDotProductAttention_0/out/kernel                          12,64,768    hidden       1x768x768
params/pre_logits/kernel                                                            768,768      hidden       1x768x768
params/head/kernel                                                                  768,1000     head         1x768x1000
params/head/bias                                                                    1000         vector       1x1x1000
"""

VIT_NNX = """
patch_embeddings/kernel                     16,16,3,768  conv(16,16)  1x768x768
patch_embeddings/bias                       768          vector       1x1x768
position_embeddings                         1,197,768    embedding    1x197x768
cls_token                                   1,1,768      embedding    1x1x768
register_tokens                             1,4,768      embedding    1x4x768
encoder/layers/0/{norm1,norm2}/{scale,bias}  768         vector       1x1x768
encoder/layers/0/attn/{query,key,value}/kernel  768,12,64  hidden     1x768x768
encoder/layers/0/attn/out/kernel            12,64,768    hidden       1x768x768
encoder/layers/0/attn/out/bias              768          vector       1x1x768
encoder/layers/0/mlp/layers/0/kernel        768,3072     hidden       1x768x3072
encoder/layers/0/mlp/layers/3/kernel        3072,768     hidden       1x3072x768
encoder/layers/0/{ls1,ls2}/gamma            768          vector       1x1x768
final_norm/{scale,bias}                     768          vector       1x1x768
classifier/kernel                           768,1000     head         1x768x1000
"""

VIT_EQUINOX = """
patch_embed/proj/weight                768,3,16,16  conv(16,16)  1x768x768
patch_embed/proj/bias                  768,1,1      vector       1x1x768
cls_token                              1,768        embedding    1x1x768
pos_embed                              197,768      embedding    1x197x768
blocks/0/{norm1,norm2}/{weight,bias}   768          vector       1x1x768
blocks/0/attn/qkv/weight               2304,768     hidden       1x768x2304
blocks/0/attn/qkv/bias                 2304         vector       1x1x2304
blocks/0/attn/proj/weight              768,768      hidden       1x768x768
blocks/0/mlp/fc1/weight                3072,768     hidden       1x768x3072
blocks/0/mlp/fc2/weight                768,3072     hidden       1x3072x768
norm/weight                            768          vector       1x1x768
head/weight                            1000,768     head         1x768x1000
"""

# A window attention's table, and a patch layer that is linear.
SWIN_LINEN = """
params/patch_embed/proj/kernel                     4,4,3,96  conv(4,4)  1x48x96
params/layers_0/blocks_0/attn/relative_position_bias_table  169,3  embedding  1x169x3
params/layers_0/blocks_0/attn/qkv/kernel           96,288    hidden  1x96x288
params/layers_0/blocks_0/attn/proj/kernel          96,96     hidden  1x96x96
params/layers_0/downsample/reduction/kernel        384,192   hidden  1x384x192
params/layers_0/downsample/norm/scale              384       vector  1x1x384
"""

# Flax's own example: automatic names, batch statistics beside the parameters.
RESNET_LINEN = """
params/conv_init/kernel                         7,7,3,64     conv(7,7)  1x147x64
params/bn_init/{scale,bias}                     64           vector     1x1x64
params/BottleneckResNetBlock_0/Conv_0/kernel    1,1,64,64    conv(1,1)  1x64x64
params/BottleneckResNetBlock_0/Conv_1/kernel    3,3,64,64    conv(3,3)  1x576x64
params/BottleneckResNetBlock_0/Conv_2/kernel    1,1,64,256   conv(1,1)  1x64x256
params/BottleneckResNetBlock_0/BatchNorm_0/{scale,bias}  64  vector     1x1x64
params/BottleneckResNetBlock_0/conv_proj/kernel  1,1,64,256  conv(1,1)  1x64x256
params/BottleneckResNetBlock_0/norm_proj/{scale,bias}  256   vector     1x1x256
params/Dense_0/kernel                           2048,1000    hidden?    1x2048x1000
params/Dense_0/bias                             1000         vector     1x1x1000
batch_stats/bn_init/{mean,var}                  64           statistic  1x1x64
batch_stats/BottleneckResNetBlock_0/BatchNorm_0/{mean,var}  64  statistic  1x1x64
"""

RESNET_NNX = """
stem/conv/kernel                    7,7,3,64    conv(7,7)  1x147x64
stem/bn/{scale,bias}                64          vector     1x1x64
stem/bn/{mean,var}                  64          statistic  1x1x64
layer1/layers/0/conv1/kernel        3,3,64,64   conv(3,3)  1x576x64
layer1/layers/0/bn1/{scale,bias}    64          vector     1x1x64
layer1/layers/0/bn1/{mean,var}      64          statistic  1x1x64
layer2/layers/0/downsample/layers/0/kernel  1,1,64,128  conv(1,1)  1x64x128
fc/kernel                           512,1000    hidden?    1x512x1000
"""

RESNET_EQUINOX = """
conv1/weight                        64,3,7,7    conv(7,7)  1x147x64
bn1/{weight,bias}                   64          vector     1x1x64
layer1/layers/0/conv1/weight        64,64,3,3   conv(3,3)  1x576x64
layer2/layers/0/downsample/layers/0/weight  128,64,1,1  conv(1,1)  1x64x128
fc/weight                           1000,512    hidden?    1x512x1000
"""

# Depthwise by name, by guess, and the first layer over one channel.
MOBILENET_LINEN = """
params/Conv_0/kernel                        3,3,1,32     conv(3,3)   1x9x32
params/block_0/depthwise/kernel             3,3,1,32     depthwise   1x9x32
params/block_1/dwconv/kernel                7,7,1,96     depthwise   1x49x96
params/InvertedResidual_0/Conv_1/kernel     3,3,1,96     depthwise?  1x9x96
params/InvertedResidual_0/Conv_2/kernel     1,1,96,24    conv(1,1)   1x96x24
"""

MNIST_LINEN = """
params/Conv_0/kernel      3,3,1,16  conv(3,3)  1x9x16
params/Conv_1/kernel      3,3,16,32 conv(3,3)  1x144x32
params/logits/kernel      800,10    head       1x800x10
"""

# Stable Diffusion's in Flax.
UNET_LINEN = """
conv_in/kernel                                  3,3,4,320    conv(3,3)  1x36x320
time_embedding/linear_{1,2}/kernel              1280,1280    hidden     1x1280x1280
time_embedding/linear_{1,2}/bias                1280         vector     1x1x1280
down_blocks_0/resnets_0/{norm1,norm2}/scale     320          vector     1x1x320
down_blocks_0/resnets_0/{conv1,conv2}/kernel    3,3,320,320  conv(3,3)  1x2880x320
down_blocks_0/resnets_0/time_emb_proj/kernel    1280,320     hidden     1x1280x320
down_blocks_0/attentions_0/{proj_in,proj_out}/kernel  1,1,320,320  conv(1,1)  1x320x320
down_blocks_0/attentions_0/transformer_blocks_0/attn2/to_q/kernel  320,320  hidden  1x320x320
down_blocks_0/attentions_0/transformer_blocks_0/attn2/{to_k,to_v}/kernel  768,320  hidden  1x768x320
down_blocks_0/attentions_0/transformer_blocks_0/attn2/to_out_0/kernel  320,320  hidden  1x320x320
down_blocks_0/attentions_0/transformer_blocks_0/ff/net_0/proj/kernel  320,2560  hidden  1x320x2560
down_blocks_0/attentions_0/transformer_blocks_0/ff/net_2/kernel  1280,320  hidden  1x1280x320
down_blocks_0/downsamplers_0/conv/kernel        3,3,320,320  conv(3,3)  1x2880x320
up_blocks_0/resnets_0/conv_shortcut/kernel      1,1,640,320  conv(1,1)  1x640x320
conv_norm_out/{scale,bias}                      320          vector     1x1x320
conv_out/kernel                                 3,3,320,4    conv(3,3)  1x2880x4
"""

# Heads as axes.
UNET_NNX = """
time_embedding/Dense_0/kernel        128,512     hidden     1x128x512
conv_in/kernel                       3,3,3,128   conv(3,3)  1x27x128
down/0/block/0/conv1/kernel          3,3,128,128 conv(3,3)  1x1152x128
down/0/attn/0/{to_q,to_k,to_v}/kernel  128,4,32  hidden     1x128x128
down/0/attn/0/to_out/kernel          4,32,128    hidden     1x128x128
down/0/downsample/kernel             3,3,128,128 conv(3,3)  1x1152x128
"""

UNET_EQUINOX = """
time_mlp/layers/0/weight             512,128      hidden     1x128x512
first_conv/weight                    128,3,3,3    conv(3,3)  1x27x128
first_conv/bias                      128,1,1      vector     1x1x128
down_res_blocks/0/block1_conv/weight  128,128,3,3 conv(3,3)  1x1152x128
down_res_blocks/0/block1_groupnorm/weight  128    vector     1x1x128
down_res_blocks/0/attn/to_qkv/weight  384,128     hidden     1x128x384
ups/0/up/weight                      64,128,4,4   conv(4,4)  1x2048x64
final_conv_layers/0/weight           3,128,1,1    conv(1,1)  1x128x3
layer_norm/{weight,bias}             8,16,16      vector     1x1x2048
"""

# Transformers'.
CLIP_LINEN = """
text_model/embeddings/token_embedding/embedding     49408,512   embedding    1x49408x512
text_model/embeddings/position_embedding/embedding  77,512      embedding    1x77x512
text_model/encoder/layers/0/self_attn/{q_proj,k_proj,v_proj,out_proj}/kernel  512,512  hidden  1x512x512
text_model/encoder/layers/0/self_attn/{q_proj,k_proj,v_proj,out_proj}/bias    512      vector  1x1x512
text_model/encoder/layers/0/layer_norm{1,2}/{scale,bias}  512   vector       1x1x512
text_model/encoder/layers/0/mlp/fc1/kernel          512,2048    hidden       1x512x2048
text_model/encoder/layers/0/mlp/fc2/kernel          2048,512    hidden       1x2048x512
text_model/final_layer_norm/{scale,bias}            512         vector       1x1x512
vision_model/embeddings/class_embedding             768         vector       1x1x768
vision_model/embeddings/patch_embedding/kernel      32,32,3,768 conv(32,32)  1x3072x768
vision_model/embeddings/position_embedding/embedding  50,768    embedding    1x50x768
vision_model/pre_layrnorm/{scale,bias}              768         vector       1x1x768
visual_projection/kernel                            768,512     hidden       1x768x512
text_projection/kernel                              512,512     hidden       1x512x512
logit_scale                                         ()          vector       1x1x1
"""

CLIP_NNX = """
text/token_embedding/embedding       49408,512   embedding    1x49408x512
text/positional_embedding            77,512      embedding    1x77x512
text/blocks/0/attn/{query,key,value}/kernel  512,8,64  hidden 1x512x512
text/blocks/0/attn/out/kernel        8,64,512    hidden       1x512x512
vision/embedding/kernel              32,32,3,768 conv(32,32)  1x3072x768
vision/class_embedding               1,768       embedding    1x1x768
vision/positional_embedding          50,768      embedding    1x50x768
logit_scale                          ()          vector       1x1x1
"""

CLIP_EQUINOX = """
token_embedding/weight                49408,512    embedding   1x49408x512
positional_embedding                  77,512       embedding   1x77x512
transformer/resblocks/0/attn/{query_proj,key_proj,value_proj,output_proj}/weight  512,512  hidden  1x512x512
transformer/resblocks/0/ln_{1,2}/{weight,bias}  512  vector    1x1x512
transformer/resblocks/0/mlp/c_fc/weight    2048,512  hidden    1x512x2048
transformer/resblocks/0/mlp/c_proj/weight  512,2048  hidden    1x2048x512
visual/conv1/weight                   768,3,32,32  conv(32,32) 1x3072x768
visual/class_embedding                768          vector      1x1x768
visual/proj                           768,512      hidden      1x768x512
text_projection                       512,512      hidden      1x512x512
"""
