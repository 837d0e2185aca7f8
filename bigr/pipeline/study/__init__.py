"""The paper's tables in miniature: which runs the study is made of, what they found, and the page that says so.

`flows/study.py` executes them (`make ablations`); nothing here starts anything.
"""
