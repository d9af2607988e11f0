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
    contenders: tuple  # plans measured under the smallest budget, and under each other
    tune_steps: int
    long_steps: int
    long_effective: tuple  # samples of a step under the smallest card, which are more than it holds at once, and under the others
    neighbour_steps: int  # behind those of the run under the smallest card
    window: int  # steps between two decisions of these runs
    batches: tuple  # of the comparisons at equal batch
    turns: int  # pairs of steps of such a comparison
    search: tuple  # the peer's batches, ascending
    failing_batch: int  # samples of the steps in which memory runs out
    rank_budgets: tuple  # of ranks that share a GPU
    too_little: str  # what is left of a card that is full
    profiles: tuple  # (batch, recomputed blocks) of the steps whose time is looked into
    profiled_steps: int
    cache_epochs: int


# Two pictures of 448 x 448 and some 600 tokens a sample, an expert of some 30 million parameters.
FULL = Scale("3b", "bf16", images=2, side=448, text=84, width=384, depth=8, heads=6, depth_of_language=36, samples=96, effective=32,
             budgets=("24GiB", "40GiB", "80GiB"), by_hand=(("24GiB", 2), ("24GiB", 4), ("40GiB", 4), ("80GiB", 8)), contenders=(18, 1), tune_steps=1,
             long_steps=200, long_effective=(8, 2), neighbour_steps=25, window=25, batches=(4, 8), turns=3, search=(2, 4, 8, 16, 32), failing_batch=4,
             rank_budgets=("3GiB", "2GiB", "1GiB"), too_little="3GiB", profiles=((8, 0), (1, 36)), profiled_steps=3, cache_epochs=4)  # fmt: skip

# The same in miniature: that every part works, on a machine without a GPU. Its figures mean nothing.
REHEARSAL = Scale("tiny", "bf16", images=1, side=56, text=12, width=64, depth=2, heads=4, depth_of_language=4, samples=20, effective=4,
                  budgets=("32MiB", "64MiB"), by_hand=(("64MiB", 2),), contenders=(2, 1), tune_steps=1,
                  long_steps=8, long_effective=(2, 2), neighbour_steps=6, window=3, batches=(1,), turns=2, search=(1, 2), failing_batch=4,
                  rank_budgets=("64MiB", "48MiB", "40MiB"), too_little="4MiB", profiles=((2, 0),), profiled_steps=2, cache_epochs=4)  # fmt: skip
