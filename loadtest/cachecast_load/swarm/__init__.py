"""What Locust sees: users, master and workers, its page."""
