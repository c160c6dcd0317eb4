"""Cost as a pytest-benchmark run: a fixture for anybody's defense, the shipped test, the JSON of `pytest-benchmark compare`."""
