"""Layers by path: order, geometry, stacks, masks, module kinds, and every refusal."""

import re

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import dropmuon_optax as dm
from dropmuon_optax.layers import views

W = jnp.ones((4, 4))
V = jnp.ones(4)
ANY = [("", dm.norms.Frobenius(), 1.0)]


def transformer(num_blocks=11):
    blocks = {f"block_{i}": {"kernel": W, "bias": V} for i in range(num_blocks)}
    return {"embed": {"embedding": W}, **blocks, "head": {"kernel": W}}


def indices(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(k, simple=True, separator="/"): v.index for k, v in flat
    }


def test_numbers_are_ordered_as_numbers_not_as_keys():
    layers = dm.layers_by_path(["embed", r"block_(\d+)", "head"], ANY)
    tree = layers(transformer())
    found = indices(tree)
    assert found["embed/embedding"] == 0
    assert [found[f"block_{i}/kernel"] for i in range(11)] == list(range(1, 12))
    assert found["block_10/bias"] == found["block_10/kernel"] == 11
    assert found["head/kernel"] == 12
    assert dm.count_layers(tree) == 13


def test_numbers_need_not_be_consecutive_nor_start_at_zero():
    # A Flax Sequential numbers its activations too, and they have no parameters.
    params = {"layers_2": W, "layers_10": W, "layers_4": W}
    found = indices(dm.layers_by_path([r"layers_(\d+)"], ANY)(params))
    assert found == {"layers_2": 0, "layers_4": 1, "layers_10": 2}


def test_the_first_rule_that_matches_counts():
    geometry = [("bias", None, 1.0), ("block_1", dm.norms.RMS(), 2.0), *ANY]
    tree = dm.layers_by_path(None, geometry)(transformer(3))
    assert tree["block_1"]["bias"].norm is None
    assert tree["block_1"]["kernel"] == dm.Layer(None, dm.norms.RMS(), 2.0)
    assert tree["block_2"]["kernel"].norm == dm.norms.Frobenius()
    order = dm.layers_by_path(["head", ""], ANY)(transformer(2))
    assert order["head"]["kernel"].index == 0
    assert order["block_0"]["kernel"].index == order["embed"]["embedding"].index == 1


def test_a_rule_may_name_a_view():
    query = {"query": {"kernel": jnp.ones((8, 2, 4))}}
    geometry = [("query", dm.norms.Spectral(), 1.0, views.PER_HEAD_IN)]
    text = dm.describe(dm.layers_by_path(None, geometry), query)
    assert text.splitlines()[1].endswith("2 × (8, 4)")


def test_stacked_leaves_stand_for_as_many_layers():
    params = {
        "embed": W,
        "blocks": {"kernel": jnp.ones((5, 4, 4)), "scale": jnp.ones((5, 4))},
        "head": W,
    }
    layers = dm.layers_by_path(["embed", "blocks", "head"], ANY, stacked="blocks")
    tree = layers(params)
    assert tree["blocks"]["kernel"] == dm.Stacked(1, dm.norms.Frobenius(), length=5)
    assert tree["head"].index == 6
    assert dm.count_layers(tree) == 7
    text = dm.describe(layers, params)
    row = next(line for line in text.splitlines() if "blocks/kernel" in line)
    assert "1…5" in row
    assert row.endswith("5 × (4, 4)")


def test_count_layers_of_a_stack_without_length_takes_the_parameters():
    tree = {"a": dm.Layer(0, None), "b": dm.Stacked(1, None)}
    assert dm.count_layers(tree, {"a": W, "b": jnp.ones((3, 4))}) == 4
    with pytest.raises(ValueError, match="layer of 'b' must have a `length`"):
        dm.count_layers(tree)


def test_a_gap_in_the_indices_is_refused():
    tree = {"a": dm.Layer(0, None), "b": dm.Layer(3, None)}
    with pytest.raises(ValueError, match=r"got 3 for 'b' but no leaf for \[1, 2\]"):
        dm.count_layers(tree)
    with pytest.raises(ValueError, match="'a' must have a layer with an index"):
        dm.count_layers({"a": dm.Layer(None, None)})


