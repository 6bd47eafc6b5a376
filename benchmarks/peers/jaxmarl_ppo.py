"""JaxMARL's independent PPO, for speed.py: a script of its repository, which its package does not have.

The environment variable JAXMARL is the path of a checkout.
"""

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

from peers.measure import main

SCRIPT = "baselines/IPPO/ippo_ff_mpe.py"


def program(settings):
    import jax

    if "JAXMARL" not in os.environ:
        raise RuntimeError("JAXMARL is not set: give it the path of a checkout, the package has no baselines")
    spec = spec_from_file_location("ippo_ff_mpe", Path(os.environ["JAXMARL"]) / SCRIPT)
    script = module_from_spec(spec)
    sys.modules["wandb"] = SimpleNamespace(log=lambda metrics: None)
    spec.loader.exec_module(script)
    config = {
        "ENV_NAME": settings["env"].partition("/")[2],
        "ENV_KWARGS": {},
        "TOTAL_TIMESTEPS": settings["total_steps"],
        "NUM_ENVS": settings["num_envs"],
        "NUM_STEPS": settings["num_steps"],
        "UPDATE_EPOCHS": settings["num_epochs"],
        "NUM_MINIBATCHES": settings["num_minibatches"],
        "LR": settings["learning_rate"],
        "ANNEAL_LR": settings["anneal_learning_rate"],
        "GAMMA": settings["gamma"],
        "GAE_LAMBDA": settings["gae_lambda"],
        "CLIP_EPS": settings["clip"],
        "VF_COEF": settings["value_coef"],
        "ENT_COEF": settings["entropy_coef"],
        "MAX_GRAD_NORM": settings["max_grad_norm"],
        "ACTIVATION": settings["activation"],
    }
    run = jax.jit(script.make_train(config))
    per_update = settings["num_envs"] * settings["num_steps"]
    return run, lambda key: (key,), lambda result: result["metrics"]["total_loss"].shape[0] * per_update


if __name__ == "__main__":
    main(program)
