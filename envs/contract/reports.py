"""The clauses about `info`: what an environment reports can be carried by a scan, summed and averaged."""

import jax
import numpy as np

from rlx.envs.contract.evidence import ContractError, Evidence


def reports(evidence: Evidence) -> None:
    """Info has the same structure, shapes and dtypes in every step."""
    first, later = evidence.step[5], evidence.later[5]
    kinds = [
        {jax.tree_util.keystr(path): (x.shape, x.dtype) for path, x in jax.tree_util.tree_leaves_with_path(info)}
        for info in (first, later)
    ]
    for name in {**kinds[0], **kinds[1]}:
        a, b = (f"{kind[name][1]}{list(kind[name][0])}" if name in kind else "not there" for kind in kinds)
        if a != b:
            raise ContractError(
                f"info{name} is {a} in one step and {b} in the next; report the same in every step, 0 or False where "
                "there is nothing to say"
            )
    if jax.tree.structure(first) != jax.tree.structure(later):
        raise ContractError(
            f"info is {jax.tree.structure(first)} in one step and {jax.tree.structure(later)} in the next; give both "
            "the same structure"
        )


def reported_values(evidence: Evidence) -> None:
    """What info reports is finite over whole random-action episodes."""
    episodes = evidence.episodes
    whole = episodes.valid & ~episodes.diverged  # one that diverges ends there, and counts in no mean
    for name, totals in episodes.reported.items():
        bad = np.argwhere(~np.isfinite(totals) & whole)
        if bad.size:
            n, t = bad[0]
            raise ContractError(
                f"the sum of {name} of info is {totals[n, t]} after step {t + 1}; report finite numbers, 0 where there "
                "is nothing to say"
            )
