"""How verdicts become a plan: the orderings as a DAG, the search over it, and the plan."""
