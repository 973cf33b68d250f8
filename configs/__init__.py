"""The run file: its schema, and the runs and clusters that ship."""
