"""Published ways to merge models, one file each, and the table of them (`table.py`).

A method sees one tensor at a time (`Merging`) and gives an expression: folds over the models for the few numbers that
it needs of whole tensors, then one elementwise pass. So memory is bounded by blocks, and an order statistic, a norm or
a choice at random is the same whatever the threads and the budget.
"""
