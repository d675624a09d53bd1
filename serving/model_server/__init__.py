"""A local server that speaks TensorFlow Serving's gRPC and REST over the models in a folder."""
