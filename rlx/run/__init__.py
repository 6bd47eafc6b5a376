"""A run from the host: compiled chunks of updates, and logs, evaluations, checkpoints and pictures between them."""

from rlx.faces import face

HOMES = {
    "job": "CHECKPOINT_SECONDS OPTIONS PACKAGES Job keys plan identity describe provenance",
    "log": "ROWS NO_LOG Logger",
    "evaluations": "evaluate_run evaluation best draw",
    "fit": "Run fit",
    "saved": "environment named saved_run saved_state",
    "loop": "jitted chunk execute",
    "pause": "Hook Pause",
    "training": "CHUNK_SECONDS CHUNK_UPDATES",
    "sinks": "KINDS SINKS Asked Csv Jsonl LoggedRun RunSink Sink",
    "background": "Background",
    "stop": "Stop",
}
__all__, __getattr__, __dir__ = face(__name__, HOMES)
