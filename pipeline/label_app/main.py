"""What MONAI Label looks for in an app's folder: a class whose base is ``MONAILabelApp``."""

from pipeline.label_app.app import LabelApp

__all__ = ["LabelApp"]
