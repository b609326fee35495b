# ruff: noqa: E501
"""What a leaf is, by its name and shape: roles, views, guesses and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dropmuon_optax as dm
from dropmuon_optax.layers import NAME_RULES, read
from dropmuon_optax.layers.layouts import Key, fit

LEAVES = [  # (path, shape, (matrices, fan_in, fan_out))
    ("dense/kernel", (8, 4), (1, 8, 4)),
    ("conv/kernel", (5, 8, 4), (1, 40, 4)),
    ("conv/kernel", (3, 3, 8, 4), (1, 72, 4)),
    ("conv/kernel", (3, 3, 3, 2, 4), (1, 54, 4)),
    ("dense/bias", (4,), (1, 1, 4)),
    ("temperature", (), (1, 1, 1)),
    ("attn/query/kernel", (16, 4, 6), (1, 16, 24)),
    ("attn/value/kernel", (16, 4, 6), (1, 16, 24)),
    ("attn/out/kernel", (4, 6, 16), (1, 24, 16)),
    ("blocks/norm/scale", (12, 16), (12, 1, 16)),
    ("blocks/dense/bias", (12, 16), (12, 1, 16)),
    ("attn/query/bias", (4, 6), (4, 1, 6)),
]


@pytest.mark.parametrize(("path", "shape", "expected"), LEAVES, ids=str)
def test_default_views(path, shape, expected):
    assert read(path, shape).view.matrix_shape(shape) == expected


def test_equinox_weights_have_fan_out_first():
    view = read("mlp/layers/0/weight", (4, 8), attribute=True).view
    x = np.arange(32).reshape(4, 8)
    np.testing.assert_array_equal(view.to_matrices(jnp.asarray(x))[0], x.T)
    conv = read("conv/weight", (4, 8, 3, 3), attribute=True).view
    assert conv.matrix_shape((4, 8, 3, 3)) == (1, 72, 4)
    bias = read("conv/bias", (4, 1, 1), attribute=True).view
    assert bias.matrix_shape((4, 1, 1)) == (1, 1, 4)
    assert read("mlp/bias", (12, 4)).view.matrix_shape((12, 4)) == (12, 1, 4)
    # A dictionary's key may be called `weight` without that.
    plain = read("layer/weight", (4, 8)).view
    assert plain.matrix_shape((4, 8)) == (1, 4, 8)


@pytest.mark.parametrize(
    ("path", "shape", "kind"),
    [
        ("transformer/multi_head_attention/query/kernel", (8, 2, 4), "hidden"),
        ("multihead_attn/out_proj/kernel", (8, 8), "hidden"),
        ("wte/embedding", (50, 8), "embedding"),
        ("token_embedder/embedding", (50, 8), "embedding"),
        ("pos_embedding", (50, 8), "embedding"),
        ("lm_head/kernel", (8, 50), "head"),
        ("head/kernel", (8, 50), "head"),
        ("params/output/kernel", (8, 50), "head"),
        ("bert/layer_0/output/kernel", (8, 8), "hidden"),
        ("classifier/kernel", (8, 50), "head"),
        ("header_block/kernel", (8, 8), "hidden"),
        ("head/bias", (50,), "vector"),
        ("blocks/ln/scale", (12, 8), "vector"),
        ("stem/kernel", (3, 3, 3, 8), "conv"),
        ("dw/kernel", (3, 3, 1, 8), "depthwise"),
    ],
)
def test_roles_by_name_and_shape(path, shape, kind):
    assert read(path, shape).role == kind


OVER_READ = [  # names that hold a word of embeddings, heads or depthwise layers
    ("patch_embed/kernel", (7, 7, 3, 64), "conv"),
    ("embedding/kernel", (16, 16, 3, 768), "conv"),
    ("time_embedding/Dense_0/kernel", (128, 512), "hidden"),
    ("embedder/kernel", (64, 256), "hidden"),
    ("q_head/kernel", (64, 64), "hidden"),
    ("attn/head_0/kernel", (64, 16), "hidden"),
    ("conv1/kernel", (3, 3, 1, 16), "conv"),
    ("params/Conv_0/kernel", (5, 5, 1, 64), "conv"),
    ("encoder/Conv_0/kernel", (3, 3, 1, 32), "conv"),
    ("pre_logits/kernel", (64, 64), "hidden"),
    ("moe/shared/kernel", (64, 64), "hidden"),
    ("d", (64, 48), "hidden"),
    ("conv", (64, 48), "hidden"),
]
UNDER_READ = [
    ("token_embedding", (512, 16), "embedding"),
    ("tok_emb", (512, 16), "embedding"),
    ("word_embeddings", (512, 16), "embedding"),
    ("positional_embedding", (77, 16), "embedding"),
    ("pos_enc", (1, 77, 16), "embedding"),
    ("register_tokens", (1, 4, 16), "embedding"),
    ("relative_position_bias_table", (169, 3), "embedding"),
    ("embed_out/kernel", (16, 512), "head"),
    ("model/output/kernel", (16, 512), "head"),
    ("bert/layer_0/output/kernel", (16, 16), "hidden"),
    ("unembed/kernel", (16, 512), "head"),
    ("unembed", (16, 512), "head"),
    ("lora/b", (4, 64), "hidden"),
    ("A_log", (64, 16), "vector"),
]


@pytest.mark.parametrize(("path", "shape", "role"), OVER_READ + UNDER_READ, ids=str)
def test_words_are_neither_over_read_nor_under_read(path, shape, role):
    assert read(path, shape).role == role


@pytest.mark.parametrize(
    ("path", "shape", "attribute"),
    [
        ("w", (8, 16, 64), False),
        ("kernel", (8, 32, 16), False),
        ("block/kernel", (12, 64, 64), False),
        ("Einsum_0/kernel", (8, 32, 16), False),
        ("w", (2, 2, 32, 16), False),
        ("layers/3/weight", (8, 4, 3), True),  # Conv1d, or LayerNorm((8, 4, 3))
        ("self_attention/query/kernel", (16, 3, 4, 8), False),  # scanned on axis 1
        ("moe_block/wi_0", (4, 3, 16, 32), False),
        ("moe_block/gate/kernel", (16, 3, 4), False),
        ("mlp/wi_0/kernel", (16, 3, 32), False),
        ("layers/q_proj/kernel", (32, 4096, 4096), False),  # layers, or heads?
        ("layers/o_proj/kernel", (32, 4096, 4096), False),
    ],
    ids=str,
)
def test_what_can_not_be_told_is_not_told(path, shape, attribute):
    assert read(path, shape, attribute=attribute).role is None


@pytest.mark.parametrize(
    "geometry", [dm.scion_geometry, dm.ball_geometry, dm.muon_geometry]
)
def test_refusals_write_the_rules_that_settle_them(geometry):
    params = {
        "a": {"w": jnp.ones((2, 4, 8))},
        "b.c": {"w": jnp.ones((2, 2, 4, 8))},
        "dense": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)},
    }
    with pytest.raises(ValueError, match=r"'a/w' of shape .*'b.c/w' of shape") as error:
        dm.layers_by_path(None, geometry)(params)
    layers = eval(str(error.value).partition("Write\n")[2], {"dm": dm})
    tree = layers(params)
    assert tree["a"]["w"].view == dm.View((-2,), (-1,))
    assert tree["b.c"]["w"].view == dm.View((-2,), (-1,))
    assert tree["a"]["w"].norm == tree["dense"]["kernel"].norm
    assert tree["a"]["w"].radius == tree["dense"]["kernel"].radius
    dm.describe(layers, params, strict=True)


@pytest.mark.parametrize("make", [dm.muon, dm.scion, dm.gluon])
def test_optimizers_refuse_before_the_first_step(make):
    with pytest.raises(ValueError, match="'w' of shape"):
        make(0.1).init({"w": jnp.ones((8, 16, 64))})


def test_a_rule_with_a_view_is_never_refused():
    params = {"w": jnp.ones((2, 4, 8)), "kernel": jnp.ones((4, 8))}
    rule = ("^w$", dm.norms.scion_spectral(), 1.0, dm.View((0, 1), (2,)))
    layers = dm.layers_by_path(None, [rule, dm.scion_geometry])
    assert layers(params)["w"] == dm.Layer(None, *rule[1:])
    assert layers(params)["kernel"].norm == dm.norms.scion_spectral()
    dead = dm.layers_by_path(None, [("tail", None, 1.0), dm.muon_geometry])
    with pytest.raises(ValueError, match=r"rule of `geometry` .* got \['tail'\]"):
        dead({"kernel": params["kernel"]})


def test_a_geometry_function_may_return_a_view_and_take_the_reading():
    view = dm.View((1,), (0,))

    def geometry(path, shape, reading):
        assert reading == read(path, shape)
        return dm.norms.Spectral(), 1.0, view

    tree = dm.layers_by_path(None, geometry)({"w": jnp.ones((4, 8))})
    assert tree["w"] == dm.Layer(None, dm.norms.Spectral(), 1.0, view)


GUESSED = {
    "Dense_0": {"kernel": jnp.ones((4, 8))},
    "dense": {"kernel": jnp.ones((4, 8))},
    "x.y": {"weight": jnp.ones((4, 8))},
}


def test_describe_shows_guesses_and_refuses_them_if_strict():
    layers = dm.layers_by_path(None, dm.muon_geometry)
    text = dm.describe(layers, GUESSED)
    header, auto, sure, torch = text.splitlines()
    assert header.split()[-1] == "guessed"
    assert auto.endswith(
        "hidden (guess: may be the output head: automatic names don't tell)"
    )
    assert sure.endswith("1 × (4, 8)")
    assert "may be (fan_out, fan_in)" in torch
    with pytest.raises(
        ValueError, match=r"'Dense_0/kernel', .*'x.y/weight', "
    ) as error:
        dm.describe(layers, GUESSED, strict=True)
    assert "dense/kernel" not in str(error.value)
    rules = str(error.value).partition("Write\n")[2]
    assert "    dm.muon_geometry,\n" in rules
    settled = eval(rules, {"dm": dm})
    left = dm.describe(settled, GUESSED, strict=True)
    assert "guessed" not in left


def test_describe_shows_all_evidence_and_every_name_on_request():
    text = dm.describe(
        dm.layers_by_path(None), {"wte": jnp.ones((9, 4))}, evidence=True
    )
    first = text.splitlines()[1]
    assert "embedding (name: " in first
    for rule in NAME_RULES:
        assert rule.pattern in text
        assert rule.seen_in in text


def test_views_of_a_dictionarys_convolutions_follow_the_shape():
    torch, flax = (64, 3, 7, 7), (7, 7, 3, 64)
    assert read("conv/weight", torch).view.matrix_shape(torch) == (1, 147, 64)
    assert read("conv/weight", flax).view.matrix_shape(flax) == (1, 147, 64)
    assert read("conv/weight", torch).spatial == (7, 7)


@pytest.mark.parametrize(
    ("layout", "message"),
    [("CHD", "`layout` must look like"), ("CF: C→F, F≥_", "compare products")],
)
def test_layouts_that_say_nothing_are_refused(layout, message):
    with pytest.raises(ValueError, match=message):
        fit(layout, (4, 8))


def test_each_layout_names_axes_that_it_has():
    for rule in NAME_RULES:
        for layout in rule.layouts:
            axes = layout.partition(":")[0]
            sizes = [int(a) if a.isdigit() else 64 if a in "CF" else 2 for a in axes]
            view = fit(layout, tuple(sizes))
            assert view is not None, layout
            rule.match(Key("x", tuple(sizes)))


@pytest.mark.parametrize(
    ("name", "shape", "matrices"),
    [
        (("moe", "wi"), (4, 16, 32), lambda w: w),
        (("moe", "wi"), (64, 16, 32), lambda w: w),
        (("attn", "q_einsum", "w"), (8, 32, 16), lambda w: w.transpose(1, 0, 2).reshape(1, 32, 128)),
        (("attn", "attn_vec_einsum", "w"), (8, 16, 32), lambda w: w.reshape(1, 128, 32)),
        (("attn", "kv_einsum", "w"), (2, 2, 32, 16), lambda w: w.transpose(0, 2, 1, 3).reshape(2, 32, 32)),
        (("mlp", "gating_einsum", "w"), (2, 32, 64), lambda w: w),
        (("attn", "qkv", "kernel"), (32, 3, 4, 8), lambda w: w.transpose(1, 0, 2, 3).reshape(3, 32, 32)),
        (("attn", "to_q", "kernel"), (32, 4, 8), lambda w: w.reshape(1, 32, 32)),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)  # fmt: skip
def test_a_step_of_scion_is_as_long_as_the_linear_map_says(name, shape, matrices):
    """√(n_out/n_in) in the spectral norm, whatever counts heads, experts or gates."""
    g = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tree = jnp.asarray(g)
    for key in reversed(name):
        tree = {key: tree}
    layers = dm.layers_by_path(None, dm.scion_geometry)
    tx = dm.scale_by_lmo(layers)
    step, _ = tx.update(tree, tx.init(tree), tree)
    for x in matrices(np.asarray(jax.tree.leaves(step)[0], np.float64)):
        length = np.linalg.norm(x, 2) * np.sqrt(x.shape[0] / x.shape[1])
        assert 0.6 < length < 1.3  # five steps of Newton-Schulz


class Weighted(nnx.Module):
    def __init__(self):
        self.weight = nnx.Param(jnp.ones((4, 8)))


def test_an_nnx_variables_value_is_no_attribute():
    """A `weight` in an `nnx.State` is a dictionary's: nothing says that it is (out, in)."""
    state = nnx.state(Weighted(), nnx.Param)
    text = dm.describe(dm.layers_by_path(None), state)
    assert "1 × (4, 8)" in text
    assert "may be (fan_out, fan_in)" in text


