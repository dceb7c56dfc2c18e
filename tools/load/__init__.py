"""Load: when queries arrive, how large they are, and what became of them."""
