"""Reading and writing scans and masks."""
