"""Coefficients of the odd quintics that drive singular values towards 1.

One step maps a matrix X to aX + bX(XᵀX) + cX(XᵀX)², hence each of its singular values
σ to p(σ) = aσ + bσ³ + cσ⁵ and nothing else. A set of coefficients is therefore judged
by a scalar: the range of the composed polynomial over the singular values that occur.
These certificates are in `tests/linalg/test_coefficients.py`, to four digits.
"""

import dataclasses

from dropmuon_optax import checks
from dropmuon_optax.nouns import Noun

Triple = tuple[float, float, float]


@dataclasses.dataclass(frozen=True, repr=False)
class Coefficients(Noun):
    """A named list of triples (a, b, c), one for each step, used from the first on.

    Attributes:
      name: the name to print.
      steps: the triples.
      source: where the numbers stand.
      repeats_last: whether further steps use the last triple again.
      safety: the normalized matrix is divided by this, so that rounding can't push a
        singular value past the end of the interval that the set was made for.

    Raises:
      ValueError: if `steps` holds no triples, or `safety` is below 1.
    """

    name: str
    steps: tuple[Triple, ...] = dataclasses.field(repr=False)
    source: str = dataclasses.field(repr=False)
    repeats_last: bool = False
    safety: float = 1.0

    def __post_init__(self) -> None:
        if not self.steps or any(len(step) != 3 for step in self.steps):
            raise ValueError(
                "`steps` must be one or more triples (a, b, c), got " + repr(self.steps)
            )
        checks.in_range("safety", self.safety, 1.0)

    @classmethod
    def of(cls, *steps: Triple, repeats_last: bool = True) -> "Coefficients":
        """A set of your own, from plain triples.

        Args:
          *steps: the triples (a, b, c), one for each step.
          repeats_last: whether further steps use the last triple again.

        Returns:
          The set, without a safety margin.

        Raises:
          ValueError: if there are no triples.

        Examples:
          >>> Coefficients.of((2.0, -1.5, 0.5)).first(2)
          ((2.0, -1.5, 0.5), (2.0, -1.5, 0.5))
        """
        return cls("custom", steps, "given as numbers", repeats_last)

    def first(self, num_steps: int) -> tuple[Triple, ...]:
        """The triples of the first `num_steps` steps.

        Args:
          num_steps: how many steps, at least 1.

        Returns:
          As many triples.

        Raises:
          ValueError: if the set has fewer and does not say that its last one repeats.

        Examples:
          >>> CANS.first(6)
          Traceback (most recent call last):
          ...
          ValueError: `num_steps` must be at most 5 for the coefficients 'cans', got 6
          >>> len(KELLER_JORDAN.first(6))
          6
        """
        checks.positive_int("num_steps", num_steps)
        missing = num_steps - len(self.steps)
        if missing > 0 and not self.repeats_last:
            raise ValueError(
                f"`num_steps` must be at most {len(self.steps)} for the coefficients "
                f"{self.name!r}, got {num_steps}"
            )
        return self.steps[:num_steps] + self.steps[-1:] * max(missing, 0)


def _damped(steps: tuple[Triple, ...], by: float) -> tuple[Triple, ...]:
    """p(σ/by) in place of p(σ), for every step."""
    return tuple((a / by, b / by**3, c / by**5) for a, b, c in steps)


KELLER_JORDAN = Coefficients(
    "keller_jordan",
    ((3.4445, -4.7750, 2.0315),),
    "Keller Jordan, github.com/KellerJordan/Muon, muon.py",
    repeats_last=True,
)
"""Steepest at 0 of quintics that stay near 1: 0.68…1.20 from σ = 0.002 on, not 1."""

YOU_JIACHENG = Coefficients(
    "you_jiacheng",
    (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "YouJiacheng, modded-nanogpt (train_gpt_medium.py); microsoft/dion",
)
"""Per-step quintics found by search; tight from σ = 0.01 on. Optax calls it `dion`."""

_POLAR_EXPRESS_PAPER = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)

# Four tables called "Polar Express" are in circulation: the paper's (this one, eight
# triples, the first seven damped by 1.01), modded-nanogpt's (five, the input damped by
# 1.02; also in dion), Gram Newton-Schulz's (the paper's first five, damped by 1.05),
# and NVIDIA's (eight, 7.2086 first). The first two are here, under names that say so.
POLAR_EXPRESS = Coefficients(
    "polar_express",
    (*_damped(_POLAR_EXPRESS_PAPER, 1.01), (1.875, -1.25, 0.375)),
    "Amsel, Persson, Musco, Gower, arXiv:2505.16932, Algorithm 1 (l = 1e-3)",
    repeats_last=True,
)
"""Minimax-optimal per-step quintics: the fewest steps to a given error, then exact."""

POLAR_EXPRESS_MODDED = Coefficients(
    "polar_express_modded",
    (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
    "KellerJordan/modded-nanogpt, train_gpt.py; the input is divided by 1.02",
    safety=1.02,
)
"""The Polar Express table that the NanoGPT speedruns use."""

_CANS_PUBLISHED = (
    (8.4703, -25.1081, 18.6293),
    (4.1828, -3.1087, 0.5806),
    (3.9619, -2.9541, 0.5630),
    (3.2866, -2.4647, 0.5074),
    (2.2737, -1.6447, 0.4162),
)

# Each of the published steps is steep at the end of the interval that it was made for,
# and the next one begins where it ends: σ = 1.0001 comes out as 3·10⁴. So all but the
# last are damped, as Polar Express damps its own, here by 1.02: bfloat16 puts a
# singular value off by 0.4 % a rounding. It costs 0.05 at the lower end (0.84, not
# 0.88, for singular values from 0.001 on).
CANS = Coefficients(
    "cans",
    (*_damped(_CANS_PUBLISHED[:-1], 1.02), _CANS_PUBLISHED[-1]),
    "Grishina, Smirnov, Rakhuba (Chebyshev-accelerated), arXiv:2506.10935; "
    "NVIDIA-NeMo/Emerging-Optimizers; damped by 1.02 here",
)
"""Chebyshev-type accelerated Newton–Schulz, five steps."""

DEEPSEEK_V4 = Coefficients(
    "deepseek_v4",
    ((3.4445, -4.7750, 2.0315),) * 8 + ((2.0, -1.5, 0.5),) * 2,
    "AI-Hypercomputer/maxtext and NVIDIA-NeMo/Emerging-Optimizers, `deepseekv4`",
)
"""Eight fast steps, two that settle: within 5e-4 of 1 from σ = 0.001 on."""

NEWTON_SCHULZ = Coefficients(
    "newton_schulz",
    ((1.875, -1.25, 0.375),),
    "Björck and Bowie, SIAM J. Numer. Anal. 8 (1971), the order-5 iteration",
    repeats_last=True,
)
"""The classic quintic: slow from small σ (factor 15/8 a step), converges to 1."""
