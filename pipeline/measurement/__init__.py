"""What a mask amounts to: its lesions, their sizes and where they lie, and how sure that is."""

from pipeline.measurement.diameters import Diameters
from pipeline.measurement.laterality import Laterality
from pipeline.measurement.lesions import Lesion, Measurements, measure, measure_scan
from pipeline.measurement.uncertainty import volume_interval

__all__ = ["Diameters", "Laterality", "Lesion", "Measurements", "measure", "measure_scan", "volume_interval"]
