"""The evaluator that is the same for every path: what is asked, recorded, measured and shown."""