@pytest.mark.parametrize("shape", [(0, 8, 4), (8, 0, 4), (2, 3, 0, 4, 5, 6)])
def test_without_entries_axes_need_no_telling(shape):
    params = {"extra": {"kernel": jnp.zeros(shape)}}
    for tx in (dm.muon(0.1), dm.scion(0.1), dm.gluon(0.1)):
        updates, _ = tx.update(params, tx.init(params), params)
        assert updates["extra"]["kernel"].shape == shape
    with pytest.raises(ValueError, match="must be told by name or shape"):
        dm.muon(0.1).init({"extra": {"kernel": jnp.zeros((1, 8, 4))}})


@pytest.mark.parametrize("name", ["fc", "out", "readout", "to_logits", "final_dense"])
def test_what_may_be_an_output_head_is_a_guess(name):
    for path in (f"{name}/kernel", f"params/{name}/kernel"):
        reading = read(path, (512, 10))
        assert (reading.role, reading.evidence) == ("hidden", "guess")
    assert read(f"block_3/{name}/kernel", (512, 512)).evidence != "guess"


def test_a_convolution_before_the_head_is_one():
    assert read("conv_head/kernel", (1, 1, 64, 256)).role == "conv"
    assert read("lm_head/kernel", (64, 256)).role == "head"


