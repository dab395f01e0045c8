"""The pipeline from a configuration to a record, and everything that is made from records."""
