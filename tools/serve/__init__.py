"""A server of standard protocols over a model repository."""