@pytest.mark.parametrize(
    ("path", "shape", "role", "evidence"),
    [
        ("x/q_proj/kernel", (24, 16, 16), "hidden", "guess"),  # 24 scanned matrices?
        ("x/q_proj/kernel", (256, 16, 8), "hidden", "name"),
        ("x/to_out/kernel", (8, 64, 64), "hidden", "guess"),
        ("local/kernel", (32, 32, 144, 4), "conv", "guess"),  # linen's ConvLocal
        ("embedding/kernel", (16, 16, 3, 64), "conv", "shape"),
        ("block/mix/kernel", (11, 11, 8, 64), "conv", "shape"),
        ("block/mix/kernel", (12, 12, 8, 64), "conv", "guess"),
        ("block/mix/kernel", (3, 3, 1, 64), "depthwise", "guess"),
        ("block/mix/kernel", (3, 3, 1, 63), "conv", "guess"),
        ("time_decay", (8, 64), "vector", "name"),
        ("log_std", (1, 4), "vector", "name"),
        ("registers", (4, 64), "embedding", "name"),
        ("slots", (7, 64), "embedding", "name"),
    ],
)
def test_what_else_a_shape_may_mean(path, shape, role, evidence):
    reading = read(path, shape)
    assert (reading.role, reading.evidence) == (role, evidence)


