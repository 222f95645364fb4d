"""Audit the recipes of compression tools: what each step is here, and whether later steps keep its promises."""
