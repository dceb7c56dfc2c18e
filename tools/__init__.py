"""The command line: `recreplay models | doctor | capture | inspect | run | bench | demo`."""
