"""DeepRecSched: how to cut, place and batch queries for the most of them within a tail latency."""
