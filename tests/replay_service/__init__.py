"""Tests of the replay service, one module a source module."""
