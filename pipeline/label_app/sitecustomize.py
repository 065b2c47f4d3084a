"""Run by every Python that the server starts, before anything imports torchvision."""

from pipeline.label_app.torchvision_operators import define_missing_operators

define_missing_operators()
