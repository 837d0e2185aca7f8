"""Fidelity, representation and plots."""

from bigr.runtime.extras import require

require("evaluation", "bigr.evaluation")
