"""Training: data, loop, checkpoints. Importing the package itself imports neither torch nor any module in it,
so that the data modules (`recall`, `text`, `task`) serve an environment without torch."""
