"""What a bundle's training, validation and inference configs need beside MONAI's own parts."""
