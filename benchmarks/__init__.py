"""Benchmarks: one question a script, a line of JSON an answer; `make bench` runs all and prints a table."""
