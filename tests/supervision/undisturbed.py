"""Settings of the run that nothing disturbs, and of those that tests disturb."""

from __future__ import annotations

CONFIG = """
model: {source: msam_scale, name: wrn-10-1}
data: {train: "DIGITS/train", val: "DIGITS/val"}
objective: {algorithm: msam, micro_batches: 4, rho: 0.05}
batch: {size: 32, norm_samples: 4}
optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
schedule: {name: one_cycle, warmup: 0.1}
training: {eval_every: 8}
monitor: {progress: false}
"""
# In float64, so that what a stop and a resume change shows.
SETTINGS = (
    "precision=float64",
    "training.steps=16",
    "monitor.every=1",
    "monitor.tensorboard=false",
)
