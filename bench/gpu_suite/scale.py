"""How large what the suite runs is."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Scale:
    size: str  # of plimsoll init-model
    dtype: str
    images: int
    side: int
    text: int  # tokens
    width: int  # of the expert
    depth: int
    heads: int
    depth_of_language: int
    samples: int  # of the made-up dataset
    effective: int
    budgets: tuple  # emulated cards, ascending
    by_hand: tuple  # (budget, micro-batch) of rows that people use with everything recomputed
    contenders: int  # plans measured under each budget
    tune_steps: int
    long_steps: int
    long_effective: int
    batches: tuple  # of the comparisons at equal batch
    turns: int  # pairs of steps of such a comparison
    search: tuple  # the peer's batches, ascending
    lowered: tuple  # budget of a run, and what it falls to in the middle of a step
    allocations: tuple  # of that step before it does
    cache_epochs: int


# Two pictures of 448 x 448 and some 600 tokens a sample, an expert of some 30 million parameters.
FULL = Scale("3b", "bf16", images=2, side=448, text=84, width=512, depth=7, heads=8, depth_of_language=36, samples=96, effective=32,
             budgets=("24GiB", "40GiB", "80GiB"), by_hand=(("24GiB", 2), ("24GiB", 4), ("40GiB", 4), ("80GiB", 8)), contenders=7, tune_steps=2,
             long_steps=200, long_effective=4, batches=(1, 4, 8), turns=8, search=(1, 2, 4, 8, 16, 32), lowered=("40GiB", "14GiB"),
             allocations=(200, 1000, 2500), cache_epochs=4)  # fmt: skip

# The same in miniature: that every part works, on a machine without a GPU. Its figures mean nothing.
REHEARSAL = Scale("tiny", "bf16", images=1, side=56, text=12, width=64, depth=2, heads=4, depth_of_language=4, samples=20, effective=4,
                  budgets=("32MiB", "64MiB"), by_hand=(("64MiB", 2),), contenders=2, tune_steps=1,
                  long_steps=6, long_effective=2, batches=(1,), turns=2, search=(1, 2), lowered=("64MiB", "14MiB"),
                  allocations=(20, 100), cache_epochs=4)  # fmt: skip