def test_without_layers_each_optimizers_own_are_described():
    params = {"hidden": {"kernel": jnp.ones((4, 8))}, "bias": jnp.ones(8)}
    text = dm.describe(None, params)
    tables = [
        dm.describe(dm.layers_by_path(None, geometry), params)
        for geometry in (dm.muon_geometry, dm.ball_geometry, dm.scion_geometry)
    ]
    names = ("muon", "scion", "gluon, and scion(constrained=False)")
    parts = zip(names, tables, strict=True)
    assert text == "\n\n".join(f"{name}\n{table}" for name, table in parts)
    rules = dm.describe(None, params, evidence=True).count("role  ")
    assert rules == 1  # the names, once below all tables


def test_a_convolution_prints_as_the_call_that_makes_it():
    text = dm.describe(None, {"conv": {"kernel": jnp.ones((3, 3, 4, 8))}})
    assert text.count("scion_conv(3, 3)") == 2
    assert "Scaled" not in text


@pytest.mark.parametrize(
    ("shape", "evidence"),
    [
        ((11, 11, 8, 16), "shape"),
        ((12, 12, 8, 16), "guess"),
        ((16, 16, 4, 64), "shape"),
        ((16, 16, 5, 64), "guess"),
        ((32, 32, 3, 64), "shape"),
        ((1, 1, 5, 64), "shape"),
    ],
)
def test_kernels_without_a_name_are_sure_up_to_an_extent_or_over_an_image(
    shape, evidence
):
    found = read("x/kernel", shape)
    assert (found.role, found.evidence) == ("conv", evidence)
