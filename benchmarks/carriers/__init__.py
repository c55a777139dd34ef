"""Ways to carry events from one database to another, each with two worker processes."""
