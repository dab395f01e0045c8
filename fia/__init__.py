"""Forget-It-All (FIA, arXiv 2601.06163): training-free multi-concept unlearning by concept-aware pruning."""
