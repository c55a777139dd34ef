"""Ways to write a row in each of two databases, and what they promise when a process dies in between."""
