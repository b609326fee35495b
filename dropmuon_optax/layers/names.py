"""What leaves' names say: the rules of the default geometries, in one table."""

from dropmuon_optax.layers.layouts import NameRule

_W = "(?:kernel|weight|w)"
_OUTPUT = "may be a hidden layer of a head with several"
_ATT = "att(?:n|en)"
_DENSE = r"(?:\w*dense|\w*linear|fc|(?:up|down|gate)_proj|c_fc|wi|wo|w[123]|mlp)"

# In order; the first that matches counts. What none matches is read by its shape.
NAME_RULES = (
    # Factors of adapters: `b` is no bias.
    NameRule(
        r"\w*lora\w*/(?:w_)?[ab]|\w*lora_?[ab]",
        "hidden",
        "LoRA in nnx and Gemma: (in, rank), (rank, out), and a pair for each head",
        ("IO: I→O", "BIO: I→O"),
    ),
    # Tables of relative positions: neither biases nor hidden.
    NameRule("rel_embedding", "embedding", "T5X: (heads, buckets)", ("HB: B→H, B≥H",)),
    NameRule(
        r"rel(?:ative)?_\w*(?:bias|pos)\w*(?:/weight)?", "embedding", "Swin, SAM, T5"
    ),
    # Vectors, with whatever is stacked in front of them.
    NameRule(
        r"\w*norm#/(?:weight|bias)",
        "vector",
        "Equinox LayerNorm((C, H, W)): one vector over all axes",
        ("CHW: →CHW", "CHWD: →CHWD"),
        attribute=True,
    ),
    NameRule(
        "bias",
        "vector",
        "Equinox convolutions: (C, 1, 1)",
        ("C1: →C", "C11: →C", "C111: →C"),
        attribute=True,
    ),
    NameRule(
        r"(?:bias|b|scale|gamma|beta|offset|shift|gain|mean|var)(?:_\w+)?"
        r"|\w+_(?:bias|scale|gamma|beta)|\w*layer_?scale#|ls#|lambda\w*|a_param|D_skip",
        "vector",
        "biases, scales and running statistics of every library",
    ),
    NameRule(
        r"(?:\w*norm|ln_?\w?|\w+_ln|\w*bn)#/weight|\w*norm#",
        "vector",
        "norms of Equinox, and of Llama in Flax",
    ),
    NameRule(
        "A_log|log_A|time_(?:decay|faaaa|first)|log_std",
        "vector",
        "Mamba, RWKV, policies: (channels, states), entry by entry",
        ("CN: →CN", "HCN: →HCN"),
    ),
    # Heads, before embeddings, whose words `unembed` and `embed_out` share.
    NameRule(
        rf"(?:unembed\w*|embed_out|logits(?:_dense|_linear)?#)(?:/{_W})?|W_U",
        "head",
        "MaxText, GPT-NeoX, TransformerLens",
    ),
    NameRule(
        r"(?:(?!multi|conv|q_|k_|v_|query|key|att)\w+_)?(?:head|classifier)"
        rf"(?:/{_W})?",
        "head",
        "Flax and Equinox models everywhere: head, lm_head, classifier",
    ),
    NameRule(
        rf"^(?!.*(?:[_/]\d+/|{_ATT}|mha|mlp|ffn|block|cell))(?:.*/)?output/{_W}"
        rf"|^(?:params/)?output(?:_layer)?/{_W}",
        "head",
        "Llama's own names: output, outside of numbered blocks",
        axes=(2,),
    ),
    NameRule(
        rf"^(?:params/)?output_proj(?:ection)?/{_W}",
        "head",
        "nnx and Equinox models",
        axes=(2,),
        doubt="may be the output of an attention layer",
    ),
    NameRule(
        rf"^(?!.*{_ATT})(?:.*/)?(?:(?!multi)\w+_)?(?:head|classifier)/.+/{_W}",
        "head",
        "heads of several layers",
        axes=(2,),
        doubt=_OUTPUT,
    ),
    NameRule(
        rf"(?:\w+_head|heads?)s?#/{_W}",
        "hidden",
        "attention by heads: q_head, head_0",
        axes=(2,),
        doubt="may be one of several output heads",
    ),
    # Embeddings: an array called so, or the `weight` of a module called so.
    NameRule(
        r"(?!\w*patch)\w*emb(?:ed(?:ding)?s?|s)?#(?:_\w+)?|wte|wpe|W_E|W_pos"
        r"|(?:lookup_)?table|codebook",
        "embedding",
        "Flax's embedding, Haiku's embeddings, bare arrays: pos_embedding, wte",
    ),
    NameRule(
        r"(?:abs\w*_)?pos(?:ition(?:al)?|itions)?(?:_enc\w*|_table)?"
        r"|cls|(?:\w+_)?tokens?|registers|slots|probe|latents|quer(?:ies|y_embed)|prompts?",
        "embedding",
        "ViT, DETR, Perceiver: positions and learned tokens",
    ),
    NameRule(
        r"(?:embed(?:ding|dings|der|s)?|embed_(?:tokens|positions|in)|lookup(?:_table)?"
        r"|(?:\w+_)?(?:tok|token|word|pos|position|positional|type|label|class|vocab)s?"
        r"_?emb(?:ed(?:ding|der)?s?|s)?)#/(?:weight|table)|(?:wte|wpe)/\w+|^(?:\w+/)?shared/weight",
        "embedding",
        "Equinox's Embedding: a row for each token",
    ),
    NameRule(
        r"(?!\w*(?:patch|time|step|cond|conv|image|img|audio))\w*emb(?:ed\w*)?#/weight",
        "embedding",
        "Equinox's Embedding: a row for each token",
        axes=(2,),
        doubt="may be a linear layer, stored (fan_out, fan_in)",
    ),
    # Convolutions, before what else is called `proj`.
    NameRule(
        r"(?:temporal_)?conv_?1d#/w",
        "depthwise",
        "Griffin: (taps, channels)",
        ("TC: T→C",),
    ),
    NameRule(
        r"conv\w*",
        "depthwise",
        "Mamba: bare (taps, channels) or (channels, taps)",
        ("TC: T→C, 8≥T, C≥8T", "CT: T→C, 8≥T, C≥8T"),
        doubt="may be a matrix",
    ),
    NameRule(
        rf"(?:\w*(?:depth_?wise|dw_?conv)\w*|dw|conv_dw|\w*(?:mixer|mamba|ssm)\w*/conv1?d?)#/{_W}",
        "depthwise",
        "MobileNet, ConvNeXt, Mamba: one input channel",
        ("K1O: K1→O, O≥K", "O1K: 1K→O", "HW1O: HW1→O", "O1HW: 1HW→O"),
    ),
    NameRule(
        rf"(?:\w*conv(?!ert|erg)\w*|stem\w*|\w*(?:down|up)_?sampl\w*|\w*patch\w*)#"
        rf"(?:/proj(?:ection)?)?#(?:/{_W})?",
        "conv",
        "Flax: spatial axes, in, out; Equinox: out, in, spatial axes",
        axes=(3, 4, 5),
    ),
    # Attention and gated layers as einsums.
    NameRule(
        r"[qkv]_einsum\w*/(?:w|kernel)",
        "hidden",
        "Gemma: (heads, model, head width)",
        ("NDH: D→NH",),
    ),
    NameRule(r"kv_einsum\w*/(?:w|kernel)", "hidden", "Gemma", ("2KDH: D→KH",)),
    NameRule(r"qkv_einsum\w*/(?:w|kernel)", "hidden", "Gemma", ("3NDH: D→NH",)),
    NameRule(
        r"attn_vec_einsum\w*/(?:w|kernel)",
        "hidden",
        "Gemma: (heads, head width, model)",
        ("NHD: NH→D",),
    ),
    NameRule(
        r"gating_einsum\w*(?:/w|/kernel)?",
        "hidden",
        "Gemma, either way round: the wider axis is fan_out",
        ("2DF: D→F, F≥D", "2FD: D→F, F≥D"),
    ),
    NameRule(
        r"(?:\w*qkv\w*|query_key_value|in_proj)#(?:/kernel|/w)?",
        "hidden",
        "DenseGeneral((3, heads, head width)): three matrices",
        ("C3HD: C→HD", "CH3D: C→HD", "C3D: C→D", "3CD: C→D"),
    ),
    NameRule(
        r"\w*kv\w*#(?:/kernel|/w)?",
        "hidden",
        "DenseGeneral((2, heads, head width))",
        ("C2HD: C→HD", "CH2D: C→HD", "C2D: C→D", "2CD: C→D"),
    ),
    NameRule(
        r"(?:query|key|value|q|k|v|qkv|[qkv]_proj|(?:query|key|value)_proj|to_[qkv]|w[qkv]"
        r"|[qkv]_heads?|wq_b|wkv_b)#(?:/kernel|/w)?",
        "hidden",
        "nnx and linen attention, MaxText: (model, heads, head width), heads merged",
        ("CHD: C→HD, C≥D",),
    ),
    NameRule(
        rf"^(?!.*{_ATT})(?!.*(?:gate|router)(?:/|$)).*(?:moe|expert)\w*/.*weight",
        "hidden",
        "experts of Equinox: a matrix for each",
        ("EOI: I→O",),
        attribute=True,
    ),
    NameRule(
        rf"^(?!.*{_ATT})(?!.*(?:gate|router)(?:/|$)).*(?:moe|expert)\w*(?:/.*)?",
        "hidden",
        "MaxText, Mixtral: (experts, in, out), a matrix for each",
        ("EIO: I→O",),
    ),
    NameRule(
        r"^(?!.*(?:mlp|ffn|moe|feed)).*(?:^|/)(?:out|o|o_proj|out_proj|output|output_proj"
        r"|c_proj|proj|to_out|attn_out)#(?:/kernel|/w)?",
        "hidden",
        "nnx and linen attention: (heads, head width, model)",
        ("HDC: HD→C, C≥D, 8C≥HD",),
    ),
    NameRule(
        rf"^.*{_ATT}.*/wo(?:/kernel|/w)?",
        "hidden",
        "attention: (heads, head width, model)",
        ("HDC: HD→C, C≥D, 8C≥HD",),
    ),
    NameRule(
        r"^(?!.*(?:mlp|ffn|moe|feed)).*(?:^|/)wo(?:/kernel|/w)?",
        "hidden",
        "attention: (heads, head width, model)",
        ("HDC: HD→C, C≥D, 8C≥HD",),
        doubt="may be experts' outputs, (experts, in, out)",
    ),
    # Dense layers under names that don't tell, or that someone stores transposed.
    NameRule(
        r"(?:\w*emb(?:ed\w*)?|wte|wpe)/weight/(?:array|0)",
        "embedding",
        "Haliax and Levanter: a row for each token",
    ),
    NameRule(
        r"(?:\w+_)?head/weight/(?:array|0)",
        "head",
        "Haliax and Levanter",
        axes=(2,),
        doubt="may be stored (fan_out, fan_in): Haliax has both",
    ),
    NameRule(
        r"weight/(?:array|0)",
        "hidden",
        "Haliax and Levanter",
        axes=(2,),
        doubt="may be stored (fan_out, fan_in): Haliax has both",
    ),
    NameRule(
        r"(?:c_attn|c_fc)/kernel",
        "hidden",
        "GPT-2 of Transformers stores (out, in), others (in, out): out is the wider",
        ("CF: C→F, F≥C", "FC: C→F, F≥C"),
        attribute=False,
    ),
    NameRule(
        r"mlp/c_proj/kernel",
        "hidden",
        "GPT-2, as above: in is the wider",
        ("FC: F→C, F≥C", "CF: F→C, F≥C"),
        attribute=False,
    ),
    NameRule(
        r"weight_(?:ih|hh)\w*|in_proj_weight",
        "hidden",
        "cells of Equinox: (gates·hidden, in)",
        ("OI: I→O",),
    ),
    NameRule(
        rf"{_DENSE}#/weight",
        "hidden",
        "linear layers of Equinox, stacked",
        ("LOI: I→O, I≥L, O≥L",),
        attribute=True,
        doubt="a stack of linear layers, if the leading axis counts them",
    ),
    NameRule(
        rf"{_DENSE}#(?:/kernel|/w)?",
        "hidden",
        "dense layers, stacked by a scan",
        ("LIO: I→O, I≥L, O≥L",),
        doubt="a stack of dense layers, if the leading axis counts them",
    ),
    NameRule(
        r"^(?:params/)?Dense_\d+/kernel",
        "hidden",
        "linen's automatic names",
        axes=(2,),
        doubt="may be the output head: automatic names don't tell",
    ),
    NameRule(
        r"^(?:params/)?(?:fc|fc_out|linear_out|out|out_layer|final\w*|readout|to_logits"
        rf"|scores?|predictions?|decoder|policy|value|actor|critic|q_values)/{_W}",
        "hidden",
        "last layers: ResNet's fc, out, readout",
        axes=(2,),
        doubt="may be the output head",
    ),
)
