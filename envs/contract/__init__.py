"""The contract of environments, proved clause by clause: `check`."""

from rlx.envs.contract.clauses import CLAUSES, check
from rlx.envs.contract.evidence import ContractError, Evidence

__all__ = ["CLAUSES", "ContractError", "Evidence", "check"]
