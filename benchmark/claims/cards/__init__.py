"""The claims that come with the package, one JSON file each, named by its id."""
