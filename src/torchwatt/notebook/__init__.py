"""`%energy` and the live view in IPython and Jupyter."""
