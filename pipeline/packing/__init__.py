"""From a bundle's folder to one zip that runs with MONAI alone, this repository nowhere on the path."""
