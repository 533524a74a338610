"""The quality bench: attention error and picture quality at equal work, against peers and ingredient by ingredient."""
