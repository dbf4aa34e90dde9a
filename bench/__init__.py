"""What Tidegate costs, each figure beside its floor from the same run: `python -m bench [NAME …] [--kafka local]`."""
