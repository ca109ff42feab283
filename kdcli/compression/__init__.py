"""How a network gets smaller while it learns: which rows of its compactors shrink, and how fast.

Capacity dynamic distillation (Xie et al. 2023, arXiv 2303.09230) and ResRep (Ding et al. 2021, arXiv
2007.03260), as functions of tensors that change nothing in place:

* ``rows``: norms of rows, the gradient with the group lasso and with rows reset, the rows that are kept;
* ``rggr``: CDD's choice of the rows to reset, by what they contribute to retrieval;
* ``budget``: ResRep's choice, by norm, until a target of cost is met;
* ``shrink``: how many steps it takes until a row that is reset can be removed.
"""