@pytest.mark.parametrize(
    ("order", "geometry", "message"),
    [
        (
            ["embed", "head"],
            ANY,
            "`order` must match every leaf, got none for 'block_0",
        ),
        (["embd", "block", "head"], ANY, r"'embed[^;]*; no leaf matches \['embd'\]$"),
        (["tail", ""], ANY, "every rule of `order` must match .* got 'tail'"),
        (["", "head"], ANY, "every rule of `order` must match .* got 'head'"),
        ([r"(embed|head)", ""], ANY, "`order` must capture numbers, got 'embed'"),
        (None, [("kernel", None, 1.0)], "`geometry` must match every leaf, got none"),
        (
            None,
            [("embd", None, 1.0), ("block|head", None, 1.0)],
            r"matches \['embd'\];",
        ),
        (None, [("tail", None, 1.0), *ANY], r"rule of `geometry` .* got \['tail'\]"),
        (None, [*ANY, ("head", None, 1.0)], r"rule of `geometry` .* got \['head'\]"),
    ],
)
def test_rules_and_leaves_that_do_not_meet_are_refused(order, geometry, message):
    layers = dm.layers_by_path(order, geometry)
    with pytest.raises(ValueError, match=message):
        layers(transformer(2))


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: dm.layers_by_path(["("], ANY),
            r"`order` must hold regular expr.*'\('",
        ),
        (lambda: dm.layers_by_path([3], ANY), "`order` must hold regular expressions"),
        (lambda: dm.layers_by_path(None, [("a", None)]), "`geometry` must hold"),
        (
            lambda: dm.layers_by_path(None, [("a", "spectral", 1.0)]),
            "`norm` must be None or a norm, got 'spectral'",
        ),
        (
            lambda: dm.layers_by_path(None, [("a", dm.norms.RMS(), -1.0)]),
            r"`radius` must be in \[0.0, inf\), got -1.0",
        ),
        (lambda: dm.Layer(-1, None), "`index` must be None or a whole number"),
        (lambda: dm.Layer(1.5, None), "`index` must be None or a whole number"),
        (lambda: dm.Stacked(0, None, length=0), "`length` must be a whole number"),
        (lambda: dm.AdaptiveRadius(-1.0, 0.0), r"`l0` must be in \[0.0, inf\), got -1"),
        (lambda: dm.AdaptiveRadius(0, 0), "`l0` and `l1` must not both be 0"),
    ],
)
def test_malformed_arguments_are_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_stacked_refusals():
    layers = dm.layers_by_path(None, ANY, stacked="rocks")
    with pytest.raises(ValueError, match="`stacked` must match a leaf, got 'rocks'"):
        layers({"blocks": W})
    two = {"blocks": {"a": jnp.ones((3, 4)), "b": jnp.ones((2, 4))}}
    layers = dm.layers_by_path(["blocks"], ANY, stacked="blocks")
    with pytest.raises(ValueError, match=r"of one length, got \[2, 3\]"):
        layers(two)
    with pytest.raises(ValueError, match="leaves with a leading axis, got 'blocks'"):
        layers({"blocks": jnp.ones(())})


def test_masked_leaves_keep_their_place_in_the_order():
    layers = dm.layers_by_path(["embed", r"block_(\d+)", "head"], ANY)
    params = transformer(3)
    params["embed"]["embedding"] = optax.MaskedNode()
    params["block_1"] = {"kernel": optax.MaskedNode(), "bias": V}
    tree = layers(params)
    assert tree["embed"]["embedding"] == optax.MaskedNode()
    assert tree["block_1"]["bias"].index == 2
    assert tree["head"]["kernel"].index == 4


def test_a_tree_without_leaves_meets_no_rule():
    """`optax.tree_map_params` runs `init` on such a placeholder."""
    params = transformer(2)
    layers = dm.layers_by_path(["embed", r"block_(\d+)", "head"], ANY)
    assert layers({}) == {}
    for tx in (dm.gluon(0.1, layers), dm.scion(0.1, layers), dm.muon(0.1, layers)):
        state = optax.tree_map_params(tx, lambda x: x + 1.0, tx.init(params))
        ones = [x for x in jax.tree.leaves(state) if x.ndim and (x == 1).all()]
        assert len(ones) == len(jax.tree.leaves(params))  # every buffer, nothing else


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), name="conv")(x)
        x = nn.LayerNorm(name="norm")(x)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(10, 8, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])
        self.depthwise = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)


def rows(text):
    lines = [re.split(r"\s{2,}", line) for line in text.splitlines()[1:]]
    return {line[0]: line[1:] for line in lines}


