"""Ground floor of the benchmark: models, edits, prompts, pictures, the store. It knows no method and no metric."""

from . import resolvers  # noqa: F401  (configurations may be resolved by whoever imports any part of this)
