"""The plugins that come with rapbench, found through entry points exactly as a stranger's are."""

if __name__ != "rapbench_plugins":
    raise ImportError(f"imported as {__name__!r}: this folder is the package 'rapbench_plugins'; pip install rapbench and import that")
