"""The paper's tables in miniature: runs, results, page. `flows/study.py` executes them (`make ablations`)."""
