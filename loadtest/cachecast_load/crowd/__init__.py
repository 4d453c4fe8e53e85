"""Those who take part: blocks of subscribers, their clients, and publishers."""
