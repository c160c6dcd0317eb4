"""Foreign packages: their own tests are run by tests/test_testing.py, with the package installed."""

collect_ignore_glob = ["*"]
