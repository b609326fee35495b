"""What owners own and send, printed."""

from typing import Any

from dropmuon_optax import checks
from dropmuon_optax.compressors import Compressor
from dropmuon_optax.layers import LayersFn
from dropmuon_optax.layers.rules import Rules, check_rules
from dropmuon_optax.wire.messages import letters
from dropmuon_optax.wire.ownership import WORK_SHARE, own
from dropmuon_optax.wire.relays import passed_on
from dropmuon_optax.wire.stacks import select


def describe_owners(
    layers: LayersFn,
    params: Any,
    worker_compressor: Compressor | Rules,
    server_compressor: Compressor | Rules | None = None,
    *,
    num_workers: int,
    work_share: float = WORK_SHARE,
    relays: bool = False,
) -> str:
    """Prints the stacks of `ef21_muon` and what its letters hold, and fill up.

    Args:
      layers: as `ef21_muon` takes them.
      params: the parameters (or their `jax.ShapeDtypeStruct`s).
      worker_compressor: as `ef21_muon` takes it.
      server_compressor: likewise.
      num_workers: n, the owners.
      work_share: likewise.
      relays: likewise.

    Returns:
      The text that was printed: for each stack, its matrices and how many places each
      owner has for them; for each direction, the bytes of a letter, their mean without
      what fills letters up, and the ratio; with relays, what they pass on to owners and
      get back, by a worker that sends in every round; and the oracle's work on every
      owner, of the mean's.

    Raises:
      ValueError: as `ef21_muon` does.

    Examples:
      >>> import jax.numpy as jnp
      >>> from dropmuon_optax.compressors import Natural
      >>> from dropmuon_optax.layers import layers_by_path
      >>> shapes = {"u": (8, 8), "v": (8, 8), "w": (8, 16)}
      >>> params = {name: jnp.ones(shape) for name, shape in shapes.items()}
      >>> _ = describe_owners(
      ...     layers_by_path(None), params, Natural(), Natural(), num_workers=2
      ... )
      2 × (8, 8) Spectral(), 2 places
      1 × (8, 16) Spectral(), 1 places
      to owners: letters of 144 bytes, 144.0 without padding: 1.00
      from owners: letters of 144 bytes, 144.0 without padding: 1.00
      oracle: 2.00 times the mean owner's work
    """
    check_rules("worker_compressor", worker_compressor)
    check_rules("server_compressor", server_compressor)
    checks.positive_int("num_workers", num_workers)
    checks.in_range("work_share", work_share, 0.0, 1.0)
    checks.is_flag("relays", relays)
    ownership = own(
        layers,
        params,
        num_workers,
        num_workers,
        worker_compressor,
        server_compressor,
        work_share=work_share,
        relays=relays,
    )
    whole = select(ownership)
    lines = [
        f"{len(stack.radii)} × {stack.shape} {stack.norm}, {whole.counts[s]} places"
        + (f", sent in {k} blocks of rows" if k > 1 else "")
        for s, (stack, k) in enumerate(
            zip(ownership.stacks, ownership.parts, strict=True)
        )
    ]
    for way, compressors in (("to", whole.workers), ("from", whole.servers)):
        layout = letters(whole, compressors)
        longest = layout.length * layout.granule
        widths, counts = layout.widths, layout.counts
        mean = sum(counts[s] * widths[s] for s in widths) / num_workers
        lines.append(
            f"{way} owners: letters of {longest:,} bytes, {mean:,.1f} without padding: "
            f"{longest / mean:.2f}"
        )
    if relays:
        there, back = passed_on(whole)
        lines.append(f"passed on: {there:,} bytes to owners, {back:,} from them")
    lines.append(f"oracle: {ownership.work_ratio:.2f} times the mean owner's work")
    text = "\n".join(lines)
    print(text)
    return text