def test_linen_modules():
    params = Linen().init(jax.random.key(0), jnp.ones((1, 8, 8, 2)))
    found = rows(dm.describe(dm.layers_by_path(["conv", "norm", "head"]), params))
    assert found["params/conv/kernel"][-1] == "1 × (18, 8)"
    assert found["params/conv/kernel"][2] == repr(dm.norms.scion_conv(3, 3))
    assert found["params/norm/scale"][2] == "RMS()"
    assert found["params/head/kernel"][1:4] == [
        "2",
        repr(dm.norms.scion_sign()),
        "16.0",
    ]


def test_nnx_states():
    state = nnx.state(Nnx(nnx.Rngs(0)), nnx.Param)
    order = ["embed", "attn", r"blocks/(\d+)", "depthwise", "head"]
    layers = dm.layers_by_path(order)
    found = rows(dm.describe(layers, state))
    assert found["embed/embedding"][2] == repr(dm.norms.scion_row())
    assert found["attn/query/kernel"][-1] == "1 × (8, 8)"
    assert found["attn/out/kernel"][2] == repr(dm.norms.scion_spectral())
    assert found["blocks/1/kernel"][1] == "3"
    assert found["depthwise/kernel"][2] == repr(dm.norms.scion_column())
    assert dm.count_layers(layers(state)) == 6
    muon = rows(dm.describe(dm.layers_by_path(None, dm.muon_geometry), state))
    moved = {path for path, row in muon.items() if not row[2].startswith("none")}
    kernels = {f"attn/{name}/kernel" for name in ("query", "key", "value", "out")}
    assert moved == {"blocks/0/kernel", "blocks/1/kernel"} | kernels


def test_equinox_modules():
    mlp = eqx.nn.MLP(2, 3, 5, 2, key=jax.random.key(0))
    params = eqx.filter(mlp, eqx.is_array)
    found = rows(dm.describe(dm.layers_by_path([r"layers/(\d+)"]), params))
    assert found["layers/0/weight"][0] == "(5, 2)"
    assert found["layers/0/weight"][-1] == "1 × (2, 5)"
    assert found["layers/2/bias"][1] == "2"


def test_describe_prints_what_it_returns(capsys):
    text = dm.describe(dm.layers_by_path(None), {"kernel": W})
    assert capsys.readouterr().out == text + "\n"
    assert text.splitlines()[0].split() == [
        "path", "shape", "layer", "norm", "radius", "matrices",
    ]  # fmt: skip


def test_layers_functions_that_return_something_else_are_refused():
    tx = dm.scale_by_lmo(lambda params: dm.Layer(0, dm.norms.RMS()))
    with pytest.raises(ValueError, match="`layers` must return a tree of the param"):
        tx.init({"a": W})
    tx = dm.scale_by_lmo(lambda params: jax.tree.map(lambda p: 3, params))
    with pytest.raises(ValueError, match="must return a `Layer` for 'a', got 3"):
        tx.init({"a": W})


def test_describe_shows_what_is_sent():
    params = {"kernel": jnp.zeros((64, 64)), "bias": jnp.zeros(64)}
    text = dm.describe(dm.layers_by_path(None), params, dm.compressors.Natural())
    bias, kernel = text.splitlines()[1:]
    # Vectors go dense; the others take 9 of 32 bits an entry.
    assert bias.split()[-2:] == ["Identity()", "100.0%"]
    assert kernel.split()[-2:] == ["Natural()", "28.1%"]
    with pytest.raises(ValueError, match=r"TopK\(0.0001\) at 'kernel'"):
        dm.describe(dm.layers_by_path(None), params, dm.compressors.TopK(0.0001))


def test_a_geometry_function_sees_shapes_in_flaxs_order():
    key, seen = jax.random.key(0), {}
    module = {"a": eqx.nn.Linear(8, 4, key=key), "b": eqx.nn.Conv2d(3, 5, 2, key=key)}

    def geometry(path, shape):
        seen[path] = shape
        return dm.norms.RMS(), 1.0

    dm.layers_by_path(None, geometry)(eqx.filter(module, eqx.is_array))
    weights = {path: shape for path, shape in seen.items() if "weight" in path}
    assert weights == {"a/weight": (8, 4), "b/weight": (2, 2, 3, 5)}
    assert seen["a/bias"] == (4,)
