"""MONAI Label with the packed bundles: what sets its environment up, and the app that its server runs there."""
