"""The paper's tables in miniature: the runs of the study, their results, and the page that shows them.

`flows/study.py` executes them (`make ablations`); nothing here starts anything.
"""
