"""What tests share, by name: `from support.oracles import dense_project`. `pythonpath` in `setup.cfg` makes that work."""
