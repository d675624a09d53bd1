"""The client side of TF Serving, its configuration, and the local model server."""
