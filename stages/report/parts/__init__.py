"""The pieces of the report: numbers for programs (summary), for people (page, charts), and model cards."""
