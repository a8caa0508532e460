"""A study as one web page, and as figures and tables of a paper: python -m analysis.report."""
