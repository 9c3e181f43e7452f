"""What one does with an agent: presets, training runs, evaluation, rendering. `python -m agents --help` lists it."""
