"""`augserver bench`: what a user's own machine gains, measured and drawn.

A program like any other: it wraps its pictures in the client's classes, and a private server makes
the batches. Beside it the same work is done by Keras's own class, by Keras's PyDataset with two
processes, and by a plain Pool.
"""
