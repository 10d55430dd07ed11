"""The optimizer's correction of a gradient: Adam divides by sqrt(V), so that is what a step on an example does.

V is kept in Adafactor's rank-one form (arXiv 1804.04235), `V ~ r c^T / mean(V)` with row means r and column means c,
so that it splits over the two sides of a layer. The first-order effect of a step is `lr <g_q, V^-1/2 g_z>`: each of the
two features takes V^-1/4, which is r^-1/4 on its output side and (c / mean)^-1/4 on its input side.
"""

import numpy as np


def adam_scales(second_moment: np.ndarray, step: int, beta2: float, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """(R `[out]`, C `[in]`): factors of a module's output gradient and input, from Adam's V `[out, in]`.

    V is bias-corrected by 1/(1 - beta2^step); `eps^2` is added to both factors' products, as Adam adds eps to sqrt(V),
    so that a row that never had a gradient gives a large number and no infinity.
    """
    v = second_moment.astype(np.float64) / (1.0 - beta2**step) + eps**2
    rows, columns, mean = v.mean(axis=1), v.mean(axis=0), v.mean()
    return rows**-0.25, (columns / mean) ** -0.25
