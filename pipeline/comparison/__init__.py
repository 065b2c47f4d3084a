"""Two visits of one patient: what changed between them, in numbers and in a picture."""
