"""How it is done: one concept a file. Nothing in here imports a script of the folder above."""
