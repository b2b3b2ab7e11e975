"""The SQL function ``publish_batch``, and its bridge to permissions and the batcher."""
