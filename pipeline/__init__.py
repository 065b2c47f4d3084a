"""Everything that touches the world: files, the command line, training runs."""
