"""The Pusher protocol as a client and a publisher speak it: text in, text out, no socket."""
