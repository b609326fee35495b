"""The residual network and the transformer: sizes, layers, and what they compute."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dropmuon_optax as dm
from benchmarks.models import nanogpt, nanogpt_scan, resnet

TOKENS = jnp.array([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])


def shapes(build):
    """The shapes of what `build` returns beside the function."""
    return jax.eval_shape(lambda: build()[1])


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def layer_of_each_name(layers, params):
    tree = nnx.to_pure_dict(layers(params))
    assert dm.count_layers(tree) == len(tree)
    return {
        name: {leaf.index for leaf in jax.tree.leaves(layer)}
        for name, layer in tree.items()
    }


# The residual network.


def test_resnet_has_the_published_size():
    """As torchvision's ResNet-18 with a 3×3 stem and ten classes: 11 173 962."""
    params = shapes(lambda: resnet.build((32, 32, 3), "resnet18", seed=0))
    assert count(params) == 11_173_962


@pytest.mark.parametrize("preset", resnet.PRESETS)
def test_resnet_has_ten_layers_in_forward_order(preset):
    params = shapes(lambda: resnet.build((32, 32, 3), preset, seed=0))
    found = layer_of_each_name(resnet.layers(), params)
    assert found == {name: {i} for i, name in enumerate(resnet.LAYER_ORDER)}
    assert len(found) == 10


def test_resnet_gives_logits():
    def logits():
        apply, params = resnet.build((32, 32, 3), "tiny", seed=0)
        return apply(params, jnp.zeros((2, 32, 32, 3)))

    assert jax.eval_shape(logits).shape == (2, 10)


def test_a_residual_block_sees_each_image_alone(key):
    block = resnet.Block(8, 16, 2, rngs=nnx.Rngs(0))
    call = nnx.jit(type(block).__call__)
    maps = jax.random.normal(key, (2, 8, 8, 8))
    after, other = call(block, maps), call(block, maps.at[1].multiply(-1.0))
    assert after.shape == (2, 4, 4, 16)
    np.testing.assert_array_equal(after[0], other[0])
    assert bool(jnp.any(after[1] != other[1]))


# The transformer.


def test_gpt_has_the_published_size():
    """48 matrices 768², 24 of 768 × 3072, one of 50304 × 768."""
    params = shapes(lambda: nanogpt.build("124m", seed=0))
    assert count(params) == 48 * 768**2 + 24 * 768 * 3072 + 50304 * 768
    assert count(params) == 123_568_128


@pytest.mark.parametrize("preset", nanogpt.PRESETS)
def test_gpt_has_a_layer_for_each_block(preset):
    params = shapes(lambda: nanogpt.build(preset, seed=0))
    found = layer_of_each_name(nanogpt.layers(preset), params)
    assert found == {name: {i} for i, name in enumerate(nanogpt.layer_order(preset))}
    config = nanogpt.PRESETS[preset]
    assert len(found) == config.num_layers + (1 if config.tied else 2)


def test_gpt_does_not_look_ahead():
    apply, params = nanogpt.build("nano", seed=0)
    logits = jax.jit(apply)(params, TOKENS)
    other = jax.jit(apply)(params, TOKENS.at[0, 4].set(0))
    assert logits.shape == (2, 7, 32)
    np.testing.assert_array_equal(logits[0, :4], other[0, :4])
    np.testing.assert_array_equal(logits[1], other[1])
    assert bool(jnp.all(jnp.any(logits[0, 4:] != other[0, 4:], axis=-1)))


def test_gpt_in_bfloat16_keeps_float32(standard_promotion, key):
    """JAX's own attention needs standard promotion for anything but float32."""

    def logits_and_params():
        apply, params = nanogpt.build("nano", seed=0, dtype=jnp.bfloat16)
        return apply(params, TOKENS), params

    kept = jax.tree.leaves(jax.eval_shape(logits_and_params))
    assert {leaf.dtype for leaf in kept} == {np.dtype("float32")}
    config = nanogpt.PRESETS["nano"]
    blocks = [
        nanogpt.Block(config, dtype, rngs=nnx.Rngs(0))
        for dtype in (jnp.float32, jnp.bfloat16)
    ]
    x = jax.random.normal(key, (2, 7, config.width))
    exact, rounded = (nnx.jit(type(block).__call__)(block, x) for block in blocks)
    assert bool(jnp.any(exact != rounded))
    # some ten roundings to 8 bits, of entries of a few units
    np.testing.assert_allclose(rounded, exact, atol=0.2)


