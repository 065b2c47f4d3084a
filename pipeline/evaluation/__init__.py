"""Scores of masks against their truth, patient by patient."""
