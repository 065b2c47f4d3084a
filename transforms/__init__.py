"""What is done to a volume: pure NumPy functions, and their MONAI dictionary wrappers."""
