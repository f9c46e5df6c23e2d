"""From a folder or CSV to decoded pixels and seeded views; import the modules themselves."""
