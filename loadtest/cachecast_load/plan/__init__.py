"""What a run shall do, and at what: plans, shapes, targets, and the orders that carry them out."""
