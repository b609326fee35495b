"""GRU and LSTM; the modules themselves are built in the tests."""

RNN_LINEN = """
params/gru/{ir,iz,in}/kernel      8,64    hidden  1x8x64
params/gru/{ir,iz,in}/bias        64      vector  1x1x64
params/gru/{hr,hz,hn}/kernel      64,64   hidden  1x64x64
params/gru/hn/bias                64      vector  1x1x64
params/lstm/{ii,if,ig,io}/kernel  64,64   hidden  1x64x64
params/lstm/{hi,hf,hg,ho}/kernel  64,64   hidden  1x64x64
params/lstm/{hi,hf,hg,ho}/bias    64      vector  1x1x64
params/head/kernel                64,10   head    1x64x10
params/head/bias                  10      vector  1x1x10
"""

RNN_NNX = """
embed/embedding         100,8   embedding  1x100x8
gru/dense_i/kernel      8,192   hidden     1x8x192
gru/dense_i/bias        192     vector     1x1x192
gru/dense_h/kernel      64,192  hidden     1x64x192
lstm/dense_i/kernel     64,256  hidden     1x64x256
lstm/dense_h/kernel     64,256  hidden     1x64x256
lstm/dense_h/bias       256     vector     1x1x256
"""

RNN_EQUINOX = """
embed/weight            100,8   embedding  1x100x8
gru/weight_ih           192,8   hidden     1x8x192
gru/weight_hh           192,64  hidden     1x64x192
gru/bias                192     vector     1x1x192
gru/bias_n              64      vector     1x1x64
lstm/weight_ih          256,64  hidden     1x64x256
lstm/weight_hh          256,64  hidden     1x64x256
lstm/bias               256     vector     1x1x256
"""
