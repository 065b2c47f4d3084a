"""The command ``ar2unet``, a module a command; each imports what it needs only when it runs."""

from pipeline.cli.app import app, main

# Each registers its commands; the list of --help has this order.
from pipeline.cli import segment, cohort, compare, stage, demo, prepare, leakage, evaluate, export, pack, serve, label  # isort: skip

__all__ = [
    "app",
    "cohort",
    "compare",
    "demo",
    "evaluate",
    "export",
    "label",
    "leakage",
    "main",
    "pack",
    "prepare",
    "segment",
    "serve",
    "stage",
]
