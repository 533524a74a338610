"""One run over several ranks (processes), each with some of the heads."""
