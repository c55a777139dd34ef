"""An outbox in each database, and the relay that carries its events to the others."""