def test_gpt_can_tie_its_head():
    config = nanogpt.Config(1, 2, 16, 32, tied=True)
    tied = nanogpt.NanoGPT(config, rngs=nnx.Rngs(0))
    assert tied.head is None
    before = tied(TOKENS)
    tied.embed.embedding[...] *= 2.0  # the first norm does not see it, the logits do
    # not quite: the norm's ε is 3e-4 of the mean square of an entry of 0.02
    np.testing.assert_allclose(tied(TOKENS), 2.0 * before, atol=1e-3)


def test_gpt_refuses_heads_of_odd_width():
    config = nanogpt.Config(1, 2, 10, 32, tied=True)
    with pytest.raises(ValueError, match="divisible by twice the number of heads"):
        nanogpt.NanoGPT(config, rngs=nnx.Rngs(0))


def normalized(x):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 2.0**-23)


def block_by_the_book(x, weights, num_heads):
    """One block for one sequence (T, C), head by head, in NumPy and float64.

    A head's rotary pair (i, i + D/2) is a complex number turned by e^(−iθt).
    """
    length, width = x.shape
    size = width // num_heads
    position = np.arange(length)[:, None]
    turn = np.exp(-1j * position * 10_000.0 ** (-2.0 * np.arange(size // 2) / size))
    seen = normalized(x)
    gathered = np.zeros_like(x)
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        q, k, v = (seen @ weights[name][:, part] for name in ("query", "key", "value"))
        q, k = (
            turn * (y[:, : size // 2] + 1j * y[:, size // 2 :])
            for y in (normalized(q), normalized(k))
        )
        for t in range(length):
            scores = np.real(q[t] * k[: t + 1].conj()).sum(axis=1) / np.sqrt(size)
            shares = np.exp(scores) / np.exp(scores).sum()
            gathered[t, part] = shares @ v[: t + 1]
    x = x + gathered @ weights["out"]
    hidden = np.maximum(normalized(x) @ weights["up"], 0.0)
    return x + (2.0 * hidden**2) @ weights["down"]


def test_a_block_is_as_written_in_the_book(key):
    config = nanogpt.PRESETS["nano"]
    block = nanogpt.Block(config, jnp.float32, rngs=nnx.Rngs(1))
    x = jax.random.normal(key, (2, 9, config.width))
    state = nnx.to_pure_dict(nnx.state(block, nnx.Param))
    matrices = {**state.pop("attention"), **state}
    weights = {n: np.asarray(w["kernel"], np.float64) for n, w in matrices.items()}
    expected = [block_by_the_book(s, weights, config.num_heads) for s in np.float64(x)]
    # float32 through a few products of 64 terms: some 1e-6
    np.testing.assert_allclose(block(x), np.stack(expected), rtol=2e-5, atol=2e-5)


def test_rotary_products_depend_on_distance_alone(key):
    q, k = jax.random.normal(key, (2, 8))
    stacked = jnp.broadcast_to(jnp.stack([q, k])[:, None, None], (2, 12, 1, 8))
    turned_q, turned_k = nanogpt.rotate(stacked)[:, :, 0]  # (T, D) each
    products = turned_q @ turned_k.T  # (T, T)
    for distance in (0, 1, 5):
        diagonal = np.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4)
    assert abs(products[0, 5] - products[0, 0]) > 1e-3


# The transformer with scanned blocks.


@pytest.mark.parametrize("tied", [False, True])
def test_scanned_blocks_give_the_same_logits_and_gradients(tied):
    config = nanogpt.Config(3, 2, 16, 32, tied=tied)
    apply, params = nanogpt.build(config, seed=0)
    scanned, stacked = nanogpt_scan.build(config, seed=0)

    def loss(params, apply):
        logits = apply(params, TOKENS)
        return jnp.mean(jnp.square(logits)), logits

    def both(params, apply):
        return jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(params, apply)

    grads, logits = both(nnx.to_pure_dict(params), apply)
    stacked_grads, stacked_logits = both(stacked, scanned)
    np.testing.assert_allclose(stacked_logits, logits, rtol=1e-5, atol=1e-5)
    for i in range(config.num_layers):
        of_block = jax.tree.map(lambda g, i=i: g[i], stacked_grads["blocks"])
        # float32 sums in another order
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            of_block,
            grads[f"block_{i}"],
        )
    np.testing.assert_allclose(
        stacked_grads["embed"]["embedding"], grads["embed"]["embedding"], atol=1e-4
    )


def test_scanned_blocks_stop_backpropagation():
    config = nanogpt.Config(3, 2, 16, 32, tied=False)
    apply, params = nanogpt_scan.build(config, seed=0)
    layers = nanogpt.layers(config, scanned=True)
    assert dm.count_layers(layers(params)) == 5
    active = (False, False, True, True, True)

    def grads(active):
        def loss(params):
            return jnp.mean(jnp.square(apply(params, TOKENS, active)))

        step = dm.value_and_grad(loss, layers)
        return jax.jit(lambda params: step(params, active=active)[1])(params)

    full, cut = grads((True,) * 5), grads(active)
    assert not jnp.any(cut["embed"]["embedding"])
    for ours, theirs in zip(
        jax.tree.leaves(cut["blocks"]), jax.tree.leaves(full["blocks"]), strict=True
    ):
        assert not jnp.any(ours[0])
        np.testing.assert_allclose(ours[1:], theirs[1:], rtol=1e-4, atol=1e-5)


def test_scanned_gpt_has_the_published_size():
    params = shapes(lambda: nanogpt_scan.build("124m", seed=0))
    assert count(params) == 123_568_128
    assert params["blocks"]["up"]["kernel"].shape == (12, 768, 3072)


# Blocks that are absent, or gone around.

SIZE = nanogpt.Config(3, 2, 16, 32, tied=False)
HERE = [(True, True, False, True, True), (True, False, True, False, True)]
BOTH = pytest.mark.parametrize("source", [nanogpt, nanogpt_scan])


def without(params, present):
    """The weights of a network that has the blocks that are present alone."""
    kept = [i for i in range(SIZE.num_layers) if present[i + 1]]
    if "blocks" in params:
        cut = jax.tree.map(lambda x: jnp.stack([x[i] for i in kept]), params["blocks"])
        return {**params, "blocks": cut}
    blocks = {f"block_{j}": params[f"block_{i}"] for j, i in enumerate(kept)}
    return {"embed": params["embed"], **blocks, "head": params["head"]}


@BOTH
@pytest.mark.parametrize("present", HERE)
def test_a_network_without_some_blocks_is_one_of_the_others(source, present):
    apply, params = source.build(SIZE, seed=0)
    small = dataclasses.replace(SIZE, num_layers=sum(present) - 2)
    few, _ = source.build(small, seed=1)
    params = params if isinstance(params, dict) else nnx.to_pure_dict(params)
    found = apply(params, TOKENS, None, present)
    np.testing.assert_allclose(found, few(without(params, present), TOKENS), rtol=1e-6)


# A scan's body counts once, so of the scanned form blocks that lie apart alone.
@pytest.mark.parametrize(
    ("source", "present"),
    [(nanogpt, HERE[0]), (nanogpt, HERE[1]), (nanogpt_scan, HERE[1])],
)
def test_absent_blocks_are_not_in_the_program(source, present):
    apply, params = source.build(SIZE, seed=0)
    small = dataclasses.replace(SIZE, num_layers=sum(present) - 2)
    few, _ = nanogpt.build(small, seed=1)  # unrolled: nothing is in a loop
    tokens = jnp.tile(TOKENS, (16, 1))
    layers = nanogpt.layers(SIZE, scanned=source is nanogpt_scan)

    def loss(params):
        return jnp.mean(jnp.square(apply(params, tokens, present, present)))

    def cut(params):
        return jnp.mean(jnp.square(few(params, tokens)))

    step = dm.value_and_grad(loss, layers)
    cost = dm.count_flops(lambda p: step(p, active=present), params)
    plain = nnx.to_pure_dict(nanogpt.build(SIZE, seed=0)[1])
    by_hand = dm.count_flops(jax.value_and_grad(cut), without(plain, present))
    assert cost <= 1.02 * by_hand


@BOTH
def test_going_around_a_block_leaves_its_value_and_its_path(source):
    apply, params = source.build(SIZE, seed=0)
    layers = nanogpt.layers(SIZE, scanned=source is nanogpt_scan)
    active = (True, False, True, False, True)

    def grads(around):
        def loss(params):
            logits = apply(params, TOKENS, active, None, around)
            return jnp.mean(jnp.square(logits)), logits

        step = dm.value_and_grad(loss, layers, has_aux=True)
        (_, logits), found = step(params, active=active)
        return logits, found

    logits, found = grads(True)
    np.testing.assert_array_equal(logits, grads(False)[0])
    embedding = found["embed"]["embedding"]
    assert jnp.any(embedding != grads(False)[1]["embed"]["embedding"])
    assert jnp.any(embedding)


@pytest.mark.parametrize(
    ("active", "present", "message"),
    [
        (None, (False, True, True, True, True), "`present` must hold embedding and"),
        ((True,) * 5, HERE[0], "`present` must hold every layer of `active`"),
        ((True,) * 4, None, "must have a bool for each of"),
    ],
)
@BOTH
def test_sets_that_cannot_be_are_refused(source, active, present, message):
    apply, params = source.build(SIZE, seed=0)
    with pytest.raises(ValueError, match=message):
        apply(params, TOKENS, active, present)
